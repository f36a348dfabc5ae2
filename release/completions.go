package main

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"quorate/internal/config"
	"quorate/internal/ctl"
	"quorate/internal/utl"
)

// writeCompletions writes the output of the tools' completion command, and the equivalent for etcd, which has no
// such command.
func (s *stage) writeCompletions() error {
	for _, root := range []*cobra.Command{ctl.Command(), utl.Command()} {
		var bash, zsh, fish bytes.Buffer
		if err := root.GenBashCompletionV2(&bash, true); err != nil {
			return err
		}
		if err := root.GenZshCompletion(&zsh); err != nil {
			return err
		}
		if err := root.GenFishCompletion(&fish, true); err != nil {
			return err
		}
		if err := s.addCompletions(root.Name(), bash.Bytes(), zsh.Bytes(), fish.Bytes()); err != nil {
			return err
		}
	}
	bash, zsh, fish := serverCompletions()
	return s.addCompletions("etcd", bash, zsh, fish)
}

func (s *stage) addCompletions(program string, bash, zsh, fish []byte) error {
	for name, data := range map[string][]byte{program: bash, "_" + program: zsh, program + ".fish": fish} {
		if err := s.add("completions/"+name, data); err != nil {
			return err
		}
	}
	return nil
}

// serverCompletions complete the flags of etcd, and files as their values.
func serverCompletions() (bash, zsh, fish []byte) {
	var names []string
	var z, f strings.Builder
	quote := strings.NewReplacer("'", `'\''`)
	inZsh := strings.NewReplacer("'", `'\''`, "[", `\[`, "]", `\]`, ":", `\:`)
	for _, o := range config.Flags() {
		names = append(names, "--"+o.Name)
		fmt.Fprintf(&z, "  '--%s=[%s]:value:_files' \\\n", o.Name, inZsh.Replace(o.Text[0]))
		fmt.Fprintf(&f, "complete -c etcd -l %s -r -d '%s'\n", o.Name, quote.Replace(o.Text[0]))
	}
	bash = fmt.Appendf(nil, `# bash completion for etcd
_etcd() {
  case "$2" in
  -*) COMPREPLY=($(compgen -W '%s' -- "$2")) ;;
  *) [ "$COMP_CWORD" -gt 1 ] || COMPREPLY=($(compgen -W 'gateway grpc-proxy' -- "$2")) ;;
  esac
}
complete -o default -F _etcd etcd
`, strings.Join(append(names, "--help", "--version"), " "))
	zsh = fmt.Appendf(nil, "#compdef etcd\n_arguments \\\n%s  '--version[print the version]' \\\n  '--help[print every flag]' \\\n  '1:command:(gateway grpc-proxy)'\n", z.String())
	fish = fmt.Appendf(nil, "%scomplete -c etcd -l version -d 'print the version'\ncomplete -c etcd -l help -d 'print every flag'\ncomplete -c etcd -n __fish_is_first_arg -a 'gateway grpc-proxy'\n", f.String())
	return bash, zsh, fish
}

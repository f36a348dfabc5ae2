package ctlv2

import (
	"flag"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// flagSet is the flags of a command, read as etcdctl 3.5 reads them: by Go's flag
// package, so that -sort is --sort and a flag of one letter stands alone. cobra
// gets them only to show them.
type flagSet struct {
	*flag.FlagSet
	help bool
	// short has the second, short name of a flag.
	short map[string]string
}

func newFlagSet(name string) *flagSet {
	fs := &flagSet{FlagSet: flag.NewFlagSet(name, flag.ContinueOnError), short: map[string]string{}}
	fs.SetOutput(io.Discard)
	fs.BoolVar(&fs.help, "help", false, "show how the command is used")
	fs.alias("h", "help")
	return fs
}

// alias gives a flag a second, short name.
func (fs *flagSet) alias(short, name string) {
	f := fs.Lookup(name)
	fs.Var(f.Value, short, f.Usage)
	fs.short[name] = short
}

// clashError is about a flag that was given under both of its names.
type clashError struct{ short, name string }

func (e *clashError) Error() string {
	return fmt.Sprintf("Cannot use two forms of the same flag: %s %s", e.short, e.name)
}

// parse reads args up to the first that is no flag, or, if flags may stand behind
// the arguments, all of them.
func (fs *flagSet) parse(args []string, anywhere bool) error {
	if anywhere {
		args = fs.flagsFirst(args)
	}
	if err := fs.Parse(args); err != nil {
		return err
	}
	given := map[string]bool{}
	fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	for name, short := range fs.short {
		if given[name] && given[short] {
			return &clashError{short, name}
		}
	}
	return nil
}

// flagsFirst moves the known flags before the arguments, each with the word that
// follows it, since that may be its value. What only looks like a flag stays: -1 is
// a value in "set /k -1". Nothing moves behind "--".
//
// A flag without a value takes the next word with it as well, as in etcdctl:
// exec-watch is used to that.
func (fs *flagSet) flagsFirst(args []string) []string {
	var flags, rest []string
	value := false
	for i, arg := range args {
		switch {
		case arg == "--":
			return append(flags, append(rest, args[i:]...)...)
		case value && !strings.HasPrefix(arg, "-"):
			flags = append(flags, arg)
			value = false
		case fs.known(arg):
			flags = append(flags, arg)
			value = !strings.Contains(arg, "=")
		default:
			rest = append(rest, arg)
		}
	}
	return append(flags, rest...)
}

func (fs *flagSet) known(arg string) bool {
	name, dashed := strings.CutPrefix(arg, "-")
	if !dashed {
		return false
	}
	name, _, _ = strings.Cut(strings.TrimPrefix(name, "-"), "=")
	return fs.Lookup(name) != nil
}

// show makes the flags part of a command's help.
func (fs *flagSet) show(cmd *cobra.Command) {
	short := map[string]bool{}
	for _, s := range fs.short {
		short[s] = true
	}
	fs.VisitAll(func(f *flag.Flag) {
		if f.Name == "help" || short[f.Name] {
			return
		}
		p := pflag.PFlagFromGoFlag(f)
		if s := fs.short[f.Name]; len(s) == 1 {
			p.Shorthand = s
		}
		cmd.Flags().AddFlag(p)
	})
}

// words is the value of a flag that may be given several times.
type words []string

func (w *words) String() string { return strings.Join(*w, ",") }

// Set adds to the value. A comma does not separate.
func (w *words) Set(s string) error {
	*w = append(*w, s)
	return nil
}

package ctlv2

import (
	"flag"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// flagSet holds the flags of a command, parsed as etcdctl 3.5 parses them: by Go's flag
// package, so that -sort is --sort and one-letter flags cannot be combined. cobra gets them
// for the help only.
type flagSet struct {
	*flag.FlagSet
	help bool
	// second, short name of a flag
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

// clashError reports a flag that was given under both of its names.
type clashError struct{ short, name string }

func (e *clashError) Error() string {
	return fmt.Sprintf("Cannot use two forms of the same flag: %s %s", e.short, e.name)
}

// parse parses args up to the first argument that is not a flag or, if flags may follow the
// arguments, all of them.
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

// flagsFirst moves the known flags in front of the arguments, each with the word that
// follows it, because that may be its value. Words that only look like a flag stay: -1 is a
// value in "set /k -1". Nothing after "--" moves.
//
// A flag without a value also takes the next word along, as in etcdctl: exec-watch depends
// on that.
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

// show adds the flags to a command's help.
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

// words is the value of a flag that may be repeated.
type words []string

func (w *words) String() string { return strings.Join(*w, ",") }

// Set appends a value. Commas do not separate values.
func (w *words) Set(s string) error {
	*w = append(*w, s)
	return nil
}

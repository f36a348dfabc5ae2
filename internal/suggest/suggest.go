// Package suggest finds the command or flag that a user probably meant.
//
// In: a command of one of the tools, and a word that it does not know. Out: a line for
// standard error.
//
// Always true: the output and exit code of etcd's tools are unchanged; the suggestion is
// printed after it, or on standard error.
package suggest

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Flags appends a suggestion to the error about an unknown flag.
func Flags(root *cobra.Command) {
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		name, ok := strings.CutPrefix(err.Error(), "unknown flag: --")
		if !ok {
			return err
		}
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		if near := Nearest(name, names); near != "" {
			return fmt.Errorf("%w\nDid you mean --%s?", err, near)
		}
		return err
	})
}

// Command writes to w a suggestion for the first argument of a command that has only
// subcommands. In this case etcdctl prints its help and exits with code 0; so do we.
func Command(w io.Writer, cmd *cobra.Command) {
	words := cmd.Flags().Args()
	if cmd.Runnable() || !cmd.HasParent() || len(words) == 0 {
		return
	}
	fmt.Fprintf(w, "unknown command %q for %q\n", words[0], cmd.CommandPath())
	if near := Below(cmd, words[0]); near != "" {
		fmt.Fprintf(w, "Did you mean %q?\n", near)
	}
}

// Help sends the help for a command that does not exist to w instead of where help goes, as
// etcd's tools print it on standard error. The commands of root must have been added.
func Help(w io.Writer, root *cobra.Command) {
	root.InitDefaultHelpCmd()
	help, _, err := root.Find([]string{"help"})
	if err != nil || help.Run == nil {
		return
	}
	run := help.Run
	help.Run = func(cmd *cobra.Command, args []string) {
		if of, _, err := root.Find(args); of == nil || err != nil {
			root.SetOut(w)
		}
		run(cmd, args)
	}
}

// Below returns the full path of the subcommand of cmd that was probably meant by word,
// or "".
func Below(cmd *cobra.Command, word string) string {
	var names []string
	for _, c := range cmd.Commands() {
		names = append(names, c.Name())
	}
	near := Nearest(word, names)
	if near == "" {
		return ""
	}
	return cmd.CommandPath() + " " + near
}

// Nearest returns the first name with the smallest edit distance to word, which may be at
// most a third of the word's length (but always 1). Failing that, it returns the first name
// that has word as a prefix, or "".
func Nearest(word string, names []string) string {
	best, fewest := "", max(1, len(word)/3)+1
	for _, name := range names {
		if d := edits(word, name); d < fewest {
			best, fewest = name, d
		}
	}
	if best != "" || len(word) < 3 {
		return best
	}
	for _, name := range names {
		if strings.HasPrefix(name, word) {
			return name
		}
	}
	return ""
}

// edits returns the edit distance from a to b: insertions, deletions, replacements, and
// exchanges of neighbouring letters.
func edits(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			change := 1
			if a[i-1] == b[j-1] {
				change = 0
			}
			n := min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				n = min(n, rows[i-2][j-2]+1)
			}
			rows[i][j] = n
		}
	}
	return rows[len(a)][len(b)]
}

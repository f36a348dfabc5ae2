// Package suggest finds the command or the flag that was probably meant.
//
// In: a command of one of the tools, and a word that it does not know. Out: a
// line for standard error.
//
// Always true: what etcd's tools print and how they end stays as it is; the
// suggestion comes below it, or beside it.
package suggest

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Flags adds, below the error about a flag that does not exist, the one
// that was probably meant.
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

// Command says on w what was probably meant by the word that follows a command
// and is none of the commands below it. etcdctl prints its help then and ends
// with 0; so do we.
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

// Below is the command below cmd that was probably meant by a word, written out
// from the name of the tool on. None: "".
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

// Nearest is the name that takes the fewest edits to make of word, at most a
// third of its letters (but one always), or one that word begins. Of several it
// is the first. None: "".
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

// edits is the number of letters to insert, delete or replace, and of neighbours
// to exchange, that make b of a.
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

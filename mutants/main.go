// Command mutants puts bugs into the product, one at a time, and shows which check finds each: a check that
// misses the bugs it is for proves nothing.
//
// In: files that describe a bug, its cost for a user, where it goes, and the lanes that should find it, cheapest
// first. Out: a row for each in the table of docs/proof.md. Invariant: the tree is not modified, because the
// changed file is overlaid for the compiler alone; a finding counts only if a test or a seed fails, and the same
// lane passes without the bug; a bug that no longer fits the code, does not compile, or is not found by any lane
// makes the run fail.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	log.SetFlags(0)
	root := flag.String("root", ".", "the source tree")
	only := flag.String("only", "", "names of the mutants to run, or the folders they are in, with commas; all if empty")
	doc := flag.String("doc", "docs/proof.md", "the document with the table; empty writes none")
	list := flag.Bool("list", false, "print names and lanes, run nothing")
	verbose := flag.Bool("v", false, "print what the lane that finds a bug says")
	flag.Parse()
	if err := run(*root, *only, *doc, *list, *verbose); err != nil {
		log.Fatal(err)
	}
}

func run(root, only, doc string, list, verbose bool) error {
	root, err := filepath.Abs(root)
	if err != nil {
		return err
	}
	all, err := load(filepath.Join(root, "mutants"))
	if err != nil {
		return err
	}
	chosen, err := choose(all, only)
	if err != nil {
		return err
	}
	if list {
		for _, m := range chosen {
			fmt.Printf("%-40s %v\n", m.Name, m.Lanes)
		}
		return nil
	}
	work, err := os.MkdirTemp("", "mutants-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r := &runner{ctx: ctx, root: root, work: work, clean: map[string]int{}}
	if doc != "" && !filepath.IsAbs(doc) {
		doc = filepath.Join(root, doc)
	}
	bad := 0
	for _, m := range chosen {
		start := time.Now()
		found, err := r.run(m)
		if ctx.Err() != nil {
			return fmt.Errorf("interrupted in %s: the rows of this one and of those after it are as they were", m.Name)
		}
		switch {
		case err != nil:
			bad++
			fmt.Printf("BROKEN  %-40s %v\n", m.Name, err)
		case found == nil:
			bad++
			fmt.Printf("ESCAPED %-40s by %v (%.0f s)\n", m.Name, m.Lanes, time.Since(start).Seconds())
		default:
			fmt.Printf("FOUND   %-40s by %v, %s%.1f s: %s (all in all %.0f s)\n", m.Name, found.lane, found.after(), found.took.Seconds(), found.says, time.Since(start).Seconds())
			if verbose {
				fmt.Println(found.output)
			}
		}
		if doc == "" {
			continue
		}
		if err := writeTable(doc, all, map[string]row{m.Name: found.row(m)}); err != nil {
			return err
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d mutants were not found, or do not fit into the code any more", bad, len(chosen))
	}
	return nil
}

// choose returns the selected mutants.
func choose(all []*mutant, only string) ([]*mutant, error) {
	if only == "" {
		return all, nil
	}
	var out []*mutant
	for name := range strings.SplitSeq(only, ",") {
		n := len(out)
		for _, m := range all {
			if (m.Name == name || strings.HasPrefix(m.Name, name+"/")) && !slices.Contains(out, m) {
				out = append(out, m)
			}
		}
		if len(out) == n {
			return nil, fmt.Errorf("there is no mutant %s; -list prints them", name)
		}
	}
	return out, nil
}

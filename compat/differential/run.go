package differential

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"quorate/compat/harness"
)

// Options says what to run.
type Options struct {
	A, B     string   // server binaries; required
	Sections []string // names; empty means all
	Verbose  bool     // print every operation and its first answer, not only differences
	MaxDiffs int      // operations printed per section before the rest is only counted; 0 means 20
	KeepDir  string   // holds data and logs afterwards; empty means a temporary directory
}

// Result counts the operations that ran.
type Result struct {
	Sections, Operations int
	Different            int // operations whose answers differ
}

const (
	readyTimeout = 30 * time.Second
	opTimeout    = 15 * time.Second
)

// SectionNames lists the sections in the order in which they run.
func SectionNames() []string {
	var names []string
	for _, s := range sections() {
		names = append(names, s.name)
	}
	return names
}

// Run runs the script and prints the differences to out. An error concerns the lane itself (a server that does
// not start); differences are counted in the result.
func Run(ctx context.Context, o Options, out io.Writer) (Result, error) {
	var res Result
	for _, name := range o.Sections {
		if !slices.Contains(SectionNames(), name) {
			return res, fmt.Errorf("unknown section %q; there are %s", name, strings.Join(SectionNames(), ", "))
		}
	}
	if o.MaxDiffs == 0 {
		o.MaxDiffs = 20
	}
	dir := o.KeepDir
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "differential"); err != nil {
			return res, fmt.Errorf("make work directory: %w", err)
		}
		defer os.RemoveAll(dir)
	}
	number := 0 // of the operation within the whole script, stable when sections are left out
	for _, sec := range sections() {
		first := number
		number += len(sec.ops)
		if len(o.Sections) > 0 && !slices.Contains(o.Sections, sec.name) {
			continue
		}
		started := time.Now()
		different, err := runSection(ctx, o, sec, first, filepath.Join(dir, sec.name), out)
		if err != nil {
			return res, fmt.Errorf("section %s: %w", sec.name, err)
		}
		res.Sections++
		res.Operations += len(sec.ops)
		res.Different += different
		fmt.Fprintf(out, "%-12s %4d operations, %d different, %.1fs\n", sec.name, len(sec.ops), different, time.Since(started).Seconds())
	}
	return res, nil
}

func runSection(ctx context.Context, o Options, sec section, first int, dir string, out io.Writer) (int, error) {
	members, err := startPair(ctx, o, sec, dir)
	if err != nil {
		return 0, err
	}
	defer members[0].Kill()
	defer members[1].Kill()
	var pair [2]*session
	for i, m := range members {
		if pair[i], err = newSession(m.ClientAddr()); err != nil {
			return 0, err
		}
		defer pair[i].close()
	}
	different := 0
	for i, op := range sec.ops {
		var answers [2]answer
		for j, s := range pair {
			octx, cancel := context.WithTimeout(ctx, opTimeout)
			answers[j] = op.do(octx, s)
			cancel()
		}
		if o.Verbose {
			fmt.Fprintf(out, "%s #%d %s\n", sec.name, first+i+1, op.name)
			for _, f := range answers[0] {
				fmt.Fprintf(out, "      %s: %s\n", f.path, f.value)
			}
		}
		if lines := compare(answers[0], answers[1]); len(lines) > 0 {
			if different++; different <= o.MaxDiffs {
				printDiff(out, sec.name, first+i+1, op.name, lines)
			}
		}
		for j, m := range members {
			if !m.Running() {
				return different, fmt.Errorf("server %c ended at #%d %s; log ends with:\n%s", 'a'+j, first+i+1, op.name, m.LogTail(30))
			}
		}
	}
	return different, nil
}

// jwtKeyFile is relative to the directory in which each server runs.
const jwtKeyFile = "jwt.key"

func writeKey(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make server directory: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, jwtKeyFile), []byte(jwtKey), 0o600); err != nil {
		return fmt.Errorf("write key of tokens: %w", err)
	}
	return nil
}

const fieldLimit = 12 // differing fields printed per operation

func printDiff(out io.Writer, section string, number int, name string, lines []string) {
	fmt.Fprintf(out, "DIFF %s #%d %s\n", section, number, name)
	for i, l := range lines {
		if i == fieldLimit {
			fmt.Fprintf(out, "     ... and %d more fields\n", len(lines)-i)
			break
		}
		fmt.Fprintf(out, "     %s\n", l)
	}
}

func startPair(ctx context.Context, o Options, sec section, dir string) (pair [2]*harness.Member, err error) {
	rctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	var errs [2]error
	var wg sync.WaitGroup
	for i, bin := range []string{o.A, o.B} {
		if err := writeKey(filepath.Join(dir, string(rune('a'+i)))); err != nil {
			return pair, err
		}
		wg.Go(func() {
			pair[i], errs[i] = harness.StartSingle(rctx, harness.Config{
				Binary: bin,
				Dir:    filepath.Join(dir, string(rune('a'+i))),
				// Nothing connects to these; they only make the ids of both sides equal.
				AdvertiseClientURL: "http://127.0.0.1:2379",
				AdvertisePeerURL:   "http://127.0.0.1:2380",
				Args:               sec.args,
			})
		})
	}
	wg.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		for _, m := range pair {
			if m != nil {
				err = errors.Join(err, m.Kill())
			}
		}
		return pair, err
	}
	return pair, nil
}

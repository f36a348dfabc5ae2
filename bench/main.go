package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func main() {
	ok, err := mainErr()
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	case !ok:
		os.Exit(1)
	}
}

// mainErr reports whether every requirement holds.
func mainErr() (bool, error) {
	ours := flag.String("ours", "", "path of the server binary under test")
	etcd := flag.String("etcd", "", "path of the real etcd binary")
	out := flag.String("out", "", "document whose table is rewritten (default: print only)")
	only := flag.String("rows", "", "comma-separated groups of rows: "+strings.Join(groupNames(), ", ")+" (default all)")
	size := flag.String("scale", "full", "full or small")
	dir := flag.String("dir", "", "directory on the disk to measure (default: the system's temporary one)")
	flag.Parse()
	s, known := scales[*size]
	switch {
	case *ours == "" || *etcd == "" || flag.NArg() > 0:
		return false, errors.New("-ours and -etcd are required and nothing else is; see -h")
	case !known:
		return false, fmt.Errorf("unknown scale %q", *size)
	case *only != "" && *out != "":
		return false, errors.New("-rows measures a part, and -out would write a table without the rest")
	}
	for _, p := range []string{*ours, *etcd} {
		if _, err := os.Stat(p); err != nil {
			return false, fmt.Errorf("server binary: %w", err)
		}
	}
	var chosen []string
	if *only != "" {
		chosen = strings.Split(*only, ",")
	}
	for _, c := range chosen {
		if !slices.Contains(groupNames(), c) {
			return false, fmt.Errorf("unknown group %q; there are %s", c, strings.Join(groupNames(), ", "))
		}
	}
	work, err := os.MkdirTemp(*dir, "bench")
	if err != nil {
		return false, fmt.Errorf("make work directory: %w", err)
	}
	defer os.RemoveAll(work)
	ctx, stop := signal.NotifyContext(context.Background(), endSignals...)
	defer stop()

	began := time.Now()
	r := &run{scale: s, dir: work, res: newResults(), log: func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "%6.1fs "+format+"\n", append([]any{time.Since(began).Seconds()}, args...)...)
	}}
	for i, p := range []string{*ours, *etcd} {
		if p, err = filepath.Abs(p); err != nil {
			return false, err
		}
		r.sides[i] = &side{index: i, name: [...]string{"ours", "etcd"}[i], binary: p}
	}
	for _, g := range groups {
		if len(chosen) == 0 || slices.Contains(chosen, g.name) {
			r.group(ctx, g)
		}
		if ctx.Err() != nil {
			return false, errors.New("interrupted")
		}
	}
	lines := r.res.lines(s)
	table := report(lines, s, r.sides, time.Now(), time.Since(began))
	fmt.Print(table)
	if *out != "" {
		if err := writeDocument(*out, table); err != nil {
			return false, err
		}
	}
	return !slices.ContainsFunc(lines, func(l line) bool { return !l.pass() }), nil
}

func groupNames() []string {
	var names []string
	for _, g := range groups {
		names = append(names, g.name)
	}
	return names
}

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
	"strconv"
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
	many := flag.String("millions", "", "measure instead what ours needs for these numbers of million keys, such as 1,10")
	load := flag.String("load", "", "only load the servers of -addrs: "+drivenNames())
	addrs := flag.String("addrs", "", "comma-separated client addresses of servers that run already; https://HOST:PORT is not verified")
	callers := flag.Int("clients", 100, "clients of -load")
	conns := flag.Int("conns", 10, "connections of -load")
	span := flag.Duration("for", 10*time.Second, "how long -load lasts")
	flag.IntVar(&driveKeys, "keys", driveKeys, "keys that -load reads")
	flag.IntVar(&driveValue, "value", driveValue, "bytes of each of their values")
	dir := flag.String("dir", "", "directory on the disk to measure (default: the system's temporary one)")
	flag.Parse()
	if *load != "" {
		if *addrs == "" || flag.NArg() > 0 {
			return false, errors.New("-load needs -addrs; see -h")
		}
		ctx, stop := signal.NotifyContext(context.Background(), endSignals...)
		defer stop()
		return true, drive(ctx, strings.Split(*addrs, ","), *load, *callers, *conns, *span)
	}
	s, known := scales[*size]
	switch {
	case *ours == "" || *etcd == "" && *many == "" || flag.NArg() > 0:
		return false, errors.New("-ours and -etcd are required and nothing else is; see -h")
	case !known:
		return false, fmt.Errorf("unknown scale %q", *size)
	}
	for _, p := range []string{*ours, *etcd} {
		if p == "" {
			continue
		}
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
	if *many != "" {
		return true, r.runMillions(ctx, *many, *out, began)
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
	switch {
	case *out != "" && len(chosen) > 0:
		err = rewriteDocument(*out, beginMark, endMark, func(old string) (string, error) {
			return merge(old, lines, s, chosen, r.sides, time.Now())
		})
	case *out != "":
		err = rewriteDocument(*out, beginMark, endMark, func(string) (string, error) { return table, nil })
	}
	if err != nil {
		return false, err
	}
	return !slices.ContainsFunc(lines, func(l line) bool { return !l.pass() }), nil
}

// runMillions measures each number of million keys in list.
func (r *run) runMillions(ctx context.Context, list, out string, began time.Time) error {
	var numbers []int
	for _, text := range strings.Split(list, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return fmt.Errorf("-millions: %q is no number of million keys", text)
		}
		numbers = append(numbers, n)
	}
	sizes, err := r.millions(ctx, numbers)
	if err != nil {
		return err
	}
	table := millionsReport(sizes, r.sides[0].binary, time.Now(), time.Since(began))
	fmt.Print(table)
	if out == "" {
		return nil
	}
	return rewriteDocument(out, millionsBegin, millionsEnd, func(string) (string, error) { return table, nil })
}

func groupNames() []string {
	var names []string
	for _, g := range groups {
		names = append(names, g.name)
	}
	return names
}

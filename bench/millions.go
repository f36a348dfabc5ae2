package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// What a server needs for millions of keys: ours alone, because this is about sizing machines and not about a
// comparison.

const (
	millionsBegin = "<!-- bench: the table below is written by `make bench-millions` -->"
	millionsEnd   = "<!-- bench: end of the millions -->"
	methodSnap    = "/etcdserverpb.Maintenance/Snapshot"
)

// size holds the measurements for one number of keys.
type size struct {
	keys                            int
	loadRate                        float64 // keys a second
	loaded, restarted, snapshotPeak float64 // MB
	disk, snapshot                  float64 // MB
	afterTerm, afterKill            time.Duration
	putRate                         float64
	putP99, list, count, snapTime   time.Duration
}

func (r *run) millions(ctx context.Context, millions []int) ([]size, error) {
	var out []size
	for _, n := range millions {
		r.log("%d million keys", n)
		z, err := r.million(ctx, n*1_000_000)
		if err != nil {
			return nil, fmt.Errorf("%d million keys: %w", n, err)
		}
		r.log("  %+v", z)
		out = append(out, z)
	}
	return out, nil
}

func (r *run) million(ctx context.Context, keys int) (z size, err error) {
	s := r.sides[0]
	g := group{name: fmt.Sprint("million-", keys), members: 1, conns: 10}
	if err := r.start(ctx, s, g); err != nil {
		return z, err
	}
	defer func() {
		s.clients.close()
		s.cluster.Kill()
		s.clients, s.cluster = nil, nil
		err = errors.Join(err, os.RemoveAll(filepath.Join(r.dir, g.name)))
	}()
	z.keys = keys
	began := time.Now()
	if err := preload(ctx, s.clients, "big", 0, keys, 256, 0); err != nil {
		return z, err
	}
	z.loadRate = float64(keys) / time.Since(began).Seconds()
	if err := r.tail(ctx, s); err != nil {
		return z, err
	}
	if z.loaded, err = residentAfter(ctx, s); err != nil {
		return z, err
	}
	if z.afterTerm, err = r.restart(ctx, s, true); err != nil {
		return z, err
	}
	if z.restarted, err = residentAfter(ctx, s); err != nil {
		return z, err
	}
	o, err := r.puts(ctx, s, r.scale.clients, r.scale.span)
	if err != nil {
		return z, err
	}
	z.putRate, z.putP99 = o.perSecond(), o.percentile(0.99)
	for _, l := range []struct {
		o  rangeOptions
		to *time.Duration
	}{{rangeOptions{limit: 1000}, &z.list}, {rangeOptions{countOnly: true}, &z.count}} {
		o, _, err := r.lists(ctx, s, "big", l.o)
		if err != nil {
			return z, err
		}
		*l.to = o.percentile(0.5)
	}
	if err := s.member().ResetPeak(); err != nil {
		return z, err
	}
	began = time.Now()
	n, err := saveSnapshot(ctx, s.clients)
	if err != nil {
		return z, err
	}
	z.snapTime, z.snapshot = time.Since(began), megabytes(n)
	m, err := s.member().Memory()
	if err != nil {
		return z, err
	}
	z.snapshotPeak = megabytes(m.Peak)
	if z.disk, err = onDisk(s.member().DataDir()); err != nil {
		return z, err
	}
	z.afterKill, err = r.restart(ctx, s, false)
	return z, err
}

// saveSnapshot reads a whole snapshot and returns its length.
func saveSnapshot(ctx context.Context, c *clients) (n int64, err error) {
	r := &reply{}
	err = call(ctx, c.conns[0], methodSnap, nil, r)
	return int64(r.size), err
}

// onDisk returns the size of the files below dir in megabytes.
func onDisk(dir string) (float64, error) {
	total := int64(0)
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if i, err := d.Info(); err == nil { // otherwise it was removed meanwhile
			total += i.Size()
		}
		return nil
	})
	return megabytes(total), err
}

func millionsReport(sizes []size, binary string, now time.Time, took time.Duration) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %d cores, %s/%s; %.0f minutes; %s.\n\n", now.Format("2006-01-02"), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH,
		math.Ceil(took.Minutes()), describeBinary(binary))
	b.WriteString("| keys of 32 B + 256 B | unit |")
	for _, z := range sizes {
		fmt.Fprintf(&b, " %s |", short(z.keys))
	}
	b.WriteString("\n|---|---|" + strings.Repeat("---:|", len(sizes)) + "\n")
	line := func(title, unit string, value func(z size) float64) {
		fmt.Fprintf(&b, "| %s | %s |", title, unit)
		for _, z := range sizes {
			fmt.Fprintf(&b, " %s |", number(value(z)))
		}
		b.WriteString("\n")
	}
	line("load, 128 keys per transaction: keys", "/s", func(z size) float64 { return z.loadRate })
	line("resident memory after the load", "MB", func(z size) float64 { return z.loaded })
	line("resident memory after a restart", "MB", func(z size) float64 { return z.restarted })
	line("the same, per million keys", "MB", func(z size) float64 { return z.restarted / float64(z.keys) * 1e6 })
	line("data directory", "MB", func(z size) float64 { return z.disk })
	line("start to ready, after SIGTERM", "s", func(z size) float64 { return z.afterTerm.Seconds() })
	line("start to ready, after kill -9", "s", func(z size) float64 { return z.afterKill.Seconds() })
	line("put, 100 clients: throughput", "/s", func(z size) float64 { return z.putRate })
	line("put, 100 clients: latency p99", "ms", func(z size) float64 { return millis(z.putP99) })
	line("LIST limit=1000: latency p50", "ms", func(z size) float64 { return millis(z.list) })
	line("count-only over all keys: latency p50", "ms", func(z size) float64 { return millis(z.count) })
	line("snapshot save: size", "MB", func(z size) float64 { return z.snapshot })
	line("snapshot save: time", "s", func(z size) float64 { return z.snapTime.Seconds() })
	line("snapshot save: peak resident memory", "MB", func(z size) float64 { return z.snapshotPeak })
	return b.String()
}

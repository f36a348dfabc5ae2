package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A server with one CPU: pinned to it, with the load on another where there is one, so that Go sees one; or
// throttled to the time of one by a control group, in which case Go assumes two.

var (
	pinnedRows = confinedRows("pinned")
	quotaRows  = confinedRows("quota")
)

func confinedRows(prefix string) []string {
	return []string{prefix + ".put.cpu", prefix + ".put.rate", prefix + ".many.cpu", prefix + ".many.rate", prefix + ".defrag.p99"}
}

// pin puts the servers on the first CPU and the load on the second.
func pin(r *run) (func(), error) {
	if runtime.NumCPU() > 1 {
		if err := setAffinity(1); err != nil {
			return nil, err
		}
	}
	undo := r.wrapBinaries("pinned", func(binary string) string {
		return fmt.Sprintf("exec taskset --cpu-list 0 %q \"$@\"", binary)
	})
	return func() {
		undo()
		all := make([]int, runtime.NumCPU())
		for i := range all {
			all[i] = i
		}
		if err := setAffinity(all...); err != nil {
			r.log("give the load all CPUs back: %v", err)
		}
	}, nil
}

// setAffinity confines every thread of this process. New ones inherit it.
func setAffinity(cpus ...int) error {
	var set unix.CPUSet
	for _, c := range cpus {
		set.Set(c)
	}
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range threads {
		id, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		if err := unix.SchedSetaffinity(id, &set); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("pin the load: %w", err)
		}
	}
	return nil
}

// throttle gives each server the time of one CPU.
func throttle(r *run) (func(), error) {
	dir, err := makeQuota()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errSkipped, err)
	}
	undo := r.wrapBinaries("quota", func(binary string) string {
		return fmt.Sprintf("echo $$ >%q && exec %q \"$@\"", filepath.Join(dir, "cgroup.procs"), binary)
	})
	return func() {
		undo()
		if err := os.Remove(dir); err != nil {
			r.log("remove the control group: %v", err)
		}
	}, nil
}

// errSkipped marks what this machine does not allow.
var errSkipped = errors.New("not measured on this machine")

// makeQuota creates a control group with 100 ms of CPU time in every 100 ms.
func makeQuota() (dir string, err error) {
	name, files := "quorate-bench-"+strconv.Itoa(os.Getpid()), [][2]string{{"cpu.max", "100000 100000"}}
	root := "/sys/fs/cgroup"
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err != nil { // version 1
		root, files = filepath.Join(root, "cpu"), [][2]string{{"cpu.cfs_period_us", "100000"}, {"cpu.cfs_quota_us", "100000"}}
	}
	dir = filepath.Join(root, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(dir, f[0]), []byte(f[1]), 0o644); err != nil {
			return "", errors.Join(err, os.Remove(dir))
		}
	}
	return dir, nil
}

// wrapBinaries has the servers started by a script; the returned function undoes that.
func (r *run) wrapBinaries(name string, script func(binary string) string) (undo func()) {
	var old [2]string
	for i, s := range r.sides {
		old[i] = s.binary
		path := filepath.Join(r.dir, strings.Join([]string{name, s.name, "sh"}, "."))
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script(s.binary)+"\n"), 0o755); err != nil {
			r.log("write %s: %v", path, err)
			continue
		}
		s.binary = path
	}
	return func() {
		for i, s := range r.sides {
			s.binary = old[i]
		}
	}
}

func (r *run) pinned(ctx context.Context) { r.confined(ctx, "pinned") }
func (r *run) quota(ctx context.Context)  { r.confined(ctx, "quota") }

// confined measures puts of few and of many clients, and during a defragmentation.
func (r *run) confined(ctx context.Context, prefix string) {
	rows := confinedRows(prefix)
	r.step(ctx, nil, 1, func(ctx context.Context, s *side) (map[string]float64, error) { // warm up
		_, err := r.puts(ctx, s, r.scale.clients, time.Second)
		return nil, err
	})
	for i, kind := range []struct {
		name    string
		clients int
	}{{"put", r.scale.clients}, {"many", 10 * r.scale.clients}} {
		r.step(ctx, rows[2*i:2*i+2], r.scale.reps, func(ctx context.Context, s *side) (map[string]float64, error) {
			o, cpu, err := r.loaded(s, func() (outcome, error) { return r.puts(ctx, s, kind.clients, r.scale.span) })
			id := prefix + "." + kind.name
			return map[string]float64{id + ".cpu": micros(cpu, max(1, o.ops)), id + ".rate": o.perSecond()}, err
		})
	}
	r.step(ctx, rows[4:], 1, func(ctx context.Context, s *side) (map[string]float64, error) {
		if err := preload(ctx, s.clients, "defrag", 0, r.scale.listKeys, 256, 0); err != nil {
			return nil, err
		}
		p := startPacer(s.clients, pacedRate, pacedKeys)
		t := time.NewTimer(r.scale.span)
		derr := call(ctx, s.clients.conns[1], methodDefrag, nil, &reply{})
		<-t.C
		o, err := p.finish()
		return map[string]float64{rows[4]: millis(o.percentile(0.99))}, errors.Join(derr, err)
	})
}

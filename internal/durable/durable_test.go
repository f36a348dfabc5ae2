package durable

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func read(fs vfs.FS, path string) (string, error) {
	f, err := fs.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	return string(b), err
}

// state lists the files below data with their content, except temporary ones.
func state(t *testing.T, fs vfs.FS, dir string) string {
	t.Helper()
	names, err := fs.List(dir)
	must(t, err)
	slices.Sort(names)
	var out []string
	for _, name := range names {
		path := fs.PathJoin(dir, name)
		info, err := fs.Stat(path)
		must(t, err)
		switch {
		case info.IsDir():
			out = append(out, name+"/{"+state(t, fs, path)+"}")
		case !strings.HasSuffix(name, TempSuffix):
			content, err := read(fs, path)
			must(t, err)
			out = append(out, name+"="+content)
		}
	}
	return strings.Join(out, " ")
}

// The contents are longer than a block, so that a crash can leave a part of one.
var (
	old  = strings.Repeat("old", 3000)
	next = strings.Repeat("next", 3000)
)

// ops are the operations of the package, each on data/{a=old d/{b=old}}.
var ops = []struct {
	name string
	do   func(fs vfs.FS) error
	// between lists the states that a crash may leave other than the first and the last.
	between []string
	want    string
}{
	{"write", func(fs vfs.FS) error { return WriteFile(fs, "data/a", []byte(next)) }, nil, "a=" + next + " d/{b=" + old + "}"},
	{"write a new one", func(fs vfs.FS) error { return WriteFile(fs, "data/n", []byte(next)) }, nil, "a=" + old + " d/{b=" + old + "} n=" + next},
	{"create", func(fs vfs.FS) error {
		f, err := Create(fs, "data/x"+TempSuffix)
		if err != nil {
			return err
		}
		for range 3 {
			if _, err := io.WriteString(f, next); err != nil {
				return errors.Join(err, f.Discard())
			}
		}
		return f.Commit("data/a")
	}, nil, "a=" + next + next + next + " d/{b=" + old + "}"},
	{"rename", func(fs vfs.FS) error { return Rename(fs, "data/d", "data/e") },
		[]string{"a=" + old + " d/{b=" + old + "} e/{b=" + old + "}"}, "a=" + old + " e/{b=" + old + "}"},
	{"rename into another directory", func(fs vfs.FS) error { return Rename(fs, "data/a", "data/d/c") },
		[]string{"a=" + old + " d/{b=" + old + " c=" + old + "}"}, "d/{b=" + old + " c=" + old + "}"},
	{"remove", func(fs vfs.FS) error { return Remove(fs, "data", "none", "a") }, nil, "d/{b=" + old + "}"},
	{"remove all", func(fs vfs.FS) error { return RemoveAll(fs, "data/d") }, []string{"a=" + old + " d/{}"}, "a=" + old},
	{"make directories", func(fs vfs.FS) error { return MkdirAll(fs, "data/x/y", "data/z") },
		[]string{"a=" + old + " d/{b=" + old + "} x/{}", "a=" + old + " d/{b=" + old + "} x/{y/{}}"}, "a=" + old + " d/{b=" + old + "} x/{y/{}} z/{}"},
}

// prepared is a disk with the initial state, all of which is durable.
func prepared(t *testing.T) *vfs.MemFS {
	t.Helper()
	disk := vfs.NewCrashableMem()
	must(t, disk.MkdirAll("data/d", 0o700))
	for _, path := range []string{"data/a", "data/d/b"} {
		f, err := disk.Create(path, category)
		must(t, err)
		_, err = io.WriteString(f, old)
		must(t, errors.Join(err, f.Sync(), f.Close()))
	}
	for _, dir := range []string{"data/d", "data", "/"} {
		d, err := disk.OpenDir(dir)
		must(t, err)
		must(t, errors.Join(d.Sync(), d.Close()))
	}
	return disk
}

// at calls before in front of change number n to a disk, and returns the disk.
func at(disk vfs.FS, n int, before func() error) vfs.FS {
	count := 0
	return errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
			return nil
		}
		count++
		if count-1 == n {
			return before()
		}
		return nil
	}))
}

// TestCrash loses power before every change that an operation makes and after the last,
// with all, none or a random part of what was not synced, checks the remaining state, and
// repeats the operation on it.
func TestCrash(t *testing.T) {
	for _, op := range ops {
		t.Run(op.name, func(t *testing.T) {
			before := state(t, prepared(t), "data")
			if before == op.want {
				t.Fatal("the operation changes nothing")
			}
			for n, done := 0, false; !done; n++ {
				for seed := range uint64(40) {
					cfg := vfs.CrashCloneCfg{UnsyncedDataPercent: []int{0, 100, 50, 80}[seed%4], RNG: rand.New(rand.NewPCG(seed, seed))}
					disk := prepared(t)
					var left *vfs.MemFS
					must(t, op.do(at(disk, n, func() error { left = disk.CrashClone(cfg); return nil })))
					if done = left == nil; done { // no such change: it has returned
						left = disk.CrashClone(cfg)
						if got := state(t, left, "data"); got != op.want {
							t.Fatalf("done, then a crash: %.200s", got)
						}
					}
					got := state(t, left, "data")
					if got != before && got != op.want && !slices.Contains(op.between, got) {
						t.Fatalf("crash before change %d (seed %d) leaves %.200s", n, seed, got)
					}
					if strings.HasPrefix(op.name, "rename") && got != before {
						continue // already done; repeating it would have another result
					}
					must(t, op.do(left))
					if got := state(t, left.CrashClone(vfs.CrashCloneCfg{}), "data"); got != op.want {
						t.Fatalf("crash before change %d (seed %d), and again: %.200s", n, seed, got)
					}
				}
				if n > 100 {
					t.Fatal("the operation does not end")
				}
			}
		})
	}
}

// TestFailure lets every change fail in turn. The operation returns the error, the state
// is consistent, no temporary file is left, and the next attempt succeeds.
func TestFailure(t *testing.T) {
	for _, op := range ops {
		t.Run(op.name, func(t *testing.T) {
			before := state(t, prepared(t), "data")
			for n := 0; ; n++ {
				disk, failed := prepared(t), false
				err := op.do(at(disk, n, func() error { failed = true; return syscall.EIO }))
				if !failed {
					must(t, err)
					if n < 2 {
						t.Errorf("only %d changes: what was to fail?", n)
					}
					return
				}
				if !errors.Is(err, syscall.EIO) {
					t.Fatalf("change %d fails: %v", n, err)
				}
				if got := state(t, disk, "data"); got != before && got != op.want && !slices.Contains(op.between, got) {
					t.Fatalf("change %d fails and leaves %.200s", n, got)
				}
				if names, _ := disk.List("data"); slices.ContainsFunc(names, func(s string) bool { return strings.HasSuffix(s, TempSuffix) }) {
					t.Fatalf("change %d fails and leaves %v", n, names)
				}
				if strings.HasPrefix(op.name, "rename") && state(t, disk, "data") != before {
					continue
				}
				must(t, op.do(disk))
				if got := state(t, disk.CrashClone(vfs.CrashCloneCfg{}), "data"); got != op.want {
					t.Fatalf("change %d fails, and again: %.200s", n, got)
				}
			}
		})
	}
}

// An attempt that was killed, without a power loss, may have created directories that
// are not durable yet.
func TestDirectoriesOfAnAttemptThatWasKilled(t *testing.T) {
	disk := prepared(t)
	must(t, disk.MkdirAll("data/x", 0o700)) // and no sync
	must(t, MkdirAll(disk, "data/x"))
	if got := state(t, disk.CrashClone(vfs.CrashCloneCfg{}), "data"); !strings.Contains(got, "x/{}") {
		t.Errorf("lost: %.100s", got)
	}
}

func TestDiscard(t *testing.T) {
	disk := prepared(t)
	f, err := Create(disk, "data/x"+TempSuffix)
	must(t, err)
	must(t, f.Discard())
	must(t, f.Discard())
	if err := f.Commit("data/a"); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Commit after Discard: %v", err)
	}
	names, err := disk.List("data")
	must(t, err)
	if slices.Sort(names); fmt.Sprint(names) != "[a d]" {
		t.Errorf("left: %v", names)
	}

	synced := 0
	f, err = Create(disk, "data/x"+TempSuffix)
	must(t, err)
	f.Synced = func(time.Duration) { synced++ }
	must(t, errors.Join(f.Commit("data/a"), f.Discard()))
	if _, err := disk.Stat("data/a"); err != nil || synced != 1 {
		t.Errorf("Discard after Commit: %v; %d syncs told", err, synced)
	}
}

func TestModes(t *testing.T) {
	dir := t.TempDir()
	mode := func(path string) os.FileMode {
		info, err := os.Stat(path)
		must(t, err)
		return info.Mode().Perm()
	}
	path := filepath.Join(dir, "key")
	must(t, os.WriteFile(path+TempSuffix, []byte("left by a crash"), 0o644))
	f, err := Create(OS, path+TempSuffix)
	must(t, err)
	if got := mode(path + TempSuffix); got != 0o600 {
		t.Errorf("while it is written: %v", got)
	}
	_, err = io.WriteString(f, "secret")
	must(t, errors.Join(err, f.Commit(path)))
	if got := mode(path); got != 0o600 {
		t.Errorf("afterwards: %v", got)
	}
	for _, want := range []os.FileMode{0o644, 0o400} {
		must(t, WriteFileMode(path, []byte("other"), want))
		if got := mode(path); got != want {
			t.Errorf("mode %v, want %v", got, want)
		}
	}
	if got, err := read(OS, path); err != nil || got != "other" {
		t.Errorf("%q, %v", got, err)
	}
	if names, err := OS.List(dir); err != nil || len(names) != 1 {
		t.Errorf("left: %v, %v", names, err)
	}
}

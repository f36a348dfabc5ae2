package datadir

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"quorate/internal/durable"
	"quorate/internal/engine/mem"
	"quorate/internal/ids"
	"quorate/internal/raftlog"
	"quorate/internal/snapshot"
)

// guarded creates a directory of Quorate as a server leaves it.
func guarded(t *testing.T) Layout {
	t.Helper()
	l := Layout{FS: vfs.NewMem(), DataDir: "data"}
	plain.make(t, l)
	must(t, takeOver(l))
	must(t, l.FS.RemoveAll(l.FS.PathJoin(l.Member(), "snap.etcd-0000000000000014")))
	must(t, l.Guard())
	return l
}

// What keeps etcd out of a directory of Quorate hinders no one else, and is removed when
// the directory is handed to etcd.
func TestGuard(t *testing.T) {
	l := guarded(t)
	want, before := sumStore(t, l), tree(t, l.FS, "data")
	must(t, l.Guard())
	if now := tree(t, l.FS, "data"); !slices.Equal(before, now) {
		t.Errorf("a second call changes\n%s\nto\n%s", strings.Join(before, "\n"), strings.Join(now, "\n"))
	}
	if kind, err := l.Kind(); err != nil || kind != Ours {
		t.Fatalf("kind %v, %v", kind, err)
	}
	clean := func() {
		t.Helper()
		if names, err := l.FS.List(l.Snap()); err != nil || slices.Contains(names, guardName) {
			t.Errorf("left for etcd: %q, %v", names, err)
		}
		if got := sumDB(t, l); got != want {
			t.Errorf("etcd's file has sum %x, want %x", got, want)
		}
	}
	must(t, LeaveBeside(ctx, l, own, opt))
	clean()
	must(t, takeOver(l))
	if got := sumStore(t, l); got != want {
		t.Errorf("the store has sum %x, want %x", got, want)
	}
	must(t, l.Guard())
	_, err := Leave(ctx, l, own, opt)
	must(t, err)
	clean()
	if err := l.Guard(); err == nil {
		t.Error("a database of etcd was guarded against")
	}
	must(t, takeOver(l))
	must(t, l.Guard())
	if got := sumStore(t, l); got != want {
		t.Errorf("the store has sum %x, want %x", got, want)
	}
}

// If etcd was started on a directory without a migration, our store is used if the log
// follows it, and etcd's files are moved aside; anything else is refused and left
// unchanged.
func TestEtcdStartedByMistake(t *testing.T) {
	// beside puts the database of a directory of etcd described by d into l.
	beside := func(t *testing.T, l Layout, d directory) {
		t.Helper()
		x := Layout{FS: vfs.NewMem(), DataDir: "data"}
		d.make(t, x)
		b, err := readFile(x.FS, x.DB())
		must(t, err)
		must(t, l.unguard())
		writeAll(t, l.FS, l.DB(), b)
	}
	of := func(applied ids.Index) directory { d := plain; d.applied = applied; return d }
	other := directory{applied: 20, last: 24, clusterVersion: "3.7.0", storageVersion: "3.7.0", keys: 20}
	for name, c := range map[string]struct {
		change func(t *testing.T, l Layout)
		want   string // of the error; empty: no error
	}{
		"etcd has applied nothing": {func(t *testing.T, l Layout) { beside(t, l, directory{keys: 1, last: 3}) }, ""},
		"etcd has applied less":    {func(t *testing.T, l Layout) { beside(t, l, of(9)) }, ""},
		"etcd has applied more":    {func(t *testing.T, l Layout) { beside(t, l, of(24)) }, ""},
		"etcd has another log":     {func(t *testing.T, l Layout) { beside(t, l, of(25)) }, "not in the raft log"},
		"a database that is none":  {func(t *testing.T, l Layout) { must(t, l.unguard()); writeAll(t, l.FS, l.DB(), []byte("x")) }, "two stores"},
		"the log begins behind it": {func(t *testing.T, l Layout) { beside(t, l, other); begin(t, l, 23) }, "does not follow"},
		"the log ends before it":   {func(t *testing.T, l Layout) { beside(t, l, of(9)); cutLog(t, l, 15) }, "does not follow"},
		"the store is there no more": {func(t *testing.T, l Layout) {
			beside(t, l, of(9))
			dir, err := l.Store()
			must(t, err)
			must(t, l.FS.RemoveAll(dir))
			must(t, durable.MkdirAll(l.FS, dir))
		}, "is empty"},
	} {
		t.Run(name, func(t *testing.T) {
			l := guarded(t)
			want := sumStore(t, l)
			c.change(t, l)
			before := tree(t, l.FS, "data")
			if c.want == "" {
				if kind, err := l.Kind(); err != nil || kind != Both {
					t.Fatalf("kind %v, %v", kind, err)
				}
				core, logs := observer.New(zap.WarnLevel)
				tk, err := Begin(ctx, l, Options{Version: own, Logger: zap.New(core)})
				if tk != nil || err != nil {
					t.Fatalf("begin: %v, %v", tk, err)
				}
				if logs.FilterMessageSnippet("was not handed over").Len() != 1 {
					t.Errorf("no word of it: %v", logs.All())
				}
				if kind, err := l.Kind(); err != nil || kind != Ours {
					t.Fatalf("kind %v, %v", kind, err)
				}
				if got := sumStore(t, l); got != want {
					t.Errorf("the store has sum %x, want %x", got, want)
				}
				if names := strings.Join(tree(t, l.FS, l.Member()), " "); !strings.Contains(names, "/db ") || !strings.Contains(names, "snap.etcd-") {
					t.Errorf("etcd's files are not kept: %s", names)
				}
				return
			}
			tk, err := Begin(ctx, l, opt)
			if tk != nil || err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("begin: %v, %v", tk, err)
			}
			if now := tree(t, l.FS, "data"); !slices.Equal(before, now) {
				t.Errorf("changed:\n%s\nwas\n%s", strings.Join(now, "\n"), strings.Join(before, "\n"))
			}
		})
	}
	t.Run("two logs", func(t *testing.T) {
		l := guarded(t)
		beside(t, l, of(9))
		must(t, durable.MkdirAll(l.FS, "elsewhere"))
		must(t, l.FS.Rename(l.WAL(), "elsewhere/wal"))
		x := Layout{FS: l.FS, DataDir: "x"}
		plain.make(t, x)
		must(t, l.FS.Rename(x.WAL(), l.WAL()))
		l.WALDir = "elsewhere/wal"
		if _, err := Begin(ctx, l, opt); err == nil || !strings.Contains(err.Error(), "two raft logs") {
			t.Errorf("begin: %v", err)
		}
	})
}

// begin creates a log that begins after an entry.
func begin(t *testing.T, l Layout, at ids.Index) {
	t.Helper()
	must(t, l.FS.RemoveAll(l.WAL()))
	log, err := raftlog.Create(l.FS, l.WAL(), raftlog.Metadata{NodeID: memberID, ClusterID: clusterID}, raftlog.Options{NoBackground: true})
	must(t, err)
	must(t, log.Reset(raftlog.SnapshotMark{Index: at, Term: 2, ConfState: &raftpb.ConfState{Voters: []uint64{memberID}}, Alone: true}))
	must(t, log.Close())
}

// cutLog creates a log that ends with an entry.
func cutLog(t *testing.T, l Layout, last ids.Index) {
	t.Helper()
	must(t, l.FS.RemoveAll(l.WAL()))
	x := Layout{FS: l.FS, DataDir: "x"}
	d := plain
	d.applied, d.last = last, last
	d.make(t, x)
	must(t, l.FS.Rename(x.WAL(), l.WAL()))
}

// Wherever power is lost while etcd's files are moved aside, the next start has the store.
func TestCrashWhileGoingOn(t *testing.T) {
	var want uint32
	empty := mem.New()
	defer empty.Close()
	prepare := func(l Layout) {
		plain.make(t, l)
		must(t, takeOver(l))
		want = sumStore(t, l)
		_, err := snapshot.Export(ctx, empty, l.DB(), snapshot.Options{FS: l.FS})
		must(t, err)
		syncAll(t, l.FS, "data")
		must(t, durable.SyncDir(l.FS, ""))
	}
	work := func(l Layout) error {
		tk, err := Begin(context.Background(), l, opt)
		if tk != nil {
			return errors.New("something was taken over")
		}
		return err
	}
	crashes(t, prepare, work, func(l Layout, n int64) {
		if err := work(l); err != nil {
			t.Fatalf("crash at %d: %v", n, err)
		}
		if kind, err := l.Kind(); err != nil || kind != Ours {
			t.Fatalf("crash at %d: kind %v, %v", n, kind, err)
		}
		if got := sumStore(t, l); got != want {
			t.Fatalf("crash at %d: the store has sum %x, want %x", n, got, want)
		}
	})
}

package datadir

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"quorate/internal/durable"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	bolt "go.etcd.io/bbolt"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// crashes runs work on a disk that loses its power before write operation n, for
// every n, and hands what is left to after. It returns how many there were.
func crashes(t *testing.T, prepare func(Layout), work func(Layout) error, after func(l Layout, n int64)) int64 {
	t.Helper()
	for i := int64(0); ; i++ {
		// What was not synced is lost or there, all of it: Pebble relies on the order
		// in which one directory's entries come to the disk, as file systems keep it.
		n, cfg := i/2, vfs.CrashCloneCfg{}
		if i%2 == 1 {
			cfg = vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))}
		}
		disk := vfs.NewCrashableMem()
		prepare(Layout{FS: disk, DataDir: "data"})
		var count atomic.Int64
		var left atomic.Pointer[vfs.MemFS]
		fs := errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
				return nil
			}
			if count.Add(1)-1 == n {
				left.Store(disk.CrashClone(cfg))
			}
			return nil
		}))
		if err := work(Layout{FS: fs, DataDir: "data"}); err != nil {
			t.Fatalf("operation %d: %v", n, err)
		}
		if left.Load() == nil {
			return n
		}
		after(Layout{FS: left.Load(), DataDir: "data"}, n)
	}
}

func syncAll(t *testing.T, fs vfs.FS, dir string) {
	t.Helper()
	names, err := fs.List(dir)
	must(t, err)
	for _, n := range names {
		p := fs.PathJoin(dir, n)
		if st, err := fs.Stat(p); err == nil && st.IsDir() {
			syncAll(t, fs, p)
		}
	}
	must(t, durable.SyncDir(fs, dir))
}

func TestCrashDuringTakeover(t *testing.T) {
	var want uint32
	prepare := func(l Layout) {
		plain.make(t, l)
		syncAll(t, l.FS, "data")
		must(t, durable.SyncDir(l.FS, ""))
		want = sumDB(t, l)
	}
	n := crashes(t, prepare, takeOver, func(l Layout, n int64) {
		kind, err := l.Kind()
		if err != nil || kind != Etcds && kind != Moving && kind != Ours {
			t.Fatalf("crash at %d: kind %v, %v", n, kind, err)
		}
		if kind == Etcds { // etcd could still start on it
			if got := sumDB(t, l); got != want {
				t.Fatalf("crash at %d: etcd's file has sum %x, want %x", n, got, want)
			}
		}
		if err := takeOver(l); err != nil {
			t.Fatalf("crash at %d: taken over again: %v", n, err)
		}
		if got := sumStore(t, l); got != want {
			t.Fatalf("crash at %d: the store has sum %x, want %x", n, got, want)
		}
		names, err := l.FS.List(l.Member())
		must(t, err)
		if text := strings.Join(names, " "); strings.Count(text, "snap.etcd-") != 1 {
			t.Fatalf("crash at %d: %s", n, text)
		}
	})
	if n < 20 {
		t.Errorf("only %d operations", n)
	}
}

func TestCrashDuringLeave(t *testing.T) {
	var want uint32
	prepare := func(l Layout) {
		plain.make(t, l)
		must(t, takeOver(l))
		syncAll(t, l.FS, "data")
		must(t, durable.SyncDir(l.FS, ""))
		want = sumStore(t, l)
	}
	work := func(l Layout) error { _, err := Leave(ctx, l, own, opt); return err }
	n := crashes(t, prepare, work, func(l Layout, n int64) {
		kind, err := l.Kind()
		switch {
		case err != nil:
			t.Fatalf("crash at %d: %v", n, err)
		case kind == Moving:
			if _, err := Begin(ctx, l, opt); err == nil || !strings.Contains(err.Error(), "etcdutl migrate --to-etcd") {
				t.Fatalf("crash at %d: a server starts in the middle of it: %v", n, err)
			}
		case kind == Ours:
			if got := sumStore(t, l); got != want {
				t.Fatalf("crash at %d: the store has sum %x, want %x", n, got, want)
			}
		}
		if kind != Etcds {
			if err := work(l); err != nil {
				t.Fatalf("crash at %d: handed over again: %v", n, err)
			}
		}
		if got := sumDB(t, l); got != want {
			t.Fatalf("crash at %d: etcd's file has sum %x, want %x", n, got, want)
		}
		if ok, err := exists(l.FS, l.pointerFile()); ok || err != nil {
			t.Fatalf("crash at %d: STORE is left, %v", n, err)
		}
	})
	if n < 20 {
		t.Errorf("only %d operations", n)
	}
}

// A take-over that its caller cannot use leaves nothing behind.
func TestAbandon(t *testing.T) {
	l := Layout{FS: vfs.NewMem(), DataDir: "data"}
	plain.make(t, l)
	before := tree(t, l.FS, "data")
	tk, err := Begin(ctx, l, opt)
	must(t, err)
	must(t, errors.Join(l.WriteOwner(1, 2), tk.Abandon(nil), tk.Abandon(nil)))
	if now := tree(t, l.FS, "data"); strings.Join(now, "\n") != strings.Join(before, "\n") {
		t.Errorf("left:\n%s\nwas\n%s", strings.Join(now, "\n"), strings.Join(before, "\n"))
	}
}

// Wherever the power goes while etcd's files are written beside the store, the store
// is the one in use or etcd's files are whole, and the next start of ours goes on
// with the store and leaves nothing of theirs.
func TestCrashDuringLeaveBeside(t *testing.T) {
	var want uint32
	prepare := func(l Layout) {
		plain.make(t, l)
		must(t, takeOver(l))
		must(t, l.FS.RemoveAll(l.FS.PathJoin(l.Member(), "snap.etcd-000000000000001e")))
		syncAll(t, l.FS, "data")
		must(t, durable.SyncDir(l.FS, ""))
		want = sumStore(t, l)
	}
	work := func(l Layout) error { return LeaveBeside(ctx, l, own, opt) }
	clean := func(l Layout, n int64) {
		t.Helper()
		if kind, err := l.Kind(); err != nil || kind != Ours {
			t.Fatalf("crash at %d: kind %v, %v", n, kind, err)
		}
		if got := sumStore(t, l); got != want {
			t.Fatalf("crash at %d: the store has sum %x, want %x", n, got, want)
		}
		for _, name := range tree(t, l.FS, l.Snap()) {
			if strings.Contains(name, "export") || strings.Contains(name, "/snap/db") || strings.Contains(name, ".snap") {
				t.Fatalf("crash at %d: %s is left", n, name)
			}
		}
	}
	n := crashes(t, prepare, work, func(l Layout, n int64) {
		kind, err := l.Kind()
		if err != nil || kind != Ours && kind != Etcds {
			t.Fatalf("crash at %d: kind %v, %v", n, kind, err)
		}
		if kind == Etcds {
			if got := sumDB(t, l); got != want {
				t.Fatalf("crash at %d: etcd's file has sum %x, want %x", n, got, want)
			}
		}
		for range 2 {
			tk, err := Begin(ctx, l, opt)
			if tk != nil || err != nil {
				t.Fatalf("crash at %d: begin %v, %v", n, tk, err)
			}
			clean(l, n)
		}
		must(t, work(l))
		if got := sumDB(t, l); got != want {
			t.Fatalf("crash at %d: etcd's file has sum %x, want %x", n, got, want)
		}
	})
	if n < 20 {
		t.Errorf("only %d operations", n)
	}
}

// A database that etcd has opened since is taken over again, also if that is broken off.
func TestLeftAndUsed(t *testing.T) {
	l := Layout{FS: vfs.NewMem(), DataDir: "data"}
	plain.make(t, l)
	must(t, takeOver(l))
	want := sumStore(t, l)
	must(t, LeaveBeside(ctx, l, own, opt))
	b, err := readFile(l.FS, l.DB())
	must(t, err)
	// What etcd does first is a transaction: the older of the two meta pages becomes
	// the newer one.
	writeAll(t, l.FS, l.DB(), nextTransaction(t, b))
	tk, err := Begin(ctx, l, opt)
	must(t, err)
	if tk == nil {
		t.Fatal("nothing is taken over")
	}
	must(t, tk.Abandon(nil))
	if kind, err := l.Kind(); err != nil || kind != Etcds {
		t.Fatalf("kind %v, %v", kind, err)
	}
	must(t, takeOver(l))
	if got := sumStore(t, l); got != want {
		t.Errorf("the store has sum %x, want %x", got, want)
	}
	if dir, err := l.Store(); err != nil || l.FS.PathBase(dir) == "store" {
		t.Errorf("the store in use is %s, %v", dir, err)
	}
	if kind, err := l.Kind(); err != nil || kind != Ours {
		t.Errorf("kind %v, %v", kind, err)
	}
}

func readFile(fs vfs.FS, path string) ([]byte, error) {
	f, err := fs.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

func writeAll(t *testing.T, fs vfs.FS, path string, b []byte) {
	t.Helper()
	must(t, durable.WriteFile(fs, path, b))
}

// nextTransaction returns a database with the same content and another newest
// transaction.
func nextTransaction(t *testing.T, b []byte) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	must(t, os.WriteFile(path, b, 0o600))
	db, err := bolt.Open(path, 0o600, nil)
	must(t, err)
	must(t, db.Update(func(*bolt.Tx) error { return nil }))
	must(t, db.Close())
	out, err := os.ReadFile(path)
	must(t, err)
	return out
}

// A take-over that is called off keeps what it has copied, and the next one goes on from
// there; a database that etcd has changed meanwhile is copied from its beginning.
func TestTakeOverGoesOn(t *testing.T) {
	big := plain
	big.keys = 40_000
	l := Layout{FS: vfs.NewMem(), DataDir: "data"}
	big.make(t, l)
	straight := Layout{FS: vfs.NewMem(), DataDir: "data"}
	big.make(t, straight)
	must(t, takeOver(straight))
	want := sumStore(t, straight)

	reads := 0
	stopAt := func(n int) error {
		c, cancel := context.WithCancel(ctx)
		defer cancel()
		reads = 0
		stopping := l
		stopping.FS = errorfs.Wrap(l.FS, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind == errorfs.OpFileReadAt && op.Path == l.DB() {
				if reads++; reads == n {
					cancel()
				}
			}
			return nil
		}))
		_, err := Begin(c, stopping, Options{Version: own, BatchBytes: 4 << 10})
		return err
	}
	// Half of the reads look at the database, the others copy it.
	if err := stopAt(1 << 30); err != nil {
		t.Fatal(err)
	}
	total := reads
	must(t, l.FS.RemoveAll(l.NewStore(big.applied)))
	if err := stopAt(total - total/8); !errors.Is(err, context.Canceled) {
		t.Fatalf("called off at %d of %d: %v", reads, total, err)
	}
	if kind, err := l.Kind(); err != nil || kind != Etcds {
		t.Fatalf("kind %v, %v", kind, err)
	}
	core, logs := observer.New(zap.InfoLevel)
	tk, err := Begin(ctx, l, Options{Version: own, Logger: zap.New(core)})
	must(t, err)
	copied := logs.FilterMessage("copied the store of etcd").All()
	if len(copied) != 1 || copied[0].ContextMap()["keys-from-earlier-attempts"].(int64) < 1000 {
		t.Errorf("nothing was gone on with: %v", logs.All())
	}
	must(t, errors.Join(tk.Finish(), tk.Abandon(nil)))
	if got := sumStore(t, l); got != want {
		t.Errorf("the store has sum %x, want %x", got, want)
	}
}

package datadir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"quorate/internal/durable"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	bolt "go.etcd.io/bbolt"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"quorate/internal/apply"
	"quorate/internal/engine"
	"quorate/internal/engine/enginetest"
	"quorate/internal/engine/pebble"
	"quorate/internal/lease"
	"quorate/internal/membership"
	"quorate/internal/mvcc"
	"quorate/internal/raftlog"
	"quorate/internal/snapshot"
)

// crashes runs work on a disk that loses power before write operation n, for every n, and
// passes the remaining disk to after. It returns the number of operations.
func crashes(t *testing.T, prepare func(Layout), work func(Layout) error, after func(l Layout, n int64)) int64 {
	t.Helper()
	for i := int64(0); ; i++ {
		// What was not synced is lost or kept, all of it: Pebble relies on the order in which
		// the entries of a directory become durable, as file systems preserve it.
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
		must(t, l.Guard())
		// The stop came before the removal of a store that another one has replaced.
		must(t, durable.MkdirAll(l.FS, l.firstStore()))
		must(t, durable.WriteFile(l.FS, l.FS.PathJoin(l.firstStore(), "CURRENT"), []byte("replaced\n")))
		syncAll(t, l.FS, "data")
		must(t, durable.SyncDir(l.FS, ""))
		want = sumStore(t, l)
	}
	work := func(l Layout) error { _, err := Leave(ctx, l, own, opt); return err }
	n := crashes(t, prepare, work, func(l Layout, n int64) {
		etcdKeptOut(t, l, n)
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
			if n%2 == 0 { // the next one to start may be the server
				must(t, started(t, l))
				tidy(t, l, n)
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
		names, err := l.FS.List(l.Member())
		must(t, err)
		for _, name := range names {
			if name != "wal" && name != "snap" && !strings.HasPrefix(name, "snap.etcd-") && !strings.HasPrefix(name, "store.quorate") {
				t.Fatalf("crash at %d: %s is left", n, name)
			}
		}
		names, err = snapFiles(l)
		if err != nil || !slices.Equal(names, []string{snapshot.SnapName(2, plain.applied), "db"}) {
			t.Fatalf("crash at %d: %q, %v in snap", n, names, err)
		}
	})
	if n < 20 {
		t.Errorf("only %d operations", n)
	}
}

// etcdKeptOut checks that etcd, started on a directory, has all of the data or does not
// start: there is no database that it can open, or the database is complete (which others
// check), or there is none and the newest mark of the log has no state.
func etcdKeptOut(t *testing.T, l Layout, n int64) {
	t.Helper()
	if _, err := l.FS.Stat(l.DB()); err == nil {
		return
	}
	log, err := raftlog.Inspect(l.FS, l.WAL(), nil)
	must(t, err)
	names, err := snapshot.Snaps(l.Snap(), snapshot.Options{FS: l.FS})
	must(t, err)
	if log.Mark.Index < plain.applied || len(names) == 0 {
		t.Fatalf("crash at %d: nothing keeps etcd out: mark %d, %q", n, log.Mark.Index, names)
	}
}

// started runs the steps of a server's start on a directory, from the conversion up to
// where it begins to serve.
func started(t *testing.T, l Layout) error {
	tk, err := Begin(ctx, l, opt)
	if err != nil {
		return err
	}
	log, err := raftlog.Open(l.FS, l.WAL(), raftlog.Options{NoBackground: true})
	if err != nil {
		return err
	}
	defer func() { must(t, log.Close()) }()
	if err := durable.MkdirAll(l.FS, l.Member(), l.Snap()); err != nil {
		return err
	}
	if err := WriteNote(l.FS, l.Owner(), "m\n"); err != nil {
		return err
	}
	dir, err := l.Store()
	if tk != nil {
		dir = tk.Dir
	}
	if err != nil {
		return err
	}
	eng, err := pebble.Open(dir, pebbleOptions(l, zap.NewNop()))
	if err != nil {
		return err
	}
	defer func() { must(t, eng.Close()) }()
	h := Home{Layout: l, Log: log, Member: memberID, Cluster: clusterID, Logger: zap.NewNop()}
	if err := h.CheckTogether(eng); err != nil {
		return err
	}
	mach, err := apply.Open(eng, apply.Options{Cluster: membership.New(membership.Options{LocalID: memberID, ServerVersion: own, Aside: true}),
		Lessor: lease.New(1, lease.Options{}), MVCC: mvcc.Options{Manual: true}, Now: time.Now, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	defer mach.Close()
	if tk != nil {
		if err := h.BeginLog(tk.Index, mach.ConfState()); err != nil {
			return err
		}
		if err := errors.Join(tk.Finish(), tk.Abandon(nil)); err != nil {
			return err
		}
	}
	h.RemoveRemains(dir)
	return l.Guard()
}

// everything returns all pairs of the store in use except its local records.
func everything(t *testing.T, l Layout) (out []string) {
	t.Helper()
	eng, err := OpenStore(l, zap.NewNop())
	must(t, err)
	defer eng.Close()
	for _, b := range append([]engine.Bucket{engine.V2}, all...) {
		records, err := enginetest.Records(eng, b)
		must(t, err)
		out = append(append(out, b.String()), records...)
	}
	return out
}

var all = func() (out []engine.Bucket) {
	for b := engine.Alarm; b <= engine.Meta; b++ {
		out = append(out, b)
	}
	return out
}()

// Wherever a start that converts a directory is interrupted, including between the end of
// the copy and the last step, the next one has the same result, including the repaired
// membership of etcd 3.5 and the data of its v2 API, and no useless files remain.
func TestCrashDuringFirstStart(t *testing.T) {
	for name, make := range map[string]func(t *testing.T, l Layout){
		"3.7":                         plain.make,
		"3.5 with a stale membership": stale35,
		"3.5 with data of the v2 API": v2Directory,
		"etcd's again":                usedAgain,
	} {
		t.Run(name, func(t *testing.T) {
			straight := Layout{FS: vfs.NewMem(), DataDir: "data"}
			make(t, straight)
			must(t, started(t, straight))
			want := everything(t, straight)
			prepare := func(l Layout) {
				make(t, l)
				syncAll(t, l.FS, "data")
				must(t, durable.SyncDir(l.FS, ""))
			}
			n := crashes(t, prepare, func(l Layout) error { return started(t, l) }, func(l Layout, n int64) {
				if err := started(t, l); err != nil {
					t.Fatalf("crash at %d: %v", n, err)
				}
				if got := everything(t, l); !slices.Equal(got, want) {
					t.Fatalf("crash at %d: the store holds %q, want %q", n, got, want)
				}
				tidy(t, l, n)
			})
			if n < 40 {
				t.Errorf("only %d operations", n)
			}
		})
	}
}

// snapFiles lists the files below Snap except those that etcd removes at its start.
func snapFiles(l Layout) ([]string, error) {
	names, err := l.FS.List(l.Snap())
	names = slices.DeleteFunc(names, func(name string) bool { return strings.HasPrefix(name, "tmp") && name != guardName })
	slices.Sort(names)
	return names, err
}

// usedAgain creates a directory that was left for etcd and that etcd has used.
func usedAgain(t *testing.T, l Layout) {
	t.Helper()
	plain.make(t, l)
	must(t, takeOver(l))
	must(t, l.FS.RemoveAll(l.FS.PathJoin(l.Member(), fmt.Sprintf("snap.etcd-%016x", plain.applied))))
	must(t, LeaveBeside(ctx, l, own, opt))
	b, err := readFile(l.FS, l.DB())
	must(t, err)
	writeAll(t, l.FS, l.DB(), nextTransaction(t, b))
}

// tidy checks that a directory contains exactly what it should.
func tidy(t *testing.T, l Layout, n int64) {
	t.Helper()
	names, err := l.FS.List(l.Member())
	must(t, err)
	for _, name := range names {
		if name != "OWNER" && name != "STORE" && name != "wal" && name != "snap" && !strings.HasPrefix(name, "snap.etcd-") && !strings.HasPrefix(name, StorePrefix) {
			t.Fatalf("crash at %d: %s is left", n, name)
		}
	}
	if text := strings.Join(names, " "); strings.Count(text, "snap.etcd-") != 1 || strings.Count(text, StorePrefix) != 1 {
		t.Fatalf("crash at %d: %s", n, text)
	}
	if names, err = l.FS.List(l.Snap()); err != nil || len(names) != 2 {
		t.Fatalf("crash at %d: %q, %v in snap", n, names, err)
	}
}

// A conversion that its caller abandons leaves nothing behind.
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

// Wherever power is lost while etcd's files are written next to the store, either the store
// is the one in use or etcd's files are complete, and the next start of Quorate continues
// with the store and removes etcd's files.
func TestCrashDuringLeaveBeside(t *testing.T) {
	var want uint32
	prepare := func(l Layout) {
		plain.make(t, l)
		must(t, takeOver(l))
		must(t, l.FS.RemoveAll(l.FS.PathJoin(l.Member(), "snap.etcd-000000000000001e")))
		must(t, l.Guard())
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
			if strings.Contains(name, "export") || strings.Contains(name, "/snap/db ") || strings.Contains(name, ".snap") {
				t.Fatalf("crash at %d: %s is left", n, name)
			}
		}
	}
	n := crashes(t, prepare, work, func(l Layout, n int64) {
		etcdKeptOut(t, l, n)
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
			must(t, l.Guard())
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

// A database that etcd has opened since is converted again, even if that is interrupted.
func TestLeftAndUsed(t *testing.T) {
	l := Layout{FS: vfs.NewMem(), DataDir: "data"}
	plain.make(t, l)
	must(t, takeOver(l))
	want := sumStore(t, l)
	must(t, LeaveBeside(ctx, l, own, opt))
	b, err := readFile(l.FS, l.DB())
	must(t, err)
	// The first thing that etcd does is a transaction: the older of the two meta pages becomes
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
	dir, err := l.Store()
	must(t, err)
	if eng, err := pebble.Open(dir, pebbleOptions(l, zap.NewNop())); err != nil {
		t.Errorf("our store is gone before etcd's was in its place: %v", err)
	} else if got := sum(t, eng); got != want || eng.Close() != nil {
		t.Errorf("our store has sum %x, want %x", got, want)
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

// nextTransaction returns a database with the same content and another newest transaction.
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

// A cancelled conversion keeps what it has copied, and the next one resumes; a database
// that etcd has changed meanwhile is copied from the beginning.
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
	// Half of the reads examine the database, the others copy it.
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

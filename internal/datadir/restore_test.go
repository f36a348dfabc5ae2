package datadir

import (
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/apply"
	"quorate/internal/durable"
	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/mvcc"
	"quorate/internal/raftlog"
)

func TestRestore(t *testing.T) {
	fs := vfs.NewMem()
	src := Layout{FS: fs, DataDir: "src"}
	plain.make(t, src)
	founders, cluster, err := membership.Founders([]membership.InitialMember{
		{Name: "a", PeerURLs: []string{"http://a:1"}}, {Name: "b", PeerURLs: []string{"http://b:1"}}}, "token")
	must(t, err)
	for _, bump := range []int64{0, 100} {
		l := Layout{FS: fs, DataDir: "new", WALDir: "log/wal"}
		must(t, fs.RemoveAll("new"))
		must(t, fs.RemoveAll("log"))
		r := Restore{File: src.DB(), LocalID: founders[1].ID, ClusterID: cluster, Founders: founders, BumpRevision: bump}
		must(t, RestoreInto(ctx, l, r, opt))
		c, err := raftlog.Inspect(fs, l.WAL(), nil)
		must(t, err)
		if c.Metadata != (raftlog.Metadata{NodeID: founders[1].ID, ClusterID: cluster}) || c.First != 3 || c.Last != 2 || c.Mark.Index != 2 || c.Mark.Term != 1 ||
			c.HardState.GetCommit() != 2 || ids.Member(c.HardState.GetVote()) != founders[0].ID {
			t.Errorf("log: %+v", c)
		}
		eng, err := OpenStore(l, opt.withDefaults().Logger)
		must(t, err)
		if index, term, err := apply.Position(eng); index != 2 || term != 1 || err != nil {
			t.Errorf("position %d, %d, %v", index, term, err)
		}
		m := membership.New(membership.Options{ServerVersion: own, Aside: true})
		must(t, m.Load(eng))
		if got, want := m.MemberIDs(), []ids.Member{founders[0].ID, founders[1].ID}; !slices.Equal(got, want) {
			t.Errorf("members %s, want %s", got, want)
		}
		if m.Version().String() != "3.7.0" {
			t.Errorf("cluster version %v", m.Version())
		}
		if v, err := eng.Get(nil, engine.Auth.K([]byte("authRevision"))); err != nil || v[7] != 7 {
			t.Errorf("authRevision %x, %v", v, err)
		}
		kv, err := mvcc.Open(eng, mvcc.Options{Manual: true})
		must(t, err)
		view := kv.View()
		if got, want := view.Rev(), 21+ids.Revision(bump); got != want {
			t.Errorf("revision %d, want %d", got, want)
		}
		if want := ids.Revision(-1); bump == 0 && view.CompactRev() != want || bump > 0 && view.CompactRev() != 21+ids.Revision(bump) {
			t.Errorf("compact revision %d", view.CompactRev())
		}
		view.Close()
		kv.Close()
		must(t, eng.Close())
	}
	r := Restore{File: src.DB(), Founders: founders, BumpRevision: 1<<63 - 1}
	if err := RestoreInto(ctx, Layout{FS: fs, DataDir: "other"}, r, opt); err == nil {
		t.Error("a revision beyond the last one is accepted")
	}
	if names, err := fs.List("other"); err != nil || len(names) > 0 {
		t.Errorf("a restore that failed leaves %q, %v", names, err)
	}
}

// A restore that is interrupted at any point is started over by the next one; no server
// and no tool takes what it leaves for a member.
func TestCrashDuringRestore(t *testing.T) {
	founders, cluster, err := membership.Founders([]membership.InitialMember{{Name: "a", PeerURLs: []string{"http://a:1"}}}, "token")
	must(t, err)
	r := Restore{File: "src/member/snap/db", LocalID: founders[0].ID, ClusterID: cluster, Founders: founders}
	var want uint32
	prepare := func(l Layout) {
		plain.make(t, Layout{FS: l.FS, DataDir: "src"})
		syncAll(t, l.FS, "src")
		must(t, durable.SyncDir(l.FS, ""))
	}
	work := func(l Layout) error { l.WALDir = "log/wal"; return RestoreInto(ctx, l, r, opt) }
	interrupted := 0
	crashes(t, prepare, work, func(l Layout, n int64) {
		l.WALDir = "log/wal"
		there, err := RemoveInterrupted(l)
		if err != nil {
			t.Fatalf("crash at %d: %v", n, err)
		}
		kind, err := l.Kind()
		if err != nil {
			t.Fatalf("crash at %d: %v", n, err)
		}
		if there {
			interrupted++
			for _, dir := range []string{l.Member(), l.WAL()} {
				if is, err := exists(l.FS, dir); is || err != nil {
					t.Fatalf("crash at %d: %s is left, %v", n, dir, err)
				}
			}
		}
		if kind != Ours { // else it had come to its end
			if err := work(l); err != nil {
				t.Fatalf("crash at %d: restored again: %v", n, err)
			}
		}
		if sum := sumStore(t, l); want == 0 {
			want = sum
		} else if sum != want {
			t.Fatalf("crash at %d: the store has sum %x, want %x", n, sum, want)
		}
		if c, err := raftlog.Inspect(l.FS, l.WAL(), nil); err != nil || c.Mark.Index != 1 {
			t.Fatalf("crash at %d: log %+v, %v", n, c, err)
		}
	})
	if interrupted < 20 {
		t.Errorf("only %d crashes in the middle", interrupted)
	}
}

func TestInterruptedRestoreIsRefused(t *testing.T) {
	l := Layout{FS: vfs.NewMem(), DataDir: "data"}
	must(t, durable.MkdirAll(l.FS, l.Member()))
	must(t, WriteNote(l.FS, l.restoring(), "log/wal\n"))
	for what, do := range map[string]func() error{
		"a start": func() error { _, err := Begin(ctx, l, opt); return err },
		"a tool":  func() error { _, err := OpenStore(l, opt.withDefaults().Logger); return err },
	} {
		if err := do(); err == nil || !strings.Contains(err.Error(), "run 'etcdutl snapshot restore' again") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

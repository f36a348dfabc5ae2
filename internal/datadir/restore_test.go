package datadir

import (
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/apply"
	"quorate/internal/engine"
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
			c.HardState.GetCommit() != 2 || c.HardState.GetVote() != founders[0].ID {
			t.Errorf("log: %+v", c)
		}
		eng, err := OpenStore(l, opt.withDefaults().Logger)
		must(t, err)
		if index, term, err := apply.Position(eng); index != 2 || term != 1 || err != nil {
			t.Errorf("position %d, %d, %v", index, term, err)
		}
		m := membership.New(membership.Options{ServerVersion: own, Aside: true})
		must(t, m.Load(eng))
		if got, want := m.MemberIDs(), []uint64{founders[0].ID, founders[1].ID}; !slices.Equal(got, want) {
			t.Errorf("members %x, want %x", got, want)
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
		if got, want := view.Rev(), 21+bump; got != want {
			t.Errorf("revision %d, want %d", got, want)
		}
		if want := int64(-1); bump == 0 && view.CompactRev() != want || bump > 0 && view.CompactRev() != 21+bump {
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
}

package datadir

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/engine/mem"
	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/raftlog"
)

// A survivor commits its whole log, with what makes it the only member behind it: an entry
// that it may have acknowledged is not dropped, whatever its log says to be committed.
func TestSurvivorKeepsItsLog(t *testing.T) {
	const other = 0x77
	for _, x := range []struct {
		commit  ids.Index
		changes map[ids.Index]*raftpb.ConfChange
		want    ids.Index // last entry of the plan
		spared  ids.Index
	}{
		{commit: 18, want: 25}, // one removal
		{commit: 24, want: 25},
		{commit: 18, changes: map[ids.Index]*raftpb.ConfChange{22: membership.RemoveChange(other)}, want: 24},
		{commit: 18, changes: map[ids.Index]*raftpb.ConfChange{22: membership.RemoveChange(memberID)}, want: 25, spared: 22},
	} {
		l := Layout{FS: vfs.NewMem(), DataDir: "data"}
		d := plain
		d.commit, d.changes, d.voters = x.commit, x.changes, []ids.Member{other}
		d.make(t, l)
		log, err := raftlog.Open(l.FS, l.WAL(), raftlog.Options{NoBackground: true})
		must(t, err)
		c := membership.New(membership.Options{LocalID: memberID, ClusterID: clusterID, ServerVersion: own})
		eng := mem.New()
		b := eng.NewBatch()
		for id, url := range map[ids.Member]string{memberID: "http://a:1", other: "http://b:1"} {
			must(t, membership.Put(b, membership.Member{ID: id, PeerURLs: []string{url}}))
		}
		must(t, b.Commit())
		must(t, c.Load(eng))
		p, err := Survivor{Log: log, Cluster: c, Applied: d.applied}.Plan()
		must(t, err)
		last := d.last
		for _, e := range p.Entries {
			last = max(last, ids.Index(e.GetIndex()))
		}
		if last != x.want || ids.Index(p.State.GetCommit()) != last || p.Commit != max(x.commit, d.applied) || ids.Index(p.Unproven) != d.last-p.Commit || p.Spared != x.spared {
			t.Errorf("committed up to %d: %+v, ends at entry %d, want %d, all of it committed", x.commit, p, last, x.want)
		}
		must(t, log.Append(p.State, p.Entries, true))
		if got, err := log.LastIndex(); err != nil || ids.Index(got) != x.want || log.HardState().GetCommit() != got {
			t.Errorf("the log ends at %d, %v, and is committed up to %d, want %d", got, err, log.HardState().GetCommit(), x.want)
		}
		must(t, log.Close())
		must(t, eng.Close())
	}
}

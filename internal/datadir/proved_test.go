package datadir

import (
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/raftlog"
)

// A log that is handed to etcd states that all entries of the only voter are committed,
// and in other cases no more than it did.
func TestProveCommit(t *testing.T) {
	const other = 0x77
	add, err := membership.AddChange(membership.Member{ID: other, PeerURLs: []string{"http://b:1"}})
	must(t, err)
	learner, err := membership.AddChange(membership.Member{ID: other, PeerURLs: []string{"http://b:1"}, IsLearner: true})
	must(t, err)
	type changes = map[ids.Index]*raftpb.ConfChange
	odd := &raftpb.ConfChange{Type: raftpb.ConfChangeType(9).Enum(), NodeId: new(uint64(other))}
	for _, c := range []struct {
		name          string
		commit        ids.Index
		voters        []ids.Member
		changes       changes
		want, unknown uint64
	}{
		{name: "the only voter", commit: 18, want: 24},
		{name: "the only voter, all known", commit: 24, want: 24},
		{name: "of two voters", commit: 18, voters: []ids.Member{other}, want: 20, unknown: 4},
		{name: "of two voters, more is known", commit: 22, voters: []ids.Member{other}, want: 22, unknown: 2},
		{name: "of two voters, all known", commit: 24, voters: []ids.Member{other}, want: 24},
		{name: "a voter is added behind it", commit: 18, changes: changes{22: add}, want: 22, unknown: 2},
		{name: "a voter was added, which is known", commit: 22, changes: changes{21: add}, want: 22, unknown: 2},
		{name: "a learner is added", commit: 18, changes: changes{22: learner}, want: 24},
		{name: "the other one is removed, which is known", commit: 22, voters: []ids.Member{other}, changes: changes{22: membership.RemoveChange(other)}, want: 24},
		{name: "the other one is removed, which is not known", commit: 21, voters: []ids.Member{other}, changes: changes{22: membership.RemoveChange(other)}, want: 21, unknown: 3},
		{name: "its own removal, which is refused", commit: 18, changes: changes{22: membership.RemoveChange(memberID)}, want: 24},
		{name: "a change that nobody knows", commit: 18, changes: changes{22: odd}, want: 24},
		{name: "what was before the store is in it", commit: 18, changes: changes{10: add}, want: 24},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := Layout{FS: vfs.NewMem(), DataDir: "data"}
			d := plain
			d.changes, d.voters = c.changes, c.voters
			d.make(t, l)
			must(t, takeOver(l))
			restate(t, l, c.commit)
			core, logs := observer.New(zap.WarnLevel)
			_, err := Leave(ctx, l, own, Options{Version: own, Logger: zap.New(core)})
			must(t, err)
			got, err := raftlog.Inspect(l.FS, l.WAL(), nil)
			must(t, err)
			if got.HardState.GetCommit() != c.want {
				t.Errorf("commit index %d, want %d", got.HardState.GetCommit(), c.want)
			}
			warned := uint64(0)
			for _, e := range logs.All() {
				if strings.Contains(e.Message, "--force-new-cluster") {
					warned = e.ContextMap()["number-of-entries"].(uint64)
				}
			}
			if warned != c.unknown {
				t.Errorf("warned of %d entries, want %d: %v", warned, c.unknown, logs.All())
			}
		})
	}
}

// restate creates a log with the same entries and another commit index.
func restate(t *testing.T, l Layout, commit ids.Index) {
	t.Helper()
	log, err := raftlog.Open(l.FS, l.WAL(), raftlog.Options{NoBackground: true})
	must(t, err)
	first, err := log.FirstIndex()
	must(t, err)
	last, err := log.LastIndex()
	must(t, err)
	ents, err := log.Entries(first, last+1, 1<<20)
	must(t, err)
	md, mark, hs := log.Metadata(), log.Mark(), log.HardState()
	must(t, log.Close())
	must(t, l.FS.RemoveAll(l.WAL()))
	log, err = raftlog.Create(l.FS, l.WAL(), md, raftlog.Options{NoBackground: true})
	must(t, err)
	if first > 1 {
		must(t, log.Reset(raftlog.SnapshotMark{Index: mark.Index, Term: mark.Term, ConfState: mark.ConfState}))
	}
	must(t, log.Append(&raftpb.HardState{Term: new(hs.GetTerm()), Vote: new(hs.GetVote()), Commit: new(uint64(commit))}, ents, true))
	must(t, log.Close())
}

package raftnode

import (
	"slices"
	"testing"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/ids"
)

type quiet struct{}

func (quiet) Debug(...any)            {}
func (quiet) Debugf(string, ...any)   {}
func (quiet) Info(...any)             {}
func (quiet) Infof(string, ...any)    {}
func (quiet) Warning(...any)          {}
func (quiet) Warningf(string, ...any) {}
func (quiet) Error(...any)            {}
func (quiet) Errorf(string, ...any)   {}
func (quiet) Fatal(v ...any)          { panic(v) }
func (quiet) Fatalf(s string, v ...any) {
	panic(s)
}
func (quiet) Panic(v ...any)            { panic(v) }
func (quiet) Panicf(s string, v ...any) { panic(s) }

// newNode returns node 1 of the given voters with an empty log.
func newNode(t *testing.T, voters ...uint64) (*Node, *raft.MemoryStorage) {
	t.Helper()
	st := raft.NewMemoryStorage()
	if err := st.ApplySnapshot(&raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(uint64(1)), Term: new(uint64(1)),
		ConfState: &raftpb.ConfState{Voters: voters}}}); err != nil {
		t.Fatal(err)
	}
	if err := st.SetHardState(&raftpb.HardState{Term: new(uint64(1)), Vote: new(uint64(0)), Commit: new(uint64(1))}); err != nil {
		t.Fatal(err)
	}
	n, err := New(Config{ID: 1, ElectionTicks: 10, HeartbeatTicks: 1, Storage: st, Applied: 1, Logger: quiet{}})
	if err != nil {
		t.Fatal(err)
	}
	return n, st
}

func voters(n *Node) []uint64 {
	ids := n.Status().Config.Voters[0].Slice()
	slices.Sort(ids)
	return ids
}

func change(typ raftpb.ConfChangeType, id uint64) *raftpb.ConfChange {
	return &raftpb.ConfChange{Type: typ.Enum(), NodeId: new(id)}
}

// A membership change that precedes a snapshot which raft has accepted is part of it.
func TestConfChangeBehindSnapshot(t *testing.T) {
	n, _ := newNode(t, 1, 2)
	n.ApplyConfChange(5, change(raftpb.ConfChangeAddNode, 3))
	if got := voters(n); !slices.Equal(got, []uint64{1, 2, 3}) {
		t.Fatalf("voters %v after a change", got)
	}
	err := n.Step(&raftpb.Message{Type: raftpb.MsgSnap.Enum(), From: new(uint64(2)), To: new(uint64(1)), Term: new(uint64(2)),
		Snapshot: &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(uint64(20)), Term: new(uint64(2)),
			ConfState: &raftpb.ConfState{Voters: []uint64{1, 2, 4}}}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, cc := range []struct {
		index uint64
		*raftpb.ConfChange
		want []uint64
	}{
		{10, change(raftpb.ConfChangeAddLearnerNode, 4), []uint64{1, 2, 4}}, // a learner then
		{20, change(raftpb.ConfChangeRemoveNode, 2), []uint64{1, 2, 4}},
		{21, change(raftpb.ConfChangeRemoveNode, 2), []uint64{1, 4}},
	} {
		n.ApplyConfChange(ids.Index(cc.index), cc.ConfChange)
		if got := voters(n); !slices.Equal(got, cc.want) {
			t.Errorf("voters %v after the change of entry %d, want %v", got, cc.index, cc.want)
		}
	}
	e := n.Effects()
	if !slices.ContainsFunc(e.Append, func(a Append) bool { return a.Snapshot.GetMetadata().GetIndex() == 20 && a.MustSync }) {
		t.Error("the snapshot is not among the effects")
	}
	if again := n.Effects(); len(again.Append)+len(again.Send)+len(again.Apply) > 0 {
		t.Errorf("effects handed out twice: %+v", again)
	}
}

// A vote or a term must be durable before it is sent, or it could be given twice.
func TestWhatMustSync(t *testing.T) {
	n, st := newNode(t, 1, 2, 3)
	message := func(typ raftpb.MessageType, term uint64) *raftpb.Message {
		return &raftpb.Message{Type: typ.Enum(), From: new(uint64(2)), To: new(uint64(1)), Term: new(term), Index: new(uint64(1)), LogTerm: new(uint64(1))}
	}
	entry := message(raftpb.MsgApp, 6)
	entry.Entries = []*raftpb.Entry{{Term: new(uint64(6)), Index: new(uint64(2)), Data: []byte("x")}}
	commit := message(raftpb.MsgHeartbeat, 6)
	commit.Commit = new(uint64(2))
	change := message(raftpb.MsgApp, 6)
	change.Index, change.LogTerm = new(uint64(2)), new(uint64(6))
	cc, err := proto.Marshal(&raftpb.ConfChange{Type: raftpb.ConfChangeRemoveNode.Enum(), NodeId: new(uint64(3))})
	if err != nil {
		t.Fatal(err)
	}
	change.Entries = []*raftpb.Entry{{Type: raftpb.EntryConfChange.Enum(), Term: new(uint64(6)), Index: new(uint64(3)), Data: cc}}
	committed := message(raftpb.MsgHeartbeat, 6)
	committed.Commit = new(uint64(3))
	for _, x := range []struct {
		what string
		m    *raftpb.Message
		term uint64
		vote uint64
		sync bool
	}{
		{"a vote", message(raftpb.MsgVote, 5), 5, 2, true}, // nobody leads yet
		{"a term", message(raftpb.MsgHeartbeat, 6), 6, 0, true},
		{"entries", entry, 6, 0, true},
		{"a commit index", commit, 6, 0, false},
		{"a change of the members", change, 6, 0, true},
		{"the commit index of that", committed, 6, 0, true},
	} {
		n.Step(x.m)
		var got []Append
		for range 3 {
			e := n.Effects()
			for _, a := range e.Append {
				st.Append(a.Entries)
				for _, r := range a.Responses {
					if r.GetTo() == 1 {
						n.Step(r)
					}
				}
			}
			got = append(got, e.Append...)
		}
		i := slices.IndexFunc(got, func(a Append) bool { return a.HardState != nil || len(a.Entries) > 0 })
		if i < 0 {
			t.Fatalf("%s: nothing to write", x.what)
		}
		if got[i].MustSync != x.sync {
			t.Errorf("%s: sync %v", x.what, got[i].MustSync)
		}
		if hs := got[i].HardState; hs != nil && (hs.GetTerm() != x.term || hs.GetVote() != x.vote) {
			t.Errorf("%s: state %v, want term %d and vote %d", x.what, hs, x.term, x.vote)
		}
	}
}

// A run is acknowledged when raft knows of its membership changes, not before.
func TestAcknowledgedBeforeConfChange(t *testing.T) {
	ack := &raftpb.Message{Type: raftpb.MsgStorageApplyResp.Enum(), From: new(raft.LocalApplyThread), To: new(uint64(1)), Term: new(uint64(0)),
		Entries: []*raftpb.Entry{{Type: raftpb.EntryConfChange.Enum(), Term: new(uint64(1)), Index: new(uint64(2))}}}
	defer func() {
		if recover() == nil {
			t.Error("the acknowledgement was taken")
		}
	}()
	n, _ := newNode(t, 1, 2)
	n.Step(ack)
}

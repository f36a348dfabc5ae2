package raftnode

import (
	"testing"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/ids"
)

// pump carries out all effects, with a disk that writes at once, and returns the confirmed
// reads.
func pump(t *testing.T, n *Node, st *raft.MemoryStorage) (reads []raft.ReadState) {
	t.Helper()
	for {
		e := n.Effects()
		reads = append(reads, e.Reads...)
		if len(e.Append)+len(e.Apply) == 0 {
			return reads
		}
		var own []*raftpb.Message
		for _, a := range e.Append {
			if err := st.Append(a.Entries); err != nil {
				t.Fatal(err)
			}
			if a.HardState != nil {
				if err := st.SetHardState(a.HardState); err != nil {
					t.Fatal(err)
				}
			}
			own = append(own, a.Responses...)
		}
		for _, a := range e.Apply {
			own = append(own, a.Responses...)
		}
		for _, m := range own {
			if ids.Member(m.GetTo()) != n.id {
				continue
			}
			if err := n.Step(m); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Entries in the log of the only voter when it is elected may have been acknowledged by the
// previous leader: a read must see them.
func TestReadOfOnlyVoterWaitsForItsTerm(t *testing.T) {
	_, st := newNode(t, 1)
	if err := st.Append([]*raftpb.Entry{{Term: new(uint64(1)), Index: new(uint64(2))}}); err != nil {
		t.Fatal(err)
	}
	n, err := New(Config{ID: 1, ElectionTicks: 10, HeartbeatTicks: 1, Storage: st, Applied: 1, Logger: quiet{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Campaign(); err != nil {
		t.Fatal(err)
	}
	for !n.Leading() {
		e := n.Effects()
		for _, a := range e.Append {
			for _, m := range a.Responses {
				if err := n.Step(m); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	n.ReadIndex([]byte("early"))
	if commit := n.State().Commit; commit != 1 {
		t.Fatalf("committed up to %d already", commit)
	}
	reads := pump(t, n, st)
	if len(reads) != 1 || reads[0].Index < 2 || string(reads[0].RequestCtx) != "early" {
		t.Fatalf("reads %+v, want one at 2 or later", reads)
	}
	n.ReadIndex([]byte("late"))
	if reads := pump(t, n, st); len(reads) != 1 || reads[0].Index != 3 {
		t.Errorf("reads %+v, want one at 3", reads)
	}
}

// A leader that was removed confirms no reads, though one voter is left.
func TestReadOfRemovedLeader(t *testing.T) {
	n, st := newNode(t, 1, 2)
	if err := n.Campaign(); err != nil {
		t.Fatal(err)
	}
	pump(t, n, st)
	from2 := func(typ raftpb.MessageType, index uint64) {
		t.Helper()
		m := &raftpb.Message{Type: typ.Enum(), From: new(uint64(2)), To: new(uint64(1)), Term: new(uint64(n.State().Term)), Index: new(index)}
		if err := n.Step(m); err != nil {
			t.Fatal(err)
		}
		pump(t, n, st)
	}
	from2(raftpb.MsgVoteResp, 0)
	from2(raftpb.MsgAppResp, 2)
	if st := n.State(); st.Lead != 1 || st.Commit != 2 {
		t.Fatalf("%+v", st)
	}
	n.ApplyConfChange(3, change(raftpb.ConfChangeRemoveNode, 1))
	n.ReadIndex([]byte("r"))
	if reads := pump(t, n, st); len(reads) > 0 {
		t.Errorf("a leader that was removed confirms %+v", reads)
	}
	m := &raftpb.Message{Type: raftpb.MsgReadIndex.Enum(), From: new(uint64(2)), To: new(uint64(1)), Entries: []*raftpb.Entry{{Data: []byte("r")}}}
	if err := n.Step(m); err != nil {
		t.Fatal(err)
	}
	for _, m := range n.Effects().Send {
		if m.GetType() == raftpb.MsgReadIndexResp {
			t.Errorf("it answers %v", m)
		}
	}
}

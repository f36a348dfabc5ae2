package replica

import (
	"errors"
	"testing"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/proposal"
	"quorate/internal/raftnode"
	"quorate/internal/readindex"
)

var (
	errTimeout = errors.New("timed out")
	errChanged = errors.New("the leader has changed")
	errLost    = errors.New("the leader took it with it")
)

// coreOf returns the core of member 1 of three; the other two do not exist.
func coreOf(t *testing.T) (*Core, *proposal.Table, *readindex.Batcher) {
	t.Helper()
	st := raft.NewMemoryStorage()
	err := st.ApplySnapshot(&raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(uint64(1)), Term: new(uint64(1)),
		ConfState: &raftpb.ConfState{Voters: []uint64{1, 2, 3}}}})
	if err == nil {
		err = st.SetHardState(&raftpb.HardState{Term: new(uint64(1)), Vote: new(uint64(0)), Commit: new(uint64(1))})
	}
	if err != nil {
		t.Fatal(err)
	}
	node, err := raftnode.New(raftnode.Config{ID: 1, ElectionTicks: 10, HeartbeatTicks: 1, PreVote: true, Storage: st, Applied: 1, Logger: raftnode.NewLogger(zap.NewNop())})
	if err != nil {
		t.Fatal(err)
	}
	var n uint64
	props, reads := proposal.NewTable(100, 1<<20), readindex.New(func() uint64 { n++; return n }, 1)
	return NewCore(CoreConfig{Node: node, Proposals: props, Reads: reads, ReadRetry: 500 * time.Millisecond, ReadLimit: time.Minute,
		ErrTimeout: errTimeout, ErrChanged: errChanged}), props, reads
}

// hears delivers a heartbeat of a leader.
func hears(from, term uint64) Input {
	return Input{Recv: []*raftpb.Message{{Type: raftpb.MsgHeartbeat.Enum(), From: new(from), To: new(uint64(1)), Term: new(term)}}}
}

// proposed returns the proposals that the core forwards to the leader.
func proposed(e Effects) (data []string) {
	for _, m := range e.Send {
		if m.GetType() == raftpb.MsgProp {
			for _, x := range m.Entries {
				data = append(data, string(x.Data))
			}
		}
	}
	return data
}

// Requests that were held while there was no leader are proposed once, and not if they have
// expired.
func TestHeldProposals(t *testing.T) {
	c, props, _ := coreOf(t)
	now := time.Unix(1000, 0)
	early, late := &proposal.Pending{ID: 1, Data: []byte("early")}, &proposal.Pending{ID: 2, Data: []byte("late")}
	for p, timeout := range map[*proposal.Pending]time.Duration{early: time.Second, late: time.Minute} {
		if err := props.Admit(p, now, timeout); err != nil {
			t.Fatal(err)
		}
	}
	if got := proposed(c.Step(now, Input{Propose: []*proposal.Pending{early, late}})); len(got) > 0 {
		t.Fatalf("%q proposed without a leader", got)
	}
	now = now.Add(2 * time.Second)
	props.Expire(now, func(time.Time) error { return errors.New("too late") })
	if got := proposed(c.Step(now, hears(2, 2))); len(got) != 1 || got[0] != "late" {
		t.Errorf("proposed %q, want the one that is still awaited", got)
	}
	if got := proposed(c.Step(now, hears(3, 3))); len(got) > 0 {
		t.Errorf("%q was proposed again", got)
	}
}

// The round of reads in flight was sent to the old leader: it fails because the leader has
// changed. Readers of the next round are served by the new leader.
func TestReadsAtChangeOfLeader(t *testing.T) {
	c, _, reads := coreOf(t)
	now := time.Unix(1000, 0)
	asked := func(e Effects) (to uint64) {
		for _, m := range e.Send {
			if m.GetType() == raftpb.MsgReadIndex {
				to = m.GetTo()
			}
		}
		return to
	}
	c.Step(now, hears(2, 2))
	first, _ := reads.Join()
	if to := asked(c.Step(now, Input{ReadWanted: true})); to != 2 {
		t.Fatalf("asked %d", to)
	}
	next, _ := reads.Join()
	e := c.Step(now, hears(3, 3))
	select {
	case <-first.Done():
		if !errors.Is(first.Err(), errChanged) {
			t.Errorf("the round in flight ended with %v", first.Err())
		}
	default:
		t.Error("the round in flight waits for the old leader")
	}
	if to := asked(e); to != 3 {
		t.Errorf("the next round was sent to %d", to)
	}
	select {
	case <-next.Done():
		t.Errorf("the next round has ended: %v", next.Err())
	default:
	}
}

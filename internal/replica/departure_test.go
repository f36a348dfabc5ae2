package replica

import (
	"errors"
	"testing"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/proposal"
	"quorate/internal/raftnode"
	"quorate/internal/readindex"

	"google.golang.org/protobuf/proto"
)

// leadingCore is the core of member 1 of three, which leads. Each step returns the messages that it
// sends.
func leadingCore(t *testing.T) (*Core, *proposal.Table, func(Input) Effects) {
	t.Helper()
	store := raft.NewMemoryStorage()
	if err := store.ApplySnapshot(&raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(uint64(1)), Term: new(uint64(1)),
		ConfState: &raftpb.ConfState{Voters: []uint64{1, 2, 3}}}}); err != nil {
		t.Fatal(err)
	}
	node, err := raftnode.New(raftnode.Config{ID: 1, ElectionTicks: 10, HeartbeatTicks: 1, Storage: store, Applied: 1, Logger: raftnode.NewLogger(zap.NewNop())})
	if err != nil {
		t.Fatal(err)
	}
	props := proposal.NewTable(100, 1<<20)
	id := uint64(0)
	c := NewCore(CoreConfig{Node: node, Proposals: props, Reads: readindex.New(func() uint64 { id++; return id }, 1), HandOver: time.Second, ReadLimit: time.Hour, ErrLost: errLost})
	now := time.Unix(1000, 0)
	step := func(in Input) Effects {
		t.Helper()
		for range in.Ticks {
			now = now.Add(100 * time.Millisecond)
		}
		e := c.Step(now, in)
		for _, a := range e.Append { // the disk writes at once
			if err := store.Append(a.Entries); err != nil {
				t.Fatal(err)
			}
			for _, r := range a.Responses {
				if r.GetTo() == 1 {
					x := c.Step(now, Input{Acks: []*raftpb.Message{r}})
					e.Send, e.Apply, e.State = append(e.Send, x.Send...), append(e.Apply, x.Apply...), x.State
				} else {
					e.Send = append(e.Send, r)
				}
			}
		}
		for _, a := range e.Apply { // so is the state machine
			x := c.Step(now, Input{Acks: a.Responses})
			e.Send, e.State = append(e.Send, x.Send...), x.State
		}
		return e
	}
	e := step(Input{Campaign: true})
	term := e.State.Term
	e = step(Input{Recv: []*raftpb.Message{{Type: raftpb.MsgVoteResp.Enum(), From: new(uint64(2)), To: new(uint64(1)), Term: (*uint64)(&term)}}})
	if !c.Node().Leading() {
		t.Fatalf("member 1 does not lead: %+v", e.State)
	}
	// Both others have the whole log and are active.
	last, _ := store.LastIndex()
	for _, from := range []uint64{2, 3} {
		step(Input{Recv: []*raftpb.Message{{Type: raftpb.MsgAppResp.Enum(), From: &from, To: new(uint64(1)), Term: (*uint64)(&term), Index: &last}}})
	}
	return c, props, step
}

func removal(t *testing.T, props *proposal.Table, of ids.Member) *proposal.Pending {
	t.Helper()
	cc := membership.RemoveChange(of)
	cc.Id = new(uint64(77))
	data, err := proto.Marshal(cc)
	if err != nil {
		t.Fatal(err)
	}
	p := &proposal.Pending{ID: 77, Data: data, ConfChange: true, Repeat: true}
	if err := props.Admit(p, time.Unix(1000, 0), time.Hour); err != nil {
		t.Fatal(err)
	}
	return p
}

func proposes(e Effects) bool {
	for _, a := range e.Append {
		for _, x := range a.Entries {
			if x.GetType() == raftpb.EntryConfChange {
				return true
			}
		}
	}
	return false
}

// A leader that is to be removed transfers leadership first, whoever asked for the removal. Only if
// no other member can lead is it removed while it leads.
func TestRemovalOfLeaderWaits(t *testing.T) {
	for _, from := range []string{"a client", "a follower"} {
		t.Run(from, func(t *testing.T) {
			c, props, step := leadingCore(t)
			p := removal(t, props, 1)
			in := Input{Propose: []*proposal.Pending{p}}
			if from == "a follower" {
				in = Input{Recv: []*raftpb.Message{{Type: raftpb.MsgProp.Enum(), From: new(uint64(2)), To: new(uint64(1)),
					Entries: []*raftpb.Entry{{Type: raftpb.EntryConfChange.Enum(), Data: p.Data}}}}}
			}
			e := step(in)
			asked := uint64(0)
			for _, m := range e.Send {
				if m.GetType() == raftpb.MsgTimeoutNow {
					asked = m.GetTo()
				}
			}
			if asked == 0 || proposes(e) {
				t.Fatalf("asked member %d to lead; proposed the removal: %v", asked, proposes(e))
			}
			for i := range 30 {
				if e = step(Input{Ticks: 1}); proposes(e) {
					if i < 8 {
						t.Errorf("removed after %d ticks, before another member could lead", i+1)
					}
					return
				}
				if !c.Node().Leading() {
					t.Fatalf("member 1 has lost the lead after %d ticks", i+1)
				}
			}
			t.Error("no other member can lead, and the removal was not proposed")
		})
	}
}

// The removal of another member than the leader does not wait.
func TestRemovalOfFollowerDoesNotWait(t *testing.T) {
	_, props, step := leadingCore(t)
	if e := step(Input{Propose: []*proposal.Pending{removal(t, props, 2)}}); !proposes(e) {
		t.Error("the removal of a follower was not proposed")
	}
}

// Requests that were handed to a former leader and were not applied fail.
func TestRequestsOfFormerLeaderFail(t *testing.T) {
	c, props, step := leadingCore(t)
	p := &proposal.Pending{ID: 5, Data: []byte("x")}
	if err := props.Admit(p, time.Unix(1000, 0), time.Hour); err != nil {
		t.Fatal(err)
	}
	step(Input{Propose: []*proposal.Pending{p}})
	term := c.Node().State().Term + 1
	step(Input{Ticks: 1})
	step(Input{Recv: []*raftpb.Message{{Type: raftpb.MsgHeartbeat.Enum(), From: new(uint64(3)), To: new(uint64(1)), Term: (*uint64)(&term)}}})
	later := &proposal.Pending{ID: 6, Data: []byte("y")}
	if err := props.Admit(later, time.Unix(1000, 0), time.Hour); err != nil {
		t.Fatal(err)
	}
	step(Input{Ticks: 1, Propose: []*proposal.Pending{later}})
	for range 9 {
		select {
		case r := <-p.Done():
			t.Fatalf("ended at once: %v", r.Err)
		default:
		}
		step(Input{Ticks: 1, Recv: []*raftpb.Message{{Type: raftpb.MsgHeartbeat.Enum(), From: new(uint64(3)), To: new(uint64(1)), Term: (*uint64)(&term)}}})
	}
	select {
	case r := <-p.Done():
		if r.Err != errLost {
			t.Errorf("ended with %v", r.Err)
		}
	default:
		t.Error("the request that was handed to a former leader has not failed")
	}
	select {
	case r := <-later.Done():
		t.Errorf("the request that was handed to the current leader failed with %v", r.Err)
	default:
	}
}

// A change from a follower that is refused because this leader's connections are too young
// is proposed when they are old enough; one that the membership forbids is not.
func TestFollowersChangeWaitsForConnections(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want bool
	}{{membership.ErrUnhealthy, true}, {membership.ErrNotEnoughStarted, false}} {
		c, _, step := leadingCore(t)
		verdict := tt.err
		c.gate = func(*raftpb.ConfChange, func(ids.Member) bool) error { return verdict }
		cc, err := membership.AddChange(membership.Member{ID: 4, PeerURLs: []string{"http://x"}})
		if err != nil {
			t.Fatal(err)
		}
		data, err := proto.Marshal(cc)
		if err != nil {
			t.Fatal(err)
		}
		in := Input{Recv: []*raftpb.Message{{Type: raftpb.MsgProp.Enum(), From: new(uint64(2)), To: new(uint64(1)),
			Entries: []*raftpb.Entry{{Type: raftpb.EntryConfChange.Enum(), Data: data}}}}}
		if e := step(in); proposes(e) {
			t.Errorf("%v: proposed at once", tt.err)
		}
		verdict = nil
		if e := step(Input{Ticks: 1}); proposes(e) != tt.want {
			t.Errorf("%v: proposed later: %v, want %v", tt.err, !tt.want, tt.want)
		}
	}
}

// What a leader has decided in its term is proposed in that term, or never: a deposed
// leader does not forward it to the next one.
func TestDecisionOfFormerLeaderFails(t *testing.T) {
	c, props, step := leadingCore(t)
	term, now := c.Node().State().Term, time.Unix(1000, 0)
	decide := func(id uint64, term ids.Term) *proposal.Pending {
		p := &proposal.Pending{ID: id, Data: []byte("the lease has expired"), Term: term}
		if err := props.Admit(p, now, time.Hour); err != nil {
			t.Fatal(err)
		}
		return p
	}
	refused := func(p *proposal.Pending) bool {
		select {
		case r := <-p.Done():
			return errors.Is(r.Err, proposal.ErrNotLeading)
		default:
			return false
		}
	}
	before := c.Node().Status().Progress[1].Next
	p := decide(5, term)
	step(Input{Propose: []*proposal.Pending{p}})
	if next := c.Node().Status().Progress[1].Next; next != before+1 || refused(p) {
		t.Fatalf("the leader has not proposed it: next index %d, want %d", next, before+1)
	}
	other := decide(6, term+7)
	if step(Input{Propose: []*proposal.Pending{other}}); !refused(other) {
		t.Error("a decision of another term is not refused")
	}
	// One waits because leadership is being transferred, one comes when another member leads.
	waits, late := decide(7, term), decide(8, term)
	step(Input{TransferTo: 2})
	step(Input{Propose: []*proposal.Pending{waits}})
	next := term + 1
	e := step(Input{Propose: []*proposal.Pending{late}, Recv: []*raftpb.Message{{Type: raftpb.MsgHeartbeat.Enum(), From: new(uint64(2)), To: new(uint64(1)), Term: (*uint64)(&next)}}})
	e2 := step(Input{Ticks: 1})
	if got := append(proposed(e), proposed(e2)...); len(got) > 0 {
		t.Errorf("a deposed leader forwards %q", got)
	}
	if !refused(waits) || !refused(late) {
		t.Error("what a deposed leader has not proposed is not refused")
	}
}

// A leader answers a read only after another member has confirmed that it still leads.
func TestReadAsksAQuorum(t *testing.T) {
	c, _, step := leadingCore(t)
	c.reads.Applied(1000)
	round, _ := c.reads.Join()
	over := func() bool {
		select {
		case <-round.Done():
			return true
		default:
			return false
		}
	}
	e := step(Input{ReadWanted: true})
	if over() {
		t.Fatal("the leader has asked nobody")
	}
	for _, m := range e.Send {
		if m.GetType() == raftpb.MsgHeartbeat && m.GetTo() == 2 && len(m.Context) > 0 {
			step(Input{Recv: []*raftpb.Message{{Type: raftpb.MsgHeartbeatResp.Enum(), From: new(uint64(2)), To: new(uint64(1)), Term: m.Term, Context: m.Context}}})
		}
	}
	if !over() {
		t.Error("a quorum has confirmed the leader, and the read still waits")
	}
}

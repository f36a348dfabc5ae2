package raftnode

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/ids"
	"quorate/internal/membership"
)

// world is one node with a log in memory and an apply that only tells raft what it must
// know. The test plays its peers.
type world struct {
	t    testing.TB
	n    *Node
	log  *raft.MemoryStorage
	sent []*raftpb.Message
	logs []Append // that wait for the disk
}

const self, peerA, peerB, learner = 1, 2, 3, 4

func newWorld(t testing.TB, entries int, voters ...uint64) *world {
	w := &world{t: t, log: raft.NewMemoryStorage()}
	cs := &raftpb.ConfState{Voters: voters, Learners: []uint64{learner}}
	first := &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(uint64(3)), Term: new(uint64(1)), ConfState: cs}}
	if err := w.log.ApplySnapshot(first); err != nil {
		t.Fatal(err)
	}
	var ents []*raftpb.Entry
	for i := range entries {
		ents = append(ents, entry(uint64(4+i), 2, "x"))
	}
	w.log.Append(ents)
	w.log.SetHardState(&raftpb.HardState{Term: new(uint64(2)), Vote: new(uint64(0)), Commit: new(uint64(3))})
	n, err := New(Config{ID: self, ElectionTicks: 10, HeartbeatTicks: 1, PreVote: true, Storage: w.log, Applied: 3, Logger: panics{}})
	if err != nil {
		t.Fatal(err)
	}
	w.n = n
	return w
}

// panics is a logger that discards all lines and panics where raft does.
type panics struct{}

func (panics) Debug(...any)            {}
func (panics) Debugf(string, ...any)   {}
func (panics) Error(...any)            {}
func (panics) Errorf(string, ...any)   {}
func (panics) Info(...any)             {}
func (panics) Infof(string, ...any)    {}
func (panics) Warning(...any)          {}
func (panics) Warningf(string, ...any) {}
func (panics) Fatal(v ...any)          { panic(fmt.Sprint(v...)) }
func (panics) Fatalf(f string, v ...any) {
	panic(fmt.Sprintf(f, v...))
}
func (panics) Panic(v ...any) { panic(fmt.Sprint(v...)) }
func (panics) Panicf(f string, v ...any) {
	panic(fmt.Sprintf(f, v...))
}

func entry(index, term uint64, data string) *raftpb.Entry {
	return &raftpb.Entry{Index: &index, Term: &term, Data: []byte(data), Type: raftpb.EntryNormal.Enum()}
}

// settle carries out all effects; hold delays the log writes.
func (w *world) settle(hold bool) {
	for range 100 {
		e := w.n.Effects()
		w.sent = append(w.sent, e.Send...)
		w.logs = append(w.logs, e.Append...)
		if len(e.Apply) == 0 && (hold || len(w.logs) == 0) {
			return
		}
		for _, a := range e.Apply {
			for _, x := range a.Entries {
				if x.GetType() == raftpb.EntryConfChange {
					// As in apply: a refused change goes to raft without a member.
					cc, err := membership.DecodeChange(x.Data)
					if err != nil || cc.GetType() == raftpb.ConfChangeRemoveNode || cc.GetNodeId() <= learner {
						cc = &raftpb.ConfChange{Type: raftpb.ConfChangeAddNode.Enum(), NodeId: new(uint64(0))}
					}
					w.n.ApplyConfChange(ids.Index(x.GetIndex()), cc)
				}
			}
			w.answer(a.Responses)
		}
		if hold {
			continue
		}
		for _, a := range w.logs {
			w.write(a)
		}
		w.logs = nil
	}
	w.t.Fatal("the node never comes to rest")
}

func (w *world) write(a Append) {
	if a.Snapshot != nil {
		if err := w.log.ApplySnapshot(a.Snapshot); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := w.log.Append(a.Entries); err != nil {
		w.t.Fatal(err)
	}
	if a.HardState != nil {
		w.log.SetHardState(a.HardState)
	}
	w.answer(a.Responses)
}

func (w *world) answer(responses []*raftpb.Message) {
	for _, r := range responses {
		if r.GetTo() == self {
			w.n.Step(r)
		} else {
			w.sent = append(w.sent, r)
		}
	}
}

// receive passes a message as a member does: encoded, decoded and checked.
func (w *world) receive(m *raftpb.Message) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	got := &raftpb.Message{}
	if err := proto.Unmarshal(b, got); err != nil {
		return err
	}
	if err := Check(got, self); err != nil {
		return err
	}
	return w.n.Receive(got)
}

func (w *world) term() uint64 { return w.n.rn.BasicStatus().HardState.GetTerm() }

// lead makes the node the leader, with the votes of its peers.
func (w *world) lead() {
	w.n.Campaign()
	for range 2 {
		w.settle(false)
		for _, typ := range []raftpb.MessageType{raftpb.MsgPreVoteResp, raftpb.MsgVoteResp} {
			for _, from := range []uint64{peerA, peerB} {
				w.receive(message(typ, from, w.term()+b2u(typ == raftpb.MsgPreVoteResp)))
			}
		}
	}
	w.settle(false)
	if !w.n.Leading() {
		w.t.Fatalf("does not lead: %+v", w.n.State())
	}
}

func b2u(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

func message(typ raftpb.MessageType, from, term uint64) *raftpb.Message {
	return &raftpb.Message{Type: typ.Enum(), To: new(uint64(self)), From: &from, Term: &term}
}

func with(m *raftpb.Message, f func(*raftpb.Message)) *raftpb.Message { f(m); return m }

func changeData(typ raftpb.ConfChangeType, id uint64, context string) []byte {
	b, err := proto.Marshal(&raftpb.ConfChange{Type: typ.Enum(), NodeId: &id, Context: []byte(context)})
	if err != nil {
		panic(err)
	}
	return b
}

func conf(data []byte) *raftpb.Entry {
	return &raftpb.Entry{Type: raftpb.EntryConfChange.Enum(), Data: data}
}

// Messages that no member sends are refused. Those marked "panic" made raft panic, those
// marked "unreadable" made the log unreadable.
func TestCheck(t *testing.T) {
	prop := func(ents ...*raftpb.Entry) *raftpb.Message {
		return with(message(raftpb.MsgProp, peerA, 0), func(m *raftpb.Message) { m.Entries = ents })
	}
	app := func(index, logTerm, term uint64, ents ...*raftpb.Entry) *raftpb.Message {
		return with(message(raftpb.MsgApp, peerA, term), func(m *raftpb.Message) { m.Index, m.LogTerm, m.Entries = &index, &logTerm, ents })
	}
	typed := func(e *raftpb.Entry, typ raftpb.EntryType, data []byte) *raftpb.Entry {
		e.Type, e.Data = typ.Enum(), data
		return e
	}
	snap := func(index, term uint64, cs *raftpb.ConfState) *raftpb.Message {
		return with(message(raftpb.MsgSnap, peerA, 5), func(m *raftpb.Message) {
			m.Snapshot = &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: &index, Term: &term, ConfState: cs}}
		})
	}
	reads := func(typ raftpb.MessageType, term uint64, n int) *raftpb.Message {
		return with(message(typ, peerA, term), func(m *raftpb.Message) { m.Entries = make([]*raftpb.Entry, n); fill(m.Entries) })
	}
	for name, tt := range map[string]struct {
		m  *raftpb.Message
		ok bool
	}{
		"a proposal":                     {prop(entry(0, 0, "x")), true},
		"a proposal that comes back":     {with(prop(entry(0, 0, "x")), func(m *raftpb.Message) { m.From = new(uint64(self)) }), true}, // from a former leader
		"no entry":                       {prop(), false},                                                                              // panic
		"an empty entry":                 {prop(&raftpb.Entry{}), false},
		"a proposal with a term":         {with(prop(entry(0, 0, "x")), func(m *raftpb.Message) { m.Term = new(uint64(2)) }), false}, // panic
		"an undecodable change":          {prop(conf([]byte{0xff})), false},                                                          // panic
		"an empty change":                {prop(conf(nil)), false},                                                                   // unreadable
		"a joint change":                 {prop(typed(entry(0, 0, ""), raftpb.EntryConfChangeV2, []byte{8, 0})), false},
		"a change of unknown type":       {prop(conf(changeData(9, 5, `{"id":5}`))), false},
		"a change of nobody":             {prop(conf(changeData(raftpb.ConfChangeRemoveNode, 0, ""))), false},
		"a removal":                      {prop(conf(changeData(raftpb.ConfChangeRemoveNode, 2, ""))), true},
		"an addition":                    {prop(conf(changeData(raftpb.ConfChangeAddNode, 5, `{"id":5,"peerURLs":["http://x"]}`))), true},
		"an addition of another":         {prop(conf(changeData(raftpb.ConfChangeAddNode, 5, `{"id":6}`))), false},
		"a voter that is a learner":      {prop(conf(changeData(raftpb.ConfChangeAddNode, 5, `{"id":5,"isLearner":true}`))), false},
		"a learner that is none":         {prop(conf(changeData(raftpb.ConfChangeAddLearnerNode, 5, `{"id":5}`))), false},
		"entries":                        {app(3, 2, 7, entry(4, 6, "x"), entry(5, 7, "")), true},
		"entries from the start":         {app(0, 0, 7, entry(1, 1, "x")), true},
		"entries behind nothing":         {app(3, 0, 7, entry(4, 6, "x")), false},
		"entries with a gap":             {app(3, 2, 7, entry(5, 6, "x")), false},                   // panic
		"entries again":                  {app(3, 2, 7, entry(4, 6, "x"), entry(4, 6, "x")), false}, // panic
		"entries of terms to come":       {app(3, 2, 5, entry(4, 6, "x")), false},
		"entries of falling terms":       {app(3, 2, 7, entry(4, 6, "x"), entry(5, 5, "x")), false},
		"an entry with an empty change":  {app(3, 2, 7, typed(entry(4, 6, ""), raftpb.EntryConfChange, nil)), false}, // unreadable
		"an entry of unknown type":       {app(3, 2, 7, typed(entry(4, 6, ""), 7, []byte("x"))), false},              // unreadable
		"an entry with a broken change":  {app(3, 2, 7, typed(entry(4, 6, ""), raftpb.EntryConfChange, []byte{0xff})), false},
		"an index that overflows":        {app(math.MaxUint64, 2, 7), false},
		"a term that overflows":          {message(raftpb.MsgHeartbeat, peerA, math.MaxUint64), false}, // panic, later
		"a heartbeat":                    {message(raftpb.MsgHeartbeat, peerA, 2), true},
		"a heartbeat without term":       {message(raftpb.MsgHeartbeat, peerA, 0), false},
		"from oneself":                   {message(raftpb.MsgHeartbeat, self, 2), false}, // panic
		"from nobody":                    {message(raftpb.MsgHeartbeat, 0, 2), false},
		"from the log":                   {message(raftpb.MsgHeartbeat, raft.LocalAppendThread, 2), false},
		"for another":                    {with(message(raftpb.MsgHeartbeat, peerA, 2), func(m *raftpb.Message) { m.To = new(uint64(7)) }), false},
		"with responses":                 {with(message(raftpb.MsgHeartbeat, peerA, 2), func(m *raftpb.Message) { m.Responses = []*raftpb.Message{{}} }), false},
		"a vote":                         {message(raftpb.MsgVote, peerA, 2), true},
		"a vote without term":            {message(raftpb.MsgVote, peerA, 0), false},                                                                         // panic
		"a short context":                {with(message(raftpb.MsgHeartbeatResp, peerA, 2), func(m *raftpb.Message) { m.Context = make([]byte, 7) }), false}, // panic
		"a context":                      {with(message(raftpb.MsgHeartbeatResp, peerA, 2), func(m *raftpb.Message) { m.Context = make([]byte, 8) }), true},
		"a read":                         {reads(raftpb.MsgReadIndex, 0, 1), true},
		"a read with a term":             {reads(raftpb.MsgReadIndex, 2, 1), false}, // panic
		"a read of nothing":              {reads(raftpb.MsgReadIndex, 0, 0), false}, // panic
		"an answer to a read":            {reads(raftpb.MsgReadIndexResp, 2, 1), true},
		"a snapshot":                     {snap(9, 5, &raftpb.ConfState{Voters: []uint64{1, 2}, Learners: []uint64{4}}), true},
		"no snapshot":                    {message(raftpb.MsgSnap, peerA, 5), false},
		"a snapshot of nothing":          {snap(0, 5, &raftpb.ConfState{Voters: []uint64{1, 2}}), false},
		"a snapshot of a term to come":   {snap(9, 6, &raftpb.ConfState{Voters: []uint64{1, 2}}), false},
		"a snapshot without voters":      {snap(9, 5, &raftpb.ConfState{Learners: []uint64{1}}), false},                         // panic
		"a snapshot with a voter twice":  {snap(9, 5, &raftpb.ConfState{Voters: []uint64{1, 2, 1}}), false},                     // panic
		"a snapshot with a half learner": {snap(9, 5, &raftpb.ConfState{Voters: []uint64{1, 2}, Learners: []uint64{2}}), false}, // panic
		"a snapshot with nobody":         {snap(9, 5, &raftpb.ConfState{Voters: []uint64{0, 1}}), false},                        // panic
		"a joint snapshot":               {snap(9, 5, &raftpb.ConfState{Voters: []uint64{1}, VotersOutgoing: []uint64{2}}), false},
	} {
		if err := Check(tt.m, self); (err == nil) != tt.ok || err != nil && !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for typ := range raftpb.MessageType(40) { // what is for a member's own use
		m := with(message(typ, peerA, 2), func(m *raftpb.Message) { m.Entries = []*raftpb.Entry{entry(1, 1, "x")} })
		switch typ {
		case raftpb.MsgHup, raftpb.MsgBeat, raftpb.MsgUnreachable, raftpb.MsgSnapStatus, raftpb.MsgCheckQuorum, raftpb.MsgStorageAppend,
			raftpb.MsgStorageAppendResp, raftpb.MsgStorageApply, raftpb.MsgStorageApplyResp, raftpb.MsgForgetLeader:
			if Check(m, self) == nil {
				t.Errorf("%v from a peer is taken", typ)
			}
		}
	}
}

func fill(ents []*raftpb.Entry) {
	for i := range ents {
		ents[i] = &raftpb.Entry{Data: []byte("context.")}
	}
}

// Messages that are invalid only in the current state of the node.
func TestReceive(t *testing.T) {
	f := newWorld(t, 5, self, peerA, peerB) // the log ends at 8
	f.settle(false)
	hb := func(commit uint64) *raftpb.Message {
		return with(message(raftpb.MsgHeartbeat, peerA, 2), func(m *raftpb.Message) { m.Commit = &commit })
	}
	if err := f.receive(hb(8)); err != nil {
		t.Fatal(err)
	}
	// Entries that have just arrived count.
	f.receive(with(message(raftpb.MsgApp, peerA, 2), func(m *raftpb.Message) {
		m.Index, m.LogTerm, m.Entries = new(uint64(8)), new(uint64(2)), []*raftpb.Entry{entry(9, 2, "x")}
	}))
	if err := f.receive(hb(9)); err != nil {
		t.Error(err)
	}
	var lost *LostLogError
	if err := f.receive(hb(10)); !errors.As(err, &lost) || *lost != (LostLogError{Leader: peerA, Acked: 10, Last: 9}) {
		t.Errorf("a commit index behind the end of the log: %v", err)
	}
	if err := f.receive(with(hb(10), func(m *raftpb.Message) { m.Term = new(uint64(1)) })); err != nil {
		t.Errorf("of a leader that was: %v", err)
	}
	if err := f.receive(message(raftpb.MsgTransferLeader, peerB, 2)); !errors.Is(err, ErrMalformed) {
		t.Errorf("a follower is to hand over: %v", err)
	}
	f.settle(false)

	l := newWorld(t, 5, self, peerA, peerB)
	l.lead() // and the log ends at 9
	ack := func(index uint64) *raftpb.Message {
		return with(message(raftpb.MsgAppResp, peerA, l.term()), func(m *raftpb.Message) { m.Index = &index })
	}
	if err := l.receive(ack(10)); !errors.Is(err, ErrMalformed) {
		t.Errorf("an acknowledgement of what is not there: %v", err)
	}
	if err := l.receive(ack(9)); err != nil {
		t.Error(err)
	}
	l.settle(false)
	round := func(n uint64) *raftpb.Message {
		return with(message(raftpb.MsgHeartbeatResp, peerA, l.term()), func(m *raftpb.Message) {
			m.Context = binary.LittleEndian.AppendUint64(nil, n)
		})
	}
	if err := l.receive(round(1)); !errors.Is(err, ErrMalformed) {
		t.Errorf("an answer to a round that was not begun: %v", err)
	}
	l.n.ReadIndex([]byte("context."))
	l.settle(false)
	if err := l.receive(round(2)); !errors.Is(err, ErrMalformed) {
		t.Errorf("an answer to the round after: %v", err)
	}
	if err := l.receive(round(1)); err != nil {
		t.Error(err)
	}
	if e := l.n.Effects(); len(e.Reads) != 1 || e.Reads[0].Index != 9 {
		t.Errorf("confirmed reads %v", e.Reads)
	}
}

// forge returns a random message that is almost valid.
func forge(r *rand.Rand, w *world) *raftpb.Message {
	number := func() *uint64 {
		v := uint64(r.IntN(14))
		switch r.IntN(60) {
		case 0:
			v = r.Uint64()
		case 1:
			v = math.MaxUint64 - uint64(r.IntN(3))
		case 2:
			return nil
		}
		if r.IntN(3) == 0 {
			v = uint64(w.n.last + ids.Index(r.IntN(3)) - min(w.n.last, 1))
		}
		return &v
	}
	term := func() *uint64 {
		v := w.term()
		if r.IntN(3) == 0 {
			v += uint64(r.IntN(4)) - min(v, 1)
		}
		if r.IntN(20) == 0 {
			return number()
		}
		return &v
	}
	m := &raftpb.Message{Type: raftpb.MessageType(r.IntN(25)).Enum(), To: new(uint64(self)), From: new(uint64(2 + r.IntN(4))), Term: term(),
		Index: number(), LogTerm: term(), Commit: number(), Reject: new(r.IntN(2) == 0), RejectHint: number(), Vote: number()}
	if *m.Type == raftpb.MsgProp || *m.Type == raftpb.MsgReadIndex {
		if r.IntN(4) > 0 {
			m.Term = nil
		}
	}
	switch r.IntN(20) {
	case 0:
		m.From = number()
	case 1:
		m.To = number()
	}
	// After existing entries, as a leader sends.
	if last, _ := w.log.LastIndex(); m.GetIndex() <= last && r.IntN(4) > 0 {
		if t, err := w.log.Term(m.GetIndex()); err == nil {
			m.LogTerm = &t
		}
	}
	if r.IntN(3) == 0 {
		m.Context = binary.LittleEndian.AppendUint64(nil, uint64(r.IntN(6)))[:r.IntN(9)]
		if r.IntN(4) == 0 {
			m.Context = []byte("CampaignTransfer")
		}
	}
	next := m.GetIndex() + 1
	count := r.IntN(4)
	if *m.Type == raftpb.MsgReadIndex || *m.Type == raftpb.MsgReadIndexResp {
		count = 1 - r.IntN(8)/7
	}
	for range count {
		e := &raftpb.Entry{Index: new(next), Term: m.Term, Data: make([]byte, r.IntN(4))}
		switch r.IntN(12) {
		case 3:
			e.Term = term()
		case 0:
			e.Type = raftpb.EntryType(r.IntN(4)).Enum()
		case 1:
			id := uint64(r.IntN(7))
			e.Type, e.Data = raftpb.EntryConfChange.Enum(), changeData(raftpb.ConfChangeType(r.IntN(5)), id, fmt.Sprintf(`{"id":%d,"isLearner":%v}`, id, r.IntN(2) == 0))
		case 2:
			e.Index = number()
		}
		m.Entries = append(m.Entries, e)
		next++
	}
	if *m.Type == raftpb.MsgSnap || r.IntN(10) == 0 {
		cs := &raftpb.ConfState{Voters: []uint64{self, peerA, peerB}, Learners: []uint64{learner}}
		switch r.IntN(20) {
		case 0:
			cs.Voters = append(cs.Voters, uint64(r.IntN(6)))
		case 1:
			cs.Learners = append(cs.Learners, uint64(r.IntN(6)))
		case 2:
			cs.Voters = nil
		case 3:
			cs.VotersOutgoing = []uint64{uint64(r.IntN(6))}
		case 4:
			cs.LearnersNext, cs.AutoLeave = []uint64{uint64(r.IntN(6))}, new(r.IntN(2) == 0)
		}
		m.Snapshot = &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: number(), Term: m.Term, ConfState: cs}}
	}
	return m
}

// play runs the node with peers that send anything.
func play(t testing.TB, seed uint64, steps int) (taken int) {
	r := rand.New(rand.NewPCG(seed, 1))
	voters := []uint64{self, peerA, peerB}
	if r.IntN(4) == 0 {
		voters = voters[:1]
	}
	w := newWorld(t, r.IntN(6), voters...)
	w.settle(false)
	if r.IntN(2) == 0 {
		w.n.Campaign()
	}
	if len(voters) == 3 && r.IntN(2) == 0 {
		w.lead()
	}
	for range steps {
		switch r.IntN(12) {
		case 0:
			w.n.Tick()
		case 1:
			w.n.Campaign()
		case 2:
			w.n.ReadIndex([]byte("context."))
		case 3:
			w.n.Propose([]Entry{{Data: []byte("x")}, {Data: []byte("y")}})
		case 4:
			w.n.Transfer(ids.Member(r.IntN(6)))
		default:
			if w.receive(forge(r, w)) == nil {
				taken++
			}
		}
		if r.IntN(3) > 0 {
			w.settle(r.IntN(4) == 0)
		}
	}
	w.settle(false)
	return taken
}

// No message that can be decoded makes raft panic, in whatever state the node is.
func TestForgedMessages(t *testing.T) {
	taken, seeds := 0, 2000
	if testing.Short() {
		seeds = 300
	}
	for seed := range uint64(seeds) {
		func() {
			defer func() {
				if v := recover(); v != nil {
					t.Errorf("seed %d: %v", seed, v)
					panic(v)
				}
			}()
			taken += play(t, seed, 60)
		}()
	}
	t.Logf("%d forged messages taken in %d runs", taken, seeds)
	if taken < 10*seeds {
		t.Errorf("only %d forged messages were taken in %d runs: they prove nothing", taken, seeds)
	}
}

// The input is a sequence of messages, each with its length in front, that a follower, a
// leader and a candidate get.
func FuzzReceive(f *testing.F) {
	r := rand.New(rand.NewPCG(3, 4))
	w := newWorld(f, 3, self, peerA, peerB)
	for range 60 {
		var all []byte
		for range 4 {
			b, _ := proto.Marshal(forge(r, w))
			all = append(binary.AppendUvarint(all, uint64(len(b))), b...)
		}
		f.Add(all)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var msgs []*raftpb.Message
		for len(b) > 0 && len(msgs) < 8 {
			n, k := binary.Uvarint(b)
			if k <= 0 || n > uint64(len(b)-k) {
				return
			}
			m := &raftpb.Message{}
			if proto.Unmarshal(b[k:][:n], m) != nil {
				return
			}
			m.To = new(uint64(self))
			msgs, b = append(msgs, m), b[k:][n:]
		}
		for role := range 3 {
			w := newWorld(t, 4, self, peerA, peerB)
			w.settle(false)
			switch role {
			case 1:
				w.n.Campaign()
			case 2:
				w.lead()
			}
			for _, m := range msgs {
				w.receive(m)
				w.settle(false)
			}
		}
	})
}

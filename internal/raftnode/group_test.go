package raftnode

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/ids"
)

// group is three nodes with their messages, log writes and runs of apply, each of which is
// processed when the test picks it.
type group struct {
	t       *testing.T
	r       *rand.Rand
	nodes   [3]*Node
	logs    [3]*raft.MemoryStorage
	net     []*raftpb.Message
	writes  [3][]Append
	applies [3][]Apply
	applied [3][]string // what each state machine has taken
	acked   [3]uint64   // and the index of the last
}

func newGroup(t *testing.T, seed uint64) *group {
	g := &group{t: t, r: rand.New(rand.NewPCG(seed, 7))}
	for i := range g.nodes {
		_, st := newNode(t, 1, 2, 3)
		n, err := New(Config{ID: ids.Member(i + 1), ElectionTicks: 10, HeartbeatTicks: 1, PreVote: true, Storage: st, Applied: 1, Logger: quiet{}})
		if err != nil {
			t.Fatal(err)
		}
		g.nodes[i], g.logs[i], g.acked[i] = n, st, 1
	}
	return g
}

// collect collects the effects of a node.
func (g *group) collect(i int) {
	e := g.nodes[i].Effects()
	g.net = append(g.net, e.Send...)
	g.writes[i] = append(g.writes[i], e.Append...)
	g.applies[i] = append(g.applies[i], e.Apply...)
	st := g.nodes[i].State()
	if st.Applied > st.Commit {
		g.t.Fatalf("node %d has applied %d, committed is %d", i+1, st.Applied, st.Commit)
	}
}

func (g *group) answer(i int, ms []*raftpb.Message) {
	for _, m := range ms {
		if ids.Member(m.GetTo()) != g.nodes[i].ID() {
			g.net = append(g.net, m)
		} else if err := g.nodes[i].Step(m); err != nil {
			g.t.Fatal(err)
		}
	}
	g.collect(i)
}

// write makes the oldest write of a node durable.
func (g *group) write(i int) {
	if len(g.writes[i]) == 0 {
		return
	}
	a := g.writes[i][0]
	g.writes[i] = g.writes[i][1:]
	if len(a.Entries) > 0 && !a.MustSync {
		g.t.Fatalf("node %d: entries that need not be durable", i+1)
	}
	if err := g.logs[i].Append(a.Entries); err != nil {
		g.t.Fatal(err)
	}
	if a.HardState != nil {
		if err := g.logs[i].SetHardState(a.HardState); err != nil {
			g.t.Fatal(err)
		}
	}
	g.answer(i, a.Responses)
}

// apply gives the oldest run of a node to its state machine.
func (g *group) apply(i int) {
	if len(g.applies[i]) == 0 {
		return
	}
	a := g.applies[i][0]
	g.applies[i] = g.applies[i][1:]
	for _, e := range a.Entries {
		if e.GetIndex() != g.acked[i]+1 {
			g.t.Fatalf("node %d: entry %d after %d", i+1, e.GetIndex(), g.acked[i])
		}
		g.acked[i]++
		g.applied[i] = append(g.applied[i], fmt.Sprint(e.GetIndex(), e.GetTerm(), string(e.Data)))
	}
	g.answer(i, a.Responses)
}

// deliver delivers or drops a message, in any order.
func (g *group) deliver() {
	if len(g.net) == 0 {
		return
	}
	k := g.r.IntN(len(g.net))
	m := g.net[k]
	g.net = slices.Delete(g.net, k, k+1)
	if g.r.IntN(20) == 0 {
		return
	}
	i := int(m.GetTo() - 1)
	_ = g.nodes[i].Receive(m) // what is out of date is dropped
	g.collect(i)
}

func (g *group) run(steps int) (proposed int) {
	for range steps {
		i := g.r.IntN(3)
		switch g.r.IntN(8) {
		case 0:
			g.nodes[i].Tick()
			g.collect(i)
		case 1:
			if n, _ := g.nodes[i].Propose([]Entry{{Data: fmt.Append(nil, "p", proposed)}, {Data: fmt.Append(nil, "q", proposed)}}); n == 2 {
				proposed++
			}
			g.collect(i)
		case 2, 3:
			g.write(i)
		case 4:
			g.apply(i)
		default:
			g.deliver()
		}
	}
	return proposed
}

// TestGroup runs three nodes with lost and reordered messages and slow disks: all apply the
// same entries, in order and without gaps, and never beyond the commit index.
func TestGroup(t *testing.T) {
	some := 0
	for seed := range uint64(20) {
		g := newGroup(t, seed)
		g.run(6000)
		for i := range g.applied {
			for j := range i {
				n := min(len(g.applied[i]), len(g.applied[j]))
				if !slices.Equal(g.applied[i][:n], g.applied[j][:n]) {
					t.Fatalf("seed %d: nodes %d and %d have applied different entries", seed, i+1, j+1)
				}
			}
			some = max(some, len(g.applied[i]))
		}
	}
	if some < 50 {
		t.Errorf("no node has applied more than %d entries; nothing was tested", some)
	}
}

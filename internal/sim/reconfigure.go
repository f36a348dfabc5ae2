package sim

import (
	"fmt"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/proposal"
	"quorate/internal/replica"
)

// reconfigure changes the membership: it adds voters and learners, promotes learners, and
// removes any member, also the leader. The number of voters stays within two of what the
// cluster began with, or gets a bit lower: sometimes a second change is requested while the
// first is in flight.
func (w *World) reconfigure() {
	var able []*node
	for _, n := range w.nodes {
		if !n.down && n.joined() {
			able = append(able, n)
		}
	}
	if w.changing > 1 || w.changing > 0 && w.rng.IntN(3) > 0 || len(able) == 0 {
		return
	}
	via := able[w.rng.IntN(len(able))]
	var voters []*node
	var learner *node
	for _, x := range via.cluster.Members() {
		n := w.byID[x.ID]
		if n.machine == nil || !n.joined() && !x.IsLearner {
			return // wait until the voter that was added last has caught up
		}
		if x.IsLearner {
			learner = n
		} else {
			voters = append(voters, n)
		}
	}
	least := 3
	switch w.plan.Members {
	case 1:
		// Not less: if the last member but one leaves, and the last one loses its power before
		// it has written that the removal is committed, it needs the vote of the other.
		least = 2
	case 5, 7:
		least = w.plan.Members - 1
	}
	switch {
	case learner != nil && membership.LearnerInSync(via.machine.Applied(), learner.machine.Applied()):
		w.propose(via, "promote", learner, must(membership.PromoteChange(learner.id)))
	case learner != nil && w.rng.IntN(4) == 0:
		w.propose(via, "remove", learner, membership.RemoveChange(learner.id))
	case learner != nil:
	case len(voters) > least+1 || len(voters) > least && w.rng.IntN(2) == 0:
		n := voters[w.rng.IntN(len(voters))]
		w.propose(via, "remove", n, membership.RemoveChange(n.id))
	default:
		x := membership.NewMember([]string{fmt.Sprintf("http://m%d:2380", len(w.nodes))}, w.rng.IntN(2) == 0, w.time())
		n, err := newNode(w, len(w.nodes), x.ID, via.clusterID, nil)
		if err != nil {
			w.fail("new member: %w", err)
			return
		}
		w.nodes, w.byID[x.ID] = append(w.nodes, n), n
		n.start()
		w.propose(via, "add", n, must(membership.AddChange(x)))
	}
}

func must(cc *raftpb.ConfChange, err error) *raftpb.ConfChange {
	if err != nil {
		panic(err) // the simulator's own members can be encoded
	}
	return cc
}

// propose proposes a change at via and repeats that until there is an answer, as production
// does.
func (w *World) propose(via *node, what string, n *node, cc *raftpb.ConfChange) {
	id := via.ids.Next()
	cc.Id = &id
	data, err := proto.Marshal(cc)
	if err != nil {
		w.fail("encode change: %w", err)
		return
	}
	p := &proposal.Pending{ID: id, Data: data, ConfChange: true}
	if via.props.Admit(p, w.time(), requestTimeout) != nil {
		return
	}
	w.changing++
	w.log("%s %d at %d", what, n.index, via.index)
	over := false
	via.wait(func() bool {
		select {
		case res := <-p.Done():
			over = true
			w.changing = max(0, w.changing-1) // a restore may have reset it
			w.log("%s %d: %v", what, n.index, res.Err)
			if res.Err == nil {
				w.changes[what]++
			}
			return true
		default:
			return false
		}
	})
	var offer func()
	offer = func() {
		if !over {
			via.step(replica.Input{Propose: []*proposal.Pending{p}})
			via.later(500*time.Millisecond, offer)
		}
	}
	offer()
}

// mayChange is the gate of the core, as in production.
func (n *node) mayChange(cc *raftpb.ConfChange, inSync func(id ids.Member) bool) error {
	up := func(id ids.Member) bool {
		x := n.w.byID[id]
		return x != nil && !x.down && !n.w.cut[[2]int{x.index, n.index}]
	}
	return n.cluster.MayPropose(cc, membership.Rules{Strict: n.w.strict, Connected: up, Reachable: up, InSync: inSync})
}

// joined reports whether the member has applied its own addition to the cluster.
func (n *node) joined() bool {
	_, ok := n.cluster.Member(n.id)
	return ok
}

// noteConfig compares the configuration of a member with that of others at the same index,
// with the one in its store, and with the one that raft uses.
func (n *node) noteConfig() {
	w, index := n.w, n.machine.Applied()
	have := configText(n.machine.ConfState())
	if want, ok := w.configs[index]; !ok {
		w.configs[index] = have
	} else if have != want {
		w.fail("member %d has %s at index %d, another member has %s", n.index, have, index, want)
	}
	// A member that gets the store in a snapshot uses the configuration in it.
	if cs, err := membership.LoadConfState(n.machine.Engine()); err != nil || configText(cs) != have {
		w.fail("member %d has %s at index %d, its store has %s: %v", n.index, have, index, configText(cs), err)
	}
	for _, id := range n.cluster.VoterIDs() {
		if at, gone := w.gone[id]; gone && at <= index {
			w.fail("member %d has the voter %s at index %d, which was removed at %d", n.index, id, index, at)
		}
	}
	if n.accepted > 0 {
		return // raft is ahead: it already has the configuration of the snapshot
	}
	st := n.core().Node().Status()
	cs := &raftpb.ConfState{Voters: st.Config.Voters[0].Slice()}
	for id := range st.Config.Learners {
		cs.Learners = append(cs.Learners, id)
	}
	if raft := configText(cs); raft != have {
		w.fail("member %d has %s at index %d, its raft uses %s", n.index, have, index, raft)
	}
}

func configText(cs *raftpb.ConfState) string {
	voters, learners := slices.Clone(cs.GetVoters()), slices.Clone(cs.GetLearners())
	slices.Sort(voters)
	slices.Sort(learners)
	return fmt.Sprintf("voters %x learners %x", voters, learners)
}

// members returns the members of the newest configuration.
func (w *World) members() (out []*node) {
	var latest *node
	for _, n := range w.nodes {
		if !n.down && (latest == nil || n.machine.Applied() > latest.machine.Applied()) {
			latest = n
		}
	}
	if latest == nil {
		return nil
	}
	for _, x := range latest.cluster.Members() {
		out = append(out, w.byID[x.ID])
	}
	return out
}

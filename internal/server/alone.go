package server

import (
	"context"
	"sync"
	"sync/atomic"

	"go.etcd.io/raft/v3"

	"quorate/internal/membership"
)

// A read needs a round of the core because another member may have acknowledged a
// write that is not applied here. A member that is the whole cluster acknowledges all
// writes itself, and after it has applied them, so what is applied is enough to read.
// What has to be sure is that it is alone now, and that it has applied what anybody
// acknowledged before it was.

// solitude is the proof that this member has been the whole cluster since it became
// leader in a term, or since the last change of the membership.
type solitude struct {
	term    uint64
	members *membership.Member // the list of members, which each change replaces
}

// solo keeps the proof.
type solo struct {
	cluster *membership.Cluster
	state   *raftState
	proof   atomic.Pointer[solitude]
	proving sync.Mutex
}

// now is what a proof would be about; not ok if there is nothing to prove.
func (a *solo) now() (s solitude, ok bool) {
	members := a.cluster.Members()
	if len(members) != 1 || members[0].ID != a.state.id || !a.state.isLeader() {
		return s, false
	}
	return solitude{a.state.Term(), &members[0]}, true
}

// proved reports whether a read needs no round. A vote for another member changes the
// term that is looked at before it is durable, and so before it is sent.
func (a *solo) proved() bool {
	p := a.proof.Load()
	if p == nil {
		return false
	}
	s, ok := a.now()
	return ok && s == *p
}

// prove finds out whether reads need a round from now on. Raft itself must have no
// other member; what was committed until then, perhaps with one, is applied when a
// round has passed that began afterwards.
func (a *solo) prove(ctx context.Context, status func(context.Context) (raft.Status, bool), round func(context.Context) error) {
	before, ok := a.now()
	if !ok || !a.proving.TryLock() {
		return
	}
	defer a.proving.Unlock()
	st, ok := status(ctx)
	if !ok || st.RaftState != raft.StateLeader || st.GetTerm() != before.term || len(st.Config.Voters.IDs()) != 1 ||
		len(st.Config.Learners) > 0 || len(st.Config.LearnersNext) > 0 {
		return
	}
	if round(ctx) != nil {
		return
	}
	if after, ok := a.now(); ok && after == before {
		a.proof.Store(&after)
	}
}

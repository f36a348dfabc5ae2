package server

import (
	"context"
	"sync"
	"sync/atomic"

	"go.etcd.io/raft/v3"

	"quorate/internal/ids"
	"quorate/internal/membership"
)

// A read needs a round of the core because another member may have acknowledged a write
// that is not applied here. A member that is the whole cluster acknowledges all writes
// itself, after applying them, so the applied state is recent enough to read. Two
// things must be certain: that it is alone now, and that it has applied all writes that
// were acknowledged before it became so.

// solitude is the proof that this member has been the only one since it became leader
// in a term, or since the last membership change.
type solitude struct {
	term    ids.Term
	members *membership.Member // the list of members, which each change replaces
}

// solo holds the proof.
type solo struct {
	cluster *membership.Cluster
	state   *raftState
	proof   atomic.Pointer[solitude]
	proving sync.Mutex
}

// now returns the proof to be established; ok is false if this member is not alone.
func (a *solo) now() (s solitude, ok bool) {
	members := a.cluster.Members()
	if len(members) != 1 || members[0].ID != a.state.id || !a.state.isLeader() {
		return s, false
	}
	return solitude{a.state.Term(), &members[0]}, true
}

// proved reports whether reads need no round. A vote for another member changes the term
// that is compared here before the vote is durable, and so before it is sent.
func (a *solo) proved() bool {
	p := a.proof.Load()
	if p == nil {
		return false
	}
	s, ok := a.now()
	return ok && s == *p
}

// prove finds out whether reads need no round from now on. Raft must have no other
// member either. Once a round that began after that has succeeded, everything committed
// before it, perhaps with another member, is applied.
func (a *solo) prove(ctx context.Context, status func(context.Context) (raft.Status, bool), round func(context.Context) error) {
	before, ok := a.now()
	if !ok || !a.proving.TryLock() {
		return
	}
	defer a.proving.Unlock()
	st, ok := status(ctx)
	if !ok || st.RaftState != raft.StateLeader || ids.Term(st.GetTerm()) != before.term || len(st.Config.Voters.IDs()) != 1 ||
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

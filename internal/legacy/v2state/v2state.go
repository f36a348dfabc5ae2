// Package v2state applies the log to the tree of the v2 API: requests to it, and the
// changes of the membership, which etcd up to 3.5 stores in the tree.
//
// In: entries of the log, in order, and the membership after each of them. Out: batches of
// the engine, and results of requests. Always true: all members hold the same tree at the
// same entry, whether they serve that API or not. It belongs to the goroutine that applies;
// Tree may be read by other goroutines.
package v2state

import (
	"strings"
	"time"

	"quorate/internal/command"
	"quorate/internal/engine"
	"quorate/internal/legacy/v2request"
	"quorate/internal/legacy/v2store"
	"quorate/internal/membership"
)

// The tree counts the changes of the membership in its index. Members of a cluster below
// 3.6 all count from the first entry on, or from a dump of the tree. Members of later
// clusters may have received a state without the tree, from a member of etcd that does not
// keep it: there, as long as no client has written to the tree, the index is computed from
// the membership alone (base), so that all members begin at the same index.

// State is the tree that results from the log.
type State struct {
	tree    *v2store.Store
	cluster *membership.Cluster
}

// Load opens the tree in eng, in which the entries up to index have been applied and whose
// membership is in cluster.
func Load(eng engine.Engine, index uint64, cluster *membership.Cluster, now func() time.Time) (*State, error) {
	s := &State{cluster: cluster}
	var err error
	// Members of 3.5 reject it, and all must decide alike.
	if s.tree, err = v2store.Load(eng, v2store.Options{Now: now, RefuseDirUpdate: s.keptByAll}); err != nil {
		return nil, err
	}
	if index > 0 && !s.tree.Written() && (!s.keptByAll() || s.tree.Index() == 0) {
		s.tree.Rebase(nil, s.base())
	}
	return s, nil
}

// Tree returns the tree.
func (s *State) Tree() *v2store.Store { return s.tree }

func (s *State) keptByAll() bool { return s.cluster.Version().Less(membership.FirstWithoutV2) }

// base returns the index that results from the membership alone if every change in it
// happened once.
func (s *State) base() uint64 {
	n := uint64(4 * len(s.cluster.RemovedIDs()))
	for _, x := range s.cluster.Members() {
		n++
		if len(x.ClientURLs) > 0 {
			n++
		}
	}
	if s.cluster.Version().Decided() {
		n++
	}
	return n
}

// Step counts n changes of the membership, which has already changed.
func (s *State) Step(b engine.Batch, n int) {
	if !s.tree.Written() && !s.keptByAll() {
		s.tree.Rebase(b, s.base())
		return
	}
	s.tree.Step(b, n)
}

// takes reports whether a request concerns the tree. The others are what members of etcd
// 3.5 publish about themselves, and reads.
func takes(r *v2request.Request) bool {
	switch r.Method {
	case "SYNC":
		return true
	case "PUT", "POST", "DELETE":
		return r.Path != "/0" && !strings.HasPrefix(r.Path, "/0/")
	}
	return false
}

// Read returns the request to the tree in an entry, nil if the entry holds none.
func Read(entry []byte) (command.Foreign, error) {
	r, _, err := v2request.Parse(entry)
	if err != nil || r == nil || !takes(r) {
		return nil, err
	}
	return r, nil
}

// Result is the outcome of a request.
type Result struct {
	ID   uint64
	Op   string // its name in metrics
	Resp any    // a *v2store.Event, or nil
	Err  error
}

// Apply applies a request that Read accepts: a write to the tree, or the removal of expired nodes.
// Alarms do not block it, as in etcd; the tree has its own bounds.
func (s *State) Apply(b engine.Batch, f command.Foreign) Result {
	r, ok := f.(*v2request.Request)
	if !ok {
		return Result{Op: "unknown", Err: command.ErrUnknown}
	}
	res := Result{ID: r.ID, Op: r.Method}
	ev, err := s.tree.Apply(b, r)
	if res.Err = err; ev != nil {
		res.Resp = ev
	}
	return res
}

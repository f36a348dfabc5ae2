package apply

import (
	"strings"

	"quorate/internal/engine"
	"quorate/internal/legacy/v2request"
	"quorate/internal/legacy/v2store"
	"quorate/internal/membership"
)

// The tree of the v2 API counts the changes of the membership, which etcd up to 3.5
// keeps in it, in its index. Members of a cluster below 3.6 all count from the first
// entry on, or from a dump of the tree. Those of later clusters may have come by a state
// without the tree, from a member of etcd that keeps none: there, as long as nobody
// has written to it, the index is what the membership alone makes of it (v2Base), so that
// all members begin at the same.

// V2 returns the tree of the v2 API.
func (m *Machine) V2() *v2store.Store { return m.v2 }

func (m *Machine) keptByAll() bool { return m.cluster.Version().Less(membership.FirstWithoutV2) }

// loadV2 opens the tree; index is what the engine has applied.
func (m *Machine) loadV2(index uint64) (err error) {
	m.v2, err = v2store.Load(m.eng, v2store.Options{Now: m.opts.Now,
		// Members of 3.5 refuse it, and all must decide alike.
		RefuseDirUpdate: m.keptByAll})
	if err != nil {
		return err
	}
	if index > 0 && !m.v2.Written() && (!m.keptByAll() || m.v2.Index() == 0) {
		m.v2.Rebase(nil, m.v2Base())
	}
	return nil
}

// v2Base is the index that the membership alone leads to if everything in it
// happened once.
func (m *Machine) v2Base() uint64 {
	n := uint64(4 * len(m.cluster.RemovedIDs()))
	for _, x := range m.cluster.Members() {
		n++
		if len(x.ClientURLs) > 0 {
			n++
		}
	}
	if m.cluster.Version().Decided() {
		n++
	}
	return n
}

// stepV2 counts n steps of the membership, which has changed by now.
func (m *Machine) stepV2(b engine.Batch, n int) {
	if !m.v2.Written() && !m.keptByAll() {
		m.v2.Rebase(b, m.v2Base())
		return
	}
	m.v2.Step(b, n)
}

// forV2 reports whether a v2 request is one for the tree. The others are what members
// of etcd 3.5 tell about themselves, and reads.
func forV2(r *v2request.Request) bool {
	switch r.Method {
	case "SYNC":
		return true
	case "PUT", "POST", "DELETE":
		return r.Path != "/0" && !strings.HasPrefix(r.Path, "/0/")
	}
	return false
}

// v2Request applies a write to the tree, or a sweep of what has expired. Alarms do not
// hold it up, as in etcd; the tree has bounds of its own.
func (m *Machine) v2Request(b engine.Batch, e *Entry, r *v2request.Request, out *Outcome) {
	start := m.opts.Now()
	res := Result{ID: r.ID}
	ev, err := m.v2.Apply(b, r)
	if ev != nil {
		res.Resp = ev
	}
	if err != nil {
		res.Err = err
	}
	observeV2(r.Method, err == nil, m.opts.Now().Sub(start))
	if e.Local {
		out.Results = append(out.Results, res)
	}
}

package sim

import (
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/internal/ids"
	"quorate/internal/lease"
	"quorate/internal/proposal"
	"quorate/internal/replica"
)

const (
	minTTL = 2 // seconds
	// maxDrift is the greatest relative error of a member's clock rate.
	maxDrift = 0.02
)

// leaseRules holds what clients may rely on for each lease.
type leaseRules struct {
	order   []lease.ID // in the order of the requests
	by      map[lease.ID]*leaseRule
	expired int // by the leader
	renewed int
	asked   int // for the remaining TTL
}

type leaseRule struct {
	ttl time.Duration
	// safe is the time before which the lease must not expire: its TTL after the grant or
	// after the last acknowledged keepalive, counted from the request, on the fastest
	// allowed clock.
	safe     time.Duration
	byClient bool // a client has requested its revocation
	renewals int  // made by leaders
	// given is when the newest leader ends the lease if it is not renewed there; 0 if it has been.
	given time.Duration
	giver int
	seen  struct {
		term     ids.Term
		at       time.Duration
		left     int64
		renewals int
	}
}

func (r *leaseRules) grant(w *World, id lease.ID, ttl int64) {
	x := &leaseRule{ttl: time.Duration(ttl) * time.Second}
	x.safe = w.now + x.least()
	r.order = append(r.order, id)
	r.by[id] = x
}

// least returns the shortest real time that the TTL may take, on the fastest allowed clock.
func (x *leaseRule) least() time.Duration { return time.Duration(float64(x.ttl) * (1 - maxDrift)) }

func (r *leaseRules) revoke(id lease.ID) {
	if x := r.by[id]; x != nil {
		x.byClient = true
	}
}

// applied checks a revocation when the first member applies it.
func (r *leaseRules) applied(w *World, req *pb.InternalRaftRequest) {
	if req.LeaseRevoke == nil {
		return
	}
	id := req.LeaseRevoke.ID
	_, there := w.model.leases[lease.ID(id)]
	x := r.by[lease.ID(id)]
	if !there || x == nil || x.byClient {
		return
	}
	r.expired++
	if w.now < x.safe {
		w.fail("lease %v with a TTL of %v expires %v too early", id, x.ttl, x.safe-w.now)
	}
}

// time returns the time on the clock of the member.
func (n *node) time() time.Time { return n.w.time().Add(time.Duration(float64(n.w.now) * n.drift)) }

// wall returns the wall clock of the member, which may jump.
func (n *node) wall() time.Time { return n.time().Add(n.jump) }

func (n *node) leads() bool { return n.core().Node().State().Lead == n.id }

// keepLeases does the leader's periodic work on leases, as production does: it proposes
// revocations of expired leases and checkpoints.
func (n *node) keepLeases() {
	if !n.leads() {
		return
	}
	term := n.core().Node().State().Term
	for _, id := range n.lessor.Expired(n.time(), lease.MaxExpired) {
		n.w.log("expire %v at %d", id, n.index)
		n.later(n.w.hesitation(), func() { n.proposeIn(term, lease.RevokeOf(id)) })
	}
	if record := n.lessor.RecordDue(n.time()); record != nil {
		n.w.log("record %d leases at %d", len(record.LeaseCheckpoint.Checkpoints), n.index)
		n.inOrder(func() { n.proposeIn(term, record) })
		n.w.did["checkpoint"]++
	}
}

// hesitation is the time between a decision of a leader and its proposal. In production the
// decision waits for other proposals and for the log, and meanwhile another member may lead.
func (w *World) hesitation() time.Duration {
	if w.rng.IntN(4) > 0 {
		return 0
	}
	return w.between(0, 3*electionTicks*tick)
}

// inOrder runs do after a hesitation, and after what it was called with before: what is decided
// about checkpoints enters the log in that order.
func (n *node) inOrder(do func()) {
	n.handed = max(n.handed, n.w.now+n.w.hesitation())
	n.later(n.handed-n.w.now, do)
}

// proposeOwn proposes a request of the member itself. It returns nil if the request was not
// admitted.
func (n *node) proposeOwn(r *pb.InternalRaftRequest) *proposal.Pending { return n.proposeIn(0, r) }

// proposeIn is proposeOwn for what the member has decided as the leader of a term.
func (n *node) proposeIn(term ids.Term, r *pb.InternalRaftRequest) *proposal.Pending {
	p, err := n.pending(r, n.w.root())
	if err != nil {
		n.w.fail("encode %v: %w", r, err)
		return nil
	}
	p.Term = term
	if n.props.Admit(p, n.w.time(), requestTimeout) != nil {
		return nil
	}
	n.step(replica.Input{Propose: []*proposal.Pending{p}})
	return p
}

// keepAlive renews a lease, at the leader or through a follower.
func (c *worker) keepAlive(id lease.ID) {
	w := c.w
	x := w.leases.by[id]
	via := w.nodes[w.rng.IntN(len(w.nodes))]
	if x == nil || via.down || !via.joined() {
		c.pause()
		return
	}
	asked := w.now
	acked := func() {
		w.did["keepalive"]++
		w.leases.renewed++
		w.log("worker %d keepalive %v", c.id, id)
		x.safe = max(x.safe, asked+x.least())
		x.checkGiven(w, id)
	}
	if via.leads() {
		via.renew(id, x, acked)
	} else if to := w.byID[via.core().Node().State().Lead]; to != nil {
		w.did["forwarded keepalive"]++
		w.after(w.between(w.faults.MinDelay, w.faults.MaxDelay), func() {
			if to.down || w.cut[[2]int{via.index, to.index}] || !to.leads() {
				return
			}
			to.renew(id, x, func() {
				w.after(w.between(w.faults.MinDelay, w.faults.MaxDelay), func() {
					if !via.down && !w.cut[[2]int{to.index, via.index}] {
						acked()
					}
				})
			})
		})
	}
	c.pause() // it does not wait for the answer
}

// renew is one renewal at the leader. If the lease has a checkpoint, renew resets that first.
func (n *node) renew(id lease.ID, x *leaseRule, done func()) {
	if n.lessor.Exists(id) {
		n.checkTimeToLive(id, x)
	}
	term := n.core().Node().State().Term
	r, err := n.lessor.Renew(n.time(), id)
	switch {
	case err != nil, r.Wait != nil:
	case r.Reset:
		n.w.did["reset of a checkpoint"]++
		clearing, req := n.lessor.Clear(id)
		n.inOrder(func() { n.clear(id, x, term, clearing, req, done) })
	default:
		x.renewals++
		x.given = 0
		done()
	}
}

// clear proposes to clear the checkpoints of a lease, and renews it when that is applied.
func (n *node) clear(id lease.ID, x *leaseRule, term ids.Term, clearing lease.Clearing, req *pb.InternalRaftRequest, done func()) {
	p := n.proposeIn(term, req)
	if p == nil || n.down {
		return
	}
	n.wait(func() bool {
		select {
		case res := <-p.Done():
			if res.Err == nil && !n.down {
				n.lessor.Cleared(clearing)
				n.later(0, func() {
					if n.leads() {
						n.renew(id, x, done)
					}
				})
			}
			return true
		default:
			return false
		}
	})
}

// checkGiven checks what a new leader gives the leases: not less than what clients were told.
func (n *node) checkGiven() {
	for _, id := range n.w.leases.order {
		x := n.w.leases.by[id]
		st, err := n.lessor.TimeToLive(n.time(), id, false)
		if err != nil {
			continue
		}
		x.given, x.giver = n.w.now+time.Duration(float64(st.TTL)*float64(time.Second)/(1+n.drift)), n.index
		x.checkGiven(n.w, id)
	}
}

func (x *leaseRule) checkGiven(w *World, id lease.ID) {
	if x.given != 0 && x.given < x.safe {
		w.fail("leader %d ends lease %v with a TTL of %v %v too early, unless it is renewed", x.giver, id, x.ttl, x.safe-x.given)
	}
}

// checkTimeToLive asks a leader for the remaining TTL: within a term it only decreases,
// unless the lease is renewed.
func (n *node) checkTimeToLive(id lease.ID, x *leaseRule) {
	st, err := n.lessor.TimeToLive(n.time(), id, true)
	if err != nil {
		return
	}
	w, term := n.w, n.core().Node().State().Term
	w.leases.asked++
	if limit := int64((x.ttl + electionTicks*tick) / time.Second); st.TTL > limit || st.GrantedTTL != int64(x.ttl/time.Second) {
		w.fail("%d s of %d s are left of lease %v with a TTL of %v", st.TTL, st.GrantedTTL, id, x.ttl)
	}
	if s := &x.seen; s.term == term && s.renewals == x.renewals {
		if most := s.left - int64((w.now-s.at)/time.Second) + 1; st.TTL > most {
			w.fail("%d s are left of lease %v, %v ago it were %d s, and it was not renewed", st.TTL, id, w.now-s.at, s.left)
		}
	}
	x.seen.term, x.seen.at, x.seen.left, x.seen.renewals = term, w.now, st.TTL, x.renewals
	if n.machine.Applied() == w.model.index {
		var keys [][]byte
		for _, kv := range w.model.at(w.model.rev, "", "\x00") {
			if lease.ID(kv.Lease) == id {
				keys = append(keys, kv.Key)
			}
		}
		if !slices.EqualFunc(st.Keys, keys, slices.Equal) {
			w.fail("the keys %q are on lease %v at member %d, the model says %q", st.Keys, id, n.index, keys)
		}
	}
}

// checkLeasesEnd waits until all leases have expired.
func (w *World) checkLeasesEnd() {
	longest := 0 * time.Second
	for _, id := range w.leases.order {
		longest = max(longest, w.leases.by[id].ttl)
	}
	if !w.runUntil(2*longest+30*time.Second, func() bool { return len(w.model.leases) == 0 }) {
		w.fail("%d leases have not expired although no client renews them", len(w.model.leases))
	}
}

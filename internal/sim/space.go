package sim

import (
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/internal/apply"
	"quorate/internal/autocompact"
	"quorate/internal/ids"
)

// refuses reports whether a member that is over its quota does not admit a request, and
// raises the alarm then, as package server does.
func (n *node) refuses(r *pb.InternalRaftRequest) bool {
	if cost := apply.Cost(r); cost == 0 || !n.machine.OverQuota(cost) {
		return false
	}
	n.w.did["write over the quota"]++
	n.raiseNoSpace()
	return true
}

// raiseNoSpace proposes the alarm that this member's store has reached its quota, once at a
// time.
func (n *node) raiseNoSpace() {
	for _, a := range n.machine.Alarms() {
		if ids.Member(a.MemberID) == n.id && a.Alarm == pb.AlarmType_NOSPACE {
			return
		}
	}
	if n.alarmRaised {
		return
	}
	n.alarmRaised = true
	n.later(0, func() {
		p := n.proposeOwn(&pb.InternalRaftRequest{Alarm: &pb.AlarmRequest{MemberID: uint64(n.id), Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE}})
		if p == nil || n.down {
			n.alarmRaised = false
			return
		}
		n.wait(func() bool {
			select {
			case res := <-p.Done():
				n.alarmRaised = false
				if res.Err == nil {
					n.w.did["alarm of a member"]++
				}
				return true
			default:
				return false
			}
		})
	})
}

// termBegun checks what it reports: this member leads, and an entry of its term is applied.
func (n *node) termBegun() {
	if !n.lessor.IsPrimary() && n.leads() {
		n.w.fail("member %d leads and has begun its term, and does not expire leases", n.index)
	}
	n.w.did["term"]++
	n.checkGiven()
}

// compactNowAndThen compacts as the policy decides: on the leader only, but all members
// observe the revisions. What is younger than the retention stays.
func (n *node) compactNowAndThen() {
	keep := n.w.set.Retention
	if keep == 0 {
		return
	}
	policy := autocompact.Retention{Period: keep}.Policy(n.time(), n.machine.KV().Rev())
	n.every(policy.Interval, func() {
		if n.leads() {
			if rev, due := policy.Due(n.time(), n.machine.KV().Rev()); due {
				n.checkRetention(rev, keep)
				if p := n.proposeOwn(&pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: int64(rev)}}); p != nil && !n.down {
					n.wait(func() bool {
						select {
						case res := <-p.Done():
							if res.Err == nil && !n.down {
								n.w.did["automatic compaction"]++
								policy.Compacted(n.time(), rev)
							}
							return true
						default:
							return false
						}
					})
				}
			}
		}
		if !n.down {
			policy.Record(n.machine.KV().Rev())
		}
	})
}

// checkRetention fails if a compaction at rev would take what was current less than the
// retention ago, on the fastest allowed clock and up to one interval.
func (n *node) checkRetention(rev ids.Revision, keep time.Duration) {
	since := n.w.now - time.Duration(float64(keep)*(1-2*maxDrift))
	for i := len(n.w.revs) - 1; i >= 0; i-- {
		if x := n.w.revs[i]; x.at <= since {
			if rev > x.rev {
				n.w.fail("member %d compacts at revision %d; %v ago it was at %d, and the retention is %v", n.index, rev, n.w.now-since, x.rev, keep)
			}
			return
		}
	}
}

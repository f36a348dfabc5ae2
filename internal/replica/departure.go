package replica

import (
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/ids"
)

// If a leader is removed while it leads, the others notice only after an election
// timeout, and the proposals that followers have forwarded to it are lost: their clients
// wait for the whole request timeout. So the removal of the leader is not proposed until
// another member leads. The member that is asked for the removal takes care of that. A
// leader transfers leadership, whether a client asked it or a follower that does not know
// this rule (an etcd member). A follower asks the leader, of either kind, to transfer
// leadership to it.
//
// Proposals in flight to a leader that is gone all the same, or that drops them during a
// leadership transfer, as etcd does, are lost silently. Whatever the old leader accepted
// precedes the first entry of the next leader in the log. So a while after the next
// leader is known, the callers that are still waiting can be failed.

// departure is the core's policy for leaders that leave.
type departure struct {
	// patience is how long a removal waits before it is proposed anyway.
	patience time.Duration
	leader   ids.Member // the leader whose removal waits, 0 if none
	until    time.Time
	// settling is the number of ticks that the removal still waits after another member
	// leads. The old leader forwards what others have sent it, and its messages are
	// accepted until it is removed.
	settling int
	followed time.Time // when the current leader became known; zero if no earlier request is waiting
	errLost  error
}

// settleTicks is one tick to learn the leader, one to forward, and one to arrive.
const settleTicks = 3

// ledBy records the current leader, raft.None if it is unknown.
func (d *departure) ledBy(now time.Time, lead ids.Member) {
	if lead == ids.NoMember {
		return
	}
	if d.leader != ids.NoMember && d.leader != lead {
		d.settling = settleTicks
	}
	d.leader, d.followed = ids.NoMember, now
}

// tick counts down settling.
func (d *departure) tick(ticks int) { d.settling = max(0, d.settling-ticks) }

// failLost fails the requests that were lost with a former leader.
func (c *Core) failLost(now time.Time) {
	d := &c.departure
	if d.followed.IsZero() || now.Sub(d.followed) < d.patience {
		return
	}
	c.props.FailHanded(d.followed, d.errLost)
	d.followed = time.Time{}
}

// awaitsHandOver reports whether a membership change has to wait because it removes the
// leader, and starts the leadership transfer. It stops waiting after patience: it may be
// that no other member is able to lead.
func (c *Core) awaitsHandOver(now time.Time, change []byte) bool {
	d := &c.departure
	if d.settling > 0 {
		return true
	}
	lead := c.node.Lead()
	if lead == ids.NoMember || removedBy(change) != lead {
		return false
	}
	if d.leader == lead && now.Before(d.until.Add(d.patience)) {
		return now.Before(d.until)
	}
	to := c.node.Heir()
	if to == ids.NoMember {
		return false
	}
	d.leader, d.until = lead, now.Add(d.patience)
	c.node.Transfer(to)
	return d.patience > 0
}

// removedBy returns the id of the member that an encoded membership change removes, 0 if
// it is no removal.
func removedBy(change []byte) ids.Member {
	var cc raftpb.ConfChange
	if err := proto.Unmarshal(change, &cc); err != nil || cc.GetType() != raftpb.ConfChangeRemoveNode {
		return ids.NoMember
	}
	return ids.Member(cc.GetNodeId())
}

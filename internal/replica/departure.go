package replica

import (
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// A leader that is removed while it leads leaves the others to find out by an
// election timeout, and proposals that followers have sent to it are lost with
// it: their clients wait for the whole request timeout. So the removal of the
// leader is not proposed before another member leads. Whoever is asked to remove
// it sees to that: the leader itself hands over, whether it was asked by a client
// or by a follower that knows nothing of this (one of etcd), and a follower has
// itself made leader, whatever kind of member leads.

//
// What was under way to a leader that has gone all the same, or that gave it up
// while it handed over, as etcd's do, is lost without a word. What it had taken on
// comes before the first entry of the next leader, so soon after that is known, those
// who still wait can be told.

// departure is what the core does about leaders that go.
type departure struct {
	// patience is how long a removal waits before it is proposed all the same.
	patience time.Duration
	leader   uint64 // whose removal waits, 0 if none does
	until    time.Time
	// settling are the ticks for which it waits after another member leads: the
	// former leader passes on what the others have sent it, and is heard until it
	// is removed.
	settling int
	followed time.Time // since when the present leader is known; zero when nobody waits from before
	errLost  error
}

// settleTicks is one tick to learn who leads, one to pass on, and one to arrive.
const settleTicks = 3

// ledBy notes who leads now, raft.None if nobody is known to.
func (d *departure) ledBy(now time.Time, lead uint64) {
	if lead == raft.None {
		return
	}
	if d.leader != raft.None && d.leader != lead {
		d.settling = settleTicks
	}
	d.leader, d.followed = raft.None, now
}

// tick lets the time pass that a removal waits in vain.
func (d *departure) tick(ticks int) { d.settling = max(0, d.settling-ticks) }

// failLost ends the requests that a former leader has taken with it.
func (c *Core) failLost(now time.Time) {
	d := &c.departure
	if d.followed.IsZero() || now.Sub(d.followed) < d.patience {
		return
	}
	c.props.FailHanded(d.followed, d.errLost)
	d.followed = time.Time{}
}

// awaitsHandOver reports whether a membership change has to wait because it
// removes the leader, and lets that one hand over. It gives up after a while, as
// nobody else may be able to lead.
func (c *Core) awaitsHandOver(now time.Time, change []byte) bool {
	d := &c.departure
	if d.settling > 0 {
		return true
	}
	lead := c.node.Lead()
	if lead == raft.None || removedBy(change) != lead {
		return false
	}
	if d.leader == lead && now.Before(d.until.Add(d.patience)) {
		return now.Before(d.until)
	}
	to := c.node.Heir()
	if to == raft.None {
		return false
	}
	d.leader, d.until = lead, now.Add(d.patience)
	c.node.Transfer(to)
	return d.patience > 0
}

// removedBy returns the member that an encoded membership change removes, 0 if it
// removes none.
func removedBy(change []byte) uint64 {
	var cc raftpb.ConfChange
	if err := proto.Unmarshal(change, &cc); err != nil || cc.GetType() != raftpb.ConfChangeRemoveNode {
		return raft.None
	}
	return cc.GetNodeId()
}

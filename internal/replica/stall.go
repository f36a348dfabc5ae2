package replica

import (
	"time"

	"go.etcd.io/raft/v3"

	"quorate/internal/ids"
	"quorate/internal/metrics"
)

// A log write that hangs does not stop consensus: raft sends entries to the others before
// they are durable here, and a quorum of the others commits without this disk. Apply does
// stop, because raft hands out an entry only once it is in the local log, so callers on
// this member get no answer. Two things are done about that. A leader transfers leadership
// to a voter whose disk is known to work, so that the cluster does not depend on a member
// that is about to fail. And on any member whose log write hangs while the others make
// progress, requests time out within two election timeouts instead of the whole request
// timeout, so that clients turn to another member.

// stallPolicy is the core's policy for a log write that hangs.
type stallPolicy struct {
	after, limit time.Duration
	avoid        ids.Member // the voter that did not become leader when it was last asked to
}

// Stall reports what the core did about a log write that hangs.
type Stall struct {
	// HandOver is the voter that leadership is transferred to, 0 if no transfer begins now.
	HandOver ids.Member
	// Alone is set on a leader that cannot be replaced: too few of the others have
	// shown that their disks still work.
	Alone bool
}

// tick advances the time of raft and of the requests that wait.
func (c *Core) tick(now time.Time, in Input) (s Stall) {
	stalled := c.stall.after > 0 && in.LogStall > c.stall.after
	leading := stalled && c.node.Leading()
	// A member that cannot make its own vote durable must not win an election with the
	// votes of others, so raft gets no ticks.
	for range in.Ticks {
		if !stalled || leading {
			c.node.Tick()
		}
	}
	switch {
	case in.Ticks == 0:
		return s
	case !stalled:
		c.stall.avoid = ids.NoMember
		return s
	case leading && c.node.Transferring() == raft.None:
		if s = c.handOver(); s.Alone {
			return s // no other member could serve these requests either
		}
	}
	c.props.FailOlder(now, c.stall.limit, c.errRead)
	failed, more := c.reads.FailOlder(now, c.stall.limit, c.errRead)
	metrics.ServerSlowReadIndexesTotal.Add(float64(failed))
	c.readsWait = c.readsWait || more
	return s
}

func (c *Core) handOver() Stall {
	to := c.node.Successor(c.stall.avoid)
	if to == ids.NoMember {
		return Stall{Alone: true}
	}
	c.stall.avoid = to
	c.node.Transfer(to)
	return Stall{HandOver: to}
}

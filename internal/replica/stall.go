package replica

import (
	"time"

	"go.etcd.io/raft/v3"

	"quorate/internal/metrics"
)

// A log write that hangs does not stop consensus: raft sends entries to the
// others before they are durable here, and a quorum of the others commits
// without this disk. What stops is apply, because raft hands out an entry only
// once it is in the local log; so nobody who asked here hears of the outcome. The
// remedy has two halves. A leader gives leadership to a voter whose disk has
// proved to work, so that the cluster does not depend on a member that is about
// to fail. And on any member whose log write hangs while the others go on, a
// request ends with a timeout before two election timeouts have passed, instead
// of after the whole request timeout: its client turns to another member.

// stallPolicy is what the core does about a log write that hangs.
type stallPolicy struct {
	after, limit time.Duration
	avoid        uint64 // the voter that did not take over when it was asked last
}

// Stall tells what a log write that hangs has led to.
type Stall struct {
	// HandOver is the voter that is asked to lead instead, 0 if nobody is asked now.
	HandOver uint64
	// Alone is set on a leader that cannot be replaced: too few of the others have
	// shown that their disks still work.
	Alone bool
}

// tick lets time pass for raft and for those who wait.
func (c *Core) tick(now time.Time, in Input) (s Stall) {
	stalled := c.stall.after > 0 && in.LogStall > c.stall.after
	leading := stalled && c.node.Leading()
	// A member that cannot make its own vote durable must not win an election with
	// those of the others: its time stands still.
	for range in.Ticks {
		if !stalled || leading {
			c.node.Tick()
		}
	}
	switch {
	case in.Ticks == 0:
		return s
	case !stalled:
		c.stall.avoid = raft.None
		return s
	case leading && c.node.Transferring() == raft.None:
		if s = c.handOver(); s.Alone {
			return s // nobody else could serve these requests either
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
	if to == raft.None {
		return Stall{Alone: true}
	}
	c.stall.avoid = to
	c.node.Transfer(to)
	return Stall{HandOver: to}
}

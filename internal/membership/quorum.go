package membership

import (
	"errors"

	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/ids"
)

// Reasons for which the strict reconfiguration check rejects a change. The texts are
// etcd's and reach clients.
var (
	ErrNotEnoughStarted = errors.New("etcdserver: re-configuration failed due to not enough started members")
	ErrUnhealthy        = errors.New("etcdserver: unhealthy cluster")
)

// Rules is the input of the strict reconfiguration check at the time of a proposal.
type Rules struct {
	Strict bool
	// Connected reports whether a member is the local one or has been reachable
	// without interruption for 5 seconds; Reachable, whether it is the local one or
	// reachable at all.
	Connected, Reachable func(id ids.Member) bool
	// InSync reports whether a learner has caught up; nil where that is unknown.
	InSync func(id ids.Member) bool
}

// ErrLearnerNotReady rejects the promotion of a learner that has not caught up.
var ErrLearnerNotReady = errors.New("etcdserver: can only promote a learner member which is in sync with leader")

// MayPropose decides whether a change may enter the log now. It must be called at
// each proposal of the change, because others may have been applied since the last
// one. It passes changes that Apply rejects in any case, so that their callers get
// the result.
func (c *Cluster) MayPropose(cc *raftpb.ConfChange, r Rules) error {
	m, action, err := decodeChange(cc)
	if err != nil {
		return err
	}
	s := c.st.Load()
	i, exists := s.find(m.ID)
	switch action {
	case Added:
		if r.Strict && !exists {
			return CheckAdd(s.members, m.IsLearner, r.Connected)
		}
	case Promoted:
		if !exists || !s.members[i].IsLearner {
			return nil
		}
		if r.InSync != nil && !r.InSync(m.ID) {
			return ErrLearnerNotReady
		}
		if r.Strict {
			return CheckPromote(s.members)
		}
	case Removed:
		if s.lastVoter(m.ID) {
			return ErrNotEnoughStarted
		}
		if r.Strict && exists {
			return CheckRemove(s.members, m.ID, r.Connected, !r.Reachable(m.ID))
		}
	}
	return nil
}

func quorum(n int) int { return n/2 + 1 }

// voters returns the number of voters, how many of them have started, and how many
// are connected. It leaves out the member skip (0 skips none).
func voters(members []Member, skip ids.Member, connected func(id ids.Member) bool) (n, started, up int) {
	for _, m := range members {
		if m.IsLearner || m.ID == skip {
			continue
		}
		n++
		if m.Started() {
			started++
		}
		if connected != nil && connected(m.ID) {
			up++
		}
	}
	return n, started, up
}

// CheckAdd decides whether the cluster keeps a quorum when a voter or learner is added
// that is still down. connected reports whether a member is the local one or has been
// reachable without interruption for 5 seconds.
func CheckAdd(members []Member, learner bool, connected func(id ids.Member) bool) error {
	n, started, up := voters(members, 0, connected)
	// A single member may always grow, also after a restore from a backup.
	if alone := n == 1 && started == 1; !learner && !alone && started < quorum(n+1) {
		return ErrNotEnoughStarted
	}
	if n != 1 && up < quorum(n+1) {
		return ErrUnhealthy
	}
	return nil
}

// CheckRemove decides whether the others keep a quorum when a member is removed. For
// connected, see CheckAdd. down means that the member to be removed is not the local
// one and not reachable at all, so that its removal can only help.
func CheckRemove(members []Member, id ids.Member, connected func(id ids.Member) bool, down bool) error {
	for _, m := range members {
		if m.ID == id && m.IsLearner {
			return nil
		}
	}
	rest, started, _ := voters(members, id, nil)
	if started < quorum(rest) {
		return ErrNotEnoughStarted
	}
	if down {
		return nil
	}
	n, _, up := voters(members, 0, connected)
	if up-1 < 1+(n-1)/2 {
		return ErrUnhealthy
	}
	return nil
}

// CheckPromote decides whether the voters form the larger quorum, counting the
// learner as a voter that has started.
func CheckPromote(members []Member) error {
	n, started, _ := voters(members, 0, nil)
	if started+1 < quorum(n+1) {
		return ErrNotEnoughStarted
	}
	return nil
}

// LearnerReady is the fraction of the leader's log that a learner must have before it
// can be promoted.
const LearnerReady = 0.9

// LearnerInSync reports whether a learner has matched LearnerReady of the leader's log.
func LearnerInSync(leaderMatch, learnerMatch ids.Index) bool {
	return !(float64(learnerMatch)/float64(leaderMatch) < LearnerReady)
}

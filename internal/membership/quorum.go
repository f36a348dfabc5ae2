package membership

import (
	"errors"

	"go.etcd.io/raft/v3/raftpb"
)

// Why the strict reconfiguration check refuses to propose a change. The texts
// are etcd's and reach clients.
var (
	ErrNotEnoughStarted = errors.New("etcdserver: re-configuration failed due to not enough started members")
	ErrUnhealthy        = errors.New("etcdserver: unhealthy cluster")
)

// Rules are what the strict reconfiguration check goes by, at the moment it is asked.
type Rules struct {
	Strict bool
	// Connected reports a member that is the local one or has been reachable without a
	// break for 5 seconds, Reachable one that is the local one or reachable at all.
	Connected, Reachable func(id uint64) bool
	// InSync reports a learner that has caught up; nil where nobody can tell.
	InSync func(id uint64) bool
}

// ErrLearnerNotReady refuses to promote a learner that has not caught up.
var ErrLearnerNotReady = errors.New("etcdserver: can only promote a learner member which is in sync with leader")

// MayPropose decides whether a change may enter the log now. It must be asked each time
// that the change is proposed: another one may have been applied since the last time.
// What Apply refuses in any case passes, for whoever waits to be told so.
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

// voters returns the number of voters, how many of them have started, and how
// many connected reports as connected, skip left out (0 skips none).
func voters(members []Member, skip uint64, connected func(id uint64) bool) (n, started, up int) {
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

// CheckAdd decides whether adding a voter or a learner keeps the cluster able
// to decide while the new member is still down. connected reports a member that
// is the local one or has been reachable without a break for 5 seconds.
func CheckAdd(members []Member, learner bool, connected func(id uint64) bool) error {
	n, started, up := voters(members, 0, connected)
	// One member alone may always grow, also when it is restored from a backup.
	if alone := n == 1 && started == 1; !learner && !alone && started < quorum(n+1) {
		return ErrNotEnoughStarted
	}
	if n != 1 && up < quorum(n+1) {
		return ErrUnhealthy
	}
	return nil
}

// CheckRemove decides whether removing a member keeps a quorum of the others.
// connected is as for CheckAdd; down says that the member to be removed is not
// the local one and not reachable at all, so its removal can only help.
func CheckRemove(members []Member, id uint64, connected func(id uint64) bool, down bool) error {
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

// CheckPromote decides whether the voters are enough for the larger quorum,
// the learner counting as a voter that has started.
func CheckPromote(members []Member) error {
	n, started, _ := voters(members, 0, nil)
	if started+1 < quorum(n+1) {
		return ErrNotEnoughStarted
	}
	return nil
}

// LearnerReady is the part of the leader's log that a learner must have before it
// is promoted.
const LearnerReady = 0.9

// LearnerInSync reports whether a learner has matched LearnerReady of the leader's log.
func LearnerInSync(leaderMatch, learnerMatch uint64) bool {
	return !(float64(learnerMatch)/float64(leaderMatch) < LearnerReady)
}

package server

import (
	"context"
	"errors"

	"quorate/internal/ids"
	"quorate/internal/membership"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// leaders finds the leader, for requests that only the leader can answer.
type leaders struct {
	replica *localReplica
	cluster *membership.Cluster
}

// errLeadsNow ends a request to the leader because this member has become the leader.
var errLeadsNow = errors.New("server: this member leads now")

// otherLeader returns the peer URLs of the leader, and waits until there is one.
func (l *leaders) otherLeader(ctx context.Context) ([]string, error) {
	for {
		if l.replica.isLeader() {
			return nil, errLeadsNow
		}
		if urls := l.leaderURLs(); urls != nil {
			return urls, nil
		}
		if err := l.replica.pause(ctx, forwardPause); err != nil {
			return nil, l.leaderless(err)
		}
	}
}

// leaderless replaces the timeout of a wait for the leader with the error that says that
// there is none.
func (l *leaders) leaderless(err error) error {
	if errors.Is(err, rpctypes.ErrGRPCTimeout) && l.replica.Leader() == 0 {
		return rpctypes.ErrGRPCNoLeader
	}
	return err
}

// leaderURLs returns the peer URLs of the leader if it is another member.
func (l *leaders) leaderURLs() []string {
	x, ok := l.cluster.Member(ids.Member(l.replica.lead.Load()))
	if !ok || x.ID == l.replica.id {
		return nil
	}
	return x.PeerURLs
}

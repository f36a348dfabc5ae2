package server

import (
	"context"
	"time"

	"go.uber.org/zap"

	"quorate/internal/membership"
	"quorate/internal/replica"
	"quorate/internal/transport"
)

// election shortens the time until a starting member has its first leader.
type election struct {
	cfg     *Config
	lg      *zap.Logger
	replica *localReplica
	cluster *membership.Cluster
	tr      *transport.Transport
	driver  *driver
}

// advanceTicks lets a starting member elect or follow a leader without waiting for a
// whole election timeout.
func (e *election) advanceTicks(context.Context) {
	n := e.cfg.ElectionTicks
	if e.cfg.ForceNew {
		// The first applied entries remove the other members.
		for voters := e.cluster.VoterIDs(); len(voters) != 1 || voters[0] != e.replica.id; voters = e.cluster.VoterIDs() {
			if e.replica.pause(e.replica.rootCtx, applyPoll) != nil {
				return
			}
		}
	}
	if voters := e.cluster.VoterIDs(); len(voters) == 1 && voters[0] == e.replica.id || len(voters) == 0 && len(e.cfg.Initial) == 1 && !e.cfg.Existing {
		e.electSelf()
		return
	}
	if !e.cfg.InitialTickAdvance || n <= 2 {
		return
	}
	for deadline := e.cfg.Clock.Now().Add(5 * time.Second); e.cfg.Clock.Now().Before(deadline); {
		if e.replica.pause(e.replica.rootCtx, 50*time.Millisecond) != nil {
			return
		}
		if e.tr.ActivePeers() > 1 {
			e.lg.Info("initialized peer connections; fast-forwarding election ticks", e.replica.localID(), zap.Int("forward-ticks", n-2),
				zap.Duration("forward-duration", time.Duration(n-2)*e.cfg.Tick), zap.Int("election-ticks", n),
				zap.Duration("election-timeout", e.cfg.electionTimeout()), zap.Int("active-remote-members", e.tr.ActivePeers()))
			e.driver.event(func(in *replica.Input) { in.Ticks += n - 2 })
			return
		}
	}
}

// electSelf makes the only voter leader. There is no other voter to wait for, only its
// own first entries.
func (e *election) electSelf() {
	for e.replica.Leader() == 0 {
		if voters := e.cluster.VoterIDs(); len(voters) > 1 {
			return
		} else if len(voters) == 1 && voters[0] == e.replica.id {
			e.driver.event(func(in *replica.Input) { in.Campaign = true })
		}
		if e.replica.pause(e.replica.rootCtx, applyPoll) != nil {
			return
		}
	}
}

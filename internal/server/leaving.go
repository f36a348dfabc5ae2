package server

import (
	"context"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"

	"quorate/internal/clock"
	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/transport"
)

// leaving transfers leadership before a member shuts down.
type leaving struct {
	cfg     *Config
	lg      *zap.Logger
	replica *localReplica
	cluster *membership.Cluster
	tr      *transport.Transport
	driver  *driver
}

// HandOver transfers leadership, if this member has it, before it shuts down: to the voter
// that has been connected for the longest time, or else to the next one. It returns when
// another member leads and has received what was sent here, or when none has become leader
// within the request timeout.
func (h *leaving) HandOver() {
	if !h.replica.isLeader() || h.replica.Err() != nil {
		h.lg.Info("skipped leadership transfer; local server is not leader", h.replica.localID(), zap.Stringer("current-leader-member-id", h.replica.Leader()))
		return
	}
	if len(h.cluster.VoterIDs()) < 2 {
		h.lg.Info("skipped leadership transfer for single voting member cluster", h.replica.localID(), zap.Stringer("current-leader-member-id", h.replica.Leader()))
		return
	}
	h.handOver()
}

// handOver is HandOver without log lines if there is nothing to transfer.
func (h *leaving) handOver() {
	if !h.replica.isLeader() || h.replica.Err() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), h.cfg.requestTimeout())
	defer cancel()
	tried := map[ids.Member]bool{h.replica.id: true}
	for h.replica.isLeader() && h.replica.Err() == nil {
		to, since := h.longestConnected(tried)
		if to == 0 {
			if len(tried) == 1 && len(h.cluster.VoterIDs()) > 1 {
				h.lg.Warn("leadership transfer failed", h.replica.localID(), zap.Error(rpctypes.ErrUnhealthy))
			}
			return
		}
		tried[to] = true
		if err := h.handOverTo(ctx, to, since); err != nil {
			h.lg.Warn("leadership transfer failed", h.replica.localID(), zap.Stringer("transferee-member-id", to), zap.Error(err))
		}
	}
	// The others learn the new leader from its first message. What they send here until then
	// is forwarded; otherwise their clients would wait for an answer that never comes.
	_ = h.replica.pause(ctx, h.cfg.Tick)
}

// longestConnected returns the voter not in without that has been reachable for the longest
// time, and since when; 0 if there is none.
func (h *leaving) longestConnected(without map[ids.Member]bool) (best ids.Member, since time.Time) {
	for _, id := range h.cluster.VoterIDs() {
		if t := h.tr.ActiveSince(id); !without[id] && !t.IsZero() && (best == 0 || t.Before(since)) {
			best, since = id, t
		}
	}
	return best, since
}

// handOverTo transfers leadership to a voter. Raft abandons a transfer after an election
// timeout. It also fails when the connection to that voter, which has existed since, is
// lost: the voter may be shutting down as well.
func (h *leaving) handOverTo(ctx context.Context, to ids.Member, since time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.electionTimeout()+2*h.cfg.Tick)
	defer cancel()
	go func() {
		poll := clock.NewTicker(h.cfg.Clock, h.cfg.Tick)
		defer poll.Stop()
		for {
			select {
			case <-poll.C:
				if !h.tr.ActiveSince(to).Equal(since) {
					cancel()
				}
			case <-h.replica.failed:
				cancel()
			case <-ctx.Done():
				return
			}
		}
	}()
	return h.driver.transfer(ctx, to)
}

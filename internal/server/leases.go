package server

import (
	"context"
	"errors"
	"math"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"

	"quorate/internal/auth"
	"quorate/internal/lease"
	"quorate/internal/membership"
	"quorate/internal/metrics"
	"quorate/internal/transport"
)

// Leases serves leases: grants and revocations through the log, renewals by the leader,
// which also revokes what has expired.
type Leases struct {
	cfg     *Config
	lg      *zap.Logger
	replica *localReplica
	Access  *Access
	leaders *leaders
	peers   *transport.Client
	auth    *auth.Store
	lessor  *lease.Lessor

	revoking chan struct{} // holds an element for each revocation under way
}

const (
	expiryInterval = 500 * time.Millisecond
	expiryBatch    = 500 // leases per interval
	expiryWorkers  = 16  // revokes proposed at a time
	forwardPause   = 50 * time.Millisecond
	applyPoll      = 5 * time.Millisecond
)

// LeaseGrant grants a lease, choosing an id if the request has none.
func (l *Leases) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	for r.ID == 0 {
		r.ID = int64(l.replica.ids.Next() & math.MaxInt64)
	}
	if err := l.Access.RequireUser(ctx); err != nil {
		return nil, err
	}
	res, err := l.replica.propose(ctx, &pb.InternalRaftRequest{LeaseGrant: r})
	if err != nil {
		return nil, err
	}
	return res.Resp.(*pb.LeaseGrantResponse), nil
}

// LeaseRevoke revokes a lease and deletes its keys.
func (l *Leases) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	if err := l.Access.RequireUser(ctx); err != nil {
		return nil, err
	}
	res, err := l.replica.propose(ctx, &pb.InternalRaftRequest{LeaseRevoke: r})
	if err != nil {
		return nil, err
	}
	return res.Resp.(*pb.LeaseRevokeResponse), nil
}

// LeaseRenew starts a lease's TTL anew, on the leader, and returns the TTL.
func (l *Leases) LeaseRenew(ctx context.Context, id int64) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.requestTimeout())
	defer cancel()
	for {
		if l.replica.isLeader() {
			ttl, err := l.renewHere(ctx, id)
			if !errors.Is(err, lease.ErrNotPrimary) {
				return ttl, l.leaseError(ctx, err)
			}
		} else {
			if err := l.Access.permitLease(ctx, []int64{id}, mayWrite); err != nil {
				return 0, err
			}
			ttl, err := l.peers.RenewLease(ctx, l.leaders.otherLeader, id)
			if !errors.Is(err, errLeadsNow) {
				return ttl, l.leaseError(ctx, err)
			}
		}
		if err := l.replica.pause(ctx, forwardPause); err != nil {
			return 0, err
		}
	}
}

// renewHere renews as the leader, which may be the last one to apply a grant that
// another member has acknowledged.
func (l *Leases) renewHere(ctx context.Context, id int64) (int64, error) {
	if err := l.WaitApplied(ctx, id); err != nil {
		return 0, err
	}
	if err := l.Access.permitLease(ctx, []int64{id}, mayWrite); err != nil {
		return 0, err
	}
	return l.RenewLease(ctx, id)
}

// RenewLease renews on this member, which must be the primary: the leader that
// expires leases.
func (l *Leases) RenewLease(ctx context.Context, id int64) (int64, error) {
	if err := l.replica.sureToLead(ctx); err != nil {
		return 0, err
	}
	for {
		r, err := l.lessor.Renew(l.cfg.Clock.Now(), id)
		switch {
		case err != nil:
			return 0, err
		case r.Wait != nil:
			select {
			case <-r.Wait:
			case <-ctx.Done():
				return 0, ctx.Err()
			case <-l.replica.stop:
				return 0, rpctypes.ErrGRPCStopped
			}
		case r.Reset:
			if err := l.checkpoint(ctx, []lease.Checkpoint{{ID: id}}); err != nil {
				return 0, err
			}
		default:
			return r.TTL, nil
		}
	}
}

// TimeToLive asks the primary what is left of a lease; TTL -1 if there is none.
func (l *Leases) TimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	if err := l.Access.RequireUser(ctx); err != nil || !r.Keys {
		if err != nil {
			return nil, err
		}
		return l.timeToLive(ctx, r)
	}
	st := l.auth.State()
	if err := l.Access.permitLease(ctx, []int64{r.ID}, mayRead); err != nil {
		return nil, err
	}
	resp, err := l.timeToLive(ctx, r)
	if now := l.auth.State(); err == nil && now.Enabled() && now.Revision() != st.Revision() {
		return nil, auth.ErrAuthOldRevision
	}
	return resp, err
}

func (m *Leases) timeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.requestTimeout())
	defer cancel()
	for {
		var (
			l   transport.LeaseTTL
			err error
		)
		if m.replica.isLeader() {
			if err = m.WaitApplied(ctx, r.ID); err == nil {
				l, err = m.LeaseTimeToLive(ctx, r.ID, r.Keys)
			}
		} else {
			l, err = m.peers.LeaseTimeToLive(ctx, m.leaders.otherLeader, r.ID, r.Keys)
		}
		switch {
		case err == nil:
			return &pb.LeaseTimeToLiveResponse{ID: r.ID, TTL: l.TTL, GrantedTTL: l.GrantedTTL, Keys: l.Keys}, nil
		case errors.Is(err, lease.ErrLeaseNotFound):
			return &pb.LeaseTimeToLiveResponse{ID: r.ID, TTL: -1}, nil
		case !errors.Is(err, lease.ErrNotPrimary) && !errors.Is(err, errLeadsNow):
			return nil, m.leaseError(ctx, err)
		}
		if err := m.replica.pause(ctx, forwardPause); err != nil {
			return nil, err
		}
	}
}

// LeaseTimeToLive answers as the primary, once it has applied what is committed:
// a put that a follower has acknowledged shows among the keys.
func (l *Leases) LeaseTimeToLive(ctx context.Context, id int64, keys bool) (transport.LeaseTTL, error) {
	if err := l.replica.waitApplied(ctx); err != nil {
		return transport.LeaseTTL{}, err
	}
	st, err := l.lessor.TimeToLive(l.cfg.Clock.Now(), id, keys)
	if err != nil {
		return transport.LeaseTTL{}, err
	}
	return transport.LeaseTTL{TTL: st.TTL, GrantedTTL: st.GrantedTTL, Keys: st.Keys}, nil
}

// WaitApplied returns once everything that is committed now is applied, or at
// once if the lease is known.
func (l *Leases) WaitApplied(ctx context.Context, id int64) error {
	if l.lessor.Exists(id) {
		return nil
	}
	return l.replica.waitApplied(ctx)
}

// LeaseLeases lists the leases that this member knows.
func (m *Leases) LeaseLeases(ctx context.Context) (*pb.LeaseLeasesResponse, error) {
	all := m.lessor.List()
	if err := m.Access.permitLease(ctx, leaseIDs(all), mayRead); err != nil {
		return nil, err
	}
	resp := &pb.LeaseLeasesResponse{Leases: make([]*pb.LeaseStatus, len(all))}
	for i, l := range all {
		resp.Leases[i] = &pb.LeaseStatus{ID: l.ID}
	}
	return resp, nil
}

func leaseIDs(all []lease.Lease) []int64 {
	ids := make([]int64, len(all))
	for i, l := range all {
		ids[i] = l.ID
	}
	return ids
}

func (l *Leases) leaseError(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, lease.ErrLeaseNotFound):
		return rpctypes.ErrGRPCLeaseNotFound
	case err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return l.leaders.leaderless(rpctypes.ErrGRPCTimeout)
	}
	return err
}

// expireLeases revokes what has expired, and records what is left of long
// leases, as long as this member leads.
func (l *Leases) expireLeases(ctx context.Context) {
	if l.replica.sureToLead(ctx) != nil {
		return
	}
	for _, id := range l.lessor.Expired(l.cfg.Clock.Now(), expiryBatch) {
		select {
		case l.revoking <- struct{}{}:
		case <-ctx.Done():
			return
		}
		l.replica.background(func() {
			defer func() { <-l.revoking }()
			l.revokeExpired(id)
		})
	}
	if due := l.lessor.CheckpointsDue(l.cfg.Clock.Now()); len(due) > 0 {
		if err := l.checkpoint(ctx, due); err != nil && !ended(err) {
			l.lg.Warn("failed to record the remaining TTL of leases", zap.Int("leases", len(due)), zap.Error(err))
		}
	}
}

func (l *Leases) revokeExpired(id int64) {
	_, err := l.replica.propose(asRoot(l.replica.rootCtx), &pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: id}})
	switch {
	case err == nil:
		metrics.DebuggingServerLeaseExpiredTotal.Inc()
	case errors.Is(err, rpctypes.ErrGRPCLeaseNotFound), ended(err), errors.Is(err, rpctypes.ErrGRPCStopped):
	default:
		l.lg.Warn("failed to revoke an expired lease; will try again", zap.String("lease-id", membership.FormatID(uint64(id))), zap.Error(err))
	}
}

func (l *Leases) checkpoint(ctx context.Context, due []lease.Checkpoint) error {
	req := &pb.LeaseCheckpointRequest{}
	for _, c := range due {
		req.Checkpoints = append(req.Checkpoints, &pb.LeaseCheckpoint{ID: c.ID, Remaining_TTL: c.Remaining})
	}
	_, err := l.replica.propose(ctx, &pb.InternalRaftRequest{LeaseCheckpoint: req})
	return err
}

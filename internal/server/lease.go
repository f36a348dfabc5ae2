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

const (
	expiryInterval = 500 * time.Millisecond
	expiryBatch    = 500 // leases per interval
	expiryWorkers  = 16  // revokes proposed at a time
	forwardPause   = 50 * time.Millisecond
	applyPoll      = 5 * time.Millisecond
)

// LeaseGrant grants a lease, choosing an id if the request has none.
func (m *Member) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	for r.ID == 0 {
		r.ID = int64(m.ids.Next() & math.MaxInt64)
	}
	if err := m.RequireUser(ctx); err != nil {
		return nil, err
	}
	res, err := m.propose(ctx, &pb.InternalRaftRequest{LeaseGrant: r})
	if err != nil {
		return nil, err
	}
	return res.Resp.(*pb.LeaseGrantResponse), nil
}

// LeaseRevoke revokes a lease and deletes its keys.
func (m *Member) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	if err := m.RequireUser(ctx); err != nil {
		return nil, err
	}
	res, err := m.propose(ctx, &pb.InternalRaftRequest{LeaseRevoke: r})
	if err != nil {
		return nil, err
	}
	return res.Resp.(*pb.LeaseRevokeResponse), nil
}

// LeaseRenew starts a lease's TTL anew, on the leader, and returns the TTL.
func (m *Member) LeaseRenew(ctx context.Context, id int64) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.requestTimeout())
	defer cancel()
	for {
		if m.isLeader() {
			ttl, err := m.renewHere(ctx, id)
			if !errors.Is(err, lease.ErrNotPrimary) {
				return ttl, m.leaseError(ctx, err)
			}
		} else {
			if err := m.permitLease(ctx, []int64{id}, mayWrite); err != nil {
				return 0, err
			}
			ttl, err := m.peers.RenewLease(ctx, m.otherLeader, id)
			if !errors.Is(err, errLeadsNow) {
				return ttl, m.leaseError(ctx, err)
			}
		}
		if err := m.pause(ctx, forwardPause); err != nil {
			return 0, err
		}
	}
}

// renewHere renews as the leader, which may be the last one to apply a grant that
// another member has acknowledged.
func (m *Member) renewHere(ctx context.Context, id int64) (int64, error) {
	if err := m.WaitApplied(ctx, id); err != nil {
		return 0, err
	}
	if err := m.permitLease(ctx, []int64{id}, mayWrite); err != nil {
		return 0, err
	}
	return m.RenewLease(ctx, id)
}

// RenewLease renews on this member, which must be the primary: the leader that
// expires leases.
func (m *Member) RenewLease(ctx context.Context, id int64) (int64, error) {
	if err := m.sureToLead(ctx); err != nil {
		return 0, err
	}
	for {
		r, err := m.lessor.Renew(m.cfg.Clock.Now(), id)
		switch {
		case err != nil:
			return 0, err
		case r.Wait != nil:
			select {
			case <-r.Wait:
			case <-ctx.Done():
				return 0, ctx.Err()
			case <-m.stop:
				return 0, rpctypes.ErrGRPCStopped
			}
		case r.Reset:
			if err := m.checkpoint(ctx, []lease.Checkpoint{{ID: id}}); err != nil {
				return 0, err
			}
		default:
			return r.TTL, nil
		}
	}
}

// sureToLead confirms leadership through a quorum if this member's ticks have
// stalled for so long that another one may lead by now.
func (m *Member) sureToLead(ctx context.Context) error {
	last := time.Unix(0, m.lastTick.Load())
	if m.cfg.Clock.Now().Sub(last) < 3*m.cfg.Tick {
		return nil
	}
	return m.barrier(ctx)
}

// TimeToLive asks the primary what is left of a lease; TTL -1 if there is none.
func (m *Member) TimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	if err := m.RequireUser(ctx); err != nil || !r.Keys {
		if err != nil {
			return nil, err
		}
		return m.timeToLive(ctx, r)
	}
	st := m.auth.State()
	if err := m.permitLease(ctx, []int64{r.ID}, mayRead); err != nil {
		return nil, err
	}
	resp, err := m.timeToLive(ctx, r)
	if now := m.auth.State(); err == nil && now.Enabled() && now.Revision() != st.Revision() {
		return nil, auth.ErrAuthOldRevision
	}
	return resp, err
}

func (m *Member) timeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.requestTimeout())
	defer cancel()
	for {
		var (
			l   transport.LeaseTTL
			err error
		)
		if m.isLeader() {
			if err = m.WaitApplied(ctx, r.ID); err == nil {
				l, err = m.LeaseTimeToLive(ctx, r.ID, r.Keys)
			}
		} else {
			l, err = m.peers.LeaseTimeToLive(ctx, m.otherLeader, r.ID, r.Keys)
		}
		switch {
		case err == nil:
			return &pb.LeaseTimeToLiveResponse{ID: r.ID, TTL: l.TTL, GrantedTTL: l.GrantedTTL, Keys: l.Keys}, nil
		case errors.Is(err, lease.ErrLeaseNotFound):
			return &pb.LeaseTimeToLiveResponse{ID: r.ID, TTL: -1}, nil
		case !errors.Is(err, lease.ErrNotPrimary) && !errors.Is(err, errLeadsNow):
			return nil, m.leaseError(ctx, err)
		}
		if err := m.pause(ctx, forwardPause); err != nil {
			return nil, err
		}
	}
}

// LeaseTimeToLive answers as the primary, once it has applied what is committed:
// a put that a follower has acknowledged shows among the keys.
func (m *Member) LeaseTimeToLive(ctx context.Context, id int64, keys bool) (transport.LeaseTTL, error) {
	if err := m.waitApplied(ctx); err != nil {
		return transport.LeaseTTL{}, err
	}
	st, err := m.lessor.TimeToLive(m.cfg.Clock.Now(), id, keys)
	if err != nil {
		return transport.LeaseTTL{}, err
	}
	return transport.LeaseTTL{TTL: st.TTL, GrantedTTL: st.GrantedTTL, Keys: st.Keys}, nil
}

// WaitApplied returns once everything that is committed now is applied, or at
// once if the lease is known.
func (m *Member) WaitApplied(ctx context.Context, id int64) error {
	if m.lessor.Exists(id) {
		return nil
	}
	return m.waitApplied(ctx)
}

func (m *Member) waitApplied(ctx context.Context) error {
	for target := m.commit.Load(); m.mach().Applied() < target; {
		if err := m.pause(ctx, applyPoll); err != nil {
			return err
		}
	}
	return nil
}

// LeaseLeases lists the leases that this member knows.
func (m *Member) LeaseLeases(ctx context.Context) (*pb.LeaseLeasesResponse, error) {
	all := m.lessor.List()
	if err := m.permitLease(ctx, leaseIDs(all), mayRead); err != nil {
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

// errLeadsNow ends a question to the leader because this member has become it.
var errLeadsNow = errors.New("server: this member leads now")

// otherLeader returns the peer URLs of the leader, waiting for one.
func (m *Member) otherLeader(ctx context.Context) ([]string, error) {
	for {
		if m.isLeader() {
			return nil, errLeadsNow
		}
		if urls := m.leaderURLs(); urls != nil {
			return urls, nil
		}
		if err := m.pause(ctx, forwardPause); err != nil {
			return nil, m.leaderless(err)
		}
	}
}

// leaderless makes the error of a wait for the leader that took too long what it
// is if there is none.
func (m *Member) leaderless(err error) error {
	if errors.Is(err, rpctypes.ErrGRPCTimeout) && m.Leader() == 0 {
		return rpctypes.ErrGRPCNoLeader
	}
	return err
}

func (m *Member) leaseError(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, lease.ErrLeaseNotFound):
		return rpctypes.ErrGRPCLeaseNotFound
	case err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return m.leaderless(rpctypes.ErrGRPCTimeout)
	}
	return err
}

// leaderURLs returns the peer URLs of the leader if it is another member.
func (m *Member) leaderURLs() []string {
	x, ok := m.cluster.Member(m.lead.Load())
	if !ok || x.ID == m.id {
		return nil
	}
	return x.PeerURLs
}

func (m *Member) pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return rpctypes.ErrGRPCTimeout
		}
		return ctx.Err()
	case <-m.stop:
		return rpctypes.ErrGRPCStopped
	case <-m.failed: // what is waited for may never come
		return rpctypes.ErrGRPCStopped
	}
}

// expireLeases revokes what has expired, and records what is left of long
// leases, as long as this member leads.
func (m *Member) expireLeases() {
	ticker := time.NewTicker(expiryInterval)
	defer ticker.Stop()
	work := make(chan struct{}, expiryWorkers)
	for {
		select {
		case <-ticker.C:
		case <-m.rootCtx.Done():
			return
		}
		if !m.lessor.IsPrimary() {
			continue
		}
		if m.sureToLead(m.rootCtx) != nil {
			continue
		}
		for _, id := range m.lessor.Expired(m.cfg.Clock.Now(), expiryBatch) {
			select {
			case work <- struct{}{}:
			case <-m.rootCtx.Done():
				return
			}
			m.background(func() {
				defer func() { <-work }()
				m.revokeExpired(id)
			})
		}
		if due := m.lessor.CheckpointsDue(m.cfg.Clock.Now()); len(due) > 0 {
			if err := m.checkpoint(m.rootCtx, due); err != nil && !ended(err) {
				m.lg.Warn("failed to record the remaining TTL of leases", zap.Int("leases", len(due)), zap.Error(err))
			}
		}
	}
}

func (m *Member) revokeExpired(id int64) {
	_, err := m.propose(asRoot(m.rootCtx), &pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: id}})
	switch {
	case err == nil:
		metrics.DebuggingServerLeaseExpiredTotal.Inc()
	case errors.Is(err, rpctypes.ErrGRPCLeaseNotFound), ended(err), errors.Is(err, rpctypes.ErrGRPCStopped):
	default:
		m.lg.Warn("failed to revoke an expired lease; will try again", zap.String("lease-id", membership.FormatID(uint64(id))), zap.Error(err))
	}
}

func (m *Member) checkpoint(ctx context.Context, due []lease.Checkpoint) error {
	req := &pb.LeaseCheckpointRequest{}
	for _, c := range due {
		req.Checkpoints = append(req.Checkpoints, &pb.LeaseCheckpoint{ID: c.ID, Remaining_TTL: c.Remaining})
	}
	_, err := m.propose(ctx, &pb.InternalRaftRequest{LeaseCheckpoint: req})
	return err
}

package server

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"

	"quorate/internal/auth"
	"quorate/internal/ids"
	"quorate/internal/lease"
	"quorate/internal/metrics"
	"quorate/internal/proposal"
	"quorate/internal/transport/peerapi"
)

// Leases serves leases: grants and revokes through the log, renewals on the leader, which
// also revokes expired leases.
type Leases struct {
	cfg     *Config
	lg      *zap.Logger
	replica *localReplica
	Access  *Access
	leaders *leaders
	peers   *peerapi.Client
	auth    *auth.Store
	lessor  *lease.Lessor

	revoking chan struct{} // holds an element for each revoke in flight
	// recording is held from the decision about a checkpoint, or to clear those of a lease, until
	// the request waits in the inbox of the core: the log gets them in the order of the decisions.
	recording sync.Mutex
}

const (
	expiryWorkers = 16 // revokes proposed at a time
	forwardPause  = 50 * time.Millisecond
	applyPoll     = 5 * time.Millisecond
)

// LeaseGrant grants a lease, and chooses an id if the request has none.
func (s *Leases) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	for r.ID == 0 {
		r.ID = int64(s.replica.ids.Next() & math.MaxInt64)
	}
	if err := s.Access.RequireUser(ctx); err != nil {
		return nil, err
	}
	res, err := s.replica.propose(ctx, &pb.InternalRaftRequest{LeaseGrant: r})
	if err != nil {
		return nil, err
	}
	return res.Resp.(*pb.LeaseGrantResponse), nil
}

// LeaseRevoke revokes a lease and deletes its keys.
func (s *Leases) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	if err := s.Access.RequireUser(ctx); err != nil {
		return nil, err
	}
	res, err := s.replica.propose(ctx, &pb.InternalRaftRequest{LeaseRevoke: r})
	if err != nil {
		return nil, err
	}
	return res.Resp.(*pb.LeaseRevokeResponse), nil
}

// LeaseRenew starts a lease's TTL again, on the leader, and returns the TTL.
func (s *Leases) LeaseRenew(caller context.Context, id lease.ID) (int64, error) {
	ctx := &lateTimeout{Context: caller, timeout: s.cfg.requestTimeout()}
	defer ctx.stop()
	for {
		if s.replica.isLeader() {
			ttl, err := s.renewHere(ctx, id)
			if !errors.Is(err, lease.ErrNotPrimary) {
				return ttl, s.leaseError(ctx, err)
			}
		} else {
			if err := s.Access.permitLease(ctx, []lease.ID{id}, mayWrite); err != nil {
				return 0, err
			}
			ttl, err := s.peers.RenewLease(ctx, s.leaders.otherLeader, id)
			if !errors.Is(err, errLeadsNow) {
				return ttl, s.leaseError(ctx, err)
			}
		}
		if err := s.replica.pause(ctx, forwardPause); err != nil {
			return 0, err
		}
	}
}

// RenewAtOnce renews a lease if this member leads for certain and nothing has to be waited
// for, checked or recorded before. It does not block.
func (s *Leases) RenewAtOnce(id lease.ID) (ttl int64, ok bool) {
	if !s.replica.isLeader() || s.replica.stalled() || s.auth.State().Enabled() {
		return 0, false
	}
	r, err := s.lessor.Renew(s.cfg.Clock.Now(), id)
	if err != nil || r.Wait != nil || r.Reset {
		return 0, false
	}
	return r.TTL, true
}

// renewHere renews as the leader, which may be the last member to apply a grant that
// another one has acknowledged.
func (s *Leases) renewHere(ctx context.Context, id lease.ID) (int64, error) {
	if err := s.WaitApplied(ctx, id); err != nil {
		return 0, err
	}
	if err := s.Access.permitLease(ctx, []lease.ID{id}, mayWrite); err != nil {
		return 0, err
	}
	return s.RenewLease(ctx, id)
}

// RenewLease renews on this member, which must be the primary: the leader that expires
// leases.
func (s *Leases) RenewLease(ctx context.Context, id lease.ID) (int64, error) {
	if err := s.replica.sureToLead(ctx); err != nil {
		return 0, err
	}
	for {
		term := s.replica.Term() // before the lessor decides
		r, err := s.lessor.Renew(s.cfg.Clock.Now(), id)
		switch {
		case err != nil:
			return 0, err
		case r.Wait != nil:
			select {
			case <-r.Wait:
			case <-ctx.Done():
				return 0, ctx.Err()
			case <-s.replica.stop:
				return 0, rpctypes.ErrGRPCStopped
			}
		case r.Reset:
			var c lease.Clearing
			err := s.record(ctx, term, func() (req *pb.InternalRaftRequest) {
				c, req = s.lessor.Clear(id)
				return req
			})
			if err != nil {
				return 0, err
			}
			s.lessor.Cleared(c)
		default:
			return r.TTL, nil
		}
	}
}

// TimeToLive asks the primary for the remaining TTL; TTL is -1 if there is no such lease.
func (s *Leases) TimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	if err := s.Access.RequireUser(ctx); err != nil || !r.Keys {
		if err != nil {
			return nil, err
		}
		return s.timeToLive(ctx, r)
	}
	st := s.auth.State()
	if err := s.Access.permitLease(ctx, []lease.ID{lease.ID(r.ID)}, mayRead); err != nil {
		return nil, err
	}
	resp, err := s.timeToLive(ctx, r)
	if now := s.auth.State(); err == nil && now.Enabled() && now.Revision() != st.Revision() {
		return nil, auth.ErrAuthOldRevision
	}
	return resp, err
}

func (s *Leases) timeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.requestTimeout())
	defer cancel()
	id := lease.ID(r.ID)
	for {
		var (
			l   peerapi.LeaseTTL
			err error
		)
		if s.replica.isLeader() {
			if err = s.WaitApplied(ctx, id); err == nil {
				l, err = s.LeaseTimeToLive(ctx, id, r.Keys)
			}
		} else {
			l, err = s.peers.LeaseTimeToLive(ctx, s.leaders.otherLeader, id, r.Keys)
		}
		switch {
		case err == nil:
			return &pb.LeaseTimeToLiveResponse{ID: r.ID, TTL: l.TTL, GrantedTTL: l.GrantedTTL, Keys: l.Keys}, nil
		case errors.Is(err, lease.ErrLeaseNotFound):
			return &pb.LeaseTimeToLiveResponse{ID: r.ID, TTL: -1}, nil
		case !errors.Is(err, lease.ErrNotPrimary) && !errors.Is(err, errLeadsNow):
			return nil, s.leaseError(ctx, err)
		}
		if err := s.replica.pause(ctx, forwardPause); err != nil {
			return nil, err
		}
	}
}

// LeaseTimeToLive answers as the primary, after it has applied all committed entries: the
// keys include those of puts that a follower has acknowledged.
func (s *Leases) LeaseTimeToLive(ctx context.Context, id lease.ID, keys bool) (peerapi.LeaseTTL, error) {
	if err := s.replica.waitApplied(ctx); err != nil {
		return peerapi.LeaseTTL{}, err
	}
	st, err := s.lessor.TimeToLive(s.cfg.Clock.Now(), id, keys)
	if err != nil {
		return peerapi.LeaseTTL{}, err
	}
	return peerapi.LeaseTTL{TTL: st.TTL, GrantedTTL: st.GrantedTTL, Keys: st.Keys}, nil
}

// WaitApplied returns once all entries committed at the call are applied, or at once if
// the lease is known.
func (s *Leases) WaitApplied(ctx context.Context, id lease.ID) error {
	if s.lessor.Exists(id) {
		return nil
	}
	return s.replica.waitApplied(ctx)
}

// LeaseLeases lists the leases that this member knows.
func (s *Leases) LeaseLeases(ctx context.Context) (*pb.LeaseLeasesResponse, error) {
	all := s.lessor.List()
	if err := s.Access.permitLease(ctx, leaseIDs(all), mayRead); err != nil {
		return nil, err
	}
	resp := &pb.LeaseLeasesResponse{Leases: make([]*pb.LeaseStatus, len(all))}
	for i, l := range all {
		resp.Leases[i] = &pb.LeaseStatus{ID: int64(l.ID)}
	}
	return resp, nil
}

func leaseIDs(all []lease.Lease) []lease.ID {
	ids := make([]lease.ID, len(all))
	for i, l := range all {
		ids[i] = l.ID
	}
	return ids
}

func (s *Leases) leaseError(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, lease.ErrLeaseNotFound):
		return rpctypes.ErrGRPCLeaseNotFound
	case err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return s.leaders.leaderless(rpctypes.ErrGRPCTimeout)
	}
	return err
}

// expireLeases revokes expired leases, and records the remaining TTL of long ones, while
// this member leads.
func (s *Leases) expireLeases(ctx context.Context) {
	if s.replica.sureToLead(ctx) != nil {
		return
	}
	term := s.replica.Term() // before the lessor decides
	for _, id := range s.lessor.Expired(s.cfg.Clock.Now(), lease.MaxExpired) {
		select {
		case s.revoking <- struct{}{}:
		case <-ctx.Done():
			return
		}
		s.replica.background(func() {
			defer func() { <-s.revoking }()
			s.revokeExpired(term, id)
		})
	}
	err := s.record(ctx, term, func() *pb.InternalRaftRequest { return s.lessor.RecordDue(s.cfg.Clock.Now()) })
	if err != nil && !ended(err) && !errors.Is(err, lease.ErrNotPrimary) {
		s.lg.Warn("failed to record the remaining TTL of leases", zap.Error(err))
	}
}

// revokeExpired revokes a lease that has expired on this member as the leader of a term. A
// later leader has started the lease again, and its client may have renewed it there.
func (s *Leases) revokeExpired(term ids.Term, id lease.ID) {
	_, err := s.replica.proposeIn(asRoot(s.replica.rootCtx), term, lease.RevokeOf(id))
	switch {
	case err == nil:
		metrics.DebuggingServerLeaseExpiredTotal.Inc()
	case errors.Is(err, rpctypes.ErrGRPCLeaseNotFound), ended(err), errors.Is(err, rpctypes.ErrGRPCStopped), errors.Is(err, proposal.ErrNotLeading):
	default:
		s.lg.Warn("failed to revoke an expired lease; will try again", zap.Stringer("lease-id", id), zap.Error(err))
	}
}

// record proposes, as the leader of a term, what decide returns about checkpoints, if that is
// anything. At a later leader, which does not know of them, they could outlast a renewal.
func (s *Leases) record(ctx context.Context, term ids.Term, decide func() *pb.InternalRaftRequest) error {
	p, err := s.handRecord(ctx, term, decide)
	if p == nil || err != nil {
		return err
	}
	_, err = s.replica.await(ctx, p)
	if errors.Is(err, proposal.ErrNotLeading) {
		return lease.ErrNotPrimary
	}
	return err
}

func (s *Leases) handRecord(ctx context.Context, term ids.Term, decide func() *pb.InternalRaftRequest) (*proposal.Pending, error) {
	s.recording.Lock()
	defer s.recording.Unlock()
	req := decide()
	if req == nil {
		return nil, nil
	}
	p, err := s.replica.pendingOf(ctx, req, term)
	if err != nil {
		return nil, err
	}
	return p, s.replica.hand(p)
}

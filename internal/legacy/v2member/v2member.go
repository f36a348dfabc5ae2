// Package v2member is a member's part of the v2 API: requests to the tree, the removal of
// expired nodes, and the check whether all members keep the data.
//
// In: requests of the API, and a member as its Host. Out: events of the tree, and entries
// for the log. Always true: a write is proposed only if every member is known or assumed to
// keep it; a quorum read sees every write that was acknowledged before it.
package v2member

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"

	"quorate/internal/clock"
	"quorate/internal/ids"
	"quorate/internal/legacy/v2request"
	"quorate/internal/legacy/v2store"
	"quorate/internal/membership"
	"quorate/internal/transport/peerapi"
)

// ExpireInterval is the interval at which a leader calls Expire.
const ExpireInterval = 500 * time.Millisecond

// Host is the member. It is safe for concurrent use.
type Host interface {
	// Tree returns the current tree; installing a snapshot replaces it.
	Tree() *v2store.Store
	// Barrier waits until everything acknowledged before the call is applied here.
	Barrier(ctx context.Context) error
	// Propose proposes a request, under an id of its own, and returns the result of
	// applying it.
	Propose(ctx context.Context, r *v2request.Request) (any, error)
	// SureToLead reports whether a leader still is the leader.
	SureToLead(ctx context.Context) error
	// TimeoutError returns the reason why a request that began then got no answer in time.
	TimeoutError(began time.Time) error
	// Stopped is closed when the member stops.
	Stopped() <-chan struct{}
	// MemberID is the id of this member.
	MemberID() ids.Member
	// ActiveSince returns when the connection to another member was established; zero:
	// there is none.
	ActiveSince(id ids.Member) time.Time
	// Version asks another member for its version.
	Version(ctx context.Context, urls []string) (peerapi.Versions, error)
}

// Options of a Service.
type Options struct {
	Cluster        *membership.Cluster
	RequestTimeout time.Duration
	Clock          clock.Clock
	Logger         *zap.Logger
}

// Service serves the tree of the v2 API.
type Service struct {
	o     Options
	host  Host
	peers *peers
}

// New returns the service of a member.
func New(h Host, o Options) *Service { return &Service{o: o, host: h, peers: newPeers()} }

// V2Do executes a request of the v2 API and returns the result. GET reads what is applied
// here, unless Quorum is set; QGET reads behind a barrier; PUT, POST and DELETE go through
// the log. The request is not changed. Refusals of the store are of type *v2store.Error;
// any other error means that there is no result, or no known one.
func (s *Service) V2Do(ctx context.Context, r *v2request.Request) (*v2store.Event, error) {
	switch {
	case r.Method == "QGET", r.Method == "GET" && r.Quorum:
		ctx, cancel := context.WithTimeout(ctx, s.o.RequestTimeout)
		defer cancel()
		if err := s.host.Barrier(ctx); err != nil {
			return nil, err
		}
		return s.host.Tree().Get(r.Path, r.Recursive, r.Sorted)
	case r.Method == "GET", r.Method == "HEAD":
		return s.host.Tree().Get(r.Path, r.Recursive, r.Sorted)
	}
	began := s.o.Clock.Now()
	limited, cancel := context.WithTimeout(ctx, s.o.RequestTimeout)
	defer cancel()
	if err := s.allows(limited); err != nil {
		if ctx.Err() == nil && limited.Err() != nil {
			err = s.host.TimeoutError(began)
		}
		return nil, err
	}
	return s.propose(ctx, r)
}

func (s *Service) propose(ctx context.Context, r *v2request.Request) (*v2store.Event, error) {
	x := *r // apply may still read it after the caller has given up
	x.Time = s.o.Clock.Now().UnixNano()
	resp, err := s.host.Propose(ctx, &x)
	if err != nil {
		return nil, err
	}
	ev, _ := resp.(*v2store.Event) // a sweep has no event
	return ev, nil
}

// V2Watch watches path and, if recursive, everything below it, from the index since on; 0
// is the next event. The watcher's channel is closed when the member stops or replaces its
// state by a snapshot.
func (s *Service) V2Watch(path string, recursive, stream bool, since uint64) (*v2store.Watcher, error) {
	select {
	case <-s.host.Stopped():
		return nil, rpctypes.ErrGRPCStopped
	default:
	}
	return s.host.Tree().Watch(path, recursive, stream, since)
}

// V2Stats returns the counters of the v2 tree as JSON.
func (s *Service) V2Stats() []byte { return s.host.Tree().StatsJSON() }

// Expire has expired nodes of the tree removed, by this member's clock, if it leads.
func (s *Service) Expire(ctx context.Context) {
	if !s.host.Tree().HasTTL() || s.host.SureToLead(ctx) != nil || s.allows(ctx) != nil {
		return
	}
	_, err := s.propose(ctx, &v2request.Request{Method: v2request.Sync})
	if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) && err != rpctypes.ErrGRPCStopped {
		s.o.Logger.Warn("failed to remove expired keys of the v2 API; will try again", zap.Error(err))
	}
}

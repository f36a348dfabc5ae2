// Package v2member is what a member does for the v2 API: requests to the tree, the removal
// of what has expired, and the question whether all members keep what is written.
//
// In: requests of the API, and a member as its Host. Out: events of the tree, and entries
// for the log. Always true: a write is proposed only where every member is known to keep it,
// or may be taken to; a quorum read sees every write that was acknowledged before it.
package v2member

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"

	"quorate/internal/clock"
	"quorate/internal/legacy/v2request"
	"quorate/internal/legacy/v2store"
	"quorate/internal/membership"
	"quorate/internal/transport/peerapi"
)

// ExpireInterval is how often a leader calls Expire.
const ExpireInterval = 500 * time.Millisecond

// Host is the member. Its methods may be called from any goroutine.
type Host interface {
	// Tree is the tree as it is now; an installed snapshot brings another one.
	Tree() *v2store.Store
	// Barrier waits until all that was acknowledged before is applied here.
	Barrier(ctx context.Context) error
	// Propose puts a request into the log, under an id of its own, and returns what
	// applying it gave.
	Propose(ctx context.Context, r *v2request.Request) (any, error)
	// SureToLead tells a leader whether it still is one.
	SureToLead(ctx context.Context) error
	// TimeoutError tells why a request that began then had no answer in time.
	TimeoutError(began time.Time) error
	// Stopped is closed when the member stops.
	Stopped() <-chan struct{}
	// MemberID is this member.
	MemberID() uint64
	// ActiveSince is the beginning of the connection to another one; zero: there is none.
	ActiveSince(id uint64) time.Time
	// Version asks another one what it is.
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

// New makes the service of a member.
func New(h Host, o Options) *Service { return &Service{o: o, host: h, peers: newPeers()} }

// V2Do carries out a request of the v2 API and returns what came of it. GET reads
// what is applied here, unless Quorum is set, QGET behind a barrier; PUT, POST and
// DELETE go through the log. The request is not changed. What the store refuses is a
// *v2store.Error; other errors tell that there is no outcome, or none that is known.
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
	x := *r // whoever applies it may still read it when the caller has given up
	x.Time = s.o.Clock.Now().UnixNano()
	resp, err := s.host.Propose(ctx, &x)
	if err != nil {
		return nil, err
	}
	ev, _ := resp.(*v2store.Event) // none of a sweep
	return ev, nil
}

// V2Watch waits for changes at path, and below it if recursive, from the index
// since on, 0 for what comes next. The watcher's channel closes when the member
// stops or exchanges its state for that of a snapshot.
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

// Expire has expired nodes of the tree removed, if this member leads, by its clock.
func (s *Service) Expire(ctx context.Context) {
	if !s.host.Tree().HasTTL() || s.host.SureToLead(ctx) != nil || s.allows(ctx) != nil {
		return
	}
	_, err := s.propose(ctx, &v2request.Request{Method: v2request.Sync})
	if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) && err != rpctypes.ErrGRPCStopped {
		s.o.Logger.Warn("failed to remove expired keys of the v2 API; will try again", zap.Error(err))
	}
}

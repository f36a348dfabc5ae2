package server

import (
	"context"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"

	"quorate/internal/legacy/v2request"
	"quorate/internal/legacy/v2store"
	"quorate/internal/membership"
	"quorate/internal/password"
	"quorate/internal/proposal"
	"quorate/internal/transport"
	"quorate/internal/transport/peerapi"
)

// V2 serves the tree of the v2 API.
type V2 struct {
	cfg       *Config
	lg        *zap.Logger
	replica   *localReplica
	cluster   *membership.Cluster
	peers     *peerapi.Client
	tr        *transport.Transport
	passwords *password.Hasher

	v2Peers *v2Peers
}

const (
	// maxV2Request bounds an entry of the v2 API. Its forms are up to 10 MiB long, and
	// --max-request-bytes is not about them.
	maxV2Request = 11 << 20
	// v2SyncInterval is how often a leader has removed what has expired.
	v2SyncInterval = 500 * time.Millisecond
	v2Sync         = "SYNC"
)

func (s *V2) v2() *v2store.Store { return s.replica.mach().V2() }

// V2Do carries out a request of the v2 API and returns what came of it. GET reads
// what is applied here, unless Quorum is set, QGET behind a barrier; PUT, POST and
// DELETE go through the log. The request is not changed. What the store refuses is a
// *v2store.Error; other errors tell that there is no outcome, or none that is known.
func (s *V2) V2Do(ctx context.Context, r *v2request.Request) (*v2store.Event, error) {
	switch {
	case r.Method == "QGET", r.Method == "GET" && r.Quorum:
		ctx, cancel := context.WithTimeout(ctx, s.cfg.requestTimeout())
		defer cancel()
		if err := s.replica.barrier(ctx); err != nil {
			return nil, err
		}
		return s.v2().Get(r.Path, r.Recursive, r.Sorted)
	case r.Method == "GET", r.Method == "HEAD":
		return s.v2().Get(r.Path, r.Recursive, r.Sorted)
	}
	began := s.cfg.Clock.Now()
	limited, cancel := context.WithTimeout(ctx, s.cfg.requestTimeout())
	defer cancel()
	if err := s.allowsV2(limited); err != nil {
		if ctx.Err() == nil && limited.Err() != nil {
			err = s.replica.timeoutError(began)
		}
		return nil, err
	}
	return s.proposeV2(ctx, r)
}

func (s *V2) proposeV2(ctx context.Context, r *v2request.Request) (*v2store.Event, error) {
	x := *r // whoever applies it may still read it when the caller has given up
	x.ID = s.replica.ids.Next()
	x.Time = s.cfg.Clock.Now().UnixNano()
	res, err := s.replica.submit(ctx, &proposal.Pending{ID: x.ID, V2: &x, Data: x.Marshal()})
	if err != nil {
		return nil, err
	}
	ev, _ := res.Resp.(*v2store.Event) // none of a sweep
	return ev, nil
}

// V2Watch waits for changes at path, and below it if recursive, from the index
// since on, 0 for what comes next. The watcher's channel closes when the member
// stops or exchanges its state for that of a snapshot.
func (s *V2) V2Watch(path string, recursive, stream bool, since uint64) (*v2store.Watcher, error) {
	select {
	case <-s.replica.stop:
		return nil, errStopped
	default:
	}
	return s.v2().Watch(path, recursive, stream, since)
}

// V2Stats returns the counters of the v2 tree as JSON.
func (s *V2) V2Stats() []byte { return s.v2().StatsJSON() }

// expireV2 has expired nodes of the v2 tree removed as long as this member leads,
// by its clock.
func (s *V2) expireV2(ctx context.Context) {
	if !s.v2().HasTTL() || s.replica.sureToLead(ctx) != nil || s.allowsV2(ctx) != nil {
		return
	}
	_, err := s.proposeV2(ctx, &v2request.Request{Method: v2Sync})
	if err != nil && !ended(err) && err != rpctypes.ErrGRPCStopped {
		s.lg.Warn("failed to remove expired keys of the v2 API; will try again", zap.Error(err))
	}
}

// V2HashPassword returns the bcrypt hash of a password of the v2 API. It waits for
// its turn among all passwords that are being hashed.
func (s *V2) V2HashPassword(ctx context.Context, password string) ([]byte, error) {
	return s.passwords.HashV2(ctx, password)
}

// V2PasswordMatches reports whether the hash is that of the password. It waits
// for the same turn.
func (s *V2) V2PasswordMatches(ctx context.Context, hash []byte, password string) (bool, error) {
	return s.passwords.Matches(ctx, hash, password)
}

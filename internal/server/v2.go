package server

import (
	"context"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"

	"quorate/internal/command"
	"quorate/internal/legacy/v2store"
	"quorate/internal/proposal"
)

const (
	// maxV2Request bounds an entry of the v2 API. Its forms are up to 10 MiB long, and
	// --max-request-bytes is not about them.
	maxV2Request = 11 << 20
	// v2SyncInterval is how often a leader has removed what has expired.
	v2SyncInterval = 500 * time.Millisecond
	v2Sync         = "SYNC"
)

func (m *Member) v2() *v2store.Store { return m.mach().V2() }

// V2Do carries out a request of the v2 API and returns what came of it. GET reads
// what is applied here, unless Quorum is set, QGET behind a barrier; PUT, POST and
// DELETE go through the log. The request is not changed. What the store refuses is a
// *v2store.Error; other errors tell that there is no outcome, or none that is known.
func (m *Member) V2Do(ctx context.Context, r *command.V2Request) (*v2store.Event, error) {
	switch {
	case r.Method == "QGET", r.Method == "GET" && r.Quorum:
		ctx, cancel := context.WithTimeout(ctx, m.cfg.requestTimeout())
		defer cancel()
		if err := m.barrier(ctx); err != nil {
			return nil, err
		}
		return m.v2().Get(r.Path, r.Recursive, r.Sorted)
	case r.Method == "GET", r.Method == "HEAD":
		return m.v2().Get(r.Path, r.Recursive, r.Sorted)
	}
	began := m.cfg.Clock.Now()
	limited, cancel := context.WithTimeout(ctx, m.cfg.requestTimeout())
	defer cancel()
	if err := m.allowsV2(limited); err != nil {
		if ctx.Err() == nil && limited.Err() != nil {
			err = m.timeoutError(began)
		}
		return nil, err
	}
	return m.proposeV2(ctx, r)
}

func (m *Member) proposeV2(ctx context.Context, r *command.V2Request) (*v2store.Event, error) {
	x := *r // whoever applies it may still read it when the caller has given up
	x.ID = m.ids.Next()
	x.Time = m.cfg.Clock.Now().UnixNano()
	res, err := m.submit(ctx, &proposal.Pending{ID: x.ID, V2: &x, Data: x.Marshal()})
	if err != nil {
		return nil, err
	}
	ev, _ := res.Resp.(*v2store.Event) // none of a sweep
	return ev, nil
}

// V2Watch waits for changes at path, and below it if recursive, from the index
// since on, 0 for what comes next. The watcher's channel closes when the member
// stops or exchanges its state for that of a snapshot.
func (m *Member) V2Watch(path string, recursive, stream bool, since uint64) (*v2store.Watcher, error) {
	select {
	case <-m.stop:
		return nil, errStopped
	default:
	}
	return m.v2().Watch(path, recursive, stream, since)
}

// V2Stats returns the counters of the v2 tree as JSON.
func (m *Member) V2Stats() []byte { return m.v2().StatsJSON() }

// CommittedIndex returns the index of the newest entry that is known to be committed.
func (m *Member) CommittedIndex() uint64 { return m.commit.Load() }

// expireV2 has expired nodes of the v2 tree removed as long as this member leads,
// by its clock.
func (m *Member) expireV2() {
	ticker := time.NewTicker(v2SyncInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-m.rootCtx.Done():
			return
		}
		if !m.isLeader() || !m.v2().HasTTL() || m.sureToLead(m.rootCtx) != nil || m.allowsV2(m.rootCtx) != nil {
			continue
		}
		_, err := m.proposeV2(m.rootCtx, &command.V2Request{Method: v2Sync})
		if err != nil && !ended(err) && err != rpctypes.ErrGRPCStopped {
			m.lg.Warn("failed to remove expired keys of the v2 API; will try again", zap.Error(err))
		}
	}
}

package history

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"quorate/compat/child"
)

// Watcher follows all keys from a revision on. When its stream breaks it resumes after the last revision it has,
// at the same member or at another one.
type Watcher struct {
	member  func() *child.Client
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	rev     atomic.Int64
	streams atomic.Int64
	events  []Event // read after Stop
	err     error   // an invalid stream; read after Stop
}

// Watch starts a watcher from the first revision on; member chooses the member for each new stream. The watcher
// stops with the test at the latest.
func Watch(t *testing.T, member func() *child.Client) *Watcher { return WatchFrom(t, 1, member) }

// WatchFrom starts a watcher of the revisions after rev.
func WatchFrom(t *testing.T, rev int64, member func() *child.Client) *Watcher {
	w := &Watcher{member: member}
	w.rev.Store(rev)
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	t.Cleanup(cancel)
	w.wg.Go(func() {
		for ctx.Err() == nil && w.err == nil {
			w.stream(ctx)
			Sleep(ctx, 20*time.Millisecond)
		}
	})
	return w
}

// Rev is the last revision that is complete.
func (w *Watcher) Rev() int64 { return w.rev.Load() }

// Streams is the number of streams opened.
func (w *Watcher) Streams() int64 { return w.streams.Load() }

// Await waits until the watcher has all events up to a revision.
func (w *Watcher) Await(t *testing.T, limit time.Duration, rev int64) {
	t.Helper()
	child.Eventually(t, limit, fmt.Sprintf("the watcher reaches revision %d", rev), func() error {
		if got := w.Rev(); got < rev {
			return fmt.Errorf("it is at %d", got)
		}
		return nil
	})
}

// Stop stops the watcher and returns its events; the error tells which stream was invalid.
func (w *Watcher) Stop() ([]Event, error) {
	w.cancel()
	w.wg.Wait()
	return w.events, w.err
}

// stream reads one stream until it breaks or violates a guarantee.
func (w *Watcher) stream(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := w.member().Watcher.Watch(ctx)
	if err != nil {
		return
	}
	start := w.rev.Load() + 1
	if s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
		Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: start}}}) != nil {
		return
	}
	w.streams.Add(1)
	for {
		r, err := s.Recv()
		if err != nil {
			return
		}
		if r.Canceled {
			// A member that shuts down cancels without a reason; every other reason fails the test.
			if r.CompactRevision != 0 || r.CancelReason != "" {
				w.err = fmt.Errorf("the watch from revision %d is cancelled: %q, compacted at %d", start, r.CancelReason, r.CompactRevision)
			}
			return
		}
		if w.err = w.take(r); w.err != nil {
			return
		}
	}
}

// take checks that a response continues where the last one stopped, without gaps or duplicates: every revision
// has an event, and all events of a revision come in one response.
func (w *Watcher) take(r *pb.WatchResponse) error {
	last := w.rev.Load()
	done := last
	for _, e := range r.Events {
		rev := e.Kv.ModRevision
		if rev != last && rev != last+1 || rev == done {
			return fmt.Errorf("revision %d (%s) follows revision %d in a response that began behind %d", rev, e.Kv.Key, last, done)
		}
		last = rev
		x := Event{Rev: rev, Key: string(e.Kv.Key)}
		if e.Type == mvccpb.Event_PUT {
			x.Value = string(e.Kv.Value)
		}
		w.events = append(w.events, x)
	}
	w.rev.Store(last)
	return nil
}

package cluster

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

// watcher follows all keys at one member from the first revision on. When its stream breaks it
// goes on with the revision behind the last one it has.
type watcher struct {
	c       *child.Client
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	rev     atomic.Int64 // last revision that is complete
	streams atomic.Int64 // that were opened
	events  []event      // read after stop
	err     error        // a wrong stream; read after stop
}

func watchFrom(t *testing.T, addr string) *watcher {
	w := &watcher{c: child.Dial(t, addr)}
	w.rev.Store(1)
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	t.Cleanup(cancel)
	w.wg.Go(func() {
		for ctx.Err() == nil && w.err == nil {
			w.stream(ctx)
			sleep(ctx, 20*time.Millisecond)
		}
	})
	return w
}

func (w *watcher) stop() ([]event, error) {
	w.cancel()
	w.wg.Wait()
	return w.events, w.err
}

// stream reads one stream until it breaks or says something wrong.
func (w *watcher) stream(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := w.c.Watcher.Watch(ctx)
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
			// A member that stops says so without a reason; everything else ends the test.
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

// take checks that a response goes on where the last one ended, without a gap and without
// anything twice: every revision has an event, and all of a revision come in one response.
func (w *watcher) take(r *pb.WatchResponse) error {
	last := w.rev.Load()
	done := last
	for _, e := range r.Events {
		rev := e.Kv.ModRevision
		if rev != last && rev != last+1 || rev == done {
			return fmt.Errorf("revision %d (%s) follows revision %d in a response that began behind %d", rev, e.Kv.Key, last, done)
		}
		last = rev
		x := event{rev: rev, key: string(e.Kv.Key)}
		if e.Type == mvccpb.Event_PUT {
			x.value = string(e.Kv.Value)
		}
		w.events = append(w.events, x)
	}
	w.rev.Store(last)
	return nil
}

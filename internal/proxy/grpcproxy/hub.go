package grpcproxy

import (
	"context"
	"errors"
	"slices"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"quorate/internal/metrics"
)

const (
	// A group with fewer than mergeBelow watchers may be merged into another one. Moving more
	// of them costs more than a watch of a member.
	mergeBelow = 5

	// watcherCost is about the memory of a watcher, not counting its key, and maxWatchers
	// bounds the memory of all watchers, in bytes.
	watcherCost = 512
	maxWatchers = 256 << 20
)

// opener opens watches on members. A closed channel ends a watch.
type opener interface {
	Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan
	// RequestProgress requests the progress of all watches that were opened with the
	// metadata of ctx; each reports it once it has caught up.
	RequestProgress(ctx context.Context) error
}

// watched is what a group watches, and for which caller.
type watched struct {
	span
	caller
}

// hub lets watchers of the same keys share watches of members.
//
// A group is one watch of a member and the watchers that it feeds. The group's next
// revision separates what all of its watchers have been given from what they have not: it
// is one more than the revision of the last event, or of the member's last progress
// notification. So a watcher that begins at next or later may join, and the watchers of a
// group may move to another group of the same keys whose next is not higher; a watcher
// drops events that it then gets twice, because it knows its own next revision.
//
// One goroutine for each group (pump) delivers the responses, and only this goroutine moves
// the group's watchers away, between two responses. So one goroutine at a time feeds a
// watcher.
type hub struct {
	up  opener
	lg  *zap.Logger
	ctx context.Context
	wg  sync.WaitGroup

	mu     sync.Mutex
	groups map[watched][]*group
	memory int // of watchers
}

// group is guarded by its hub's mu.
type group struct {
	of       watched
	cancel   context.CancelFunc
	start    int64              // requested start revision; 0 is the current one
	next     int64              // 0: unknown before the first response
	header   *pb.ResponseHeader // the last header; nil before the first response
	watchers []*watcher
}

// watcher is a watcher that a client has created.
type watcher struct {
	stream   *watchStream
	id       int64
	of       watched
	start    int64
	filters  []pb.WatchCreateRequest_FilterType
	progress bool
	prevKV   bool
	fragment bool

	next int64 // events below it are skipped, 0 if unknown yet; belongs to the goroutine that feeds the watcher

	group *group // nil: none; guarded by the hub's mu
	at    int    // in group.watchers; guarded by the hub's mu

	header *pb.ResponseHeader // the last revision sent; guarded by the stream's mu
}

func newHub(ctx context.Context, up opener, lg *zap.Logger) *hub {
	return &hub{up: up, lg: lg, ctx: ctx, groups: map[watched][]*group{}}
}

// wait returns when all groups have ended. Call it after ctx has ended.
func (h *hub) wait() {
	h.mu.Lock()
	//lint:ignore SA2001 the next line says what for
	h.mu.Unlock() // no caller that saw ctx active is still adding
	h.wg.Wait()
}

func (w *watcher) cost() int { return watcherCost + len(w.of.key) + len(w.of.end) }

// join adds w to a group, or opens one for it. The reply to the create request is sent now
// or with the group's first response. join fails if there are too many watchers.
func (h *hub) join(w *watcher) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ctx.Err() != nil {
		return errStopped
	}
	if h.memory+w.cost() > maxWatchers {
		return rpctypes.ErrGRPCRequestTooManyRequests
	}
	h.memory += w.cost()
	w.next = w.start
	for _, g := range h.groups[w.of] {
		if !g.admits(w) {
			continue
		}
		if g.header != nil {
			w.stream.created(w, g.header)
		}
		g.add(w)
		metrics.GRPCProxyWatchersCoalescingTotal.Inc()
		return nil
	}
	ctx, cancel := context.WithCancel(h.ctx)
	g := &group{of: w.of, cancel: cancel, start: w.start, next: w.start}
	g.add(w)
	h.groups[w.of] = append(h.groups[w.of], g)
	h.wg.Go(func() { h.pump(ctx, g) })
	return nil
}

// admits reports whether w would miss nothing in g, and would get a correct reply: a
// watcher from the current revision on must be told that revision.
func (g *group) admits(w *watcher) bool {
	if w.start == 0 {
		return g.header == nil && g.start == 0
	}
	return g.next > 0 && w.start >= g.next
}

func (g *group) add(w *watcher) {
	w.group, w.at = g, len(g.watchers)
	g.watchers = append(g.watchers, w)
}

func (g *group) remove(w *watcher) {
	last := len(g.watchers) - 1
	g.watchers[w.at] = g.watchers[last]
	g.watchers[w.at].at = w.at
	g.watchers[last] = nil
	g.watchers = g.watchers[:last]
	w.group = nil
}

// leave stops feeding w. A group without watchers ends.
func (h *hub) leave(w *watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := w.group
	if g == nil {
		return
	}
	g.remove(w)
	h.memory -= w.cost()
	if len(g.watchers) == 0 {
		h.drop(g)
		return
	}
	metrics.GRPCProxyWatchersCoalescingTotal.Dec()
}

// drop removes a group. h.mu must be held.
func (h *hub) drop(g *group) {
	g.cancel()
	left := slices.DeleteFunc(h.groups[g.of], func(o *group) bool { return o == g })
	if len(left) == 0 {
		delete(h.groups, g.of)
		return
	}
	h.groups[g.of] = left
}

// pump delivers the member's responses until the watch ends or no watcher is left.
func (h *hub) pump(ctx context.Context, g *group) {
	defer g.cancel()
	responses := h.up.Watch(g.of.caller.as(ctx), g.of.key,
		clientv3.WithRange(g.of.end), clientv3.WithRev(g.start), clientv3.WithPrevKV(),
		clientv3.WithProgressNotify(), clientv3.WithCreatedNotify())
	for r := range responses {
		if r.Canceled {
			h.fail(g, r)
			return
		}
		ws := h.advance(g, r)
		for _, w := range ws {
			w.feed(r)
			if r.Created {
				w.stream.askAgain(w)
			}
		}
		if h.merge(g) {
			for _, w := range ws {
				w.stream.askAgain(w)
			}
			return
		}
	}
	// The client of the cluster was closed, or no watcher is left.
	h.fail(g, clientv3.WatchResponse{Canceled: true})
}

// advance updates g's revisions from r and returns the watchers to deliver r to.
func (h *hub) advance(g *group, r clientv3.WatchResponse) []*watcher {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case len(r.Events) > 0:
		g.next = max(g.next, r.Events[len(r.Events)-1].Kv.ModRevision+1)
	case r.IsProgressNotify():
		g.next = max(g.next, r.Header.Revision+1)
	case r.Created && g.start == 0:
		g.next = r.Header.GetRevision() + 1
	}
	g.header = r.Header
	if n := len(g.watchers); n > 1 {
		metrics.GRPCProxyEventsCoalescingTotal.Add(float64(n - 1))
	}
	return slices.Clone(g.watchers)
}

// merge moves the watchers of a small group to another group and reports whether it did. No
// response of g is being delivered meanwhile.
func (h *hub) merge(g *group) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := len(g.watchers)
	if n == 0 {
		return true // the last watcher has left, and the group with it
	}
	if n >= mergeBelow || g.next == 0 {
		return false
	}
	for _, o := range h.groups[g.of] {
		if o == g || o.header == nil || o.next > g.next {
			continue
		}
		for _, w := range g.watchers {
			o.add(w)
		}
		g.watchers = nil
		h.drop(g)
		metrics.GRPCProxyWatchersCoalescingTotal.Inc()
		return true
	}
	return false
}

// fail tells the watchers of g that their watch has ended. If no member can be reached, or
// the member has lost its leader, their streams end.
func (h *hub) fail(g *group, r clientv3.WatchResponse) {
	h.mu.Lock()
	ws := g.watchers
	g.watchers = nil
	for _, w := range ws {
		w.group = nil
		h.memory -= w.cost()
	}
	if len(ws) > 0 {
		h.drop(g)
		metrics.GRPCProxyWatchersCoalescingTotal.Sub(float64(len(ws) - 1))
	}
	begun := g.header != nil
	h.mu.Unlock()

	err := r.Err()
	for _, w := range ws {
		switch {
		case h.ctx.Err() != nil:
			w.stream.end(errStopped)
		case errors.Is(err, rpctypes.ErrNoLeader):
			w.stream.end(rpctypes.ErrGRPCNoLeader)
		case r.Header == nil:
			w.stream.end(errLost)
		case r.CompactRevision > 0 || begun:
			w.stream.canceled(w, &pb.WatchResponse{Header: r.Header, WatchId: w.id, Canceled: true,
				CompactRevision: r.CompactRevision, CancelReason: reasonOf(r, err)})
		default:
			w.stream.canceled(w, refusal(r.Header, reasonOf(r, err)))
		}
	}
}

// reasonOf returns the member's reason for ending a watch.
func reasonOf(r clientv3.WatchResponse, err error) string {
	switch {
	case r.CancelReason != "" || r.CompactRevision > 0:
		return r.CancelReason
	case errors.Is(err, rpctypes.ErrFutureRev):
		return "" // the client's text if there is no reason
	}
	return rpctypes.ErrorDesc(err)
}

// feed delivers to the client of w the part of r that w watches.
func (w *watcher) feed(r clientv3.WatchResponse) {
	resp := &pb.WatchResponse{Header: r.Header, WatchId: w.id, Created: r.Created}
	switch {
	case r.Created:
		if w.next == 0 {
			w.next = r.Header.GetRevision() + 1
		}
	case r.IsProgressNotify():
		w.stream.progressed(w, r.Header)
		if !w.progress {
			return
		}
	default:
		if resp.Events = w.events(r.Events); len(resp.Events) == 0 {
			return
		}
	}
	w.stream.push(w, resp)
}

// events returns the events that w watches. They are shared and not changed.
func (w *watcher) events(all []*clientv3.Event) []*mvccpb.Event {
	var events []*mvccpb.Event
	from := w.next
	for _, e := range all {
		if e.Kv.ModRevision < from {
			continue
		}
		w.next = e.Kv.ModRevision + 1
		if w.filters != nil && slices.Contains(w.filters, filterOf(e.Type)) {
			continue
		}
		if e.PrevKv != nil && !w.prevKV {
			e = &mvccpb.Event{Type: e.Type, Kv: e.Kv}
		}
		events = append(events, e)
	}
	return events
}

// filterOf returns the filter that drops events of a type.
func filterOf(t mvccpb.Event_EventType) pb.WatchCreateRequest_FilterType {
	if t == mvccpb.DELETE {
		return pb.WatchCreateRequest_NODELETE
	}
	return pb.WatchCreateRequest_NOPUT
}

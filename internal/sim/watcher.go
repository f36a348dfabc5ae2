package sim

import (
	"context"
	"fmt"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"quorate/internal/ids"
	"quorate/internal/watch"
)

// watcher is a client that watches a range at a random member from a random revision. When
// that member goes down, it resumes at another one. It must see the model's events: each
// once, in order, whole revisions, with the right previous values.
type watcher struct {
	w       *World
	id      int
	n       *node
	life    int // of n
	stream  *watch.Stream
	owner   string // the user
	req     *pb.WatchCreateRequest
	created bool
	asked   int          // progress requests without an answer
	next    ids.Revision // it has seen all events before this revision
	pos     int          // index of the next event in the model's list, or a lower one
	split   bool         // in the middle of a fragmented response
	stopped bool
}

// watchOptions returns limits so small that all of them are reached.
func (w *World) watchOptions() watch.Options {
	return watch.Options{FragmentBytes: 64 + w.rng.IntN(200), QueueResponses: 1 + w.rng.IntN(8), QueueBytes: 128 + w.rng.IntN(2000),
		PendingBytes: 4 << 10, BatchRevisions: 1 + w.rng.IntN(20), BatchBytes: 64 + w.rng.IntN(1000), PassWatchers: 1 + w.rng.IntN(4),
		ProgressInterval: time.Second, OnError: func(err error) { w.fail("watch: %w", err) }}
}

// catchUp sends history to the watchers of a member that are behind.
func (n *node) catchUp() {
	for i := 0; i < 20 && n.hub.CatchUp(); i++ {
	}
	n.auditWatches()
}

// auditWatches checks the bounds of the queues of watches.
func (n *node) auditWatches() {
	if err := n.hub.Audit(); err != nil {
		n.w.fail("member %d: %w", n.index, err)
	}
}

func (c *watcher) again() { c.w.after(c.w.between(time.Millisecond, 50*time.Millisecond), c.poll) }

// open starts a watch at a random member: it resumes the previous one or creates a new one.
func (c *watcher) open() {
	w := c.w
	if n := w.nodes[w.rng.IntN(len(w.nodes))]; n.down || !n.joined() {
		return
	} else {
		c.n, c.life = n, n.life
	}
	c.created, c.asked, c.split = false, 0, false
	c.stream = c.n.hub.NewStream(context.Background())
	resumed := c.req != nil && (c.stopped || w.rng.IntN(4) > 0)
	if !resumed {
		c.req = &pb.WatchCreateRequest{Key: []byte("t0"), RangeEnd: []byte("u"), PrevKv: w.rng.IntN(2) == 0, Fragment: w.rng.IntN(2) == 0, ProgressNotify: w.rng.IntN(2) == 0}
		switch w.rng.IntN(5) {
		case 0:
			c.req.RangeEnd = nil
		case 1:
			c.req.RangeEnd = []byte{0}
		case 2:
			c.req.Filters = []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_FilterType(w.rng.IntN(2))}
		}
		c.next, c.pos = max(0, w.model.rev-ids.Revision(w.rng.Int64N(60))), 0
		if w.rng.IntN(4) == 0 {
			c.next = 0 // from now on
		} else if w.rng.IntN(8) == 0 {
			c.next = w.model.rev + ids.Revision(w.rng.Int64N(10))
		}
	} else {
		w.did["resumed watch"]++
		for c.pos > 0 && ids.Revision(w.model.events[c.pos-1].Kv.ModRevision) >= c.next {
			c.pos-- // it was cut in the middle of a revision, which is sent again
		}
	}
	c.req.StartRevision = int64(c.next)
	if !resumed || c.stopped {
		if c.owner = w.someUser(); c.stopped {
			c.owner = w.root() // must see everything in the end
		}
	}
	if err := c.n.auth.State().CanRead(c.n.caller(c.owner), c.req.Key, c.req.RangeEnd); err != nil {
		c.close()
		return
	}
	w.log("watcher %d at %d from %d", c.id, c.n.index, c.next)
	if err := c.stream.CreateFor(c.owner, c.req); err != nil {
		w.fail("watch at member %d: %w", c.n.index, err)
	}
}

func (c *watcher) close() {
	if c.stream != nil {
		c.stream.Close()
		c.stream = nil
	}
}

// poll reads some of the responses that have arrived.
func (c *watcher) poll() {
	defer c.again()
	w := c.w
	if c.stream != nil && (c.n.life != c.life || c.n.down) {
		c.close()
	}
	if c.stream != nil && !c.stopped && w.rng.IntN(60) == 0 {
		c.close()
	}
	if c.stream == nil {
		if c.open(); c.stream == nil {
			return
		}
	}
	if c.asked < 8 && w.rng.IntN(6) == 0 {
		c.asked++
		if err := c.stream.Progress(); err != nil {
			w.fail("progress of a watch: %w", err)
		}
	}
	for range 1 + w.rng.IntN(6) {
		r, ok, err := c.stream.TryNext()
		if err != nil {
			w.fail("watch at member %d: %w", c.n.index, err)
		}
		if !ok || err != nil {
			return
		}
		if c.take(&r); c.stream == nil {
			return
		}
	}
}

func (c *watcher) take(r *watch.Response) {
	w := c.w
	w.log("watcher %d: rev=%d events=%d created=%v canceled=%v compact=%d id=%d", c.id, r.Revision, len(r.Events), r.Created, r.Canceled, r.CompactRevision, r.WatchID)
	switch {
	case r.Created:
		c.created = true
		if c.next == 0 {
			c.next = r.Revision + 1
		}
	case !c.created:
		c.fail("gets a response before its watch is created")
	case r.Canceled && c.w.faults.Auth && r.CompactRevision == 0 && strings.HasPrefix(r.CancelReason, "auth: "):
		w.did["watch of a user that was refused"]++
		c.close()
	case r.Canceled:
		if r.CompactRevision == 0 || r.CompactRevision > w.model.compacted || c.next >= r.CompactRevision {
			c.fail("is canceled (%q) at revision %d because of a compaction at %d; the last one was at %d", r.CancelReason, c.next, r.CompactRevision, w.model.compacted)
		}
		w.did["canceled watch"]++
		c.next = r.CompactRevision + 1
		c.close()
	case len(r.Events) == 0:
		if r.WatchID == watch.InvalidID {
			c.asked = max(0, c.asked-1)
		}
		c.bookmark(r.Revision)
	default:
		c.events(r)
	}
}

// bookmark checks that no event up to rev is missing.
func (c *watcher) bookmark(rev ids.Revision) {
	c.w.did["bookmark"]++
	if e := c.expected(); e != nil && ids.Revision(e.Kv.ModRevision) <= rev {
		c.fail("gets a bookmark at revision %d before it has seen %v", rev, e)
	}
	if c.split {
		c.fail("gets a bookmark in the middle of a fragmented response")
	}
	c.next = max(c.next, rev+1)
}

func (c *watcher) events(r *watch.Response) {
	if r.Fragment && !c.req.Fragment {
		c.fail("gets a fragment that it has not asked for")
	}
	if r.Fragment {
		c.w.did["fragment"]++
	}
	for _, b := range r.Events {
		have, err := decodeEvent(b)
		if err != nil {
			c.fail("cannot decode an event: %v", err)
			return
		}
		c.w.did["event"]++
		e := c.expected()
		if e == nil {
			c.fail("sees %v, which does not exist", have)
			return
		}
		if !c.w.model.everMay(c.w.model.eventAt[c.pos], c.owner, c.req.Key, c.req.RangeEnd) {
			c.fail("sees %v, although %q was not permitted to read since then", have, c.owner)
		}
		want := &mvccpb.Event{Type: e.Type, Kv: e.Kv}
		if c.req.PrevKv {
			want.PrevKv = e.PrevKv
			if have.PrevKv == nil && c.w.model.compacted >= ids.Revision(e.Kv.ModRevision)-1 {
				want.PrevKv = nil // it is compacted
			}
		}
		if !proto.Equal(have, want) {
			c.fail("sees\n%v\nit must be\n%v", have, want)
			return
		}
		c.next = max(c.next, ids.Revision(have.Kv.ModRevision)) // the next fragment may hold the rest of the revision
		c.pos++
	}
	if c.split = r.Fragment; c.split {
		return
	}
	if e := c.expected(); e != nil && ids.Revision(e.Kv.ModRevision) == c.next {
		c.fail("sees revision %d without %v", c.next, e)
	}
	c.next++
}

// expected returns the next event that the watcher has to see, nil if there is none yet.
func (c *watcher) expected() *mvccpb.Event {
	for ; c.pos < len(c.w.model.events); c.pos++ {
		e := c.w.model.events[c.pos]
		if ids.Revision(e.Kv.ModRevision) >= c.next && c.wants(e) {
			return e
		}
	}
	return nil
}

func (c *watcher) wants(e *mvccpb.Event) bool {
	for _, f := range c.req.Filters {
		if f == pb.WatchCreateRequest_NOPUT && e.Type == mvccpb.Event_PUT || f == pb.WatchCreateRequest_NODELETE && e.Type == mvccpb.Event_DELETE {
			return false
		}
	}
	return inRange(string(e.Kv.Key), string(c.req.Key), string(c.req.RangeEnd))
}

func (c *watcher) fail(format string, args ...any) {
	c.w.fail("watcher %d of member %d (%v, from %d on) %s", c.id, c.n.index, c.req, c.next, fmt.Sprintf(format, args...))
}

// checkWatches waits until every watcher has seen all events.
func (w *World) checkWatches() {
	done := func() bool {
		for _, c := range w.watchers {
			if c.stream == nil || !c.created || c.expected() != nil {
				return false
			}
		}
		return true
	}
	if !w.runUntil(time.Minute, done) {
		for _, c := range w.watchers {
			if c.stream == nil || !c.created {
				w.fail("watcher %d cannot watch", c.id)
			} else if e := c.expected(); e != nil {
				c.fail("does not get to see %v", e)
			}
		}
	}
}

func decodeEvent(b []byte) (*mvccpb.Event, error) {
	_, _, n := protowire.ConsumeTag(b)
	if n < 0 {
		return nil, protowire.ParseError(n)
	}
	body, m := protowire.ConsumeBytes(b[n:])
	if m < 0 {
		return nil, protowire.ParseError(m)
	}
	e := &mvccpb.Event{}
	return e, proto.Unmarshal(body, e)
}

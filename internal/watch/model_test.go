package watch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand"
	"slices"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"quorate/internal/clock"
	"quorate/internal/ids"
)

// TestModel lets random clients watch a random history through tiny queues, and compares what
// each watcher gets with the filtered history. Half of the steps happen within a scan, between
// reading history and retaking the lock.
func TestModel(t *testing.T) {
	seeds := 200
	if testing.Short() {
		seeds = 40
	}
	for seed := range seeds {
		m := newModel(t, int64(seed))
		for range 250 {
			m.step()
			m.audit()
		}
		m.finish()
		m.audit()
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

type model struct {
	t       *testing.T
	r       *rand.Rand
	store   *store
	hub     *Hub
	clk     *clock.Manual
	held    []Event
	streams []*modelStream
	depth   int // of steps within a scan
}

type modelStream struct {
	s        *Stream
	watchers map[int64]*modelWatcher
	expect   []*modelWatcher // created; response not read yet
	part     *Response       // fragments so far
}

// modelWatcher is what the client of a watcher knows.
type modelWatcher struct {
	req  *pb.WatchCreateRequest
	next ids.Revision // revision from which events are still to come
}

// dead is the next revision of a watcher that was cancelled by a compaction and whose
// ID is still in use.
const dead = 1 << 62

func newModel(t *testing.T, seed int64) *model {
	r := rand.New(rand.NewSource(seed))
	m := &model{t: t, r: r, store: newStore(), clk: clock.NewManual(time.Unix(0, 0))}
	for range r.Intn(30) {
		m.write()
	}
	m.held = nil
	m.store.scanned = func() {
		if m.depth == 0 {
			m.depth++
			for m.r.Intn(2) == 0 {
				m.step()
			}
			m.depth--
		}
	}
	m.hub = NewHub(m.store, m.clk, Options{
		FragmentBytes:    100 + r.Intn(300),
		QueueResponses:   1 + r.Intn(4),
		QueueBytes:       1 + r.Intn(400),
		PendingBytes:     int64(1 + r.Intn(3000)),
		BatchRevisions:   1 + r.Intn(8),
		BatchBytes:       1 + r.Intn(300),
		PassWatchers:     1 + r.Intn(4),
		ControlResponses: 1 << 20,
		Jitter:           r.Int63n,
		OnError:          func(err error) { t.Errorf("seed %d: %v", seed, err) },
	})
	return m
}

func (m *model) key() string { return string(rune('a' + m.r.Intn(6))) }

func (m *model) write() {
	var ops []op
	used := map[string]bool{}
	for range 1 + m.r.Intn(3) {
		k := m.key()
		if used[k] {
			continue
		}
		used[k] = true
		if m.r.Intn(3) == 0 {
			ops = append(ops, del(k))
		} else {
			ops = append(ops, put(k, fmt.Sprintf("%0*d", 1+m.r.Intn(40), m.r.Intn(100))))
		}
	}
	m.held = append(m.held, m.store.apply(ops...)...)
}

func (m *model) publish() {
	m.hub.Publish(m.store.Rev(), m.held)
	m.held = nil
}

func (m *model) step() {
	switch n := m.r.Intn(100); {
	case n < 25:
		m.write()
		if m.r.Intn(2) == 0 {
			m.publish()
		}
	case n < 35:
		m.publish()
	case n < 38:
		if rev := m.store.Rev() - ids.Revision(m.r.Intn(12)); rev > 0 {
			m.store.compactTo(rev)
		}
	case n < 39:
		m.hub.Restore(m.store)
		m.held = nil
	case n < 42 && len(m.streams) < 6:
		m.streams = append(m.streams, &modelStream{
			s: m.hub.NewStream(context.Background()), watchers: map[int64]*modelWatcher{},
		})
	case n < 44:
		m.clk.Advance(time.Duration(m.r.Intn(12)) * time.Minute)
	case n < 60:
		if m.depth == 0 {
			m.hub.CatchUp()
		}
	case len(m.streams) == 0:
	default:
		i := m.r.Intn(len(m.streams))
		ms := m.streams[i]
		switch {
		case n < 66:
			m.create(ms)
		case n < 68 && len(ms.watchers) > 0:
			id := int64(m.r.Intn(8))
			if err := ms.s.Cancel(id); err != nil {
				m.t.Errorf("cancel: %v", err)
			}
		case n < 72:
			if err := ms.s.Progress(); err != nil {
				m.t.Errorf("progress: %v", err)
			}
		case n < 73 && m.r.Intn(3) == 0:
			ms.s.Close()
			if _, _, err := ms.s.TryNext(); !errors.Is(err, ErrClosed) {
				m.t.Errorf("next of a closed stream: %v", err)
			}
			m.streams = append(m.streams[:i], m.streams[i+1:]...)
		default:
			m.read(ms)
		}
	}
}

// audit checks the bounds of the hub.
func (m *model) audit() {
	if err := m.hub.Audit(); err != nil {
		m.t.Error(err)
	}
}

func (m *model) create(ms *modelStream) {
	req := &pb.WatchCreateRequest{
		Key: []byte(m.key()), PrevKv: m.r.Intn(2) == 0, Fragment: m.r.Intn(2) == 0,
		ProgressNotify: m.r.Intn(2) == 0,
	}
	switch m.r.Intn(4) {
	case 0:
		req.RangeEnd = []byte{req.Key[0] + 1 + byte(m.r.Intn(4))}
	case 1:
		req.RangeEnd = []byte{0}
	}
	if m.r.Intn(2) == 0 {
		req.StartRevision = 1 + m.r.Int63n(int64(m.store.Rev()+4))
	}
	for range m.r.Intn(2) {
		req.Filters = append(req.Filters, pb.WatchCreateRequest_FilterType(m.r.Intn(2)))
	}
	if err := ms.s.Create(req); err != nil {
		m.t.Errorf("create: %v", err)
	}
	ms.expect = append(ms.expect, &modelWatcher{req: req, next: ids.Revision(req.StartRevision)})
}

// read takes one response, or several, and checks them.
func (m *model) read(ms *modelStream) bool {
	r, ok, err := ms.s.TryNext()
	if err != nil {
		m.t.Errorf("next: %v", err)
	}
	if !ok {
		return false
	}
	if m.r.Intn(2) == 0 {
		m.receive(ms, r)
		return true
	}
	b := NewBatch(r, testHeader)
	defer b.Free()
	for more := true; more && m.r.Intn(4) > 0; b.Clear() {
		if more, err = ms.s.Take(b); err != nil {
			m.t.Errorf("take: %v", err)
		}
		for i, r := range b.Responses {
			if got, want := b.Append([]byte("x"), i), r.AppendTo([]byte("x"), testHeader); !bytes.Equal(got, want) || len(got) > b.Most(i) {
				m.t.Errorf("encoded in a batch: %x, alone: %x; at most %d bytes", got, want, b.Most(i))
			}
			m.receive(ms, r)
		}
	}
	for _, r := range b.Responses {
		m.receive(ms, r)
	}
	return true
}

// receive checks a response.
func (m *model) receive(ms *modelStream, r Response) {
	if r.Fragment || ms.part != nil {
		if n := r.Size(testHeader); n >= m.hub.o.FragmentBytes && len(r.Events) > 1 || len(r.Events) == 0 {
			m.t.Errorf("fragment of %d bytes and %d events", n, len(r.Events))
		}
	}
	if ms.part != nil {
		if r.WatchID != ms.part.WatchID || r.Revision != ms.part.Revision {
			m.t.Errorf("%s\ninterrupts the fragments of\n%s", printResponse(r), printResponse(*ms.part))
		}
		r.Events = append(slices.Clone(ms.part.Events), r.Events...)
		ms.part = nil
	}
	if r.Fragment {
		ms.part = &r
		return
	}
	msg := decode(r)
	w := ms.watchers[r.WatchID]
	switch {
	case r.Created:
		w = ms.expect[0]
		ms.expect = ms.expect[1:]
		if w.next == 0 {
			w.next = r.Revision + 1
		}
		ms.watchers[r.WatchID] = w
	case r.WatchID == InvalidID:
		for id, w := range ms.watchers {
			m.progress(id, w, r.Revision)
		}
	case w == nil:
		m.t.Errorf("no watcher for %s", printResponse(r))
	case r.Canceled:
		if r.CompactRevision != 0 && w.next >= r.CompactRevision {
			m.t.Errorf("watcher %d at %d canceled for the compaction of %d", r.WatchID, w.next, r.CompactRevision)
		}
		delete(ms.watchers, r.WatchID)
		if r.CompactRevision != 0 { // its ID is still in use: read the response to the cancel
			ms.watchers[r.WatchID] = &modelWatcher{req: &pb.WatchCreateRequest{}, next: dead}
		}
	case len(msg.Events) == 0:
		m.progress(r.WatchID, w, r.Revision)
	default:
		m.events(r, msg, w)
	}
}

// progress checks that a watcher has everything up to rev.
func (m *model) progress(id int64, w *modelWatcher, rev ids.Revision) {
	if w.next == dead {
		return
	}
	if missing := m.wanted(w, rev); len(missing) > 0 {
		m.t.Errorf("progress of watcher %d to %d, but %d:%s is missing", id, rev, missing[0].Mod, missing[0].Key)
	}
}

// wanted returns the events a watcher must get up to rev.
func (m *model) wanted(w *modelWatcher, rev ids.Revision) (out []Event) {
	for _, ev := range m.store.events {
		k := string(ev.Key)
		end := string(w.req.RangeEnd)
		in := k == string(w.req.Key) || end != "" && k > string(w.req.Key) && (end == "\x00" || k < end)
		for _, f := range w.req.Filters {
			if ev.Delete == (f == pb.WatchCreateRequest_NODELETE) {
				in = false
			}
		}
		if in && ev.Mod >= w.next && ev.Mod <= rev {
			out = append(out, ev)
		}
	}
	return out
}

// events checks the events of one response against the history.
func (m *model) events(r Response, msg *pb.WatchResponse, w *modelWatcher) {
	last := ids.Revision(msg.Events[len(msg.Events)-1].Kv.ModRevision)
	want := m.wanted(w, last)
	got := len(msg.Events)
	if got != len(want) {
		m.t.Errorf("watcher at %d: %s\nwant %d events", w.next, printResponse(r), len(want))
		return
	}
	for i, ev := range msg.Events {
		x := want[i]
		kv := ev.Kv
		if string(kv.Key) != string(x.Key) || ids.Revision(kv.ModRevision) != x.Mod || (ev.Type == mvccpb.DELETE) != x.Delete {
			m.t.Errorf("watcher at %d: %s\nevent %d: want %s at %d", w.next, printResponse(r), i, x.Key, x.Mod)
		}
		if !x.Delete && string(mustMarshal(kv)) != string(x.KV) {
			m.t.Errorf("event %d of %s: bytes differ", i, printResponse(r))
		}
		if ev.PrevKv != nil && (!w.req.PrevKv || x.Create || ids.Revision(ev.PrevKv.ModRevision) >= x.Mod) {
			m.t.Errorf("event %d of %s: wrong previous value", i, printResponse(r))
		}
		if w.req.PrevKv && ev.PrevKv == nil && !x.Create && x.Mod-1 >= m.store.compact {
			m.t.Errorf("event %d of %s: no previous value", i, printResponse(r))
		}
	}
	if r.Revision < last {
		m.t.Errorf("%s: header is behind", printResponse(r))
	}
	w.next = last + 1
}

func (m *model) finish() {
	m.store.scanned = nil
	m.publish()
	for {
		for m.hub.CatchUp() {
		}
		read := false
		for _, ms := range m.streams {
			for m.read(ms) {
				read = true
			}
		}
		if !read {
			break
		}
	}
	for i, ms := range m.streams {
		for id, w := range ms.watchers {
			if w.next == dead {
				continue
			}
			if missing := m.wanted(w, m.store.Rev()); len(missing) > 0 {
				m.t.Errorf("stream %d watcher %d at %d lacks %d events, first %s at %d",
					i, id, w.next, len(missing), missing[0].Key, missing[0].Mod)
			}
		}
		ms.s.Close()
	}
	if n := m.hub.pending.Load(); n != 0 {
		m.t.Errorf("%d bytes pending after all streams are closed", n)
	}
	if !m.hub.live.empty() || m.hub.live.ranges != nil || len(m.hub.live.exact) != 0 || len(m.hub.unsynced) != 0 {
		m.t.Error("watchers are left after all streams are closed")
	}
}

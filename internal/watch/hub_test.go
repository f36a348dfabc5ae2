package watch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand"
	"slices"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/clock"
	"quorate/internal/ids"
)

// Streams that wait are woken by an event, however few there are.
func TestEventWakesStreams(t *testing.T) {
	st := newStore()
	hub := NewHub(st, clock.NewManual(time.Unix(0, 0)), Options{})
	defer hub.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var created, waiting sync.WaitGroup
	for range 3 {
		created.Add(1)
		waiting.Go(func() {
			s := hub.NewStream(ctx)
			defer s.Close()
			if err := s.Create(&pb.WatchCreateRequest{Key: []byte("k")}); err != nil {
				t.Errorf("create: %v", err)
			}
			_, err := s.Next(ctx)
			created.Done()
			if err == nil {
				_, err = s.Next(ctx)
			}
			if err != nil {
				t.Errorf("next: %v", err)
			}
		})
	}
	created.Wait()
	hub.Publish(st.Rev()+1, st.apply(put("k", "v")))
	waiting.Wait()
}

// TestConcurrent opens and closes streams, some with slow consumers, concurrently with a
// writer, a compactor and Run. It is meant for the race detector; each watcher checks that it
// gets the numbered values of its keys without gaps.
func TestConcurrent(t *testing.T) {
	const (
		keys    = 5
		rounds  = 400
		streams = 12
	)
	st := newStore()
	hub := NewHub(st, clock.NewManual(time.Unix(0, 0)), Options{
		QueueResponses: 3, BatchRevisions: 16, PassWatchers: 4, ControlResponses: 2,
	})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var run, watchers sync.WaitGroup
	run.Go(func() { hub.Run(ctx) })

	start := make(chan struct{})
	for i := range streams {
		watchers.Go(func() {
			<-start
			watchAll(t, hub, i, keys, rounds)
		})
	}
	// A stream that is continuously opened and closed.
	watchers.Go(func() {
		<-start
		for range 200 {
			s := hub.NewStream(ctx)
			if err := s.Create(&pb.WatchCreateRequest{Key: []byte("k0"), StartRevision: 1, ProgressNotify: true}); err != nil {
				t.Errorf("create: %v", err)
			}
			if _, err := s.Next(ctx); err != nil {
				t.Errorf("next: %v", err)
			}
			s.Close()
		}
	})
	close(start)
	for n := 1; n <= rounds; n++ {
		var evs []Event
		for k := range keys {
			evs = append(evs, st.apply(put(fmt.Sprint("k", k), fmt.Sprint(n)))...)
		}
		hub.Publish(st.Rev(), evs)
	}
	watchers.Wait()
	hub.Close()
	if s := hub.NewStream(ctx); !errors.Is(s.Create(&pb.WatchCreateRequest{}), ErrClosed) {
		t.Error("a closed hub takes watchers")
	}
	cancel()
	run.Wait()
	if n := hub.pending.Load(); n != 0 {
		t.Errorf("%d bytes pending", n)
	}
}

// watchAll watches every key from the beginning, some by range, some exactly, until it has
// seen the last value of each.
func watchAll(t *testing.T, hub *Hub, i, keys, rounds int) {
	ctx := context.Background()
	s := hub.NewStream(ctx)
	defer s.Close()
	go func() {
		for k := range keys {
			req := &pb.WatchCreateRequest{Key: fmt.Append(nil, "k", k), StartRevision: 1, PrevKv: i%3 == 0, Fragment: i%2 == 0}
			if i%4 == 1 {
				req.RangeEnd = fmt.Append(nil, "k", k+1)
			}
			if err := s.Create(req); err != nil {
				t.Errorf("create: %v", err)
			}
			if err := s.Progress(); err != nil {
				t.Errorf("progress: %v", err)
			}
		}
	}()
	seen := make([]int, keys)
	for done := 0; done < keys; {
		r, err := s.Next(ctx)
		if err != nil {
			t.Errorf("next: %v", err)
			return
		}
		for _, ev := range decode(r).Events {
			seen[r.WatchID]++
			want := fmt.Sprint(seen[r.WatchID])
			if string(ev.Kv.Value) != want || string(ev.Kv.Key) != fmt.Sprint("k", r.WatchID) {
				t.Errorf("watcher %d got %s=%s, want %s", r.WatchID, ev.Kv.Key, ev.Kv.Value, want)
				return
			}
			if seen[r.WatchID] == rounds {
				done++
			}
		}
	}
}

// TestRunWakes checks that Run feeds a stream that drains, and retries a history that could
// not be read.
func TestRunWakes(t *testing.T) {
	st := newStore()
	clk := clock.NewManual(time.Unix(0, 0))
	failed := make(chan error, 1)
	hub := NewHub(st, clk, Options{QueueResponses: 1, BatchRevisions: 1, OnError: func(err error) { failed <- err }})
	for n := range 10 {
		hub.Publish(st.Rev(), st.apply(put("k", fmt.Sprint(n)))[:0])
		hub.Publish(st.Rev(), nil)
	}
	st.scanErr = errors.New("disk on fire")
	ctx, cancel := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() { hub.Run(ctx) })
	s := hub.NewStream(ctx)
	defer s.Close()
	if err := s.Create(&pb.WatchCreateRequest{Key: []byte("k"), StartRevision: 1}); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; !errors.Is(err, st.scanErr) {
		t.Errorf("reported %v, want %v", err, st.scanErr)
	}
	st.mu.Lock()
	st.scanErr = nil
	st.mu.Unlock()
	// The retry is scheduled right after the report: advance the clock until it runs.
	got := make(chan Response)
	go func() {
		for {
			r, err := s.Next(ctx)
			if err != nil {
				close(got)
				return
			}
			got <- r
		}
	}()
	events := 0
	for events < 10 {
		select {
		case r := <-got:
			events += len(r.Events)
		default:
			clk.Advance(retryDelay)
		}
	}
	cancel()
	run.Wait()
	for range got {
	}
}

// TestAnswersWait checks that a client which does not read its responses is blocked.
func TestAnswersWait(t *testing.T) {
	hub := NewHub(newStore(), clock.NewManual(time.Unix(0, 0)), Options{ControlResponses: 2})
	ctx, cancel := context.WithCancel(context.Background())
	s := hub.NewStream(ctx)
	defer s.Close()
	created := make(chan error)
	go func() {
		for range 5 {
			created <- s.Create(&pb.WatchCreateRequest{Key: []byte("k")})
		}
		close(created)
	}()
	<-created
	<-created
	for i := range 3 {
		select {
		case <-created:
			t.Fatal("an answer beyond the bound")
		default:
		}
		if r, err := s.Next(ctx); err != nil || r.WatchID != int64(i) {
			t.Fatalf("got %v %v, want watch %d", r, err, i)
		}
		if err := <-created; err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := <-created; ok {
		t.Fatal("more creates than asked for")
	}
	cancel()
	if err := s.Create(&pb.WatchCreateRequest{}); !errors.Is(err, context.Canceled) {
		t.Errorf("create after the end of the context: %v", err)
	}
	for range 2 {
		if _, err := s.Next(context.Background()); err != nil {
			t.Errorf("what is queued is lost: %v", err)
		}
	}
	if _, err := s.Next(context.Background()); !errors.Is(err, context.Canceled) {
		t.Errorf("next after the end of the context: %v", err)
	}
}

// TestRestoreDuringScan replaces the store between a scan and its delivery: what was read
// from the old store must not be sent.
func TestRestoreDuringScan(t *testing.T) {
	old, fresh := newStore(), newStore()
	old.apply(put("k", "old"))
	fresh.apply(put("k", "fresh"))
	hub := NewHub(old, clock.NewManual(time.Unix(0, 0)), Options{})
	s := hub.NewStream(context.Background())
	defer s.Close()
	if err := s.Create(&pb.WatchCreateRequest{Key: []byte("k"), StartRevision: 2}); err != nil {
		t.Fatal(err)
	}
	old.scanned = func() { hub.Restore(fresh) }
	for hub.CatchUp() {
	}
	s.TryNext() // created
	r, ok, err := s.TryNext()
	if err != nil || !ok {
		t.Fatalf("no events: %v", err)
	}
	if got := printResponse(r); !bytes.Contains([]byte(got), []byte("k=fresh")) {
		t.Errorf("got %s, want the fresh value", got)
	}
}

// TestPublishOutOfOrder checks the assertion about the caller.
func TestPublishOutOfOrder(t *testing.T) {
	st := newStore()
	hub := NewHub(st, clock.NewManual(time.Unix(0, 0)), Options{})
	evs := st.apply(put("k", "1"))
	hub.Publish(2, evs)
	defer func() {
		if recover() == nil {
			t.Error("a revision was published twice")
		}
	}()
	hub.Publish(2, evs)
}

// TestSharedBytes checks that watchers of one key share the encoded event.
func TestSharedBytes(t *testing.T) {
	st := newStore()
	hub := NewHub(st, clock.NewManual(time.Unix(0, 0)), Options{})
	var streams []*Stream
	for i := range 4 {
		s := hub.NewStream(context.Background())
		defer s.Close()
		s.Create(&pb.WatchCreateRequest{Key: []byte("k"), PrevKv: i >= 2})
		s.TryNext()
		streams = append(streams, s)
	}
	hub.Publish(2, st.apply(put("k", "1")))
	hub.Publish(3, st.apply(put("k", "2")))
	for rev := 2; rev <= 3; rev++ {
		var first []*byte
		for _, s := range streams {
			r, _, _ := s.TryNext()
			first = append(first, &r.Events[0][0])
		}
		if first[0] != first[1] || first[2] != first[3] {
			t.Errorf("revision %d: the bytes are not shared", rev)
		}
		if plain := first[0] == first[2]; plain != (rev == 2) {
			t.Errorf("revision %d: shared across forms: %v", rev, plain)
		}
	}
}

// TestIndex compares the index with a linear search.
func TestIndex(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	x := newIndex()
	all := make(map[spec]bool)
	str := func() string { return string(rune('a'+r.Intn(12))) + string(rune('a'+r.Intn(3))) }
	for range 4000 {
		s := spec{key: str(), prevKV: r.Intn(2) == 0}
		switch r.Intn(3) {
		case 0:
			s.end = s.key + str()
		case 1:
			s.open = true
		}
		if all[s] {
			delete(all, s)
			x.drop(x.groups[s])
		} else if len(all) < 150 {
			all[s] = true
			if g := x.group(s); g != x.group(s) {
				t.Fatal("two groups of one spec")
			}
		}
		key := str()
		got := 0
		for _, g := range x.match(nil, []byte(key)) {
			if !all[g.spec] {
				t.Fatalf("%v is not there", g.spec)
			}
			got++
		}
		want := 0
		for s := range all {
			if s.key == key || s.key <= key && (s.open || key < s.end) {
				want++
			}
		}
		if got != want {
			t.Fatalf("key %s: got %d groups, want %d", key, got, want)
		}
		checkNode(t, x.ranges)
	}
	for s := range all {
		x.drop(x.groups[s])
	}
	if !x.empty() || x.ranges != nil || len(x.exact) != 0 {
		t.Error("an emptied index keeps something")
	}
}

func checkNode(t *testing.T, n *node) {
	if n == nil {
		return
	}
	checkNode(t, n.left)
	checkNode(t, n.right)
	height, end := n.height, n.max
	n.update()
	if d := n.left.h() - n.right.h(); d < -1 || d > 1 || n.height != height || n.max != end {
		t.Fatalf("node %q: balance %d, height %d want %d, max %v want %v", n.start, d, height, n.height, end, n.max)
	}
}

// TestEncoding compares the hand-written encoding with the protobuf library.
func TestEncoding(t *testing.T) {
	for _, r := range []Response{
		{},
		{WatchID: InvalidID, Revision: 1 << 60, Created: true, Canceled: true, CancelReason: "no"},
		{WatchID: 5, Revision: 7, CompactRevision: 9, Canceled: true},
		{WatchID: 1 << 40, Revision: 2, Fragment: true},
	} {
		want := mustMarshal(&pb.WatchResponse{
			Header:  &pb.ResponseHeader{ClusterId: 1, MemberId: 1 << 63, Revision: int64(r.Revision), RaftTerm: 3},
			WatchId: r.WatchID, Created: r.Created, Canceled: r.Canceled,
			CompactRevision: int64(r.CompactRevision), CancelReason: r.CancelReason, Fragment: r.Fragment,
		})
		if got := r.AppendTo(nil, testHeader); !bytes.Equal(got, want) {
			t.Errorf("%+v: got %x, want %x", r, got, want)
		}
	}
	kv := &mvccpb.KeyValue{Key: []byte("k"), Value: bytes.Repeat([]byte("v"), 300), CreateRevision: 3, ModRevision: 5, Version: 2, Lease: -1}
	prev := &mvccpb.KeyValue{Key: []byte("k"), ModRevision: 4}
	for _, c := range []struct {
		ev   Event
		prev *mvccpb.KeyValue
		want *mvccpb.Event
	}{
		{Event{Key: kv.Key, KV: mustMarshal(kv), Mod: 5}, nil, &mvccpb.Event{Kv: kv}},
		{Event{Key: kv.Key, KV: mustMarshal(kv), Mod: 5}, prev, &mvccpb.Event{Kv: kv, PrevKv: prev}},
		{Event{Key: kv.Key, Mod: 500, Delete: true}, prev, &mvccpb.Event{
			Type: mvccpb.DELETE, Kv: &mvccpb.KeyValue{Key: kv.Key, ModRevision: 500}, PrevKv: prev,
		}},
	} {
		var old []byte
		if c.prev != nil {
			old = mustMarshal(c.prev)
		}
		got := appendEvent(nil, &c.ev, old)
		want := mustMarshal(&pb.WatchResponse{Events: []*mvccpb.Event{c.want}})
		if !bytes.Equal(got, want) || cap(got) != len(got) {
			t.Errorf("got %x (cap %d), want %x", got, cap(got), want)
		}
	}
}

// FuzzDecodeEvent checks that any stored bytes give an error or what the protobuf library
// decodes.
func FuzzDecodeEvent(f *testing.F) {
	f.Add([]byte{}, int64(1), false)
	f.Add(mustMarshal(&mvccpb.KeyValue{Key: []byte("k"), CreateRevision: 4, ModRevision: 4, Value: []byte("v")}), int64(4), false)
	f.Add(mustMarshal(&mvccpb.KeyValue{Key: []byte("k")}), int64(9), true)
	f.Add([]byte{0x0a, 0x05, 'k'}, int64(1), false)
	f.Fuzz(func(t *testing.T, b []byte, mod int64, tombstone bool) {
		ev, err := DecodeEvent(ids.Revision(mod), 0, tombstone, b)
		if err != nil {
			return
		}
		kv := new(mvccpb.KeyValue)
		if err := proto.Unmarshal(b, kv); err != nil {
			return // an error in a field that we skip
		}
		if !bytes.Equal(ev.Key, kv.Key) || ev.Create != (!tombstone && kv.CreateRevision == mod) {
			t.Errorf("got %+v, want %v", ev, kv)
		}
	})
}

func TestPublishAllocations(t *testing.T) {
	st := newStore()
	hub := NewHub(st, clock.NewManual(time.Unix(0, 0)), Options{})
	other := hub.NewStream(context.Background())
	defer other.Close()
	evs := st.apply(put("k", "v"))
	rev := ids.Revision(1)
	publish := func() {
		rev++
		evs[0].Mod = rev
		hub.Publish(rev, evs)
	}
	if n := testing.AllocsPerRun(100, publish); n != 0 {
		t.Errorf("without watchers a publish allocates %v times, want 0", n)
	}
	st.rev = rev
	other.Create(&pb.WatchCreateRequest{Key: []byte("q")})
	other.Create(&pb.WatchCreateRequest{Key: []byte("x"), RangeEnd: []byte("z")})
	if n := testing.AllocsPerRun(100, publish); n != 0 {
		t.Errorf("without matches a publish allocates %v times, want 0", n)
	}
}

// The queue of an idle stream keeps room for what its watchers get together, and for little
// without them.
func TestIdleQueue(t *testing.T) {
	const watchers = 100
	st := newStore()
	hub := NewHub(st, clock.NewManual(time.Unix(0, 0)), Options{ControlResponses: 2 * watchers})
	defer hub.Close()
	s := hub.NewStream(context.Background())
	defer s.Close()
	drain := func(want int) {
		t.Helper()
		for n := 0; ; n++ {
			if _, ok, err := s.TryNext(); err != nil {
				t.Fatal(err)
			} else if !ok {
				if n != want {
					t.Fatalf("%d responses, want %d", n, want)
				}
				return
			}
		}
	}
	for range watchers {
		if err := s.Create(&pb.WatchCreateRequest{Key: []byte("k")}); err != nil {
			t.Fatal(err)
		}
	}
	drain(watchers)
	hub.Publish(st.Rev()+1, st.apply(put("k", "v")))
	drain(watchers)
	if n := cap(s.queue); n < watchers || n > 2*watchers {
		t.Errorf("an empty queue of %d watchers has room for %d items", watchers, n)
	}
	for id := range watchers - 1 {
		if err := s.Cancel(int64(id)); err != nil {
			t.Fatal(err)
		}
	}
	drain(watchers - 1)
	if n := cap(s.queue); n > maxIdleQueue {
		t.Errorf("an empty queue of one watcher has room for %d items", n)
	}
}

// benchmarkWatchers publishes single events to watchers on streams of their own, and takes
// them from every queue.
func benchmarkWatchers(b *testing.B, watchers int, consume bool, end string) {
	st := newStore()
	hub := NewHub(st, clock.Real{}, Options{})
	defer hub.Close()
	streams := make([]*Stream, watchers)
	for i := range streams {
		streams[i] = hub.NewStream(context.Background())
		if err := streams[i].Create(&pb.WatchCreateRequest{Key: []byte("k"), RangeEnd: []byte(end)}); err != nil {
			b.Fatal(err)
		}
		streams[i].TryNext()
	}
	ev := slices.Clone(st.apply(put("k", string(make([]byte, 256)))))
	b.ReportAllocs()
	b.ResetTimer()
	head := make([]byte, 0, 128)
	for i := range b.N {
		ev[0].Mod = ids.Revision(i + 2)
		hub.Publish(ev[0].Mod, ev)
		if !consume {
			continue
		}
		for _, s := range streams {
			r, ok, err := s.TryNext()
			if err != nil || !ok {
				b.Fatal(ok, err)
			}
			head = r.AppendHead(head[:0], testHeader)
		}
	}
	if watchers > 0 {
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*watchers), "ns/delivery")
	}
}

func BenchmarkPublish(b *testing.B) {
	b.Run("none", func(b *testing.B) { benchmarkWatchers(b, 0, false, "") })
	b.Run("one", func(b *testing.B) { benchmarkWatchers(b, 1, true, "") })
	b.Run("key/1000", func(b *testing.B) { benchmarkWatchers(b, 1000, true, "") })
	b.Run("range/1000", func(b *testing.B) { benchmarkWatchers(b, 1000, true, "l") })
}

// At the limits creates are refused, per stream and in total. Cancelled and closed watchers
// make room, and existing watchers are unaffected.
func TestWatchersAreBounded(t *testing.T) {
	one := (&watcher{spec: spec{key: "k", end: ""}}).size()
	hub := NewHub(newStore(), clock.NewManual(time.Unix(0, 0)), Options{StreamWatcherBytes: 3 * one, WatcherBytes: 4 * one})
	ctx := t.Context()
	create := func(s *Stream, key string) (id int64, reason string) {
		t.Helper()
		if err := s.Create(&pb.WatchCreateRequest{Key: []byte(key)}); err != nil {
			t.Fatal(err)
		}
		r, err := s.Next(ctx)
		if err != nil || !r.Created {
			t.Fatalf("%+v, %v", r, err)
		}
		return r.WatchID, r.CancelReason
	}
	a, b := hub.NewStream(ctx), hub.NewStream(ctx)
	for range 3 {
		if _, reason := create(a, "k"); reason != "" {
			t.Fatalf("refused below the bound: %s", reason)
		}
	}
	if id, reason := create(a, "k"); reason != reasonTooMany || id != InvalidID {
		t.Errorf("a fourth on the stream: watcher %d, %q", id, reason)
	}
	if _, reason := create(b, "k"); reason != "" {
		t.Errorf("another stream is refused: %s", reason)
	}
	if _, reason := create(b, "k"); reason != reasonTooMany {
		t.Errorf("a fifth of all: %q", reason)
	}
	if err := a.Cancel(0); err != nil {
		t.Fatal(err)
	}
	if r, err := a.Next(ctx); err != nil || !r.Canceled {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, reason := create(b, "a longer key"); reason != reasonTooMany {
		t.Errorf("a key longer than the room: %q", reason)
	}
	if _, reason := create(b, "k"); reason != "" {
		t.Errorf("after a cancel: %s", reason)
	}
	a.Close()
	b.Close()
	if hub.watching != 0 {
		t.Errorf("%d bytes are counted with no watcher left", hub.watching)
	}
}

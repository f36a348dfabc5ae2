package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/apply"
	"quorate/internal/clock"
	"quorate/internal/ids"
	"quorate/internal/lease"
	"quorate/internal/proposal"
	"quorate/internal/raftnode"
	"quorate/internal/readindex"
	"quorate/internal/watch"
)

// world records what a pipeline does, in order.
type world struct {
	got  []string
	now  func() time.Time
	home home
	log  fakeLog
	out  apply.Outcome
	err  error // of apply
}

type home struct {
	w    *world
	fail map[string]error // by call
}

func (h home) did(what string) error {
	h.w.got = append(h.w.got, what)
	return h.fail[what]
}

func (h home) Import(context.Context, *raftpb.Snapshot) error { return h.did("import") }
func (h home) ResetLog(*raftpb.SnapshotMetadata) error        { return h.did("reset") }
func (h home) Truncate(index ids.Index, _ *raftpb.ConfState) error {
	return h.did(fmt.Sprint("truncate ", index))
}

func (w *world) note(what string) { w.got = append(w.got, what) }

// pipeline returns parts without a core.
func (w *world) pipeline() (*Writer, *Applier, *Settler) {
	if w.now == nil {
		w.now = func() time.Time { return time.Unix(1, 0) }
	}
	w.home.w = w
	env := &Env{
		Core: func(f func(*Input)) {
			var in Input
			f(&in)
			w.note(fmt.Sprintf("core: %d acks, %d changes", len(in.Acks), len(in.ConfChanges)))
			for _, f := range in.Then {
				f()
			}
		},
		Send: func(ms []*raftpb.Message) { w.note(fmt.Sprintf("send %d", len(ms))) }, WriteTo: &w.log, Home: func() Home { return w.home },
		Exchange:  func(*raftpb.SnapshotMetadata) error { return w.home.did("exchange") },
		Exchanged: func(err error) { w.note(fmt.Sprint("exchanged ", err)) },
		Apply: func(ents []apply.Entry) (apply.Outcome, error) {
			w.note(fmt.Sprintf("apply %d", len(ents)))
			return w.out, w.err
		},
		Applied: func([]apply.Entry, apply.Outcome, time.Duration) {}, Now: func() time.Time { return w.now() },
		AuthChanged: func() { w.note("auth") }, TermBegun: func() { w.note("term begun") }, NoSpace: func() { w.note("no space") },
		Reconfigured: func() { w.note("reconfigured") },
	}
	s := &Settler{env: env, self: 1, props: proposal.NewTable(1, 1), reads: readindex.New(func() uint64 { return 0 }, 0),
		hub: watch.NewHub(nothing{}, clock.NewManual(time.Unix(1, 0)), watch.Options{}), lessor: lease.New(1, lease.Options{})}
	a := &Applier{env: env, settler: s, local: func(*raftpb.Entry) *proposal.Pending { return nil }, maxRunBytes: 1 << 20, waiting: newQueue[Work]()}
	return &Writer{env: env, self: 1, applier: a, waiting: newQueue[raftnode.Append](), every: 10, keep: 2}, a, s
}

// nothing is a store without revisions.
type nothing struct{}

func (nothing) Rev() ids.Revision                           { return 0 }
func (nothing) CompactRev() ids.Revision                    { return 0 }
func (nothing) PrevKV([]byte, ids.Revision) ([]byte, error) { return nil, nil }
func (nothing) Scan(ids.Revision, int, int, func(watch.Event) error) (ids.Revision, error) {
	return 0, nil
}

func (w *world) expect(t *testing.T, what string, want ...string) {
	t.Helper()
	if !slices.Equal(w.got, want) {
		t.Errorf("%s: %q, want %q", what, w.got, want)
	}
	w.got = nil
}

func snap(index ids.Index) *raftpb.Snapshot {
	return &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: (*uint64)(&index)}}
}

// Answers to peers are sent before the core is told, and none before the write has
// succeeded.
func TestWriterAppends(t *testing.T) {
	w := &world{log: fakeLog{fail: errors.New("full")}}
	l, _, _ := w.pipeline()
	l.waiting.push(raftnode.Append{Entries: entries(1, 1), MustSync: true, Responses: []*raftpb.Message{answer(1, 1), answer(2, 1)}})
	if l.Due() != Idle {
		t.Error("a job that was not taken is due")
	}
	l.Take()
	for range 2 {
		if err := l.Do(t.Context()); !errors.Is(err, w.log.fail) || l.Due() != Append {
			t.Fatalf("%v, %q is due", err, l.Due())
		}
	}
	w.expect(t, "after a failed write")
	w.log.fail = nil
	if err := l.Do(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.expect(t, "before it is done")
	if l.Done(); l.Due() != Idle {
		t.Errorf("%q is due", l.Due())
	}
	w.expect(t, "after the write", "send 1", "core: 1 acks, 0 changes")
	if err := l.Do(t.Context()); err == nil {
		t.Error("no error without a job")
	}
}

// An installation runs its jobs, repeats one that has failed, holds off truncations while
// log and store belong to different states, and at the end sends the messages that have
// waited for it.
func TestWriterInstalls(t *testing.T) {
	w := &world{home: home{fail: map[string]error{}}}
	l, a, _ := w.pipeline()
	l.waiting.push(raftnode.Append{Snapshot: snap(50), Responses: []*raftpb.Message{answer(2, 4)}}, raftnode.Append{Entries: entries(51, 51)})
	stop := make(chan struct{})
	if !l.Wait(stop) {
		t.Fatal("no work")
	}
	l.mark.Store(10)
	do := func(job Job) {
		t.Helper()
		if l.Due() != job {
			t.Fatalf("%q is due, want %q", l.Due(), job)
		}
		if err := l.Do(t.Context()); err != nil {
			t.Fatal(err)
		}
		if job != Exchange {
			l.Done()
		}
	}
	may := func() bool { return false }
	do(Import)
	if index, err := l.Truncate(30, nil, may); err != nil || index != 28 {
		t.Errorf("truncated to %d, %v", index, err)
	}
	w.expect(t, "import, and a truncation beside it", "import", "truncate 28")
	a.waiting.push(Work{Apply: raftnode.Apply{Entries: entries(29, 29)}})
	do(Exchange)
	w.expect(t, "the exchange has only begun")
	for a.Take(); a.Due(); {
		if err := a.Do(0); err != nil {
			t.Fatal(err)
		}
	}
	w.expect(t, "the exchange between two runs", "apply 1", "exchange", "exchanged <nil>")
	l.Done()
	if index, err := l.Truncate(60, nil, may); err != nil || index != 0 {
		t.Errorf("truncated to %d while the log is older than the store, %v", index, err)
	}
	full := errors.New("full")
	w.home.fail["reset"] = full
	for range 2 {
		if err := l.Do(t.Context()); !errors.Is(err, full) || l.Due() != Reset {
			t.Fatalf("%v, %q is due", err, l.Due())
		}
	}
	delete(w.home.fail, "reset")
	do(Reset)
	do(Follow)
	if l.Mark() != 50 || l.Snapshot() != nil {
		t.Errorf("mark %d, %v is being installed", l.Mark(), l.Snapshot())
	}
	w.expect(t, "reset", "reset", "reset", "reset", "send 1")
	do(Append)
	w.got = nil
	if index, err := l.Truncate(60, nil, may); err != nil || index != 58 {
		t.Errorf("truncated to %d, %v", index, err)
	}
	if index, _ := l.Truncate(80, nil, func() bool { return true }); index != 0 {
		t.Errorf("truncated to %d although the entries are needed", index)
	}
	close(stop)
	if l.Wait(stop) {
		t.Error("work where there is none")
	}
}

// An exchange that fails leaves the log alone.
func TestExchangeFails(t *testing.T) {
	bad := errors.New("bad")
	w := &world{home: home{fail: map[string]error{"exchange": bad}}}
	l, a, _ := w.pipeline()
	l.waiting.push(raftnode.Append{Snapshot: snap(50)})
	l.Take()
	if err := l.Do(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.Done()
	if err := l.Do(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.Take()
	if err := a.Do(0); err != nil {
		t.Fatal(err)
	}
	w.expect(t, "a failed exchange", "import", "exchange", "exchanged bad")
	if l.Due() != Exchange {
		t.Errorf("%q is due", l.Due())
	}
}

// Changed permissions are published first; acknowledgements come at the end of a run, and
// the results of membership changes once raft uses them.
func TestSettle(t *testing.T) {
	w := &world{out: apply.Outcome{Applied: 3, AuthChanged: true, NewTerm: 5, QuotaExceeded: true, ConfChanges: []apply.ConfChange{{Index: 3}}}}
	_, a, s := w.pipeline()
	s.follow(raftnode.State{Lead: 1, Term: 5})
	a.push([]raftnode.Apply{{Entries: entries(1, 3), Responses: []*raftpb.Message{answer(1, 1)}}})
	a.Take()
	if err := a.Do(2); err != nil || !a.Due() || a.Left() != 1 {
		t.Fatalf("%v, %d left", err, a.Left())
	}
	w.expect(t, "the first batch", "apply 2", "auth", "term begun", "no space", "core: 0 acks, 1 changes", "reconfigured")
	if err := a.Do(2); err != nil || a.Due() {
		t.Fatal(err)
	}
	w.expect(t, "the last batch, in which raft has rejected a change", "apply 1", "auth", "no space", "core: 1 acks, 1 changes", "reconfigured")
	if !s.lessor.IsPrimary() {
		t.Error("the lessor of the leader is not promoted")
	}
	s.follow(raftnode.State{Lead: 2, Term: 6})
	if s.lessor.IsPrimary() {
		t.Error("the lessor of a former leader is not demoted")
	}
	w.err = errors.New("the store is gone")
	a.push([]raftnode.Apply{{Entries: entries(4, 4), Responses: []*raftpb.Message{answer(1, 1)}}})
	if !a.Take() || !errors.Is(a.Do(0), w.err) {
		t.Error("no error")
	}
	w.expect(t, "a batch that is not applied", "apply 1")
}

// A member that loses leadership while it applies the first entry of its term must not go on
// expiring leases.
func TestNoPrimaryAfterLeadership(t *testing.T) {
	w := &world{}
	_, _, s := w.pipeline()
	s.follow(raftnode.State{Lead: 1, Term: 5})
	s.settle(apply.Outcome{NewTerm: 5}, time.Time{})
	if !s.lessor.IsPrimary() {
		t.Fatal("a new leader does not become the primary")
	}
	s.lessor.Demote()
	s.follow(raftnode.State{Lead: 1, Term: 7})
	if s.settle(apply.Outcome{NewTerm: 6}, time.Time{}); s.lessor.IsPrimary() {
		t.Error("primary, but the log of an earlier term is not applied yet")
	}
	w.now = func() time.Time {
		s.follow(raftnode.State{Lead: 2, Term: 8})
		return time.Unix(2, 0)
	}
	s.settle(apply.Outcome{NewTerm: 7}, time.Time{})
	if s.lessor.IsPrimary() {
		t.Error("primary, but another member leads")
	}
}

// history notes when a hub begins to use it.
type history struct {
	nothing
	begun func()
}

func (h history) Rev() ids.Revision { h.begun(); return 0 }

// The users and roles in a snapshot count before the keys in it are shown to watchers.
func TestRestoredRightsFirst(t *testing.T) {
	w := &world{}
	_, _, s := w.pipeline()
	shown := false
	s.Restored(history{begun: func() {
		if !shown {
			w.note("keys")
		}
		shown = true
	}}, 9)
	w.expect(t, "a snapshot", "auth", "keys")
}

package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/apply"
	"quorate/internal/ids"
	"quorate/internal/proposal"
	"quorate/internal/raftnode"
)

// fakeLog records what is written and fails on request.
type fakeLog struct {
	got  []string
	fail error
}

func (l *fakeLog) Append(hs *raftpb.HardState, ents []*raftpb.Entry, mustSync bool) error {
	if l.fail != nil {
		return l.fail
	}
	l.got = append(l.got, fmt.Sprintf("term %d entries %d sync %v", hs.GetTerm(), len(ents), mustSync))
	return nil
}

func entries(from, to uint64) (ents []*raftpb.Entry) {
	for i := from; i <= to; i++ {
		ents = append(ents, &raftpb.Entry{Index: new(i), Term: new(uint64(1)), Data: []byte("xxxx")})
	}
	return ents
}

func answer(to, term uint64) *raftpb.Message {
	return &raftpb.Message{To: new(to), Term: new(term)}
}

func state(term uint64) *raftpb.HardState { return &raftpb.HardState{Term: new(term)} }

func TestGroup(t *testing.T) {
	synced := raftnode.Append{HardState: state(2), Entries: entries(1, 3), MustSync: true, Responses: []*raftpb.Message{answer(1, 2), answer(2, 2)}}
	commit := raftnode.Append{HardState: state(3), Responses: []*raftpb.Message{answer(3, 3)}}
	nothing := raftnode.Append{Responses: []*raftpb.Message{answer(1, 4)}}
	more := raftnode.Append{Entries: entries(4, 5), MustSync: true, Responses: []*raftpb.Message{answer(2, 2)}}
	again := raftnode.Append{HardState: state(4), Entries: entries(3, 3), MustSync: true}
	idle := raftnode.Append{HardState: state(4), Entries: entries(3, 3)} // raft has none
	snap := raftnode.Append{Snapshot: &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(uint64(9))}}}
	for name, x := range map[string]struct {
		works []raftnode.Append
		want  []string
		rest  int
	}{
		"one":                             {[]raftnode.Append{synced}, []string{"term 2 entries 3 sync true"}, 0},
		"any write that must, syncs":      {[]raftnode.Append{synced, commit}, []string{"term 3 entries 3 sync true"}, 0},
		"also if nothing is behind":       {[]raftnode.Append{synced, nothing}, []string{"term 2 entries 3 sync true"}, 0},
		"nothing must":                    {[]raftnode.Append{commit, nothing, commit}, []string{"term 3 entries 0 sync false"}, 0},
		"a snapshot ends the group":       {[]raftnode.Append{synced, snap, commit}, []string{"term 2 entries 3 sync true"}, 2},
		"the last decides for all of it":  {[]raftnode.Append{commit, synced}, []string{"term 2 entries 3 sync true"}, 0},
		"entries that follow are added":   {[]raftnode.Append{synced, more}, []string{"term 2 entries 5 sync true"}, 0},
		"entries that replace others not": {[]raftnode.Append{synced, more, again}, []string{"term 2 entries 5 sync false", "term 4 entries 1 sync true"}, 0},
		"a write that need not sync last": {[]raftnode.Append{synced, idle}, []string{"term 2 entries 3 sync false", "term 4 entries 1 sync true"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w, rest := NextWrite(x.works)
			l := &fakeLog{}
			if err := w.To(l); err != nil || !slices.Equal(l.got, x.want) {
				t.Errorf("wrote %q, %v; want %q", l.got, err, x.want)
			}
			if len(rest) != x.rest {
				t.Errorf("%d works are left, want %d", len(rest), x.rest)
			}
			own, out := w.Messages(1)
			sent := 0
			for _, a := range x.works[:len(x.works)-x.rest] {
				sent += len(a.Responses)
			}
			if len(own)+len(out) != sent || slices.ContainsFunc(own, func(m *raftpb.Message) bool { return m.GetTo() != 1 }) {
				t.Errorf("messages %v and %v, want %d in all", own, out, sent)
			}
		})
	}
}

func mustPanic(t *testing.T, what string, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Errorf("%s: no panic", what)
		}
	}()
	f()
}

// After a full disk the write continues where it failed, and no message is sent before.
func TestGroupAgain(t *testing.T) {
	w, _ := NextWrite([]raftnode.Append{{HardState: state(1), Entries: entries(1, 2)}, {Entries: entries(1, 2), MustSync: true, Responses: []*raftpb.Message{answer(2, 1)}}})
	l := &fakeLog{fail: errors.New("full")}
	for range 2 {
		if err := w.To(l); !errors.Is(err, l.fail) {
			t.Fatal(err)
		}
		mustPanic(t, "messages of what is not written", func() { w.Messages(1) })
	}
	l.fail = nil
	if err := w.To(l); err != nil || len(l.got) != 2 {
		t.Fatalf("%v: wrote %q", err, l.got)
	}
	if _, out := w.Messages(1); len(out) != 1 {
		t.Errorf("messages %v", out)
	}
}

type noHome struct{}

func (noHome) Import(context.Context, *raftpb.Snapshot) error { return nil }
func (noHome) ResetLog(*raftpb.SnapshotMetadata) error        { return nil }

func TestInstall(t *testing.T) {
	w, rest := NextWrite([]raftnode.Append{
		{Snapshot: &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(uint64(9))}}, HardState: state(4), Entries: entries(10, 11), MustSync: true, Responses: []*raftpb.Message{answer(2, 4)}},
		{Entries: entries(12, 12), MustSync: true}})
	if w.Snapshot().GetMetadata().GetIndex() != 9 || len(rest) != 1 {
		t.Fatalf("%+v, %d left", w, len(rest))
	}
	i := w.Install()
	l := &fakeLog{}
	var jobs []Job
	for ; i.Job() != Idle; i.Done() {
		mustPanic(t, "messages before the end", func() { i.Messages(1) })
		jobs = append(jobs, i.Job())
		if err := i.Do(t.Context(), noHome{}, l); (err != nil) != (i.Job() == Exchange) {
			t.Fatal(err)
		}
	}
	// The store first: nothing could bring a store forward that is older than its log.
	if want := []Job{Import, Exchange, Reset, Follow}; !slices.Equal(jobs, want) {
		t.Errorf("jobs %q, want %q", jobs, want)
	}
	if want := []string{"term 4 entries 2 sync true"}; !slices.Equal(l.got, want) {
		t.Errorf("wrote %q, want %q", l.got, want)
	}
	if _, out := i.Messages(1); len(out) != 1 {
		t.Errorf("messages %v", out)
	}
}

// The acknowledgement of a run comes with its last batch, and the membership changes of
// each batch no later.
func TestRun(t *testing.T) {
	works := []Work{
		{Apply: raftnode.Apply{Entries: entries(1, 3), Responses: []*raftpb.Message{answer(1, 1)}}},
		{Apply: raftnode.Apply{Entries: entries(4, 5), Responses: []*raftpb.Message{answer(1, 2)}}},
		{Swap: func() {}},
		{Apply: raftnode.Apply{Entries: entries(6, 6)}},
	}
	none := func(*raftpb.Entry) *proposal.Pending { return nil }
	for limit := range 7 {
		r, rest := NextRun(works, 1<<20, none)
		if len(rest) != 2 || r.Len() != 5 {
			t.Fatalf("%d works are left, %d entries", len(rest), r.Len())
		}
		next := ids.Index(1)
		for ents := r.Batch(limit); ents != nil; ents = r.Batch(limit) {
			if limit > 0 && len(ents) > limit {
				t.Fatalf("%d entries in a batch of %d", len(ents), limit)
			}
			for _, e := range ents {
				if ids.Index(e.GetIndex()) != next {
					t.Fatalf("entry %d, want %d", e.GetIndex(), next)
				}
				next++
			}
			changes, acks := r.Applied(apply.Outcome{ConfChanges: []apply.ConfChange{{Index: next - 1}}})
			if len(changes) != 1 || changes[0].Index != next-1 {
				t.Errorf("changes %v", changes)
			}
			if want := 2 * b2i(next == 6); len(acks) != want {
				t.Errorf("limit %d: %d acknowledgements behind entry %d, want %d", limit, len(acks), next-1, want)
			}
		}
		if next != 6 {
			t.Errorf("limit %d: handed out up to %d", limit, next-1)
		}
	}
	if r, rest := NextRun(works[2:], 1<<20, none); r != nil || len(rest) != 2 {
		t.Errorf("an exchange was skipped: %v, %d", r, len(rest))
	}
	if r, rest := NextRun(works, 10, none); r.Len() != 3 || len(rest) != 3 {
		t.Errorf("a run of %d entries, %d works left: more than its bytes", r.Len(), len(rest))
	}
	p := &proposal.Pending{ID: 7}
	r, _ := NextRun(works, 1<<20, func(e *raftpb.Entry) *proposal.Pending {
		if e.GetIndex() == 2 {
			return p
		}
		return nil
	})
	if ents := r.Batch(0); !ents[1].Local || ents[0].Local {
		t.Error("the request of this member is not with its entry")
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestTruncateTo(t *testing.T) {
	for _, x := range []struct {
		acked, mark ids.Index
		keep        uint64
		want        ids.Index
		ok          bool
	}{{100, 0, 10, 90, true}, {100, 90, 10, 0, false}, {100, 89, 10, 90, true}, {5, 0, 10, 0, false}} {
		if got, ok := TruncateTo(x.acked, x.mark, x.keep); got != x.want || ok != x.ok {
			t.Errorf("%+v: %d, %v", x, got, ok)
		}
	}
}

// A commit index alone wakes nobody, and a newer one replaces it; the next write takes it along.
func TestLazyWrites(t *testing.T) {
	commit := func(c uint64) raftnode.Append {
		return raftnode.Append{HardState: &raftpb.HardState{Term: new(uint64(2)), Commit: &c}}
	}
	w := &Writer{waiting: newQueue[raftnode.Append]()}
	w.push([]raftnode.Append{commit(3)})
	w.push([]raftnode.Append{commit(4)})
	if len(w.waiting.wake) > 0 {
		t.Error("a commit index has woken the writer")
	}
	w.push([]raftnode.Append{{Entries: entries(5, 6), MustSync: true}})
	if len(w.waiting.wake) == 0 {
		t.Error("entries have not woken the writer")
	}
	if !w.Take() || len(w.works) != 2 || w.works[0].HardState.GetCommit() != 4 {
		t.Errorf("%+v", w.works)
	}
}

package readindex

import (
	"errors"
	"testing"
	"time"
)

var t0 = time.Unix(1000, 0)

func counting() func() uint64 {
	var n uint64
	return func() uint64 { n++; return n }
}

func open(r *Round) bool {
	select {
	case <-r.Done():
		return false
	default:
		return true
	}
}

func TestReadersShareARoundAndWaitForApply(t *testing.T) {
	b := New(counting(), 5)
	a, first := b.Join()
	if a2, again := b.Join(); !first || again || a != a2 {
		t.Fatal("two readers must share the open round, and only the first starts it")
	}
	ctx := b.Start(t0)
	late, first := b.Join()
	if late == a || first {
		t.Fatal("a reader that comes during a round must get the next one")
	}
	if b.Start(t0) != nil {
		t.Fatal("two rounds in flight")
	}
	if more := b.Confirm(ctx, 9); !more {
		t.Fatal("the next round was not announced")
	}
	b.Applied(8)
	if !open(a) {
		t.Fatal("let through before index 9 was applied")
	}
	b.Applied(9)
	if open(a) || a.Err() != nil {
		t.Fatal("not let through after index 9 was applied")
	}
	ctx = b.Start(t0)
	b.Confirm(ctx, 7)
	if open(late) {
		t.Fatal("index 7 is applied, yet the reader waits")
	}
}

func TestRetryAcceptsAnyIDOfTheRound(t *testing.T) {
	b := New(counting(), 0)
	r, _ := b.Join()
	one := b.Start(t0)
	if ctx, _ := b.Retry(t0.Add(100*time.Millisecond), 500*time.Millisecond, time.Minute, nil); ctx != nil {
		t.Fatal("asked again too early")
	}
	two, _ := b.Retry(t0.Add(500*time.Millisecond), 500*time.Millisecond, time.Minute, nil)
	if two == nil || string(two) == string(one) {
		t.Fatal("the second request must have its own id")
	}
	b.Confirm([]byte("stranger"), 0)
	if !open(r) {
		t.Fatal("an unknown id confirmed the round")
	}
	b.Confirm(one, 0)
	if open(r) {
		t.Fatal("the first id no longer counts")
	}
}

func TestFailures(t *testing.T) {
	changed, late := errors.New("leader changed"), errors.New("late")
	b := New(counting(), 0)
	a, _ := b.Join()
	b.Start(t0)
	next, _ := b.Join()
	if more := b.FailInFlight(changed); !more || a.Err() != changed || !open(next) {
		t.Fatal("only the round in flight must fail")
	}
	b.Start(t0)
	if _, timedOut := b.Retry(t0.Add(time.Second), 0, time.Second, late); !timedOut || next.Err() != late {
		t.Fatal("the round must time out")
	}
	w, _ := b.Join()
	b.Confirm(b.Start(t0), 10)
	o, _ := b.Join()
	b.Close(changed)
	if w.Err() != changed || o.Err() != changed {
		t.Fatal("Close must end confirmed and open readers")
	}
	if late, first := b.Join(); open(late) || first || late.Err() != changed {
		t.Fatal("a reader that joins after Close would wait forever")
	}
}

// An answer that comes late, or twice, belongs to an earlier round. The round in flight was
// requested later, and its readers may have seen writes in between.
func TestLateAnswersConfirmNothing(t *testing.T) {
	b := New(counting(), 0)
	var old [][]byte
	for range 6 { // ids of all kinds
		r, _ := b.Join()
		asked := [][]byte{b.Start(t0)}
		if again, _ := b.Retry(t0, 0, 0, nil); again != nil {
			asked = append(asked, again)
		}
		for _, ctx := range old {
			if b.Confirm(ctx, 0); !open(r) {
				t.Fatalf("round %x was confirmed by the answer to %x", asked, ctx)
			}
		}
		for _, ctx := range [][]byte{nil, {0}, append([]byte{1}, asked[0]...)} {
			if b.Confirm(ctx, 0); !open(r) {
				t.Fatalf("round %x was confirmed by %x", asked, ctx)
			}
		}
		if b.Confirm(asked[len(asked)-1], 0); open(r) {
			t.Fatal("its own answer does not confirm the round")
		}
		old = append(old, asked...)
	}
}

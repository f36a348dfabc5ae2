package proposal

import (
	"context"
	"errors"
	"quorate/internal/legacy/v2request"
	"sync"
	"testing"
	"time"
)

var t0 = time.Unix(1000, 0)

func TestEachRequestEndsOnce(t *testing.T) {
	tab := NewTable(100, 1<<20)
	var wg sync.WaitGroup
	for i := 1; i <= 50; i++ {
		p := &Pending{ID: uint64(i)}
		if err := tab.Admit(p, t0, time.Second); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			wg.Add(1)
			go func() { defer wg.Done(); tab.Resolve(p.ID, Result{Resp: int(p.ID)}) }()
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			if r := <-p.Done(); r.Resp != int(p.ID) {
				t.Errorf("request %d got %v", p.ID, r.Resp)
			}
		}()
	}
	wg.Wait()
	if tab.Len() != 0 {
		t.Fatalf("%d left in the table", tab.Len())
	}
}

func TestLimits(t *testing.T) {
	tab := NewTable(2, 10)
	a, b := &Pending{ID: 1, Data: make([]byte, 6)}, &Pending{ID: 2, Data: make([]byte, 6)}
	if err := tab.Admit(a, t0, time.Second); err != nil {
		t.Fatal(err)
	}
	if err := tab.Admit(b, t0, time.Second); !errors.Is(err, ErrTooMany) {
		t.Fatalf("over the byte limit: %v", err)
	}
	b.Data = nil
	if err := tab.Admit(b, t0, time.Second); err != nil {
		t.Fatal(err)
	}
	if err := tab.Admit(&Pending{ID: 3}, t0, time.Second); !errors.Is(err, ErrTooMany) {
		t.Fatalf("over the count limit: %v", err)
	}
	tab.Forget(1)
	if err := tab.Admit(&Pending{ID: 3}, t0, time.Second); err != nil {
		t.Fatalf("after one has ended: %v", err)
	}
}

func TestExpire(t *testing.T) {
	tab := NewTable(10, 100)
	old, fresh, held := &Pending{ID: 1}, &Pending{ID: 2}, &Pending{ID: 4}
	tab.Admit(old, t0, time.Second)
	old.Handed(t0)
	tab.Admit(held, t0, time.Second)
	tab.Admit(fresh, t0.Add(time.Second), time.Second)
	late := errors.New("late")
	tab.Expire(t0.Add(1500*time.Millisecond), func(start time.Time) error {
		if !start.Equal(t0) {
			t.Errorf("start %v, want %v", start, t0)
		}
		return late
	})
	if r := <-old.Done(); r.Err != late {
		t.Fatalf("got %v", r)
	}
	if r := <-held.Done(); r.Err != context.DeadlineExceeded {
		t.Fatalf("one that raft never took: %v", r)
	}
	if tab.Lookup(2) != fresh || tab.Lookup(1) != nil {
		t.Fatal("wrong request expired")
	}
	stopped := errors.New("stopped")
	tab.Close(stopped)
	if r := <-fresh.Done(); r.Err != stopped {
		t.Fatalf("got %v", r)
	}
	// Otherwise a request that arrives while the member stops would wait forever.
	if err := tab.Admit(&Pending{ID: 3}, t0, time.Second); err != stopped || tab.Len() != 0 {
		t.Fatalf("admitted after Close: %v, %d in flight", err, tab.Len())
	}
}

// Members whose ids differ only in the upper bits, and that start at the same moment, are
// far from generating the same request ids; so is a member that restarts.
func TestIDs(t *testing.T) {
	const far = 1 << 40 // requests
	now := time.UnixMilli(0x123456789a)
	runs := []*IDs{NewIDs(0x1234, now), NewIDs(1<<48|0x1234, now), NewIDs(1<<63|0x1234, now), NewIDs(0x1235, now),
		NewIDs(0x1234, now.Add(1)), NewIDs(0x1234, now.Add(time.Hour)), NewIDs(0, time.Unix(0, 0))}
	for i, g := range runs {
		first := g.Next()
		if next := g.Next(); next != first+1 {
			t.Errorf("run %d: %x comes after %x", i, next, first)
		}
		for j := range i {
			other := runs[j].next.Load()
			if first-other < far || other-first < far {
				t.Errorf("runs %d and %d begin at %x and %x", j, i, other, first)
			}
		}
	}
	end := &IDs{}
	end.next.Store(1<<64 - 1)
	if id := end.Next(); id != 1 {
		t.Errorf("the number after the last is %x, want 1", id)
	}
}

func TestCarries(t *testing.T) {
	v2 := &v2request.Request{ID: 7, Method: "PUT", Path: "/1/a", Val: "b"}
	for _, tt := range []struct {
		p    *Pending
		data []byte
		want bool
	}{
		{&Pending{Data: []byte("ab")}, []byte("ab"), true},
		{&Pending{Data: []byte("ab")}, []byte("ac"), false},
		{&Pending{Data: []byte("ab")}, []byte("abc"), false},
		{&Pending{Data: v2.Marshal(), Foreign: v2}, v2.Marshal(), true},
		{&Pending{Data: v2.Marshal(), Foreign: v2}, v2request.Modern(v2.Marshal()), true},
		{&Pending{Data: v2.Marshal(), Foreign: v2}, v2request.Modern((&v2request.Request{ID: 7, Method: "PUT", Path: "/1/a", Val: "c"}).Marshal()), false},
	} {
		if got := tt.p.Carries(tt.data); got != tt.want {
			t.Errorf("%q carries %q: %v, want %v", tt.p.Data, tt.data, got, tt.want)
		}
	}
}

package proposal

import (
	"errors"
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
	old, fresh := &Pending{ID: 1}, &Pending{ID: 2}
	tab.Admit(old, t0, time.Second)
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
	if tab.Lookup(2) != fresh || tab.Lookup(1) != nil {
		t.Fatal("wrong request expired")
	}
	stopped := errors.New("stopped")
	tab.Close(stopped)
	if r := <-fresh.Done(); r.Err != stopped {
		t.Fatalf("got %v", r)
	}
	// One that was on its way in when the member stopped would wait for ever.
	if err := tab.Admit(&Pending{ID: 3}, t0, time.Second); err != stopped || tab.Len() != 0 {
		t.Fatalf("admitted after Close: %v, %d in flight", err, tab.Len())
	}
}

func TestIDs(t *testing.T) {
	g := NewIDs(0xabcd1234, time.UnixMilli(0x123456789a))
	if got, want := g.Next(), uint64(0x1234123456789a01); got != want {
		t.Fatalf("first id %x, want %x", got, want)
	}
	if got, want := g.Next(), uint64(0x1234123456789a02); got != want {
		t.Fatalf("second id %x, want %x", got, want)
	}
}

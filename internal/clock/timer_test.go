package clock

import (
	"context"
	"testing"
	"time"
)

func due(t *Ticker) bool {
	select {
	case <-t.C:
		return true
	default:
		return false
	}
}

// A ticker of a clock that stands ticks when that is moved, once for all that was missed,
// and no more after Stop.
func TestTicker(t *testing.T) {
	c := NewManual(time.Unix(0, 0))
	tick, once := NewTicker(c, time.Second), NewTimer(c, time.Second)
	if due(tick) || due(once) {
		t.Error("a tick before its time")
	}
	c.Advance(time.Second)
	if !due(tick) || !due(once) {
		t.Error("no tick")
	}
	c.Advance(5 * time.Second)
	if !due(tick) || due(tick) || due(once) {
		t.Error("want one tick, of the ticker alone")
	}
	tick.Stop()
	c.Advance(5 * time.Second)
	if due(tick) {
		t.Error("a tick after Stop")
	}
}

func TestSleep(t *testing.T) {
	c := NewManual(time.Unix(0, 0))
	slept := make(chan error, 1)
	go func() { slept <- Sleep(context.Background(), c, time.Minute) }()
	for done := false; !done; {
		c.Advance(time.Minute)
		select {
		case err := <-slept:
			if err != nil {
				t.Error(err)
			}
			done = true
		default:
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Sleep(ctx, c, time.Minute); err != context.Canceled {
		t.Errorf("got %v", err)
	}
	if err := Sleep(context.Background(), System, time.Microsecond); err != nil {
		t.Error(err)
	}
	tick := NewTicker(System, time.Microsecond)
	defer tick.Stop()
	<-tick.C
	<-tick.C
}

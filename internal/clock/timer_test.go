package clock

import (
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

// A ticker on a manual clock ticks when the clock advances, once for all missed ticks,
// and no more after Stop.
func TestTicker(t *testing.T) {
	c := NewManual(time.Unix(0, 0))
	tick := NewTicker(c, time.Second)
	if due(tick) {
		t.Error("a tick before its time")
	}
	c.Advance(time.Second)
	if !due(tick) {
		t.Error("no tick")
	}
	c.Advance(5 * time.Second)
	if !due(tick) || due(tick) {
		t.Error("want one tick")
	}
	tick.Stop()
	c.Advance(5 * time.Second)
	if due(tick) {
		t.Error("a tick after Stop")
	}
}

func TestTickerOfTheMachine(t *testing.T) {
	tick := NewTicker(Real{}, time.Microsecond)
	defer tick.Stop()
	<-tick.C
	<-tick.C
}

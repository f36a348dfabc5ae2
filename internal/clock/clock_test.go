package clock

import (
	"testing"
	"time"
)

func TestManualRunsDueTimersInOrder(t *testing.T) {
	start := time.Unix(100, 0)
	c := NewManual(start)
	var got []string
	c.AfterFunc(3*time.Second, func() { got = append(got, "c") })
	c.AfterFunc(time.Second, func() {
		got = append(got, "a")
		c.AfterFunc(time.Second, func() { got = append(got, "b") })
	})
	stop := c.AfterFunc(2*time.Second, func() { got = append(got, "stopped") })
	if !stop() || stop() {
		t.Fatal("stop must report true once")
	}
	c.Advance(2 * time.Second)
	if len(got) != 2 || got[0] != "a" || got[1] != "b" {
		t.Fatalf("after 2s got %v, want [a b]", got)
	}
	if want := start.Add(2 * time.Second); !c.Now().Equal(want) {
		t.Fatalf("now %v, want %v", c.Now(), want)
	}
	c.Advance(time.Second)
	if len(got) != 3 || got[2] != "c" {
		t.Fatalf("after 3s got %v, want [a b c]", got)
	}
}

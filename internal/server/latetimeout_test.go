package server

import (
	"context"
	"testing"
	"time"
)

func TestLateTimeout(t *testing.T) {
	parent, cancel := context.WithCancel(t.Context())
	c := &lateTimeout{Context: parent, timeout: time.Nanosecond}
	if c.Err() != nil || c.begun != nil {
		t.Errorf("it has begun before any wait: %v", c.Err())
	}
	child, stop := context.WithCancel(c)
	defer stop()
	<-child.Done()
	if c.Err() != context.DeadlineExceeded {
		t.Errorf("got %v", c.Err())
	}
	if at, ok := c.Deadline(); !ok || at.After(time.Now()) {
		t.Errorf("the deadline is %v, %t", at, ok)
	}
	c.stop()

	other := &lateTimeout{Context: parent, timeout: time.Hour}
	done := other.Done()
	cancel()
	<-done
	if other.Err() != context.Canceled {
		t.Errorf("got %v", other.Err())
	}
	if err := (&lateTimeout{Context: parent, timeout: time.Hour}).Err(); err != context.Canceled {
		t.Errorf("before it has begun: got %v", err)
	}
}

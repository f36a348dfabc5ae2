package h2

import (
	"context"
	"time"

	"quorate/internal/clock"
)

// deadlines are the calls of a connection that end at a time, the next one first: a
// heap under the lock of the connection. One timer serves them all, because nearly
// every call ends long before its deadline, and a timer of its own would cost each
// more than its place here.
type deadlines struct {
	heap  []*Stream
	alarm *clock.Alarm // nil: none is set
	at    time.Time    // when it rings
}

// expireAt lets a call end at t. c.mu is held.
func (c *conn) expireAt(s *Stream, t time.Time) {
	s.deadline = t
	d := &c.deadlines
	d.heap = append(d.heap, s)
	s.flow.due = len(d.heap)
	d.up(len(d.heap) - 1)
	if d.alarm == nil || t.Before(d.at) {
		d.set(c, t)
	}
}

// set lets the alarm ring at t.
func (d *deadlines) set(c *conn, t time.Time) {
	d.stop()
	d.at = t
	d.alarm = clock.AfterFunc(max(clock.Until(t), 0), c.expire)
}

func (d *deadlines) stop() {
	if d.alarm != nil {
		d.alarm.Stop()
		d.alarm = nil
	}
}

// remove takes out a call that has ended. The alarm stays: it looks for the next.
func (d *deadlines) remove(s *Stream) {
	i := s.flow.due - 1
	if i < 0 {
		return
	}
	s.flow.due = 0
	last := len(d.heap) - 1
	moved := d.heap[last]
	d.heap[last] = nil
	d.heap = d.heap[:last]
	if i == last {
		return
	}
	d.heap[i], moved.flow.due = moved, i+1
	d.up(i)
	d.down(moved.flow.due - 1)
}

func (d *deadlines) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if !d.heap[i].deadline.Before(d.heap[parent].deadline) {
			return
		}
		d.swap(i, parent)
		i = parent
	}
}

func (d *deadlines) down(i int) {
	for {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(d.heap); child++ {
			if d.heap[child].deadline.Before(d.heap[least].deadline) {
				least = child
			}
		}
		if least == i {
			return
		}
		d.swap(i, least)
		i = least
	}
}

func (d *deadlines) swap(i, j int) {
	d.heap[i], d.heap[j] = d.heap[j], d.heap[i]
	d.heap[i].flow.due, d.heap[j].flow.due = i+1, j+1
}

// expire ends the calls whose time has come. Their streams are reset a moment later:
// a handler that looks at its context answers before.
func (c *conn) expire() {
	var over []*Stream
	c.mu.Lock()
	d := &c.deadlines
	d.alarm = nil
	now := clock.Now()
	for len(d.heap) > 0 && !d.heap[0].deadline.After(now) {
		over = append(over, d.heap[0])
		d.remove(d.heap[0])
	}
	if len(d.heap) > 0 && c.err == nil {
		d.set(c, d.heap[0].deadline)
	}
	c.mu.Unlock()
	for _, s := range over {
		s.cancel(context.DeadlineExceeded)
		clock.AfterFunc(deadlineGrace, func() { c.endStream(s, true, codeCancel, context.DeadlineExceeded) })
	}
}

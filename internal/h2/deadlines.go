package h2

import (
	"context"
	"time"

	"quorate/internal/clock"
)

// deadlines is a min-heap of the calls of a connection that have a deadline, guarded
// by conn.mu. One timer serves all of them: nearly every call ends long before its
// deadline, and a timer per call costs more than a place in the heap.
type deadlines struct {
	heap  []*Stream
	alarm *clock.Alarm // nil if not set
	at    time.Time    // when it fires
}

// expireAt sets the deadline of a call. c.mu must be held.
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

// set arms the alarm for t.
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

// remove removes a call that has ended. It leaves the alarm armed; expire sets the next.
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

// expire ends the calls whose deadline has passed. It resets their streams
// deadlineGrace later, so that a handler that watches its context answers first.
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

package h2

import (
	"math/rand"
	"testing"
	"time"
)

// The first element of the heap is always the earliest deadline.
func TestDeadlines(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	var d deadlines
	c := &conn{}
	start := time.Now().Add(time.Hour)
	live := map[*Stream]bool{}
	for range 5000 {
		if r.Intn(3) > 0 || len(live) == 0 {
			s := &Stream{}
			c.deadlines = d
			c.expireAt(s, start.Add(time.Duration(r.Intn(1000))*time.Minute))
			d = c.deadlines
			live[s] = true
		} else {
			for s := range live {
				d.remove(s)
				d.remove(s) // of a stream that is not in the heap
				delete(live, s)
				break
			}
		}
		if len(d.heap) != len(live) {
			t.Fatalf("%d deadlines of %d calls", len(d.heap), len(live))
		}
		for i, s := range d.heap {
			if s.flow.due != i+1 || s.deadline.Before(d.heap[0].deadline) {
				t.Fatalf("deadline %d of %d is out of place", i, len(d.heap))
			}
		}
		if len(d.heap) > 0 && (d.alarm == nil || d.at.After(d.heap[0].deadline)) {
			t.Fatal("the alarm rings too late")
		}
	}
	d.stop()
}

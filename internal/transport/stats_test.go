package transport

import (
	"math"
	"testing"
	"time"
)

func TestRate(t *testing.T) {
	var r Rate
	start := time.Unix(1000, 0)
	if n, m, b := r.Now(start); n != 0 || m != 0 || b != 0 {
		t.Errorf("of nothing: %d %v %v", n, m, b)
	}
	r.add(start, 10)
	if n, m, b := r.Now(start); n != 1 || m != 0 || b != 0 {
		t.Errorf("of one: %d %v %v", n, m, b)
	}
	r.add(start.Add(time.Second/2), 30)
	if n, m, b := r.Now(start.Add(time.Second)); n != 2 || m != 4 || b != 80 {
		t.Errorf("of two in half a second: %d %v %v, want 2 4 80", n, m, b)
	}
	if n, m, b := r.Now(start.Add(2 * time.Second)); n != 2 || m != 0 || b != 0 {
		t.Errorf("later: %d %v %v, want 2 0 0", n, m, b)
	}
	for i := range 3 * rateWindow { // 100 per second; only the last ones count
		r.add(start.Add(time.Minute+time.Duration(i)*10*time.Millisecond), i/(2*rateWindow))
	}
	last := start.Add(time.Minute + (3*rateWindow-1)*10*time.Millisecond)
	n, m, b := r.Now(last)
	want := rateWindow / (float64(rateWindow-1) / 100)
	if n != 2+3*rateWindow || math.Abs(m-want) > 1e-9 || math.Abs(b-want) > 1e-9 {
		t.Errorf("of many: %d %v %v, want %d %v %[5]v", n, m, b, 2+3*rateWindow, want)
	}
}

func TestSendings(t *testing.T) {
	var s sendings
	if f := s.stats(); f.Latency.Minimum != 1<<63 || f.Counts.Success != 0 {
		t.Errorf("of nothing: %+v", f)
	}
	s.succeeded(0, time.Hour)
	s.succeeded(1, 4*time.Millisecond)
	s.succeeded(1, 2*time.Millisecond)
	s.failed(3)
	var want FollowerStats
	want.Latency.Current, want.Latency.Average, want.Latency.StandardDeviation = 2, 3, 1
	want.Latency.Minimum, want.Latency.Maximum = 2, 4
	want.Counts.Fail, want.Counts.Success = 3, 2
	if got := s.stats(); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

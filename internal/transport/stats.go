package transport

import (
	"math"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/clock"
)

// rateWindow is the maximum number of messages that a rate is computed from,
// rateFresh the maximum age of the last of them.
const (
	rateWindow = 200
	rateFresh  = time.Second
)

// Rate counts messages and measures their rate. It is safe for concurrent use.
type Rate struct {
	mu    sync.Mutex
	count uint64
	last  [rateWindow]struct {
		at    time.Time
		bytes int
	}
	next, n int // position of the next message, and the number of messages
}

func (r *Rate) add(at time.Time, bytes int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count++
	r.last[r.next].at, r.last[r.next].bytes = at, bytes
	r.next = (r.next + 1) % rateWindow
	r.n = min(r.n+1, rateWindow)
}

// Now returns the total number of messages, and the current number of messages and
// bytes per second: 0 if the last message is older than a second.
func (r *Rate) Now(now time.Time) (count uint64, messages, bytes float64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.n == 0 {
		return r.count, 0, 0
	}
	newest := r.last[(r.next+rateWindow-1)%rateWindow].at
	oldest := r.last[(r.next+rateWindow-r.n)%rateWindow].at
	d := newest.Sub(oldest)
	if now.Sub(newest) > rateFresh || d <= 0 {
		return r.count, 0, 0
	}
	sum := 0
	for i := range r.n {
		sum += r.last[i].bytes // the first n are in use, or all
	}
	return r.count, float64(r.n) / d.Seconds(), float64(sum) / d.Seconds()
}

// Stats counts messages with log entries, if Config.Stats is set.
type Stats struct {
	Sent, Received Rate
}

// FollowerStats counts messages with log entries to a peer, with etcd's field
// names. Latencies are in milliseconds; that of a stream is the duration of the
// write call.
type FollowerStats struct {
	Latency struct {
		Current           float64 `json:"current"`
		Average           float64 `json:"average"`
		StandardDeviation float64 `json:"standardDeviation"`
		Minimum           float64 `json:"minimum"`
		Maximum           float64 `json:"maximum"`
	} `json:"latency"`
	Counts struct {
		Fail    uint64 `json:"fail"`
		Success uint64 `json:"success"`
	} `json:"counts"`
}

// sendings counts messages to one peer.
type sendings struct {
	mu                          sync.Mutex
	sum, squares                float64
	current, minimum, maximum   float64
	succeededCount, failedCount uint64
}

// succeeded records n messages that were sent together.
func (s *sendings) succeeded(n int, took time.Duration) {
	if n == 0 {
		return
	}
	ms := float64(took) / float64(time.Millisecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.succeededCount == 0 || ms < s.minimum {
		s.minimum = ms
	}
	s.current, s.maximum = ms, max(s.maximum, ms)
	s.sum += float64(n) * ms
	s.squares += float64(n) * ms * ms
	s.succeededCount += uint64(n)
}

func (s *sendings) failed(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failedCount += uint64(n)
}

func (s *sendings) stats() FollowerStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	var f FollowerStats
	f.Counts.Fail, f.Counts.Success = s.failedCount, s.succeededCount
	f.Latency.Minimum = 1 << 63 // as in etcd before the first message
	if s.succeededCount == 0 {
		return f
	}
	n := float64(s.succeededCount)
	f.Latency.Current, f.Latency.Minimum, f.Latency.Maximum = s.current, s.minimum, s.maximum
	f.Latency.Average = s.sum / n
	f.Latency.StandardDeviation = math.Sqrt(max(0, s.squares/n-f.Latency.Average*f.Latency.Average))
	return f
}

// Stats returns the live counters.
func (t *Transport) Stats() *Stats { return &t.stats }

// Followers returns the send statistics of each peer, by id.
func (t *Transport) Followers() map[string]FollowerStats {
	out := map[string]FollowerStats{}
	for id, p := range t.table.Load().peers {
		out[id.String()] = p.sendings.stats()
	}
	return out
}

// count records a message with entries in r.
func (t *Transport) count(r *Rate, m *raftpb.Message) {
	if t.cfg.Stats && m.GetType() == raftpb.MsgApp {
		r.add(clock.Now(), proto.Size(m))
	}
}

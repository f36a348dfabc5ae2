package rpc

import (
	"context"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"quorate/internal/clock"
	"quorate/internal/crash"
	"quorate/internal/ids"
)

// leaderWatch cancels streams that were opened with the require-leader metadata. Reopening
// streams is expensive, so they survive a leader change: they are cancelled after three
// election timeouts without a leader.
//
// The background goroutine runs only while there are such streams, so it need not be
// stopped.
type leaderWatch struct {
	leader func() ids.Member
	every  time.Duration

	mu      sync.Mutex
	streams map[*cutter]struct{}
	running bool
}

type cutter struct{ cut context.CancelCauseFunc }

// leaderlessLooks is the number of consecutive checks without a leader that it takes.
const leaderlessLooks = 3

// add registers a stream. The caller must call forget when the stream ends.
func (w *leaderWatch) add(cut context.CancelCauseFunc) (forget func()) {
	c := &cutter{cut}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.streams[c] = struct{}{}
	if !w.running {
		w.running = true
		go crash.Guarded(w.run)()
	}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.streams, c)
	}
}

func (w *leaderWatch) run() {
	tick := clock.NewTicker(clock.System, w.every)
	defer tick.Stop()
	leaderless := 0
	for range tick.C {
		if w.leader() == 0 {
			leaderless++
		} else {
			leaderless = 0
		}
		if !w.look(leaderless >= leaderlessLooks) {
			return
		}
	}
}

// look cancels all streams if cut is set, and reports whether to keep running.
func (w *leaderWatch) look(cut bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if cut {
		for c := range w.streams {
			c.cut(rpctypes.ErrGRPCNoLeader)
		}
		clear(w.streams)
	}
	w.running = len(w.streams) > 0
	return w.running
}

package rpc

import (
	"context"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"quorate/internal/clock"
	"quorate/internal/crash"
)

// leaderWatch cuts streams that were opened on condition that there is a
// leader. Opening a stream again is costly, so a stream survives a change of
// leaders: it is cut once no leader has been seen for three election timeouts.
//
// The goroutine that looks lives only while there are such streams, so it needs
// no stopping.
type leaderWatch struct {
	leader func() uint64
	every  time.Duration

	mu      sync.Mutex
	streams map[*cutter]struct{}
	running bool
}

type cutter struct{ cut context.CancelCauseFunc }

// leaderlessLooks is how many looks in a row must find no leader.
const leaderlessLooks = 3

// add registers a stream to be cut. The caller forgets it when it ends.
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

// look cuts all streams if it is time to, and reports whether to look again.
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

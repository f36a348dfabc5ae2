package server

import (
	"errors"
	"os"
	"time"

	"go.uber.org/zap"

	"quorate/internal/task"
)

// stepPatience is how long a step of Stop may take before it is logged.
const stepPatience = time.Second

// Stop shuts the member down: it transfers leadership, rejects new work, fails requests in
// flight, and flushes the applied state.
func (m *Member) Stop() {
	m.stopOnce.Do(func() {
		task.InOrder(m.cfg.Clock, []task.Step{
			{Name: "transfer leadership", Do: m.leaving.handOver},
			{Name: "reject new work", Do: func() { close(m.replica.stop); m.replica.tasks.Cancel() }},
			{Name: "close the connections to peers", Do: func() { m.tr.Stop(); m.peers.Close() }},
			{Name: "stop consensus", Do: m.driver.halt},
			{Name: "stop the log and apply", Do: func() { m.replica.loops.Cancel(); m.replica.loops.Wait() }},
			{Name: "fail the requests in flight", Do: m.replica.giveUp},
			{Name: "close the watches", Do: func() { m.hub.Close(); m.replica.mach().V2().Close() }},
			{Name: "wait for background tasks", Do: m.replica.tasks.Wait},
			{Name: "close the state machine", Do: func() { m.replica.mach().Close() }},
			{Name: "flush the store", Do: m.replica.flushLast},
			{Name: "close the store", Do: func() { m.close("store", m.replica.mach().Engine().Close) }},
			{Name: "close the raft log", Do: func() { m.close("raft log", m.log.Close) }},
		}, func(step string, took time.Duration) {
			if took > stepPatience {
				m.lg.Info("a shutdown step is slow", zap.String("step", step), zap.Duration("took", took))
			}
		})
	})
}

func (m *Member) close(what string, f func() error) {
	if err := f(); err != nil && !errors.Is(err, os.ErrClosed) {
		m.lg.Warn("failed to close", zap.String("what", what), zap.Error(err))
	}
}

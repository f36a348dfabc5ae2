package server

import (
	"errors"
	"os"
	"time"

	"go.uber.org/zap"

	"quorate/internal/task"
)

// stepPatience is how long a step of Stop may take before the log tells of it.
const stepPatience = time.Second

// Stop ends the member: leadership is handed over, new work is refused, what is
// in flight gets an error, and what is applied is flushed.
func (m *Member) Stop() {
	m.stopOnce.Do(func() {
		task.InOrder(m.cfg.Clock, []task.Step{
			{Name: "hand over leadership", Do: m.leaving.handOver},
			{Name: "refuse new work", Do: func() { close(m.replica.stop); m.replica.tasks.Cancel() }},
			{Name: "close the connections to peers", Do: func() { m.tr.Stop(); m.peers.Close() }},
			{Name: "stop consensus", Do: m.driver.halt},
			{Name: "end the log and apply", Do: func() { m.replica.loops.Cancel(); m.replica.loops.Wait() }},
			{Name: "answer those who wait", Do: m.replica.giveUp},
			{Name: "end the watches", Do: func() { m.hub.Close(); m.replica.mach().V2().Close() }},
			{Name: "end the work in the background", Do: m.replica.tasks.Wait},
			{Name: "close the state machine", Do: func() { m.replica.mach().Close() }},
			{Name: "flush the store", Do: m.replica.flushLast},
			{Name: "close the store", Do: func() { m.close("store", m.replica.mach().Engine().Close) }},
			{Name: "close the raft log", Do: func() { m.close("raft log", m.log.Close) }},
		}, func(step string, took time.Duration) {
			if took > stepPatience {
				m.lg.Info("a step of the stop has taken long", zap.String("step", step), zap.Duration("took", took))
			}
		})
	})
}

func (m *Member) close(what string, f func() error) {
	if err := f(); err != nil && !errors.Is(err, os.ErrClosed) {
		m.lg.Warn("failed to close", zap.String("what", what), zap.Error(err))
	}
}

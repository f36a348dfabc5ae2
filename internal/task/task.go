// Package task describes background tasks as values: what runs, when, and in which
// order it stops.
//
// In: tasks, and the cancellation of their group. Out: their runs, each on the
// goroutine of its task. Always true: a canceled group starts nothing more, and Wait
// returns when all its goroutines have returned; a panic in a task crashes the process.
package task

import (
	"context"
	"runtime/pprof"
	"sync"
	"time"

	"quorate/internal/clock"
	"quorate/internal/crash"
)

// Task is background work that runs repeatedly. Without interval and trigger it runs
// once, immediately.
type Task struct {
	Name string // the label "task" of its goroutines in profiles
	// Every is the interval between runs; the first run is one interval after the
	// start.
	Every time.Duration
	// AtOnce adds a run before the first interval.
	AtOnce bool
	// Trigger requests an additional run.
	Trigger <-chan struct{}
	// When, unless nil, is called before each run; if it returns false, the run is skipped.
	When func() bool
	// Run is one run. It must return soon after ctx is done.
	Run func(ctx context.Context)
}

// Group is a set of tasks that stop together.
type Group struct {
	clock  clock.Clock
	ctx    context.Context
	cancel context.CancelFunc
	mu     sync.Mutex // serializes Go and Cancel
	wg     sync.WaitGroup
}

// NewGroup returns a group that measures intervals with the clock.
func NewGroup(c clock.Clock) *Group {
	g := &Group{clock: c}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	return g
}

// Context returns a context that is done when the group is canceled.
func (g *Group) Context() context.Context { return g.ctx }

// Go runs f on its own goroutine. If the group was canceled, it returns false and
// does not run f.
func (g *Group) Go(f func(ctx context.Context)) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ctx.Err() != nil {
		return false
	}
	g.wg.Add(1)
	go crash.Guarded(func() { defer g.wg.Done(); f(g.ctx) })()
	return true
}

// Start starts tasks, in order.
func (g *Group) Start(tasks ...Task) {
	for _, t := range tasks {
		g.Go(func(ctx context.Context) {
			pprof.Do(ctx, pprof.Labels("task", t.Name), func(ctx context.Context) { g.run(ctx, t) })
		})
	}
}

func (g *Group) run(ctx context.Context, t Task) {
	turn := func() {
		if t.When == nil || t.When() {
			t.Run(ctx)
		}
	}
	if t.Every <= 0 && t.Trigger == nil {
		turn()
		return
	}
	if t.AtOnce {
		turn()
	}
	var tick <-chan time.Time
	if t.Every > 0 {
		ticker := clock.NewTicker(g.clock, t.Every)
		defer ticker.Stop()
		tick = ticker.C
	}
	for {
		select {
		case <-tick:
		case <-t.Trigger:
		case <-ctx.Done():
			return
		}
		if ctx.Err() != nil {
			return
		}
		turn()
	}
}

// Cancel cancels the context of the group and keeps new goroutines from
// starting.
func (g *Group) Cancel() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cancel()
}

// Wait waits until all goroutines of a canceled group have returned.
func (g *Group) Wait() { g.wg.Wait() }

// Step is one step of a shutdown.
type Step struct {
	Name string
	Do   func()
}

// InOrder executes the steps one after the other. It calls took, unless nil, after each
// step.
func InOrder(c clock.Clock, steps []Step, took func(name string, d time.Duration)) {
	for _, s := range steps {
		start := c.Now()
		s.Do()
		if took != nil {
			took(s.Name, c.Now().Sub(start))
		}
	}
}

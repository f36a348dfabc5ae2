// Package task is work in the background as values: what runs, when, and in which order
// it ends.
//
// In: tasks, and the end of their group. Out: their turns, each on the goroutine of its
// task. Always true: a group that has been cancelled starts nothing more, and Wait
// returns when nothing of it runs; a panic in a task ends the process.
package task

import (
	"context"
	"runtime/pprof"
	"sync"
	"time"

	"quorate/internal/clock"
	"quorate/internal/crash"
)

// Task is a piece of work with turns. Without an interval and a trigger it has one turn,
// at once.
type Task struct {
	Name string // the label "task" of its goroutines in profiles
	// Every is the time between two turns, the first of which comes after one interval.
	Every time.Duration
	// AtOnce asks for a turn before the first interval.
	AtOnce bool
	// Trigger asks for a turn out of turn.
	Trigger <-chan struct{}
	// When, unless nil, is asked before each turn: a turn for which it says no is left out.
	When func() bool
	// Run is one turn. It returns soon after ctx has ended.
	Run func(ctx context.Context)
}

// Group is work that ends together.
type Group struct {
	clock  clock.Clock
	ctx    context.Context
	cancel context.CancelFunc
	mu     sync.Mutex // orders Go against Cancel
	wg     sync.WaitGroup
}

// NewGroup returns a group whose intervals are those of the clock.
func NewGroup(c clock.Clock) *Group {
	g := &Group{clock: c}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	return g
}

// Context ends when the group is cancelled.
func (g *Group) Context() context.Context { return g.ctx }

// Go runs f on a goroutine of its own, unless the group has been cancelled: then it
// reports false, and does not run f.
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

// Start begins tasks, in order.
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

// Cancel ends the context of the group, and lets nothing more begin.
func (g *Group) Cancel() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cancel()
}

// Wait returns when everything of a cancelled group has ended.
func (g *Group) Wait() { g.wg.Wait() }

// Step is a part of a shutdown.
type Step struct {
	Name string
	Do   func()
}

// InOrder takes the steps one after the other. took, unless nil, hears of each when it is
// over.
func InOrder(c clock.Clock, steps []Step, took func(name string, d time.Duration)) {
	for _, s := range steps {
		start := c.Now()
		s.Do()
		if took != nil {
			took(s.Name, c.Now().Sub(start))
		}
	}
}

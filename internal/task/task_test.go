package task

import (
	"context"
	"runtime/pprof"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"quorate/internal/clock"
)

// await advances the clock until the runs have happened.
func await(t *testing.T, c *clock.Manual, turns *atomic.Int64, n int64) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); turns.Load() < n; {
		c.Advance(time.Second)
		if time.Now().After(deadline) {
			t.Fatalf("%d turns, want %d", turns.Load(), n)
		}
	}
}

func TestTurns(t *testing.T) {
	c := clock.NewManual(time.Unix(0, 0))
	g := NewGroup(c)
	var ticks, once, asked, never, first atomic.Int64
	var leads atomic.Bool
	trigger := make(chan struct{})
	g.Start(
		Task{Name: "once", Run: func(context.Context) { once.Add(1) }},
		Task{Name: "first", Every: time.Hour, AtOnce: true, Run: func(context.Context) { first.Add(1) }},
		Task{Name: "ticks", Every: time.Second, Run: func(context.Context) { ticks.Add(1) }},
		Task{Name: "asked", Every: time.Hour, Trigger: trigger, Run: func(context.Context) { asked.Add(1) }},
		Task{Name: "leader", Every: time.Second, When: leads.Load, Run: func(context.Context) { never.Add(1) }},
	)
	await(t, c, &ticks, 3)
	trigger <- struct{}{}
	trigger <- struct{}{} // received when the first run is over
	await(t, c, &once, 1)
	await(t, c, &first, 1)
	if never.Load() != 0 || asked.Load() < 1 {
		t.Errorf("%d turns of a follower, %d of the one that was asked for", never.Load(), asked.Load())
	}
	leads.Store(true)
	await(t, c, &never, 1)
	g.Cancel()
	g.Wait()
	after := ticks.Load()
	c.Advance(time.Hour)
	if ticks.Load() != after || once.Load() != 1 {
		t.Error("turns after the end")
	}
	if g.Go(func(context.Context) { t.Error("it runs") }) {
		t.Error("a cancelled group starts something")
	}
}

// A profile distinguishes the tasks.
func TestName(t *testing.T) {
	g := NewGroup(clock.Real{})
	name := make(chan string, 1)
	g.Start(Task{Name: "watches", Run: func(ctx context.Context) {
		label, _ := pprof.Label(ctx, "task")
		name <- label
	}})
	if got := <-name; got != "watches" {
		t.Errorf("the goroutine is labelled %q", got)
	}
	g.Cancel()
	g.Wait()
}

func TestWait(t *testing.T) {
	g := NewGroup(clock.Real{})
	ended := make(chan struct{})
	g.Go(func(ctx context.Context) { <-ctx.Done(); close(ended) })
	g.Cancel()
	g.Wait()
	select {
	case <-ended:
	default:
		t.Error("Wait returned before the end")
	}
}

func TestInOrder(t *testing.T) {
	c := clock.NewManual(time.Unix(0, 0))
	var done []string
	step := func(name string, d time.Duration) Step {
		return Step{name, func() { done = append(done, name); c.Advance(d) }}
	}
	took := map[string]time.Duration{}
	InOrder(c, []Step{step("a", time.Second), step("b", 0), step("c", time.Minute)}, func(name string, d time.Duration) { took[name] = d })
	if !slices.Equal(done, []string{"a", "b", "c"}) || took["a"] != time.Second || took["c"] != time.Minute {
		t.Errorf("%v %v", done, took)
	}
}

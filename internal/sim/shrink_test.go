package sim

import (
	"errors"
	"io"
	"testing"
	"testing/cryptotest"
	"time"
)

var errOnPurpose = errors.New("a bug put in on purpose")

// A bug that needs one crash in a cluster of any size, and work after it, is shrunk to
// that: everything else is gone from the plan.
func TestShrink(t *testing.T) {
	world := Hostile
	world.Crashes = time.Second
	start := PlanOf(5, 5, 10*time.Second, world)
	runs := 0
	got, res, err := Shrink(start, 150, func(p Plan) (Result, error) {
		runs++
		cryptotest.SetGlobalRandom(t, p.Seed)
		w := newWorld(p.Seed, p.Faults, io.Discard)
		w.bug = func(n *node) error {
			if n.life > 1 && !w.calm {
				return errOnPurpose
			}
			return nil
		}
		return w.runPlan(p)
	})
	if !errors.Is(err, errOnPurpose) {
		t.Fatalf("the smallest plan fails with %v", err)
	}
	t.Logf("after %d runs: %v at %v, %v", runs, res.Happened, res.End, got)
	f := got.Faults
	if f.Crashes == 0 || f.Partitions+f.Stalls+f.ApplyStalls+f.FullDisks+f.Reconfigs > 0 || f.Loss+f.Duplication+f.TornSteps+f.CutTransfers > 0 || !f.Quiet {
		t.Errorf("faults that are not needed are left: %+v", f)
	}
	if got.Clients != 1 || got.Members != 1 || got.Length >= start.Length || got.Settings != usual(got.Seed) {
		t.Errorf("more than needed is left: %v", got)
	}
	left := 0
	for n := range res.Happened["crash"] {
		if !got.skips("crash", n) {
			left++
		}
	}
	if left > 1 { // one that follows a vote is not scheduled and does not count
		t.Errorf("%d crashes are left, want at most 1", left)
	}
	if _, _, err := Shrink(start, 10, func(Plan) (Result, error) { return Result{}, nil }); err != nil {
		t.Errorf("a plan that does not fail: %v", err)
	}
}

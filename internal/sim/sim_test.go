package sim

import (
	"bytes"
	"flag"
	"testing"
	"testing/cryptotest"
	"time"
)

var (
	seed   = flag.Uint64("seed", 1, "first seed")
	seeds  = flag.Uint64("seeds", 3, "how many seeds")
	length = flag.Duration("length", 20*time.Second, "simulated time under faults")
	traced = flag.Bool("trace", false, "print the trace of each seed")
)

// run simulates one seed. raft draws its election timeouts from the global
// random source, which is seeded here.
func run(t *testing.T, seed uint64, f Faults) Result {
	t.Helper()
	cryptotest.SetGlobalRandom(t, seed)
	var out bytes.Buffer
	res, err := Run(seed, 3, 5, *length, f, &out)
	if *traced || err != nil {
		lines := bytes.Split(out.Bytes(), []byte("\n"))
		if !*traced && len(lines) > 60 {
			lines = lines[len(lines)-60:]
		}
		for _, l := range lines {
			t.Logf("%s", l)
		}
	}
	if err != nil {
		t.Fatalf("%v\nreplay: make sim SEED=%d SEEDS=1", err, seed)
	}
	return res
}

func TestSim(t *testing.T) {
	for s := *seed; s < *seed+*seeds; s++ {
		first := run(t, s, Hostile)
		if first.Acked < 100 {
			t.Errorf("seed %d: only %d operations were acknowledged; the run proves nothing", s, first.Acked)
		}
		if s == *seed {
			if again := run(t, s, Hostile); again != first {
				t.Fatalf("seed %d gave two traces: %+v and %+v", s, first, again)
			}
		}
		t.Logf("seed %d: %d events, %d operations acknowledged, trace %016x", s, first.Events, first.Acked, first.Trace)
	}
}

// TestCheckerSeesLostWrites makes sure that the checker is not blind: a history
// in which an acknowledged write is gone must be refused.
func TestCheckerSeesLostWrites(t *testing.T) {
	cryptotest.SetGlobalRandom(t, 1)
	w := newWorld(1, Faults{MinDelay: time.Millisecond, MaxDelay: 2 * time.Millisecond}, nil)
	if err := w.populate(3, 2); err != nil {
		t.Fatal(err)
	}
	for _, n := range w.nodes {
		n.start()
	}
	for _, c := range w.clients {
		c.pause()
	}
	w.run(10 * time.Second)
	forged := false
	for _, c := range w.clients {
		c.stopped = true
		for i, op := range c.history {
			if in := op.Input.(input); in.op == "get" && op.Output.(output).value != "" {
				c.history[i].Output = output{value: "never written"}
				forged = true
			}
		}
	}
	if !forged {
		t.Fatal("no read to forge")
	}
	w.checkHistory()
	if w.err == nil {
		t.Fatal("a read of a value that nobody wrote was accepted")
	}
}

package sim

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/cryptotest"
	"time"
)

var (
	seed   = flag.Uint64("seed", 1, "first seed")
	seeds  = flag.Uint64("seeds", 3, "how many seeds")
	length = flag.Duration("length", 20*time.Second, "simulated time under faults")
	traced = flag.Bool("trace", false, "print the trace of each seed")
	budget = flag.Int("shrink", 150, "how many runs may be made to find a smaller plan that fails; 0 looks for none")
	given  = flag.String("plan", "", "the one plan that TestSimPlan runs, as a failure prints it")
)

// run simulates one plan. raft draws its election timeouts from the global random source,
// so simulate seeds that as well.
func run(t *testing.T, p Plan) Result {
	t.Helper()
	var out bytes.Buffer
	cryptotest.SetGlobalRandom(t, p.Seed)
	res, err := Run(p, &out)
	if err == nil {
		if *traced {
			t.Logf("%s", out.Bytes())
		}
		return res
	}
	t.Errorf("%v\nreplay: make sim SEED=%d SEEDS=1", err, p.Seed)
	small, smallErr := p, err
	if *budget > 0 {
		small, _, smallErr = Shrink(p, *budget, func(p Plan) (Result, error) {
			cryptotest.SetGlobalRandom(t, p.Seed)
			out.Reset()
			return Run(p, &out)
		})
		out.Reset()
		cryptotest.SetGlobalRandom(t, p.Seed)
		Run(small, &out)
	}
	lines := bytes.Split(out.Bytes(), []byte("\n"))
	if left := len(lines) - lastLines; left > 0 && !*traced {
		t.Logf("%d lines before these", left)
		lines = lines[left:]
	}
	t.Logf("%s", bytes.Join(lines, []byte("\n")))
	t.Fatalf("the smallest plan that fails as well: %v\nreplay it, with all of its trace: make sim PLAN='%v'", smallErr, small)
	return res
}

// lastLines is how much of the trace of a failure is printed.
const lastLines = 300

// TestSimPlan runs one plan, as a failure prints it.
func TestSimPlan(t *testing.T) {
	if *given == "" {
		t.Skip("no -plan")
	}
	var p Plan
	if err := json.Unmarshal([]byte(*given), &p); err != nil {
		t.Fatal(err)
	}
	*budget, *traced = 0, true
	run(t, p)
}

func simulate(t *testing.T, seed uint64, run func(out *bytes.Buffer) (Result, error)) Result {
	t.Helper()
	cryptotest.SetGlobalRandom(t, seed)
	var out bytes.Buffer
	res, err := run(&out)
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
	var changes, installed, overtaken, beside, refused, never int
	answered, sizes := map[string]int{}, map[int]int{}
	begun, simulated, longest := time.Now(), time.Duration(0), time.Duration(0)
	for s := *seed; s < *seed+*seeds; s++ {
		world := Hostile
		world.SameIDs, world.Quiet, world.Auth = s%3 == 0, s%2 == 0, s%4 == 1
		if s%4 == 0 { // snapshots overtake changes only where there are many of both
			world.Reconfigs /= 2
		}
		if s%3 == 2 {
			world.Upgrades = time.Second / 2
		} else if s%5 == 4 { // to etcd 3.5, which a cluster can go back to only before it has a later version
			world.Conversions = 2 * time.Second
		}
		plan := PlanOf(s, 5, *length, world)
		first := run(t, plan)
		sizes[plan.Members]++
		longest = max(longest, first.Progress)
		simulated += first.End
		if first.Acked < 100 {
			t.Errorf("seed %d: only %d operations were acknowledged; the run proves nothing", s, first.Acked)
		}
		changes, installed = changes+first.Changes, installed+first.Installed
		overtaken, beside, refused, never = overtaken+first.Overtaken, beside+first.Beside, refused+first.Refused, never+first.Never
		for kind, n := range first.Answered {
			answered[kind] += n
		}
		answered["compared answer"] += first.Compared
		answered["expired lease"] += first.Expired
		answered["read of what is compacted"] += first.CompactedReads
		if s < *seed+3 {
			simulated += first.End
			if again := run(t, plan); again.Trace != first.Trace {
				t.Fatalf("seed %d gave two traces: %+v and %+v", s, first, again)
			}
		}
		t.Logf("seed %d: %d events of %d members, %d operations acknowledged, %d changes of the membership, %d snapshots installed, trace %016x",
			s, first.Events, plan.Members, first.Acked, first.Changes, first.Installed, first.Trace)
	}
	fmt.Printf("seeds %d to %d: %.2f cluster-hours simulated, %.2f in a minute of real time; clusters by number of members: %v\n",
		*seed, *seed+*seeds-1, simulated.Hours(), simulated.Hours()/time.Since(begun).Minutes(), sizes)
	t.Logf("the longest time to progress after all faults have stopped: %v", longest)
	t.Logf("steps that a crash has interrupted: %v", tornSteps)
	t.Logf("of the workers and watchers: %v", answered)
	for _, kind := range slices.Concat(allKinds, []string{"forwarded keepalive", "checkpoint", "reset of a checkpoint", "compared answer", "expired lease",
		"read of what is compacted", "event", "fragment", "bookmark", "resumed watch", "canceled watch", "refused user", "watch of a user that was refused", "automatic compaction", "upgrade", "downgrade", "complete downgrade", "conversion for etcd", "take-over", "write over the quota", "alarm of a member"}) {
		if *seeds >= 20 && answered[kind] == 0 {
			t.Errorf("no %s: the runs prove nothing about that", kind)
		}
	}
	if changes == 0 || installed == 0 {
		t.Errorf("%d changes of the membership and %d installed snapshots: the runs prove nothing about them", changes, installed)
	}
	t.Logf("%d membership changes were applied after a later snapshot was accepted, %d truncations came in the middle of a run of apply", overtaken, beside)
	// TestSnapshotOvertakesConfChange makes what is rare here.
	if *seeds >= 60 && beside == 0 || *seeds >= 600 && overtaken == 0 {
		t.Errorf("%d membership changes were applied after a later snapshot was accepted, %d truncations came in the middle of a run of apply; the runs prove nothing about that", overtaken, beside)
	}
	t.Logf("%d log writes found the disk full, %d client writes failed as certainly not executed", refused, never)
	if *seeds >= 10 && refused == 0 {
		t.Error("no disk was full: the runs prove nothing about that")
	}
	for _, step := range []string{"truncation", "reception", "import", "exchange", "reset of the log", "conversion for etcd", "take-over"} {
		if *seeds >= 60 && tornSteps[step] == 0 {
			t.Errorf("no crash during %s; the runs prove nothing about that", step)
		}
	}
}

// TestSimOrders starts clusters from a snapshot file and then changes their membership in
// random orders. It compares the state of the members after each step.
func TestSimOrders(t *testing.T) {
	calm := Hostile
	calm.Crashes, calm.Partitions, calm.Stalls, calm.FullDisks, calm.Reconfigs, calm.ClockJumps = 0, 0, 0, 0, 0, 0 // RunOrders does these itself
	done := map[string]int{}
	missing := func() (what []string) {
		for _, step := range []string{"restore", "add", "promote", "remove", "restart", "crash"} {
			if done[step] == 0 {
				what = append(what, step)
			}
		}
		return what
	}
	// A few seeds may leave out a step: then more are run.
	const more = 20
	for s := *seed; s < *seed+*seeds || s < *seed+*seeds+more && len(missing()) > 0; s++ {
		order := func() Result {
			return simulate(t, s, func(out *bytes.Buffer) (Result, error) { return RunOrders(s, 12, 3, calm, out) })
		}
		first := order()
		if first.Acked < 100 {
			t.Errorf("seed %d: only %d operations were acknowledged; the run proves nothing", s, first.Acked)
		}
		if s < *seed+2 {
			if again := order(); again.Trace != first.Trace {
				t.Fatalf("seed %d gave two traces: %+v and %+v", s, first, again)
			}
		}
		for what, n := range first.Did {
			done[what] += n
		}
	}
	t.Logf("%v", done)
	if what := missing(); len(what) > 0 {
		t.Errorf("no %s: the runs prove nothing about that", strings.Join(what, ", "))
	}
}

// TestCheckerSeesLostWrites checks the checker: it must refuse a history with a read that no
// order of the writes explains.
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
		t.Fatal("a read of a value that was never written was accepted")
	}
}

// TestStalledLeader lets the leader's log disk hang in a world without other faults. Within
// two election timeouts another member leads, and no request on any member takes longer
// than that.
func TestStalledLeader(t *testing.T) {
	const limit = 2 * electionTicks * tick
	for s := *seed; s < *seed+*seeds; s++ {
		cryptotest.SetGlobalRandom(t, s)
		w := newWorld(s, Faults{MinDelay: time.Millisecond, MaxDelay: 5 * time.Millisecond, SyncDelay: 8 * time.Millisecond, ApplyDelay: 4 * time.Millisecond}, nil)
		if err := w.populate(3, 6); err != nil {
			t.Fatal(err)
		}
		for _, n := range w.nodes {
			n.start()
		}
		if !w.runUntil(30*time.Second, func() bool { return w.leader() != nil }) {
			t.Fatalf("seed %d: no leader: %v", s, w.err)
		}
		for _, c := range w.clients {
			c.pause()
		}
		w.run(5 * time.Second)
		for _, c := range w.clients {
			c.slowest = 0
		}
		old := w.leader()
		old.stalled = w.now + 10*time.Second
		from, acked := w.now, 0
		if !w.runUntil(limit, func() bool { l := w.leader(); return l != nil && l != old }) {
			t.Errorf("seed %d: after %v no other member leads", s, w.now-from)
		}
		for _, c := range w.clients {
			acked -= c.acked
		}
		w.run(old.stalled - w.now) // then the member has to catch up
		for _, c := range w.clients {
			acked += c.acked
			if c.stopped = true; c.slowest > limit {
				t.Errorf("seed %d: client %d has waited %v", s, c.id, c.slowest)
			}
		}
		if acked < 20 {
			t.Errorf("seed %d: only %d operations were acknowledged while the member was stalled", s, acked)
		}
		w.run(2 * requestTimeout) // lets all operations end, so that the history is complete
		w.checkMembers()
		w.checkHistory()
		if w.err != nil {
			t.Error(w.err)
		}
	}
}

package sim

import (
	"bytes"
	"fmt"
	"testing"
	"testing/cryptotest"
	"time"

	"quorate/internal/membership"
)

// TestSnapshotOvertakesConfChange sends a snapshot to a member whose store hangs. raft
// takes the configuration of the snapshot at once; then the entries before it are
// applied, with a membership change among them that raft must not make again.
func TestSnapshotOvertakesConfChange(t *testing.T) {
	cryptotest.SetGlobalRandom(t, 1)
	var out bytes.Buffer
	w := newWorld(1, Faults{MinDelay: time.Millisecond, MaxDelay: 5 * time.Millisecond, SyncDelay: 2 * time.Millisecond, ApplyDelay: 2 * time.Millisecond}, &out)
	if err := w.populate(3, 6); err != nil {
		t.Fatal(err)
	}
	for _, n := range w.nodes {
		n.start()
	}
	until := func(what string, d time.Duration, ok func() bool) {
		t.Helper()
		if !w.runUntil(d, ok) {
			t.Fatalf("%s: %v\n%s", what, w.err, out.Bytes()[max(0, out.Len()-4000):])
		}
	}
	until("a leader", 30*time.Second, func() bool { return w.leader() != nil })
	for _, c := range w.clients {
		c.pause()
	}
	w.run(2 * time.Second)
	lead := w.leader()
	behind := w.nodes[(lead.index+1)%len(w.nodes)]

	behind.applyStall = w.now + time.Hour
	w.run(200 * time.Millisecond)
	x := membership.NewMember([]string{"http://learner:2380"}, true, w.time())
	learner, err := newNode(w, len(w.nodes), x.ID, lead.clusterID, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.nodes, w.byID[x.ID] = append(w.nodes, learner), learner
	learner.start()
	w.propose(lead, "add", learner, must(membership.AddChange(x)))
	until("add", 10*time.Second, func() bool { return w.changes["add"] > 0 })
	w.run(300 * time.Millisecond) // the change waits for the store that hangs
	for i := range w.nodes {
		w.cut[[2]int{i, behind.index}], w.cut[[2]int{behind.index, i}] = true, true
	}
	until("the learner catches up", 20*time.Second, func() bool {
		return learner.joined() && membership.LearnerInSync(lead.machine.Applied(), learner.machine.Applied())
	})
	w.propose(lead, "promote", learner, must(membership.PromoteChange(learner.id)))
	until("promote", 10*time.Second, func() bool { return w.changes["promote"] > 0 })
	at := lead.machine.Applied()
	until("truncation", 60*time.Second, func() bool { return lead.pipe.Log.Mark() > at })
	clear(w.cut)
	until("a snapshot is accepted", 60*time.Second, func() bool { return behind.installing() })

	if n := w.overtaken; n > 0 {
		t.Fatalf("%d changes were applied too early", n)
	}
	behind.applyStall, behind.applyBu = 0, false // the event in an hour will find nothing to do
	behind.kickApply()
	until("installed", 60*time.Second, func() bool { return !behind.installing() })
	w.run(2 * time.Second)
	if w.overtaken == 0 {
		t.Error("no membership change was applied after the snapshot was accepted: the run proves nothing")
	}
	want := fmt.Sprintf("voters %d learners 0", len(w.nodes))
	for _, n := range w.nodes {
		cfg := n.core().Node().Status().Config
		if got := fmt.Sprintf("voters %d learners %d", len(cfg.Voters[0]), len(cfg.Learners)); got != want {
			t.Errorf("raft of member %d has %s, want %s", n.index, got, want)
		}
	}
	if w.err != nil {
		t.Error(w.err)
	}
}

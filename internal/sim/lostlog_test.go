package sim

import (
	"testing"
	"testing/cryptotest"
	"time"
)

// A member restarts with an old copy of its disk, or with an empty one. Its log lacks
// entries that it has acknowledged, so it must not vote. It stops at the leader's first
// heartbeat with a later commit index; the others continue.
func TestLostLog(t *testing.T) {
	for s := *seed; s < *seed+*seeds; s++ {
		cryptotest.SetGlobalRandom(t, s)
		w := newWorld(s, Faults{MinDelay: time.Millisecond, MaxDelay: 5 * time.Millisecond, SyncDelay: 8 * time.Millisecond, ApplyDelay: 4 * time.Millisecond}, nil)
		if err := w.populate(3, 5); err != nil {
			t.Fatal(err)
		}
		for _, n := range w.nodes {
			n.start()
		}
		for _, c := range w.clients {
			c.pause()
		}
		w.run(3 * time.Second)
		var f, lead *node
		for _, n := range w.nodes {
			if st := n.core().Node().State(); st.Lead == n.id {
				lead = n
			} else {
				f = n
			}
		}
		if lead == nil {
			t.Fatalf("seed %d: no leader", s)
		}
		old := f.disk.crashed()
		if s%2 == 0 {
			bare, err := newNode(w, f.index, f.id, f.clusterID, nil)
			if err != nil {
				t.Fatal(err)
			}
			old = bare.disk
		}
		w.run(2 * time.Second)
		before := lead.machine.Applied()
		f.crash(old)
		f.outdated = true
		f.start()
		w.run(3 * time.Second)
		if w.err != nil {
			t.Fatal(w.err)
		}
		if f.lost == nil || f.lost.Leader != lead.id || f.lost.Acked <= f.lost.Last || f.lost.Acked > lead.machine.Applied()+100 {
			t.Errorf("seed %d: the member stopped with %v", s, f.lost)
		}
		if lead.machine.Applied() < before+50 || lead.core().Node().State().Lead != lead.id {
			t.Errorf("seed %d: the others make no progress: applied %d and then %d", s, before, lead.machine.Applied())
		}
	}
}

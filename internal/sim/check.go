package sim

import (
	"context"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/engine"
	"quorate/internal/engine/enginetest"
	"quorate/internal/membership"
)

func valueOf(kvs [][]byte) string {
	if len(kvs) == 0 {
		return ""
	}
	kv := &mvccpb.KeyValue{}
	if err := proto.Unmarshal(kvs[0], kv); err != nil {
		return "undecodable: " + err.Error()
	}
	return string(kv.Value)
}

// Result summarizes a run.
type Result struct {
	Trace  uint64 // hash of the trace
	Events int
	Acked  int // operations that were acknowledged
	// Changes of the membership and installed snapshots.
	Changes, Installed int
	// Overtaken counts membership changes that were applied after raft had accepted a
	// later snapshot; Beside counts truncations in the middle of a run of apply.
	Overtaken, Beside int
	Refused           int            // log writes that found the disk full
	Never             int            // client writes that failed as certainly not executed
	Did               map[string]int // membership changes and restarts, by name
	// Answered counts the workers' requests that were answered, by kind; Compared, the
	// answers of members that were compared with the model; Expired and Renewed, leases;
	// CompactedReads, reads of a compacted revision.
	Answered                                   map[string]int
	Compared, Expired, Renewed, CompactedReads int
	// Happened counts faults by kind, those that were skipped too. End is the simulated time
	// at which the run was over, Failed what kind of failure has ended it.
	Happened map[string]int
	End      time.Duration
	Failed   string
	Progress time.Duration // from the end of all faults to progress
}

// Run simulates a plan: members and clients under faults for a while, then without. It
// checks that no acknowledged write is lost, the history is linearizable, and all members
// hold the same keys and revisions. The trace is written to out unless that is nil.
func Run(p Plan, out io.Writer) (Result, error) {
	return newWorld(p.Seed, p.Faults, out).runPlan(p)
}

func (w *World) runPlan(p Plan) (Result, error) {
	w.plan, w.set = p, p.Settings
	for _, kind := range p.Without {
		w.without[kind] = true
	}
	w.guarded(func() error { return w.live(p) })
	return w.result(), w.err
}

// guarded runs do and turns an error or a panic into the failure of the run.
func (w *World) guarded(do func() error) {
	defer func() {
		if v := recover(); v != nil {
			w.fail("panic: %v\n%s", v, debug.Stack())
		}
	}()
	if err := do(); err != nil {
		w.fail("%w", err)
	}
}

// live runs members and clients, under faults and then without, and checks what is left.
func (w *World) live(p Plan) error {
	w.log("plan %v", p)
	if err := w.populate(p.Members, p.Clients); err != nil {
		return err
	}
	for _, n := range w.nodes {
		n.start()
	}
	for _, c := range w.clients {
		c.pause()
	}
	for _, c := range w.workers {
		c.pause()
	}
	for _, c := range w.watchers {
		c.again()
	}
	w.unleash()
	w.run(p.Length)
	w.heal()
	w.checkProgress()
	w.run(2 * requestTimeout) // there is a leader again, and old requests have ended
	for _, c := range w.clients {
		c.stopped = true
	}
	for _, c := range w.workers {
		c.stopped = true
	}
	for _, c := range w.watchers {
		c.stopped = true
	}
	w.run(2 * requestTimeout)
	w.checkMembers()
	w.checkBounds()
	w.checkLeasesEnd()
	w.checkMembers()
	w.checkWatches()
	w.checkHistory()
	return nil
}

// result returns the counters of the run.
func (w *World) result() Result {
	res := Result{Trace: w.trace.sum, Events: w.trace.n, Installed: w.installed, Overtaken: w.overtaken, Beside: w.beside, Refused: w.refused, Never: w.never, Did: w.changes,
		Answered: w.did, Compared: w.compared, Expired: w.leases.expired, Renewed: w.leases.renewed, CompactedReads: w.compactedReads,
		Happened: w.happened, End: w.now, Failed: w.failed, Progress: w.progress}
	for _, n := range w.changes {
		res.Changes += n
	}
	for step, n := range w.torn {
		tornSteps[step] += n
	}
	for _, c := range w.clients {
		res.Acked += c.acked
	}
	return res
}

func (w *World) populate(members, clients int) error {
	var initial []membership.InitialMember
	for i := range members {
		initial = append(initial, membership.InitialMember{Name: fmt.Sprintf("m%d", i), PeerURLs: []string{fmt.Sprintf("http://m%d:2380", i)}})
	}
	founders, clusterID, err := membership.Founders(initial, "sim")
	if err != nil {
		return err
	}
	first, err := membership.BootstrapEntries(founders)
	if err != nil {
		return err
	}
	for i, f := range founders {
		n, err := newNode(w, i, f.ID, clusterID, first)
		if err != nil {
			return err
		}
		if w.faults.Upgrades > 0 && w.rng.IntN(4) > 0 {
			n.release = oldest
		}
		w.nodes = append(w.nodes, n)
		w.byID[f.ID] = n
	}
	for i := range clients {
		w.clients = append(w.clients, &client{w: w, id: i, keys: 4})
		if w.faults.Quiet {
			continue
		}
		w.workers = append(w.workers, &worker{w: w, id: i})
		w.watchers = append(w.watchers, &watcher{w: w, id: i})
	}
	return nil
}

// leader returns a member that believes to be the leader, nil if there is none.
func (w *World) leader() *node {
	for _, n := range w.nodes {
		if st := n.core().Node().State(); st.Lead == n.id {
			return n
		}
	}
	return nil
}

// tornSteps counts the power losses in the middle of a step of file work, over all runs.
var tornSteps = map[string]int{}

// checkMembers waits until all members of the newest configuration have applied the same
// index, and compares their hashes, their v2 trees and the model.
func (w *World) checkMembers() {
	same := func() bool {
		members := w.members()
		for _, n := range members {
			if n.down || n.accepted > 0 || n.machine.Applied() != members[0].machine.Applied() {
				return false
			}
		}
		return len(members) > 0
	}
	if !w.runUntil(30*time.Second, same) {
		w.fail("the members do not reach the same index after all faults have stopped")
		return
	}
	w.checkVersions()
	var want uint32
	var tree []string
	for i, n := range w.members() {
		records, err := n.treeV2()
		if err != nil {
			w.fail("tree of the v2 API of member %d: %w", n.index, err)
			return
		}
		if i == 0 {
			tree = records
		} else if !slices.Equal(records, tree) {
			at := 0
			for at < min(len(records), len(tree)) && records[at] == tree[at] {
				at++
			}
			w.fail("member %d has another tree of the v2 API than the first: %d records and not %d, from the %dth on:\n%q\n%q",
				n.index, len(records), len(tree), at, records[at:min(at+4, len(records))], tree[at:min(at+4, len(tree))])
		}
		if n.machine.V2().HasTTL() {
			w.fail("member %d still has v2 nodes that should have expired long ago", n.index)
		}
		w.log("tree %d index=%d", n.index, n.machine.V2().Index())
		h, err := n.machine.KV().HashKV(context.Background(), 0)
		if err != nil {
			w.fail("hash of member %d: %w", n.index, err)
			return
		}
		w.checkModel(n)
		w.log("hash %d %08x rev=%d", n.index, h.Hash, h.HashRev)
		if i == 0 {
			want = h.Hash
		} else if h.Hash != want {
			w.fail("member %d has hash %08x at revision %d, the first has %08x", n.index, h.Hash, h.HashRev, want)
		}
	}
}

// treeV2 returns the records of the v2 API, keys and values in turn.
func (n *node) treeV2() ([]string, error) {
	records, err := enginetest.Records(n.machine.Engine(), engine.V2)
	if err != nil || n.w.faults.Conversions == 0 {
		return records, err
	}
	// A member whose directory was etcd's for a while has none of the events from before.
	var out []string
	for i := 0; i+1 < len(records); i += 2 {
		if records[i][0] == 'n' {
			out = append(out, records[i], records[i+1])
		}
	}
	return out, nil
}

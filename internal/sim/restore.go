package sim

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/datadir"
	"quorate/internal/membership"
	"quorate/internal/snapshot"
)

// restore stops all members and starts a new cluster of size members from a snapshot file
// of the most advanced one. No client may have a request in flight: its outcome would not
// be known.
func (w *World) restore(size int) error {
	var from *node
	for _, n := range w.nodes {
		if !n.down && (from == nil || n.machine.Applied() > from.machine.Applied()) {
			from = n
		}
	}
	const backup = "backup.db"
	if _, err := snapshot.Export(context.Background(), from.machine.Engine(), backup, snapshot.Options{FS: from.disk}); err != nil {
		return fmt.Errorf("write a snapshot file: %w", err)
	}
	file, err := read(from.disk, backup)
	if err != nil {
		return err
	}
	for _, n := range w.nodes {
		if !n.down {
			n.stop()
		}
		n.removed = true
	}
	clear(w.configs)
	clear(w.applied)
	clear(w.entries)
	clear(w.written)
	clear(w.digests)
	clear(w.gone)
	w.forgetLog(from.machine.Applied())
	w.changing = 0
	w.forgetV2()

	var initial []membership.InitialMember
	for i := range size {
		initial = append(initial, membership.InitialMember{Name: fmt.Sprintf("m%d", i), PeerURLs: []string{fmt.Sprintf("http://m%d:2380", len(w.nodes)+i)}})
	}
	founders, cluster, err := membership.Founders(initial, fmt.Sprintf("restored-%d", len(w.nodes)))
	if err != nil {
		return err
	}
	w.log("restore %d bytes of %d into %d members", len(file), from.index, size)
	for _, f := range founders {
		n := &node{w: w, index: len(w.nodes), id: f.ID, clusterID: cluster, disk: newDisk(w), release: newest, down: true}
		if err := n.restoreFrom(file, founders); err != nil {
			return fmt.Errorf("restore member %d: %w", n.index, err)
		}
		w.nodes, w.byID[f.ID] = append(w.nodes, n), n
		n.start()
	}
	w.changes["restore"]++
	return nil
}

func (n *node) restoreFrom(file []byte, founders []membership.Member) error {
	const path = "restore.db"
	f, err := n.disk.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	if _, err := f.Write(file); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return datadir.RestoreInto(context.Background(), n.layout(),
		datadir.Restore{File: path, LocalID: n.id, ClusterID: n.clusterID, Founders: founders},
		datadir.Options{Version: n.release, OpenEngine: n.disk.openEngine})
}

// forgetV2 drops the clients' history of the v2 API: a restore keeps no v2 data.
func (w *World) forgetV2() {
	for _, c := range w.clients {
		var kept []porcupine.Operation
		for _, op := range c.history {
			if !op.Input.(input).v2() {
				kept = append(kept, op)
			}
		}
		c.history = kept
	}
}

// rest stops the clients and workers and waits until their requests have ended.
func (w *World) rest() {
	for _, c := range w.clients {
		c.stopped = true
	}
	for _, c := range w.workers {
		c.stopped = true
	}
	w.run(2 * requestTimeout)
}

// work lets the clients and workers continue.
func (w *World) work() {
	for _, c := range w.clients {
		c.stopped = false
		c.pause()
	}
	for _, c := range w.workers {
		c.stopped = false
		c.pause()
	}
}

// RunOrders restores clusters from snapshots, and adds, promotes, removes and restarts
// members in an order drawn from the seed, while clients, workers and watchers are busy.
// After each step it compares the state of all members.
func RunOrders(seed uint64, steps, clients int, f Faults, out io.Writer) (Result, error) {
	w := newWorld(seed, f, out)
	if err := w.populate(1+w.rng.IntN(3), clients); err != nil {
		return Result{}, err
	}
	for _, n := range w.nodes {
		n.start()
	}
	for _, c := range w.watchers {
		c.again()
	}
	w.work()
	w.run(5 * time.Second)
	for i := range steps {
		if i == 0 || w.rng.IntN(6) == 0 {
			w.rest()
			if err := w.restore(1 + w.rng.IntN(2)); err != nil {
				return Result{}, err
			}
			w.work()
		} else {
			w.change()
		}
		w.run(w.between(0, 3*time.Second))
		w.rest()
		w.checkMembers()
		if w.err != nil {
			break
		}
		w.work()
	}
	w.rest()
	for _, c := range w.watchers {
		c.stopped = true
	}
	w.checkMembers()
	w.checkBounds()
	w.checkWatches()
	w.checkHistory()
	return w.result(), w.err
}

// change changes the membership once, or restarts or crashes a member.
func (w *World) change() {
	members := w.members()
	var learner *node
	for _, n := range members {
		if n.isLearner() {
			learner = n
		}
	}
	n := members[w.rng.IntN(len(members))]
	switch k := w.rng.IntN(6); {
	case k == 0:
		w.log("restart %d", n.index)
		n.stop()
		n.start()
		w.changes["restart"]++
	case k == 1:
		n.crash(n.disk.crashed())
		w.after(w.between(0, time.Second), n.start)
		w.changes["crash"]++
	case k == 2 && learner != nil:
		w.insist("promote", learner, must(membership.PromoteChange(learner.id)), func(via *node) bool {
			x, _ := via.cluster.Member(learner.id)
			return !x.IsLearner
		})
	case k <= 3 && n == learner || k <= 3 && len(members) > 2 || k <= 3 && len(members) == 2 && learner == nil:
		w.insist("remove", n, membership.RemoveChange(n.id), func(via *node) bool { return via.cluster.IsRemoved(n.id) })
		w.runUntil(5*time.Second, func() bool { return n.removed })
		if !n.removed { // no member is left that could tell it
			n.stop()
			n.removed = true
		}
	case len(members) < 5:
		w.join(n, learner == nil && w.rng.IntN(2) == 0)
	}
}

func (n *node) isLearner() bool {
	x, _ := n.cluster.Member(n.id)
	return x.IsLearner
}

// join adds a new member and waits until it has applied its own addition.
func (w *World) join(via *node, learner bool) {
	x := membership.NewMember([]string{fmt.Sprintf("http://m%d:2380", len(w.nodes))}, learner, w.time())
	n, err := newNode(w, len(w.nodes), x.ID, via.clusterID, nil)
	if err != nil {
		w.fail("new member: %w", err)
		return
	}
	w.nodes, w.byID[x.ID] = append(w.nodes, n), n
	n.start()
	w.insist("add", n, must(membership.AddChange(x)), func(via *node) bool {
		_, ok := via.cluster.Member(n.id)
		return ok
	})
	if !w.runUntil(time.Minute, func() bool { return !n.down && n.joined() }) {
		w.fail("member %d was added and has not arrived", n.index)
	}
}

// insist proposes a change, again if necessary, until effect holds on some member.
func (w *World) insist(what string, n *node, cc *raftpb.ConfChange, effect func(via *node) bool) {
	for end := w.now + time.Minute; w.now < end && w.err == nil; w.run(100 * time.Millisecond) {
		for _, via := range w.nodes {
			if via.down || !via.joined() || via == n && what == "add" {
				continue
			}
			if effect(via) {
				return
			}
			if w.changing == 0 {
				w.propose(via, what, n, cc)
			}
		}
	}
	w.fail("%s of member %d has no effect within a minute", what, n.index)
}

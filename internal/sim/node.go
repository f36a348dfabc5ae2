package sim

import (
	"context"
	"errors"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"quorate/internal/apply"
	"quorate/internal/command"
	"quorate/internal/datadir"
	"quorate/internal/durable"
	"quorate/internal/engine"
	"quorate/internal/lease"
	"quorate/internal/membership"
	"quorate/internal/mvcc"
	"quorate/internal/proposal"
	"quorate/internal/raftlog"
	"quorate/internal/raftnode"
	"quorate/internal/readindex"
	"quorate/internal/replica"
)

const (
	tick          = 100 * time.Millisecond
	electionTicks = 10
	segmentBytes  = 64 << 10
	flushEvery    = 700 * time.Millisecond
)

var logOptions = raftlog.Options{SegmentBytes: segmentBytes, NoBackground: true}

// node is one member: its disk, and, while it is up, everything in its memory.
type node struct {
	w         *World
	index     int
	id        uint64
	clusterID uint64
	disk      *disk
	down      bool
	removed   bool                   // for good
	outdated  bool                   // its disk is an old copy, put there by a test
	lost      *raftnode.LostLogError // why it has ended for good
	life      int                    // counts starts: events of an earlier life are void
	said      promised

	home    datadir.Home
	dir     string // of the store in use
	log     *raftlog.Log
	machine *apply.Machine
	core    *replica.Core
	props   *proposal.Table
	reads   *readindex.Batcher
	ids     *proposal.IDs
	cluster *membership.Cluster

	logq       []raftnode.Append
	logBusy    bool
	logFrom    time.Duration // when the log write under way began
	stalled    time.Duration // until when no log write ends
	applyStall time.Duration // until when nothing is applied
	installing bool          // a snapshot
	mark       uint64        // index up to which the log is truncated
	sending    int           // snapshots that were sent a moment ago
	received   uint64        // transfers of snapshots that have begun
	applyq     []replica.Work
	applyBu    bool
	leaving    bool
	waiting    []func() bool // what clients wait for; true when over
}

func isSnapshot(a raftnode.Append) bool { return a.Snapshot != nil }

// newNode makes the disk of a member. A founder has the first entries in its log;
// one that joins has none.
func newNode(w *World, index int, id, clusterID uint64, first []*raftpb.Entry) (*node, error) {
	n := &node{w: w, index: index, id: id, clusterID: clusterID, disk: newDisk(w), down: true}
	l := n.layout()
	if err := durable.MkdirAll(n.disk, l.DataDir, l.Member(), l.Snap()); err != nil {
		return nil, err
	}
	log, err := raftlog.Create(n.disk, l.WAL(), raftlog.Metadata{NodeID: id, ClusterID: clusterID}, logOptions)
	if err != nil {
		return nil, err
	}
	if len(first) > 0 {
		hs := &raftpb.HardState{Term: new(uint64(1)), Vote: new(uint64(0)), Commit: new(uint64(len(first)))}
		if err := log.Append(hs, first, true); err != nil {
			return nil, err
		}
	}
	return n, log.Close()
}

func (n *node) layout() datadir.Layout { return datadir.Layout{FS: n.disk, DataDir: "data"} }

// start brings the member up from what its disk holds.
func (n *node) start() {
	if !n.down || n.removed || n.lost != nil {
		return
	}
	if err := n.open(); errors.Is(err, raftlog.ErrNoSpace) {
		n.w.after(diskRetry, n.start)
		return
	} else if err != nil {
		n.w.fail("start member %d: %w", n.index, err)
		return
	}
	n.down = false
	n.life++
	n.checkPromises()
	n.noteConfig()
	last, _ := n.log.LastIndex()
	n.w.log("start %d applied=%d last=%d term=%d", n.index, n.machine.Applied(), last, n.core.Node().State().Term)
	n.every(func() time.Duration { return n.w.between(tick*9/10, tick*11/10) }, func() {
		now := n.w.time()
		n.props.Expire(now, func(time.Time) error { return errTimeout })
		in := replica.Input{Ticks: 1}
		if n.logBusy && !n.installing {
			in.LogStall = n.w.now - n.logFrom
		}
		n.step(in)
	})
	n.every(func() time.Duration { return n.w.between(400*time.Millisecond, 600*time.Millisecond) }, n.expireV2)
	n.every(func() time.Duration { return n.w.between(truncateEvery/2, truncateEvery*2) }, n.truncate)
	n.every(func() time.Duration { return n.w.between(flushEvery/2, flushEvery*2) }, func() {
		if err := n.machine.Engine().Flush(context.Background()); err != nil {
			n.w.fail("flush member %d: %w", n.index, err)
		}
	})
}

// expireV2 proposes, as a leader, to remove what has expired.
func (n *node) expireV2() {
	if n.core.Node().State().Lead != n.id || !n.machine.V2().HasTTL() {
		return
	}
	r := &command.V2Request{ID: n.ids.Next(), Method: "SYNC", Time: n.w.time().UnixNano()}
	p := &proposal.Pending{ID: r.ID, V2: r, Data: r.Marshal()}
	if n.props.Admit(p, n.w.time(), requestTimeout) == nil {
		n.step(replica.Input{Propose: []*proposal.Pending{p}})
	}
}

func (n *node) open() (err error) {
	layout := n.layout()
	if n.log, err = raftlog.Open(n.disk, layout.WAL(), logOptions); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			n.log.Close() // frees its lock for the next attempt
		}
	}()
	lg := zap.NewNop()
	n.home = datadir.Home{Layout: layout, Log: n.log, Member: n.id, Cluster: n.clusterID, OpenEngine: n.disk.openEngine, Logger: lg}
	if n.dir, err = layout.Store(); err != nil {
		return err
	}
	eng, err := n.disk.openEngine(n.dir)
	if err != nil {
		return err
	}
	if err := n.home.CheckTogether(eng); err != nil {
		return errors.Join(err, eng.Close())
	}
	n.cluster = membership.New(membership.Options{LocalID: n.id, ClusterID: n.clusterID, ServerVersion: serverVersion})
	if n.machine, err = n.openMachine(eng); err != nil {
		return err
	}
	n.home.RemoveRemains(n.dir)
	n.mark, n.installing, n.sending, n.leaving = n.log.Mark().Index, false, 0, false
	applied := n.machine.Applied()
	rn, err := raftnode.New(raftnode.Config{ID: n.id, ElectionTicks: electionTicks, HeartbeatTicks: 1, PreVote: true, Applied: applied,
		Storage: raftnode.NewStorage(n.log, n.machine.ConfState(), applied, func() (*raftpb.Snapshot, error) { return n.home.Describe(n.machine) }),
		Logger:  quiet{lg.Sugar()}})
	if err != nil {
		return err
	}
	n.ids = proposal.NewIDs(n.id, n.w.time())
	if n.w.faults.SameIDs {
		n.ids = proposal.NewIDs(uint64(n.life), epoch)
	}
	n.props = proposal.NewTable(1000, 1<<20)
	n.reads = readindex.New(n.ids.Next, applied)
	n.core = replica.NewCore(replica.CoreConfig{Node: rn, Proposals: n.props, Reads: n.reads,
		ReadRetry: 500 * time.Millisecond, ReadLimit: requestTimeout, ErrTimeout: errTimeout, ErrLost: errTimeout, ErrChanged: errChanged,
		StallAfter: electionTicks * tick, StallLimit: (2*electionTicks - 2) * tick, HandOver: electionTicks * tick, Gate: n.mayChange})
	n.logq, n.applyq, n.logBusy, n.applyBu, n.waiting = nil, nil, false, false, nil
	return nil
}

// every repeats do as long as this life lasts.
func (n *node) every(pause func() time.Duration, do func()) {
	life := n.life
	n.w.after(pause(), func() {
		if n.life == life && !n.down {
			do()
			n.every(pause, do)
		}
	})
}

// later runs do unless the member has crashed by then.
func (n *node) later(d time.Duration, do func()) {
	life := n.life
	n.w.after(d, func() {
		if n.life == life && !n.down {
			do()
		}
	})
}

func (n *node) openMachine(eng engine.Engine) (*apply.Machine, error) {
	return apply.Open(eng, apply.Options{Cluster: n.cluster, Lessor: lease.New(2, lease.Options{}),
		Now: n.w.time, Logger: zap.NewNop(), MVCC: mvcc.Options{Manual: true}})
}

// crash takes the power away and leaves what is on left.
func (n *node) crash(left *disk) {
	n.w.log("crash %d applied=%d", n.index, n.machine.Applied())
	n.stop()
	n.disk = left
}

func (n *node) stop() {
	n.down = true
	n.machine.Close()
	n.log.Close() // frees its lock
	n.props.Close(errCrashed)
	n.reads.Close(errCrashed)
	n.settleWaiting()
}

// leave ends a member that was removed, a moment after it has heard of that.
func (n *node) leave() {
	if n.leaving {
		return
	}
	n.leaving = true
	n.later(time.Second, func() {
		n.w.log("removed %d", n.index)
		n.removed = true
		n.stop()
	})
}

// step feeds the core and schedules what follows, as the real driver does with
// its goroutines.
func (n *node) step(in replica.Input) {
	eff := n.core.Step(n.w.time(), in)
	if eff.LostLog != nil {
		n.lost = eff.LostLog
		n.w.log("ended %d: %v", n.index, eff.LostLog)
		if !n.outdated {
			n.w.fail("member %d ends: %w", n.index, eff.LostLog)
		}
		n.stop()
		return
	}
	for _, m := range eff.Send {
		if m.GetType() == raftpb.MsgSnap {
			n.sendSnapshot(m)
		} else {
			n.send(m)
		}
	}
	n.logq = append(n.logq, eff.Append...)
	for _, a := range eff.Apply {
		n.applyq = append(n.applyq, replica.Work{Apply: a})
	}
	n.kickLog()
	n.kickApply()
	n.settleWaiting()
}

func (n *node) kickLog() {
	if n.logBusy || len(n.logq) == 0 {
		return
	}
	n.logBusy, n.logFrom = true, n.w.now
	n.later(n.w.between(0, n.w.faults.SyncDelay), n.writeLog)
}

// writeLog writes all that waits, once the disk lets it.
func (n *node) writeLog() {
	if n.w.now < n.stalled {
		n.later(n.stalled-n.w.now, n.writeLog)
		return
	}
	works := n.logq
	n.logq = nil
	n.write(works)
}

// write does what waits for the log, one piece of work after the other.
func (n *node) write(works []raftnode.Append) {
	for len(works) > 0 {
		var w replica.Write
		w, works = replica.NextWrite(works)
		if w.Snapshot() != nil {
			n.install(w.Install(), func() { n.write(works) })
			return
		}
		if !n.writeTo(w, works) {
			return
		}
	}
	n.logBusy = false
	n.kickLog()
}

// diskRetry is how long a write waits that has found no room.
const diskRetry = 100 * time.Millisecond

// writeTo does one piece of work for the log, when there is room for it. It returns
// false if it goes on later, also with the rest, or not at all.
func (n *node) writeTo(w replica.Write, rest []raftnode.Append) bool {
	err := w.To(n.log)
	switch {
	case errors.Is(err, raftlog.ErrNoSpace):
		n.later(diskRetry, func() {
			if n.writeTo(w, rest) {
				n.write(rest)
			}
		})
	case err != nil:
		n.w.fail("append at member %d: %w", n.index, err)
	default:
		n.deliver(w.Messages(n.id))
		return true
	}
	return false
}

// deliver sends what was waiting for durability.
func (n *node) deliver(own, out []*raftpb.Message) {
	for _, m := range append(slices.Clone(own), out...) {
		n.promise(m)
	}
	for _, m := range out {
		n.send(m)
	}
	n.step(replica.Input{Acks: own})
}

func (n *node) kickApply() {
	if n.applyBu || len(n.applyq) == 0 {
		return
	}
	n.applyBu = true
	n.laterApply(func() {
		n.applyBu = false
		var run *replica.Run
		run, n.applyq = replica.NextRun(n.applyq, maxRunBytes, n.local)
		if run != nil {
			n.applyBu = true
			n.apply(run)
			return
		}
		swap := n.applyq[0].Swap
		n.applyq = n.applyq[1:]
		if swap(); !n.down {
			n.noteConfig()
			n.kickApply()
		}
	})
}

// maxRunBytes lets a run end where others wait, now and then.
const maxRunBytes = 4 << 10

func (n *node) local(e *raftpb.Entry) *proposal.Pending { return replica.PendingOf(n.props, e) }

// laterApply runs do when the store has had time to and does not hang.
func (n *node) laterApply(do func()) {
	n.later(n.w.between(0, n.w.faults.ApplyDelay), func() { n.unlessApplyStalls(do) })
}

func (n *node) unlessApplyStalls(do func()) {
	if n.w.now < n.applyStall {
		n.later(n.applyStall-n.w.now, func() { n.unlessApplyStalls(do) })
		return
	}
	do()
}

// apply applies a run in one or several batches of the engine, with pauses in between.
func (n *node) apply(run *replica.Run) {
	limit := 0
	if k := run.Len(); k > 1 && n.w.rng.IntN(2) == 0 {
		limit = 1 + n.w.rng.IntN(k-1)
	}
	ents := run.Batch(limit)
	for i := range ents {
		n.noteApplied(&ents[i])
	}
	n.applyBatch(run, ents)
	n.laterApply(func() {
		if run.Len() > 0 {
			n.apply(run)
			return
		}
		n.applyBu = false
		n.kickApply()
	})
}

func (n *node) applyBatch(run *replica.Run, ents []apply.Entry) {
	out, err := n.machine.Apply(ents)
	if err != nil {
		n.w.fail("apply at member %d: %w", n.index, err)
		return
	}
	n.w.log("apply %d index=%d rev=%d", n.index, out.Applied, out.Rev)
	for _, e := range out.Members {
		if e.Action != membership.Removed {
			continue
		}
		if len(n.cluster.VoterIDs()) == 0 {
			n.w.fail("member %d has applied the removal of the last voter", n.index)
		}
		if _, known := n.w.gone[e.Member.ID]; !known {
			n.w.gone[e.Member.ID] = out.Applied
		}
		if e.Member.ID == n.id {
			n.leave()
		}
	}
	n.resolve(out.Results, false)
	n.reads.Applied(out.Applied)
	for n.machine.KV().Step() {
	}
	if n.installing || slices.ContainsFunc(n.logq, isSnapshot) {
		n.w.overtaken += len(out.ConfChanges)
	}
	changes, acks := run.Applied(out)
	n.step(replica.Input{ConfChanges: changes, Acks: acks})
	n.resolve(out.Results, true)
	n.settleWaiting()
	n.noteConfig()
}

// noteApplied compares what a member is about to apply with what others have applied
// at the same index.
func (n *node) noteApplied(e *apply.Entry) {
	index, digest := e.GetIndex(), e.Digest()
	if first, ok := n.w.applied[index]; !ok {
		n.w.applied[index] = digest
	} else if digest != first {
		n.w.fail("member %d applies something else at index %d than another one did (term %d, of a client here: %v)",
			n.index, index, e.GetTerm(), e.Local)
	}
}

func (n *node) resolve(results []apply.Result, reconfigured bool) {
	for _, r := range results {
		if r.Reconfigured == reconfigured {
			n.props.Resolve(r.ID, proposal.Result{Resp: r.Resp, Err: r.Err})
		}
	}
}

// send puts a message on the network. It is copied through its wire form, as
// members share no memory.
func (n *node) send(m *raftpb.Message) {
	w := n.w
	to := w.byID[m.GetTo()]
	if to == nil || n.cluster.IsRemoved(to.id) {
		return
	}
	b, err := proto.Marshal(m)
	if err != nil {
		w.fail("encode message: %w", err)
		return
	}
	copies := 1
	if w.chance(w.faults.Loss) {
		copies = 0
	} else if w.chance(w.faults.Duplication) {
		copies = 2
	}
	for range copies {
		w.after(w.between(w.faults.MinDelay, w.faults.MaxDelay), func() {
			if to.down || w.cut[[2]int{n.index, to.index}] {
				return
			}
			if to.cluster.IsRemoved(n.id) {
				n.later(0, n.leave) // is told so
				return
			}
			got := &raftpb.Message{}
			if err := proto.Unmarshal(b, got); err != nil {
				w.fail("decode message: %w", err)
				return
			}
			if err := raftnode.Check(got, to.id); err != nil {
				w.fail("member %d sent to %d: %w", n.index, to.index, err)
				return
			}
			w.log("%d>%d %v term=%d index=%d n=%d", n.index, to.index, got.GetType(), got.GetTerm(), got.GetIndex(), len(got.Entries))
			to.step(replica.Input{Recv: []*raftpb.Message{got}})
		})
	}
}

// wait lets a client know when over holds; it is asked after every step.
func (n *node) wait(over func() bool) {
	n.waiting = append(n.waiting, over)
	n.settleWaiting()
}

func (n *node) settleWaiting() {
	waiting := n.waiting
	n.waiting = nil
	var left []func() bool
	for _, over := range waiting {
		if !over() {
			left = append(left, over)
		}
	}
	n.waiting = append(left, n.waiting...)
}

type quiet struct{ *zap.SugaredLogger }

func (l quiet) Warning(v ...any)                 { l.Warn(v...) }
func (l quiet) Warningf(format string, v ...any) { l.Warnf(format, v...) }

package sim

import (
	"context"
	"errors"
	"hash/fnv"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"quorate/internal/apply"
	"quorate/internal/auth"
	"quorate/internal/datadir"
	"quorate/internal/durable"
	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/lease"
	"quorate/internal/legacy/v2request"
	"quorate/internal/membership"
	"quorate/internal/mvcc"
	"quorate/internal/proposal"
	"quorate/internal/raftlog"
	"quorate/internal/raftnode"
	"quorate/internal/readindex"
	"quorate/internal/replica"
	"quorate/internal/watch"
)

const (
	tick          = 100 * time.Millisecond
	electionTicks = 10
	flushEvery    = 700 * time.Millisecond
)

func (w *World) logOptions() raftlog.Options {
	return raftlog.Options{SegmentBytes: w.set.SegmentBytes, CacheBytes: w.set.CacheBytes, NoBackground: true}
}

// node is one member: its disk and, while it is up, its state in memory.
type node struct {
	w         *World
	index     int
	id        ids.Member
	clusterID ids.Cluster
	disk      *disk
	down      bool
	removed   bool                   // from the cluster; it never starts again
	outdated  bool                   // a test has replaced its disk with an old copy
	lost      *raftnode.LostLogError // why it has stopped for good
	release   membership.Version     // that it runs, or will start in
	handing   handing
	life      int // counts starts; events of an earlier life are dropped
	said      promised

	home    datadir.Home
	dir     string // of the store in use
	log     *raftlog.Log
	machine *apply.Machine
	pipe    *replica.Pipeline
	hub     *watch.Hub
	lessor  *lease.Lessor
	auth    *auth.Store
	props   *proposal.Table
	reads   *readindex.Batcher
	ids     *proposal.IDs
	cluster *membership.Cluster

	logBusy     bool
	logFrom     time.Duration // start of the current log write
	stalled     time.Duration // no log write completes before this time
	applyStall  time.Duration // nothing is applied before this time
	accepted    ids.Index     // index of the newest snapshot that raft has accepted, until it is installed
	sending     int           // snapshots sent within releaseDelay
	received    uint64        // number of snapshot transfers that have started
	applyBu     bool
	leaving     bool
	alarmRaised bool          // a NOSPACE alarm is being proposed
	deciding    bool          // a decision of this leader is being proposed
	handed      time.Duration // when the newest decision about checkpoints is proposed
	drift       float64       // relative error of its clock rate
	jump        time.Duration // of its wall clock; timers and leases use a monotonic one
	waiting     []func() bool // conditions that clients wait for; true when over
}

// newNode creates a member with a new disk. A founder has the first entries in its log, a
// joining member has none.
func newNode(w *World, index int, id ids.Member, clusterID ids.Cluster, first []*raftpb.Entry) (*node, error) {
	n := &node{w: w, index: index, id: id, clusterID: clusterID, disk: newDisk(w), release: newest, down: true}
	l := n.layout()
	if err := durable.MkdirAll(n.disk, l.DataDir, l.Member(), l.Snap()); err != nil {
		return nil, err
	}
	log, err := raftlog.Create(n.disk, l.WAL(), raftlog.Metadata{NodeID: id, ClusterID: clusterID}, w.logOptions())
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

// start starts the member from its disk.
func (n *node) start() {
	if !n.down || n.removed || n.lost != nil {
		return
	}
	if n.handing != staying && !n.handOver() {
		return
	}
	open := n.open
	if n.w.faults.Conversions > 0 {
		open = n.openConverted
	}
	if err := open(); errors.Is(err, raftlog.ErrNoSpace) {
		n.w.after(diskRetry, n.start)
		return
	} else if errors.Is(err, errPower) {
		n.w.after(n.w.between(diskRetry, n.w.faults.Outage), n.start)
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
	n.w.log("start %d applied=%d last=%d term=%d", n.index, n.machine.Applied(), last, n.core().Node().State().Term)
	n.every(func() time.Duration { return n.w.between(tick*9/10, tick*11/10) }, func() {
		now := n.w.time()
		n.props.Expire(now, func(time.Time) error { return errTimeout })
		in := replica.Input{Ticks: 1}
		if n.logBusy && !n.installing() {
			in.LogStall = n.w.now - n.logFrom
		}
		n.step(in)
	})
	n.every(func() time.Duration { return n.w.between(400*time.Millisecond, 600*time.Millisecond) }, n.expireV2)
	n.every(func() time.Duration { return n.w.between(time.Second, 2*time.Second) }, n.dial)
	n.compactNowAndThen()
	if n.w.faults.Upgrades > 0 {
		n.every(func() time.Duration { return n.w.between(time.Second, 2*time.Second) }, n.keepVersion)
	}
	n.every(func() time.Duration { return n.w.between(lease.ExpiryInterval*4/5, lease.ExpiryInterval*6/5) }, n.keepLeases)
	n.every(func() time.Duration { return n.w.between(time.Millisecond, 100*time.Millisecond) }, n.catchUp)
	n.every(func() time.Duration { return n.w.between(flushEvery/2, flushEvery*2) }, func() {
		if err := n.machine.Engine().Flush(context.Background()); err != nil {
			n.w.fail("flush member %d: %w", n.index, err)
		}
		n.machine.SetSize(n.machine.Engine().Size().Total) // compactions make room below the quota
	})
}

// dial connects to the peers, as the streams of production do: a peer that knows this member
// as removed says so. A learner that was removed sends nothing and would never find out.
func (n *node) dial() {
	for _, x := range n.cluster.Members() {
		to := n.w.byID[x.ID]
		if to != nil && to != n && !to.down && !n.w.cut[[2]int{n.index, to.index}] && !n.w.cut[[2]int{to.index, n.index}] && to.cluster.IsRemoved(n.id) {
			n.leave()
			return
		}
	}
}

// expireV2 proposes on a leader to remove expired v2 nodes.
func (n *node) expireV2() {
	if n.core().Node().State().Lead != n.id || !n.machine.V2().HasTTL() {
		return
	}
	r := &v2request.Request{ID: n.ids.Next(), Method: "SYNC", Time: n.wall().UnixNano()}
	p := &proposal.Pending{ID: r.ID, Foreign: r, Data: r.Marshal()}
	if n.props.Admit(p, n.w.time(), requestTimeout) == nil {
		n.step(replica.Input{Propose: []*proposal.Pending{p}})
	}
}

func (n *node) open() (err error) {
	layout := n.layout()
	taken, err := n.takeOver()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil && taken != nil {
			err = errors.Join(err, taken.Abandon(err))
		}
	}()
	if n.log, err = raftlog.Open(n.disk, layout.WAL(), n.w.logOptions()); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			n.log.Close() // releases its lock for the next attempt
		}
	}()
	lg := zap.NewNop()
	n.home = datadir.Home{Layout: layout, Log: n.log, Member: n.id, Cluster: n.clusterID, OpenEngine: n.disk.openEngine, Logger: lg}
	if n.dir, err = layout.Store(); err != nil {
		return err
	}
	if taken != nil {
		n.dir = taken.Dir
	}
	eng, err := n.disk.openEngine(n.dir)
	if err != nil {
		return err
	}
	if err := n.home.CheckTogether(eng); err != nil {
		return errors.Join(err, eng.Close())
	}
	n.cluster = membership.New(membership.Options{LocalID: n.id, ClusterID: n.clusterID, ServerVersion: n.release})
	n.lessor = lease.New(minTTL, lease.Options{Checkpoints: n.w.set.CheckpointEvery > 0, CheckpointInterval: n.w.set.CheckpointEvery})
	n.auth = auth.NewStore(auth.NewSimpleTokens(0))
	n.drift = maxDrift * (2*n.w.rng.Float64() - 1)
	if n.machine, err = n.openMachine(eng); err != nil {
		return err
	}
	if err := n.finishTakeOver(taken); err != nil {
		return err
	}
	n.hub = watch.NewHub(apply.History{KV: n.machine.KV()}, simClock{n.w}, n.w.watchOptions())
	n.home.RemoveRemains(n.dir)
	n.accepted, n.sending, n.leaving, n.alarmRaised, n.deciding, n.handed = 0, 0, false, false, false, 0
	applied := n.machine.Applied()
	rn, err := raftnode.New(raftnode.Config{ID: n.id, ElectionTicks: electionTicks, HeartbeatTicks: 1, PreVote: n.w.set.PreVote, Applied: applied, Limits: n.w.set.Raft,
		Storage: raftnode.NewStorage(n.log, n.machine.ConfState(), applied, func() (*raftpb.Snapshot, error) { return n.home.Describe(n.machine) }),
		Logger:  quiet{lg.Sugar()}})
	if err != nil {
		return err
	}
	n.ids = proposal.NewIDs(n.id, n.wall())
	if n.w.faults.SameIDs {
		n.ids = proposal.NewIDs(ids.Member(n.life), epoch)
	}
	n.props = proposal.NewTable(n.w.set.Requests, 1<<20)
	n.reads = readindex.New(n.ids.Next, applied)
	core := replica.NewCore(replica.CoreConfig{Node: rn, Proposals: n.props, Reads: n.reads,
		ReadRetry: 500 * time.Millisecond, ReadLimit: requestTimeout, ErrTimeout: errTimeout, ErrLost: errTimeout, ErrChanged: errChanged,
		StallAfter: electionTicks * tick, StallLimit: (2*electionTicks - 2) * tick, HandOver: electionTicks * tick, Gate: n.mayChange})
	n.pipe = replica.NewPipeline(replica.Parts{Core: core, Self: n.id, Proposals: n.props, Reads: n.reads, Hub: n.hub, Lessor: n.lessor,
		Extend: electionTicks * tick, Mark: n.log.Mark().Index, TruncateEvery: n.w.set.TruncateAfter, Keep: n.w.set.CatchUp, MaxRunBytes: n.w.set.MaxRunBytes}, n.env())
	n.logBusy, n.applyBu, n.waiting = false, false, nil
	return nil
}

// every repeats do until the member goes down.
func (n *node) every(pause func() time.Duration, do func()) {
	life := n.life
	n.w.after(pause(), func() {
		if n.life == life && !n.down {
			do()
			n.every(pause, do)
		}
	})
}

// later runs do after d unless the member goes down before.
func (n *node) later(d time.Duration, do func()) {
	life := n.life
	n.w.after(d, func() {
		if n.life == life && !n.down {
			do()
		}
	})
}

func (n *node) openMachine(eng engine.Engine) (*apply.Machine, error) {
	return apply.Open(eng, apply.Options{Cluster: n.cluster, Lessor: n.lessor, Auth: n.auth, Quota: n.w.set.Quota, Release: n.release.String(),
		Now: n.time, Logger: zap.NewNop(), MVCC: mvcc.Options{Manual: true, CompactionBatch: n.w.set.CompactionBatch}})
}

// crash stops the member as a power loss does. left is what remains of its disk.
func (n *node) crash(left *disk) {
	n.w.log("crash %d applied=%d", n.index, n.machine.Applied())
	n.stop()
	n.disk = left
}

func (n *node) stop() {
	n.down = true
	n.hub.Close()
	n.machine.Close()
	n.log.Close() // releases its lock
	n.props.Close(errCrashed)
	n.reads.Close(errCrashed)
	n.settleWaiting()
}

// leave stops a removed member for good, a moment after it has learned of its removal.
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

// noteApplied compares an entry that a member is about to apply with what other members
// have applied at the same index.
func (n *node) noteApplied(e *apply.Entry) {
	index, digest := ids.Index(e.GetIndex()), e.Digest()
	n.noteOnce(e)
	if first, ok := n.w.applied[index]; !ok {
		n.w.applied[index] = digest
	} else if digest != first {
		n.w.fail("member %d applies another entry at index %d than another member did (term %d, of a local client: %v)",
			n.index, index, e.GetTerm(), e.Local)
	}
}

func checksum(data []byte) [16]byte {
	h := fnv.New128a()
	h.Write(data)
	return [16]byte(h.Sum(nil))
}

// noteOnce checks that a request is in the log once. Membership changes may be there
// again: apply refuses the copy.
func (n *node) noteOnce(e *apply.Entry) {
	if len(e.Data) == 0 || e.GetType() != raftpb.EntryNormal {
		return
	}
	sum := checksum(e.Data)
	if n.w.proposed[sum] > 1 {
		return // two requests with equal bytes and, by bad luck, equal ids
	}
	if at, ok := n.w.entries[sum]; ok && at != e.GetIndex() {
		n.w.fail("the entry at index %d is at index %d as well: member %d applies it twice", at, e.GetIndex(), n.index)
	}
	n.w.entries[sum] = e.GetIndex()
}

// send sends a message over the network. It is encoded and decoded, as members share no
// memory.
func (n *node) send(m *raftpb.Message) {
	w := n.w
	to := w.byID[ids.Member(m.GetTo())]
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
	} else if m.GetType() != raftpb.MsgProp && w.chance(w.faults.Duplication) {
		copies = 2 // not for proposals, which would be executed twice: transport never resends one that may have arrived
	}
	for range copies {
		w.after(w.between(w.faults.MinDelay, w.faults.MaxDelay), func() {
			if to.down || w.cut[[2]int{n.index, to.index}] {
				return
			}
			if to.cluster.IsRemoved(n.id) {
				n.later(0, n.leave) // the peer's refusal says so
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

// wait calls over after every step until it returns true. Clients wait for results with it.
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

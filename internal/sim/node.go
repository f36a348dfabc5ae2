package sim

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"quorate/internal/apply"
	"quorate/internal/command"
	"quorate/internal/engine/mem"
	"quorate/internal/lease"
	"quorate/internal/membership"
	"quorate/internal/mvcc"
	"quorate/internal/proposal"
	"quorate/internal/raftlog"
	"quorate/internal/raftnode"
	"quorate/internal/readindex"
	"quorate/internal/server"
)

const (
	tick          = 100 * time.Millisecond
	electionTicks = 10
	logDir        = "wal"
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
	fs        *vfs.MemFS
	eng       *mem.Engine
	down      bool
	life      int // counts starts: events of an earlier life are void

	log     *raftlog.Log
	machine *apply.Machine
	core    *server.Core
	props   *proposal.Table
	reads   *readindex.Batcher
	ids     *proposal.IDs
	cluster *membership.Cluster

	logq    []raftnode.Append
	logBusy bool
	logFrom time.Duration // when the log write under way began
	stalled time.Duration // until when no log write ends
	applyq  []raftnode.Apply
	applyBu bool
	waiting []func() bool // what clients wait for; true when over
}

func newNode(w *World, index int, id, clusterID uint64, first []*raftpb.Entry) (*node, error) {
	n := &node{w: w, index: index, id: id, clusterID: clusterID, fs: vfs.NewCrashableMem(), eng: mem.New(), down: true}
	log, err := raftlog.Create(n.fs, logDir, raftlog.Metadata{NodeID: id, ClusterID: clusterID}, logOptions)
	if err != nil {
		return nil, err
	}
	hs := &raftpb.HardState{Term: new(uint64(1)), Vote: new(uint64(0)), Commit: new(uint64(len(first)))}
	if err := log.Append(hs, first, true); err != nil {
		return nil, err
	}
	return n, log.Close()
}

// start brings the member up from what its disk holds.
func (n *node) start() {
	if !n.down {
		return
	}
	if err := n.open(); err != nil {
		n.w.fail("start member %d: %w", n.index, err)
		return
	}
	n.down = false
	n.life++
	last, _ := n.log.LastIndex()
	n.w.log("start %d applied=%d last=%d term=%d", n.index, n.machine.Applied(), last, n.core.Node().State().Term)
	n.every(func() time.Duration { return n.w.between(tick*9/10, tick*11/10) }, func() {
		now := n.w.time()
		n.props.Expire(now, func(time.Time) error { return errTimeout })
		in := server.Input{Ticks: 1}
		if n.logBusy {
			in.LogStall = n.w.now - n.logFrom
		}
		n.step(in)
	})
	n.every(func() time.Duration { return n.w.between(flushEvery/2, flushEvery*2) }, func() {
		if err := n.eng.Flush(); err != nil {
			n.w.fail("flush member %d: %w", n.index, err)
		}
	})
}

func (n *node) open() (err error) {
	if n.log, err = raftlog.Open(n.fs, logDir, logOptions); err != nil {
		return err
	}
	lg := zap.NewNop()
	n.cluster = membership.New(membership.Options{LocalID: n.id, ClusterID: n.clusterID, ServerVersion: membership.Version{Major: 3, Minor: 7}})
	n.machine, err = apply.Open(n.eng, apply.Options{Cluster: n.cluster, Lessor: lease.New(2, lease.Options{}),
		Now: n.w.time, Logger: lg, MVCC: mvcc.Options{Manual: true}})
	if err != nil {
		return err
	}
	applied := n.machine.Applied()
	if last, _ := n.log.LastIndex(); last < applied {
		return fmt.Errorf("the store has applied %d, the log ends at %d: the log has lost what it acknowledged", applied, last)
	}
	rn, err := raftnode.New(raftnode.Config{ID: n.id, ElectionTicks: electionTicks, HeartbeatTicks: 1, PreVote: true, Applied: applied,
		Storage: server.NewStorage(n.log, n.machine.ConfState(), applied, func() (*raftpb.Snapshot, error) {
			return nil, raft.ErrSnapshotTemporarilyUnavailable
		}),
		Logger: quiet{lg.Sugar()}})
	if err != nil {
		return err
	}
	n.ids = proposal.NewIDs(n.id, n.w.time())
	n.props = proposal.NewTable(1000, 1<<20)
	n.reads = readindex.New(n.ids.Next, applied)
	n.core = server.NewCore(server.CoreConfig{Node: rn, Proposals: n.props, Reads: n.reads,
		ReadRetry: 500 * time.Millisecond, ReadLimit: requestTimeout, ErrTimeout: errTimeout, ErrChanged: errChanged,
		StallAfter: electionTicks * tick, StallLimit: (2*electionTicks - 2) * tick})
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

// crash takes the power away: of what was not synced, a random part is left.
func (n *node) crash() {
	n.w.log("crash %d applied=%d", n.index, n.machine.Applied())
	n.down = true
	n.fs = n.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: n.w.faults.TornWrites,
		RNG: rand.New(rand.NewPCG(n.w.rng.Uint64(), n.w.rng.Uint64()))})
	n.eng = n.eng.Crash()
	n.machine.Close()
	n.log.Close() // the old disk; frees its lock
	n.props.FailAll(errCrashed)
	n.reads.FailAll(errCrashed)
	n.settleWaiting()
}

// step feeds the core and schedules what follows, as the real driver does with
// its goroutines.
func (n *node) step(in server.Input) {
	eff := n.core.Step(n.w.time(), in)
	for _, m := range eff.Send {
		n.send(m)
	}
	n.logq = append(n.logq, eff.Append...)
	n.applyq = append(n.applyq, eff.Apply...)
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
	n.logBusy = false
	works := n.logq
	n.logq = nil
	sync := false
	for _, w := range works {
		sync = sync || w.MustSync
	}
	var own []*raftpb.Message
	for i, w := range works {
		if w.Snapshot != nil {
			n.w.fail("member %d was sent a snapshot that nobody has made", n.index)
			return
		}
		if err := n.log.Append(w.HardState, w.Entries, sync && i == len(works)-1); err != nil {
			n.w.fail("append at member %d: %w", n.index, err)
			return
		}
	}
	for _, w := range works {
		for _, r := range w.Responses {
			if r.GetTo() == n.id {
				own = append(own, r)
			} else {
				n.send(r)
			}
		}
	}
	n.step(server.Input{Acks: own})
}

func (n *node) kickApply() {
	if n.applyBu || len(n.applyq) == 0 {
		return
	}
	n.applyBu = true
	n.later(n.w.between(0, n.w.faults.ApplyDelay), func() {
		n.applyBu = false
		works := n.applyq
		n.applyq = nil
		var (
			ents []apply.Entry
			acks []*raftpb.Message
		)
		for _, w := range works {
			for _, e := range w.Entries {
				x := apply.Entry{Entry: e}
				if id, ok := command.PeekID(e.Data); ok && e.GetType() == raftpb.EntryNormal {
					if p := n.props.Lookup(id); p != nil {
						x.Req, x.Local = p.Req, true
					}
				}
				ents = append(ents, x)
			}
			acks = append(acks, w.Responses...)
		}
		out, err := n.machine.Apply(ents)
		if err != nil {
			n.w.fail("apply at member %d: %w", n.index, err)
			return
		}
		n.w.log("apply %d index=%d rev=%d", n.index, out.Applied, out.Rev)
		for _, r := range out.Results {
			n.props.Resolve(r.ID, proposal.Result{Resp: r.Resp, Err: r.Err})
		}
		n.reads.Applied(out.Applied)
		for n.machine.KV().Step() {
		}
		n.step(server.Input{Acks: acks, ConfChanges: out.ConfChanges})
	})
}

// send puts a message on the network. It is copied through its wire form, as
// members share no memory.
func (n *node) send(m *raftpb.Message) {
	w := n.w
	to := w.byID[m.GetTo()]
	if to == nil {
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
			got := &raftpb.Message{}
			if err := proto.Unmarshal(b, got); err != nil {
				w.fail("decode message: %w", err)
				return
			}
			w.log("%d>%d %v term=%d index=%d n=%d", n.index, to.index, got.GetType(), got.GetTerm(), got.GetIndex(), len(got.Entries))
			to.step(server.Input{Recv: []*raftpb.Message{got}})
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

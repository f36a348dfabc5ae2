package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/crash"
	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/metrics"
	"quorate/internal/proposal"
	"quorate/internal/raftnode"
	"quorate/internal/replica"
	"quorate/internal/transport"
)

const (
	// maxApplyBytes is roughly how much is applied before raft is notified.
	maxApplyBytes = 4 << 20
	readRetry     = 500 * time.Millisecond
)

// driver steps the core and passes on the effects of each step.
type driver struct {
	cfg     *Config
	lg      *zap.Logger
	replica *localReplica
	cluster *membership.Cluster
	tr      *transport.Transport
	logw    *logWriter
	sender  *sender
	slow    *slowLog

	pipe    *replica.Pipeline
	in      *replica.Inbox
	coreMu  sync.Mutex  // held by the goroutine that drives the core; locked by drive and halt alone
	halted  bool        // guarded by coreMu: the core is no longer driven
	logBusy atomic.Bool // a log write is in flight
	// Used by the ticker alone: the log write that it saw last, and how often.
	watched      int64
	watchedTicks int
}

// The core has no goroutine of its own: a goroutine that adds input and finds the core
// free drives it until the inbox is empty. That saves two handoffs between threads per
// request. It stays bounded: a driver works for others no longer than it takes to empty
// the inbox, and no step waits for a disk, a peer or a client.

// drive steps the core unless another goroutine does. When it returns, everything that
// was in the inbox at the call has been taken, or will be by the current driver.
func (d *driver) drive() {
	for d.in.Pending() {
		if !d.coreMu.TryLock() {
			return // the holder checks the inbox again after it has released the lock
		}
		halted := d.empty()
		d.coreMu.Unlock()
		if halted {
			return
		}
	}
}

// empty steps the core until the inbox is empty, and reports whether the core is halted.
// A panic ends the process before the lock is released: the core may be in an
// inconsistent state, and callers of this goroutine may recover panics.
func (d *driver) empty() (halted bool) {
	defer crash.Guard()
	for !d.halted && d.in.Pending() {
		d.step(d.in.Take())
	}
	return d.halted
}

// event adds an input to the inbox and drives the core.
func (d *driver) event(f func(*replica.Input)) {
	d.in.Add(f)
	d.drive()
}

// step takes one step. It must be called with coreMu held.
func (d *driver) step(in replica.Input) {
	if lost := d.pipe.Step(d.cfg.Clock.Now(), in); lost != nil {
		d.halted = true // no further vote or acknowledgement
		d.replica.fail(fmt.Errorf("%w; remove this member from the cluster (etcdctl member remove %s), and add it again with an empty --data-dir",
			lost, d.replica.id))
	}
}

// send sends messages to peers.
func (d *driver) send(msgs []*raftpb.Message) {
	d.tr.Send(d.translateV2(d.sender.completeSnapshots(msgs)))
}

// receive checks a message of a peer and queues it for the core, which received drives. It
// drops the message if the queue is full; raft sends again what is still needed.
func (d *driver) receive(msg *raftpb.Message) error {
	if d.cluster.IsRemoved(ids.Member(msg.GetFrom())) {
		return ErrRemoved
	}
	if err := raftnode.Check(msg, d.replica.id); err != nil {
		return err
	}
	if !d.in.Receive(msg) {
		return errInboxFull
	}
	return nil
}

// received takes a step with what receive has queued. Proposals that other members have
// passed on wait for a log write in flight, as those of this member do.
func (d *driver) received(proposals bool) {
	if !proposals || !d.logBusy.Load() {
		d.drive()
	}
}

// snapshotSent reports the outcome of sending a snapshot to raft.
func (d *driver) snapshotSent(to ids.Member, ok bool) {
	d.event(func(in *replica.Input) { in.Snapshots = append(in.Snapshots, replica.SnapshotReport{To: to, OK: ok}) })
}

// halt stops the core for good: no goroutine drives it afterwards.
func (d *driver) halt() {
	d.coreMu.Lock()
	d.halted = true
	d.coreMu.Unlock()
}

// tick advances raft's time. It also picks up proposals that wait for a log write that
// hangs.
func (d *driver) tick(context.Context) {
	d.onTick()
	stall := d.watchLog()
	d.event(func(in *replica.Input) { in.Ticks, in.LogStall = in.Ticks+1, stall })
}

// proposed passes a request to the core. While a log write is in flight, the request
// waits for it: it could not be written earlier, and it shares a step, a message and a
// sync with all others that arrive meanwhile.
func (d *driver) proposed(p *proposal.Pending) {
	d.in.Add(func(in *replica.Input) { in.Propose = append(in.Propose, p) })
	if !d.logBusy.Load() {
		d.drive()
	}
}

func (d *driver) onTick() {
	now := d.cfg.Clock.Now()
	since := now.UnixNano() - d.replica.lastTick.Swap(now.UnixNano())
	if others := len(d.cluster.Members()) - 1; since > 2*d.cfg.Tick.Nanoseconds() && others > 0 && d.replica.isLeader() {
		// A tick is a heartbeat to all other members; this one is late.
		metrics.ServerHeartbeatSendFailuresTotal.Add(float64(others))
		d.lg.Warn("leader failed to send out heartbeat on time; took too long, leader is overloaded likely from slow disk",
			zap.Duration("heartbeat-interval", d.cfg.Tick), zap.Duration("expected-duration", 2*d.cfg.Tick), zap.Duration("exceeded-duration", time.Duration(since)-2*d.cfg.Tick))
	}
	d.replica.props.Expire(now, d.replica.timeoutError)
}

// follow publishes the new state of the core.
func (d *driver) follow(in replica.Input, eff replica.Effects) {
	if eff.SlowReads != (replica.SlowReads{}) {
		tellSlowReads(d.slow.fewLines, eff.SlowReads, d.cfg.requestTimeout())
	}
	if in.LogStall > 0 {
		d.reportStall(eff.Stall, in.LogStall)
	}
	st := eff.State
	d.replica.term.Store(uint64(st.Term))
	d.replica.acked.Store(uint64(st.Applied))
	if st.Commit > ids.Index(d.replica.commit.Load()) {
		d.replica.commit.Store(uint64(st.Commit))
		metrics.ServerProposalsCommittedTotal.Set(float64(st.Commit))
	}
	old := ids.Member(d.replica.lead.Swap(uint64(st.Lead)))
	if old == st.Lead {
		return
	}
	if st.Lead == ids.NoMember || old == d.replica.id {
		d.replica.leadLost.Store(d.cfg.Clock.Now().UnixNano())
	}
	if st.Lead != ids.NoMember {
		d.replica.led.Store(&leadership{st.Lead, d.cfg.Clock.Now()})
		metrics.ServerLeaderChangesSeenTotal.Inc()
	}
	metrics.ServerHasLeader.Set(boolGauge(st.Lead != ids.NoMember))
	metrics.ServerIsLeader.Set(boolGauge(st.Lead == d.replica.id))
	d.lg.Named("raft").Info(leaderLine(d.replica.id, old, st.Lead, st.Term))
	next := make(chan struct{})
	close(*d.replica.leaderChange.Swap(&next))
}

var errTransferTimeout = errors.New("etcdserver: request timed out, leader transfer took too long")

func (d *driver) transfer(ctx context.Context, target ids.Member) error {
	start, old := d.cfg.Clock.Now(), d.replica.id
	d.lg.Info("leadership transfer starting", d.replica.localID(), zap.Stringer("current-leader-member-id", d.replica.id),
		zap.Stringer("transferee-member-id", target))
	d.event(func(in *replica.Input) { in.TransferTo = target })
	for {
		changed := *d.replica.leaderChange.Load()
		if d.replica.Leader() == target {
			d.lg.Info("leadership transfer finished", d.replica.localID(), zap.Stringer("old-leader-member-id", old),
				zap.Stringer("new-leader-member-id", target), zap.Duration("took", d.cfg.Clock.Now().Sub(start)))
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return errTransferTimeout
		case <-d.replica.stop: // no message reaches this member any more
			return rpctypes.ErrGRPCStopped
		}
	}
}

// RaftStatus returns the state of consensus on this member, with raft's JSON names. It
// may be empty while the member shuts down.
func (d *driver) RaftStatus() raft.Status {
	st, _ := d.raftStatus(context.Background())
	return st
}

// raftStatus queries the core; ok is false when the member shuts down or ctx ends.
func (d *driver) raftStatus(ctx context.Context) (st raft.Status, ok bool) {
	ask := make(chan raft.Status, 1)
	d.event(func(in *replica.Input) { in.AskStatus = append(in.AskStatus, ask) })
	select {
	case st = <-ask:
		return st, true
	case <-ctx.Done():
	case <-d.replica.stop:
	case <-d.replica.failed:
	}
	return st, false
}

// progress returns the match indexes if this member leads, nil otherwise.
func (d *driver) progress(ctx context.Context) map[ids.Member]uint64 {
	st, ok := d.raftStatus(ctx)
	if !ok || st.RaftState != raft.StateLeader {
		return nil
	}
	match := make(map[ids.Member]uint64, len(st.Progress))
	for id, pr := range st.Progress {
		match[ids.Member(id)] = pr.Match
	}
	return match
}

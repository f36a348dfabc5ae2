package server

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/dustin/go-humanize"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/engine"
	"quorate/internal/membership"
	"quorate/internal/metrics"
	"quorate/internal/mvcc"
	"quorate/internal/replica"
	"quorate/internal/transport"
)

// Alarm lists, raises or clears alarms; listing goes through the log as well.
func (m *Member) Alarm(ctx context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	res, err := m.propose(ctx, &pb.InternalRaftRequest{Alarm: r})
	if err != nil {
		return nil, err
	}
	return res.Resp.(*pb.AlarmResponse), nil
}

// Alarms returns the alarms that are active here.
func (m *Member) Alarms() []*pb.AlarmMember { return m.mach().Alarms() }

// Status tells how this member is, without asking anyone.
func (m *Member) Status(context.Context) (*pb.StatusResponse, error) {
	mach := m.mach()
	size := mach.Engine().Size()
	d := m.cluster.Downgrade()
	s := &pb.StatusResponse{
		Version:          Version,
		StorageVersion:   m.StorageVersion(),
		DbSize:           size.Total,
		DbSizeInUse:      size.InUse,
		DbSizeQuota:      m.cfg.QuotaReported,
		Leader:           m.Leader(),
		RaftIndex:        m.commit.Load(),
		RaftTerm:         m.Term(),
		RaftAppliedIndex: mach.Applied(),
		IsLearner:        m.IsLearner(),
		DowngradeInfo:    &pb.DowngradeInfo{Enabled: d.Enabled, TargetVersion: d.Target},
	}
	if s.Leader == 0 {
		s.Errors = append(s.Errors, "etcdserver: no leader")
	}
	for _, a := range mach.Alarms() {
		s.Errors = append(s.Errors, fmt.Sprintf("memberID:%d alarm:%s", a.MemberID, a.Alarm))
	}
	return s, nil
}

// HashKV hashes the keys at a revision, 0 meaning the current one.
func (m *Member) HashKV(ctx context.Context, rev int64) (mvcc.HashResult, error) {
	return m.kv().HashKV(ctx, rev)
}

// Hash hashes everything in the store.
func (m *Member) Hash(ctx context.Context) (uint32, error) {
	start := time.Now()
	h, err := hashAll(ctx, m.mach().Engine())
	metrics.MVCCHashDurationSeconds.Observe(time.Since(start).Seconds())
	return h, err
}

// Defragment rewrites the store to give space back, also that of compactions which
// were asked for before. It runs beside the traffic.
func (m *Member) Defragment(ctx context.Context) error {
	metrics.DiskDefragInflight.Set(1)
	defer metrics.DiskDefragInflight.Set(0)
	start := time.Now()
	m.lg.Info("starting defragment")
	if err := m.reclaim(ctx, m.mach()); err != nil {
		return err
	}
	metrics.DiskBackendDefragDurationSeconds.Observe(time.Since(start).Seconds())
	m.lg.Info("finished defragment", zap.Duration("took", time.Since(start)))
	return nil
}

// MoveLeader hands leadership to another voter and returns once it leads.
func (m *Member) MoveLeader(ctx context.Context, target uint64) error {
	if !m.isLeader() {
		return rpctypes.ErrGRPCNotLeader
	}
	if x, ok := m.cluster.Member(target); !ok || x.IsLearner {
		return rpctypes.ErrGRPCBadLeaderTransferee
	}
	ctx, cancel := context.WithTimeout(ctx, m.cfg.requestTimeout())
	defer cancel()
	return m.transfer(ctx, target)
}

var errTransferTimeout = errors.New("etcdserver: request timed out, leader transfer took too long")

func (m *Member) transfer(ctx context.Context, target uint64) error {
	start, old := time.Now(), m.id
	m.lg.Info("leadership transfer starting", m.localID(), zap.String("current-leader-member-id", membership.FormatID(m.id)),
		zap.String("transferee-member-id", membership.FormatID(target)))
	m.event(func(in *replica.Input) { in.TransferTo = target })
	for {
		changed := *m.leaderChange.Load()
		if m.Leader() == target {
			m.lg.Info("leadership transfer finished", m.localID(), zap.String("old-leader-member-id", membership.FormatID(old)),
				zap.String("new-leader-member-id", membership.FormatID(target)), zap.Duration("took", time.Since(start)))
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return errTransferTimeout
		case <-m.stop: // nobody tells this member any more
			return rpctypes.ErrGRPCStopped
		}
	}
}

// truncateLog forgets log entries that every crash can do without: the engine
// is flushed past them and slow followers still find CatchUpEntries. raft may read
// what it does not count as applied, also while the store has it already, so its
// index decides.
func (m *Member) truncateLog() {
	for {
		select {
		case <-m.truncate:
		case <-m.rootCtx.Done():
			return
		}
		err := m.patiently(m.rootCtx, "truncation of the raft log", m.cfg.logDir(), m.truncateOnce)
		if err != nil && m.rootCtx.Err() == nil {
			m.diskFailed(fmt.Errorf("truncate raft log: %w", err))
			return
		}
	}
}

func (m *Member) truncateOnce() error {
	mach := m.mach()
	m.lg.Info("triggering snapshot", m.localID(), zap.Uint64("local-member-applied-index", m.acked.Load()),
		zap.Uint64("local-member-snapshot-index", m.mark.Load()), zap.Uint64("local-member-snapshot-count", m.cfg.SnapshotCount), zap.Bool("snapshot-forced", false))
	applied := m.acked.Load() // the store has applied as much, or a snapshot has just replaced it
	err := m.flush(m.rootCtx, mach.Engine())
	m.logMu.Lock()
	defer m.logMu.Unlock()
	if m.mach() != mach || m.rootCtx.Err() != nil {
		return nil // a snapshot has replaced the store, and the log with it; or the member stops
	}
	if err != nil {
		// Nothing is lost: the entries stay in the log. A full disk is the usual
		// cause and ends when there is room.
		m.lg.Error("cannot flush the store, so the raft log grows; is its disk full?", zap.String("dir", m.storeDir()), zap.Error(err))
		return nil
	}
	m.lg.Info("saved snapshot to disk", zap.Uint64("snapshot-index", applied))
	index, ok := replica.TruncateTo(applied, m.mark.Load(), m.cfg.CatchUpEntries)
	if !ok || m.snapshots.Load() > 0 {
		return nil // a follower that is being sent a snapshot needs what follows it
	}
	if err := m.home().Truncate(index, mach.ConfState()); err != nil {
		return err
	}
	m.mark.Store(index)
	m.lg.Info("compacted Raft logs", zap.Uint64("compact-index", index), zap.Uint64("applied-index", applied))
	return nil
}

// RaftStatus returns the state of consensus on this member, under the names that
// raft gives it in JSON. On a member that stops it may be empty.
func (m *Member) RaftStatus() raft.Status {
	st, _ := m.raftStatus(context.Background())
	return st
}

// raftStatus asks the core; not ok on a member that stops or when ctx ends.
func (m *Member) raftStatus(ctx context.Context) (st raft.Status, ok bool) {
	ask := make(chan raft.Status, 1)
	m.event(func(in *replica.Input) { in.AskStatus = append(in.AskStatus, ask) })
	select {
	case st = <-ask:
		return st, true
	case <-ctx.Done():
	case <-m.stop:
	case <-m.failed:
	}
	return st, false
}

// Transport returns the peer transport.
func (m *Member) Transport() *transport.Transport { return m.tr }

// flushStore writes the engine's memory to disk at the interval that was asked for.
func (m *Member) flushStore() {
	if m.cfg.FlushInterval <= 0 {
		return
	}
	ticker := time.NewTicker(m.cfg.FlushInterval)
	defer ticker.Stop()
	flushed := uint64(0)
	for {
		select {
		case <-ticker.C:
		case <-m.rootCtx.Done():
			return
		}
		mach := m.mach()
		applied := mach.Applied()
		if applied == flushed {
			continue
		}
		// A failure loses nothing, as the entries stay in the log; see truncateOnce.
		if err := m.flush(m.rootCtx, mach.Engine()); err != nil && m.rootCtx.Err() == nil && m.mach() == mach {
			m.lg.Warn("cannot flush the store", zap.String("dir", m.storeDir()), zap.Error(err))
			continue
		}
		flushed = applied
	}
}

// defragmentAtStart compacts the store once if that promises to free enough. It
// holds nobody up.
func (m *Member) defragmentAtStart() {
	if m.cfg.DefragThreshold <= 0 {
		return
	}
	size := m.mach().Engine().Size()
	if free := size.Total - size.InUse; free < m.cfg.DefragThreshold {
		m.lg.Info("Skipping defragmentation", zap.Int64("current-db-size-bytes", size.Total), zap.String("current-db-size", humanize.Bytes(uint64(size.Total))),
			zap.Int64("current-db-size-in-use-bytes", size.InUse), zap.String("current-db-size-in-use", humanize.Bytes(uint64(size.InUse))),
			zap.Int64("bootstrap-defrag-threshold-bytes", m.cfg.DefragThreshold), zap.String("bootstrap-defrag-threshold", humanize.Bytes(uint64(m.cfg.DefragThreshold))))
		return
	}
	if err := m.Defragment(m.rootCtx); err != nil && m.rootCtx.Err() == nil {
		m.lg.Warn("bootstrap defragmentation failed", zap.Error(err))
	}
}

// raftSnapshot describes the state that a follower would be sent now.
func (m *Member) raftSnapshot() (*raftpb.Snapshot, error) {
	return m.home().Describe(m.mach())
}

// progress returns the match indexes if this member leads, nil otherwise.
func (m *Member) progress(ctx context.Context) map[uint64]uint64 {
	st, ok := m.raftStatus(ctx)
	if !ok || st.RaftState != raft.StateLeader {
		return nil
	}
	match := make(map[uint64]uint64, len(st.Progress))
	for id, pr := range st.Progress {
		match[id] = pr.Match
	}
	return match
}

var hashSkip = map[string]bool{"consistent_index": true, "term": true, "storageVersion": true}

// hashAll is etcd's Maintenance.Hash over everything in r.
func hashAll(ctx context.Context, eng engine.Engine) (uint32, error) {
	snap := eng.NewSnapshot()
	defer snap.Close()
	h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	for b := engine.Alarm; b <= engine.Meta; b++ {
		h.Write([]byte(b.String()))
		lower, upper := b.Bounds()
		it, err := snap.NewIter(lower, upper)
		if err != nil {
			return 0, err
		}
		n := 0
		for ok := it.First(); ok; ok = it.Next() {
			if n++; n%4096 == 0 && ctx.Err() != nil {
				it.Close()
				return 0, ctx.Err()
			}
			k := it.Key()[1:]
			if b == engine.Meta && hashSkip[string(k)] {
				continue
			}
			v, err := it.Value()
			if err != nil {
				it.Close()
				return 0, err
			}
			h.Write(k)
			h.Write(v)
		}
		if err := it.Error(); err != nil {
			it.Close()
			return 0, err
		}
		it.Close()
	}
	return h.Sum32(), nil
}

package server

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"

	"quorate/internal/build"
	"quorate/internal/crash"
	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/metrics"
	"quorate/internal/mvcc"
	"quorate/internal/snapshot"
)

// Maintenance serves the maintenance requests of one member.
type Maintenance struct {
	cfg      *Config
	lg       *zap.Logger
	replica  *localReplica
	cluster  *membership.Cluster
	driver   *driver
	sender   *sender
	upkeep   *upkeep
	scrubber *scrubber
	Versions *Versions
	Digests  *Digests
}

// Alarm lists, raises or clears alarms; even listing goes through the log.
func (u *Maintenance) Alarm(ctx context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	res, err := u.replica.propose(ctx, &pb.InternalRaftRequest{Alarm: r})
	if err != nil {
		return nil, err
	}
	return res.Resp.(*pb.AlarmResponse), nil
}

// Alarms returns the alarms that are active here.
func (u *Maintenance) Alarms() []*pb.AlarmMember { return u.replica.mach().Alarms() }

// Status returns the state of this member, without asking others.
func (u *Maintenance) Status(context.Context) (*pb.StatusResponse, error) {
	mach := u.replica.mach()
	size := mach.Engine().Size()
	d := u.cluster.Downgrade()
	s := &pb.StatusResponse{
		Version:          build.EtcdVersion,
		StorageVersion:   u.Versions.StorageVersion(),
		DbSize:           size.Total,
		DbSizeInUse:      size.InUse,
		DbSizeQuota:      u.cfg.QuotaReported,
		Leader:           uint64(u.replica.Leader()),
		RaftIndex:        u.replica.commit.Load(),
		RaftTerm:         uint64(u.replica.Term()),
		RaftAppliedIndex: uint64(mach.Applied()),
		IsLearner:        u.cluster.IsLocalLearner(),
		DowngradeInfo:    &pb.DowngradeInfo{Enabled: d.Enabled, TargetVersion: d.Target},
	}
	if s.Leader == 0 {
		s.Errors = append(s.Errors, "etcdserver: no leader")
	}
	for _, a := range mach.Alarms() {
		s.Errors = append(s.Errors, fmt.Sprintf("memberID:%d alarm:%s", a.MemberID, a.Alarm))
	}
	s.Errors = append(s.Errors, u.Digests.errors()...)
	s.Errors = append(s.Errors, u.scrubber.errors()...)
	return s, nil
}

// HashKV hashes the keys at a revision; 0 means the current one.
func (u *Maintenance) HashKV(ctx context.Context, rev ids.Revision) (mvcc.HashResult, error) {
	return u.replica.kv().HashKV(ctx, rev)
}

// Hash hashes everything in the store.
func (u *Maintenance) Hash(ctx context.Context) (uint32, error) {
	start := u.cfg.Clock.Now()
	h, err := hashAll(ctx, u.replica.snapshot())
	metrics.MVCCHashDurationSeconds.Observe(u.cfg.Clock.Now().Sub(start).Seconds())
	return h, err
}

// Defragment rewrites the store to release space, including that of earlier compactions.
// Requests are served meanwhile.
func (u *Maintenance) Defragment(ctx context.Context) error {
	metrics.DiskDefragInflight.Set(1)
	defer metrics.DiskDefragInflight.Set(0)
	start := u.cfg.Clock.Now()
	u.lg.Info("starting defragment")
	mach := u.replica.mach()
	err := u.upkeep.reclaim(ctx, mach)
	for errors.Is(err, engine.ErrClosed) && u.replica.mach() != mach { // a received snapshot has replaced it
		mach = u.replica.mach()
		err = u.upkeep.reclaim(ctx, mach)
	}
	if err != nil {
		return err
	}
	metrics.DiskBackendDefragDurationSeconds.Observe(u.cfg.Clock.Now().Sub(start).Seconds())
	u.lg.Info("finished defragment", zap.Duration("took", u.cfg.Clock.Now().Sub(start)))
	return nil
}

// MoveLeader transfers leadership to another voter and returns once it leads.
func (u *Maintenance) MoveLeader(ctx context.Context, target ids.Member) error {
	if !u.replica.isLeader() {
		return rpctypes.ErrGRPCNotLeader
	}
	if x, ok := u.cluster.Member(target); !ok || x.IsLearner {
		return rpctypes.ErrGRPCBadLeaderTransferee
	}
	ctx, cancel := context.WithTimeout(ctx, u.cfg.requestTimeout())
	defer cancel()
	return u.driver.transfer(ctx, target)
}

var hashSkip = map[string]bool{"consistent_index": true, "term": true, "storageVersion": true}

// hashAll computes etcd's Maintenance.Hash over everything in a state, and closes it.
func hashAll(ctx context.Context, snap engine.Snapshot) (uint32, error) {
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

// Downgrade validates, starts or cancels the downgrade of the cluster to the minor version
// below.
func (u *Maintenance) Downgrade(ctx context.Context, r *pb.DowngradeRequest) (*pb.DowngradeResponse, error) {
	if err := u.replica.barrier(ctx); err != nil {
		return nil, err
	}
	version := u.cluster.Version()
	if !version.Decided() {
		return nil, rpctypes.ErrGRPCClusterVersionUnavailable
	}
	resp := &pb.DowngradeResponse{Version: version.Short()}
	set := &membershippb.DowngradeInfoSetRequest{}
	switch r.Action {
	case pb.DowngradeRequest_VALIDATE, pb.DowngradeRequest_ENABLE:
		target, err := u.downgradeTarget(version, r.Version)
		if err != nil && r.Action == pb.DowngradeRequest_ENABLE {
			u.lg.Warn("reject downgrade request", zap.Error(err))
		}
		if err != nil || r.Action == pb.DowngradeRequest_VALIDATE {
			return resp, err
		}
		set.Enabled, set.Ver = true, target.String()
	case pb.DowngradeRequest_CANCEL:
	default:
		return nil, errUnknownMethod
	}
	if _, err := u.replica.propose(ctx, &pb.InternalRaftRequest{DowngradeInfoSet: set}); err != nil {
		return nil, err
	}
	return resp, nil
}

func (u *Maintenance) downgradeTarget(version membership.Version, text string) (membership.Version, error) {
	if strings.Count(text, ".") == 1 {
		text += ".0"
	}
	target, err := membership.ParseVersion(text)
	if err != nil {
		return target, rpctypes.ErrGRPCWrongDowngradeVersionFormat
	}
	target = target.MajorMinor()
	if allowed, ok := membership.DowngradeTarget(version); !ok || allowed != target {
		return target, rpctypes.ErrGRPCInvalidDowngradeTargetVersion
	}
	if u.cluster.Downgrade().Enabled {
		return target, rpctypes.ErrGRPCDowngradeInProcess
	}
	return target, nil
}

// short returns major.minor, the form in which clients see a cluster version.

// SnapshotFile returns the current state of the store as a database file of etcd. Its pages
// are generated as they are read; nothing is written to disk. The caller must close it.
func (u *Maintenance) SnapshotFile(ctx context.Context) (io.ReadCloser, int64, error) {
	state := u.replica.snapshot()
	start := u.cfg.Clock.Now()
	image, err := snapshot.Measure(ctx, state, u.sender.snapshotOptions())
	if err != nil {
		state.Close()
		return nil, 0, err
	}
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	f := &snapshotFile{PipeReader: r, cancel: cancel, written: make(chan struct{})}
	go func() {
		defer crash.Guard()
		defer close(f.written)
		defer state.Close()
		w.CloseWithError(image.WriteTo(ctx, u.sender.progressOf(w, "a client", image.Size())))
		metrics.DiskBackendSnapshotDurationSeconds.Observe(u.cfg.Clock.Now().Sub(start).Seconds())
	}()
	return f, image.Size(), nil
}

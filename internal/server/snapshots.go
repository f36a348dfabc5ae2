package server

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/clock"
	"quorate/internal/crash"
	"quorate/internal/datadir"
	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/metrics"
	"quorate/internal/snapshot"
	"quorate/internal/transport"
)

const (
	// maxSnapshots bounds the snapshots being sent at a time; raft asks again for those
	// that are rejected.
	maxSnapshots = 16
	viewsPoll    = 100 * time.Millisecond
)

// sender makes snapshots of the store, for members that have fallen behind and for clients.
type sender struct {
	cfg       *Config
	lg        *zap.Logger
	replica   *localReplica
	tr        *transport.Transport
	driver    *driver
	installer *installer
	digests   *Digests

	snapshots atomic.Int64 // being sent to members
}

// completeSnapshots removes the snapshot messages from msgs and sends each with the current
// state of the store.
func (s *sender) completeSnapshots(msgs []*raftpb.Message) []*raftpb.Message {
	out := msgs[:0]
	for _, msg := range msgs {
		if msg.GetType() != raftpb.MsgSnap {
			out = append(out, msg)
			continue
		}
		to := ids.Member(msg.GetTo())
		if s.snapshots.Add(1) > maxSnapshots {
			s.snapshots.Add(-1)
			s.driver.snapshotSent(to, false)
			continue
		}
		s.replica.background(func() {
			defer s.snapshots.Add(-1)
			if err := s.sendSnapshot(msg); err != nil {
				s.lg.Warn("failed to send a snapshot", zap.Stringer("to", to), zap.Error(err))
				s.installer.pauseTransfer(s.replica.rootCtx, err)
				s.driver.snapshotSent(to, false)
				return
			}
			s.replica.pause(s.replica.rootCtx, releaseDelay)
		})
	}
	return out
}

func (s *sender) sendSnapshot(msg *raftpb.Message) error {
	state := s.replica.snapshot()
	defer state.Close()
	to := ids.Member(msg.GetTo())
	v, known := s.tr.Version(to)
	meta, data, err := datadir.Describe(state, membership.Own, known && v.Less(membership.FirstWithoutV2))
	if err != nil {
		return err
	}
	msg.Snapshot = &raftpb.Snapshot{Data: data, Metadata: meta}
	r, w := io.Pipe()
	written := make(chan error, 1)
	var size int64 // set before written is signaled
	go func() {
		defer crash.Guard()
		o := s.snapshotOptions()
		o.WithDigest = s.digests.Tells(to)
		o.Sealed = o.WithDigest
		image, err := snapshot.Measure(s.replica.rootCtx, state, o)
		if err == nil {
			size = image.Size()
			err = image.WriteTo(s.replica.rootCtx, s.progressOf(w, to.String(), image.Size()))
		}
		w.CloseWithError(err)
		written <- err
	}()
	s.lg.Info("sending merged snapshot", zap.Stringer("from", s.replica.id), zap.Stringer("to", to), zap.Uint64("index", meta.GetIndex()))
	start := s.cfg.Clock.Now()
	s.tr.SendSnapshot(msg, r)
	if err := <-written; err != nil {
		return err
	}
	s.lg.Info("sent merged snapshot", zap.Stringer("from", s.replica.id), zap.Stringer("to", to),
		zap.Uint64("index", meta.GetIndex()), zap.Int64("bytes", size), zap.String("size", humanize.Bytes(uint64(size))), zap.Duration("took", s.cfg.Clock.Now().Sub(start)))
	// A member of etcd that starts with a snapshot counts nothing as applied until an
	// entry follows it, and until then rejects its own announcement with "too many
	// requests". If no client writes, this is that entry: it changes nothing.
	_, err = s.replica.propose(asRoot(s.replica.rootCtx), &pb.InternalRaftRequest{Alarm: &pb.AlarmRequest{Action: pb.AlarmRequest_GET}})
	if err != nil && !ended(err) {
		s.lg.Warn("nothing was committed after a snapshot", zap.Stringer("to", to), zap.Error(err))
	}
	return nil
}

// snapshotFile is a database file that is generated while it is read.
type snapshotFile struct {
	*io.PipeReader
	cancel  context.CancelFunc
	written chan struct{}
}

// Close stops the generation, and returns when the state is no longer in use.
func (f *snapshotFile) Close() error {
	f.cancel()
	err := f.PipeReader.Close()
	<-f.written
	return err
}

// progressOf returns a writer that passes a snapshot on to w and logs the progress.
func (s *sender) progressOf(w io.Writer, to string, size int64) io.Writer {
	return &snapshotProgress{w: w, size: size, lg: s.lg.With(zap.String("to", to)), clock: s.cfg.Clock, said: s.cfg.Clock.Now()}
}

type snapshotProgress struct {
	w          io.Writer
	clock      clock.Clock
	lg         *zap.Logger
	size, sent int64
	said       time.Time
}

// progressPeriod is the time between two log lines about one snapshot.
const progressPeriod = 5 * time.Second

func (p *snapshotProgress) Write(b []byte) (int, error) {
	n, err := p.w.Write(b)
	p.sent += int64(n)
	if p.clock.Now().Sub(p.said) >= progressPeriod {
		p.said = p.clock.Now()
		p.lg.Info("snapshot transfer in progress", zap.Int64("sent-bytes", p.sent), zap.Int64("bytes", p.size), zap.Int64("percent", 100*p.sent/max(p.size, 1)))
	}
	return n, err
}

func (s *sender) snapshotOptions() snapshot.Options { return snapshot.Options{FS: s.cfg.FS} }

// raftSnapshot describes the state that a follower would be sent now.
func (s *sender) raftSnapshot() (*raftpb.Snapshot, error) {
	return s.replica.home().Describe(s.replica.mach())
}

// pauseTransfer waits after a snapshot could not be written to the local disk.
func (s *installer) pauseTransfer(ctx context.Context, err error) {
	if path := (*fs.PathError)(nil); !noRoom(err) && !errors.As(err, &path) {
		return // the connection failed
	}
	if err := s.replica.pause(ctx, transferPause); err != nil {
		return // shutting down
	}
}

// receiveSnapshot stores a snapshot file that a peer sends and passes its message to raft.
// The current state stays in use until raft accepts the snapshot.
func (s *installer) receiveSnapshot(ctx context.Context, msg *raftpb.Message, body io.Reader) error {
	start := s.cfg.Clock.Now()
	if err := s.replica.home().Receive(ctx, ids.Index(msg.GetSnapshot().GetMetadata().GetIndex()), s.received.Add(1), body); err != nil {
		s.pauseTransfer(ctx, err)
		return err
	}
	metrics.SnapDBSaveTotalDurationSeconds.Observe(s.cfg.Clock.Now().Sub(start).Seconds())
	if err := s.driver.receive(msg); err != nil {
		return err
	}
	s.driver.received(false)
	return nil
}

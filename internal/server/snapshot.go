package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/apply"
	"quorate/internal/crash"
	"quorate/internal/datadir"
	"quorate/internal/engine"
	"quorate/internal/membership"
	"quorate/internal/metrics"
	"quorate/internal/replica"
	"quorate/internal/snapshot"
)

const (
	// maxSnapshots bounds the snapshots that are being sent at a time; raft asks
	// again for those that are refused.
	maxSnapshots = 16
	viewsPoll    = 100 * time.Millisecond
)

// releaseDelay keeps the log untouched for a while after a snapshot was sent, so
// that the follower finds what came meanwhile. Only tests change it.
var releaseDelay = 30 * time.Second

// The owner file names the member and the cluster that a data directory is of,
// so that a log of another member is refused before the store is opened, which
// already writes to it. A directory that lost it, or comes from elsewhere, is
// judged by checkOwner alone and gets one.
func (m *Member) ownerFile() string { return m.layout().Owner() }

func ownerText(id identity) string {
	return fmt.Sprintf("member %s of cluster %s\n", membership.FormatID(id.id), membership.FormatID(id.cluster))
}

func (m *Member) readOwnerFile() (string, error) {
	text, err := datadir.ReadNote(m.cfg.FS, m.ownerFile())
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return text, err
}

func (m *Member) checkOwnerFile(id identity) error {
	got, err := m.readOwnerFile()
	if err != nil || got == "" || got == ownerText(id) {
		return err
	}
	return fmt.Errorf("--data-dir %s and --wal-dir %s do not belong together: the store is of %s, the raft log of %s",
		m.cfg.DataDir, m.cfg.logDir(), strings.TrimSpace(got), strings.TrimSpace(ownerText(id)))
}

func (m *Member) writeOwnerFile(id identity) error {
	if got, err := m.readOwnerFile(); err != nil || got != "" {
		return err
	}
	return datadir.WriteNote(m.cfg.FS, m.ownerFile(), ownerText(id))
}

// completeSnapshots takes the snapshot messages out of msgs and sends each with
// the state of the store as it is now.
func (m *Member) completeSnapshots(msgs []*raftpb.Message) []*raftpb.Message {
	out := msgs[:0]
	for _, msg := range msgs {
		if msg.GetType() != raftpb.MsgSnap {
			out = append(out, msg)
			continue
		}
		if m.snapshots.Add(1) > maxSnapshots {
			m.snapshots.Add(-1)
			host{m}.ReportSnapshot(msg.GetTo(), false)
			continue
		}
		m.background(func() {
			defer m.snapshots.Add(-1)
			if err := m.sendSnapshot(msg); err != nil {
				m.lg.Warn("failed to send a snapshot", zap.String("to", membership.FormatID(msg.GetTo())), zap.Error(err))
				m.pauseTransfer(m.rootCtx, err)
				host{m}.ReportSnapshot(msg.GetTo(), false)
				return
			}
			m.pause(m.rootCtx, releaseDelay)
		})
	}
	return out
}

func (m *Member) sendSnapshot(msg *raftpb.Message) error {
	state := m.mach().Engine().NewSnapshot()
	defer state.Close()
	v, known := m.tr.Version(msg.GetTo())
	meta, data, err := datadir.Describe(state, ownVersion, known && v.Less(firstWithoutV2))
	if err != nil {
		return err
	}
	msg.Snapshot = &raftpb.Snapshot{Data: data, Metadata: meta}
	r, w := io.Pipe()
	written := make(chan error, 1)
	go func() {
		defer crash.Guard()
		image, err := snapshot.Measure(m.rootCtx, state, m.snapshotOptions())
		if err == nil {
			err = image.WriteTo(m.rootCtx, m.progressOf(w, membership.FormatID(msg.GetTo()), image.Size()))
		}
		w.CloseWithError(err)
		written <- err
	}()
	m.lg.Info("sending merged snapshot", zap.String("from", membership.FormatID(m.id)), zap.String("to", membership.FormatID(msg.GetTo())), zap.Uint64("index", meta.GetIndex()))
	start := time.Now()
	m.tr.SendSnapshot(msg, r)
	if err := <-written; err != nil {
		return err
	}
	m.lg.Info("sent merged snapshot", zap.String("from", membership.FormatID(m.id)), zap.String("to", membership.FormatID(msg.GetTo())),
		zap.Uint64("index", meta.GetIndex()), zap.Duration("took", time.Since(start)))
	// A member of etcd that begins with a snapshot counts nothing as applied until
	// an entry follows it, and until then refuses its own announcement as one of too
	// many requests. Where nobody writes, this is that entry: it changes nothing.
	_, err = m.propose(asRoot(m.rootCtx), &pb.InternalRaftRequest{Alarm: &pb.AlarmRequest{Action: pb.AlarmRequest_GET}})
	if err != nil && !ended(err) {
		m.lg.Warn("nothing was committed after a snapshot", zap.String("to", membership.FormatID(msg.GetTo())), zap.Error(err))
	}
	return nil
}

// SnapshotFile is the store, as it is now, as a database file of etcd. Its pages
// are made as they are read; nothing is written anywhere. It must be closed.
func (m *Member) SnapshotFile(ctx context.Context) (io.ReadCloser, int64, error) {
	state := m.mach().Engine().NewSnapshot()
	start := m.cfg.Clock.Now()
	image, err := snapshot.Measure(ctx, state, m.snapshotOptions())
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
		w.CloseWithError(image.WriteTo(ctx, m.progressOf(w, "a client", image.Size())))
		metrics.DiskBackendSnapshotDurationSeconds.Observe(m.cfg.Clock.Now().Sub(start).Seconds())
	}()
	return f, image.Size(), nil
}

// snapshotFile is a database that is made while it is read.
type snapshotFile struct {
	*io.PipeReader
	cancel  context.CancelFunc
	written chan struct{}
}

// Close ends the making, and returns when the state is not used any more.
func (f *snapshotFile) Close() error {
	f.cancel()
	err := f.PipeReader.Close()
	<-f.written
	return err
}

// progressOf passes on what is written of a snapshot, and logs how far that is.
func (m *Member) progressOf(w io.Writer, to string, size int64) io.Writer {
	return &snapshotProgress{w: w, size: size, lg: m.lg.With(zap.String("to", to)), said: time.Now()}
}

type snapshotProgress struct {
	w          io.Writer
	lg         *zap.Logger
	size, sent int64
	said       time.Time
}

// progressPeriod is the time between two lines about one snapshot.
const progressPeriod = 5 * time.Second

func (p *snapshotProgress) Write(b []byte) (int, error) {
	n, err := p.w.Write(b)
	p.sent += int64(n)
	if time.Since(p.said) >= progressPeriod {
		p.said = time.Now()
		p.lg.Info("sending a snapshot goes on", zap.Int64("sent-bytes", p.sent), zap.Int64("bytes", p.size), zap.Int64("percent", 100*p.sent/max(p.size, 1)))
	}
	return n, err
}

func (m *Member) snapshotOptions() snapshot.Options { return snapshot.Options{FS: m.cfg.FS} }

// receiveSnapshot stores the file of a snapshot that a peer sends and hands its
// message to raft. The present state stays in use until raft accepts it.
func (m *Member) receiveSnapshot(ctx context.Context, msg *raftpb.Message, body io.Reader) error {
	start := time.Now()
	if err := m.home().Receive(ctx, msg.GetSnapshot().GetMetadata().GetIndex(), m.received.Add(1), body); err != nil {
		m.pauseTransfer(ctx, err)
		return err
	}
	metrics.SnapDBSaveTotalDurationSeconds.Observe(time.Since(start).Seconds())
	return host{m}.Process(msg)
}

// install replaces the state by a snapshot that raft has accepted. It runs on
// the log's goroutine; the exchange itself happens between two runs of apply.
func (m *Member) install(i *replica.Install) bool {
	index := i.Snapshot().GetMetadata().GetIndex()
	metrics.ServerSnapshotApplyInProgressTotal.Set(1)
	defer metrics.ServerSnapshotApplyInProgressTotal.Set(0)
	meta := i.Snapshot().GetMetadata()
	m.lg.Info("applying snapshot", zap.Uint64("current-applied-index", m.mach().Applied()),
		zap.Uint64("incoming-leader-snapshot-index", index), zap.Uint64("incoming-leader-snapshot-term", meta.GetTerm()))
	locked := false
	for stage := i.Stage(); stage != replica.Installed; stage = i.Stage() {
		if stage != replica.Import && !locked {
			m.logMu.Lock() // no truncation may measure the old store against the new log
			defer m.logMu.Unlock()
			locked = true
		}
		err := m.installStage(i)
		switch {
		case err == nil:
			i.Done()
			continue
		case m.rootCtx.Err() != nil && (stage == replica.Import || noRoom(err)), errors.Is(err, errHalted):
		default:
			m.fail(fmt.Errorf("install snapshot %d: %s: %w", index, stage, err))
		}
		return false // a member that is stopping gets the snapshot again, or finishes at its next start
	}
	m.mark.Store(index)
	m.lg.Info("applied snapshot", zap.Uint64("current-applied-index", m.mach().Applied()),
		zap.Uint64("incoming-leader-snapshot-index", index), zap.Uint64("incoming-leader-snapshot-term", meta.GetTerm()))
	return true
}

var errHalted = errors.New("the member is stopping")

func (m *Member) installStage(i *replica.Install) error {
	meta := i.Snapshot().GetMetadata()
	logStep := func(step func() error) error { return m.patiently(m.rootCtx, "the raft log", m.cfg.logDir(), step) }
	switch i.Stage() {
	case replica.Import:
		return m.home().Import(m.rootCtx, i.Snapshot())
	case replica.Exchange:
		done := make(chan error, 1)
		m.applyq.push(replica.Work{Swap: func() { done <- m.exchange(meta) }})
		select {
		case err := <-done:
			return err
		case <-m.halt:
			return errHalted
		}
	case replica.Reset:
		return logStep(func() error { return m.home().ResetLog(meta) })
	default:
		return logStep(func() error { return i.Follow(m.log) })
	}
}

// exchange puts the imported store into use; readers of the old one finish on
// it. It runs on the apply goroutine.
func (m *Member) exchange(meta *raftpb.SnapshotMetadata) error {
	var (
		eng engine.Engine
		dir string
	)
	err := m.patiently(m.rootCtx, "installing a snapshot", m.cfg.memberDir(), func() (err error) {
		eng, dir, err = m.home().Exchange(meta.GetIndex())
		return err
	})
	if err != nil {
		return err
	}
	old := m.mach()
	oldDir := m.storeDir()
	hadV2 := old.V2().Written()
	mach, err := m.openMachine(eng, dir)
	if err != nil {
		eng.Close()
		return err
	}
	m.machine.Store(mach)
	m.storeInUse.Store(&dir)
	if old.V2().Close(); hadV2 && !mach.V2().Written() {
		m.lg.Error("the snapshot came from a member that keeps no data of the v2 API; this member has none either now: replace the members of etcd 3.6 and later, then this one")
	}
	m.hub.Restore(history{mach.KV()})
	m.recheckWatches()
	m.reads.Applied(mach.Applied())
	m.syncPeers()
	retire := func() { m.retire(old, oldDir, meta.GetIndex()) }
	if !m.background(retire) {
		retire() // the member stops, and waits for nobody else
	}
	return nil
}

// retire closes a replaced store once its last reader is gone.
func (m *Member) retire(old *apply.Machine, dir string, index uint64) {
	old.Close()
	for old.KV().OpenViews() > 0 {
		if m.pause(m.rootCtx, viewsPoll) != nil {
			break
		}
	}
	if err := old.Engine().Close(); err != nil {
		m.lg.Warn("failed to close the replaced store", zap.Error(err))
	}
	if err := m.home().Retire(dir, index); err != nil {
		m.lg.Warn("failed to remove what a snapshot has replaced", zap.String("path", dir), zap.Error(err))
	}
}

// syncPeers brings the transport in line with a membership that was replaced as
// a whole.
func (m *Member) syncPeers() {
	for _, id := range m.cluster.RemovedIDs() {
		m.tr.RemovePeer(id)
	}
	for _, x := range m.cluster.Members() {
		if x.ID != m.id {
			m.tr.AddPeer(x.ID, x.PeerURLs)
			m.tr.UpdatePeer(x.ID, x.PeerURLs)
		}
	}
}

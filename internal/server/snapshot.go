package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/apply"
	"quorate/internal/datadir"
	"quorate/internal/engine"
	"quorate/internal/membership"
	"quorate/internal/metrics"
	"quorate/internal/raftlog"
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

var (
	ownerKey   = engine.Local.K([]byte("owner"))
	installKey = engine.Local.K([]byte("installed"))
)

// checkOwner compares the member that the store belongs to with the one that the
// log belongs to, and marks a fresh store.
func checkOwner(eng engine.Engine, id identity) error {
	want := ownerOf(id)
	got, err := eng.Get(nil, ownerKey)
	switch {
	case errors.Is(err, engine.ErrNotFound):
		b := eng.NewBatch()
		b.Set(ownerKey, want)
		return b.Commit()
	case err != nil:
		return err
	case !bytes.Equal(got, want):
		return fmt.Errorf("the store is of member and cluster %x, the raft log of %x", got, want)
	}
	return nil
}

func ownerOf(id identity) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, id.id), id.cluster)
}

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
	if isNotExist(err) {
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
	meta, data, err := datadir.Describe(state, ownVersion)
	if err != nil {
		return err
	}
	msg.Snapshot = &raftpb.Snapshot{Data: data, Metadata: meta}
	r, w := io.Pipe()
	written := make(chan error, 1)
	go func() {
		_, err := snapshot.Write(m.rootCtx, w, state, m.cfg.snapDir(), m.snapshotOptions())
		w.CloseWithError(err)
		written <- err
	}()
	m.lg.Info("sending a snapshot", zap.String("to", membership.FormatID(msg.GetTo())), zap.Uint64("index", meta.GetIndex()))
	m.tr.SendSnapshot(msg, r)
	return <-written
}

// SnapshotFile writes the store, as it is now, as a database file of etcd and
// opens it. Closing it removes it.
func (m *Member) SnapshotFile(ctx context.Context) (io.ReadCloser, int64, error) {
	state := m.mach().Engine().NewSnapshot()
	defer state.Close()
	start := time.Now()
	f, err := snapshot.Prepare(ctx, state, m.cfg.snapDir(), m.snapshotOptions())
	if err != nil {
		return nil, 0, err
	}
	metrics.DiskBackendSnapshotDurationSeconds.Observe(time.Since(start).Seconds())
	return struct {
		io.Reader
		io.Closer
	}{f.NewReader(), f}, f.Size(), nil
}

func (m *Member) snapshotOptions() snapshot.Options { return snapshot.Options{FS: m.cfg.FS} }

// receiveSnapshot stores the file of a snapshot that a peer sends and hands its
// message to raft. The present state stays in use until raft accepts it.
func (m *Member) receiveSnapshot(ctx context.Context, msg *raftpb.Message, body io.Reader) error {
	fs := m.cfg.FS
	path := m.receivedFile(msg.GetSnapshot().GetMetadata().GetIndex())
	start := time.Now()
	if err := saveStream(ctx, fs, path, fmt.Sprintf("%s.%d%s", path, m.received.Add(1), partSuffix), body); err != nil {
		return err
	}
	metrics.SnapDBSaveTotalDurationSeconds.Observe(time.Since(start).Seconds())
	return host{m}.Process(msg)
}

func (m *Member) receivedFile(index uint64) string {
	return m.cfg.FS.PathJoin(m.cfg.snapDir(), fmt.Sprintf("%016x%s", index, receivedSuffix))
}

const (
	receivedSuffix = ".snap.db"
	partSuffix     = ".part" // a file that is being received
)

// removeRemains removes what a process that ended during an installation has
// left: stores that are not in use and received files. Open calls it when the
// store in use is known to be good.
func (m *Member) removeRemains() {
	fs := m.cfg.FS
	remove := func(dir string, remains func(name string) bool) {
		names, err := fs.List(dir)
		if err != nil {
			m.lg.Warn("failed to look for remains of an installation", zap.String("dir", dir), zap.Error(err))
		}
		for _, name := range names {
			if !remains(name) {
				continue
			}
			path := fs.PathJoin(dir, name)
			if err := fs.RemoveAll(path); err != nil {
				m.lg.Warn("failed to remove what an installation has left", zap.String("path", path), zap.Error(err))
			}
		}
	}
	remove(m.cfg.snapDir(), func(name string) bool {
		return strings.HasSuffix(name, receivedSuffix) || strings.HasSuffix(name, partSuffix)
	})
	remove(m.cfg.memberDir(), func(name string) bool {
		return name != fs.PathBase(m.storeInUse) && (name == fs.PathBase(m.cfg.storeDir()) || strings.HasPrefix(name, datadir.StorePrefix))
	})
}

// install replaces the state by a snapshot that raft has accepted. It runs on
// the log's goroutine; the exchange itself happens between two runs of apply.
func (m *Member) install(w logWork) bool {
	meta := w.Snapshot.GetMetadata()
	metrics.ServerSnapshotApplyInProgressTotal.Set(1)
	defer metrics.ServerSnapshotApplyInProgressTotal.Set(0)
	m.lg.Info("installing a snapshot", zap.Uint64("index", meta.GetIndex()))
	err := m.importSnapshot(meta)
	if err != nil && m.rootCtx.Err() != nil {
		return false // the member is stopping; raft gets the snapshot again
	}
	m.logMu.Lock() // no truncation may measure the old store against the new log
	defer m.logMu.Unlock()
	if err == nil {
		done := make(chan error, 1)
		m.applyq.push(applyWork{swap: func() { done <- m.exchange(meta) }})
		select {
		case err = <-done:
		case <-m.halt:
			return false
		}
	}
	if err == nil {
		err = m.log.Reset(raftlog.SnapshotMark{Index: meta.GetIndex(), Term: meta.GetTerm(), ConfState: meta.GetConfState()})
	}
	if err == nil && (w.HardState != nil || len(w.Entries) > 0) {
		err = m.log.Append(w.HardState, w.Entries, true)
	}
	if err != nil {
		m.fail(fmt.Errorf("install snapshot %d: %w", meta.GetIndex(), err))
		return false
	}
	m.mark.Store(meta.GetIndex())
	m.lg.Info("installed a snapshot", zap.Uint64("index", meta.GetIndex()))
	return true
}

func (m *Member) importDir(index uint64) string { return m.layout().NewStore(index) }

// importSnapshot makes a complete store of a received file, beside the one in use.
func (m *Member) importSnapshot(meta *raftpb.SnapshotMetadata) error {
	fs := m.cfg.FS
	dir, file := m.importDir(meta.GetIndex()), m.receivedFile(meta.GetIndex())
	if err := fs.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove remains of an earlier import: %w", err)
	}
	eng, err := m.openEngine(dir)
	if err != nil {
		return err
	}
	got, err := snapshot.Read(m.rootCtx, file, eng, m.snapshotOptions())
	if err == nil && got.ConsistentIndex != meta.GetIndex() {
		err = fmt.Errorf("the file %s holds the state of entry %d, its message says %d", file, got.ConsistentIndex, meta.GetIndex())
	}
	if err == nil {
		b := eng.NewBatch()
		b.Set(ownerKey, ownerOf(identity{id: m.id, cluster: m.cluster.ID()}))
		b.Set(installKey, binary.BigEndian.AppendUint64(nil, meta.GetIndex()))
		err = b.Commit()
	}
	if err == nil {
		err = eng.Flush()
	}
	if cerr := eng.Close(); err == nil {
		err = cerr
	}
	return err
}

// exchange puts the imported store into use; readers of the old one finish on
// it. It runs on the apply goroutine.
func (m *Member) exchange(meta *raftpb.SnapshotMetadata) error {
	dir := m.importDir(meta.GetIndex())
	eng, err := m.openEngine(dir)
	if err != nil {
		return err
	}
	if err := m.layout().Use(dir); err != nil {
		eng.Close()
		return err
	}
	old := m.mach()
	oldDir := m.storeInUse
	mach, err := m.openMachine(eng)
	if err != nil {
		eng.Close()
		return err
	}
	m.machine.Store(mach)
	m.storeInUse = dir
	m.hub.Restore(history{mach.KV()})
	m.recheckWatches()
	m.reads.Applied(mach.Applied())
	m.syncPeers()
	m.background(func() { m.retire(old, oldDir, m.receivedFile(meta.GetIndex())) })
	return nil
}

// retire closes a replaced store once its last reader is gone.
func (m *Member) retire(old *apply.Machine, dir, file string) {
	old.Close()
	for old.KV().OpenViews() > 0 {
		if m.pause(m.rootCtx, viewsPoll) != nil {
			break
		}
	}
	if err := old.Engine().Close(); err != nil {
		m.lg.Warn("failed to close the replaced store", zap.Error(err))
	}
	for _, path := range []string{dir, file} {
		if err := m.cfg.FS.RemoveAll(path); err != nil {
			m.lg.Warn("failed to remove what a snapshot has replaced", zap.String("path", path), zap.Error(err))
		}
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

// resumeInstall finishes an installation that ended between the exchange of the
// store and the reset of the log. Anything else that leaves the log behind the
// store, or with another entry where the store is, means that files are missing.
func (m *Member) resumeInstall(eng engine.Engine, applied, term, last uint64) error {
	v, err := eng.Get(nil, installKey)
	if err != nil && !errors.Is(err, engine.ErrNotFound) {
		return err
	}
	if err != nil || len(v) != 8 || binary.BigEndian.Uint64(v) != applied {
		if applied <= last {
			return fmt.Errorf("the store in %s has applied entry %d of term %d, but the raft log in %s has another entry there: one of them is not the current one",
				m.cfg.memberDir(), applied, term, m.cfg.logDir())
		}
		return fmt.Errorf("the store in %s has applied entry %d, but the raft log in %s ends at entry %d: log files are missing",
			m.cfg.memberDir(), applied, m.cfg.logDir(), last)
	}
	cs, err := membership.LoadConfState(eng)
	if err != nil {
		return err
	}
	return m.log.Reset(raftlog.SnapshotMark{Index: applied, Term: term, ConfState: cs})
}

package raftlog

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/clock"
	"quorate/internal/crash"
	"quorate/internal/durable"
	"quorate/internal/metrics"
)

// Append adds entries, and the hard state unless it is nil, to the log. Entries
// must be consecutive and begin at the latest at the last entry + 1; existing
// entries from the first of them on are replaced. With mustSync, the call's
// data and everything written earlier are durable when Append returns nil;
// without it, they may survive an exit of the process, but no crash of the
// machine. A hard state alone without mustSync is only written with the next
// write.
//
// An error that wraps ErrNoSpace means that nothing of the call is in the log
// and that the caller may retry. After any other error the log rejects all
// writes. Append retains the entries: the caller must not modify them
// afterwards.
func (l *Log) Append(hs *raftpb.HardState, ents []*raftpb.Entry, mustSync bool) error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if err := l.usable(); err != nil {
		return err
	}
	if err := l.checkAppend(ents); err != nil {
		return err
	}
	next, err := l.nextHardState(hs, ents)
	if err != nil {
		return err
	}
	if next != nil && len(ents) == 0 && !mustSync {
		l.setHardState(next)
		l.pending = true
		return nil
	}
	if next == nil && len(ents) == 0 && !(mustSync && l.pending) {
		if mustSync && l.unsynced {
			if err := l.sync(); err != nil {
				return err
			}
			return l.noteSynced()
		}
		return nil
	}
	slots, err := l.writeGroup(next, ents)
	if err != nil {
		return err
	}
	if mustSync {
		if err := l.sync(); err != nil {
			return err
		}
		if err := l.noteSynced(); err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if next != nil {
		l.hs = next
	}
	if len(ents) > 0 {
		l.table.truncate(ents[0].GetIndex())
		for i, e := range ents {
			l.table.push(slots[i], e)
		}
		l.table.shrink(l.opts.CacheBytes)
	}
	return nil
}

// checkAppend rejects entries that the reader would reject later.
func (l *Log) checkAppend(ents []*raftpb.Entry) error {
	if len(ents) == 0 {
		return nil
	}
	first, last := ents[0].GetIndex(), l.table.last()
	switch {
	case first > last+1:
		return fmt.Errorf("raftlog: append entry %d after %d: gap", first, last)
	case first < l.table.first:
		return fmt.Errorf("raftlog: append entry %d: compacted up to %d", first, l.table.first-1)
	case first <= l.hs.GetCommit():
		return fmt.Errorf("raftlog: append entry %d: committed up to %d", first, l.hs.GetCommit())
	}
	term := l.table.term(first - 1)
	for i, e := range ents {
		if e.GetIndex() != first+uint64(i) {
			return fmt.Errorf("raftlog: append entry %d after %d", e.GetIndex(), first+uint64(i)-1)
		}
		if e.GetTerm() < term || e.GetTerm() == 0 {
			return fmt.Errorf("raftlog: append entry %d of term %d after term %d", e.GetIndex(), e.GetTerm(), term)
		}
		if len(e.Data) > maxRecord-recordOverhead {
			return fmt.Errorf("raftlog: append entry %d: %d bytes are too many", e.GetIndex(), len(e.Data))
		}
		term = e.GetTerm()
	}
	return nil
}

// nextHardState returns the state to write, nil if nothing has changed. Commit
// never decreases: a mark may have raised it beyond what the caller knows.
func (l *Log) nextHardState(hs *raftpb.HardState, ents []*raftpb.Entry) (*raftpb.HardState, error) {
	if hs == nil || hs.GetTerm() == 0 && hs.GetVote() == 0 && hs.GetCommit() == 0 {
		return nil, nil
	}
	last := l.table.last()
	if n := len(ents); n > 0 {
		last = ents[n-1].GetIndex()
	}
	if hs.GetTerm() < l.hs.GetTerm() || hs.GetTerm() == 0 {
		return nil, fmt.Errorf("raftlog: append hard state of term %d after term %d", hs.GetTerm(), l.hs.GetTerm())
	}
	if hs.GetCommit() > last {
		return nil, fmt.Errorf("raftlog: append hard state: commit %d is beyond the last entry %d", hs.GetCommit(), last)
	}
	next := hardState(hs.GetTerm(), hs.GetVote(), max(hs.GetCommit(), l.hs.GetCommit()))
	if sameHardState(next, l.hs) {
		return nil, nil
	}
	return next, nil
}

func sameHardState(a, b *raftpb.HardState) bool {
	return a.GetTerm() == b.GetTerm() && a.GetVote() == b.GetVote() && a.GetCommit() == b.GetCommit()
}

func (l *Log) setHardState(hs *raftpb.HardState) {
	l.mu.Lock()
	l.hs = hs
	l.mu.Unlock()
}

// writeGroup writes entries, then the state, and returns the positions of the
// entries. If they do not fit, it first begins a new segment, so that the
// write stays within reserved space.
func (l *Log) writeGroup(hs *raftpb.HardState, ents []*raftpb.Entry) ([]slot, error) {
	need := int64(2*recordOverhead + 32) // the state and the record of appendSynced
	for _, e := range ents {
		need += int64(entrySize(e)) + recordOverhead
	}
	if err := l.makeRoom(need, l.markRoom()); err != nil {
		return nil, err
	}
	slots := make([]slot, 0, len(ents))
	seq := uint32(l.tailSeg.seq)
	w := groupWriter{l: l, buf: l.appendSynced(l.buf[:0]), off: l.tailOff}
	off, crc := l.tailOff+int64(len(w.buf)), l.crc
	for _, e := range ents {
		s := slot{term: e.GetTerm(), off8: uint32(off / 8), seq: seq, before: crc, size: uint32(entrySize(e))}
		slots = append(slots, s)
		n := len(w.buf)
		w.buf, crc = appendEntryFrame(w.buf, crc, e)
		l.doubtful = l.doubtful || doubtful(w.buf[n:], off)
		off += int64(len(w.buf) - n)
		if len(w.buf) >= flushBytes {
			if err := w.flush(false); err != nil {
				return nil, err
			}
		}
	}
	if hs == nil && l.pending {
		hs = l.hs
	}
	if hs != nil {
		var state [32]byte
		n := len(w.buf)
		w.buf, crc = appendRecord(w.buf, crc, TypeState, appendHardState(state[:0], hs))
		l.doubtful = l.doubtful || doubtful(w.buf[n:], off)
	}
	if err := w.flush(true); err != nil {
		return nil, err
	}
	l.tailOff, l.crc = w.off, crc
	if hs != nil {
		l.pending = false
	}
	return slots, nil
}

// writeRecords writes records other than entries; encode appends them to b.
func (l *Log) writeRecords(need int64, encode func(b []byte, crc uint32) ([]byte, uint32)) error {
	if err := l.makeRoom(need+recordOverhead, 0); err != nil {
		return err
	}
	w := groupWriter{l: l, off: l.tailOff}
	var crc uint32
	w.buf, crc = encode(l.appendSynced(l.buf[:0]), l.crc)
	if err := w.flush(true); err != nil {
		return err
	}
	l.tailOff, l.crc = w.off, crc
	return nil
}

// groupWriter writes one group of records after the tail's last record, or
// nothing.
type groupWriter struct {
	l   *Log
	buf []byte
	off int64 // file offset of buf[0]
}

// flush writes the buffer, at the end of the group followed by zeros.
func (w *groupWriter) flush(end bool) error {
	l, n := w.l, len(w.buf)
	zeroed := w.off + int64(n)
	if end && zeroed > l.zeroed {
		to := min((zeroed+zeroAhead)&^4095, l.tailCap)
		if more := to - zeroed; more > 0 {
			w.buf = append(w.buf, zeros[:more]...)
			zeroed = to
		}
	}
	start := clock.Now()
	done, err := l.tail.WriteAt(w.buf, w.off)
	metrics.DiskWALWriteDurationSeconds.Observe(clock.Since(start).Seconds())
	if err != nil {
		return w.undo(w.off+int64(done), err)
	}
	metrics.DiskWALWriteBytesTotal.Add(float64(n))
	l.zeroed = max(l.zeroed, zeroed)
	l.unsynced, l.noted = true, false
	w.off += int64(n)
	w.buf = w.buf[:0]
	if end {
		l.buf = w.buf
		if cap(l.buf) > 2*flushBytes {
			l.buf = nil // do not retain the memory of one large entry
		}
	}
	return nil
}

// undo overwrites a partially written group with zeros, up to offset to. It was
// never acknowledged, but a reader would find its bytes after a shorter record
// later.
func (w *groupWriter) undo(to int64, cause error) error {
	l := w.l
	if !vfs.IsNoSpaceError(cause) {
		return l.fail("write "+l.tailPath(), cause)
	}
	if err := writeZeros(l.tail, l.tailOff, to); err != nil {
		return l.fail("undo a write to "+l.tailPath(), errors.Join(cause, err))
	}
	l.zeroed = max(l.zeroed, to)
	l.unsynced = true
	return fmt.Errorf("raftlog: write %s: %w", l.tailPath(), noSpace(cause))
}

var zeros [zeroAhead]byte

// markRoom is the space in bytes that entries leave free at the end of a segment.
// On a full disk no new segment can be created, yet a mark must still fit: without
// a newer mark no old segment can be removed to free space.
func (l *Log) markRoom() int64 { return min(16<<10, l.opts.SegmentBytes/16) }

// makeRoom makes sure that need more bytes fit into the reserved space of
// the tail, with leave bytes to spare.
func (l *Log) makeRoom(need, leave int64) error {
	need += leave
	if l.tailOff+need <= l.tailCap {
		return nil
	}
	if l.tailOff > l.tailHead {
		if err := l.cut(l.table.last()+1, nil); err != nil {
			return err
		}
		if l.tailOff+need <= l.tailCap {
			return nil
		}
	}
	size := l.tailOff + need
	if err := reserve(l.tail, l.tailCap, size); err != nil {
		return fmt.Errorf("raftlog: preallocate %s: %w", l.tailPath(), noSpace(err))
	}
	l.tailCap = size
	return nil
}

// appendHead appends the records at the head of every segment and sets l.crc to
// the running checksum after them.
func (l *Log) appendHead(b []byte, crc uint32, hs *raftpb.HardState) []byte {
	b, crc = appendRecord(b, crc, TypeCRC, nil)
	b, crc = appendRecord(b, crc, TypeMetadata, l.rawMD)
	if hs != nil {
		b, crc = appendRecord(b, crc, TypeState, appendHardState(nil, hs))
	}
	l.crc = crc
	return b
}

// writeHead writes the first records of a segment durably.
func (l *Log) writeHead(f vfs.File, head []byte) error {
	n := int64(len(head))
	l.tailOff, l.tailHead = n, n
	l.zeroed = max(n, min((n+zeroAhead)&^4095, l.tailCap))
	head = append(head, zeros[:l.zeroed-n]...)
	if _, err := f.WriteAt(head, 0); err != nil {
		return err
	}
	metrics.DiskWALWriteBytesTotal.Add(float64(n))
	if l.opts.NoSync {
		return nil
	}
	return f.Sync()
}

// cut switches to a new segment, named after index. extra appends records to
// its head. If the new segment cannot be created, the log is unchanged.
func (l *Log) cut(index uint64, extra func(b []byte, crc uint32) ([]byte, uint32)) error {
	// The old file must be on disk completely before the new one appears: the
	// reader treats damage before the last file as corruption.
	if l.unsynced {
		if err := l.sync(); err != nil {
			return err
		}
	}
	f, tmp, err := l.takeSpare()
	if err != nil {
		return err
	}
	old := *l.tailState()
	undo := func(step string, err error) error {
		l.setTailState(old)
		err = fmt.Errorf("raftlog: %s: %w", step, noSpace(err))
		return errors.Join(err, f.Close(), l.fs.Remove(tmp))
	}
	l.tailCap = l.opts.SegmentBytes
	head := l.appendHead(nil, l.crc, l.hs)
	if extra != nil {
		head, l.crc = extra(head, l.crc)
	}
	if err := l.writeHead(f, head); err != nil {
		if !vfs.IsNoSpaceError(err) {
			_ = undo("write "+tmp, err)
			return l.fail("write "+tmp, err)
		}
		return undo("write "+tmp, err)
	}
	next := segment{seq: l.tailSeg.seq + 1, index: index}
	if err := l.fs.Rename(tmp, l.path(next)); err != nil {
		return undo("rename "+tmp, err)
	}
	if err := l.dirFile.Sync(); err != nil {
		_ = f.Close()
		l.setTailState(old)
		return l.fail("sync "+l.dir, err)
	}
	// Free the reserved rest of the old file. If the size cannot be set, zeros
	// remain at its end, which readers skip.
	if err := errors.Join(setSize(old.file, old.off), old.file.Close()); err != nil {
		l.lg.Warn("failed to trim a log segment", zap.String("path", l.tailPath()), zap.Error(err))
	}
	l.tail, l.tailSeg, l.pending, l.unsynced = f, next, false, false
	l.doubtful, l.noted = false, true // the head says what is synced
	l.mu.Lock()
	l.segs = append(l.segs, next)
	l.mu.Unlock()
	l.prepareSpare()
	l.lg.Info("created a new WAL segment", zap.String("path", l.path(next)))
	return nil
}

// tailState describes the tail; cut saves it so that it can undo.
type tailState struct {
	file                   vfs.File
	off, cap, zeroed, head int64
	crc                    uint32
}

func (l *Log) tailState() *tailState {
	return &tailState{l.tail, l.tailOff, l.tailCap, l.zeroed, l.tailHead, l.crc}
}

func (l *Log) setTailState(s tailState) {
	l.tail, l.tailOff, l.tailCap, l.zeroed, l.tailHead, l.crc = s.file, s.off, s.cap, s.zeroed, s.head, s.crc
}

// spare is the next segment, prepared while the current one is written.
type spare struct {
	fs   vfs.FS
	path string
	done chan struct{} // closed when file and err are set
	file vfs.File
	err  error
}

// prepareSpare starts creating the next segment in the background.
func (l *Log) prepareSpare() {
	if l.opts.NoBackground {
		return
	}
	l.spare = l.newSpare()
	spare := l.spare
	go crash.Guarded(func() { spare.make(l.opts.SegmentBytes) })()
}

// newSpare alternates between two names, as etcd does, so that a new file
// never has the name that the last renamed one had.
func (l *Log) newSpare() *spare {
	name := spareName(l.spareSeq % spareNames)
	l.spareSeq++
	return &spare{fs: l.fs, path: l.fs.PathJoin(l.dir, name), done: make(chan struct{})}
}

const spareNames = 2

func spareName(i int) string { return fmt.Sprintf("%d.tmp", i) }

func (s *spare) make(size int64) {
	s.file, s.err = allocate(s.fs, s.path, size)
	close(s.done)
}

// discard removes an unused spare.
func (s *spare) discard() {
	<-s.done
	if s.err == nil {
		_ = s.file.Close()
		_ = s.fs.Remove(s.path)
	}
}

// takeSpare returns the next segment. If it could not be created in the
// background, takeSpare retries once: the disk may have room again.
func (l *Log) takeSpare() (vfs.File, string, error) {
	s := l.spare
	l.spare = nil
	if s != nil {
		<-s.done
	}
	if s == nil || s.err != nil {
		s = l.newSpare()
		s.make(l.opts.SegmentBytes)
	}
	return s.file, s.path, s.err
}

// SaveMark records durably that the state up to m.Index is stored elsewhere.
// The index must be in the log; a restart begins at the newest mark. A mark
// proves that its index is committed, so the hard state's commit is raised to
// it if it is lower. If m.Alone is set, the log begins after m.Index.
func (l *Log) SaveMark(m SnapshotMark) error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if err := l.usable(); err != nil {
		return err
	}
	if m.Index+1 < l.table.first || m.Index > l.table.last() || m.Index < l.mark.Index {
		return fmt.Errorf("raftlog: mark %d: not in [%d, %d]", m.Index, max(l.table.first-1, l.mark.Index), l.table.last())
	}
	if term := l.table.term(m.Index); term != m.Term {
		return fmt.Errorf("raftlog: mark %d of term %d: the entry has term %d", m.Index, m.Term, term)
	}
	m = m.clone()
	hs := l.hs
	if hs.GetCommit() < m.Index {
		hs = hardState(hs.GetTerm(), hs.GetVote(), m.Index)
	}
	if err := l.writeMark(m, hs); err != nil {
		return err
	}
	if err := l.sync(); err != nil {
		return err
	}
	l.mu.Lock()
	l.mark, l.hs = m, hs
	if m.Alone {
		l.table.compact(m.Index)
	}
	l.mu.Unlock()
	return l.noteSynced()
}

// writeMark writes the state, if it has changed, and the mark.
func (l *Log) writeMark(m SnapshotMark, hs *raftpb.HardState) error {
	data, err := appendMark(nil, m)
	if err != nil {
		return fmt.Errorf("raftlog: mark %d: %w", m.Index, err)
	}
	withState := hs != l.hs || l.pending
	err = l.writeRecords(int64(len(data)+2*recordOverhead+32), func(b []byte, crc uint32) ([]byte, uint32) {
		off, n := l.tailOff+int64(len(b)), len(b)
		if withState && hs != nil {
			b, crc = appendRecord(b, crc, TypeState, appendHardState(nil, hs))
			l.doubtful = l.doubtful || doubtful(b[n:], off)
			off, n = off+int64(len(b)-n), len(b)
		}
		b, crc = appendRecord(b, crc, TypeSnapshot, data)
		l.doubtful = l.doubtful || doubtful(b[n:], off)
		return b, crc
	})
	if err == nil {
		l.pending = false
	}
	return err
}

// Compact drops the entries up to through, which must be covered by a mark,
// and removes the files that are no longer needed. Entries after through stay
// available, also after a restart.
func (l *Log) Compact(through uint64) error {
	l.cmu.Lock()
	defer l.cmu.Unlock()
	n, err := l.forget(through)
	if err != nil {
		return err
	}
	return l.removeSegments(n)
}

// forget drops entries from the table and returns how many segments can be
// removed.
func (l *Log) forget(through uint64) (int, error) {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if err := l.usable(); err != nil {
		return 0, err
	}
	if through > l.mark.Index {
		return 0, fmt.Errorf("raftlog: compact through %d: newest mark is %d", through, l.mark.Index)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.table.compact(through)
	return l.unneeded(), nil
}

// unneeded returns how many of the oldest segments neither this log nor etcd
// would read after a restart.
func (l *Log) unneeded() int {
	if l.opts.KeepSegments < 0 {
		return 0
	}
	n := max(len(l.segs)-max(l.opts.KeepSegments, 1), 0)
	if len(l.table.slots) > 0 {
		for i, s := range l.segs[:n] {
			if uint32(s.seq) == l.table.slots[0].seq {
				n = i
				break
			}
		}
	}
	// etcd searches for the mark from the last file whose index is not beyond
	// it.
	for i := len(l.segs) - 1; i >= 0; i-- {
		if l.segs[i].index <= l.mark.Index {
			return min(n, i)
		}
	}
	return 0
}

// removeSegments removes the n oldest segments, oldest first and each durably
// before the next, so that a crash leaves no gap. cmu must be held. Files
// that remain after an error are removed by the next Compact or do no harm.
func (l *Log) removeSegments(n int) error {
	for range n {
		l.mu.RLock()
		path := l.path(l.segs[0])
		l.mu.RUnlock()
		if err := l.fs.Remove(path); err != nil && !isNotExist(err) {
			return fmt.Errorf("raftlog: remove %s: %w", path, err)
		}
		l.mu.Lock()
		l.segs = l.segs[1:]
		l.mu.Unlock()
		if err := durable.SyncDir(l.fs, l.dir); err != nil {
			return fmt.Errorf("raftlog: %w", err)
		}
	}
	return nil
}

// Reset drops all entries and continues after m.Index: call it when a
// received snapshot has been installed. The effect is atomic, and durable
// on return. A snapshot proves that its index is committed and its term was
// reached, so the hard state is raised to them if it is lower.
func (l *Log) Reset(m SnapshotMark) error {
	l.cmu.Lock()
	defer l.cmu.Unlock()
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if err := l.usable(); err != nil {
		return err
	}
	if m.Index == 0 || m.Term == 0 || m.Index < l.hs.GetCommit() {
		return fmt.Errorf("raftlog: reset to index %d, term %d: committed up to %d", m.Index, m.Term, l.hs.GetCommit())
	}
	m = m.clone()
	before, hs := l.hs, l.raised(m)
	var err error
	if len(l.segs) == 1 && l.tailOff == l.tailHead {
		// There is nothing to drop. Tools that write a log begin like this.
		if err = l.writeMark(m, hs); err == nil {
			err = l.sync()
		}
	} else {
		err = l.cutAt(m, hs)
	}
	if err != nil {
		l.setHardState(before)
		return err
	}
	l.mu.Lock()
	l.hs, l.mark = hs, m
	l.table.reset(m.Index, m.Term)
	l.mu.Unlock()
	return l.removeSegments(len(l.segs) - 1)
}

// raised returns the hard state that the mark proves.
func (l *Log) raised(m SnapshotMark) *raftpb.HardState {
	term, vote := l.hs.GetTerm(), l.hs.GetVote()
	if term < m.Term {
		term, vote = m.Term, 0
	}
	return hardState(term, vote, max(l.hs.GetCommit(), m.Index))
}

// cutAt begins a segment that starts with the mark and is named after its
// index, where etcd looks for it: entries of older segments are then not read.
func (l *Log) cutAt(m SnapshotMark, hs *raftpb.HardState) error {
	data, err := appendMark(nil, m)
	if err != nil {
		return fmt.Errorf("raftlog: mark %d: %w", m.Index, err)
	}
	l.setHardState(hs) // the head carries it
	return l.cut(m.Index, func(b []byte, crc uint32) ([]byte, uint32) {
		return appendRecord(b, crc, TypeSnapshot, data)
	})
}

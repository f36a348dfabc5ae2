package raftlog

import (
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/clock"
	"quorate/internal/ids"
	"quorate/internal/metrics"
)

const (
	category = vfs.DiskWriteCategory("raft-log")
	// zeroAhead is how many bytes of zeros are written after the newest record,
	// in the same write. Until they are used up, a sync has no file system
	// metadata to write: the blocks are allocated, initialised and counted in
	// the file's size. Measured on ext4 with groups of 8 KiB: 130 µs a sync
	// instead of 215.
	zeroAhead = 256 << 10
	// flushBytes bounds the write buffer. A group of entries beyond it is written
	// in steps, with one sync at the end.
	flushBytes = 4 << 20
	// slowSync is the duration from which a sync logs a warning.
	slowSync = time.Second
)

// writer appends records to the last segment of a log, the tail, and begins new ones. The wmu of the
// log must be held.
type writer struct {
	dir   *directory
	opts  Options
	r     *reader // for the hard state, and to publish new segments
	rawMD []byte  // data of the first metadata record

	seg      segment
	file     vfs.File // of seg
	off      int64    // offset of the next record
	cap      int64    // reserved size of the file
	zeroed   int64    // the file is written up to here, with records or zeros
	head     int64    // size of the records at the head of the file
	crc      uint32   // running checksum at off
	unsynced bool     // the file has writes that are not synced
	doubtful bool     // a frame written since noteSynced could be mistaken for torn
	noted    bool     // the last record says that everything before it is synced
	pending  bool     // the hard state is newer than the log's last state record
	buf      []byte   // write buffer, reused between calls
	failed   error    // set once; then every write returns it
	spare    *spare   // next segment being prepared, may be nil
	spareSeq int      // number of spares created
}

// close closes the tail and discards the spare.
func (w *writer) close() error {
	if w.spare != nil {
		w.spare.discard()
		w.spare = nil
	}
	if w.file == nil {
		return nil
	}
	err := w.file.Close()
	w.file = nil
	return err
}

// writeGroup writes entries, then the state, and returns the positions of the
// entries. If they do not fit, it first begins a new segment, so that the
// write stays within reserved space.
func (w *writer) writeGroup(hs *raftpb.HardState, ents []*raftpb.Entry) ([]slot, error) {
	need := int64(2*recordOverhead + 32) // the state and the record of appendSynced
	for _, e := range ents {
		need += int64(entrySize(e)) + recordOverhead
	}
	if err := w.makeRoom(need, w.markRoom()); err != nil {
		return nil, err
	}
	slots := make([]slot, 0, len(ents))
	seq := uint32(w.seg.seq)
	g := groupWriter{w: w, buf: w.appendSynced(w.buf[:0]), off: w.off}
	off, crc := w.off+int64(len(g.buf)), w.crc
	for _, e := range ents {
		s := slot{term: ids.Term(e.GetTerm()), off8: uint32(off / 8), seq: seq, before: crc, size: uint32(entrySize(e))}
		slots = append(slots, s)
		n := len(g.buf)
		g.buf, crc = appendEntryFrame(g.buf, crc, e)
		w.doubtful = w.doubtful || doubtful(g.buf[n:], off)
		off += int64(len(g.buf) - n)
		if len(g.buf) >= flushBytes {
			if err := g.flush(false); err != nil {
				return nil, err
			}
		}
	}
	if hs == nil && w.pending {
		hs = w.r.hs
	}
	if hs != nil {
		var state [32]byte
		n := len(g.buf)
		g.buf, crc = appendRecord(g.buf, crc, TypeState, appendHardState(state[:0], hs))
		w.doubtful = w.doubtful || doubtful(g.buf[n:], off)
	}
	if err := g.flush(true); err != nil {
		return nil, err
	}
	w.off, w.crc = g.off, crc
	if hs != nil {
		w.pending = false
	}
	return slots, nil
}

// writeRecords writes records other than entries; encode appends them to b.
func (w *writer) writeRecords(need int64, encode func(b []byte, crc uint32) ([]byte, uint32)) error {
	if err := w.makeRoom(need+recordOverhead, 0); err != nil {
		return err
	}
	g := groupWriter{w: w, off: w.off}
	var crc uint32
	g.buf, crc = encode(w.appendSynced(w.buf[:0]), w.crc)
	if err := g.flush(true); err != nil {
		return err
	}
	w.off, w.crc = g.off, crc
	return nil
}

// writeMark writes the state, if it has changed, and the mark.
func (w *writer) writeMark(m SnapshotMark, hs *raftpb.HardState) error {
	data, err := appendMark(nil, m)
	if err != nil {
		return fmt.Errorf("raftlog: mark %d: %w", m.Index, err)
	}
	withState := hs != w.r.hs || w.pending
	err = w.writeRecords(int64(len(data)+2*recordOverhead+32), func(b []byte, crc uint32) ([]byte, uint32) {
		off, n := w.off+int64(len(b)), len(b)
		if withState && hs != nil {
			b, crc = appendRecord(b, crc, TypeState, appendHardState(nil, hs))
			w.doubtful = w.doubtful || doubtful(b[n:], off)
			off, n = off+int64(len(b)-n), len(b)
		}
		b, crc = appendRecord(b, crc, TypeSnapshot, data)
		w.doubtful = w.doubtful || doubtful(b[n:], off)
		return b, crc
	})
	if err == nil {
		w.pending = false
	}
	return err
}

// groupWriter writes one group of records after the tail's last record, or
// nothing.
type groupWriter struct {
	w   *writer
	buf []byte
	off int64 // file offset of buf[0]
}

// flush writes the buffer, at the end of the group followed by zeros.
func (g *groupWriter) flush(end bool) error {
	w, n := g.w, len(g.buf)
	zeroed := g.off + int64(n)
	if end && zeroed > w.zeroed {
		to := min((zeroed+zeroAhead)&^4095, w.cap)
		if more := to - zeroed; more > 0 {
			g.buf = append(g.buf, zeros[:more]...)
			zeroed = to
		}
	}
	start := clock.Now()
	done, err := w.file.WriteAt(g.buf, g.off)
	metrics.DiskWALWriteDurationSeconds.Observe(clock.Since(start).Seconds())
	if err != nil {
		return g.undo(g.off+int64(done), err)
	}
	metrics.DiskWALWriteBytesTotal.Add(float64(n))
	w.zeroed = max(w.zeroed, zeroed)
	w.unsynced, w.noted = true, false
	g.off += int64(n)
	g.buf = g.buf[:0]
	if end {
		w.buf = g.buf
		if cap(w.buf) > 2*flushBytes {
			w.buf = nil // do not retain the memory of one large entry
		}
	}
	return nil
}

// undo overwrites a partially written group with zeros, up to offset to. It was
// never acknowledged, but a reader would find its bytes after a shorter record
// later.
func (g *groupWriter) undo(to int64, cause error) error {
	w := g.w
	if !lacking(cause) {
		return w.fail("write "+w.path(), cause)
	}
	if err := writeZeros(w.file, w.off, to); err != nil {
		return w.fail("undo a write to "+w.path(), errors.Join(cause, err))
	}
	w.zeroed = max(w.zeroed, to)
	w.unsynced = true
	return fmt.Errorf("raftlog: write %s: %w", w.path(), noSpace(cause))
}

var zeros [zeroAhead]byte

// markRoom is the space in bytes that entries leave free at the end of a segment.
// On a full disk no new segment can be created, yet a mark must still fit: without
// a newer mark no old segment can be removed to free space.
func (w *writer) markRoom() int64 { return min(16<<10, w.opts.SegmentBytes/16) }

// makeRoom makes sure that need more bytes fit into the reserved space of
// the tail, with leave bytes to spare.
func (w *writer) makeRoom(need, leave int64) error {
	need += leave
	if w.off+need <= w.cap {
		return nil
	}
	if w.off > w.head {
		if err := w.cut(w.r.table.last()+1, nil); err != nil {
			return err
		}
		if w.off+need <= w.cap {
			return nil
		}
	}
	size := w.off + need
	if err := reserve(w.file, w.cap, size); err != nil {
		return fmt.Errorf("raftlog: preallocate %s: %w", w.path(), noSpace(err))
	}
	w.cap = size
	return nil
}

// appendHead appends the records at the head of every segment and sets w.crc to
// the running checksum after them.
func (w *writer) appendHead(b []byte, crc uint32, hs *raftpb.HardState) []byte {
	b, crc = appendRecord(b, crc, TypeCRC, nil)
	b, crc = appendRecord(b, crc, TypeMetadata, w.rawMD)
	if hs != nil {
		b, crc = appendRecord(b, crc, TypeState, appendHardState(nil, hs))
	}
	w.crc = crc
	return b
}

// writeHead writes the first records of a segment durably.
func (w *writer) writeHead(f vfs.File, head []byte) error {
	n := int64(len(head))
	w.off, w.head = n, n
	w.zeroed = max(n, min((n+zeroAhead)&^4095, w.cap))
	head = append(head, zeros[:w.zeroed-n]...)
	if _, err := f.WriteAt(head, 0); err != nil {
		return err
	}
	metrics.DiskWALWriteBytesTotal.Add(float64(n))
	if w.opts.NoSync {
		return nil
	}
	return f.Sync()
}

// cut switches to a new segment, named after index. extra appends records to
// its head. If the new segment cannot be created, the log is unchanged.
func (w *writer) cut(index ids.Index, extra func(b []byte, crc uint32) ([]byte, uint32)) error {
	// The old file must be on disk completely before the new one appears: the
	// reader treats damage before the last file as corruption.
	if w.unsynced {
		if err := w.sync(); err != nil {
			return err
		}
	}
	f, tmp, err := w.takeSpare()
	if err != nil {
		return err
	}
	old := *w.tailState()
	undo := func(step string, err error) error {
		w.setTailState(old)
		err = fmt.Errorf("raftlog: %s: %w", step, noSpace(err))
		return errors.Join(err, f.Close(), w.dir.fs.Remove(tmp))
	}
	w.cap = w.opts.SegmentBytes
	head := w.appendHead(nil, w.crc, w.r.hs)
	if extra != nil {
		head, w.crc = extra(head, w.crc)
	}
	if err := w.writeHead(f, head); err != nil {
		if !lacking(err) {
			_ = undo("write "+tmp, err)
			return w.fail("write "+tmp, err)
		}
		return undo("write "+tmp, err)
	}
	next := segment{seq: w.seg.seq + 1, index: index}
	if err := w.dir.fs.Rename(tmp, w.dir.segment(next)); err != nil {
		return undo("rename "+tmp, err)
	}
	if err := w.dir.file.Sync(); err != nil {
		_ = f.Close()
		w.setTailState(old)
		return w.fail("sync "+w.dir.path, err)
	}
	// Free the reserved rest of the old file. If the size cannot be set, zeros
	// remain at its end, which readers skip.
	if err := errors.Join(setSize(old.file, old.off), old.file.Close()); err != nil {
		w.dir.lg.Warn("failed to trim a log segment", zap.String("path", w.path()), zap.Error(err))
	}
	w.file, w.seg, w.pending, w.unsynced = f, next, false, false
	w.doubtful, w.noted = false, true // the head says what is synced
	w.r.mu.Lock()
	w.r.segs = append(w.r.segs, next)
	w.r.mu.Unlock()
	w.prepareSpare()
	w.dir.lg.Info("created a new WAL segment", zap.String("path", w.dir.segment(next)))
	return nil
}

// tailState describes the tail; cut saves it so that it can undo.
type tailState struct {
	file                   vfs.File
	off, cap, zeroed, head int64
	crc                    uint32
}

func (w *writer) tailState() *tailState {
	return &tailState{w.file, w.off, w.cap, w.zeroed, w.head, w.crc}
}

func (w *writer) setTailState(s tailState) {
	w.file, w.off, w.cap, w.zeroed, w.head, w.crc = s.file, s.off, s.cap, s.zeroed, s.head, s.crc
}

// path returns the path of the last segment; wmu must be held.
func (w *writer) path() string { return w.dir.segment(w.seg) }

// fail makes the log reject all further writes.
func (w *writer) fail(step string, err error) error {
	w.failed = fmt.Errorf("%w: %s: %w", ErrFailed, step, err)
	w.dir.lg.Error("raft log failed", zap.String("path", w.dir.path), zap.String("step", step), zap.Error(err))
	return w.failed
}

// sync makes the tail durable. A failure is final: the kernel may have dropped
// the pages that it could not write, so a later successful sync would prove
// nothing.
func (w *writer) sync() error {
	if w.opts.NoSync {
		w.unsynced = false
		return nil
	}
	start := clock.Now()
	err := w.file.SyncData()
	took := clock.Since(start)
	metrics.DiskWALFsyncDurationSeconds.Observe(took.Seconds())
	if err != nil {
		return w.fail("sync "+w.path(), err)
	}
	if took > slowSync {
		w.dir.lg.Warn("slow fdatasync", zap.Duration("took", took), zap.Duration("expected-duration", slowSync))
	}
	w.unsynced = false
	return nil
}

package raftlog

import (
	"fmt"

	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/durable"
	"quorate/internal/ids"
)

// Compact drops the entries up to through, which must be covered by a mark,
// and removes the files that are no longer needed. Entries after through stay
// available, also after a restart.
func (l *Log) Compact(through ids.Index) error {
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
func (l *Log) forget(through ids.Index) (int, error) {
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
		path := l.dir.segment(l.segs[0])
		l.mu.RUnlock()
		if err := l.dir.fs.Remove(path); err != nil && !isNotExist(err) {
			return fmt.Errorf("raftlog: remove %s: %w", path, err)
		}
		l.mu.Lock()
		l.segs = l.segs[1:]
		l.mu.Unlock()
		if err := durable.SyncDir(l.dir.fs, l.dir.path); err != nil {
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
	if m.Index == 0 || m.Term == 0 || m.Index < ids.Index(l.hs.GetCommit()) {
		return fmt.Errorf("raftlog: reset to index %d, term %d: committed up to %d", m.Index, m.Term, l.hs.GetCommit())
	}
	m = m.clone()
	before, hs := l.hs, l.raised(m)
	var err error
	if len(l.segs) == 1 && l.w.off == l.w.head {
		// There is nothing to drop. Tools that write a log begin like this.
		if err = l.w.writeMark(m, hs); err == nil {
			err = l.w.sync()
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
	term, vote := ids.Term(l.hs.GetTerm()), l.hs.GetVote()
	if term < m.Term {
		term, vote = m.Term, 0
	}
	return hardState(term, vote, uint64(max(ids.Index(l.hs.GetCommit()), m.Index)))
}

// cutAt begins a segment that starts with the mark and is named after its
// index, where etcd looks for it: entries of older segments are then not read.
func (l *Log) cutAt(m SnapshotMark, hs *raftpb.HardState) error {
	data, err := appendMark(nil, m)
	if err != nil {
		return fmt.Errorf("raftlog: mark %d: %w", m.Index, err)
	}
	l.setHardState(hs) // the head carries it
	return l.w.cut(m.Index, func(b []byte, crc uint32) ([]byte, uint32) {
		return appendRecord(b, crc, TypeSnapshot, data)
	})
}

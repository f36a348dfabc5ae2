package raftlog

import (
	"fmt"

	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/ids"
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
		l.w.pending = true
		return nil
	}
	if next == nil && len(ents) == 0 && !(mustSync && l.w.pending) {
		if mustSync && l.w.unsynced {
			if err := l.w.sync(); err != nil {
				return err
			}
			return l.w.noteSynced()
		}
		return nil
	}
	slots, err := l.w.writeGroup(next, ents)
	if err != nil {
		return err
	}
	if mustSync {
		if err := l.w.sync(); err != nil {
			return err
		}
		if err := l.w.noteSynced(); err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if next != nil {
		l.hs = next
	}
	if len(ents) > 0 {
		l.table.truncate(ids.Index(ents[0].GetIndex()))
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
	first, last := ids.Index(ents[0].GetIndex()), l.table.last()
	switch {
	case first > last+1:
		return fmt.Errorf("raftlog: append entry %d after %d: gap", first, last)
	case first < l.table.first:
		return fmt.Errorf("raftlog: append entry %d: compacted up to %d", first, l.table.first-1)
	case first <= ids.Index(l.hs.GetCommit()):
		return fmt.Errorf("raftlog: append entry %d: committed up to %d", first, l.hs.GetCommit())
	}
	term := l.table.term(first - 1)
	for i, e := range ents {
		if ids.Index(e.GetIndex()) != first+ids.Index(i) {
			return fmt.Errorf("raftlog: append entry %d after %d", e.GetIndex(), first+ids.Index(i)-1)
		}
		if ids.Term(e.GetTerm()) < term || e.GetTerm() == 0 {
			return fmt.Errorf("raftlog: append entry %d of term %d after term %d", e.GetIndex(), e.GetTerm(), term)
		}
		if len(e.Data) > maxRecord-recordOverhead {
			return fmt.Errorf("raftlog: append entry %d: %d bytes are too many", e.GetIndex(), len(e.Data))
		}
		term = ids.Term(e.GetTerm())
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
		last = ids.Index(ents[n-1].GetIndex())
	}
	if hs.GetTerm() < l.hs.GetTerm() || hs.GetTerm() == 0 {
		return nil, fmt.Errorf("raftlog: append hard state of term %d after term %d", hs.GetTerm(), l.hs.GetTerm())
	}
	if ids.Index(hs.GetCommit()) > last {
		return nil, fmt.Errorf("raftlog: append hard state: commit %d is beyond the last entry %d", hs.GetCommit(), last)
	}
	next := hardState(ids.Term(hs.GetTerm()), hs.GetVote(), max(hs.GetCommit(), l.hs.GetCommit()))
	if sameHardState(next, l.hs) {
		return nil, nil
	}
	return next, nil
}

func sameHardState(a, b *raftpb.HardState) bool {
	return a.GetTerm() == b.GetTerm() && a.GetVote() == b.GetVote() && a.GetCommit() == b.GetCommit()
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
	if ids.Index(hs.GetCommit()) < m.Index {
		hs = hardState(ids.Term(hs.GetTerm()), hs.GetVote(), uint64(m.Index))
	}
	if err := l.w.writeMark(m, hs); err != nil {
		return err
	}
	if err := l.w.sync(); err != nil {
		return err
	}
	l.mu.Lock()
	l.mark, l.hs = m, hs
	if m.Alone {
		l.table.compact(m.Index)
	}
	l.mu.Unlock()
	return l.w.noteSynced()
}

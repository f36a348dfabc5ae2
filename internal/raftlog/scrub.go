package raftlog

import (
	"errors"

	"quorate/internal/scrub"
)

// Scrub reads every record of the log that is on disk, while the log is in use, verifies its
// checksum and its order, and reports damage to r. Records that are written meanwhile are left out.
func (l *Log) Scrub(r *scrub.Reader) error {
	l.wmu.Lock()
	tail, end := l.w.seg, l.w.off
	l.mu.RLock()
	segs := append([]segment(nil), l.segs...)
	l.mu.RUnlock()
	l.wmu.Unlock()
	fresh := func() *replay { return &replay{keep: DefaultCatchUpEntries, table: table{first: 1}} }
	p, damage := fresh(), r.Damage
	skipped := false // Compact has removed a file meanwhile
	for _, s := range segs {
		read := false
		err := r.File(l.dir.segment(s), func(f *scrub.File) (err error) {
			size := f.Size
			if s.seq == tail.seq {
				size = end
			}
			read = true
			p.begin(s)
			_, p.crc, err = scanSegment(f, f.Path, size, false, p.crc, p.record)
			return err
		})
		var damaged *CorruptError
		if errors.As(err, &damaged) {
			r.Files++
			r.Report(scrub.Damage{File: damaged.File, Offset: damaged.Offset, Err: damaged.Err})
			p, err = fresh(), nil // the next file begins with a checksum that is not known
		}
		if err != nil {
			return err
		}
		if !read {
			p, skipped = fresh(), true
		}
	}
	if r.Damage == damage && !skipped && len(segs) > 0 { // otherwise the beginning is not known
		if err := p.finish(); err != nil {
			r.Report(scrub.Damage{File: l.dir.segment(segs[len(segs)-1]), Offset: end, Err: err})
		}
	}
	return nil
}

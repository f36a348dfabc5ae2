package raftlog

import (
	"errors"
	"fmt"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// scan calls fn for every record of a log in order, with the name of its file and
// its offset there.
func scan(fs vfs.FS, dir string, fn func(r Record, file string, offset int64) error) error {
	segs, err := listSegments(fs, dir)
	if err != nil {
		return err
	}
	if len(segs) == 0 {
		return fmt.Errorf("raftlog: scan %s: %w", dir, ErrNotFound)
	}
	var crc uint32
	for i, s := range segs {
		if i > 0 && segs[i-1].seq+1 != s.seq {
			crc = 0
		}
		if crc, err = scanOne(fs, dir, s, i == len(segs)-1, crc, fn); err != nil {
			return err
		}
	}
	return nil
}

func scanOne(fs vfs.FS, dir string, s segment, last bool, crc uint32,
	fn func(r Record, file string, offset int64) error) (uint32, error) {
	path := fs.PathJoin(dir, s.name())
	f, err := fs.Open(path, vfs.SequentialReadsOption)
	if err != nil {
		return 0, fmt.Errorf("raftlog: open %s: %w", path, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("raftlog: stat %s: %w", path, err)
	}
	var stop error
	off, crc, err := scanSegment(f, path, st.Size(), last, crc, func(off int64, _ uint32, r Record) error {
		stop = fn(r, s.name(), off)
		return stop
	})
	switch {
	case stop != nil:
		return 0, stop
	case errors.Is(err, errTorn):
		return 0, fmt.Errorf("raftlog: %s at offset %d: %w", path, off, io.ErrUnexpectedEOF)
	}
	return crc, err
}

package datadir

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strings"

	"quorate/internal/engine"
	"quorate/internal/scrub"
)

// Scrub reads the small files and the received snapshots of a directory, while it is in use,
// verifies their checksums, and reports damage to r.
func (l Layout) Scrub(r *scrub.Reader) error {
	for _, path := range []string{l.Owner(), l.pointerFile()} {
		_, err := ReadNote(l.FS, path)
		var damaged *engine.CorruptionError
		switch {
		case errors.As(err, &damaged):
			r.Report(scrub.Damage{File: path, Offset: 0, Err: damaged.Err})
		case err != nil && !errors.Is(err, os.ErrNotExist):
			return err
		}
		if err == nil {
			r.Files++
		}
	}
	names, err := l.FS.List(l.Snap())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasSuffix(name, receivedSuffix) {
			continue
		}
		path := l.FS.PathJoin(l.Snap(), name)
		err := r.File(path, func(f *scrub.File) error {
			sum := crc32.New(castagnoli)
			if _, err := io.Copy(sum, io.NewSectionReader(f, 0, f.Size)); err != nil {
				return fmt.Errorf("scrub: read %s: %w", path, err)
			}
			if !strings.HasSuffix(path, fmt.Sprintf(".%08x%s", sum.Sum32(), receivedSuffix)) {
				r.Report(scrub.Damage{File: path, Offset: 0, Err: fmt.Errorf("its checksum is %08x now", sum.Sum32())})
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

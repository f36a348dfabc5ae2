package pebble

import (
	"strings"
	"sync"
	"time"

	"quorate/internal/clock"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// gatherBytes is the size of a write to a table. Pebble writes a table block by block, and
// a system call for each is most of what writing costs.
const gatherBytes = 64 << 10

var gatherBuffers = sync.Pool{New: func() any { return new([gatherBytes]byte) }}

// gatheredFile collects small writes. Pebble reads a table, or relies on it, only after a
// sync, before which everything is written; an error of the write is that of the sync or of
// a later write. Like any vfs.File it is used by one goroutine at a time while it is written.
type gatheredFile struct {
	vfs.File
	room  *[gatherBytes]byte // nil when closed
	n     int
	pace  *pacer
	since time.Time // see pacer.next
}

// gather returns f with collected writes if it is a table.
func gather(name string, pace *pacer, f vfs.File, err error) (vfs.File, error) {
	if err != nil || !strings.HasSuffix(name, ".sst") {
		return f, err
	}
	pace.writers.Add(1)
	return &gatheredFile{File: f, room: gatherBuffers.Get().(*[gatherBytes]byte), pace: pace, since: clock.Now()}, nil
}

func (f *gatheredFile) Write(b []byte) (int, error) {
	f.since = f.pace.next(f.since)
	if f.n+len(b) > gatherBytes {
		if err := f.flush(); err != nil {
			return 0, err
		}
	}
	if len(b) >= gatherBytes {
		return f.File.Write(b)
	}
	f.n += copy(f.room[f.n:], b)
	return len(b), nil
}

// flush writes what has been collected. After an error the rest stays.
func (f *gatheredFile) flush() error {
	if f.n == 0 {
		return nil
	}
	n, err := f.File.Write(f.room[:f.n])
	f.n = copy(f.room[:], f.room[n:f.n])
	return err
}

func (f *gatheredFile) Sync() error {
	if err := f.flush(); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *gatheredFile) SyncData() error {
	if err := f.flush(); err != nil {
		return err
	}
	return f.File.SyncData()
}

func (f *gatheredFile) SyncTo(length int64) (bool, error) {
	if err := f.flush(); err != nil {
		return false, err
	}
	return f.File.SyncTo(length)
}

func (f *gatheredFile) Stat() (vfs.FileInfo, error) {
	if err := f.flush(); err != nil {
		return nil, err
	}
	return f.File.Stat()
}

func (f *gatheredFile) Close() error {
	err := f.flush()
	if f.room != nil {
		gatherBuffers.Put(f.room)
		f.pace.writers.Add(-1)
		f.room, f.n = nil, 0
	}
	if cerr := f.File.Close(); err == nil {
		err = cerr
	}
	return err
}

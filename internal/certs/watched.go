package certs

import (
	"crypto/sha256"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

const (
	// recheck is how long files are assumed unchanged after a check. A check costs one
	// system call for each file; a handshake costs a hundred times as much.
	recheck = 100 * time.Millisecond
	// settled is the age from which a modification time is trusted: a younger one may hide
	// a second change, so the content is compared.
	settled = 2 * time.Second
	// repeatLog is the interval at which a file that stays broken is logged again.
	repeatLog = time.Minute
	// maxFileBytes bounds the bytes read from a file; no certificate is as long.
	maxFileBytes = 16 << 20
)

// file is a file and the flag, without prefix, that sets it.
type file struct{ flag, path string }

// watched is the value parsed from some files, which are read again when one of them
// changes. The last good value stays in use until there is a new one.
//
// Readers load state without a lock. One of them at a time checks the files and the others
// do not wait for it, so a hanging file system delays one handshake.
type watched[T any] struct {
	files []file
	parse func(content [][]byte) (T, error)
	check func(T) string // fields to log about a new value; nil logs nothing
	lg    *zap.Logger
	now   func() time.Time
	flags FlagNames

	state atomic.Pointer[outcome[T]] // nil before the first check
	next  atomic.Int64               // Unix nanoseconds of the next check

	mu     sync.Mutex // held by the goroutine that checks; guards the fields below
	stamps []stamp    // taken before the last read; nil if that failed
	readAt time.Time
	sum    [sha256.Size]byte // of the last content read
	said   string            // the last failure logged
	saidAt time.Time
}

type outcome[T any] struct {
	value T
	err   error // no value has been read yet
}

// stamp changes whenever the file does.
type stamp struct {
	modified time.Time
	size     int64
	info     os.FileInfo // for os.SameFile
}

func (a stamp) equal(b stamp) bool {
	return a.modified.Equal(b.modified) && a.size == b.size && os.SameFile(a.info, b.info)
}

func watch[T any](s *Store, parse func([][]byte) (T, error), files ...file) *watched[T] {
	return &watched[T]{files: files, parse: parse, lg: s.o.Logger, now: s.o.Now, flags: s.o.Flags}
}

// get returns the current value. It fails only if none has been read yet.
func (w *watched[T]) get() (T, error) {
	now := w.now()
	if w.state.Load() == nil {
		w.mu.Lock() // no value to continue with
		if w.state.Load() == nil {
			w.look(now)
		}
		w.mu.Unlock()
	} else if now.UnixNano() >= w.next.Load() && w.mu.TryLock() {
		w.look(now)
		w.mu.Unlock()
	}
	s := w.state.Load()
	return s.value, s.err
}

// look reads the files again if they have changed. w.mu must be held.
func (w *watched[T]) look(now time.Time) {
	w.next.Store(now.Add(recheck).UnixNano())
	stamps, err := w.stat()
	if err == nil && w.state.Load() != nil && w.unchanged(stamps) {
		return
	}
	var content [][]byte
	if err == nil {
		content, err = w.read()
	}
	if err != nil {
		w.stamps = nil
		w.fail(now, err)
		return
	}
	w.stamps, w.readAt = stamps, now
	sum := sumOf(content)
	if sum == w.sum {
		w.said = "" // a file that was gone is back
		return
	}
	value, err := w.parse(content)
	if err != nil {
		w.sum = [sha256.Size]byte{} // so that a new failure is logged
		w.fail(now, w.named(err))
		return
	}
	if w.state.Load() != nil {
		w.lg.Info("reloaded changed TLS files", zap.Strings("files", w.paths()))
	}
	if w.check != nil {
		if text := w.check(value); text != "" {
			w.lg.Warn(text, zap.Strings("files", w.paths()), zap.String("flag", w.flags.name(w.files[0].flag)))
		}
	}
	w.sum, w.said = sum, ""
	w.state.Store(&outcome[T]{value: value})
}

func (w *watched[T]) unchanged(stamps []stamp) bool {
	if w.stamps == nil || w.state.Load().err != nil || w.said != "" || !slices.EqualFunc(stamps, w.stamps, stamp.equal) {
		return false
	}
	for _, st := range stamps {
		if w.readAt.Sub(st.modified) < settled {
			return false
		}
	}
	return true
}

func (w *watched[T]) stat() ([]stamp, error) {
	stamps := make([]stamp, len(w.files))
	for i, f := range w.files {
		info, err := os.Stat(f.path)
		if err != nil {
			// As if os had failed to open it; so does the error of a read.
			return nil, w.at(f, fmt.Errorf("open %s: %w", f.path, unwrapPath(err)))
		}
		if info.Size() > maxFileBytes {
			return nil, w.named(fmt.Errorf("%d bytes, more than %d", info.Size(), maxFileBytes))
		}
		stamps[i] = stamp{info.ModTime(), info.Size(), info}
	}
	return stamps, nil
}

func unwrapPath(err error) error {
	if pe, ok := err.(*os.PathError); ok {
		return pe.Err
	}
	return err
}

func (w *watched[T]) read() ([][]byte, error) {
	content := make([][]byte, len(w.files))
	for i, f := range w.files {
		b, err := os.ReadFile(f.path)
		if err != nil {
			return nil, w.at(f, err)
		}
		content[i] = b
	}
	return content, nil
}

func sumOf(content [][]byte) [sha256.Size]byte {
	h := sha256.New()
	for _, b := range content {
		fmt.Fprintf(h, "%d:", len(b))
		h.Write(b)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// at prefixes an error that names its file with the flag of f.
func (w *watched[T]) at(f file, err error) error {
	return fmt.Errorf("%s: %w", w.flags.name(f.flag), err)
}

// named prefixes an error that does not name its file with the flags and files.
func (w *watched[T]) named(err error) error {
	var b strings.Builder
	for i, f := range w.files {
		if i > 0 {
			b.WriteString(" ")
		}
		fmt.Fprintf(&b, "%s=%s", w.flags.name(f.flag), f.path)
	}
	return fmt.Errorf("%s: %w", b.String(), err)
}

func (w *watched[T]) paths() []string {
	paths := make([]string, len(w.files))
	for i, f := range w.files {
		paths[i] = f.path
	}
	return paths
}

// fail keeps the current value, if any, and logs the failure, but not at every handshake.
// The very first failure is reported by the caller of Open.
func (w *watched[T]) fail(now time.Time, err error) {
	before := w.state.Load()
	text := "cannot use changed TLS files; the previous ones stay in use"
	if before == nil || before.err != nil {
		text = textUnusable
		w.state.Store(&outcome[T]{err: err})
	}
	if before == nil || err.Error() == w.said && now.Sub(w.saidAt) < repeatLog {
		return
	}
	w.said, w.saidAt = err.Error(), now
	w.lg.Error(text, zap.Strings("files", w.paths()), zap.Error(err))
}

const textUnusable = "cannot use TLS files; connections that depend on them are rejected"

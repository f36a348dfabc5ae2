// Package datadir defines the layout of --data-dir. It converts a directory of etcd
// into one of Quorate and back, and a backup into a new directory.
//
// In: directories and files of Quorate or of etcd, which no other process writes.
// Out: the same state in the other format: every pair of every bucket, the log, the
// ids of member and cluster. Always true: the old format stays complete until the new
// one is complete and durable, and is then moved aside, not deleted. A change of
// several steps is first recorded in the file STORE, so that after a crash at any
// point the same call finishes it or starts over. Damaged files, and files of an
// unknown release, are refused by name before anything is changed. Memory is bounded
// by the largest value and the positions of the log's entries, independent of the
// size of the store.
package datadir

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"quorate/internal/durable"
	"quorate/internal/ids"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Layout names the files of one member.
type Layout struct {
	FS      vfs.FS
	DataDir string
	WALDir  string // empty: below DataDir
}

// Member returns the directory that holds everything except, possibly, the log.
func (l Layout) Member() string { return l.FS.PathJoin(l.DataDir, "member") }

// Snap returns the directory in which etcd has its store, and in which snapshots are
// received.
func (l Layout) Snap() string { return l.FS.PathJoin(l.Member(), "snap") }

// DB returns the file of etcd's store.
func (l Layout) DB() string { return l.FS.PathJoin(l.Snap(), "db") }

// WAL returns the directory of the log.
func (l Layout) WAL() string {
	if l.WALDir != "" {
		return l.WALDir
	}
	return l.FS.PathJoin(l.Member(), "wal")
}

// Owner returns the file that names the member and cluster of the directory.
func (l Layout) Owner() string { return l.FS.PathJoin(l.Member(), "OWNER") }

func (l Layout) firstStore() string  { return l.FS.PathJoin(l.Member(), "store") }
func (l Layout) pointerFile() string { return l.FS.PathJoin(l.Member(), "STORE") }

// NewStore returns the directory for a store that holds the state at index and is
// built next to the one in use.
func (l Layout) NewStore(index ids.Index) string {
	return l.FS.PathJoin(l.Member(), fmt.Sprintf("%s%016x", StorePrefix, index))
}

// StorePrefix begins the names of stores that were built next to another.
const StorePrefix = "store-"

// pointer is the content of the file STORE: which store is in use, and which task is
// in progress. The first installed snapshot or the first migration creates the file;
// without it the store is in store/.
type pointer struct {
	store string // name below member/
	task  task
	name  string // below member/: where the task moves the files that it replaces
}

// task is a migration that has passed the point of no return and must be finished.
type task string

const (
	none task = ""
	// putAside: the store was imported from etcd; etcd's files are moved aside.
	putAside task = "put-aside"
	// leave: etcd's files are complete; the store is moved aside.
	leave task = "leave-to-etcd"
	// left: etcd's files lie next to the store, and either program may start next. The
	// name is a fingerprint of the database as long as etcd has not opened it.
	left task = "left-for-etcd"
)

// readPointer is called first by every operation on a directory, so it refuses an
// unknown format.
func (l Layout) readPointer() (pointer, error) {
	if err := l.CheckFormat(); err != nil {
		return pointer{}, err
	}
	b, err := ReadNote(l.FS, l.pointerFile())
	if errors.Is(err, os.ErrNotExist) {
		return pointer{store: "store"}, nil
	}
	if err != nil {
		return pointer{}, err
	}
	words := strings.Fields(b)
	if len(words) != 1 && len(words) != 3 {
		return pointer{}, fmt.Errorf("%s does not name a directory: %q", l.pointerFile(), b)
	}
	p := pointer{store: words[0]}
	if len(words) == 3 {
		p.task, p.name = task(words[1]), words[2]
		if p.task != putAside && p.task != leave && p.task != left {
			return pointer{}, fmt.Errorf("%s names work that this version does not know: %q", l.pointerFile(), words[1])
		}
	}
	for _, name := range []string{p.store, p.name} {
		if strings.ContainsAny(name, `/\`) || name == "." || name == ".." {
			return pointer{}, fmt.Errorf("%s does not name a directory: %q", l.pointerFile(), b)
		}
	}
	return p, nil
}

func (l Layout) writePointer(p pointer) error {
	text := p.store + "\n"
	if p.task != none {
		text += string(p.task) + " " + p.name + "\n"
	}
	return WriteNote(l.FS, l.pointerFile(), text)
}

// Store returns the directory of the store in use, whether or not it exists.
func (l Layout) Store() (string, error) {
	p, err := l.readPointer()
	if err != nil {
		return "", err
	}
	return l.FS.PathJoin(l.Member(), p.store), nil
}

// Use makes dir, a complete store below Member, the store in use, durably.
func (l Layout) Use(dir string) error {
	return l.writePointer(pointer{store: l.FS.PathBase(dir)})
}

// Kind says whose files a directory holds.
type Kind int

// The kinds of directories.
const (
	Empty  Kind = iota // neither store
	Ours               // a store of ours
	Etcds              // a store of etcd
	Moving             // a migration was interrupted after its point of no return
	Both               // both stores, and nothing tells which one is current
)

// Kind determines which program's store the directory holds.
func (l Layout) Kind() (Kind, error) {
	if err := l.errRestoring(); err != nil {
		return Empty, err
	}
	p, err := l.readPointer()
	if err != nil {
		return Empty, err
	}
	ours, err := exists(l.FS, l.FS.PathJoin(l.Member(), p.store))
	if err != nil {
		return Empty, err
	}
	etcds, err := l.hasDB()
	switch {
	case err != nil:
		return Empty, err
	case p.task == left && etcds:
		return Etcds, nil // Begin decides
	case p.task != none && p.task != left:
		return Moving, nil
	case ours && etcds:
		return Both, nil
	case ours:
		return Ours, nil
	case etcds:
		return Etcds, nil
	}
	return Empty, nil
}

func exists(fs vfs.FS, path string) (bool, error) {
	_, err := fs.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (l Layout) errBoth() error {
	return fmt.Errorf("--data-dir %s holds two stores, one of etcd (%s) and one of this program, and nothing tells which of them is current: "+
		"move the one that is not in use out of %s", l.DataDir, l.DB(), l.Member())
}

// errUndecided is errBoth for callers that do not try to decide.
func (l Layout) errUndecided() error {
	return fmt.Errorf("%w, or start the server on it, which goes on with its own store if the raft log follows that", l.errBoth())
}

func (l Layout) errLeaving() error {
	return fmt.Errorf("--data-dir %s is being handed over to etcd: run 'etcdutl migrate --to-etcd --data-dir %s' again, which finishes it", l.DataDir, l.DataDir)
}

// freeName returns base, or base with a numeric suffix, such that no file below
// Member has that name.
func (l Layout) freeName(base string) (string, error) {
	name := base
	for i := 1; ; i++ {
		there, err := exists(l.FS, l.FS.PathJoin(l.Member(), name))
		if err != nil || !there {
			return name, err
		}
		name = fmt.Sprintf("%s.%d", base, i)
	}
}

func readSmall(fs vfs.FS, path string) (string, error) {
	f, err := fs.Open(path)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 1024))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return string(b), nil
}

// renameIfThere is durable.Rename for a step that may already have run before a crash.
func renameIfThere(fs vfs.FS, from, to string) error {
	there, err := exists(fs, from)
	if err != nil || !there {
		return err
	}
	return durable.Rename(fs, from, to)
}

// removeMatching removes the files and directories in dir whose names match.
func removeMatching(fs vfs.FS, dir string, match func(name string) bool) error {
	names, err := fs.List(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if match(name) {
			if err := fs.RemoveAll(fs.PathJoin(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// Package boltdb changes a database of etcd in place, for tools. All that the server
// reads or writes of such a database goes through package snapshot.
//
// In: the path of a database that no server uses. Out: the same database with another
// storage version or other members, or a copy of it. Always true: bbolt keeps its file
// consistent whenever the process exits; a copy is complete and durable when its name
// appears; a panic of bbolt becomes an error that names the file.
package boltdb

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"quorate/internal/durable"
	"quorate/internal/ids"
	"quorate/internal/membership"
)

// ErrInUse is wrapped by errors about a database that another process has open.
var ErrInUse = errors.New("in use by another process")

// Names in the database, as in etcd.
var (
	meta            = []byte("meta")
	consistentIndex = []byte("consistent_index")
	term            = []byte("term")
	storageVersion  = []byte("storageVersion")
	members         = []byte("members")
	membersRemoved  = []byte("members_removed")
	cluster         = []byte("cluster")
)

// compactBytes bounds the transactions of Defrag.
const compactBytes = 4 << 20

// DB is an open database.
type DB struct {
	db   *bolt.DB
	path string
}

// Open opens a database. It waits up to wait, or without limit if wait is 0, for
// another process to release it.
func Open(path string, wait time.Duration) (*DB, error) {
	if _, err := os.Stat(path); err != nil { // bbolt would create one
		return nil, err
	}
	return open(path, &bolt.Options{Timeout: wait, FreelistType: bolt.FreelistMapType})
}

// Create creates an empty database at a path that must not exist.
func Create(path string) (*DB, error) {
	return open(path, &bolt.Options{OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
		return os.OpenFile(name, flag|os.O_EXCL, mode)
	}})
}

func open(path string, o *bolt.Options) (d *DB, err error) {
	defer caught(path, &err)
	db, err := bolt.Open(path, 0o600, o)
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, fmt.Errorf("lock %s: %w", path, ErrInUse)
	case err != nil:
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return &DB{db, path}, nil
}

// Close releases the database.
func (d *DB) Close() error { return d.db.Close() }

// caught turns a panic of bbolt, about damaged pages, into an error.
func caught(path string, err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("%s: %v", path, p)
	}
}

// StorageVersion returns the storage version, "" if the database has none, and the
// term of its newest entry, 0 if the database has none.
func (d *DB) StorageVersion() (version string, newest ids.Term, err error) {
	defer caught(d.path, &err)
	err = d.db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket(meta)
		if b == nil {
			return nil
		}
		version = string(b.Get(storageVersion))
		if v := b.Get(term); len(v) == 8 {
			newest = ids.Term(binary.BigEndian.Uint64(v))
		}
		return nil
	})
	return version, newest, err
}

// SetStorageVersion writes the storage version; "" removes it.
func (d *DB) SetStorageVersion(version string) error {
	return d.update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(meta)
		if err != nil {
			return err
		}
		if version == "" {
			return b.Delete(storageVersion)
		}
		return b.Put(storageVersion, []byte(version))
	})
}

// SetPosition writes the index and term of the newest applied entry.
func (d *DB) SetPosition(index ids.Index, t ids.Term) error {
	return d.update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(meta)
		if err != nil {
			return err
		}
		return errors.Join(b.Put(consistentIndex, binary.BigEndian.AppendUint64(nil, uint64(index))), b.Put(term, binary.BigEndian.AppendUint64(nil, uint64(t))))
	})
}

// ReplaceMembers replaces the members by list, and removes the removed members and the
// cluster version.
func (d *DB) ReplaceMembers(list []membership.Member) error {
	return d.update(func(tx *bolt.Tx) error {
		for _, name := range [][]byte{members, membersRemoved, cluster} {
			if err := tx.DeleteBucket(name); err != nil && !errors.Is(err, berrors.ErrBucketNotFound) {
				return err
			}
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		for _, m := range list {
			v, err := json.Marshal(m)
			if err != nil {
				return err
			}
			if err := tx.Bucket(members).Put([]byte(m.ID.String()), v); err != nil {
				return err
			}
		}
		return nil
	})
}

func (d *DB) update(f func(tx *bolt.Tx) error) (err error) {
	defer caught(d.path, &err)
	if err := d.db.Update(f); err != nil {
		return fmt.Errorf("write %s: %w", d.path, err)
	}
	return nil
}

// Copy writes the database at from, which is only read, to a new file. It waits like
// Open.
func Copy(from, to string, wait time.Duration) (err error) {
	defer caught(from, &err)
	if _, err := os.Stat(from); err != nil {
		return err
	}
	src, err := open(from, &bolt.Options{ReadOnly: true, Timeout: wait})
	if err != nil {
		return err
	}
	defer src.Close()
	return replace(to, func(f *durable.File) error {
		return src.db.View(func(tx *bolt.Tx) error {
			_, err := tx.WriteTo(f)
			return err
		})
	})
}

// Sizes of a database: of its file, and of the used part of it.
type Sizes struct{ Total, InUse int64 }

func (d *DB) sizes() (s Sizes, err error) {
	defer caught(d.path, &err)
	err = d.db.View(func(tx *bolt.Tx) error {
		s.Total = tx.Size()
		s.InUse = s.Total - int64(d.db.Stats().FreePageN)*int64(d.db.Info().PageSize)
		return nil
	})
	return s, err
}

// Defrag rewrites the database without its free pages and replaces it. It returns the
// sizes before and after; it calls begin with the former first.
func Defrag(path string, wait time.Duration, begin func(before Sizes)) (before, after Sizes, err error) {
	defer caught(path, &err)
	d, err := Open(path, wait)
	if err != nil {
		return before, after, err
	}
	defer d.Close() // holds its lock, on the old file, until the new one is in place
	if before, err = d.sizes(); err != nil {
		return before, after, err
	}
	begin(before)
	err = replace(path, func(f *durable.File) error {
		dst, err := bolt.Open(f.Name(), 0o600, &bolt.Options{NoSync: true, NoFreelistSync: true})
		if err != nil {
			return err
		}
		if err := bolt.Compact(dst, d.db, compactBytes); err != nil {
			return errors.Join(err, dst.Close())
		}
		n := &DB{dst, path}
		after, err = n.sizes()
		return errors.Join(err, dst.Close())
	})
	return before, after, err
}

// replace writes a file under a temporary name, which etcd and this program remove at
// startup, and renames it to path when it is complete and durable.
func replace(path string, write func(f *durable.File) error) error {
	f, err := durable.Create(durable.OS, filepath.Join(filepath.Dir(path), fmt.Sprintf("db.tmp.%d", os.Getpid())))
	if err != nil {
		return err
	}
	if err = write(f); err == nil {
		err = f.Commit(path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, errors.Join(err, f.Discard()))
	}
	return nil
}

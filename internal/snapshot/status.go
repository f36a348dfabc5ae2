package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"hash/crc32"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/engine"
	"quorate/internal/ids"
)

// Status is what `etcdutl snapshot status` prints about a database. The order and
// names of the fields are those of its JSON.
type Status struct {
	Hash      uint32       `json:"hash"`      // CRC-32C over names and pairs of all buckets
	Revision  ids.Revision `json:"revision"`  // main revision of the newest record
	TotalKey  int          `json:"totalKey"`  // live keys
	TotalSize int64        `json:"totalSize"` // bytes
	Version   string       `json:"version"`   // storage version; empty before etcd 3.6
}

// FileStatus reads the whole database at path, with all buckets, and checks its
// structure. Bytes after the database, such as the checksum of a backup, are ignored.
func FileStatus(ctx context.Context, path string, o Options) (Status, error) {
	r, err := openDB(ctx, path, o.withDefaults())
	if err != nil {
		return Status{}, err
	}
	defer r.f.Close()
	c := newCensus()
	err = r.buckets(func(string) bool { return true }, c.bucket, func(name string, key, value []byte) error {
		if err := c.pair(name, key, value); err != nil {
			return &CorruptError{File: path, Err: fmt.Errorf("bucket %s: %w", name, err)}
		}
		return nil
	})
	if err != nil {
		return Status{}, err
	}
	return c.status(int64(r.pages) * r.pageSize), nil
}

// StoreStatus is FileStatus for an engine that takes size bytes on disk.
func StoreStatus(ctx context.Context, r engine.Reader, size int64) (Status, error) {
	c := newCensus()
	for b := engine.Alarm; b <= engine.Meta; b++ {
		if err := c.bucket(b.String()); err != nil {
			return Status{}, err
		}
		if err := c.all(ctx, r, b); err != nil {
			return Status{}, fmt.Errorf("bucket %v: %w", b, err)
		}
	}
	s := c.status(size)
	var err error
	s.Version, err = StorageVersion(r)
	return s, err
}

// StorageVersion returns the storage version that a database written from r would
// have, such as "3.7.0"; empty if it would have none.
func StorageVersion(r engine.Reader) (string, error) {
	cluster := ""
	if v, err := r.Get(nil, engine.Cluster.K([]byte("clusterVersion"))); err == nil {
		cluster = string(v)
	}
	v, err := storageVersion(r, cluster)
	return string(v), err
}

// census counts and hashes pairs. It remembers live keys by a digest, so that a key
// costs 16 bytes independent of its length.
type census struct {
	sum     hash.Hash32
	live    map[[16]byte]struct{}
	rev     ids.Revision
	version string
}

func newCensus() *census {
	return &census{sum: crc32.New(castagnoli), live: map[[16]byte]struct{}{}}
}

func (c *census) bucket(name string) error {
	_, err := c.sum.Write([]byte(name))
	return err
}

func (c *census) pair(bucket string, key, value []byte) error {
	c.sum.Write(key)
	c.sum.Write(value)
	switch bucket {
	case engine.Key.String():
		var kv mvccpb.KeyValue
		if err := proto.Unmarshal(value, &kv); err != nil {
			return fmt.Errorf("cannot unmarshal value, key: %q value: %q err: %w", key, value, err)
		}
		digest := sha256.Sum256(kv.Key)
		c.rev = ids.Revision(binary.BigEndian.Uint64(key))
		if len(key) == 18 {
			delete(c.live, [16]byte(digest[:16]))
		} else {
			c.live[[16]byte(digest[:16])] = struct{}{}
		}
	case engine.Meta.String():
		if string(key) == storageVersionKey {
			c.version = string(value)
		}
	}
	return nil
}

func (c *census) all(ctx context.Context, r engine.Reader, b engine.Bucket) error {
	lower, upper := b.Bounds()
	it, err := r.NewIter(lower, upper)
	if err != nil {
		return err
	}
	defer it.Close()
	n := 0
	for ok := it.First(); ok; ok = it.Next() {
		if n++; n%1024 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		value, err := it.Value()
		if err != nil {
			return err
		}
		key := it.Key()[1:]
		if b == engine.Key && !revisionKey(key) {
			return fmt.Errorf("%x is not a revision", key)
		}
		if err := c.pair(b.String(), key, value); err != nil {
			return err
		}
	}
	return it.Error()
}

func (c *census) status(size int64) Status {
	return Status{Hash: c.sum.Sum32(), Revision: c.rev, TotalKey: len(c.live), TotalSize: size, Version: c.version}
}

package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/encoding/protowire"
)

// typeEntry is the kind of log records that hold an entry.
const typeEntry = 2

// wal cuts the segments of a log.
func (c *corpus) wal(dir, version string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.wal"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("no log in %s: %v", dir, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		c.add("raftlog", "FuzzDecodeRecord", "segment-"+version, first(b), uint32(0))
		c.add("raftlog", "FuzzInspect", "segment-"+version, first(b), uint16(0), byte(0))
		c.add("raftlog", "FuzzInspect", "damaged-"+version, first(b), uint16(100), byte(1))
		for len(b) > 8 {
			head := binary.LittleEndian.Uint64(b)
			length, pad := int(head&(1<<56-1)), 0
			if head>>63 == 1 {
				pad = int(head >> 56 & 7)
			}
			if length == 0 || length+pad > len(b)-8 {
				break // the space behind the last record
			}
			c.logRecord(b[8:8+length], version)
			b = b[8+length+pad:]
		}
	}
	return nil
}

// logRecord keeps what an entry carries: a request, or a change of the membership.
func (c *corpus) logRecord(b []byte, version string) {
	if number(b, 1) != typeEntry {
		return
	}
	entry := field(b, 3)
	data := field(entry, 4)
	switch {
	case len(data) == 0:
	case number(entry, 1) == 0: // EntryNormal
		kind := version
		for num := protowire.Number(3); num < 2000; num++ { // the request inside, by the number of its field
			if field(data, num) != nil {
				kind = fmt.Sprintf("%s-field-%d", version, num)
				break
			}
		}
		c.add("command", "FuzzDecode", kind, data)
		c.add("apply", "FuzzEntries", kind, uint64(1), data)
		c.add("apply", "FuzzV2Entry", kind, data)
		c.add("legacy/v2request", "FuzzDecode", kind, data)
	case number(entry, 1) == 1: // EntryConfChange
		c.add("membership", "FuzzChange", fmt.Sprintf("%s-type-%d", version, number(data, 2)), int32(number(data, 2)), number(data, 3), field(data, 4))
	}
}

// field returns the bytes of a field of a message, nil if it has none.
func field(b []byte, want protowire.Number) (found []byte) {
	each(b, func(num protowire.Number, v []byte, _ uint64) {
		if num == want && v != nil {
			found = v
		}
	})
	return found
}

// number returns the number in a field of a message.
func number(b []byte, want protowire.Number) (found uint64) {
	each(b, func(num protowire.Number, v []byte, n uint64) {
		if num == want && v == nil {
			found = n
		}
	})
	return found
}

func each(b []byte, f func(num protowire.Number, v []byte, n uint64)) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return
		}
		b = b[n:]
		switch typ {
		case protowire.BytesType:
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return
			}
			f(num, v, 0)
			b = b[n:]
		case protowire.VarintType:
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return
			}
			f(num, nil, v)
			b = b[n:]
		default:
			n := protowire.ConsumeFieldValue(num, typ, b)
			if n < 0 {
				return
			}
			b = b[n:]
		}
	}
}

// snap keeps the .snap files of a member, and the tree of the v2 API in them.
func (c *corpus) snap(dir, version string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.snap"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("no snapshot in %s: %v", dir, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		c.add("snapshot", "FuzzDecodeSnap", "file-"+version, b)
		if tree := field(field(b, 2), 1); len(tree) > 0 {
			c.add("legacy/v2store", "FuzzRestore", "tree-"+version, tree)
		}
	}
	return nil
}

// database cuts a database into its records.
func (c *corpus) database(file, version string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	c.add("snapshot", "FuzzReadDatabase", "file-"+version, b, uint16(0), byte(0))
	db, err := bolt.Open(file, 0o600, &bolt.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer db.Close()
	return db.View(func(tx *bolt.Tx) error {
		records := func(bucket string, f func(k, v []byte)) {
			if b := tx.Bucket([]byte(bucket)); b != nil {
				_ = b.ForEach(func(k, v []byte) error { f(k, v); return nil })
			}
		}
		records("key", func(k, v []byte) {
			tombstone := len(k) > 17
			c.add("mvcc", "FuzzParseRecord", fmt.Sprintf("%s-deleted-%v", version, tombstone), v)
			c.add("mvcc", "FuzzParseRevision", fmt.Sprintf("%s-deleted-%v", version, tombstone), k)
			c.add("watch", "FuzzDecodeEvent", fmt.Sprintf("%s-deleted-%v", version, tombstone), v, int64(binary.BigEndian.Uint64(k)), tombstone)
		})
		records("lease", func(k, v []byte) { c.add("lease", "FuzzDecodeRecord", version, k, v) })
		var user, role, name, roleName, revision []byte
		records("authUsers", func(k, v []byte) { name, user = k, v })
		records("authRoles", func(k, v []byte) { roleName, role = k, v })
		records("auth", func(k, v []byte) {
			if string(k) == "authRevision" {
				revision = v
			}
		})
		if user != nil {
			c.add("auth", "FuzzLoad", version, string(name), user, string(roleName), role, revision)
		}
		var clusterVersion, downgrade []byte
		records("cluster", func(k, v []byte) {
			if string(k) == "clusterVersion" {
				clusterVersion = v
			} else {
				downgrade = v
			}
		})
		records("members", func(k, v []byte) { c.add("membership", "FuzzLoad", version, string(k), v, clusterVersion, downgrade) })
		return nil
	})
}

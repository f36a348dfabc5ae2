package snapshot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"quorate/internal/durable"
	"quorate/internal/ids"
	"quorate/internal/metrics"
)

const (
	snapSuffix = ".snap"
	dbSuffix   = ".snap.db"
)

// DBName returns the file name that etcd gives to a database received from a peer
// until it is installed.
func DBName(index ids.Index) string { return fmt.Sprintf("%016x%s", index, dbSuffix) }

// IsTemp reports whether this is the name of a temporary file of this package. While
// no write is in progress, such a file was left by a crash.
func IsTemp(name string) bool { return strings.HasPrefix(name, "tmp") }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// SnapName returns the name of the .snap file of a snapshot: term, then index.
func SnapName(term ids.Term, index ids.Index) string {
	return fmt.Sprintf("%016x-%016x%s", term, index, snapSuffix)
}

// ParseSnapName is the inverse of SnapName. It accepts no other names.
func ParseSnapName(name string) (term ids.Term, index ids.Index, ok bool) {
	base, ok := strings.CutSuffix(name, snapSuffix)
	if !ok || len(base) != 33 || base[16] != '-' {
		return 0, 0, false
	}
	t, err1 := strconv.ParseUint(base[:16], 16, 64)
	i, err2 := strconv.ParseUint(base[17:], 16, 64)
	return ids.Term(t), ids.Index(i), err1 == nil && err2 == nil
}

// EncodeSnap returns the content of a .snap file.
func EncodeSnap(s *raftpb.Snapshot) ([]byte, error) {
	data, err := proto.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("snapshot: encode raft snapshot: %w", err)
	}
	b := make([]byte, 0, len(data)+16)
	b = append(b, 0x08)
	b = binary.AppendUvarint(b, uint64(crc32.Checksum(data, castagnoli)))
	b = append(b, 0x12)
	b = binary.AppendUvarint(b, uint64(len(data)))
	return append(b, data...), nil
}

// DecodeSnap is the inverse of EncodeSnap; it verifies the checksum.
func DecodeSnap(b []byte) (*raftpb.Snapshot, error) {
	var crc uint64
	var data []byte
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, fmt.Errorf("decode: %w", protowire.ParseError(n))
		}
		b = b[n:]
		switch {
		case num == 1 && typ == protowire.VarintType:
			crc, n = protowire.ConsumeVarint(b)
		case num == 2 && typ == protowire.BytesType:
			data, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return nil, fmt.Errorf("decode: %w", protowire.ParseError(n))
		}
		b = b[n:]
	}
	if len(data) == 0 || crc == 0 {
		return nil, errors.New("empty snapshot")
	}
	if crc != uint64(crc32.Checksum(data, castagnoli)) {
		return nil, errors.New("checksum mismatch")
	}
	s := &raftpb.Snapshot{}
	if err := proto.Unmarshal(data, s); err != nil {
		return nil, fmt.Errorf("decode raft snapshot: %w", err)
	}
	return s, nil
}

// SaveSnap writes the .snap file of s into dir, atomically and durably. An empty
// snapshot (index 0) is not written.
func SaveSnap(dir string, s *raftpb.Snapshot, o Options) error {
	o = o.withDefaults()
	if s.GetMetadata().GetIndex() == 0 {
		return nil
	}
	b, err := EncodeSnap(s)
	if err != nil {
		return err
	}
	path := o.FS.PathJoin(dir, SnapName(ids.Term(s.GetMetadata().GetTerm()), ids.Index(s.GetMetadata().GetIndex())))
	return save(o.FS, path, func(f *durable.File) error {
		f.Synced = func(took time.Duration) { metrics.SnapFsyncDurationSeconds.Observe(took.Seconds()) }
		_, err := f.Write(b)
		return err
	})
}

// save writes a file atomically and durably, under a temporary name that IsTemp matches.
func save(fs vfs.FS, path string, write func(f *durable.File) error) error {
	f, err := durable.Create(fs, tmpPath(fs, fs.PathDir(path)))
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	if err = write(f); err == nil {
		err = f.Commit(path)
	}
	if err != nil {
		return fmt.Errorf("snapshot: write %s: %w", path, errors.Join(err, f.Discard()))
	}
	return nil
}

// LoadSnap reads a .snap file. It returns a *CorruptError if the bytes are damaged.
func LoadSnap(path string, o Options) (*raftpb.Snapshot, error) {
	o = o.withDefaults()
	f, err := o.FS.Open(path)
	if err != nil {
		return nil, fmt.Errorf("snapshot: open %s: %w", path, err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("snapshot: read %s: %w", path, err)
	}
	s, err := DecodeSnap(b)
	if err != nil {
		return nil, &CorruptError{File: path, Err: err}
	}
	return s, nil
}

// Snaps returns the names of the .snap files in dir, newest first.
func Snaps(dir string, o Options) ([]string, error) {
	o = o.withDefaults()
	names, err := o.FS.List(dir)
	if err != nil {
		return nil, fmt.Errorf("snapshot: list %s: %w", dir, err)
	}
	names = slices.DeleteFunc(names, func(n string) bool {
		_, _, ok := ParseSnapName(n)
		return !ok
	})
	slices.Sort(names)
	slices.Reverse(names)
	return names, nil
}

package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"quorate/internal/ids"
)

// RecordType is the kind of a record. It is stored, but no checksum covers it;
// so every decoder below is strict enough to reject the bytes of another type.
type RecordType uint64

// The record types of etcd's log.
const (
	TypeMetadata RecordType = 1 + iota // NodeID, ClusterID
	TypeEntry                          // raftpb.Entry
	TypeState                          // raftpb.HardState
	TypeCRC                            // running checksum at the head of a file, no data
	TypeSnapshot                       // index, term, ConfState of a snapshot
)

// String returns the name of the type.
func (t RecordType) String() string {
	switch t {
	case TypeMetadata:
		return "metadata"
	case TypeEntry:
		return "entry"
	case TypeState:
		return "state"
	case TypeCRC:
		return "crc"
	case TypeSnapshot:
		return "snapshot"
	}
	return fmt.Sprintf("type %d", uint64(t))
}

// Record is one record as stored. Data is nil when the field is absent.
type Record struct {
	Type RecordType
	CRC  uint32 // running CRC-32C after Data
	Data []byte
}

const (
	frameHeader = 8   // bytes of the length field
	sectorSize  = 512 // what a disk writes atomically
	// recordOverhead bounds what a frame adds to its data: length field, type,
	// checksum, tag and length of the data, padding.
	recordOverhead = frameHeader + 2 + 6 + 6 + 7
	// maxRecord bounds the data of one record; the data length must fit a slot.
	maxRecord = 1 << 31
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var (
	errChecksum = errors.New("checksum mismatch")
	errLength   = errors.New("malformed length field")
	errEncoding = errors.New("malformed record")
)

// openFrame reserves the length field; closeFrame fills it in and pads.
func openFrame(b []byte) []byte { return append(b, 0, 0, 0, 0, 0, 0, 0, 0) }

func closeFrame(b []byte, start int) []byte {
	n := len(b) - start - frameHeader
	length := uint64(n)
	if pad := -n & 7; pad != 0 {
		length |= uint64(0x80|pad) << 56
		b = append(b, "\x00\x00\x00\x00\x00\x00\x00"[:pad]...)
	}
	binary.LittleEndian.PutUint64(b[start:], length)
	return b
}

// splitLength splits a length field into the lengths of body and padding. ok
// is false for a value that no writer produces: frames are multiples of 8
// bytes, so a torn write cannot leave such a value either.
func splitLength(v uint64) (n, pad int64, ok bool) {
	n = int64(v &^ (0xff << 56))
	top := v >> 56
	switch {
	case top == 0:
	case top&^7 == 0x80 && top&7 != 0:
		pad = int64(top & 7)
	default:
		return 0, 0, false
	}
	return n, pad, (n+pad)%8 == 0
}

// appendRecord appends the frame of a record other than an entry and returns
// the running checksum after it.
func appendRecord(b []byte, crc uint32, t RecordType, data []byte) ([]byte, uint32) {
	start := len(b)
	b = openFrame(b)
	crc = crc32.Update(crc, castagnoli, data)
	b = append(b, 0x08, byte(t), 0x10)
	b = binary.AppendUvarint(b, uint64(crc))
	if data != nil {
		b = append(b, 0x1a)
		b = binary.AppendUvarint(b, uint64(len(data)))
		b = append(b, data...)
	}
	return closeFrame(b, start), crc
}

// appendEntryFrame appends the frame of an entry record. The entry's data is
// copied once, to its final position; the checksum covers head and data.
func appendEntryFrame(b []byte, crc uint32, e *raftpb.Entry) ([]byte, uint32) {
	var scratch [48]byte
	head := entryHead(scratch[:0], e)
	crc = crc32.Update(crc, castagnoli, head)
	crc = crc32.Update(crc, castagnoli, e.Data)

	start := len(b)
	b = openFrame(b)
	b = append(b, 0x08, byte(TypeEntry), 0x10)
	b = binary.AppendUvarint(b, uint64(crc))
	b = append(b, 0x1a)
	b = binary.AppendUvarint(b, uint64(len(head)+len(e.Data)))
	b = append(b, head...)
	b = append(b, e.Data...)
	return closeFrame(b, start), crc
}

// entryHead appends an encoded entry without the bytes of its data.
func entryHead(b []byte, e *raftpb.Entry) []byte {
	if e.Type != nil {
		b = append(b, 0x08)
		b = binary.AppendUvarint(b, uint64(int64(*e.Type)))
	}
	if e.Term != nil {
		b = append(b, 0x10)
		b = binary.AppendUvarint(b, *e.Term)
	}
	if e.Index != nil {
		b = append(b, 0x18)
		b = binary.AppendUvarint(b, *e.Index)
	}
	if e.Data != nil {
		b = append(b, 0x22)
		b = binary.AppendUvarint(b, uint64(len(e.Data)))
	}
	return b
}

// entrySize returns the encoded size of an entry in bytes.
func entrySize(e *raftpb.Entry) int {
	n := 0
	if e.Type != nil {
		n += 1 + uvarintSize(uint64(int64(*e.Type)))
	}
	if e.Term != nil {
		n += 1 + uvarintSize(*e.Term)
	}
	if e.Index != nil {
		n += 1 + uvarintSize(*e.Index)
	}
	if e.Data != nil {
		n += 1 + uvarintSize(uint64(len(e.Data))) + len(e.Data)
	}
	return n
}

func uvarintSize(v uint64) int { return (bits.Len64(v|1) + 6) / 7 }

// decodeRecord decodes the body of a frame without its padding. Data aliases b.
func decodeRecord(b []byte) (Record, error) {
	var r Record
	var seen [4]bool
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 || num > 3 || seen[num] {
			return Record{}, errEncoding
		}
		seen[num] = true
		b = b[n:]
		switch {
		case num < 3 && typ == protowire.VarintType:
			v, n := protowire.ConsumeVarint(b)
			if n < 0 || num == 2 && v > 1<<32-1 {
				return Record{}, errEncoding
			}
			b = b[n:]
			if num == 1 {
				r.Type = RecordType(v)
			} else {
				r.CRC = uint32(v)
			}
		case num == 3 && typ == protowire.BytesType:
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return Record{}, errEncoding
			}
			r.Data, b = v[:len(v):len(v)], b[n:]
		default:
			return Record{}, errEncoding
		}
	}
	if !seen[1] || r.Type < TypeMetadata || r.Type > TypeSnapshot {
		return Record{}, fmt.Errorf("%w: %v", errEncoding, r.Type)
	}
	if (r.Type == TypeCRC) != (r.Data == nil) {
		return Record{}, fmt.Errorf("%w: data does not fit %v", errEncoding, r.Type)
	}
	return r, nil
}

// fields decodes a message whose fields are varints, except at most one field of
// bytes, into arrays indexed by field number. Any other field is rejected: etcd
// has never added one to these messages, and we have only added markAlone, so it
// indicates another record type.
func fields(b []byte, nums *fieldNums, set *fieldSet, bytesField protowire.Number) (data []byte, err error) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 || num > 4 && (num != markAlone || bytesField != markConfState) || set[num] {
			return nil, errEncoding
		}
		set[num] = true
		b = b[n:]
		switch {
		case num == bytesField && typ == protowire.BytesType:
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return nil, errEncoding
			}
			data, b = v[:len(v):len(v)], b[n:]
		case num != bytesField && typ == protowire.VarintType:
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return nil, errEncoding
			}
			nums[num], b = v, b[n:]
		default:
			return nil, errEncoding
		}
	}
	return data, nil
}

// entryFields is a decoded entry before it is turned into a message.
type entryFields struct {
	typ     uint64
	term    ids.Term
	index   ids.Index
	hasType bool
	data    []byte // aliases the record
}

func decodeEntry(b []byte) (entryFields, error) {
	var nums fieldNums
	var set fieldSet
	data, err := fields(b, &nums, &set, 4)
	e := entryFields{typ: nums[1], term: ids.Term(nums[2]), index: ids.Index(nums[3]), hasType: set[1], data: data}
	if err == nil {
		err = checkEntry(e.typ, e.term, e.index, len(data))
	}
	return e, err
}

// checkEntry rejects an entry that could be mistaken for a record of
// another type.
func checkEntry(typ uint64, term ids.Term, index ids.Index, size int) error {
	switch {
	case index == 0 || term == 0:
		return fmt.Errorf("%w: entry without index or term", errEncoding)
	case typ > uint64(raftpb.EntryConfChangeV2):
		return fmt.Errorf("%w: entry type %d", errEncoding, typ)
	case typ == uint64(raftpb.EntryConfChange) && size == 0:
		return fmt.Errorf("%w: empty configuration change", errEncoding)
	}
	return nil
}

// CheckEntry rejects an entry that could be written but not read back.
func CheckEntry(e *raftpb.Entry) error {
	return checkEntry(uint64(int64(e.GetType())), ids.Term(e.GetTerm()), ids.Index(e.GetIndex()), len(e.Data))
}

func appendHardState(b []byte, hs *raftpb.HardState) []byte {
	b = append(b, 0x08)
	b = binary.AppendUvarint(b, hs.GetTerm())
	b = append(b, 0x10)
	b = binary.AppendUvarint(b, hs.GetVote())
	b = append(b, 0x18)
	return binary.AppendUvarint(b, hs.GetCommit())
}

func decodeHardState(b []byte) (*raftpb.HardState, error) {
	var nums fieldNums
	var set fieldSet
	_, err := fields(b, &nums, &set, 0)
	if err != nil {
		return nil, err
	}
	if nums[1] == 0 || !set[3] || set[4] {
		return nil, fmt.Errorf("%w: not a hard state", errEncoding)
	}
	return hardState(ids.Term(nums[1]), nums[2], nums[3]), nil
}

func hardState(term ids.Term, vote, commit uint64) *raftpb.HardState {
	return &raftpb.HardState{Term: new(uint64(term)), Vote: new(vote), Commit: new(commit)}
}

func appendMetadata(b []byte, md Metadata) []byte {
	b = append(b, 0x08)
	b = binary.AppendUvarint(b, uint64(md.NodeID))
	b = append(b, 0x10)
	return binary.AppendUvarint(b, uint64(md.ClusterID))
}

func decodeMetadata(b []byte) (Metadata, error) {
	var nums fieldNums
	var set fieldSet
	if _, err := fields(b, &nums, &set, 0); err != nil {
		return Metadata{}, err
	}
	if set[3] || set[4] {
		return Metadata{}, fmt.Errorf("%w: not the metadata", errEncoding)
	}
	return Metadata{NodeID: ids.Member(nums[1]), ClusterID: ids.Cluster(nums[2])}, nil
}

// Fields of a mark. markAlone is ours: etcd ignores it.
const (
	markConfState = 3
	markAlone     = 15
)

type (
	fieldNums [markAlone + 1]uint64
	fieldSet  [markAlone + 1]bool
)

func appendMark(b []byte, m SnapshotMark) ([]byte, error) {
	b = append(b, 0x08)
	b = binary.AppendUvarint(b, uint64(m.Index))
	b = append(b, 0x10)
	b = binary.AppendUvarint(b, uint64(m.Term))
	if m.Alone {
		b = append(b, markAlone<<3, 1)
	}
	if m.ConfState == nil {
		return b, nil
	}
	cs, err := proto.Marshal(m.ConfState)
	if err != nil {
		return nil, fmt.Errorf("encode conf state: %w", err)
	}
	b = append(b, 0x1a)
	b = binary.AppendUvarint(b, uint64(len(cs)))
	return append(b, cs...), nil
}

func decodeMark(b []byte) (SnapshotMark, error) {
	var nums fieldNums
	var set fieldSet
	data, err := fields(b, &nums, &set, markConfState)
	if err != nil {
		return SnapshotMark{}, err
	}
	if set[4] {
		return SnapshotMark{}, fmt.Errorf("%w: not a snapshot mark", errEncoding)
	}
	m := SnapshotMark{Index: ids.Index(nums[1]), Term: ids.Term(nums[2]), Alone: nums[markAlone] != 0}
	if set[3] {
		m.ConfState = &raftpb.ConfState{}
		if err := proto.Unmarshal(data, m.ConfState); err != nil {
			return SnapshotMark{}, fmt.Errorf("%w: conf state: %v", errEncoding, err)
		}
	}
	return m, nil
}

// torn reports whether the frame body b, which begins at file offset off and
// failed its check, looks like a write that reached the disk only in part:
// one of its sectors was never written and is all zeros.
func torn(b []byte, off int64) bool {
	for len(b) > 0 {
		n := min(int(sectorSize-off%sectorSize), len(b))
		if allZero(b[:n]) {
			return true
		}
		b, off = b[n:], off+int64(n)
	}
	return false
}

func allZero(b []byte) bool {
	for len(b) >= 8 {
		if binary.LittleEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

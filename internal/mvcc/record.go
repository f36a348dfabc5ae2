package mvcc

import (
	"encoding/binary"
	"errors"

	"quorate/internal/ids"
	"quorate/internal/lease"
)

// Field numbers of mvccpb.KeyValue with their wire types, as tag bytes.
const (
	tagKey     = 1<<3 | 2
	tagCreate  = 2 << 3
	tagMod     = 3 << 3
	tagVersion = 4 << 3
	tagValue   = 5<<3 | 2
	tagLease   = 6 << 3
)

var errRecord = errors.New("mvcc: malformed KeyValue")

// record is a decoded mvccpb.KeyValue. Key and value alias the encoded bytes.
type record struct {
	key, value  []byte
	create, mod ids.Revision
	version     int64
	lease       lease.ID
}

func uvarintLen(v uint64) int {
	n := 1
	for v >= 0x80 {
		v >>= 7
		n++
	}
	return n
}

func bytesFieldLen(n int) int {
	if n == 0 {
		return 0
	}
	return 1 + uvarintLen(uint64(n)) + n
}

func intFieldLen(v int64) int {
	if v == 0 {
		return 0
	}
	return 1 + uvarintLen(uint64(v))
}

// encodeRecord returns the bytes that proto.Marshal of mvccpb.KeyValue produces:
// fields in order of their numbers, zero values omitted. key aliases the key in them.
func encodeRecord(r record) (kv, key []byte) {
	kv = appendRecord(make([]byte, 0, r.size()), r)
	if n := len(r.key); n > 0 {
		at := 1 + uvarintLen(uint64(n))
		key = kv[at : at+n : at+n]
	}
	return kv, key
}

func (r *record) size() int {
	m := meta{create: r.create, mod: r.mod, version: r.version}
	return int(recordLen(len(r.key), len(r.value), m, r.lease))
}

// recordLen returns the length of the record of a revision.
func recordLen(key, value int, m meta, lease lease.ID) uint32 {
	return uint32(bytesFieldLen(key) + intFieldLen(int64(m.create)) + intFieldLen(int64(m.mod)) +
		intFieldLen(m.version) + bytesFieldLen(value) + intFieldLen(int64(lease)))
}

func appendRecord(kv []byte, r record) []byte {
	kv = appendBytesField(kv, tagKey, r.key)
	kv = appendIntField(kv, tagCreate, int64(r.create))
	kv = appendIntField(kv, tagMod, int64(r.mod))
	kv = appendIntField(kv, tagVersion, r.version)
	kv = appendBytesField(kv, tagValue, r.value)
	return appendIntField(kv, tagLease, int64(r.lease))
}

func appendBytesField(dst []byte, tag byte, b []byte) []byte {
	if len(b) == 0 {
		return dst
	}
	dst = append(dst, tag)
	dst = binary.AppendUvarint(dst, uint64(len(b)))
	return append(dst, b...)
}

func appendIntField(dst []byte, tag byte, v int64) []byte {
	if v == 0 {
		return dst
	}
	return binary.AppendUvarint(append(dst, tag), uint64(v))
}

// parseRecord decodes an mvccpb.KeyValue from untrusted bytes. Unknown fields are
// skipped, as in protobuf. An empty record is valid: `etcdutl snapshot restore
// --mark-compacted` writes one.
func parseRecord(b []byte) (r record, err error) {
	for len(b) > 0 {
		tag, n := binary.Uvarint(b)
		if n <= 0 || tag>>3 == 0 || tag>>3 > 1<<29-1 {
			return r, errRecord
		}
		b = b[n:]
		var v uint64
		var s []byte
		switch tag & 7 {
		case 0:
			if v, n = binary.Uvarint(b); n <= 0 {
				return r, errRecord
			}
		case 1:
			n = 8
		case 2:
			l, w := binary.Uvarint(b)
			if w <= 0 || l > uint64(len(b)-w) {
				return r, errRecord
			}
			n = w + int(l)
			s = b[w:n:n]
		case 5:
			n = 4
		default: // no release uses groups
			return r, errRecord
		}
		if n > len(b) {
			return r, errRecord
		}
		b = b[n:]
		switch tag {
		case tagKey:
			r.key = s
		case tagCreate:
			r.create = ids.Revision(v)
		case tagMod:
			r.mod = ids.Revision(v)
		case tagVersion:
			r.version = int64(v)
		case tagValue:
			r.value = s
		case tagLease:
			r.lease = lease.ID(v)
		}
	}
	return r, nil
}

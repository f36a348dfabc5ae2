package wire

import (
	"encoding/binary"
	"math/bits"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// Messages are encoded in two passes, size and append, so that a response takes one buffer
// of the right size. All tags are below 128 and take one byte.

func sizeVarint(v uint64) int {
	return int(9*uint32(bits.Len64(v))+64) / 64
}

// AppendVarint appends v as a varint.
func AppendVarint(b []byte, v uint64) []byte {
	for v >= 0x80 {
		b = append(b, byte(v)|0x80)
		v >>= 7
	}
	return append(b, byte(v))
}

// sizeInt returns the size of a varint field, which is omitted if it is zero.
func sizeInt(v uint64) int {
	if v == 0 {
		return 0
	}
	return 1 + sizeVarint(v)
}

func appendInt(b []byte, tag uint64, v uint64) []byte {
	if v == 0 {
		return b
	}
	return AppendVarint(append(b, byte(tag)), v)
}

func sizeBool(v bool) int {
	if v {
		return 2
	}
	return 0
}

func appendBool(b []byte, tag uint64, v bool) []byte {
	if !v {
		return b
	}
	return append(b, byte(tag), 1)
}

// SizeBytes returns the size of a field of n bytes with a tag below 128.
func SizeBytes(n int) int { return 1 + sizeVarint(uint64(n)) + n }

// appendLen appends the tag and length of a field of n bytes.
func appendLen(b []byte, tag uint64, n int) []byte {
	return AppendVarint(append(b, byte(tag)), uint64(n))
}

func sizeBytes(v []byte) int {
	if len(v) == 0 {
		return 0
	}
	return SizeBytes(len(v))
}

func appendBytes(b []byte, tag uint64, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	return append(appendLen(b, tag, len(v)), v...)
}

// Header is a response header, passed by value.
type Header struct {
	ClusterID, MemberID uint64
	Revision            int64
	Term                uint64
}

func (h *Header) size() int {
	return sizeInt(h.ClusterID) + sizeInt(h.MemberID) + sizeInt(uint64(h.Revision)) + sizeInt(h.Term)
}

// Size returns the size of the header as field 1 of a response.
func (h *Header) Size() int { return SizeBytes(h.size()) }

// Append appends the header as field 1 of a response.
func (h *Header) Append(b []byte) []byte {
	b = appendLen(b, b1, h.size())
	b = appendInt(b, v1, h.ClusterID)
	b = appendInt(b, v2, h.MemberID)
	b = appendInt(b, v3, uint64(h.Revision))
	return appendInt(b, v4, h.Term)
}

func sizeHeader(h *pb.ResponseHeader) int {
	if h == nil {
		return 0
	}
	v := Header{h.ClusterId, h.MemberId, h.Revision, h.RaftTerm}
	return v.Size()
}

func appendHeader(b []byte, h *pb.ResponseHeader) []byte {
	if h == nil {
		return b
	}
	v := Header{h.ClusterId, h.MemberId, h.Revision, h.RaftTerm}
	return v.Append(b)
}

func sizeKV(m *mvccpb.KeyValue) int {
	if m == nil {
		return 0
	}
	return sizeBytes(m.Key) + sizeInt(uint64(m.CreateRevision)) + sizeInt(uint64(m.ModRevision)) +
		sizeInt(uint64(m.Version)) + sizeBytes(m.Value) + sizeInt(uint64(m.Lease))
}

func appendKV(b []byte, tag uint64, m *mvccpb.KeyValue) []byte {
	b = appendLen(b, tag, sizeKV(m))
	if m == nil {
		return b
	}
	b = appendBytes(b, b1, m.Key)
	b = appendInt(b, v2, uint64(m.CreateRevision))
	b = appendInt(b, v3, uint64(m.ModRevision))
	b = appendInt(b, v4, uint64(m.Version))
	b = appendBytes(b, b5, m.Value)
	return appendInt(b, v6, uint64(m.Lease))
}

// SizePut returns the encoded size of m.
func SizePut(m *pb.PutResponse) int {
	n := sizeHeader(m.GetHeader())
	if m.GetPrevKv() != nil {
		n += SizeBytes(sizeKV(m.PrevKv))
	}
	return n
}

// AppendPut appends m.
func AppendPut(b []byte, m *pb.PutResponse) []byte {
	b = appendHeader(b, m.GetHeader())
	if m.GetPrevKv() != nil {
		b = appendKV(b, b2, m.PrevKv)
	}
	return b
}

// SizeDeleteRange returns the encoded size of m.
func SizeDeleteRange(m *pb.DeleteRangeResponse) int {
	n := sizeHeader(m.GetHeader()) + sizeInt(uint64(m.GetDeleted()))
	for _, kv := range m.GetPrevKvs() {
		n += SizeBytes(sizeKV(kv))
	}
	return n
}

// AppendDeleteRange appends m.
func AppendDeleteRange(b []byte, m *pb.DeleteRangeResponse) []byte {
	b = appendHeader(b, m.GetHeader())
	b = appendInt(b, v2, uint64(m.GetDeleted()))
	for _, kv := range m.GetPrevKvs() {
		b = appendKV(b, b3, kv)
	}
	return b
}

// SizeRange returns the encoded size of m.
func SizeRange(m *pb.RangeResponse) int {
	n := sizeHeader(m.GetHeader()) + sizeBool(m.GetMore()) + sizeInt(uint64(m.GetCount()))
	for _, kv := range m.GetKvs() {
		n += SizeBytes(sizeKV(kv))
	}
	return n
}

// AppendRange appends m.
func AppendRange(b []byte, m *pb.RangeResponse) []byte {
	b = appendHeader(b, m.GetHeader())
	for _, kv := range m.GetKvs() {
		b = appendKV(b, b2, kv)
	}
	return AppendRangeTail(b, m.GetMore(), m.GetCount())
}

// AppendRangeTail appends the last two fields of a RangeResponse.
func AppendRangeTail(b []byte, more bool, count int64) []byte {
	return appendInt(appendBool(b, v3, more), v4, uint64(count))
}

// AppendRangeStreamLen appends the tag and length of the RangeResponse of n bytes that a
// RangeStreamResponse contains.
func AppendRangeStreamLen(b []byte, n int) []byte { return appendLen(b, b1, n) }

// SizeTxn returns the encoded size of m.
func SizeTxn(m *pb.TxnResponse) int {
	n := sizeHeader(m.GetHeader()) + sizeBool(m.GetSucceeded())
	for _, r := range m.GetResponses() {
		n += SizeBytes(sizeOp(r))
	}
	return n
}

// AppendTxn appends m.
func AppendTxn(b []byte, m *pb.TxnResponse) []byte {
	b = appendHeader(b, m.GetHeader())
	b = appendBool(b, v2, m.GetSucceeded())
	for _, r := range m.GetResponses() {
		if r.GetResponse() == nil {
			b = appendLen(b, b3, 0)
			continue
		}
		body := opBody(r)
		b = appendOp(appendLen(b, b3, SizeBytes(body)), r, body)
	}
	return b
}

// sizeOp returns the size of a ResponseOp. An unset one is empty; one that holds an empty
// response is not.
func sizeOp(r *pb.ResponseOp) int {
	if r.GetResponse() == nil {
		return 0
	}
	return SizeBytes(opBody(r))
}

// opBody returns the size of the response in r.
func opBody(r *pb.ResponseOp) int {
	switch v := r.GetResponse().(type) {
	case *pb.ResponseOp_ResponseRange:
		return SizeRange(v.ResponseRange)
	case *pb.ResponseOp_ResponsePut:
		return SizePut(v.ResponsePut)
	case *pb.ResponseOp_ResponseDeleteRange:
		return SizeDeleteRange(v.ResponseDeleteRange)
	case *pb.ResponseOp_ResponseTxn:
		return SizeTxn(v.ResponseTxn)
	}
	return 0
}

func appendOp(b []byte, r *pb.ResponseOp, body int) []byte {
	switch v := r.GetResponse().(type) {
	case *pb.ResponseOp_ResponseRange:
		return AppendRange(appendLen(b, b1, body), v.ResponseRange)
	case *pb.ResponseOp_ResponsePut:
		return AppendPut(appendLen(b, b2, body), v.ResponsePut)
	case *pb.ResponseOp_ResponseDeleteRange:
		return AppendDeleteRange(appendLen(b, b3, body), v.ResponseDeleteRange)
	case *pb.ResponseOp_ResponseTxn:
		return AppendTxn(appendLen(b, b4, body), v.ResponseTxn)
	}
	return b
}

// SizeLeaseKeepAlive returns the size of an encoded LeaseKeepAliveResponse.
func SizeLeaseKeepAlive(h *Header, id, ttl int64) int {
	return h.Size() + sizeInt(uint64(id)) + sizeInt(uint64(ttl))
}

// MaxLeaseKeepAlive is the largest size of an encoded LeaseKeepAliveResponse: six integers and
// the length of the header, each with its tag.
const MaxLeaseKeepAlive = 6*(1+binary.MaxVarintLen64) + 2

// AppendLeaseKeepAlive appends a LeaseKeepAliveResponse.
func AppendLeaseKeepAlive(b []byte, h *Header, id, ttl int64) []byte {
	b = h.Append(b)
	b = appendInt(b, v2, uint64(id))
	return appendInt(b, v3, uint64(ttl))
}

// SizeSnapshot returns the size of an encoded SnapshotResponse with a blob of n bytes.
// version must be valid UTF-8.
func SizeSnapshot(remaining uint64, n int, version string) int {
	return sizeInt(remaining) + SizeBytes(n) + sizeBytes([]byte(version))
}

// AppendSnapshot appends a SnapshotResponse. It returns the slice for its blob of n bytes,
// which the caller must fill.
func AppendSnapshot(b []byte, remaining uint64, n int, version string) (out, blob []byte) {
	b = appendInt(b, v2, remaining)
	b = appendLen(b, b3, n)
	b = slices.Grow(b, n+sizeBytes([]byte(version)))
	blob = b[len(b) : len(b)+n : len(b)+n]
	return appendBytes(b[:len(b)+n], b4, []byte(version)), blob
}

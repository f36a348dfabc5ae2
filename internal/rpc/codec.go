package rpc

import (
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"quorate/internal/h2"
	"quorate/internal/metrics"
	"quorate/internal/mvcc"
	"quorate/internal/watch"
	"quorate/internal/wire"
)

// encode and decode convert messages to and from bytes. The types below are the hot
// ones; all other messages use protobuf.
//
// Replies are copied into the connection's write buffer anyway, so small pieces are
// gathered here and large stored values are passed on without a copy.

// Requests: the decoded form, and for writes the bytes that it shares, as they go into the log:
// nil if other releases would read something else in them. The request is then encoded anew.
type (
	rangeCall struct{ req pb.RangeRequest }
	putCall   struct {
		req pb.PutRequest
		raw []byte
	}
	deleteCall struct {
		req pb.DeleteRangeRequest
		raw []byte
	}
	txnCall struct {
		req pb.TxnRequest
		raw []byte
	}
	keepAliveCall struct{ req pb.LeaseKeepAliveRequest }
	watchCall     struct{ req pb.WatchRequest }
)

// Replies that are assembled from stored bytes.
type (
	rangeReply struct {
		header wire.Header
		res    *mvcc.RangeResult
		list   mvcc.Reading // instead of header and res: records that are read while they are sent
	}
	keepAliveReply struct {
		header  wire.Header
		id, ttl int64
	}
	watchReply struct {
		header watch.Header
		res    watch.Response
	}
	// encoded is a message in wire format. The receiver of the message owns it.
	encoded mem.BufferSlice
)

// decode decodes a message, which takes ownership of b.
func decode(b []byte, v any) error {
	metrics.NetworkClientGRPCReceivedBytesTotal.Add(float64(len(b)))
	switch m := v.(type) {
	case *putCall:
		plain, err := wire.DecodePut(b, &m.req)
		if plain {
			m.raw = b
		}
		return err
	case *rangeCall:
		return wire.DecodeRange(b, &m.req)
	case *txnCall:
		plain, err := wire.DecodeTxn(b, &m.req)
		if plain {
			m.raw = b
		}
		return err
	case *deleteCall:
		plain, err := wire.DecodeDeleteRange(b, &m.req)
		if plain {
			m.raw = b
		}
		return err
	case *keepAliveCall:
		return wire.DecodeLeaseKeepAlive(b, &m.req)
	case *watchCall:
		return wire.DecodeWatch(b, &m.req)
	case proto.Message:
		// What a request does not have in this release must not get into the log.
		return proto.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(b, m)
	}
	return fmt.Errorf("rpc: cannot decode into %T", v)
}

// decodeRequest decodes the request of a unary call. The error text is that of the
// grpc-go in etcd 3.7; newer versions differ.
func decodeRequest(b []byte, v any) error {
	if err := decode(b, v); err != nil {
		return status.Errorf(codes.Internal, "grpc: error unmarshalling request: %v", err)
	}
	return nil
}

// encode encodes a message. The caller must free the result.
func encode(v any) (mem.BufferSlice, error) {
	out, err := marshal(v)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "grpc: error while marshaling: %v", err)
	}
	metrics.NetworkClientGRPCSentBytesTotal.Add(float64(out.Len()))
	return out, nil
}

// Replies that, if small, encode themselves into the connection's write buffer.
type (
	putReply    pb.PutResponse
	txnReply    pb.TxnResponse
	deleteReply pb.DeleteRangeResponse
)

func (m *putReply) AppendTo(b []byte) []byte { return wire.AppendPut(b, (*pb.PutResponse)(m)) }
func (m *txnReply) AppendTo(b []byte) []byte { return wire.AppendTxn(b, (*pb.TxnResponse)(m)) }
func (m *deleteReply) AppendTo(b []byte) []byte {
	return wire.AppendDeleteRange(b, (*pb.DeleteRangeResponse)(m))
}

func (m *rangeReply) AppendTo(b []byte) []byte {
	b = m.header.Append(b)
	for _, kv := range m.res.KVs {
		b = appendPart(b, tagKVs, kv)
	}
	return wire.AppendRangeTail(b, m.res.More, m.res.Count)
}

// about returns the number of keys in the range and the total size of the records.
func (m *rangeReply) about() (count int64, size int) {
	if m.list != nil {
		return m.list.About().Count, int(m.list.About().Bytes)
	}
	return m.res.Count, sizeParts(m.res.KVs)
}

func (m *rangeReply) size() int {
	var tail [16]byte
	return m.header.Size() + sizeParts(m.res.KVs) + len(wire.AppendRangeTail(tail[:0], m.res.More, m.res.Count))
}

// reply converts the response v for sending.
func reply(v any) (h2.Reply, error) {
	var r h2.Reply
	switch m := v.(type) {
	case *pb.PutResponse:
		r = h2.Reply{Small: (*putReply)(m), Size: wire.SizePut(m)}
	case *rangeReply:
		r = h2.Reply{Small: m, Size: m.size()}
	case *pb.TxnResponse:
		r = h2.Reply{Small: (*txnReply)(m), Size: wire.SizeTxn(m)}
	case *pb.DeleteRangeResponse:
		r = h2.Reply{Small: (*deleteReply)(m), Size: wire.SizeDeleteRange(m)}
	}
	if r.Small == nil || r.Size > smallResponse {
		pieces, err := encode(v)
		return h2.Reply{Pieces: pieces}, err
	}
	metrics.NetworkClientGRPCSentBytesTotal.Add(float64(r.Size))
	return r, nil
}

func marshal(v any) (mem.BufferSlice, error) {
	switch m := v.(type) {
	case *pb.PutResponse:
		p := newPiece(wire.SizePut(m))
		return p.only(wire.AppendPut(p.buf, m)), nil
	case *rangeReply:
		return m.marshal(), nil
	case *pb.TxnResponse:
		p := newPiece(wire.SizeTxn(m))
		return p.only(wire.AppendTxn(p.buf, m)), nil
	case *pb.DeleteRangeResponse:
		p := newPiece(wire.SizeDeleteRange(m))
		return p.only(wire.AppendDeleteRange(p.buf, m)), nil
	case *watchReply:
		return m.marshal(), nil
	case *keepAliveReply:
		p := newPiece(wire.SizeLeaseKeepAlive(&m.header, m.id, m.ttl))
		return p.only(wire.AppendLeaseKeepAlive(p.buf, &m.header, m.id, m.ttl)), nil
	case *rangeChunk:
		return m.marshal(), nil
	case encoded:
		return mem.BufferSlice(m), nil
	case proto.Message:
		// Compute the size now: one cached earlier may predate the header.
		p := newPiece(proto.Size(m))
		b, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(p.buf, m)
		if err != nil {
			return nil, err
		}
		return p.only(b), nil
	}
	return nil, fmt.Errorf("rpc: cannot encode a %T", v)
}

// piece is a buffer that is appended to and then sent: pooled if large, freshly
// allocated if small.
type piece struct {
	buf    []byte
	pooled *[]byte
}

func newPiece(size int) piece {
	if mem.IsBelowBufferPoolingThreshold(size) {
		return piece{buf: make([]byte, 0, size)}
	}
	p := pool.Get(size)
	return piece{buf: (*p)[:0], pooled: p}
}

// done returns the piece as a mem.Buffer. b must be p.buf after appends that stayed
// within its capacity.
func (p piece) done(b []byte) mem.Buffer {
	if p.pooled == nil {
		return mem.SliceBuffer(b)
	}
	*p.pooled = b
	return mem.NewBuffer(p.pooled, &pool)
}

func (p piece) only(b []byte) mem.BufferSlice { return mem.BufferSlice{p.done(b)} }

const (
	// pieceSize is the amount of data gathered into one buffer.
	pieceSize = 32 << 10
	// shareFrom is the length from which a stored value is sent without a copy. Below
	// it, a copy is cheaper than the two extra buffers that the value and its length
	// need.
	shareFrom = 4 << 10
	// A long reply should not need its size again for copies: from longAnswer bytes on,
	// values of longShareFrom bytes or more are sent without a copy.
	longAnswer    = 1 << 20
	longShareFrom = 256
)

// sizeParts returns the encoded size of parts as elements of a repeated field.
func sizeParts(parts [][]byte) int {
	n := 0
	for _, b := range parts {
		n += wire.SizeBytes(len(b))
	}
	return n
}

// assemble builds a message from its first fields, parts as elements of the repeated
// field tag, and its last fields. size is the encoded size of the elements. Tag 0 means
// that parts are already complete fields.
func assemble(head []byte, tag byte, parts [][]byte, size int, tail []byte) mem.BufferSlice {
	total := len(head) + size + len(tail)
	if total <= pieceSize {
		p := newPiece(total)
		b := append(p.buf, head...)
		for _, part := range parts {
			b = appendPart(b, tag, part)
		}
		return p.only(append(b, tail...))
	}
	share := shareFrom
	if total >= longAnswer {
		share = longShareFrom
	}
	shared, sharedBytes := 0, 0
	for _, part := range parts {
		if len(part) >= share {
			shared++
			sharedBytes += len(part)
		}
	}
	if shared == 0 {
		return copyAll(head, tag, parts, total, tail)
	}

	// Copied data goes into chunks; the message alternates between views of the chunks
	// and shared parts.
	left := total - sharedBytes
	views := make([]mem.SliceBuffer, 0, 2*shared+left/pieceSize+2)
	chunk := make([]byte, 0, min(left, pieceSize))
	start := 0 // of the data in chunk that is in no view yet
	cut := func() {
		if len(chunk) > start {
			views = append(views, mem.SliceBuffer(chunk[start:]))
			start = len(chunk)
		}
	}
	room := func(n int) {
		if len(chunk)+n > cap(chunk) {
			cut()
			left -= len(chunk)
			chunk, start = make([]byte, 0, max(n, min(left, pieceSize))), 0
		}
	}
	chunk = append(chunk, head...)
	for _, part := range parts {
		if len(part) < share {
			room(wire.SizeBytes(len(part)))
			chunk = appendPart(chunk, tag, part)
			continue
		}
		if tag != 0 {
			room(wire.SizeBytes(len(part)) - len(part))
			chunk = wire.AppendVarint(append(chunk, tag), uint64(len(part)))
		}
		cut()
		views = append(views, mem.SliceBuffer(part))
	}
	room(len(tail))
	chunk = append(chunk, tail...)
	cut()
	out := make(mem.BufferSlice, len(views))
	for i := range views {
		out[i] = &views[i] // a pointer into views: converting a value would allocate each one
	}
	return out
}

// copyAll is assemble for many small parts: it copies them into a series of pooled
// pieces.
func copyAll(head []byte, tag byte, parts [][]byte, total int, tail []byte) mem.BufferSlice {
	out := make(mem.BufferSlice, 0, total/(pieceSize-shareFrom)+2)
	p := newPiece(pieceSize)
	b := append(p.buf, head...)
	for _, part := range parts {
		if len(b)+wire.SizeBytes(len(part)) > pieceSize {
			out = append(out, p.done(b))
			p = newPiece(pieceSize)
			b = p.buf
		}
		b = appendPart(b, tag, part)
	}
	if len(b)+len(tail) > pieceSize {
		out = append(out, p.done(b))
		p = newPiece(len(tail))
		b = p.buf
	}
	return append(out, p.done(append(b, tail...)))
}

func appendPart(b []byte, tag byte, part []byte) []byte {
	if tag != 0 {
		b = wire.AppendVarint(append(b, tag), uint64(len(part)))
	}
	return append(b, part...)
}

const tagKVs = 2<<3 | 2 // RangeResponse.kvs

func (m *rangeReply) marshal() mem.BufferSlice {
	var head, tail [64]byte
	return assemble(m.header.Append(head[:0]), tagKVs, m.res.KVs, sizeParts(m.res.KVs),
		wire.AppendRangeTail(tail[:0], m.res.More, m.res.Count))
}

func (m *watchReply) marshal() mem.BufferSlice {
	var head [128]byte
	size := 0
	for _, ev := range m.res.Events {
		size += len(ev)
	}
	return assemble(m.res.AppendHead(head[:0], m.header), 0, m.res.Events, size, nil)
}

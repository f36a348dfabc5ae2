// Package wire decodes and encodes the hot messages of etcd's API by hand.
//
// In: request bytes; responses and stored bytes. Out: messages of etcdserverpb, and
// bytes in etcd's wire format. Always true: a decoder accepts and rejects exactly what
// proto.Unmarshal does, and returns an equal message except that unknown fields are
// dropped; an encoder writes what proto.Marshal would. Decoded messages share the memory of
// their input, which must not change.
package wire

import (
	"errors"

	"google.golang.org/protobuf/encoding/protowire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// ErrMalformed means that the input is not an encoded message. The text is protobuf's,
// because clients see it.
var ErrMalformed = errors.New("proto: cannot parse invalid wire-format data")

var errTooDeep = errors.New("proto: exceeded maximum recursion depth")

// Tags of the fields below: field number and wire type combined.
const (
	v1  = 1<<3 | uint64(protowire.VarintType)
	v2  = 2<<3 | uint64(protowire.VarintType)
	v3  = 3<<3 | uint64(protowire.VarintType)
	v4  = 4<<3 | uint64(protowire.VarintType)
	v5  = 5<<3 | uint64(protowire.VarintType)
	v6  = 6<<3 | uint64(protowire.VarintType)
	v7  = 7<<3 | uint64(protowire.VarintType)
	v8  = 8<<3 | uint64(protowire.VarintType)
	v9  = 9<<3 | uint64(protowire.VarintType)
	v10 = 10<<3 | uint64(protowire.VarintType)
	v11 = 11<<3 | uint64(protowire.VarintType)
	v12 = 12<<3 | uint64(protowire.VarintType)
	v13 = 13<<3 | uint64(protowire.VarintType)
	b1  = 1<<3 | uint64(protowire.BytesType)
	b2  = 2<<3 | uint64(protowire.BytesType)
	b3  = 3<<3 | uint64(protowire.BytesType)
	b4  = 4<<3 | uint64(protowire.BytesType)
	b5  = 5<<3 | uint64(protowire.BytesType)
	b7  = 7<<3 | uint64(protowire.BytesType)
	b64 = 64<<3 | uint64(protowire.BytesType)
)

// cursor reads fields from b. The first error sets bad and empties b, which ends every loop
// over the fields.
type cursor struct {
	b   []byte
	bad bool
	odd bool // see DecodePut: it is not plain
}

func (c *cursor) fail() {
	c.b, c.bad = nil, true
}

func (c *cursor) err() error {
	if c.bad {
		return ErrMalformed
	}
	return nil
}

// plain is the result of the decoders of writes.
func (c *cursor) plain() (bool, error) { return !c.odd, c.err() }

func (c *cursor) varint() uint64 {
	if len(c.b) > 0 && c.b[0] < 0x80 {
		v := uint64(c.b[0])
		c.b = c.b[1:]
		return v
	}
	return c.longVarint()
}

func (c *cursor) longVarint() uint64 {
	v, n := protowire.ConsumeVarint(c.b)
	if n < 0 {
		c.fail()
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *cursor) int64() int64 { return int64(c.varint()) }

func (c *cursor) bool() bool { return c.varint() != 0 }

// bytes returns a field that shares the memory of the input. It is non-nil even if empty:
// an empty value differs from an absent one.
func (c *cursor) bytes() []byte {
	n := c.varint()
	if n > uint64(len(c.b)) {
		c.fail()
		return nil
	}
	v := c.b[:n:n]
	c.b = c.b[n:]
	return v
}

// skip skips the field that follows tag.
func (c *cursor) skip(tag uint64) {
	c.odd = true
	num := tag >> 3
	if num < uint64(protowire.MinValidNumber) || num > uint64(protowire.MaxValidNumber) {
		c.fail()
		return
	}
	n := protowire.ConsumeFieldValue(protowire.Number(num), protowire.Type(tag&7), c.b)
	if n < 0 {
		c.fail()
		return
	}
	c.b = c.b[n:]
}

// DecodePut decodes b into m. For this and all decoders here, m must be empty.
//
// The decoders of writes also report whether b is plain: whether every release since etcd 3.5
// decodes it to the same message. Those before 3.7 reject a field that has another type than
// theirs, and of two requests in one operation they apply the last where 3.7 merges both.
func DecodePut(b []byte, m *pb.PutRequest) (plain bool, err error) {
	c := cursor{b: b}
	for len(c.b) > 0 {
		switch tag := c.varint(); tag {
		case b1:
			m.Key = c.bytes()
		case b2:
			m.Value = c.bytes()
		case v3:
			m.Lease = c.int64()
		case v4:
			m.PrevKv = c.bool()
		case v5:
			m.IgnoreValue = c.bool()
		case v6:
			m.IgnoreLease = c.bool()
		default:
			c.skip(tag)
		}
	}
	return c.plain()
}

// DecodeRange decodes b into m.
func DecodeRange(b []byte, m *pb.RangeRequest) error {
	_, err := decodeRange(b, m)
	return err
}

func decodeRange(b []byte, m *pb.RangeRequest) (plain bool, err error) {
	c := cursor{b: b}
	for len(c.b) > 0 {
		switch tag := c.varint(); tag {
		case b1:
			m.Key = c.bytes()
		case b2:
			m.RangeEnd = c.bytes()
		case v3:
			m.Limit = c.int64()
		case v4:
			m.Revision = c.int64()
		case v5:
			m.SortOrder = pb.RangeRequest_SortOrder(c.varint())
		case v6:
			m.SortTarget = pb.RangeRequest_SortTarget(c.varint())
		case v7:
			m.Serializable = c.bool()
		case v8:
			m.KeysOnly = c.bool()
		case v9:
			m.CountOnly = c.bool()
		case v10:
			m.MinModRevision = c.int64()
		case v11:
			m.MaxModRevision = c.int64()
		case v12:
			m.MinCreateRevision = c.int64()
		case v13:
			m.MaxCreateRevision = c.int64()
		default:
			c.skip(tag)
		}
	}
	return c.plain()
}

// DecodeDeleteRange decodes b into m.
func DecodeDeleteRange(b []byte, m *pb.DeleteRangeRequest) (plain bool, err error) {
	c := cursor{b: b}
	for len(c.b) > 0 {
		switch tag := c.varint(); tag {
		case b1:
			m.Key = c.bytes()
		case b2:
			m.RangeEnd = c.bytes()
		case v3:
			m.PrevKv = c.bool()
		default:
			c.skip(tag)
		}
	}
	return c.plain()
}

// DecodeLeaseKeepAlive decodes b into m.
func DecodeLeaseKeepAlive(b []byte, m *pb.LeaseKeepAliveRequest) error {
	c := cursor{b: b}
	for len(c.b) > 0 {
		switch tag := c.varint(); tag {
		case v1:
			m.ID = c.int64()
		default:
			c.skip(tag)
		}
	}
	return c.err()
}

// DecodeTxn decodes b into m.
func DecodeTxn(b []byte, m *pb.TxnRequest) (plain bool, err error) {
	return decodeTxn(b, m, protowire.DefaultRecursionLimit)
}

// decodeTxn limits the nesting as protobuf does, to depth messages including this one.
func decodeTxn(b []byte, m *pb.TxnRequest, depth int) (plain bool, err error) {
	if depth--; depth < 0 {
		return false, errTooDeep
	}
	c := cursor{b: b}
	for len(c.b) > 0 {
		switch tag := c.varint(); tag {
		case b1:
			if depth < 1 {
				return false, errTooDeep
			}
			cmp := new(pb.Compare)
			plain, err := decodeCompare(c.bytes(), cmp)
			if err != nil {
				return false, err
			}
			c.odd = c.odd || !plain
			m.Compare = append(m.Compare, cmp)
		case b2:
			op, plain, err := decodeOp(c.bytes(), depth)
			if err != nil {
				return false, err
			}
			c.odd = c.odd || !plain
			m.Success = append(m.Success, op)
		case b3:
			op, plain, err := decodeOp(c.bytes(), depth)
			if err != nil {
				return false, err
			}
			c.odd = c.odd || !plain
			m.Failure = append(m.Failure, op)
		default:
			c.skip(tag)
		}
	}
	return c.plain()
}

func decodeCompare(b []byte, m *pb.Compare) (plain bool, err error) {
	c := cursor{b: b}
	for len(c.b) > 0 {
		switch tag := c.varint(); tag {
		case v1:
			m.Result = pb.Compare_CompareResult(c.varint())
		case v2:
			m.Target = pb.Compare_CompareTarget(c.varint())
		case b3:
			m.Key = c.bytes()
		case v4:
			m.TargetUnion = &pb.Compare_Version{Version: c.int64()}
		case v5:
			m.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: c.int64()}
		case v6:
			m.TargetUnion = &pb.Compare_ModRevision{ModRevision: c.int64()}
		case b7:
			m.TargetUnion = &pb.Compare_Value{Value: c.bytes()}
		case v8:
			m.TargetUnion = &pb.Compare_Lease{Lease: c.int64()}
		case b64:
			m.RangeEnd = c.bytes()
		default:
			c.skip(tag)
		}
	}
	return c.plain()
}

// An op, its wrapper and its request have the same lifetime, so each kind takes one
// allocation.
type (
	rangeOp struct {
		op   pb.RequestOp
		wrap pb.RequestOp_RequestRange
		req  pb.RangeRequest
	}
	putOp struct {
		op   pb.RequestOp
		wrap pb.RequestOp_RequestPut
		req  pb.PutRequest
	}
	deleteOp struct {
		op   pb.RequestOp
		wrap pb.RequestOp_RequestDeleteRange
		req  pb.DeleteRangeRequest
	}
	txnOp struct {
		op   pb.RequestOp
		wrap pb.RequestOp_RequestTxn
		req  pb.TxnRequest
	}
)

// decodeOp decodes one RequestOp. As in every oneof, the last kind wins, and consecutive
// messages of the same kind are merged.
func decodeOp(b []byte, depth int) (_ *pb.RequestOp, plain bool, err error) {
	if depth--; depth < 0 {
		return nil, false, errTooDeep
	}
	var op *pb.RequestOp
	c := cursor{b: b}
	for len(c.b) > 0 {
		tag := c.varint()
		if tag != b1 && tag != b2 && tag != b3 && tag != b4 {
			c.skip(tag)
			continue
		}
		body := c.bytes()
		if c.bad {
			break
		}
		if depth < 1 {
			return nil, false, errTooDeep
		}
		one, ok := op == nil, false
		switch tag {
		case b1:
			r := op.GetRequestRange()
			if r == nil {
				n := new(rangeOp)
				n.op.Request, n.wrap.RequestRange = &n.wrap, &n.req
				op, r = &n.op, &n.req
			}
			ok, err = decodeRange(body, r)
		case b2:
			r := op.GetRequestPut()
			if r == nil {
				n := new(putOp)
				n.op.Request, n.wrap.RequestPut = &n.wrap, &n.req
				op, r = &n.op, &n.req
			}
			ok, err = DecodePut(body, r)
		case b3:
			r := op.GetRequestDeleteRange()
			if r == nil {
				n := new(deleteOp)
				n.op.Request, n.wrap.RequestDeleteRange = &n.wrap, &n.req
				op, r = &n.op, &n.req
			}
			ok, err = DecodeDeleteRange(body, r)
		case b4:
			r := op.GetRequestTxn()
			if r == nil {
				n := new(txnOp)
				n.op.Request, n.wrap.RequestTxn = &n.wrap, &n.req
				op, r = &n.op, &n.req
			}
			ok, err = decodeTxn(body, r, depth)
		}
		if err != nil {
			return nil, false, err
		}
		c.odd = c.odd || !one || !ok
	}
	if c.bad {
		return nil, false, ErrMalformed
	}
	if op == nil {
		op = new(pb.RequestOp)
	}
	return op, !c.odd, nil
}

// DecodeWatch decodes b into m.
func DecodeWatch(b []byte, m *pb.WatchRequest) error {
	c := cursor{b: b}
	for len(c.b) > 0 {
		tag := c.varint()
		if tag != b1 && tag != b2 && tag != b3 {
			c.skip(tag)
			continue
		}
		body := c.bytes()
		if c.bad {
			break
		}
		var err error
		switch tag {
		case b1:
			r := m.GetCreateRequest()
			if r == nil {
				r = new(pb.WatchCreateRequest)
				m.RequestUnion = &pb.WatchRequest_CreateRequest{CreateRequest: r}
			}
			err = decodeWatchCreate(body, r)
		case b2:
			r := m.GetCancelRequest()
			if r == nil {
				r = new(pb.WatchCancelRequest)
				m.RequestUnion = &pb.WatchRequest_CancelRequest{CancelRequest: r}
			}
			err = decodeWatchCancel(body, r)
		case b3:
			if m.GetProgressRequest() == nil {
				m.RequestUnion = &pb.WatchRequest_ProgressRequest{ProgressRequest: new(pb.WatchProgressRequest)}
			}
			err = skipAll(body)
		}
		if err != nil {
			return err
		}
	}
	return c.err()
}

func decodeWatchCreate(b []byte, m *pb.WatchCreateRequest) error {
	c := cursor{b: b}
	for len(c.b) > 0 {
		switch tag := c.varint(); tag {
		case b1:
			m.Key = c.bytes()
		case b2:
			m.RangeEnd = c.bytes()
		case v3:
			m.StartRevision = c.int64()
		case v4:
			m.ProgressNotify = c.bool()
		case v5:
			m.Filters = append(m.Filters, pb.WatchCreateRequest_FilterType(c.varint()))
		case b5: // packed
			p := cursor{b: c.bytes()}
			for len(p.b) > 0 {
				m.Filters = append(m.Filters, pb.WatchCreateRequest_FilterType(p.varint()))
			}
			if p.bad {
				return ErrMalformed
			}
		case v6:
			m.PrevKv = c.bool()
		case v7:
			m.WatchId = c.int64()
		case v8:
			m.Fragment = c.bool()
		default:
			c.skip(tag)
		}
	}
	return c.err()
}

func decodeWatchCancel(b []byte, m *pb.WatchCancelRequest) error {
	c := cursor{b: b}
	for len(c.b) > 0 {
		switch tag := c.varint(); tag {
		case v1:
			m.WatchId = c.int64()
		default:
			c.skip(tag)
		}
	}
	return c.err()
}

func skipAll(b []byte) error {
	c := cursor{b: b}
	for len(c.b) > 0 {
		c.skip(c.varint())
	}
	return c.err()
}

package differential

import (
	"context"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
)

// message builds a protobuf message field by field.
type message []byte

func (m message) bytes(n protowire.Number, v string) message {
	return protowire.AppendBytes(protowire.AppendTag(m, n, protowire.BytesType), []byte(v))
}

func (m message) varint(n protowire.Number, v uint64) message {
	return protowire.AppendVarint(protowire.AppendTag(m, n, protowire.VarintType), v)
}

func (m message) fixed32(n protowire.Number, v uint32) message {
	return protowire.AppendFixed32(protowire.AppendTag(m, n, protowire.Fixed32Type), v)
}

func (m message) fixed64(n protowire.Number, v uint64) message {
	return protowire.AppendFixed64(protowire.AppendTag(m, n, protowire.Fixed64Type), v)
}

func (m message) sub(n protowire.Number, v message) message { return m.bytes(n, string(v)) }

func rawSection(b *script) {
	seed(b)
	var (
		none     message
		rangeOut = &pb.RangeResponse{}
		putOut   = &pb.PutResponse{}
		delOut   = &pb.DeleteRangeResponse{}
		txnOut   = &pb.TxnResponse{}
	)
	const kv = "/etcdserverpb.KV/"
	rng := func(name string, m message) { b.wire(name, kv+"Range", m, rangeOut) }
	put := func(name string, m message) { b.wire(name, kv+"Put", m, putOut) }
	txn := func(name string, m message) { b.wire(name, kv+"Txn", m, txnOut) }

	// Fields that no version knows, before, between and after the known ones.
	rng("unknown varint", none.varint(99, 5).bytes(1, "r/01"))
	rng("unknown bytes", none.bytes(1, "r/01").bytes(1000, "later"))
	rng("unknown fixed", none.fixed32(200, 1).bytes(1, "r/01").fixed64(201, 1))
	put("unknown fields", none.bytes(1, "raw/1").bytes(77, "x").bytes(2, "v").varint(78, 1))
	txn("unknown fields everywhere", none.varint(50, 1).sub(2, none.varint(9, 1).sub(2, none.bytes(1, "raw/2").bytes(2, "v").varint(90, 3))))
	// A field that comes twice: the last one counts.
	rng("key twice", none.bytes(1, "r/01").bytes(1, "r/02"))
	rng("limit twice", none.bytes(1, "r/").bytes(2, "r0").varint(3, 1).varint(3, 4))
	put("value twice", none.bytes(1, "raw/3").bytes(2, "first").bytes(2, "second"))
	txn("oneof twice", none.sub(2, none.sub(2, none.bytes(1, "raw/4").bytes(2, "v")).sub(1, none.bytes(1, "r/01"))))
	txn("oneof merged", none.sub(2, none.sub(2, none.bytes(1, "raw/5")).sub(2, none.bytes(2, "merged"))))
	// Values in the reverse order, explicit defaults, empty messages.
	rng("fields in reverse", none.varint(3, 2).bytes(2, "r0").bytes(1, "r/"))
	rng("explicit defaults", none.bytes(1, "r/01").bytes(2, "").varint(3, 0).varint(7, 0))
	rng("empty request", none)
	put("empty request", none)
	txn("empty request", none)
	b.wire("empty request", kv+"DeleteRange", none, delOut)
	b.wire("empty request", kv+"Compact", none, &pb.CompactionResponse{})
	txn("empty operation", none.sub(2, none))
	txn("empty compare", none.sub(1, none))
	txn("operation of a kind to come", none.sub(2, none.sub(15, none.bytes(1, "x"))))
	txn("compare of a kind to come", none.sub(1, none.bytes(3, "r/01").varint(2, 9).varint(40, 1)).sub(2, none.sub(1, none.bytes(1, "r/01"))))
	// Numbers at their limits.
	rng("limit -1", none.bytes(1, "r/").bytes(2, "r0").varint(3, 1<<64-1))
	rng("bool of 2", none.bytes(1, "r/").bytes(2, "r0").varint(9, 2))
	rng("bool of 2^64-1", none.bytes(1, "r/").bytes(2, "r0").varint(9, 1<<64-1))
	rng("enum beyond int32", none.bytes(1, "r/").bytes(2, "r0").varint(5, 1<<40))
	rng("sort order 3", none.bytes(1, "r/").bytes(2, "r0").varint(5, 3))
	rng("sort target 5", none.bytes(1, "r/").bytes(2, "r0").varint(6, 5))
	rng("sort target 5 without range", none.bytes(1, "r/01").varint(6, 5))
	rng("key of a varint type", none.varint(1, 5).bytes(1, "r/01"))
	rng("limit of a bytes type", none.bytes(1, "r/").bytes(2, "r0").bytes(3, "\x01"))
	// Bytes that are not a message.
	rng("truncated length", message{0x0a, 0x20, 'r'})
	rng("truncated tag", message{0x80})
	rng("field number 0", message{0x02, 0x01, 'x'})
	rng("wire type 7", message{0x0f, 0x01})
	rng("end of a group that never began", message{0x0c})
	rng("group", message{0x9b, 0x06, 0x08, 0x01, 0x9c, 0x06}.bytes(1, "r/01"))
	rng("varint of eleven bytes", message{0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	put("truncated", message{0x0a, 0x05, 'a'})
	txn("truncated inside", none.sub(2, message{0x12, 0x05, 0x0a}))
	b.wire("truncated", "/etcdserverpb.Lease/LeaseGrant", message{0x08}, &pb.LeaseGrantResponse{})
	b.wire("truncated", "/etcdserverpb.Maintenance/HashKV", message{0x08}, &pb.HashKVResponse{})
	b.settled()
	b.wire("unknown fields", "/etcdserverpb.Maintenance/Status", none.varint(7, 7), &pb.StatusResponse{})
	b.wire("unknown fields", "/etcdserverpb.Lease/LeaseGrant", none.varint(1, 60).varint(2, 4321).bytes(9, "x"), &pb.LeaseGrantResponse{})
	// Methods and services that do not exist.
	for _, m := range []string{
		"/etcdserverpb.KV/Nope", "/etcdserverpb.Nope/Range", "/nope/nope", "/etcdserverpb.KV/", "/etcdserverpb.Watch/Range",
		"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/grpc.health.v1.Health/Nope",
	} {
		b.wire("unknown", m, none, rangeOut)
	}
	b.add("RangeStream called as if it were unary", func(ctx context.Context, s *session) answer {
		out := &pb.RangeStreamResponse{}
		err := s.conn.Invoke(ctx, kv+"RangeStream", rawBytes(none.bytes(1, "r/01")), out, grpc.ForceCodec(rawCodec{}))
		return s.answerOf(out, err)
	})
	// Compression that the server does not know.
	b.add("Range with an unknown encoding", func(ctx context.Context, s *session) answer {
		out := &pb.RangeResponse{}
		err := s.conn.Invoke(ctx, kv+"Range", rawBytes(none.bytes(1, "r/01")), out, grpc.ForceCodec(rawCodec{}), grpc.CallContentSubtype("json"))
		return s.answerOf(out, err)
	})
	b.everything()
}

// limitsSection runs with small limits on operations and bytes.
func limitsSection(b *script) {
	var five []*pb.RequestOp
	for i := range 5 {
		five = append(five, set(fmt.Sprint("k", i), "v"))
	}
	b.txn(&pb.TxnRequest{Success: five[:4]})
	b.txn(&pb.TxnRequest{Success: five})
	b.txn(&pb.TxnRequest{Failure: five})
	b.txn(&pb.TxnRequest{Success: append([]*pb.RequestOp{get("x")}, opTxn(&pb.TxnRequest{Success: five[:2]}))})
	b.txn(&pb.TxnRequest{Success: ops(get("x"), get("y"), opTxn(&pb.TxnRequest{Success: five[:2]}))})
	b.txn(&pb.TxnRequest{Success: ops(opTxn(&pb.TxnRequest{Success: ops(opTxn(&pb.TxnRequest{Success: five[:2]}))}))})
	b.txn(&pb.TxnRequest{Success: ops(opTxn(&pb.TxnRequest{Success: ops(opTxn(&pb.TxnRequest{Success: five[:3]}))}))})
	b.txn(&pb.TxnRequest{Success: ops(opTxn(&pb.TxnRequest{Success: five[:3]}), opTxn(&pb.TxnRequest{Success: five[3:]}))})
	for _, n := range []int{4000, 4080, 4097, 5000, 528_000, 600_000} {
		b.putReq(&pb.PutRequest{Key: k("size"), Value: pattern(n)})
	}
	b.rng(&pb.RangeRequest{Key: pattern(600_000)})
	// Answers are larger than requests may be, and streams stay complete.
	for i := range 40 {
		b.putReq(&pb.PutRequest{Key: k(numbered("s/", i)), Value: pattern(3000 + i)})
	}
	b.rng(&pb.RangeRequest{Key: k("s/"), RangeEnd: k("s0")})
	b.stream(&pb.RangeRequest{Key: k("s/"), RangeEnd: k("s0")})
	b.stream(&pb.RangeRequest{Key: k("s/"), RangeEnd: k("s0"), Limit: 17})
	b.watchOpen("w")
	b.watchCreate("w", &pb.WatchCreateRequest{Key: k("s/"), RangeEnd: k("s0"), StartRevision: 1, Fragment: true})
	b.watchDrain("w")
	b.everything()
}

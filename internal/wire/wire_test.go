package wire

import (
	"bytes"
	"fmt"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// decoders pairs every decoder with an empty message for it.
var decoders = []struct {
	name   string
	decode func([]byte) (proto.Message, error)
	empty  func() proto.Message
}{
	{"put", func(b []byte) (proto.Message, error) { return fromPlain(b, new(pb.PutRequest), DecodePut) },
		func() proto.Message { return new(pb.PutRequest) }},
	{"range", func(b []byte) (proto.Message, error) { m := new(pb.RangeRequest); return m, DecodeRange(b, m) },
		func() proto.Message { return new(pb.RangeRequest) }},
	{"delete", func(b []byte) (proto.Message, error) {
		return fromPlain(b, new(pb.DeleteRangeRequest), DecodeDeleteRange)
	}, func() proto.Message { return new(pb.DeleteRangeRequest) }},
	{"txn", func(b []byte) (proto.Message, error) { return fromPlain(b, new(pb.TxnRequest), DecodeTxn) },
		func() proto.Message { return new(pb.TxnRequest) }},
	{"watch", func(b []byte) (proto.Message, error) { m := new(pb.WatchRequest); return m, DecodeWatch(b, m) },
		func() proto.Message { return new(pb.WatchRequest) }},
	{"keepalive", func(b []byte) (proto.Message, error) {
		m := new(pb.LeaseKeepAliveRequest)
		return m, DecodeLeaseKeepAlive(b, m)
	}, func() proto.Message { return new(pb.LeaseKeepAliveRequest) }},
}

// fromPlain decodes a write. If that is plain, protobuf finds no unknown fields in it.
func fromPlain[M proto.Message](b []byte, m M, decode func([]byte, M) (bool, error)) (proto.Message, error) {
	plain, err := decode(b, m)
	if plain && err == nil {
		all := m.ProtoReflect().New().Interface()
		if err := proto.Unmarshal(b, all); err != nil || !proto.Equal(all, m) {
			return nil, fmt.Errorf("%x is plain, but protobuf finds %v (%v), not %v", b, all, err, m)
		}
	}
	return m, err
}

// What releases read differently is told from what all read alike.
func TestPlain(t *testing.T) {
	field := func(num protowire.Number, parts ...[]byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), bytes.Join(parts, nil))
	}
	number := func(num protowire.Number, v uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.VarintType), v)
	}
	key, value := field(1, []byte("a")), field(2, []byte("x"))
	put, del := field(2, key, value), field(3, key)
	compare := bytes.Join([][]byte{number(2, 3), field(3, []byte("a")), field(7, []byte("v"))}, nil)
	for name, tt := range map[string]struct {
		txn  []byte
		want bool
	}{
		"nothing":                 {nil, true},
		"all kinds":               {bytes.Join([][]byte{field(1, compare), field(2, put), field(2, del), field(3, field(1, key)), field(3, field(4, field(2, put)))}, nil), true},
		"two puts in one":         {field(2, field(2, key), field(2, value)), false},
		"two kinds in one":        {field(2, put, del), false},
		"the same, deeper":        {field(3, field(4, field(2, put, put))), false},
		"unknown field":           {field(9, key), false},
		"in an operation":         {field(2, put, number(9, 1)), false},
		"in a put":                {field(2, field(2, key, field(3, nil))), false},
		"in a range":              {field(2, field(1, key, number(99, 1))), false},
		"in a deletion":           {field(2, field(3, key, number(1, 1))), false},
		"in a comparison":         {field(1, compare, number(9, 1)), false},
		"in a nested transaction": {field(2, field(4, number(9, 1))), false},
	} {
		if plain, err := DecodeTxn(tt.txn, new(pb.TxnRequest)); plain != tt.want || err != nil {
			t.Errorf("%s (%x): plain %v, %v", name, tt.txn, plain, err)
		}
	}
	if plain, err := DecodePut(append(key, field(3, nil)...), new(pb.PutRequest)); plain || err != nil {
		t.Errorf("a put with a lease that is no number: plain %v, %v", plain, err)
	}
}

// checkDecode compares every decoder with protobuf's on one input.
func checkDecode(t *testing.T, b []byte) {
	t.Helper()
	for _, d := range decoders {
		got, gotErr := d.decode(b)
		want := d.empty()
		wantErr := proto.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(b, want)
		if (gotErr == nil) != (wantErr == nil) {
			t.Fatalf("%s of %x: got error %v, want %v", d.name, b, gotErr, wantErr)
		}
		if gotErr == nil && !proto.Equal(got, want) {
			t.Fatalf("%s of %x:\n got %v\nwant %v", d.name, b, got, want)
		}
	}
}

// encoders pairs every encoder with an empty message for it.
var encoders = []struct {
	name   string
	empty  func() proto.Message
	encode func(proto.Message) (out []byte, size int)
}{
	{"put", func() proto.Message { return new(pb.PutResponse) }, func(m proto.Message) ([]byte, int) {
		return AppendPut(nil, m.(*pb.PutResponse)), SizePut(m.(*pb.PutResponse))
	}},
	{"range", func() proto.Message { return new(pb.RangeResponse) }, func(m proto.Message) ([]byte, int) {
		return AppendRange(nil, m.(*pb.RangeResponse)), SizeRange(m.(*pb.RangeResponse))
	}},
	{"delete", func() proto.Message { return new(pb.DeleteRangeResponse) }, func(m proto.Message) ([]byte, int) {
		return AppendDeleteRange(nil, m.(*pb.DeleteRangeResponse)), SizeDeleteRange(m.(*pb.DeleteRangeResponse))
	}},
	{"txn", func() proto.Message { return new(pb.TxnResponse) }, func(m proto.Message) ([]byte, int) {
		return AppendTxn(nil, m.(*pb.TxnResponse)), SizeTxn(m.(*pb.TxnResponse))
	}},
}

// checkEncode decodes the input as every response in turn and compares the
// encoders with protobuf's.
func checkEncode(t *testing.T, b []byte) {
	t.Helper()
	read := proto.UnmarshalOptions{DiscardUnknown: true}
	for _, e := range encoders {
		m := e.empty()
		if read.Unmarshal(b, m) != nil {
			continue
		}
		want, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		got, size := e.encode(m)
		if !bytes.Equal(got, want) {
			t.Fatalf("%s %v:\n got %x\nwant %x", e.name, m, got, want)
		}
		if size != len(got) {
			t.Fatalf("%s %v: size %d, encoded %d", e.name, m, size, len(got))
		}
	}
	var k pb.LeaseKeepAliveResponse
	if read.Unmarshal(b, &k) == nil && k.Header != nil {
		h := header(k.Header)
		got := AppendLeaseKeepAlive(nil, &h, k.ID, k.TTL)
		check(t, &k, got, SizeLeaseKeepAlive(&h, k.ID, k.TTL))
		if len(got) > MaxLeaseKeepAlive {
			t.Fatalf("%v has %d bytes, more than MaxLeaseKeepAlive", &k, len(got))
		}
	}
}

func check(t *testing.T, m proto.Message, got []byte, size int) {
	t.Helper()
	want, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) || size != len(got) {
		t.Fatalf("%v:\n got %x (size %d)\nwant %x", m, got, size, want)
	}
}

func header(h *pb.ResponseHeader) Header {
	return Header{h.ClusterId, h.MemberId, h.Revision, h.RaftTerm}
}

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func putOf(k, v string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(k), Value: []byte(v)}}}
}

// samples are encoded requests and responses that use every field.
func samples(t testing.TB) [][]byte {
	kv := &mvccpb.KeyValue{Key: []byte("k"), CreateRevision: 2, ModRevision: 1 << 40, Version: 3, Value: bytes.Repeat([]byte("v"), 200), Lease: -1}
	h := &pb.ResponseHeader{ClusterId: 1 << 63, MemberId: 2, Revision: 300, RaftTerm: 4}
	nested := &pb.TxnRequest{Success: []*pb.RequestOp{putOf("a", "b"), {}}}
	return [][]byte{
		nil,
		marshal(t, &pb.PutRequest{Key: []byte("k"), Value: []byte("v"), Lease: -7, PrevKv: true, IgnoreValue: true, IgnoreLease: true}),
		marshal(t, &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte{0}, Limit: 5, Revision: 6, SortOrder: 2, SortTarget: 9, Serializable: true,
			KeysOnly: true, CountOnly: true, MinModRevision: 1, MaxModRevision: 2, MinCreateRevision: 3, MaxCreateRevision: -4}),
		marshal(t, &pb.DeleteRangeRequest{Key: []byte("k"), RangeEnd: []byte("l"), PrevKv: true}),
		marshal(t, &pb.TxnRequest{
			Compare: []*pb.Compare{
				{Result: 1, Target: 3, Key: []byte("k"), TargetUnion: &pb.Compare_Value{}, RangeEnd: []byte("z")},
				{TargetUnion: &pb.Compare_Version{Version: 1}}, {TargetUnion: &pb.Compare_CreateRevision{CreateRevision: -1}},
				{TargetUnion: &pb.Compare_ModRevision{ModRevision: 0}}, {TargetUnion: &pb.Compare_Lease{Lease: 5}},
			},
			Success: []*pb.RequestOp{putOf("a", ""), {Request: &pb.RequestOp_RequestTxn{RequestTxn: nested}}},
			Failure: []*pb.RequestOp{
				{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("r")}}},
				{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("d")}}}, {},
			},
		}),
		marshal(t, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
			Key: []byte("k"), RangeEnd: []byte("l"), StartRevision: 3, ProgressNotify: true,
			Filters: []pb.WatchCreateRequest_FilterType{0, 1, 300}, PrevKv: true, WatchId: 4, Fragment: true}}}),
		marshal(t, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: 9}}}),
		marshal(t, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}),
		marshal(t, &pb.LeaseKeepAliveRequest{ID: 77}),
		marshal(t, &pb.PutResponse{Header: h, PrevKv: kv}),
		marshal(t, &pb.RangeResponse{Header: h, Kvs: []*mvccpb.KeyValue{kv, {}}, More: true, Count: 1 << 33}),
		marshal(t, &pb.DeleteRangeResponse{Header: h, Deleted: 2, PrevKvs: []*mvccpb.KeyValue{kv, kv}}),
		marshal(t, &pb.TxnResponse{Header: h, Succeeded: true, Responses: []*pb.ResponseOp{
			{Response: &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{}}},
			{Response: &pb.ResponseOp_ResponseRange{ResponseRange: &pb.RangeResponse{Kvs: []*mvccpb.KeyValue{kv}, Count: 1}}},
			{Response: &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: &pb.DeleteRangeResponse{Header: &pb.ResponseHeader{Revision: 3}, Deleted: 1}}},
			{Response: &pb.ResponseOp_ResponseTxn{ResponseTxn: &pb.TxnResponse{Responses: []*pb.ResponseOp{{}}}}},
			{},
		}}),
		marshal(t, &pb.LeaseKeepAliveResponse{Header: h, ID: 5, TTL: 60}),
		marshal(t, &pb.LeaseKeepAliveResponse{Header: &pb.ResponseHeader{ClusterId: 1<<64 - 1, MemberId: 1<<64 - 1, Revision: -1, RaftTerm: 1<<64 - 1}, ID: -1, TTL: -1}),
		marshal(t, &pb.WatchResponse{Header: h, WatchId: -1, Created: true, Canceled: true, CompactRevision: 8, CancelReason: "no", Fragment: true,
			Events: []*mvccpb.Event{{Type: 1, Kv: kv, PrevKv: kv}, {}}}),
	}
}

func TestSamples(t *testing.T) {
	for _, b := range samples(t) {
		checkDecode(t, b)
		checkEncode(t, b)
		for cut := range b { // every truncated message
			checkDecode(t, b[:cut])
		}
	}
}

func TestOddInput(t *testing.T) {
	put := marshal(t, putOf("k", "v"))
	txnWith := func(op []byte) []byte { return append(protowire.AppendVarint([]byte{0x12}, uint64(len(op))), op...) }
	for _, c := range []struct {
		name string
		b    []byte
	}{
		{"field given twice", []byte("\x0a\x01a\x0a\x01b")},
		{"tag longer than needed", []byte("\x8a\x00\x01a")},
		{"known field of another wire type", []byte("\x08\x05\x15\x01\x02\x03\x04")},
		{"unknown field", []byte("\xfa\x07\x03abc\x0a\x01k")},
		{"unknown group", []byte("\xfb\x07\x08\x01\xfc\x07\x0a\x01k")},
		{"group that ends another", []byte("\xfb\x07\x08\x01\xf4\x07")},
		{"end of no group", []byte("\x0c")},
		{"field number 0", []byte("\x02\x01a")},
		{"field number too large", []byte("\x82\x80\x80\x80\x20\x00")},
		{"wire type 6", []byte("\x0e\x00")},
		{"varint of 11 bytes", []byte("\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")},
		{"length beyond the end", []byte("\x0a\x7fa")},
		{"bool of 2", []byte("\x20\x02")},
		{"enum beyond 32 bits", []byte("\x28\xff\xff\xff\xff\x7f")},
		{"oneof merged", txnWith(append(append([]byte{}, put...), marshal(t, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Lease: 3}}})...))},
		{"oneof replaced", txnWith(append(append([]byte{}, put...), marshal(t, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Limit: 3}}})...))},
		{"packed filters", []byte("\x0a\x05\x2a\x03\x00\x01\x01")},
		{"packed filters torn", []byte("\x0a\x04\x2a\x02\x00\x80")},
	} {
		t.Run(c.name, func(t *testing.T) {
			checkDecode(t, c.b)
			checkDecode(t, append([]byte{0x0a, byte(len(c.b))}, c.b...)) // and nested one level
			checkDecode(t, append([]byte{0x12, byte(len(c.b))}, c.b...))
		})
	}
}

// Nesting is bounded as in protobuf, so no input can exhaust the stack.
func TestNestingBound(t *testing.T) {
	nest := func(levels int) []byte {
		b := marshal(t, &pb.TxnRequest{Compare: []*pb.Compare{{}}})
		for range levels {
			op := append(protowire.AppendVarint([]byte{0x22}, uint64(len(b))), b...)
			b = append(protowire.AppendVarint([]byte{0x12}, uint64(len(op))), op...)
		}
		return b
	}
	for _, levels := range []int{100, 4998, 4999, 5000, 5001} {
		var got, want pb.TxnRequest
		_, gotErr := DecodeTxn(nest(levels), &got)
		wantErr := proto.Unmarshal(nest(levels), &want)
		if (gotErr == nil) != (wantErr == nil) {
			t.Errorf("%d levels: got error %v, want %v", levels, gotErr, wantErr)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, b := range samples(f) {
		f.Add(b)
	}
	f.Fuzz(checkDecode)
}

func FuzzEncode(f *testing.F) {
	for _, b := range samples(f) {
		f.Add(b)
	}
	f.Fuzz(checkEncode)
}

func BenchmarkDecodePut(b *testing.B) {
	in := marshal(b, &pb.PutRequest{Key: make([]byte, 32), Value: make([]byte, 256)})
	b.Run("hand", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := DecodePut(in, new(pb.PutRequest)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("proto", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := proto.Unmarshal(in, new(pb.PutRequest)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkDecodeTxn(b *testing.B) {
	in := marshal(b, &pb.TxnRequest{
		Compare: []*pb.Compare{{Key: make([]byte, 32), Target: pb.Compare_MOD, TargetUnion: &pb.Compare_ModRevision{ModRevision: 12345}}},
		Success: []*pb.RequestOp{putOf("/registry/pods/default/x", string(make([]byte, 256)))},
	})
	b.Run("hand", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := DecodeTxn(in, new(pb.TxnRequest)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("proto", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := proto.Unmarshal(in, new(pb.TxnRequest)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

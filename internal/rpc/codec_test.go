package rpc

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"quorate/internal/mvcc"
	"quorate/internal/watch"
	"quorate/internal/wire"
)

// sized returns encoded KeyValues of about the given lengths.
func sized(t testing.TB, lens ...int) (raw [][]byte, kvs []*mvccpb.KeyValue) {
	for i, n := range lens {
		kv := &mvccpb.KeyValue{Key: []byte{'k', byte(i)}, ModRevision: int64(i), Value: bytes.Repeat([]byte{byte(i)}, n)}
		b, err := proto.Marshal(kv)
		if err != nil {
			t.Fatal(err)
		}
		raw, kvs = append(raw, b), append(kvs, kv)
	}
	return raw, kvs
}

// checkSame compares an encoded reply with protobuf's encoding.
func checkSame(t testing.TB, v any, m proto.Message) {
	t.Helper()
	got, err := encode(v)
	if err != nil {
		t.Fatal(err)
	}
	want, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Materialize(), want) {
		t.Fatalf("%T in %d buffers differs from protobuf's %d bytes", v, len(got), len(want))
	}
	got.Free()
	r, err := reply(v)
	if err != nil {
		t.Fatal(err)
	}
	sent := r.Pieces.Materialize()
	if r.Small != nil {
		sent = r.Small.AppendTo([]byte("before"))[len("before"):]
	}
	if !bytes.Equal(sent, want) || r.Len() != len(want) || r.Small != nil && len(want) > smallResponse {
		t.Fatalf("%T as a reply (in place: %v) of %d bytes differs from protobuf's %d bytes", v, r.Small != nil, r.Len(), len(want))
	}
	r.Pieces.Free()
}

func repeat(n, size int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = size
	}
	return out
}

// TestAssemble covers every way to assemble a reply: one small buffer, one pooled buffer,
// chunks, and shared values.
func TestAssemble(t *testing.T) {
	h := wire.Header{ClusterID: fakeCluster, MemberID: fakeMember, Revision: 9, Term: 7}
	ph := &pb.ResponseHeader{ClusterId: fakeCluster, MemberId: fakeMember, Revision: 9, RaftTerm: 7}
	cases := [][]int{
		nil, {0}, {1}, {900}, {1100}, {pieceSize - 100}, {pieceSize - 40}, {pieceSize}, {pieceSize + 1},
		{shareFrom - 40}, {shareFrom}, {100, shareFrom, 200, 3 * shareFrom, 5},
		repeat(40, 1000), repeat(40, shareFrom+1), repeat(2000, 700), repeat(9000, 120), {2 << 20}, {3, 2 << 20, 300, 200},
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		var lens []int
		for range rnd.IntN(60) {
			lens = append(lens, rnd.IntN(1<<rnd.IntN(15)))
		}
		cases = append(cases, lens)
	}
	for _, lens := range cases {
		raw, kvs := sized(t, lens...)
		checkSame(t, &rangeReply{header: h, res: &mvcc.RangeResult{Count: 300, More: true, KVs: raw}},
			&pb.RangeResponse{Header: ph, Kvs: kvs, Count: 300, More: true})
		checkSame(t, &rangeChunk{elems: elements(raw)},
			&pb.RangeStreamResponse{RangeResponse: &pb.RangeResponse{Kvs: kvs}})
		checkSame(t, &rangeChunk{header: &h, elems: elements(raw), count: 4},
			&pb.RangeStreamResponse{RangeResponse: &pb.RangeResponse{Header: ph, Kvs: kvs, Count: 4}})
		del := &pb.DeleteRangeResponse{Header: ph, Deleted: int64(len(kvs)), PrevKvs: kvs}
		checkSame(t, del, del)

		wr := &pb.WatchResponse{Header: ph, WatchId: 3}
		reply := &watchReply{header: watch.Header{ClusterID: fakeCluster, MemberID: fakeMember, RaftTerm: 7}, res: watch.Response{WatchID: 3, Revision: 9}}
		for _, kv := range kvs {
			ev := &mvccpb.Event{Kv: kv}
			wr.Events = append(wr.Events, ev)
			one, err := proto.Marshal(&pb.WatchResponse{Events: []*mvccpb.Event{ev}})
			if err != nil {
				t.Fatal(err)
			}
			reply.res.Events = append(reply.res.Events, one)
		}
		checkSame(t, reply, wr)
	}
}

func TestOtherMessages(t *testing.T) {
	m := &pb.StatusResponse{Version: "3.7.3", Errors: []string{"x"}, DbSize: 5}
	checkSame(t, m, m)
	if _, err := encode(&pb.StatusResponse{Version: "\xff"}); err == nil {
		t.Error("a string that is not UTF-8 was encoded")
	}
	if _, err := encode(5); err == nil {
		t.Error("a number was encoded")
	}
	if err := decode([]byte("x"), new(int)); err == nil {
		t.Error("a number was decoded")
	}
	in := []byte("\x08\x05")
	var req pb.CompactionRequest
	if err := decode(in, &req); err != nil || req.Revision != 5 {
		t.Errorf("got %v, %v", &req, err)
	}
}

// Shared values must be the stored bytes themselves.
func TestSharing(t *testing.T) {
	raw, _ := sized(t, 10, 100_000, 10)
	out := (&rangeReply{res: &mvcc.RangeResult{KVs: raw}}).marshal()
	defer out.Free()
	for _, b := range out {
		if d := b.ReadOnlyData(); len(d) == len(raw[1]) && &d[0] == &raw[1][0] {
			return
		}
	}
	t.Error("a value of 100 kB was copied")
}

func FuzzCodec(f *testing.F) {
	f.Add([]byte("\x0a\x01k\x12\x01v"))
	f.Add([]byte("\x12\x05\x12\x03\x0a\x01k"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, v := range []any{new(putCall), new(rangeCall), new(deleteCall), new(txnCall), new(watchCall), new(keepAliveCall), new(pb.AlarmRequest)} {
			if err := decode(bytes.Clone(b), v); err != nil {
				continue
			}
			switch c := v.(type) {
			case *txnCall:
				_ = checkTxn(&c.req, 128)
			case *rangeCall:
				_ = checkRangeStream(&c.req)
			}
		}
	})
}

func BenchmarkMarshalRange(b *testing.B) {
	for _, c := range []struct {
		name    string
		n, size int
	}{{"1x256", 1, 256}, {"500x256", 500, 256}, {"500x1000", 500, 1000}, {"10000x1000", 10000, 1000}, {"100x10000", 100, 10000}} {
		b.Run(c.name, func(b *testing.B) {
			raw, _ := sized(b, repeat(c.n, c.size)...)
			r := &rangeReply{res: &mvcc.RangeResult{KVs: raw, Count: int64(c.n)}}
			b.ReportAllocs()
			for b.Loop() {
				r.marshal().Free()
			}
		})
	}
}

func mustMarshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestMarshalAfterSize marshals a message that has grown since its size was computed.
func TestMarshalAfterSize(t *testing.T) {
	m := &pb.LeaseGrantResponse{Header: &pb.ResponseHeader{}}
	proto.Size(m)
	m.Header.ClusterId, m.ID = 1<<60, 7
	out, err := encode(m)
	if err != nil {
		t.Fatal(err)
	}
	var got pb.LeaseGrantResponse
	if err := proto.Unmarshal(out.Materialize(), &got); err != nil || !proto.Equal(&got, m) {
		t.Errorf("got %v, %v; want %v", &got, err, m)
	}
}

// elements returns parts as elements of RangeResponse.kvs.
func elements(parts [][]byte) (b []byte) {
	for _, p := range parts {
		b = appendPart(b, tagKVs, p)
	}
	return b
}

// The log gets the bytes of a write as they came only if all releases read them alike.
func TestOnlyPlainBytesAreLogged(t *testing.T) {
	plain := []byte("\x0a\x01k\x12\x01v")
	odd := append(plain[:len(plain):len(plain)], "\x1a\x00"...) // a lease that is no number
	for _, b := range [][]byte{plain, odd} {
		var p putCall
		var x txnCall
		var d deleteCall
		if err := errors.Join(decode(b, &p), decode(append([]byte{0x12, byte(len(b)) + 2, 0x12, byte(len(b))}, b...), &x), decode(b, &d)); err != nil {
			t.Fatal(err)
		}
		want := len(b) == len(plain)
		for _, raw := range [][]byte{p.raw, x.raw, d.raw} {
			if (raw != nil) != want {
				t.Errorf("%x: raw %x", b, raw)
			}
		}
		if string(p.req.Value) != "v" || string(x.req.Success[0].GetRequestPut().Value) != "v" || string(d.req.RangeEnd) != "v" {
			t.Errorf("%x is decoded as %v, %v, %v", b, &p.req, &x.req, &d.req)
		}
	}
	m := &pb.LeaseGrantRequest{}
	if err := decode([]byte("\x08\x05\x62\x01x"), m); err != nil || m.TTL != 5 || len(m.ProtoReflect().GetUnknown()) > 0 {
		t.Errorf("a field of another release gets into the log: %v, %v", m, err)
	}
}

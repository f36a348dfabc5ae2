package command

import (
	"bytes"
	"testing"

	"quorate/internal/legacy/v2request"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

func TestEncodeEqualsProto(t *testing.T) {
	put := &pb.PutRequest{Key: []byte("k"), Value: []byte("v"), Lease: 7, PrevKv: true}
	body, err := proto.Marshal(put)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range []*pb.RequestHeader{
		{ID: 0x1234567890},
		{ID: 1, Username: "root", AuthRevision: 300},
		{ID: 1 << 63, Username: "ü"},
		{AuthRevision: 1},
	} {
		got := Encode(h, Put, body)
		want, err := EncodeRequest(&pb.InternalRaftRequest{Header: h, Put: put})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) && h.ID != 0 {
			t.Errorf("%v: got %x, want %x", h, got, want)
		}
		req, err := Decode(got)
		if err != nil || !proto.Equal(req.Header, h) {
			t.Errorf("%v came back as %v, %v", h, req.GetHeader(), err)
		}
	}
}

func TestDecode(t *testing.T) {
	reqs := []*pb.InternalRaftRequest{
		{ID: 5, Put: &pb.PutRequest{Key: []byte("a")}},
		{Header: &pb.RequestHeader{ID: 1, AuthRevision: 3}, Put: &pb.PutRequest{Key: []byte("a"), Value: bytes.Repeat([]byte("x"), 300), Lease: -1, IgnoreLease: true}},
		{Header: &pb.RequestHeader{ID: 1, Username: "u"}, Put: &pb.PutRequest{Key: []byte("a"), IgnoreValue: true}},
		{Header: &pb.RequestHeader{ID: 9}, Txn: &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("z")}}}}}},
		{Header: &pb.RequestHeader{ID: 10}, DeleteRange: &pb.DeleteRangeRequest{Key: []byte("a"), RangeEnd: []byte("b"), PrevKv: true}},
		{Header: &pb.RequestHeader{ID: 9}, LeaseRevoke: &pb.LeaseRevokeRequest{ID: 4}},
	}
	for _, want := range reqs {
		b, err := proto.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(b)
		if err != nil {
			t.Fatalf("%v: %v", want, err)
		}
		if !proto.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		if id, ok := PeekID(b); !ok || id != ID(want) {
			t.Errorf("peeked id %d %v, want %d", id, ok, ID(want))
		}
		if ID(got) != ID(want) || Op(got) != Op(want) {
			t.Errorf("id/op %d %s, want %d %s", ID(got), Op(got), ID(want), Op(want))
		}
	}
}

// Members of etcd up to 3.6 put strings of any bytes into the log, and apply them.
func TestDecodeOfStringsThatAreNotUTF8(t *testing.T) {
	for _, want := range []*pb.InternalRaftRequest{
		{Header: &pb.RequestHeader{ID: 1, Username: "abc"}, Put: &pb.PutRequest{Key: []byte("k")}},
		{Header: &pb.RequestHeader{ID: 1, Username: "root"}, AuthUserAdd: &pb.AuthUserAddRequest{Name: "abc"}},
	} {
		b, err := proto.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(bytes.ReplaceAll(b, []byte("abc"), []byte("\xffA\x80")))
		if err != nil {
			t.Fatal(err)
		}
		if got.Header.Username != "\xffA\x80" && got.AuthUserAdd.GetName() != "\xffA\x80" || Op(got) != Op(want) {
			t.Errorf("%v is decoded as %v", want, got)
		}
	}
}

func TestDecodeRefusesWhatItDoesNotKnow(t *testing.T) {
	b, _ := proto.Marshal(&pb.InternalRaftRequest{Header: &pb.RequestHeader{ID: 1}})
	if _, err := Decode(append(b, 0x9a, 0x4e, 0x00)); err == nil { // field 1251
		t.Error("entry with an unknown request was accepted")
	}
	if _, err := Decode([]byte{0x22, 0x05, 0x01}); err == nil {
		t.Error("torn entry was accepted")
	}
}

// FuzzDecode compares the fast decoder with the reflective one.
func FuzzDecode(f *testing.F) {
	f.Add(Encode(&pb.RequestHeader{ID: 1}, Put, []byte{0x0a, 1, 'k', 0x12, 1, 'v', 0x18, 1}))
	f.Add(Encode(&pb.RequestHeader{ID: 1, Username: "u", AuthRevision: 3}, Txn, nil))
	f.Add([]byte{8, 1, 0x22, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := Decode(data)
		if err != nil {
			return
		}
		if _, v2, _ := v2request.Decode(data); v2 {
			return // unknown to proto
		}
		want := &pb.InternalRaftRequest{}
		if err := wire.Unmarshal(data, want); err != nil {
			t.Fatalf("accepted what proto refuses: %v", err)
		}
		want.ProtoReflect().SetUnknown(nil) // unknown fields are dropped and have no effect
		if !proto.Equal(known(want), known(got)) {
			t.Fatalf("got %v, want %v", got, want)
		}
	})
}

// known returns the part of a request that this version applies.
func known(r *pb.InternalRaftRequest) *pb.InternalRaftRequest {
	r = proto.Clone(r).(*pb.InternalRaftRequest)
	dropUnknown(r.ProtoReflect())
	return r
}

func dropUnknown(m protoreflect.Message) {
	m.SetUnknown(nil)
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				dropUnknown(v.List().Get(i).Message())
			}
		default:
			dropUnknown(v.Message())
		}
		return true
	})
}

package rpc

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

func TestRangeStream(t *testing.T) {
	f := newFake(t)
	conn := dialRaw(t, serve(t, testOptions(), f))
	kv := func(k string) []byte {
		b, err := proto.Marshal(&mvccpb.KeyValue{Key: []byte(k), Value: make([]byte, 50_000)})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	f.chunks = [][][]byte{{kv("a"), kv("b")}, {kv("c")}, {kv("d"), kv("e")}}
	stream := func(req *pb.RangeRequest) (*pb.RangeResponse, []int, error) {
		s, err := pb.NewKVClient(conn).RangeStream(testContext(t), req)
		if err != nil {
			t.Fatal(err)
		}
		whole, sizes := new(pb.RangeResponse), []int(nil)
		for {
			r, err := s.Recv()
			if err == io.EOF {
				return whole, sizes, nil
			}
			if err != nil {
				return nil, sizes, err
			}
			sizes = append(sizes, len(r.RangeResponse.Kvs))
			if whole.Header != nil {
				t.Error("a chunk follows the one with the header")
			}
			proto.Merge(whole, r.RangeResponse)
		}
	}
	got, sizes, err := stream(&pb.RangeRequest{Key: []byte("a")})
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(sizes) != "[2 1 2]" || len(got.Kvs) != 5 || string(got.Kvs[4].Key) != "e" {
		t.Errorf("got chunks %v of %d keys", sizes, len(got.Kvs))
	}
	if !got.More || got.Count != 10 || !proto.Equal(got.Header, &pb.ResponseHeader{ClusterId: fakeCluster, MemberId: fakeMember, RaftTerm: fakeTerm, Revision: 42}) {
		t.Errorf("got more %v, count %d, header %v", got.More, got.Count, got.Header)
	}
	f.chunks = nil
	if got, sizes, err := stream(&pb.RangeRequest{Key: []byte("a"), CountOnly: true}); err != nil || fmt.Sprint(sizes) != "[0]" || got.Count != 5 {
		t.Errorf("no keys: got %v in %v, %v", got, sizes, err)
	}
	for _, c := range []struct {
		req  *pb.RangeRequest
		code codes.Code
		text string
	}{
		{&pb.RangeRequest{}, codes.InvalidArgument, "etcdserver: key is not provided"},
		{&pb.RangeRequest{Key: []byte("a"), SortOrder: 9}, codes.InvalidArgument, "etcdserver: invalid sort option"},
		{&pb.RangeRequest{Key: []byte("a"), SortOrder: pb.RangeRequest_DESCEND}, codes.Unimplemented, "RangeStream does not support custom sort orders"},
		{&pb.RangeRequest{Key: []byte("a"), SortTarget: pb.RangeRequest_MOD, SortOrder: pb.RangeRequest_ASCEND}, codes.Unimplemented, "RangeStream does not support custom sort orders"},
		{&pb.RangeRequest{Key: []byte("a"), MinModRevision: 1}, codes.Unimplemented, "RangeStream does not support revision filters"},
		{&pb.RangeRequest{Key: []byte("a"), MaxCreateRevision: 1}, codes.Unimplemented, "RangeStream does not support revision filters"},
		{&pb.RangeRequest{Key: []byte("a"), SortTarget: pb.RangeRequest_MOD}, codes.OK, ""},
		{&pb.RangeRequest{Key: []byte("a"), SortOrder: pb.RangeRequest_ASCEND}, codes.OK, ""},
	} {
		_, _, err := stream(c.req)
		if s := status.Convert(err); s.Code() != c.code || s.Message() != c.text {
			t.Errorf("%v: got %v", c.req, err)
		}
	}
}

func TestSnapshot(t *testing.T) {
	f := newFake(t)
	conn := dialRaw(t, serve(t, testOptions(), f))
	for _, size := range []int{0, 1, snapshotChunk - 1, snapshotChunk, 3*snapshotChunk + 17} {
		file := make([]byte, size)
		rnd := rand.NewChaCha8([32]byte{byte(size)})
		rnd.Read(file)
		body := &slowReader{Reader: bytes.NewReader(file)}
		f.file, f.size = body, int64(size)
		s, err := pb.NewMaintenanceClient(conn).Snapshot(testContext(t), &pb.SnapshotRequest{})
		if err != nil {
			t.Fatal(err)
		}
		var got []byte
		left := uint64(size)
		for {
			r, err := s.Recv()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			left -= min(left, uint64(len(r.Blob)))
			if len(r.Blob) > snapshotChunk || r.Version != "3.7.0" || r.RemainingBytes != left {
				t.Errorf("size %d: message of %d bytes, version %q, %d remaining of %d", size, len(r.Blob), r.Version, r.RemainingBytes, left)
			}
			got = append(got, r.Blob...)
		}
		sum := sha256.Sum256(file)
		if !bytes.Equal(got, append(file, sum[:]...)) {
			t.Errorf("size %d: got %d bytes, which are not the file and its sum", size, len(got))
		}
		waitFor(t, "the body to be closed", body.closed.Load)
	}
	f.file, f.size = &slowReader{Reader: strings.NewReader("short")}, 10
	s, err := pb.NewMaintenanceClient(conn).Snapshot(testContext(t), &pb.SnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := s.Recv(); status.Code(err) != codes.Unknown {
		t.Errorf("short body: got %v, %v", r, err)
	}
}

func TestHealth(t *testing.T) {
	f := newFake(t)
	o := testOptions()
	conn := dialRaw(t, serve(t, o, f))
	h := healthpb.NewHealthClient(conn)
	if r, err := h.Check(testContext(t), &healthpb.HealthCheckRequest{}); err != nil || r.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("got %v, %v", r, err)
	}
	_, err := h.Check(testContext(t), &healthpb.HealthCheckRequest{Service: "etcdserverpb.KV"})
	if s := status.Convert(err); s.Code() != codes.NotFound || s.Message() != "unknown service" {
		t.Errorf("another service: got %v", err)
	}
}

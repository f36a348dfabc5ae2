package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"quorate/internal/metrics"
)

func TestClientVersion(t *testing.T) {
	f := newFake(t)
	conn := dialRaw(t, serve(t, testOptions(), f))
	call := func(version string) error {
		ctx := testContext(t)
		if version != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, rpctypes.MetadataClientAPIVersionKey, version)
		}
		return conn.Invoke(ctx, "/etcdserverpb.KV/Range", &pb.RangeRequest{Key: []byte("k")}, new(pb.RangeResponse))
	}
	count := func(version string) float64 {
		return counted(metrics.ServerClientRequestsTotal.WithLabelValues("unary", version))
	}
	known, unknown := count("3.7"), count("unknown")
	for _, v := range []string{"3.7", "3.7", ""} {
		if err := call(v); err != nil {
			t.Fatal(err)
		}
	}
	if got := count("3.7") - known; got != 2 {
		t.Errorf("version 3.7: counted %v calls, want 2", got)
	}
	if got := count("unknown") - unknown; got != 1 {
		t.Errorf("no version: counted %v calls, want 1", got)
	}
	for i := range 2 * maxClientVersions {
		if err := call(fmt.Sprint("9.", i)); err != nil {
			t.Fatal(err)
		}
	}
	if got := count("unknown") - unknown; got < maxClientVersions {
		t.Errorf("%d versions: %v counted as unknown, want at least %d", 2*maxClientVersions, got, maxClientVersions)
	}
}

// gRPC clients cannot send metadata that is not UTF-8, so call admit directly.
func TestClientVersionNotUTF8(t *testing.T) {
	e := &edge{b: fit(newFake(t))}
	ctx := metadata.NewIncomingContext(context.Background(), metadata.Pairs(rpctypes.MetadataClientAPIVersionKey, "\xff"))
	if _, err := e.admit(ctx, newClientVersions("unary"), false); err != rpctypes.ErrGRPCInvalidClientAPIVersion {
		t.Errorf("got %v", err)
	}
}

// rawCodec passes bytes through unchanged.
type rawCodec struct{}

func (rawCodec) Name() string                       { return "proto" }
func (rawCodec) Marshal(v any) ([]byte, error)      { return v.([]byte), nil }
func (rawCodec) Unmarshal(data []byte, v any) error { *v.(*[]byte) = bytes.Clone(data); return nil }

func TestMalformedAndTooLarge(t *testing.T) {
	o := testOptions()
	o.MaxRequestBytes = 1000
	conn := dialRaw(t, serve(t, o, newFake(t)), grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{})))
	const limit = 1000 + 512<<10
	for _, c := range []struct {
		name string
		req  []byte
		code codes.Code
		text string
	}{
		{"malformed", []byte("\x0a\x7f"), codes.Internal, "grpc: error unmarshalling request: proto: cannot parse invalid wire-format data"},
		{"largest", largePut(limit), codes.OK, ""},
		{"too large", largePut(limit + 1), codes.ResourceExhausted, fmt.Sprintf("grpc: received message larger than max (%d vs. %d)", limit+1, limit)},
	} {
		var resp []byte
		err := conn.Invoke(testContext(t), "/etcdserverpb.KV/Put", c.req, &resp)
		if s := status.Convert(err); s.Code() != c.code || s.Message() != c.text {
			t.Errorf("%s: got %v", c.name, err)
		}
	}
	err := conn.Invoke(testContext(t), "/etcdserverpb.KV/Nothing", []byte{}, new([]byte))
	if s := status.Convert(err); s.Code() != codes.Unimplemented || s.Message() != "unknown method Nothing for service etcdserverpb.KV" {
		t.Errorf("unknown method: got %v", err)
	}
}

// largePut returns an encoded put of n bytes.
func largePut(n int) []byte {
	req := &pb.PutRequest{Key: []byte("k"), Value: make([]byte, n-7)}
	b, err := proto.Marshal(req)
	if err != nil || len(b) != n {
		panic(fmt.Sprint("put of ", len(b), " bytes: ", err))
	}
	return b
}

// TestRawRequests checks that the member gets the bytes of a write as received, and that
// nothing overwrites them later.
func TestRawRequests(t *testing.T) {
	f := newFake(t)
	conn := dialRaw(t, serve(t, testOptions(), f))
	var sent [][]byte
	for i, n := range []int{1, 100, 1000, 1020, 1030, 5000, 20_000, 100_000} {
		value := bytes.Repeat([]byte{byte('a' + i)}, n)
		for _, req := range []proto.Message{
			&pb.PutRequest{Key: []byte("k"), Value: value},
			&pb.DeleteRangeRequest{Key: value},
			&pb.TxnRequest{Success: ops(put("k", string(value)))},
		} {
			method, resp := methodOf(t, req)
			if err := conn.Invoke(testContext(t), method, req, resp); err != nil {
				t.Fatal(err)
			}
			b, err := proto.Marshal(req)
			if err != nil {
				t.Fatal(err)
			}
			sent = append(sent, b)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, want := range sent {
		if !bytes.Equal(f.raws[i], want) {
			t.Errorf("request %d (%T): raw bytes differ", i, f.reqs[i])
		}
		got, err := proto.Marshal(f.reqs[i])
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("request %d (%T): the decoded request has changed (%v)", i, f.reqs[i], err)
		}
	}
}

func TestClient(t *testing.T) {
	f := newFake(t)
	c := dialClient(t, serve(t, testOptions(), f))
	ctx := testContext(t)
	p, err := c.Put(ctx, "k", "v1")
	if err != nil || p.Header.Revision != 2 || p.PrevKv != nil {
		t.Fatalf("put: %v %v", p, err)
	}
	if p, err = c.Put(ctx, "k", "v2", clientv3.WithPrevKV()); err != nil || string(p.PrevKv.GetValue()) != "v1" {
		t.Fatalf("second put: %v %v", p, err)
	}
	for _, k := range []string{"l", "m", "n"} {
		if _, err := c.Put(ctx, k, strings.Repeat(k, 10_000)); err != nil {
			t.Fatal(err)
		}
	}
	g, err := c.Get(ctx, "k", clientv3.WithRange("z"), clientv3.WithLimit(3))
	if err != nil || len(g.Kvs) != 3 || g.Count != 4 || !g.More || g.Header.Revision != 6 ||
		string(g.Kvs[0].Value) != "v2" || g.Kvs[0].Version != 2 || len(g.Kvs[2].Value) != 10_000 {
		t.Fatalf("get: %v %v", g, err)
	}
	x, err := c.Txn(ctx).If(clientv3.Compare(clientv3.Version("k"), "=", 2)).
		Then(clientv3.OpPut("t", "1"), clientv3.OpGet("k")).Commit()
	if err != nil || !x.Succeeded || len(x.Responses) != 2 || string(x.Responses[1].GetResponseRange().Kvs[0].Value) != "v2" {
		t.Fatalf("txn: %v %v", x, err)
	}
	if h := x.Responses[0].GetResponsePut().Header; h.Revision != 7 || h.ClusterId != 0 {
		t.Errorf("header inside a txn: %v, want revision 7 alone", h)
	}
	d, err := c.Delete(ctx, "l", clientv3.WithRange("z"), clientv3.WithPrevKV())
	if err != nil || d.Deleted != 4 || len(d.PrevKvs) != 4 || d.Header.Revision != 8 {
		t.Fatalf("delete: %v %v", d, err)
	}
	if _, err := c.Put(ctx, "", ""); !errors.Is(err, rpctypes.ErrEmptyKey) {
		t.Errorf("put without key: %v", err)
	}
	if m, err := c.MemberList(ctx); err != nil || len(m.Members) != 1 || m.Members[0].Name != "a" {
		t.Errorf("member list: %v %v", m, err)
	}
}

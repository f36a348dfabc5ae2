package main

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"quorate/bench/lean"
)

// A fast client that gets different answers from other clients would measure something else. So each run makes
// the same calls with grpc-go's client, too.

// codec sends []byte unchanged and fills *reply.
type codec struct{}

// The name decides the content type; "proto" is what every client of etcd sends.
func (codec) Name() string { return "proto" }

func (codec) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("marshal: unexpected type %T", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	r, ok := v.(*reply)
	if !ok {
		return fmt.Errorf("unmarshal: unexpected type %T", v)
	}
	r.size = data.Len()
	if r.keep {
		r.body = data.Materialize()
	}
	return nil
}

var callOptions = []grpc.CallOption{
	grpc.ForceCodecV2(codec{}), grpc.MaxCallRecvMsgSize(1 << 31), grpc.MaxCallSendMsgSize(1 << 31),
}

// heard is what a client receives for a call.
type heard struct {
	code     int
	message  string
	revision int64
	size     int
}

// agree makes calls of each kind, valid and invalid, with both clients and compares what they receive.
func agree(ctx context.Context, s *side) error {
	creds := insecure.NewCredentials()
	if s.options.TLS != nil {
		creds = credentials.NewTLS(s.options.TLS)
	}
	other, err := grpc.NewClient("passthrough:///"+s.addrs()[0], grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(callOptions...))
	if err != nil {
		return err
	}
	defer other.Close()
	put := putRequest(nil, []byte("agree/1"), make([]byte, 100<<10))
	for _, c := range []struct {
		what, method string
		request      []byte
		writes       int64 // revisions that it uses up
	}{
		{"a put of more than a window", methodPut, put, 1},
		{"a get", methodRange, rangeRequest(nil, []byte("agree/1"), rangeOptions{}), 0},
		{"a list", methodRange, rangeRequest(nil, []byte("agree/"), rangeOptions{end: []byte("agree0"), limit: 10, serializable: true}), 0},
		{"a transaction", methodTxn, txnPuts([][]byte{putRequest(nil, []byte("agree/2"), []byte("v"))}), 1},
		{"a put without a key", methodPut, putRequest(nil, nil, []byte("v")), 0},
		{"a request that is none", methodPut, []byte{0xff}, 0},
		{"a request that is too large", methodPut, putRequest(nil, []byte("agree/3"), make([]byte, 3<<20)), 0},
		{"a revision to come", methodCompact, compactRequest(1 << 40), 0},
		{"a method that is none", "/etcdserverpb.KV/Nothing", nil, 0},
		{"a status", methodStatus, nil, 0},
	} {
		theirs, err := hear(func(r *reply) error { return other.Invoke(ctx, c.method, c.request, r) })
		if err != nil {
			return fmt.Errorf("%s: %w", c.what, err)
		}
		mine, err := hear(func(r *reply) error { return call(ctx, s.clients.conns[0], c.method, c.request, r) })
		if err != nil {
			return fmt.Errorf("%s: %w", c.what, err)
		}
		if c.method == methodStatus {
			theirs.size, mine.size = 0, 0 // of the files, which grow
		}
		if theirs.revision += c.writes; mine != theirs {
			return fmt.Errorf("%s: the generator hears %+v, grpc-go's client %+v", c.what, mine, theirs)
		}
	}
	return nil
}

func hear(do func(r *reply) error) (heard, error) {
	r := &reply{keep: true}
	err := do(r)
	var mine *lean.Status
	if errors.As(err, &mine) {
		return heard{code: mine.Code, message: mine.Message}, nil
	}
	if st, ok := status.FromError(err); ok && err != nil {
		return heard{code: int(st.Code()), message: st.Message()}, nil
	}
	if err != nil {
		return heard{}, err
	}
	rev, err := intField(r.body, 1, 3)
	return heard{revision: rev, size: r.size}, err
}

package differential

import (
	"context"
	"fmt"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
)

// op is one operation of the script. do must send the same bytes to either server, except where it refers to
// identities that the server itself generated.
type op struct {
	name string
	do   func(ctx context.Context, s *session) answer
}

// section is a part of the script that starts with empty servers.
type section struct {
	name string
	args []string // further server flags
	ops  []op
}

// script builds one section.
type script struct{ ops []op }

func (b *script) add(name string, do func(ctx context.Context, s *session) answer) {
	b.ops = append(b.ops, op{name, do})
}

const nameLimit = 200 // bytes of a request that are printed in an operation's name

func describe(method string, m proto.Message) string {
	text := strings.Join(strings.Fields(prototext.MarshalOptions{}.Format(m)), " ")
	if len(text) > nameLimit {
		text = text[:nameLimit] + "..."
	}
	return method + " {" + text + "}"
}

// unary adds one call. The request is cloned, so that callers may reuse it.
func unary[Req, Resp proto.Message](b *script, method string, req Req,
	call func(s *session, ctx context.Context, r Req) (Resp, error)) {
	req = proto.CloneOf(req)
	b.add(describe(method, req), func(ctx context.Context, s *session) answer {
		resp, err := call(s, ctx, req)
		return s.answerOf(resp, err)
	})
}

func (b *script) rng(r *pb.RangeRequest) {
	unary(b, "Range", r, func(s *session, ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
		return s.kv.Range(ctx, r)
	})
}

func (b *script) stream(r *pb.RangeRequest) {
	r = proto.CloneOf(r)
	b.add(describe("RangeStream", r), func(ctx context.Context, s *session) answer { return s.rangeStream(ctx, r) })
}

func (b *script) putReq(r *pb.PutRequest) {
	unary(b, "Put", r, func(s *session, ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
		return s.kv.Put(ctx, r)
	})
}

func (b *script) put(key, value string) {
	b.putReq(&pb.PutRequest{Key: []byte(key), Value: []byte(value)})
}

func (b *script) delReq(r *pb.DeleteRangeRequest) {
	unary(b, "DeleteRange", r, func(s *session, ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
		return s.kv.DeleteRange(ctx, r)
	})
}

func (b *script) del(key, end string) {
	b.delReq(&pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end)})
}

func (b *script) txn(r *pb.TxnRequest) {
	unary(b, "Txn", r, func(s *session, ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
		return s.kv.Txn(ctx, r)
	})
}

func (b *script) compact(rev int64, physical bool) {
	r := &pb.CompactionRequest{Revision: rev, Physical: physical}
	unary(b, "Compact", r, func(s *session, ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
		return s.kv.Compact(ctx, r)
	})
}

func (b *script) hashKV(rev int64) {
	r := &pb.HashKVRequest{Revision: rev}
	unary(b, "HashKV", r, func(s *session, ctx context.Context, r *pb.HashKVRequest) (*pb.HashKVResponse, error) {
		return s.maint.HashKV(ctx, r)
	})
}

func (b *script) status() {
	unary(b, "Status", &pb.StatusRequest{}, func(s *session, ctx context.Context, r *pb.StatusRequest) (*pb.StatusResponse, error) {
		return s.maint.Status(ctx, r)
	})
}

// everything reads the whole store and its hash: it catches a difference that no earlier answer showed.
func (b *script) everything() {
	b.rng(&pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	b.hashKV(0)
}

func (b *script) grant(id, ttl int64) {
	r := &pb.LeaseGrantRequest{ID: id, TTL: ttl}
	unary(b, "LeaseGrant", r, func(s *session, ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
		return s.lease.LeaseGrant(ctx, r)
	})
}

func (b *script) revoke(id int64) {
	r := &pb.LeaseRevokeRequest{ID: id}
	unary(b, "LeaseRevoke", r, func(s *session, ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
		return s.lease.LeaseRevoke(ctx, r)
	})
}

func (b *script) timeToLive(id int64, keys bool) {
	r := &pb.LeaseTimeToLiveRequest{ID: id, Keys: keys}
	b.add(describe("LeaseTimeToLive", r), func(ctx context.Context, s *session) answer {
		return s.leaseAnswer(s.lease.LeaseTimeToLive(ctx, r))
	})
}

func (b *script) leases() {
	unary(b, "LeaseLeases", &pb.LeaseLeasesRequest{}, func(s *session, ctx context.Context, r *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
		return s.lease.LeaseLeases(ctx, r)
	})
}

func (b *script) keepAlive(ids ...int64) {
	b.add(fmt.Sprintf("LeaseKeepAlive %v", ids), func(ctx context.Context, s *session) answer { return s.keepAlive(ctx, ids...) })
}

func (b *script) watchOpen(stream string) {
	b.add("Watch open "+stream, func(ctx context.Context, s *session) answer { return s.openWatch(ctx, stream) })
}

func (b *script) watchCreate(stream string, r *pb.WatchCreateRequest) {
	b.add(describe("Watch "+stream+" create", r), func(ctx context.Context, s *session) answer { return s.createWatch(ctx, stream, r) })
}

func (b *script) watchSend(stream string, r *pb.WatchRequest) {
	b.add(describe("Watch "+stream+" send", r), func(_ context.Context, s *session) answer { return s.sendWatch(stream, r) })
}

func cancelWatch(id int64) *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}}
}

func (b *script) watchCancel(stream string, id int64) { b.watchSend(stream, cancelWatch(id)) }

// watchGone waits until the server has reported that the watcher is canceled.
func (b *script) watchGone(stream string, id int64) {
	b.add(fmt.Sprintf("Watch %s until %d is cancelled", stream, id), func(ctx context.Context, s *session) answer {
		w, err := s.stream(stream)
		if err == nil {
			err = w.await(ctx, func() bool { return w.canceled[id] }, nil)
		}
		if err != nil {
			return failed(err)
		}
		return nil
	})
}

func (b *script) watchDrain(stream string) {
	b.add("Watch drain "+stream, func(ctx context.Context, s *session) answer { return s.drain(ctx, stream) })
}

func (b *script) wait(d time.Duration) {
	b.add("wait "+d.String(), func(ctx context.Context, _ *session) answer {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
			return nil
		case <-ctx.Done():
			return failed(ctx.Err())
		}
	})
}

// until repeats a read until the predicate holds, for what a server does asynchronously.
func (b *script) until(name string, done func(ctx context.Context, s *session) (bool, error)) {
	b.add("until "+name, func(ctx context.Context, s *session) answer {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			ok, err := done(ctx, s)
			if err != nil {
				return failed(err)
			}
			if ok {
				return nil
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return failed(ctx.Err())
			}
		}
	})
}

// wire sends hand-made bytes to any method and decodes the answer as resp.
func (b *script) wire(name, method string, request []byte, resp proto.Message) {
	b.add(fmt.Sprintf("raw %s %s %s", method, name, quote(request)), func(ctx context.Context, s *session) answer {
		out := proto.Clone(resp)
		proto.Reset(out)
		err := s.conn.Invoke(ctx, method, rawBytes(request), out, grpc.ForceCodec(rawCodec{}))
		return s.answerOf(out, err)
	})
}

// rawBytes is a request that is sent as it is.
type rawBytes []byte

// rawCodec passes rawBytes through and leaves everything else to protobuf.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) ([]byte, error) {
	switch m := v.(type) {
	case rawBytes:
		return m, nil
	case proto.Message:
		return proto.Marshal(m)
	}
	return nil, fmt.Errorf("marshal: unexpected type %T", v)
}

func (rawCodec) Unmarshal(data []byte, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("unmarshal: unexpected type %T", v)
	}
	return proto.Unmarshal(data, m)
}

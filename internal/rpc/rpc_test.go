package rpc

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"quorate/internal/lease"
	"quorate/internal/membership"
	"quorate/internal/metrics"
	"quorate/internal/mvcc"
	"quorate/internal/proposal"
)

func put(k, v string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(k), Value: []byte(v)}}}
}

func get(k string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(k)}}}
}

func del(k, end string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(k), RangeEnd: []byte(end)}}}
}

func txn(yes, no []*pb.RequestOp) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: yes, Failure: no}}}
}

func ops(o ...*pb.RequestOp) []*pb.RequestOp { return o }

func many(n int, f func(i int) *pb.RequestOp) (out []*pb.RequestOp) {
	for i := range n {
		out = append(out, f(i))
	}
	return out
}

// deep nests n transactions.
func deep(n int) []*pb.RequestOp {
	o := ops(get("k"))
	for range n {
		o = ops(txn(o, nil))
	}
	return o
}

// TestRefusals checks which requests never reach the member, and the error that
// they get on the wire.
func TestRefusals(t *testing.T) {
	f := newFake(t)
	conn := dialRaw(t, serve(t, testOptions(), f))
	numbered := func(i int) *pb.RequestOp { return put(fmt.Sprint("k", i), "") }
	for _, c := range []struct {
		name string
		req  proto.Message
		want error
	}{
		{"range without key", &pb.RangeRequest{RangeEnd: []byte("z")}, rpctypes.ErrGRPCEmptyKey},
		{"range sort order", &pb.RangeRequest{Key: []byte("k"), SortOrder: 3}, rpctypes.ErrGRPCInvalidSortOption},
		{"range sort order below", &pb.RangeRequest{Key: []byte("k"), SortOrder: -1}, rpctypes.ErrGRPCInvalidSortOption},
		{"range sort target", &pb.RangeRequest{Key: []byte("k"), SortTarget: 5}, rpctypes.ErrGRPCInvalidSortOption},
		{"range key before sort", &pb.RangeRequest{SortTarget: 5}, rpctypes.ErrGRPCEmptyKey},
		{"range sorted", &pb.RangeRequest{Key: []byte("k"), SortTarget: 4, SortOrder: 2}, nil},
		{"put without key", &pb.PutRequest{Value: []byte("v")}, rpctypes.ErrGRPCEmptyKey},
		{"put ignore_value with value", &pb.PutRequest{Key: []byte("k"), Value: []byte("v"), IgnoreValue: true}, rpctypes.ErrGRPCValueProvided},
		{"put ignore_lease with lease", &pb.PutRequest{Key: []byte("k"), Lease: 1, IgnoreLease: true}, rpctypes.ErrGRPCLeaseProvided},
		{"put ignoring both", &pb.PutRequest{Key: []byte("k"), IgnoreValue: true, IgnoreLease: true}, nil},
		{"delete without key", &pb.DeleteRangeRequest{}, rpctypes.ErrGRPCEmptyKey},

		{"empty txn", &pb.TxnRequest{}, nil},
		{"compare without key", &pb.TxnRequest{Compare: []*pb.Compare{{}}}, rpctypes.ErrGRPCEmptyKey},
		{"op without key", &pb.TxnRequest{Success: ops(put("", "v"))}, rpctypes.ErrGRPCEmptyKey},
		{"failure op without key", &pb.TxnRequest{Failure: ops(get(""))}, rpctypes.ErrGRPCEmptyKey},
		{"unset op", &pb.TxnRequest{Success: ops(&pb.RequestOp{})}, rpctypes.ErrGRPCKeyNotFound},
		{"op in nested txn", &pb.TxnRequest{Success: ops(txn(ops(del("", "")), nil))}, rpctypes.ErrGRPCEmptyKey},
		{"128 ops", &pb.TxnRequest{Success: many(128, numbered)}, nil},
		{"129 ops", &pb.TxnRequest{Success: many(129, numbered)}, rpctypes.ErrGRPCTooManyOps},
		{"129 failure ops", &pb.TxnRequest{Failure: many(129, numbered)}, rpctypes.ErrGRPCTooManyOps},
		{"129 compares", &pb.TxnRequest{Compare: make([]*pb.Compare, 129)}, rpctypes.ErrGRPCTooManyOps},
		{"lists are counted apart", &pb.TxnRequest{Success: many(128, numbered), Failure: many(128, numbered)}, nil},
		{"nested within the budget", &pb.TxnRequest{Success: append(many(63, numbered), txn(many(64, func(i int) *pb.RequestOp { return get("k") }), nil))}, nil},
		{"nested beyond the budget", &pb.TxnRequest{Success: append(many(63, numbered), txn(many(65, func(i int) *pb.RequestOp { return get("k") }), nil))}, rpctypes.ErrGRPCTooManyOps},
		{"nested 127 deep", &pb.TxnRequest{Success: deep(127)}, nil},
		{"nested 128 deep", &pb.TxnRequest{Success: deep(128)}, rpctypes.ErrGRPCTooManyOps},

		{"key put twice", &pb.TxnRequest{Success: ops(put("a", ""), put("b", ""), put("a", ""))}, rpctypes.ErrGRPCDuplicateKey},
		{"key put twice in the failure list", &pb.TxnRequest{Failure: ops(put("a", ""), put("a", ""))}, rpctypes.ErrGRPCDuplicateKey},
		{"key put in both lists", &pb.TxnRequest{Success: ops(put("a", "")), Failure: ops(put("a", ""))}, nil},
		{"put and get", &pb.TxnRequest{Success: ops(put("a", ""), get("a"), get("a"))}, nil},
		{"put and delete", &pb.TxnRequest{Success: ops(put("a", ""), del("a", ""))}, rpctypes.ErrGRPCDuplicateKey},
		{"put and delete of the next key", &pb.TxnRequest{Success: ops(put("a", ""), del("a\x00", ""))}, nil},
		{"put in a deleted range", &pb.TxnRequest{Success: ops(del("a", "c"), put("b", ""))}, rpctypes.ErrGRPCDuplicateKey},
		{"put at the end of a deleted range", &pb.TxnRequest{Success: ops(del("a", "c"), put("c", ""))}, nil},
		{"put in one of overlapping deletes", &pb.TxnRequest{Success: ops(del("a", "z"), del("b", "c"), put("x", ""))}, rpctypes.ErrGRPCDuplicateKey},
		{"overlapping deletes", &pb.TxnRequest{Success: ops(del("a", "c"), del("b", "d"), del("b", ""))}, nil},
		{"put above an open-ended delete", &pb.TxnRequest{Success: ops(del("a", "\x00"), put("b", ""))}, nil},
		{"put in a reversed delete", &pb.TxnRequest{Success: ops(del("c", "a"), put("b", ""), put("c", ""))}, nil},
		{"put in both branches of a nested txn", &pb.TxnRequest{Success: ops(txn(ops(put("a", "")), ops(put("a", ""))))}, nil},
		{"put in a branch and outside", &pb.TxnRequest{Success: ops(put("a", ""), txn(nil, ops(put("a", ""))))}, rpctypes.ErrGRPCDuplicateKey},
		{"put in two nested txns", &pb.TxnRequest{Success: ops(txn(ops(put("a", "")), nil), txn(nil, ops(put("a", ""))))}, rpctypes.ErrGRPCDuplicateKey},
		{"nested put under a delete", &pb.TxnRequest{Success: ops(txn(ops(put("b", "")), nil), del("a", "c"))}, rpctypes.ErrGRPCDuplicateKey},
		{"put under a nested delete", &pb.TxnRequest{Success: ops(put("b", ""), txn(nil, ops(del("a", "c"))))}, rpctypes.ErrGRPCDuplicateKey},
		{"nested delete, then nested put", &pb.TxnRequest{Success: ops(txn(ops(del("a", "c")), nil), txn(ops(put("b", "")), nil))}, rpctypes.ErrGRPCDuplicateKey},
		{"nested put, then nested delete", &pb.TxnRequest{Success: ops(txn(ops(put("b", "")), nil), txn(ops(del("a", "c")), nil))}, nil},
		{"branches delete what the other puts", &pb.TxnRequest{Success: ops(txn(ops(del("a", "c")), ops(put("b", ""))))}, nil},

		{"member without URLs", &pb.MemberAddRequest{}, rpctypes.ErrGRPCMemberBadURLs},
		{"member with a bad URL", &pb.MemberAddRequest{PeerURLs: []string{"127.0.0.1:2380"}}, rpctypes.ErrGRPCMemberBadURLs},
		{"member with a good URL", &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:2380"}}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			method, resp := methodOf(t, c.req)
			if r, ok := c.req.(*pb.TxnRequest); ok && len(r.Compare) > 0 && r.Compare[0] == nil {
				for i := range r.Compare {
					r.Compare[i] = &pb.Compare{Key: []byte("k")}
				}
			}
			err := conn.Invoke(testContext(t), method, c.req, resp)
			if status.Code(err) != status.Code(c.want) || status.Convert(err).Message() != status.Convert(c.want).Message() {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

// methodOf finds the method that takes a request, and an answer for it.
func methodOf(t testing.TB, req proto.Message) (string, proto.Message) {
	switch req.(type) {
	case *pb.RangeRequest:
		return "/etcdserverpb.KV/Range", new(pb.RangeResponse)
	case *pb.PutRequest:
		return "/etcdserverpb.KV/Put", new(pb.PutResponse)
	case *pb.DeleteRangeRequest:
		return "/etcdserverpb.KV/DeleteRange", new(pb.DeleteRangeResponse)
	case *pb.TxnRequest:
		return "/etcdserverpb.KV/Txn", new(pb.TxnResponse)
	case *pb.CompactionRequest:
		return "/etcdserverpb.KV/Compact", new(pb.CompactionResponse)
	case *pb.LeaseGrantRequest:
		return "/etcdserverpb.Lease/LeaseGrant", new(pb.LeaseGrantResponse)
	case *pb.LeaseRevokeRequest:
		return "/etcdserverpb.Lease/LeaseRevoke", new(pb.LeaseRevokeResponse)
	case *pb.LeaseTimeToLiveRequest:
		return "/etcdserverpb.Lease/LeaseTimeToLive", new(pb.LeaseTimeToLiveResponse)
	case *pb.LeaseLeasesRequest:
		return "/etcdserverpb.Lease/LeaseLeases", new(pb.LeaseLeasesResponse)
	case *pb.MemberAddRequest:
		return "/etcdserverpb.Cluster/MemberAdd", new(pb.MemberAddResponse)
	case *pb.MemberRemoveRequest:
		return "/etcdserverpb.Cluster/MemberRemove", new(pb.MemberRemoveResponse)
	case *pb.MemberUpdateRequest:
		return "/etcdserverpb.Cluster/MemberUpdate", new(pb.MemberUpdateResponse)
	case *pb.MemberListRequest:
		return "/etcdserverpb.Cluster/MemberList", new(pb.MemberListResponse)
	case *pb.MemberPromoteRequest:
		return "/etcdserverpb.Cluster/MemberPromote", new(pb.MemberPromoteResponse)
	case *pb.AlarmRequest:
		return "/etcdserverpb.Maintenance/Alarm", new(pb.AlarmResponse)
	case *pb.StatusRequest:
		return "/etcdserverpb.Maintenance/Status", new(pb.StatusResponse)
	case *pb.DefragmentRequest:
		return "/etcdserverpb.Maintenance/Defragment", new(pb.DefragmentResponse)
	case *pb.HashRequest:
		return "/etcdserverpb.Maintenance/Hash", new(pb.HashResponse)
	case *pb.HashKVRequest:
		return "/etcdserverpb.Maintenance/HashKV", new(pb.HashKVResponse)
	case *pb.MoveLeaderRequest:
		return "/etcdserverpb.Maintenance/MoveLeader", new(pb.MoveLeaderResponse)
	case *pb.DowngradeRequest:
		return "/etcdserverpb.Maintenance/Downgrade", new(pb.DowngradeResponse)
	}
	t.Fatalf("no method takes a %T", req)
	return "", nil
}

// unaries is a valid request for every unary method, with the header that its
// answer has; "" means none.
var unaries = []struct {
	req  proto.Message
	want string
}{
	{&pb.RangeRequest{Key: []byte("k")}, "rev=now"},
	{&pb.PutRequest{Key: []byte("k")}, "rev=now"},
	{&pb.DeleteRangeRequest{Key: []byte("k")}, "rev=now"},
	{&pb.TxnRequest{}, "rev=now"},
	{&pb.CompactionRequest{}, "rev=now"},
	{&pb.LeaseGrantRequest{}, "rev=now"},
	{&pb.LeaseRevokeRequest{}, "rev=now"},
	{&pb.LeaseTimeToLiveRequest{}, "rev=now"},
	{&pb.LeaseTimeToLiveRequest{ID: 1000}, "rev=now"},
	{&pb.LeaseLeasesRequest{}, "rev=now"},
	{&pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:2380"}}, "rev=0"},
	{&pb.MemberRemoveRequest{}, "rev=0"},
	{&pb.MemberUpdateRequest{}, "rev=0"},
	{&pb.MemberListRequest{}, "rev=0"},
	{&pb.MemberPromoteRequest{}, "rev=0"},
	{&pb.AlarmRequest{}, "rev=now"},
	{&pb.StatusRequest{}, "rev=now"},
	{&pb.DefragmentRequest{}, ""},
	{&pb.HashRequest{}, "rev=now"},
	{&pb.HashKVRequest{}, "rev=33"},
	{&pb.MoveLeaderRequest{}, ""},
	{&pb.DowngradeRequest{}, "rev=now"},
}

func TestHeaders(t *testing.T) {
	f := newFake(t)
	conn := dialRaw(t, serve(t, testOptions(), f))
	for _, c := range unaries {
		method, resp := methodOf(t, c.req)
		if err := conn.Invoke(testContext(t), method, c.req, resp); err != nil {
			t.Errorf("%s: %v", method, err)
			continue
		}
		got := ""
		if h := resp.(interface{ GetHeader() *pb.ResponseHeader }).GetHeader(); h != nil {
			if h.ClusterId != fakeCluster || h.MemberId != fakeMember || h.RaftTerm != fakeTerm {
				t.Errorf("%s: got header %v", method, h)
			}
			got = fmt.Sprintf("rev=%d", h.Revision)
			if h.Revision == f.Rev() {
				got = "rev=now"
			}
		}
		if got != c.want {
			t.Errorf("%s: got header %q, want %q", method, got, c.want)
		}
	}
}

func TestUnknownLeases(t *testing.T) {
	conn := dialRaw(t, serve(t, testOptions(), newFake(t)))
	var resp pb.LeaseTimeToLiveResponse
	if err := conn.Invoke(testContext(t), "/etcdserverpb.Lease/LeaseTimeToLive", &pb.LeaseTimeToLiveRequest{ID: 1000}, &resp); err != nil {
		t.Fatal(err)
	}
	if resp.ID != 1000 || resp.TTL != -1 || resp.GrantedTTL != 0 {
		t.Errorf("got %v, want TTL -1", &resp)
	}
	s, err := pb.NewLeaseClient(conn).LeaseKeepAlive(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ id, ttl int64 }{{5, 60}, {1000, 0}, {6, 60}} {
		if err := s.Send(&pb.LeaseKeepAliveRequest{ID: c.id}); err != nil {
			t.Fatal(err)
		}
		got, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		want := &pb.LeaseKeepAliveResponse{ID: c.id, TTL: c.ttl,
			Header: &pb.ResponseHeader{ClusterId: fakeCluster, MemberId: fakeMember, RaftTerm: fakeTerm, Revision: 1}}
		if !proto.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); err != io.EOF {
		t.Errorf("after the last request: got %v, want EOF", err)
	}
}

// TestErrors checks what clients get for the errors of a member.
func TestErrors(t *testing.T) {
	f := newFake(t)
	conn := dialRaw(t, serve(t, testOptions(), f))
	for _, c := range []struct {
		err  error
		code codes.Code
		text string
	}{
		{rpctypes.ErrGRPCNoSpace, codes.ResourceExhausted, "etcdserver: mvcc: database space exceeded"},
		{fmt.Errorf("apply: %w", rpctypes.ErrGRPCCompacted), codes.OutOfRange, "etcdserver: mvcc: required revision has been compacted"},
		{rpctypes.ErrGRPCTimeout, codes.Unavailable, "etcdserver: request timed out"},
		{rpctypes.ErrTooManyRequests, codes.Unknown, "etcdserver: too many requests"},
		{rpctypes.ErrGRPCRequestTooManyRequests, codes.Unknown, "etcdserver: too many requests"},
		{proposal.ErrTooMany, codes.Unknown, "etcdserver: too many requests"},
		{mvcc.ErrCompacted, codes.OutOfRange, "etcdserver: mvcc: required revision has been compacted"},
		{mvcc.ErrFutureRev, codes.OutOfRange, "etcdserver: mvcc: required revision is a future revision"},
		{lease.ErrLeaseNotFound, codes.NotFound, "etcdserver: requested lease not found"},
		{fmt.Errorf("grant: %w", lease.ErrLeaseExists), codes.FailedPrecondition, "etcdserver: lease already exists"},
		{lease.ErrLeaseTTLTooLarge, codes.OutOfRange, "etcdserver: too large lease TTL"},
		{lease.ErrNotPrimary, codes.Unknown, "not a primary lessor"},
		{membership.ErrIDRemoved, codes.NotFound, "etcdserver: member not found"},
		{membership.ErrIDNotFound, codes.NotFound, "etcdserver: member not found"},
		{membership.ErrIDExists, codes.FailedPrecondition, "etcdserver: member ID already exist"},
		{membership.ErrPeerURLExists, codes.FailedPrecondition, "etcdserver: Peer URLs already exists"},
		{membership.ErrMemberNotLearner, codes.FailedPrecondition, "etcdserver: can only promote a learner member"},
		{membership.ErrTooManyLearners, codes.FailedPrecondition, "etcdserver: too many learner members in cluster"},
		{membership.ErrNotEnoughStarted, codes.Unknown, "etcdserver: re-configuration failed due to not enough started members"},
		{rpctypes.ErrGRPCMemberNotEnoughStarted, codes.Unknown, "etcdserver: re-configuration failed due to not enough started members"},
		{membership.ErrUnhealthy, codes.Unavailable, "etcdserver: unhealthy cluster"},
		{context.Canceled, codes.Canceled, "context canceled"},
		{fmt.Errorf("wait: %w", context.DeadlineExceeded), codes.DeadlineExceeded, "context deadline exceeded"},
		{errors.New("etcdserver: unknown method"), codes.Unknown, "etcdserver: unknown method"},
	} {
		f.err.Store(&c.err)
		err := conn.Invoke(testContext(t), "/etcdserverpb.KV/Put", &pb.PutRequest{Key: []byte("k")}, new(pb.PutResponse))
		if s := status.Convert(err); s.Code() != c.code || s.Message() != c.text {
			t.Errorf("%v: got %v %q, want %v %q", c.err, s.Code(), s.Message(), c.code, c.text)
		}
	}
}

// TestEveryMethodReportsErrors makes the member fail under each method.
func TestEveryMethodReportsErrors(t *testing.T) {
	f := newFake(t)
	conn := dialRaw(t, serve(t, testOptions(), f))
	failure := errors.New("disk on fire")
	f.err.Store(&failure)
	for _, c := range unaries {
		method, resp := methodOf(t, c.req)
		err := conn.Invoke(testContext(t), method, c.req, resp)
		if s := status.Convert(err); s.Code() != codes.Unknown || s.Message() != failure.Error() {
			t.Errorf("%s: got %v", method, err)
		}
	}
	for name, open := range streams(t, conn) {
		s, err := open(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		if name == "Watch" {
			continue // no call of a watch stream fails
		}
		if err := s.RecvMsg(new(pb.SnapshotResponse)); status.Convert(err).Message() != failure.Error() {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// streams opens each streaming method and sends a first request.
func streams(t *testing.T, conn *grpc.ClientConn) map[string]func(context.Context) (grpc.ClientStream, error) {
	first := func(method string, bidi bool, req proto.Message) func(context.Context) (grpc.ClientStream, error) {
		return func(ctx context.Context) (grpc.ClientStream, error) {
			s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: bidi}, method)
			if err != nil {
				return nil, err
			}
			if err := s.SendMsg(req); err != nil && err != io.EOF { // the status comes with RecvMsg
				return nil, err
			}
			if !bidi {
				if err := s.CloseSend(); err != nil {
					return nil, err
				}
			}
			return s, nil
		}
	}
	return map[string]func(context.Context) (grpc.ClientStream, error){
		"Watch":          first("/etcdserverpb.Watch/Watch", true, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("k")}}}),
		"LeaseKeepAlive": first("/etcdserverpb.Lease/LeaseKeepAlive", true, &pb.LeaseKeepAliveRequest{ID: 5}),
		"RangeStream":    first("/etcdserverpb.KV/RangeStream", false, &pb.RangeRequest{Key: []byte("k")}),
		"Snapshot":       first("/etcdserverpb.Maintenance/Snapshot", false, &pb.SnapshotRequest{}),
	}
}

// TestAdmission checks who is served in which state of the member.
func TestAdmission(t *testing.T) {
	f := newFake(t)
	f.file = io.NopCloser(strings.NewReader(""))
	conn := dialRaw(t, serve(t, testOptions(), f))
	ctx := testContext(t)
	leaderOnly := metadata.AppendToOutgoingContext(ctx, rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)

	expect := func(state string, ctx context.Context, want error, served ...string) {
		t.Helper()
		check := func(method string, err error) {
			t.Helper()
			want := want
			for _, s := range served {
				if s == method {
					want = nil
				}
			}
			if status.Code(err) != status.Code(want) || status.Convert(err).Message() != status.Convert(want).Message() {
				t.Errorf("%s, %s: got %v, want %v", state, method, err, want)
			}
		}
		for _, c := range unaries {
			method, resp := methodOf(t, c.req)
			check(method, conn.Invoke(ctx, method, c.req, resp))
		}
		check("serializable", conn.Invoke(ctx, "/etcdserverpb.KV/Range", &pb.RangeRequest{Key: []byte("k"), Serializable: true}, new(pb.RangeResponse)))
		_, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
		check("health", err)
		for name, open := range streams(t, conn) {
			ctx, cancel := context.WithCancel(ctx)
			s, err := open(ctx)
			if err == nil {
				err = s.RecvMsg(new(pb.SnapshotResponse))
			}
			if err == io.EOF {
				err = nil
			}
			check(name, err)
			cancel()
		}
	}
	expect("all is well", leaderOnly, nil)
	f.leader.Store(0)
	expect("no leader, not asked for", ctx, nil)
	expect("no leader", leaderOnly, rpctypes.ErrGRPCNoLeader)
	f.leader.Store(1)
	f.learner.Store(true)
	expect("learner", ctx, rpctypes.ErrGRPCNotSupportedForLearner, "serializable", "/etcdserverpb.Maintenance/Status", "Snapshot")
	f.learner.Store(false)
	f.capable.Store(false)
	expect("no cluster version", ctx, rpctypes.ErrGRPCNotCapable)
}

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

// gRPC clients cannot send metadata that is not UTF-8, so admit gets it here.
func TestClientVersionNotUTF8(t *testing.T) {
	e := &edge{b: newFake(t)}
	ctx := metadata.NewIncomingContext(context.Background(), metadata.Pairs(rpctypes.MetadataClientAPIVersionKey, "\xff"))
	if _, err := e.admit(ctx, newClientVersions("unary"), false); err != rpctypes.ErrGRPCInvalidClientAPIVersion {
		t.Errorf("got %v", err)
	}
}

// rawCodec sends bytes as they are.
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

// largePut is an encoded put of n bytes.
func largePut(n int) []byte {
	req := &pb.PutRequest{Key: []byte("k"), Value: make([]byte, n-7)}
	b, err := proto.Marshal(req)
	if err != nil || len(b) != n {
		panic(fmt.Sprint("put of ", len(b), " bytes: ", err))
	}
	return b
}

// TestRawRequests checks that the member gets the bytes of a write as they came
// and that nothing writes over them later.
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

func TestWatch(t *testing.T) {
	f := newFake(t)
	c := dialClient(t, serve(t, testOptions(), f))
	ctx := testContext(t)
	live := c.Watch(ctx, "k", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	if r := <-live; !r.Created || r.Err() != nil {
		t.Fatalf("got %+v, want created", r)
	}
	for i := range 20 {
		if _, err := c.Put(ctx, fmt.Sprint("k", i), strings.Repeat("v", i*1000)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Delete(ctx, "k3"); err != nil {
		t.Fatal(err)
	}
	check := func(name string, w clientv3.WatchChan) {
		var evs []*clientv3.Event
		for len(evs) < 21 {
			r, ok := <-w
			if !ok || r.Err() != nil {
				t.Fatalf("%s: after %d events: %v", name, len(evs), r.Err())
			}
			if h := r.Header; h.ClusterId != fakeCluster || h.MemberId != fakeMember || h.RaftTerm != fakeTerm {
				t.Fatalf("%s: header %v", name, &h)
			}
			evs = append(evs, r.Events...)
		}
		for i, ev := range evs[:20] {
			if ev.Type != mvccpb.Event_PUT || string(ev.Kv.Key) != fmt.Sprint("k", i) || len(ev.Kv.Value) != i*1000 || ev.Kv.ModRevision != int64(i+2) {
				t.Errorf("%s: event %d is %v of %s at %d", name, i, ev.Type, ev.Kv.Key, ev.Kv.ModRevision)
			}
		}
		if ev := evs[20]; ev.Type != mvccpb.Event_DELETE || string(ev.Kv.Key) != "k3" || ev.Kv.ModRevision != 22 {
			t.Errorf("%s: last event is %v", name, ev)
		}
	}
	check("live", live)
	check("from history", c.Watch(ctx, "k", clientv3.WithPrefix(), clientv3.WithRev(2)))

	if err := c.RequestProgress(ctx); err != nil {
		t.Fatal(err)
	}
	if r := <-live; !r.IsProgressNotify() || r.Header.Revision != 22 {
		t.Errorf("got %+v, want progress at 22", r)
	}
}

// TestWatchStream talks to a watch stream as the API says it.
func TestWatchStream(t *testing.T) {
	f := newFake(t)
	conn := dialRaw(t, serve(t, testOptions(), f))
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	s, err := pb.NewWatchClient(conn).Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	send := func(r *pb.WatchRequest) {
		t.Helper()
		if err := s.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(want string) {
		t.Helper()
		r, err := s.Recv()
		if err != nil {
			t.Fatalf("got %v, want %s", err, want)
		}
		got := fmt.Sprintf("id=%d created=%v canceled=%v events=%d %s", r.WatchId, r.Created, r.Canceled, len(r.Events), r.CancelReason)
		if got != want {
			t.Errorf("got %s\nwant %s", got, want)
		}
	}
	create := func(r *pb.WatchCreateRequest) {
		t.Helper()
		send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}})
	}
	create(&pb.WatchCreateRequest{Key: []byte("a")})
	expect("id=0 created=true canceled=false events=0 ")
	create(&pb.WatchCreateRequest{Key: []byte("b"), WatchId: 7})
	expect("id=7 created=true canceled=false events=0 ")
	create(&pb.WatchCreateRequest{Key: []byte("b"), WatchId: 7})
	expect("id=-1 created=true canceled=true events=0 mvcc: duplicate watch ID provided on the WatchStream")
	create(&pb.WatchCreateRequest{Key: []byte("b"), RangeEnd: []byte("a")})
	expect("id=-1 created=true canceled=true events=0 mvcc: watcher range is empty")
	create(&pb.WatchCreateRequest{Key: []byte("b"), StartRevision: -1})
	expect("id=-1 created=true canceled=true events=0 etcdserver: mvcc: required revision has been compacted")
	send(&pb.WatchRequest{}) // means nothing, ends nothing
	send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: 99}}})
	if _, err := f.Put(ctx, &pb.PutRequest{Key: []byte("b")}, nil); err != nil {
		t.Fatal(err)
	}
	expect("id=7 created=false canceled=false events=1 ")
	send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: 7}}})
	expect("id=7 created=false canceled=true events=0 ")
	send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
	expect("id=-1 created=false canceled=false events=0 ")

	if err := s.CloseSend(); err != nil { // its watchers stay
		t.Fatal(err)
	}
	if _, err := f.Put(ctx, &pb.PutRequest{Key: []byte("a")}, nil); err != nil {
		t.Fatal(err)
	}
	expect("id=0 created=false canceled=false events=1 ")
}

// TestWatchEnds checks how a watch stream ends and what is counted then.
func TestWatchEnds(t *testing.T) {
	f := newFake(t)
	series := newMethodSeries(watchService, grpc.MethodInfo{Name: "Watch", IsClientStream: true, IsServerStream: true}, false)
	count := func(c codes.Code) float64 { return counted(series.handled[c]) }
	conn := dialRaw(t, serve(t, testOptions(), f), grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{})))

	open := func(ctx context.Context) grpc.ClientStream {
		t.Helper()
		s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/etcdserverpb.Watch/Watch")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SendMsg([]byte("\x0a\x03\x0a\x01k")); err != nil {
			t.Fatal(err)
		}
		if err := s.RecvMsg(new([]byte)); err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open(testContext(t))
	if err := s.SendMsg([]byte("\x0a\x7f")); err != nil {
		t.Fatal(err)
	}
	if err := s.RecvMsg(new([]byte)); status.Code(err) != codes.Internal {
		t.Errorf("malformed request: got %v", err)
	}
	canceled := count(codes.Canceled)
	ctx, cancel := context.WithCancel(testContext(t))
	s = open(ctx)
	cancel()
	if err := s.RecvMsg(new([]byte)); status.Code(err) != codes.Canceled {
		t.Errorf("canceled by the client: got %v", err)
	}
	waitFor(t, "a canceled stream to be counted", func() bool { return count(codes.Canceled) == canceled+1 })

	s = open(testContext(t))
	f.hub.Close()
	if err := s.RecvMsg(new([]byte)); status.Convert(err).Message() != "etcdserver: server stopped" {
		t.Errorf("member stopped: got %v", err)
	}
}

// waitFor waits for what another goroutine is about to do.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited too long for %s", what)
		}
	}
}

// TestLeaderLost checks that streams that ask for a leader are cut when it has
// been gone for three election timeouts, and no others.
func TestLeaderLost(t *testing.T) {
	f := newFake(t)
	o := testOptions()
	o.ElectionTimeout = 5 * time.Millisecond
	conn := dialRaw(t, serve(t, o, f))
	all := streams(t, conn)
	ctx := testContext(t)
	asking := metadata.AppendToOutgoingContext(ctx, rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
	var cut []grpc.ClientStream
	for _, name := range []string{"Watch", "Watch", "LeaseKeepAlive"} {
		s, err := all[name](asking)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.RecvMsg(new(pb.SnapshotResponse)); err != nil {
			t.Fatal(err)
		}
		cut = append(cut, s)
	}
	kept, err := pb.NewWatchClient(conn).Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	f.leader.Store(0)
	for _, s := range cut {
		err := s.RecvMsg(new(pb.SnapshotResponse))
		if st := status.Convert(err); st.Code() != codes.Unavailable || st.Message() != "etcdserver: no leader" {
			t.Errorf("got %v, want no leader", err)
		}
	}
	if err := kept.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{}}}); err != nil {
		t.Fatal(err)
	}
	if r, err := kept.Recv(); err != nil || !r.Created {
		t.Errorf("stream that asks for no leader: got %v, %v", r, err)
	}

	// A short absence cuts nothing, and the watch starts anew for new streams.
	w := &leaderWatch{leader: f.Leader, every: time.Hour, streams: make(map[*cutter]struct{})}
	var cause error
	forget := w.add(func(err error) { cause = err })
	if !w.look(false) || cause != nil {
		t.Errorf("cut by %v although there is a leader", cause)
	}
	if w.look(true); cause != rpctypes.ErrGRPCNoLeader {
		t.Errorf("cut by %v, want no leader", cause)
	}
	forget()
	if w.look(false) {
		t.Error("looks on with no stream left")
	}
}

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
	f.chunks = [][][]byte{{kv("a"), kv("b")}, {kv("c")}, {}, {kv("d"), kv("e")}}
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

// counted is the value of a counter.
func counted(c prometheus.Counter) float64 {
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		panic(err)
	}
	return m.Counter.GetValue()
}

// seriesOf is how many series have a name.
func seriesOf(t *testing.T, name string) int {
	t.Helper()
	families, err := metrics.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return len(f.Metric)
		}
	}
	return 0
}

// TestSeries checks that the series are there from the start and what calls add.
func TestSeries(t *testing.T) {
	f := newFake(t)
	o := testOptions()
	o.Extensive = true
	conn := dialRaw(t, serve(t, o, f))
	const methods = 6 + 1 + 5 + 5 + 8 + 17 + 3
	for name, want := range map[string]int{
		"grpc_server_started_total":      methods,
		"grpc_server_handled_total":      methods * 17,
		"grpc_server_msg_received_total": methods,
		"grpc_server_msg_sent_total":     methods,
		"grpc_server_handling_seconds":   methods,
	} {
		if got := seriesOf(t, name); got != want {
			t.Errorf("%s: got %d series, want %d", name, got, want)
		}
	}
	read := func() string {
		label := []string{"unary", "etcdserverpb.KV", "Put"}
		return fmt.Sprintf("started %v, received %v, sent %v, OK %v, InvalidArgument %v",
			counted(seriesStarted.WithLabelValues(label...)),
			counted(seriesReceived.WithLabelValues(label...)),
			counted(seriesSent.WithLabelValues(label...)),
			counted(seriesHandled.WithLabelValues(append(label, "OK")...)),
			counted(seriesHandled.WithLabelValues(append(label, "InvalidArgument")...)))
	}
	for _, v := range []interface{ Reset() }{seriesStarted, seriesReceived, seriesSent, seriesHandled} {
		v.Reset()
	}
	conn = dialRaw(t, serve(t, o, f))
	sentBytes := counted(metrics.NetworkClientGRPCSentBytesTotal)
	gotBytes := counted(metrics.NetworkClientGRPCReceivedBytesTotal)
	req := &pb.PutRequest{Key: []byte("k"), Value: []byte("v")}
	var resp pb.PutResponse
	for range 2 {
		if err := conn.Invoke(testContext(t), "/etcdserverpb.KV/Put", req, &resp); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := counted(metrics.NetworkClientGRPCReceivedBytesTotal)-gotBytes, float64(2*proto.Size(req)); got != want {
		t.Errorf("received %v bytes, want %v", got, want)
	}
	if got, want := counted(metrics.NetworkClientGRPCSentBytesTotal)-sentBytes, float64(2*proto.Size(&resp)); got != want {
		t.Errorf("sent %v bytes, want %v", got, want)
	}
	if err := conn.Invoke(testContext(t), "/etcdserverpb.KV/Put", &pb.PutRequest{}, &resp); err == nil {
		t.Fatal("no error")
	}
	if got, want := read(), "started 3, received 3, sent 3, OK 2, InvalidArgument 1"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// lateService answers one method with what it gets.
func lateService(s grpc.ServiceRegistrar) {
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: "example.Late",
		Methods: []grpc.MethodDesc{{MethodName: "Echo", Handler: func(_ any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
			req := new(pb.PutRequest)
			if err := decode(req); err != nil {
				return nil, err
			}
			return intercept(ctx, req, &grpc.UnaryServerInfo{FullMethod: "/example.Late/Echo"}, func(_ context.Context, req any) (any, error) { return req, nil })
		}}},
	}, nil)
}

// TestLateService checks that a service that is registered after NewServer is
// admitted and counted.
func TestLateService(t *testing.T) {
	f := newFake(t)
	lis := bufconn.Listen(1 << 16)
	s := NewServer(testOptions(), f)
	lateService(s)
	go s.Serve(lis)
	t.Cleanup(s.Stop)
	conn := dialRaw(t, func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) })
	var resp pb.PutRequest
	if err := conn.Invoke(testContext(t), "/example.Late/Echo", &pb.PutRequest{Lease: 5}, &resp); err != nil || resp.Lease != 5 {
		t.Errorf("got %v, %v", &resp, err)
	}
	if got := counted(seriesHandled.WithLabelValues("unary", "example.Late", "Echo", "OK")); got != 1 {
		t.Errorf("counted %v calls, want 1", got)
	}
	seriesHandled.DeletePartialMatch(prometheus.Labels{"grpc_service": "example.Late"})
	for _, v := range []*prometheus.CounterVec{seriesStarted, seriesReceived, seriesSent} {
		v.DeletePartialMatch(prometheus.Labels{"grpc_service": "example.Late"})
	}
	f.capable.Store(false)
	if err := conn.Invoke(testContext(t), "/example.Late/Echo", &pb.PutRequest{}, &resp); status.Convert(err).Message() != "etcdserver: not capable" {
		t.Errorf("got %v", err)
	}
}

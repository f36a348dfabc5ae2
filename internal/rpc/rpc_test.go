package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"quorate/internal/ids"
	"quorate/internal/lease"
	"quorate/internal/membership"
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

// deep returns n nested transactions.
func deep(n int) []*pb.RequestOp {
	o := ops(get("k"))
	for range n {
		o = ops(txn(o, nil))
	}
	return o
}

// TestRefusals checks which requests never reach the member, and their errors on the wire.
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
		{"put above an open-ended delete", &pb.TxnRequest{Success: ops(del("a", "\x00"), put("b", ""))}, rpctypes.ErrGRPCDuplicateKey},
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

// methodOf returns the method for a request, and an empty response.
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

// unaries is a valid request for every unary method, with the header of its response; ""
// means none.
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
			if ids.Revision(h.Revision) == f.Rev() {
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

// TestEveryMethodReportsErrors makes the member fail in each method.
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
			continue // a watch stream calls nothing that fails
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

// TestAdmission checks which calls are served in each state of the member.
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

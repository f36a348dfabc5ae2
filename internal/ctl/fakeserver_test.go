package ctl

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// fakeServer answers etcd's API with canned data that no request changes, and records every
// request, so that a transcript shows both sides of a command.
type fakeServer struct {
	pb.UnimplementedKVServer
	pb.UnimplementedWatchServer
	pb.UnimplementedLeaseServer
	pb.UnimplementedClusterServer
	pb.UnimplementedMaintenanceServer
	pb.UnimplementedAuthServer

	addr        string
	member      uint64
	alarms      []*pb.AlarmMember
	members     []*pb.Member // listed instead of fakeMembers
	seen        *requestLog
	rootGranted atomic.Bool            // user root has the role root
	end         atomic.Pointer[beacon] // ends the command's watches of a revision, and its lease
	ttl         atomic.Int64           // of the lease granted for a lock or an election, 0 for the canned lease
}

// beacon is signalled once, for all waiters.
type beacon struct {
	once sync.Once
	c    chan struct{}
}

func newBeacon() *beacon { return &beacon{c: make(chan struct{})} }

func (s *beacon) send() { s.once.Do(func() { close(s.c) }) }

const (
	fakeCluster  = 0xcdf818194e3a8c32
	fakeLeader   = 0x8e9e05c52164694d
	fakeFollower = 0x628170c800dbcee // 15 digits: sentences pad it to 16
	fakeLearner  = 0xd282ac2ce600c1ce
	fakeLease    = 0x694d9a8a6c5a5b2c
	fakeRev      = 42
)

// requestLog collects the requests of one command.
type requestLog struct {
	mu    sync.Mutex
	lines []string
}

func (l *requestLog) add(method string, req proto.Message) {
	b, err := json.Marshal(req) // protojson varies its white space from build to build
	if err != nil {
		b = []byte(err.Error())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	line := method + " " + string(b)
	if n := len(l.lines); n > 0 && method == "Watch/Create" && l.lines[n-1] == line {
		return // a client whose stream ended may retry
	}
	l.lines = append(l.lines, line)
}

func (l *requestLog) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := l.lines
	l.lines = nil
	return lines
}

func startFake(t *testing.T, member uint64, log *requestLog) *fakeServer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeServer{addr: ln.Addr().String(), member: member, seen: log}
	s := grpc.NewServer(
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			log.add(strings.TrimPrefix(info.FullMethod, "/etcdserverpb."), req.(proto.Message))
			return h(ctx, req)
		}))
	pb.RegisterKVServer(s, f)
	pb.RegisterWatchServer(s, f)
	pb.RegisterLeaseServer(s, f)
	pb.RegisterClusterServer(s, f)
	pb.RegisterMaintenanceServer(s, f)
	pb.RegisterAuthServer(s, f)
	go s.Serve(ln)
	t.Cleanup(s.Stop)
	return f
}

func (f *fakeServer) header() *pb.ResponseHeader {
	return &pb.ResponseHeader{ClusterId: fakeCluster, MemberId: f.member, Revision: fakeRev, RaftTerm: 7}
}

// clusterHeader is the header of answers that are not about keys.
func (f *fakeServer) clusterHeader() *pb.ResponseHeader {
	h := f.header()
	h.Revision = 0
	return h
}

// KV

func kv(key, value string, create, mod, version, lease int64) *mvccpb.KeyValue {
	return &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), CreateRevision: create, ModRevision: mod, Version: version, Lease: lease}
}

var fakeKeys = []*mvccpb.KeyValue{
	kv("bin\x01", "\xff\x01\n", 9, 9, 1, 0),
	kv("empty", "", 5, 6, 2, 0),
	kv("foo", "bar", 2, 3, 2, 0),
	kv("foo2", "two\nlines", 4, 40, 17, fakeLease),
	kv("quote\"", "tab\there", 10, 41, 3, 0),
}

func inRange(key, from, end []byte) bool {
	switch {
	case len(end) == 0:
		return bytes.Equal(key, from)
	case len(end) == 1 && end[0] == 0:
		return bytes.Compare(key, from) >= 0
	}
	return bytes.Compare(key, from) >= 0 && bytes.Compare(key, end) < 0
}

// leaseKey reports whether key belongs to a lock or an election; such keys end in the
// lease's ID.
func leaseKey(key []byte) bool { return bytes.HasSuffix(key, fmt.Appendf(nil, "/%x", fakeLease)) }

func find(from, end []byte) []*mvccpb.KeyValue {
	var kvs []*mvccpb.KeyValue
	switch {
	case leaseKey(from) && len(end) == 0 && !bytes.HasPrefix(from, []byte("lost/")):
		return append(kvs, kv(string(from), strings.TrimSuffix(string(from), fmt.Sprintf("/%x", fakeLease)), fakeRev, fakeRev, 1, fakeLease))
	case string(from) == "led/":
		return append(kvs, kv(fmt.Sprintf("led/%x", fakeLease), "by me", 30, 31, 2, fakeLease))
	}
	for _, kv := range fakeKeys {
		if inRange(kv.Key, from, end) {
			kvs = append(kvs, kv)
		}
	}
	return kvs
}

func (f *fakeServer) rangeResponse(req *pb.RangeRequest) (*pb.RangeResponse, error) {
	switch {
	case string(req.Key) == "denied":
		return nil, rpctypes.ErrGRPCPermissionDenied
	case string(req.Key) == "odd":
		return nil, status.Error(codes.Internal, "a text that no client knows")
	case len(req.Key) == 0:
		return nil, rpctypes.ErrGRPCEmptyKey
	case req.Revision == 1:
		return nil, rpctypes.ErrGRPCCompacted
	case req.Revision > fakeRev:
		return nil, rpctypes.ErrGRPCFutureRev
	}
	kvs := find(req.Key, req.RangeEnd)
	r := &pb.RangeResponse{Header: f.header(), Count: int64(len(kvs))}
	if req.CountOnly {
		return r, nil
	}
	if req.Limit > 0 && int64(len(kvs)) > req.Limit {
		kvs, r.More = kvs[:req.Limit], true
	}
	for _, kv := range kvs {
		if req.KeysOnly {
			kv = proto.Clone(kv).(*mvccpb.KeyValue)
			kv.Value = nil
		}
		r.Kvs = append(r.Kvs, kv)
	}
	return r, nil
}

func (f *fakeServer) Range(_ context.Context, req *pb.RangeRequest) (*pb.RangeResponse, error) {
	return f.rangeResponse(req)
}

// RangeStream sends one key per response; the last one has the rest.
func (f *fakeServer) RangeStream(req *pb.RangeRequest, s grpc.ServerStreamingServer[pb.RangeStreamResponse]) error {
	f.seen.add("KV/RangeStream", req)
	r, err := f.rangeResponse(req)
	if err != nil {
		return err
	}
	for _, kv := range r.Kvs {
		if err := s.Send(&pb.RangeStreamResponse{RangeResponse: &pb.RangeResponse{Kvs: []*mvccpb.KeyValue{kv}}}); err != nil {
			return err
		}
	}
	r.Kvs = nil
	return s.Send(&pb.RangeStreamResponse{RangeResponse: r})
}

func (f *fakeServer) Put(_ context.Context, req *pb.PutRequest) (*pb.PutResponse, error) {
	switch {
	case len(req.Key) == 0:
		return nil, rpctypes.ErrGRPCEmptyKey
	case req.Lease == 0x1234:
		return nil, rpctypes.ErrGRPCLeaseNotFound
	}
	r := &pb.PutResponse{Header: f.header()}
	if prev := find(req.Key, nil); req.PrevKv && len(prev) > 0 {
		r.PrevKv = prev[0]
	}
	return r, nil
}

func (f *fakeServer) DeleteRange(_ context.Context, req *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	kvs := find(req.Key, req.RangeEnd)
	r := &pb.DeleteRangeResponse{Header: f.header(), Deleted: int64(len(kvs))}
	if req.PrevKv {
		r.PrevKvs = kvs
	}
	return r, nil
}

// Txn succeeds unless the first comparison is about the key "no". Deleting the key "denied"
// is not permitted.
func (f *fakeServer) Txn(_ context.Context, req *pb.TxnRequest) (*pb.TxnResponse, error) {
	if len(req.Success) > 0 && string(req.Success[0].GetRequestDeleteRange().GetKey()) == "denied" {
		return nil, rpctypes.ErrGRPCPermissionDenied
	}
	r := &pb.TxnResponse{Header: f.header(), Succeeded: len(req.Compare) == 0 || string(req.Compare[0].Key) != "no"}
	ops := req.Success
	if !r.Succeeded {
		ops = req.Failure
	}
	inner := &pb.ResponseHeader{Revision: fakeRev}
	for _, op := range ops {
		switch one := op.Request.(type) {
		case *pb.RequestOp_RequestRange:
			rr, err := f.rangeResponse(one.RequestRange)
			if err != nil {
				return nil, err
			}
			rr.Header = inner
			r.Responses = append(r.Responses, &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: rr}})
		case *pb.RequestOp_RequestPut:
			pr, err := f.Put(context.Background(), one.RequestPut)
			if err != nil {
				return nil, err
			}
			pr.Header = inner
			r.Responses = append(r.Responses, &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: pr}})
		case *pb.RequestOp_RequestDeleteRange:
			dr, err := f.DeleteRange(context.Background(), one.RequestDeleteRange)
			if err != nil {
				return nil, err
			}
			dr.Header = inner
			r.Responses = append(r.Responses, &pb.ResponseOp{Response: &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: dr}})
		}
	}
	return r, nil
}

func (f *fakeServer) Compact(_ context.Context, req *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	switch {
	case req.Revision <= 1:
		return nil, rpctypes.ErrGRPCCompacted
	case req.Revision > fakeRev:
		return nil, rpctypes.ErrGRPCFutureRev
	}
	return &pb.CompactionResponse{Header: f.header()}, nil
}

// Watch

// Watch sends the key's PUT and DELETE. A watch from revision 1 ends at once, because that
// is compacted; one from another revision ends when the transcript says so, because there
// is no leader (the client may drop events that it has not delivered by then).
func (f *fakeServer) Watch(s grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]) error {
	var next int64
	for {
		req, err := s.Recv()
		if err != nil {
			return nil // the client is done
		}
		switch one := req.RequestUnion.(type) {
		case *pb.WatchRequest_CreateRequest:
			if !leaseKey(one.CreateRequest.Key) { // these begin at arbitrary times
				f.seen.add("Watch/Create", one.CreateRequest)
			}
			for _, r := range f.watchResponses(next, one.CreateRequest) {
				if err := s.Send(r); err != nil {
					return err
				}
			}
			if end := f.end.Load(); one.CreateRequest.StartRevision > 1 {
				select {
				case <-end.c:
				case <-s.Context().Done():
					return nil
				}
				if err := s.Send(&pb.WatchResponse{Header: f.header(), WatchId: next, Canceled: true, CancelReason: "etcdserver: no leader"}); err != nil {
					return err
				}
			}
			next++
		case *pb.WatchRequest_ProgressRequest:
			f.seen.add("Watch/Progress", one.ProgressRequest)
			if err := s.Send(&pb.WatchResponse{Header: f.header(), WatchId: -1}); err != nil {
				return err
			}
		}
	}
}

func (f *fakeServer) watchResponses(id int64, req *pb.WatchCreateRequest) []*pb.WatchResponse {
	created := &pb.WatchResponse{Header: f.header(), WatchId: id, Created: true}
	if req.StartRevision == 1 || req.StartRevision == 7 {
		return []*pb.WatchResponse{created, {Header: f.header(), WatchId: id, Canceled: true, CompactRevision: 30}}
	}
	if leaseKey(req.Key) {
		return []*pb.WatchResponse{created}
	}
	put := &mvccpb.Event{Kv: kv(string(req.Key), "new\tvalue", 2, fakeRev-1, 3, fakeLease)}
	del := &mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: req.Key, ModRevision: fakeRev}}
	if req.PrevKv {
		put.PrevKv = kv(string(req.Key), "old", 2, 3, 2, 0)
		del.PrevKv = put.Kv
	}
	return []*pb.WatchResponse{created, {Header: f.header(), WatchId: id, Events: []*mvccpb.Event{put, del}}}
}

// Lease

func (f *fakeServer) LeaseGrant(_ context.Context, req *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	if req.TTL > 9000000000 {
		return nil, rpctypes.ErrGRPCLeaseTTLTooLarge
	}
	f.ttl.Store(req.TTL)
	return &pb.LeaseGrantResponse{Header: f.header(), ID: fakeLease, TTL: req.TTL}, nil
}

func (f *fakeServer) LeaseRevoke(_ context.Context, req *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	if req.ID != fakeLease {
		return nil, rpctypes.ErrGRPCLeaseNotFound
	}
	return &pb.LeaseRevokeResponse{Header: f.header()}, nil
}

func (f *fakeServer) LeaseTimeToLive(_ context.Context, req *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	if req.ID != fakeLease {
		return &pb.LeaseTimeToLiveResponse{Header: f.header(), ID: req.ID, TTL: -1}, nil
	}
	r := &pb.LeaseTimeToLiveResponse{Header: f.header(), ID: req.ID, TTL: 59, GrantedTTL: 60}
	if req.Keys {
		r.Keys = [][]byte{[]byte("foo2"), []byte("quote\"")}
	}
	return r, nil
}

func (f *fakeServer) LeaseLeases(context.Context, *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	return &pb.LeaseLeasesResponse{Header: f.header(), Leases: []*pb.LeaseStatus{{ID: fakeLease}, {ID: 0x1f}}}, nil
}

// LeaseKeepAlive renews the known lease once; then, and for any other, it is gone. A lease
// that the same command was granted lives until the transcript ends it; it is renewed at
// arbitrary times, so the renewals are not recorded.
func (f *fakeServer) LeaseKeepAlive(s grpc.BidiStreamingServer[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse]) error {
	if ttl := f.ttl.Load(); ttl > 0 {
		req, err := s.Recv()
		if err != nil {
			return nil // the client is done
		}
		if err := s.Send(&pb.LeaseKeepAliveResponse{Header: f.header(), ID: req.ID, TTL: ttl}); err != nil {
			return err
		}
		select {
		case <-f.end.Load().c:
		case <-s.Context().Done():
			return nil
		}
		return s.Send(&pb.LeaseKeepAliveResponse{Header: f.header(), ID: req.ID})
	}
	for renewals := 0; ; renewals++ {
		req, err := s.Recv()
		if err != nil {
			return nil // the client is done
		}
		f.seen.add("Lease/KeepAlive", req)
		r := &pb.LeaseKeepAliveResponse{Header: f.header(), ID: req.ID}
		if req.ID == fakeLease && renewals == 0 {
			r.TTL = 1
		}
		if err := s.Send(r); err != nil {
			return err
		}
	}
}

// Cluster

func fakeMembers() []*pb.Member {
	return []*pb.Member{
		{ID: fakeFollower, Name: "m2", PeerURLs: []string{"http://10.0.0.2:2380"}, ClientURLs: []string{"http://10.0.0.2:2379"}},
		{ID: fakeLeader, Name: "m1", PeerURLs: []string{"http://10.0.0.1:2380", "http://[::1]:2380"}, ClientURLs: []string{"http://10.0.0.1:2379", "http://localhost:2379"}},
		{ID: fakeLearner, PeerURLs: []string{"http://10.0.0.3:2380"}, IsLearner: true},
	}
}

func (f *fakeServer) MemberList(context.Context, *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	members := f.members
	if members == nil {
		members = fakeMembers()
	}
	return &pb.MemberListResponse{Header: f.clusterHeader(), Members: members}, nil
}

func (f *fakeServer) MemberAdd(_ context.Context, req *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	if slices.Contains(req.PeerURLs, "http://10.0.0.1:2380") {
		return nil, rpctypes.ErrGRPCPeerURLExist
	}
	m := &pb.Member{ID: 0xabc, PeerURLs: req.PeerURLs, IsLearner: req.IsLearner}
	return &pb.MemberAddResponse{Header: f.clusterHeader(), Member: m, Members: append(fakeMembers()[:2], m)}, nil
}

func (f *fakeServer) MemberRemove(_ context.Context, req *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	if req.ID == 0x1234 {
		return nil, rpctypes.ErrGRPCMemberNotFound
	}
	if req.ID == 0x5678 {
		return nil, rpctypes.ErrGRPCUnhealthy
	}
	return &pb.MemberRemoveResponse{Header: f.clusterHeader(), Members: fakeMembers()[:1]}, nil
}

func (f *fakeServer) MemberUpdate(_ context.Context, req *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	return &pb.MemberUpdateResponse{Header: f.clusterHeader(), Members: fakeMembers()}, nil
}

func (f *fakeServer) MemberPromote(_ context.Context, req *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	if req.ID != fakeLearner {
		return nil, rpctypes.ErrGRPCMemberNotLearner
	}
	return &pb.MemberPromoteResponse{Header: f.clusterHeader(), Members: fakeMembers()}, nil
}

// Maintenance

func (f *fakeServer) Alarm(context.Context, *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	return &pb.AlarmResponse{Header: f.clusterHeader(), Alarms: f.alarms}, nil
}

func (f *fakeServer) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	r := &pb.StatusResponse{
		Header: f.header(), Version: "3.7.3", StorageVersion: "3.7.0",
		DbSize: 25 << 20, DbSizeInUse: 9<<20 + 1, DbSizeQuota: 2 << 30,
		Leader: fakeLeader, RaftIndex: 1042, RaftTerm: 7, RaftAppliedIndex: 1041,
		DowngradeInfo: &pb.DowngradeInfo{},
	}
	if f.member != fakeLeader {
		r.IsLearner = true
		r.Errors = []string{"etcdserver: no leader", "memberID:1 alarm:NOSPACE "}
		r.DowngradeInfo = &pb.DowngradeInfo{Enabled: true, TargetVersion: "3.6.0"}
	}
	return r, nil
}

func (f *fakeServer) Defragment(context.Context, *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
	if f.member != fakeLeader {
		return nil, status.Error(codes.Unknown, "disk on fire")
	}
	return &pb.DefragmentResponse{Header: f.clusterHeader()}, nil
}

func (f *fakeServer) HashKV(_ context.Context, req *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	if req.Revision > fakeRev {
		return nil, rpctypes.ErrGRPCFutureRev
	}
	return &pb.HashKVResponse{Header: f.header(), Hash: 4056789123, CompactRevision: -1, HashRevision: max(req.Revision, 40)}, nil
}

func (f *fakeServer) MoveLeader(_ context.Context, req *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	if req.TargetID == 0x1234 {
		return nil, rpctypes.ErrGRPCBadLeaderTransferee
	}
	return &pb.MoveLeaderResponse{Header: f.clusterHeader()}, nil
}

func (f *fakeServer) Downgrade(_ context.Context, req *pb.DowngradeRequest) (*pb.DowngradeResponse, error) {
	switch {
	case req.Action == pb.DowngradeRequest_CANCEL && f.member != fakeLeader:
		return nil, rpctypes.ErrGRPCNoInflightDowngrade
	case req.Action == pb.DowngradeRequest_ENABLE && f.member != fakeLeader:
		return nil, rpctypes.ErrGRPCDowngradeInProcess
	case req.Action != pb.DowngradeRequest_CANCEL && req.Version != "3.6":
		return nil, rpctypes.ErrGRPCInvalidDowngradeTargetVersion
	}
	return &pb.DowngradeResponse{Header: f.clusterHeader(), Version: "3.7"}, nil
}

func (f *fakeServer) Snapshot(_ *pb.SnapshotRequest, s grpc.ServerStreamingServer[pb.SnapshotResponse]) error {
	f.seen.add("Maintenance/Snapshot", &pb.SnapshotRequest{})
	db := bytes.Repeat([]byte("etcd"), 256)
	sum := sha256.Sum256(db)
	if f.member != fakeLeader {
		sum = [32]byte{}
		db = db[:100] // not whole sectors: a client must not take it for complete
	}
	for len(db) > 0 {
		n := min(700, len(db))
		if err := s.Send(&pb.SnapshotResponse{Blob: db[:n], RemainingBytes: uint64(len(db) - n), Version: "3.7.0"}); err != nil {
			return err
		}
		db = db[n:]
	}
	return s.Send(&pb.SnapshotResponse{Blob: sum[:], Version: "3.7.0"})
}

// Auth

// Authenticate knows one user, root with the password "right".
func (f *fakeServer) Authenticate(_ context.Context, req *pb.AuthenticateRequest) (*pb.AuthenticateResponse, error) {
	if req.Name != "root" || req.Password != "right" {
		return nil, rpctypes.ErrGRPCAuthFailed
	}
	return &pb.AuthenticateResponse{Header: f.clusterHeader(), Token: fmt.Sprintf("%s.1", req.Name)}, nil
}

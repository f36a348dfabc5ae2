package rpc

import (
	"bytes"
	"context"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"quorate/internal/clock"
	"quorate/internal/h2"
	"quorate/internal/ids"
	"quorate/internal/lease"
	"quorate/internal/mvcc"
	"quorate/internal/watch"
)

const (
	fakeCluster = 0xc1
	fakeMember  = 0xa1
	fakeTerm    = uint64(7)
)

// fake is a member with a small store: one value per key, and the history that watches need.
type fake struct {
	leader  atomic.Uint64
	learner atomic.Bool
	capable atomic.Bool
	err     atomic.Pointer[error] // error returned by every call

	mu      sync.Mutex
	rev     ids.Revision
	data    map[string]*mvccpb.KeyValue
	history []watch.Event
	raws    [][]byte // as received by the writes
	reqs    []proto.Message
	hub     *watch.Hub

	file   io.ReadCloser // the snapshot
	size   int64
	chunks [][][]byte // what RangeStream sends
}

func newFake(t testing.TB) *fake {
	f := &fake{rev: 1, data: make(map[string]*mvccpb.KeyValue)}
	f.leader.Store(fakeMember)
	f.capable.Store(true)
	f.hub = watch.NewHub(fakeHistory{f}, clock.Real{}, watch.Options{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.hub.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return f
}

func (f *fake) fail() error {
	if p := f.err.Load(); p != nil {
		return *p
	}
	return nil
}

func (f *fake) ClusterID() ids.Cluster { return fakeCluster }
func (f *fake) MemberID() ids.Member   { return fakeMember }
func (f *fake) Term() ids.Term         { return ids.Term(fakeTerm) }
func (f *fake) Leader() ids.Member     { return ids.Member(f.leader.Load()) }
func (f *fake) IsLearner() bool        { return f.learner.Load() }
func (f *fake) Capable() bool          { return f.capable.Load() }
func (f *fake) Hub() *watch.Hub        { return f.hub }

func (f *fake) Rev() ids.Revision {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rev
}

func (f *fake) got(m proto.Message, raw []byte) {
	f.reqs = append(f.reqs, m)
	f.raws = append(f.raws, raw)
}

func (f *fake) Range(_ context.Context, r *pb.RangeRequest) (*mvcc.RangeResult, error) {
	if err := f.fail(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.got(r, nil)
	res := &mvcc.RangeResult{Revision: f.rev}
	for _, kv := range f.in(r.Key, r.RangeEnd) {
		res.Count++
		if r.Limit > 0 && res.Count > r.Limit {
			res.More = true
			continue
		}
		b, err := proto.Marshal(kv)
		if err != nil {
			return nil, err
		}
		res.KVs = append(res.KVs, b)
	}
	return res, nil
}

// in lists the keys of a range in order.
func (f *fake) in(key, end []byte) (kvs []*mvccpb.KeyValue) {
	for k, kv := range f.data {
		if k == string(key) || len(end) > 0 && k >= string(key) && (k < string(end) || string(end) == "\x00") {
			kvs = append(kvs, kv)
		}
	}
	slices.SortFunc(kvs, func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Key, b.Key) })
	return kvs
}

func (f *fake) RangeStream(context.Context, *pb.RangeRequest) (mvcc.Reading, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := &fakeList{listed: mvcc.Listed{Revision: 42, More: true}, pieces: f.chunks, end: f.fail()}
	for _, c := range f.chunks {
		l.listed.Keys += int64(len(c))
	}
	l.listed.Count = l.listed.Keys + 5
	return l, nil
}

// List puts each key into a piece of its own.
func (f *fake) List(ctx context.Context, r *pb.RangeRequest) (mvcc.Reading, error) {
	res, err := f.Range(ctx, r)
	if err != nil {
		return nil, err
	}
	l := &fakeList{listed: mvcc.Listed{Revision: res.Revision, Count: res.Count, More: res.More, Keys: int64(len(res.KVs)), Bytes: int64(sizeParts(res.KVs))}}
	for _, kv := range res.KVs {
		l.pieces = append(l.pieces, [][]byte{kv})
	}
	return l, nil
}

// fakeList is a list in pieces that may end with an error.
type fakeList struct {
	listed mvcc.Listed
	pieces [][][]byte
	end    error
	buf    []byte
	before func(piece int) // called before each piece
	given  int
	closed atomic.Bool
}

func (l *fakeList) About() mvcc.Listed  { return l.listed }
func (l *fakeList) Took() time.Duration { return 0 }
func (l *fakeList) Close()              { l.closed.Store(true) }

func (l *fakeList) Next() (elems []byte, last bool, err error) {
	if l.before != nil {
		l.before(l.given)
	}
	l.given++
	for i := range l.buf {
		l.buf[i] = 0xdb // invalidate it for readers that still hold it
	}
	l.buf = l.buf[:0]
	if len(l.pieces) > 0 {
		for _, kv := range l.pieces[0] {
			l.buf = appendPart(l.buf, tagKVs, kv)
		}
		l.pieces = l.pieces[1:]
	}
	if len(l.pieces) == 0 && l.end != nil {
		return nil, false, l.end
	}
	return l.buf, len(l.pieces) == 0, nil
}

// putLocked changes a key at revision rev.
func (f *fake) putLocked(r *pb.PutRequest, rev ids.Revision) (prev *mvccpb.KeyValue) {
	prev = f.data[string(r.Key)]
	kv := &mvccpb.KeyValue{Key: r.Key, Value: r.Value, CreateRevision: int64(rev), ModRevision: int64(rev), Version: 1, Lease: r.Lease}
	if prev != nil {
		kv.CreateRevision, kv.Version = prev.CreateRevision, prev.Version+1
	}
	f.data[string(r.Key)] = kv
	b, err := proto.Marshal(kv)
	if err != nil {
		panic(err)
	}
	f.history = append(f.history, watch.Event{Key: r.Key, KV: b, Mod: rev, Create: prev == nil})
	return prev
}

func (f *fake) deleteLocked(key, end []byte, rev ids.Revision) []*mvccpb.KeyValue {
	kvs := f.in(key, end)
	for _, kv := range kvs {
		delete(f.data, string(kv.Key))
		f.history = append(f.history, watch.Event{Key: kv.Key, Mod: rev, Delete: true})
	}
	return kvs
}

// publishLocked publishes what has changed since from.
func (f *fake) publishLocked(from int) {
	if from < len(f.history) {
		f.rev++
		f.hub.Publish(f.rev, f.history[from:])
	}
}

func (f *fake) Put(_ context.Context, r *pb.PutRequest, raw []byte) (*pb.PutResponse, error) {
	if err := f.fail(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.got(r, raw)
	from := len(f.history)
	prev := f.putLocked(r, f.rev+1)
	f.publishLocked(from)
	resp := &pb.PutResponse{Header: &pb.ResponseHeader{Revision: int64(f.rev)}}
	if r.PrevKv {
		resp.PrevKv = prev
	}
	return resp, nil
}

func (f *fake) DeleteRange(_ context.Context, r *pb.DeleteRangeRequest, raw []byte) (*pb.DeleteRangeResponse, error) {
	if err := f.fail(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.got(r, raw)
	from := len(f.history)
	kvs := f.deleteLocked(r.Key, r.RangeEnd, f.rev+1)
	f.publishLocked(from)
	resp := &pb.DeleteRangeResponse{Header: &pb.ResponseHeader{Revision: int64(f.rev)}, Deleted: int64(len(kvs))}
	if r.PrevKv {
		resp.PrevKvs = kvs
	}
	return resp, nil
}

// Txn executes its success list.
func (f *fake) Txn(_ context.Context, r *pb.TxnRequest, raw []byte) (*pb.TxnResponse, error) {
	if err := f.fail(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.got(r, raw)
	from := len(f.history)
	resp := &pb.TxnResponse{Succeeded: true}
	for _, op := range r.Success {
		switch v := op.Request.(type) {
		case *pb.RequestOp_RequestPut:
			f.putLocked(v.RequestPut, f.rev+1)
			resp.Responses = append(resp.Responses, &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{
				ResponsePut: &pb.PutResponse{Header: &pb.ResponseHeader{Revision: int64(f.rev + 1)}}}})
		case *pb.RequestOp_RequestRange:
			kvs := f.in(v.RequestRange.Key, v.RequestRange.RangeEnd)
			resp.Responses = append(resp.Responses, &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{
				ResponseRange: &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: int64(f.rev)}, Kvs: kvs, Count: int64(len(kvs))}}})
		}
	}
	f.publishLocked(from)
	resp.Header = &pb.ResponseHeader{Revision: int64(f.rev)}
	return resp, nil
}

func (f *fake) Compact(context.Context, *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	return &pb.CompactionResponse{}, f.fail()
}

func (f *fake) LeaseGrant(_ context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	return &pb.LeaseGrantResponse{ID: r.ID, TTL: r.TTL}, f.fail()
}

func (f *fake) LeaseRevoke(context.Context, *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	return &pb.LeaseRevokeResponse{}, f.fail()
}

// LeaseRenew knows the leases 1 to 99.
func (f *fake) LeaseRenew(_ context.Context, id lease.ID) (int64, error) {
	if err := f.fail(); err != nil {
		return 0, err
	}
	if id < 1 || id > 99 {
		return 0, lease.ErrLeaseNotFound
	}
	return 60, nil
}

func (f *fake) RenewAtOnce(id lease.ID) (int64, bool) {
	ttl, err := f.LeaseRenew(context.Background(), id)
	return ttl, err == nil
}

func (f *fake) TimeToLive(_ context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	if err := f.fail(); err != nil {
		return nil, err
	}
	if r.ID > 99 {
		return nil, rpctypes.ErrGRPCLeaseNotFound
	}
	return &pb.LeaseTimeToLiveResponse{ID: r.ID, TTL: 5, GrantedTTL: 60, Keys: [][]byte{[]byte("k")}}, nil
}

func (f *fake) LeaseLeases(context.Context) (*pb.LeaseLeasesResponse, error) {
	return &pb.LeaseLeasesResponse{Leases: []*pb.LeaseStatus{{ID: 5}}}, f.fail()
}

func (f *fake) members() []*pb.Member {
	return []*pb.Member{{ID: fakeMember, Name: "a", PeerURLs: []string{"http://127.0.0.1:2380"}}}
}

func (f *fake) MemberAdd(_ context.Context, urls []string, learner bool) (*pb.Member, []*pb.Member, error) {
	return &pb.Member{ID: 5, PeerURLs: urls, IsLearner: learner}, f.members(), f.fail()
}

func (f *fake) MemberRemove(context.Context, ids.Member) ([]*pb.Member, error) {
	return f.members(), f.fail()
}

func (f *fake) MemberUpdate(context.Context, ids.Member, []string) ([]*pb.Member, error) {
	return f.members(), f.fail()
}

func (f *fake) MemberPromote(context.Context, ids.Member) ([]*pb.Member, error) {
	return f.members(), f.fail()
}

func (f *fake) MemberList(context.Context, bool) ([]*pb.Member, error) {
	return f.members(), f.fail()
}

func (f *fake) Alarm(context.Context, *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	return &pb.AlarmResponse{}, f.fail()
}

func (f *fake) Status(context.Context) (*pb.StatusResponse, error) {
	return &pb.StatusResponse{Version: "3.7.3", StorageVersion: "3.7.0"}, f.fail()
}

func (f *fake) Defragment(context.Context) error { return f.fail() }

func (f *fake) Hash(context.Context) (uint32, error) { return 1, f.fail() }

func (f *fake) HashKV(_ context.Context, rev ids.Revision) (mvcc.HashResult, error) {
	return mvcc.HashResult{Hash: 1, CompactRev: -1, HashRev: rev, CurrentRev: 33}, f.fail()
}

func (f *fake) SnapshotFile(context.Context) (io.ReadCloser, int64, error) {
	return f.file, f.size, f.fail()
}

func (f *fake) MoveLeader(context.Context, ids.Member) error { return f.fail() }

func (f *fake) Downgrade(context.Context, *pb.DowngradeRequest) (*pb.DowngradeResponse, error) {
	return &pb.DowngradeResponse{Version: "3.7"}, f.fail()
}

type fakeHistory struct{ f *fake }

func (h fakeHistory) Rev() ids.Revision        { return h.f.Rev() }
func (h fakeHistory) CompactRev() ids.Revision { return 0 }

func (h fakeHistory) Scan(from ids.Revision, _, _ int, fn func(watch.Event) error) (ids.Revision, error) {
	h.f.mu.Lock()
	events, next := slices.Clone(h.f.history), h.f.rev+1
	h.f.mu.Unlock()
	for _, ev := range events {
		if ev.Mod >= from {
			if err := fn(ev); err != nil {
				return from, err
			}
		}
	}
	return max(from, next), nil
}

func (h fakeHistory) PrevKV([]byte, ids.Revision) ([]byte, error) { return nil, nil }

// testOptions returns the options of a member with default flags.
func testOptions() Options {
	return Options{MaxRequestBytes: 1572864, MaxTxnOps: 128, ElectionTimeout: time.Second}
}

// wholeMember is a single type that implements all services.
type wholeMember interface {
	Member
	KV
	Watches
	Leases
	Members
	Maintenance
	Accounts
	Access
}

func fit(m wholeMember) Backend {
	return Backend{Member: m, KV: m, Watches: m, Leases: m, Members: m, Maintenance: m, Accounts: m, Access: m}
}

// serve starts a server on an in-memory listener and returns a dialer.
func serve(t testing.TB, o Options, b wholeMember) func(context.Context, string) (net.Conn, error) {
	t.Helper()
	lis := bufconn.Listen(1 << 20)
	s := NewServer(o, fit(b))
	done := make(chan error, 1)
	go func() { done <- s.Serve(lis) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != h2.ErrServerStopped {
			t.Errorf("Serve: %v", err)
		}
	})
	return func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }
}

func dialRaw(t testing.TB, dial func(context.Context, string) (net.Conn, error), opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	opts = append(opts, grpc.WithContextDialer(dial), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30), grpc.MaxCallSendMsgSize(1<<30)))
	conn, err := grpc.NewClient("passthrough:///member", opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func dialClient(t testing.TB, dial func(context.Context, string) (net.Conn, error)) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{
		Endpoints:   []string{"http://member:2379"},
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(dial)},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// slowReader returns a file in odd pieces.
type slowReader struct {
	io.Reader
	closed atomic.Bool
}

func (r *slowReader) Read(p []byte) (int, error) { return r.Reader.Read(p[:min(len(p), 1000)]) }
func (r *slowReader) Close() error               { r.closed.Store(true); return nil }

func (f *fake) RequireRoot(context.Context) error { return f.fail() }
func (f *fake) RequireUser(context.Context) error { return nil }

func (f *fake) CreateWatch(_ context.Context, ws *watch.Stream, r *pb.WatchCreateRequest) error {
	return ws.Create(r)
}

func (f *fake) AuthEnable(context.Context, *pb.AuthEnableRequest) (*pb.AuthEnableResponse, error) {
	return &pb.AuthEnableResponse{Header: &pb.ResponseHeader{}}, f.fail()
}

func (f *fake) AuthDisable(context.Context, *pb.AuthDisableRequest) (*pb.AuthDisableResponse, error) {
	return &pb.AuthDisableResponse{Header: &pb.ResponseHeader{}}, f.fail()
}

func (f *fake) AuthStatus(context.Context, *pb.AuthStatusRequest) (*pb.AuthStatusResponse, error) {
	return &pb.AuthStatusResponse{Header: &pb.ResponseHeader{}}, f.fail()
}

func (f *fake) Authenticate(context.Context, *pb.AuthenticateRequest) (*pb.AuthenticateResponse, error) {
	return &pb.AuthenticateResponse{Header: &pb.ResponseHeader{}}, f.fail()
}

func (f *fake) UserAdd(context.Context, *pb.AuthUserAddRequest) (*pb.AuthUserAddResponse, error) {
	return &pb.AuthUserAddResponse{Header: &pb.ResponseHeader{}}, f.fail()
}

func (f *fake) UserGet(context.Context, *pb.AuthUserGetRequest) (*pb.AuthUserGetResponse, error) {
	return &pb.AuthUserGetResponse{Header: &pb.ResponseHeader{}}, f.fail()
}

func (f *fake) UserList(context.Context, *pb.AuthUserListRequest) (*pb.AuthUserListResponse, error) {
	return &pb.AuthUserListResponse{Header: &pb.ResponseHeader{}}, f.fail()
}

func (f *fake) UserDelete(context.Context, *pb.AuthUserDeleteRequest) (*pb.AuthUserDeleteResponse, error) {
	return &pb.AuthUserDeleteResponse{Header: &pb.ResponseHeader{}}, f.fail()
}

func (f *fake) UserChangePassword(context.Context, *pb.AuthUserChangePasswordRequest) (*pb.AuthUserChangePasswordResponse, error) {
	return &pb.AuthUserChangePasswordResponse{Header: &pb.ResponseHeader{}}, f.fail()
}

func (f *fake) UserGrantRole(context.Context, *pb.AuthUserGrantRoleRequest) (*pb.AuthUserGrantRoleResponse, error) {
	return &pb.AuthUserGrantRoleResponse{Header: &pb.ResponseHeader{}}, f.fail()
}

func (f *fake) UserRevokeRole(context.Context, *pb.AuthUserRevokeRoleRequest) (*pb.AuthUserRevokeRoleResponse, error) {
	return &pb.AuthUserRevokeRoleResponse{Header: &pb.ResponseHeader{}}, f.fail()
}

func (f *fake) RoleAdd(context.Context, *pb.AuthRoleAddRequest) (*pb.AuthRoleAddResponse, error) {
	return &pb.AuthRoleAddResponse{Header: &pb.ResponseHeader{}}, f.fail()
}

func (f *fake) RoleGet(context.Context, *pb.AuthRoleGetRequest) (*pb.AuthRoleGetResponse, error) {
	return &pb.AuthRoleGetResponse{Header: &pb.ResponseHeader{}}, f.fail()
}

func (f *fake) RoleList(context.Context, *pb.AuthRoleListRequest) (*pb.AuthRoleListResponse, error) {
	return &pb.AuthRoleListResponse{Header: &pb.ResponseHeader{}}, f.fail()
}

func (f *fake) RoleDelete(context.Context, *pb.AuthRoleDeleteRequest) (*pb.AuthRoleDeleteResponse, error) {
	return &pb.AuthRoleDeleteResponse{Header: &pb.ResponseHeader{}}, f.fail()
}

func (f *fake) RoleGrantPermission(context.Context, *pb.AuthRoleGrantPermissionRequest) (*pb.AuthRoleGrantPermissionResponse, error) {
	return &pb.AuthRoleGrantPermissionResponse{Header: &pb.ResponseHeader{}}, f.fail()
}

func (f *fake) RoleRevokePermission(context.Context, *pb.AuthRoleRevokePermissionRequest) (*pb.AuthRoleRevokePermissionResponse, error) {
	return &pb.AuthRoleRevokePermissionResponse{Header: &pb.ResponseHeader{}}, f.fail()
}

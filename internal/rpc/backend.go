package rpc

import (
	"context"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"quorate/internal/ids"
	"quorate/internal/lease"
	"quorate/internal/mvcc"
	"quorate/internal/watch"
)

// Backend is one member as seen by this package. All methods are safe for concurrent
// use.
//
// A method that takes a context returns when the context is done. Errors may be gRPC
// status errors, which clients get unchanged (package rpctypes has etcd's), or sentinel
// errors of lower packages, which rpc maps to etcd's. Any other error reaches the client
// with code Unknown and its text.
//
// A response has Header.Revision set if the revision of the result is known; a nil header
// or revision 0 means the current revision. rpc fills in the rest of the header, and may
// keep and modify the response. The backend owns the requests it is given; they refer to
// no memory that is reused.
type Backend struct {
	Member      Member
	KV          KV
	Watches     Watches
	Leases      Leases
	Members     Members
	Maintenance Maintenance
	Accounts    Accounts
	Access      Access
}

// Member reports the identity and state of the member. Its methods are called for every
// request and must cost no more than an atomic load.
type Member interface {
	ClusterID() ids.Cluster
	MemberID() ids.Member
	// Term returns the current raft term.
	Term() ids.Term
	// Rev returns the newest revision visible to readers.
	Rev() ids.Revision
	// Leader returns the member ID of the leader known to this member, 0 if none.
	Leader() ids.Member
	// IsLearner reports whether this member is a learner.
	IsLearner() bool
	// Capable reports whether the cluster version has been decided, from when on the
	// cluster may serve v3 calls.
	Capable() bool
}

// KV serves keys.
//
// Writes take, in addition to the decoded request, raw: the request as received. It
// decodes to the same request and is never reused or modified, so a log entry can embed
// it. It is nil for calls that did not come from the wire.
type KV interface {
	// Range is linearizable unless req.Serializable.
	Range(ctx context.Context, req *pb.RangeRequest) (*mvcc.RangeResult, error)
	// List is like Range, but reads the records as they are consumed. The caller must
	// close the result.
	List(ctx context.Context, req *pb.RangeRequest) (mvcc.Reading, error)
	// RangeStream is List for a reply in several messages: each call of Next returns one.
	RangeStream(ctx context.Context, req *pb.RangeRequest) (mvcc.Reading, error)
	Put(ctx context.Context, req *pb.PutRequest, raw []byte) (*pb.PutResponse, error)
	DeleteRange(ctx context.Context, req *pb.DeleteRangeRequest, raw []byte) (*pb.DeleteRangeResponse, error)
	// Txn also serves read-only transactions, which are linearizable unless all their
	// ranges are serializable.
	Txn(ctx context.Context, req *pb.TxnRequest, raw []byte) (*pb.TxnResponse, error)
	Compact(ctx context.Context, req *pb.CompactionRequest) (*pb.CompactionResponse, error)
}

// Leases serves leases. For an unknown lease, methods return lease.ErrLeaseNotFound or
// rpctypes.ErrGRPCLeaseNotFound.
type Leases interface {
	LeaseGrant(ctx context.Context, req *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error)
	LeaseRevoke(ctx context.Context, req *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error)
	// LeaseRenew returns the full TTL in seconds. It forwards to the leader if this
	// member does not lead.
	LeaseRenew(ctx context.Context, id lease.ID) (ttl int64, err error)
	// RenewAtOnce is LeaseRenew for a lease that can be renewed without waiting and without
	// a check of rights. Otherwise it returns ok = false, having done nothing.
	RenewAtOnce(id lease.ID) (ttl int64, ok bool)
	// TimeToLive also forwards to the leader. For an unknown lease the TTL is -1.
	TimeToLive(ctx context.Context, req *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error)
	LeaseLeases(ctx context.Context) (*pb.LeaseLeasesResponse, error)
}

// Members serves cluster membership. Member lists are sorted by ID.
type Members interface {
	// MemberAdd adds a member; peerURLs are parsed and sorted.
	MemberAdd(ctx context.Context, peerURLs []string, learner bool) (added *pb.Member, all []*pb.Member, err error)
	MemberRemove(ctx context.Context, id ids.Member) ([]*pb.Member, error)
	MemberUpdate(ctx context.Context, id ids.Member, peerURLs []string) ([]*pb.Member, error)
	MemberPromote(ctx context.Context, id ids.Member) ([]*pb.Member, error)
	MemberList(ctx context.Context, linearizable bool) ([]*pb.Member, error)
}

// Maintenance serves the maintenance of one member.
type Maintenance interface {
	Alarm(ctx context.Context, req *pb.AlarmRequest) (*pb.AlarmResponse, error)
	// Status returns a response without a header.
	Status(ctx context.Context) (*pb.StatusResponse, error)
	Defragment(ctx context.Context) error
	Hash(ctx context.Context) (uint32, error)
	// HashKV returns the hash at rev; 0 means the current revision.
	HashKV(ctx context.Context, rev ids.Revision) (mvcc.HashResult, error)
	// SnapshotFile opens a snapshot of the whole store as a database file of size bytes.
	// The caller must close it.
	SnapshotFile(ctx context.Context) (file io.ReadCloser, size int64, err error)
	// MoveLeader returns rpctypes.ErrGRPCNotLeader unless this member is the leader.
	MoveLeader(ctx context.Context, target ids.Member) error
	Downgrade(ctx context.Context, req *pb.DowngradeRequest) (*pb.DowngradeResponse, error)
}

// Access authorizes calls. The other services check permissions themselves; rpc asks
// Access only for the methods of KV and Maintenance that need the role root, or any
// authenticated user.
type Access interface {
	// RequireRoot returns an error unless the user has the role root.
	RequireRoot(ctx context.Context) error
	// RequireUser returns an error for an unauthenticated call.
	RequireUser(ctx context.Context) error
}

// Watches serves watchers.
type Watches interface {
	// Hub returns the hub that watch streams are opened on.
	Hub() *watch.Hub
	// CreateWatch creates a watcher on ws like watch.Stream.Create, provided that the
	// user may read its keys, and cancels it when the user no longer may.
	CreateWatch(ctx context.Context, ws *watch.Stream, req *pb.WatchCreateRequest) error
}

// Accounts serves users, roles and authentication.
type Accounts interface {
	AuthEnable(context.Context, *pb.AuthEnableRequest) (*pb.AuthEnableResponse, error)
	AuthDisable(context.Context, *pb.AuthDisableRequest) (*pb.AuthDisableResponse, error)
	AuthStatus(context.Context, *pb.AuthStatusRequest) (*pb.AuthStatusResponse, error)
	Authenticate(context.Context, *pb.AuthenticateRequest) (*pb.AuthenticateResponse, error)
	UserAdd(context.Context, *pb.AuthUserAddRequest) (*pb.AuthUserAddResponse, error)
	UserGet(context.Context, *pb.AuthUserGetRequest) (*pb.AuthUserGetResponse, error)
	UserList(context.Context, *pb.AuthUserListRequest) (*pb.AuthUserListResponse, error)
	UserDelete(context.Context, *pb.AuthUserDeleteRequest) (*pb.AuthUserDeleteResponse, error)
	UserChangePassword(context.Context, *pb.AuthUserChangePasswordRequest) (*pb.AuthUserChangePasswordResponse, error)
	UserGrantRole(context.Context, *pb.AuthUserGrantRoleRequest) (*pb.AuthUserGrantRoleResponse, error)
	UserRevokeRole(context.Context, *pb.AuthUserRevokeRoleRequest) (*pb.AuthUserRevokeRoleResponse, error)
	RoleAdd(context.Context, *pb.AuthRoleAddRequest) (*pb.AuthRoleAddResponse, error)
	RoleGet(context.Context, *pb.AuthRoleGetRequest) (*pb.AuthRoleGetResponse, error)
	RoleList(context.Context, *pb.AuthRoleListRequest) (*pb.AuthRoleListResponse, error)
	RoleDelete(context.Context, *pb.AuthRoleDeleteRequest) (*pb.AuthRoleDeleteResponse, error)
	RoleGrantPermission(context.Context, *pb.AuthRoleGrantPermissionRequest) (*pb.AuthRoleGrantPermissionResponse, error)
	RoleRevokePermission(context.Context, *pb.AuthRoleRevokePermissionRequest) (*pb.AuthRoleRevokePermissionResponse, error)
}

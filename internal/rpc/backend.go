package rpc

import (
	"context"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"quorate/internal/mvcc"
	"quorate/internal/watch"
)

// Backend is one member as the client edge sees it. All methods are safe for
// concurrent use.
//
// A method that takes a context returns when it is done. Errors may be gRPC
// status errors, which clients get unchanged (package rpctypes has etcd's), or
// sentinels of the packages below, which rpc maps. Anything else reaches the
// client as code Unknown with its text.
//
// Responses come with Header.Revision set where the revision of the answer is
// known; a nil header or revision 0 means the current revision. rpc fills in
// the rest of the header and may keep and change the response. Requests belong
// to the backend once they are handed over, and hold no memory that is reused.
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

// Member is who answers and in which state it is. Its methods are called on
// every request and must be as cheap as an atomic load.
type Member interface {
	ClusterID() uint64
	MemberID() uint64
	// Term is the current raft term.
	Term() uint64
	// Rev is the revision of the newest state that readers can see.
	Rev() int64
	// Leader is the member ID of the leader that this member knows, 0 if none.
	Leader() uint64
	// IsLearner reports whether this member belongs to the cluster as a learner.
	IsLearner() bool
	// Capable reports whether the cluster version is decided, which is when the
	// cluster may serve version 3 calls.
	Capable() bool
}

// KV serves keys.
//
// Writes take raw, the request as it came from the wire, beside the decoded
// form. It decodes to the same request and is never reused or changed, so a log
// entry can wrap it as it is. It is nil if the call did not come from the wire.
type KV interface {
	// Range is linearizable unless req.Serializable.
	Range(ctx context.Context, req *pb.RangeRequest) (*mvcc.RangeResult, error)
	// List reads like Range, but the records while they are asked for. The caller
	// closes what it gets.
	List(ctx context.Context, req *pb.RangeRequest) (mvcc.Reading, error)
	// RangeStream is List for an answer in several messages: Next returns one.
	RangeStream(ctx context.Context, req *pb.RangeRequest) (mvcc.Reading, error)
	Put(ctx context.Context, req *pb.PutRequest, raw []byte) (*pb.PutResponse, error)
	DeleteRange(ctx context.Context, req *pb.DeleteRangeRequest, raw []byte) (*pb.DeleteRangeResponse, error)
	// Txn also serves read-only transactions, linearizable unless every range
	// in them is serializable.
	Txn(ctx context.Context, req *pb.TxnRequest, raw []byte) (*pb.TxnResponse, error)
	Compact(ctx context.Context, req *pb.CompactionRequest) (*pb.CompactionResponse, error)
}

// Leases serves leases. An unknown lease is lease.ErrLeaseNotFound or
// rpctypes.ErrGRPCLeaseNotFound.
type Leases interface {
	LeaseGrant(ctx context.Context, req *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error)
	LeaseRevoke(ctx context.Context, req *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error)
	// LeaseRenew returns the full TTL in seconds, asking the leader if this
	// member is not it.
	LeaseRenew(ctx context.Context, id int64) (ttl int64, err error)
	// TimeToLive asks the leader as well. For an unknown lease the TTL is -1.
	TimeToLive(ctx context.Context, req *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error)
	LeaseLeases(ctx context.Context) (*pb.LeaseLeasesResponse, error)
}

// Members serves the membership. Lists are sorted by member ID.
type Members interface {
	// MemberAdd gets parsed, sorted URLs.
	MemberAdd(ctx context.Context, peerURLs []string, learner bool) (added *pb.Member, all []*pb.Member, err error)
	MemberRemove(ctx context.Context, id uint64) ([]*pb.Member, error)
	MemberUpdate(ctx context.Context, id uint64, peerURLs []string) ([]*pb.Member, error)
	MemberPromote(ctx context.Context, id uint64) ([]*pb.Member, error)
	MemberList(ctx context.Context, linearizable bool) ([]*pb.Member, error)
}

// Maintenance serves the care of one member.
type Maintenance interface {
	Alarm(ctx context.Context, req *pb.AlarmRequest) (*pb.AlarmResponse, error)
	// Status fills everything but the header.
	Status(ctx context.Context) (*pb.StatusResponse, error)
	Defragment(ctx context.Context) error
	Hash(ctx context.Context) (uint32, error)
	// HashKV hashes at rev, 0 meaning the current revision.
	HashKV(ctx context.Context, rev int64) (mvcc.HashResult, error)
	// SnapshotFile opens the whole store as a database file of size bytes. The
	// caller closes it.
	SnapshotFile(ctx context.Context) (file io.ReadCloser, size int64, err error)
	// MoveLeader is refused with rpctypes.ErrGRPCNotLeader unless this member
	// leads.
	MoveLeader(ctx context.Context, target uint64) error
	Downgrade(ctx context.Context, req *pb.DowngradeRequest) (*pb.DowngradeResponse, error)
}

// Access decides who may make a call. The services decide for themselves, but for those
// methods of KV and Maintenance that need the role root or just some user; rpc asks
// before it calls these.
type Access interface {
	// RequireRoot refuses a call of a user who does not hold the role root.
	RequireRoot(ctx context.Context) error
	// RequireUser refuses a call of nobody.
	RequireUser(ctx context.Context) error
}

// Watches serves watchers.
type Watches interface {
	// Hub is where watch streams begin.
	Hub() *watch.Hub
	// CreateWatch creates a watcher on ws as watch.Stream.Create does, if the
	// caller may read its keys, and ends it when that is no longer so.
	CreateWatch(ctx context.Context, ws *watch.Stream, req *pb.WatchCreateRequest) error
}

// Accounts serves users and roles.
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

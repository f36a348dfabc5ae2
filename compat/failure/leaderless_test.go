package failure

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	authpb "go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"quorate/compat/child"
	"quorate/compat/harness"
)

// unaryCalls are all unary methods, with a request that a healthy cluster would carry out.
var unaryCalls = map[string]proto.Message{
	"/etcdserverpb.KV/Range":                   &pb.RangeRequest{Key: []byte("k")},
	"/etcdserverpb.KV/Range serializable":      &pb.RangeRequest{Key: []byte("k"), Serializable: true},
	"/etcdserverpb.KV/Put":                     &pb.PutRequest{Key: []byte("k")},
	"/etcdserverpb.KV/DeleteRange":             &pb.DeleteRangeRequest{Key: []byte("k")},
	"/etcdserverpb.KV/Txn":                     &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("k")}}}}},
	"/etcdserverpb.KV/Txn reading":             &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("k")}}}}},
	"/etcdserverpb.KV/Compact":                 &pb.CompactionRequest{Revision: 2},
	"/etcdserverpb.Lease/LeaseGrant":           &pb.LeaseGrantRequest{TTL: 60},
	"/etcdserverpb.Lease/LeaseRevoke":          &pb.LeaseRevokeRequest{ID: 7},
	"/etcdserverpb.Lease/LeaseTimeToLive":      &pb.LeaseTimeToLiveRequest{ID: 7},
	"/etcdserverpb.Lease/LeaseTimeToLive keys": &pb.LeaseTimeToLiveRequest{ID: 7, Keys: true},
	"/etcdserverpb.Lease/LeaseLeases":          &pb.LeaseLeasesRequest{},
	"/etcdserverpb.Cluster/MemberAdd":          &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:1"}},
	"/etcdserverpb.Cluster/MemberRemove":       &pb.MemberRemoveRequest{ID: 9},
	"/etcdserverpb.Cluster/MemberUpdate":       &pb.MemberUpdateRequest{ID: 9, PeerURLs: []string{"http://127.0.0.1:1"}},
	"/etcdserverpb.Cluster/MemberPromote":      &pb.MemberPromoteRequest{ID: 9},
	"/etcdserverpb.Cluster/MemberList":         &pb.MemberListRequest{},
	"/etcdserverpb.Cluster/MemberList linear":  &pb.MemberListRequest{Linearizable: true},
	"/etcdserverpb.Maintenance/Alarm":          &pb.AlarmRequest{},
	"/etcdserverpb.Maintenance/Status":         &pb.StatusRequest{},
	"/etcdserverpb.Maintenance/Defragment":     &pb.DefragmentRequest{},
	"/etcdserverpb.Maintenance/Hash":           &pb.HashRequest{},
	"/etcdserverpb.Maintenance/HashKV":         &pb.HashKVRequest{},
	"/etcdserverpb.Maintenance/MoveLeader":     &pb.MoveLeaderRequest{TargetID: 9},
	"/etcdserverpb.Maintenance/Downgrade":      &pb.DowngradeRequest{Action: pb.DowngradeRequest_VALIDATE, Version: "3.6"},
	"/etcdserverpb.Maintenance/Downgrade on":   &pb.DowngradeRequest{Action: pb.DowngradeRequest_ENABLE, Version: "3.6"},
	"/etcdserverpb.Maintenance/Downgrade off":  &pb.DowngradeRequest{Action: pb.DowngradeRequest_CANCEL},
	"/etcdserverpb.Auth/AuthEnable":            &pb.AuthEnableRequest{},
	"/etcdserverpb.Auth/AuthDisable":           &pb.AuthDisableRequest{},
	"/etcdserverpb.Auth/AuthStatus":            &pb.AuthStatusRequest{},
	"/etcdserverpb.Auth/Authenticate":          &pb.AuthenticateRequest{Name: "u", Password: "p"},
	"/etcdserverpb.Auth/UserAdd":               &pb.AuthUserAddRequest{Name: "u", Password: "p", Options: &authpb.UserAddOptions{}},
	"/etcdserverpb.Auth/UserGet":               &pb.AuthUserGetRequest{Name: "u"},
	"/etcdserverpb.Auth/UserList":              &pb.AuthUserListRequest{},
	"/etcdserverpb.Auth/UserDelete":            &pb.AuthUserDeleteRequest{Name: "u"},
	"/etcdserverpb.Auth/UserChangePassword":    &pb.AuthUserChangePasswordRequest{Name: "u", Password: "p"},
	"/etcdserverpb.Auth/UserGrantRole":         &pb.AuthUserGrantRoleRequest{User: "u", Role: "r"},
	"/etcdserverpb.Auth/UserRevokeRole":        &pb.AuthUserRevokeRoleRequest{Name: "u", Role: "r"},
	"/etcdserverpb.Auth/RoleAdd":               &pb.AuthRoleAddRequest{Name: "r"},
	"/etcdserverpb.Auth/RoleGet":               &pb.AuthRoleGetRequest{Role: "r"},
	"/etcdserverpb.Auth/RoleList":              &pb.AuthRoleListRequest{},
	"/etcdserverpb.Auth/RoleDelete":            &pb.AuthRoleDeleteRequest{Role: "r"},
	"/etcdserverpb.Auth/RoleGrantPermission":   &pb.AuthRoleGrantPermissionRequest{Name: "r", Perm: &authpb.Permission{Key: []byte("k")}},
	"/etcdserverpb.Auth/RoleRevokePermission":  &pb.AuthRoleRevokePermissionRequest{Role: "r", Key: []byte("k")},
	"/v3lockpb.Lock/Lock":                      &mvccpb.KeyValue{Key: []byte("l")},
	"/v3lockpb.Lock/Unlock":                    &mvccpb.KeyValue{Key: []byte("l")},
	"/v3electionpb.Election/Campaign":          &mvccpb.KeyValue{Key: []byte("l")},
	"/v3electionpb.Election/Leader":            &mvccpb.KeyValue{Key: []byte("l")},
}

// streamCalls are the streams, with a first request that is answered or fails.
var streamCalls = map[string]proto.Message{
	"/etcdserverpb.Lease/LeaseKeepAlive": &pb.LeaseKeepAliveRequest{ID: 7},
	"/etcdserverpb.Watch/Watch":          &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("k")}}},
	"/etcdserverpb.KV/RangeStream":       &pb.RangeRequest{Key: []byte("k")},
	"/etcdserverpb.Maintenance/Snapshot": &pb.SnapshotRequest{},
	"/v3electionpb.Election/Observe":     &mvccpb.KeyValue{Key: []byte("l")},
}

// leaderless makes every call on the last remaining member of three, by name, with code and text.
func leaderless(t *testing.T, binary string) map[string]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 4*limit)
	defer cancel()
	c, err := harness.StartCluster(ctx, t.TempDir(), []string{binary, binary, binary})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Kill()
	client := child.Dial(t, c.Members[0].ClientAddr())
	if _, err := client.Lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 7, TTL: 6000}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.PutWithin(limit, "k", "v"); err != nil {
		t.Fatal(err)
	}
	// A member ends such a stream once it has had no leader for two to three election timeouts. From
	// then on it reports no leader, and not the loss of one.
	needsLeader := metadata.AppendToOutgoingContext(ctx, rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
	watch, err := client.Conn.NewStream(needsLeader, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/etcdserverpb.Watch/Watch")
	if err == nil {
		err = watch.SendMsg(streamCalls["/etcdserverpb.Watch/Watch"])
	}
	if err == nil {
		err = watch.RecvMsg(new(emptypb.Empty))
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range c.Members[1:] {
		if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	child.Eventually(t, limit, "the leader is lost", func() error {
		s, err := client.Maintenance.Status(ctx, &pb.StatusRequest{})
		if err == nil && s.Leader != 0 {
			err = fmt.Errorf("leader %x", s.Leader)
		}
		return err
	})
	for err == nil {
		err = watch.RecvMsg(new(emptypb.Empty))
	}
	if status.Convert(err).Message() != status.Convert(rpctypes.ErrGRPCNoLeader).Message() {
		t.Fatalf("the watch ended with %v", err)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	got := map[string]string{}
	note := func(name string, err error) {
		mu.Lock()
		defer mu.Unlock()
		got[name] = fmt.Sprintf("%d %s", status.Code(err), status.Convert(err).Message())
	}
	for _, needs := range []bool{false, true} {
		suffix, ctx := "", ctx
		if needs {
			suffix, ctx = " hasleader", metadata.AppendToOutgoingContext(ctx, rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
		}
		for name, req := range unaryCalls {
			wg.Go(func() {
				var method string
				fmt.Sscan(name, &method)
				ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
				defer cancel()
				note(name+suffix, client.Conn.Invoke(ctx, method, req, new(emptypb.Empty)))
			})
		}
		for name, req := range streamCalls {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
				defer cancel()
				s, err := client.Conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, name)
				if err == nil {
					err = s.SendMsg(req)
				}
				if err == nil {
					err = s.RecvMsg(new(emptypb.Empty))
				}
				note(name+suffix, err)
			})
		}
	}
	wg.Wait()
	return got
}

// Without a leader, every call ends as it does in etcd, with the same code and text.
func TestWithoutLeader(t *testing.T) {
	if real == "" {
		t.Skip("there is no real etcd to compare with")
	}
	var ours, want map[string]string
	t.Run("clusters", func(t *testing.T) {
		t.Run("ours", func(t *testing.T) { t.Parallel(); ours = leaderless(t, etcd) })
		t.Run("etcd", func(t *testing.T) { t.Parallel(); want = leaderless(t, real) })
	})
	meant := map[string]bool{ // see docs/differences.md
		"/etcdserverpb.Maintenance/Downgrade off": true, "/etcdserverpb.Cluster/MemberRemove": true,
	}
	for name, w := range want {
		if ours[name] != w && !meant[name] {
			t.Errorf("%s: %q, etcd says %q", name, ours[name], w)
		}
	}
}

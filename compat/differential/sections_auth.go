package differential

import (
	"context"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// as runs the operations that fill adds with the token that the user got in login.
func (b *script) as(user string, fill func(b *script)) {
	inner := &script{}
	fill(inner)
	for _, o := range inner.ops {
		b.add("as "+user+": "+o.name, func(ctx context.Context, s *session) answer {
			if t := s.tokens[user]; t != "" {
				ctx = metadata.AppendToOutgoingContext(ctx, "token", t)
			}
			return o.do(ctx, s)
		})
	}
}

func (b *script) login(user, password string) {
	b.add("Authenticate "+user, func(ctx context.Context, s *session) answer {
		r, err := s.auth.Authenticate(ctx, &pb.AuthenticateRequest{Name: user, Password: password})
		if err == nil {
			s.tokens[user] = r.Token
		}
		return s.answerOf(r, err)
	})
}

// authCall adds a call of the Auth service by method name.
func authCall(b *script, method string, req, resp proto.Message) {
	b.add(describe("Auth/"+method, req), func(ctx context.Context, s *session) answer {
		out := proto.Clone(resp)
		err := s.conn.Invoke(ctx, "/etcdserverpb.Auth/"+method, req, out)
		return s.answerOf(out, err)
	})
}

func authSection(b *script) {
	b.settled()
	var none message
	b.wire("name of broken UTF-8", "/etcdserverpb.Auth/UserAdd", none.bytes(1, "\xff\xfe"), &pb.AuthUserAddResponse{})
	enable := func() { authCall(b, "AuthEnable", &pb.AuthEnableRequest{}, &pb.AuthEnableResponse{}) }
	authStatus := func() { authCall(b, "AuthStatus", &pb.AuthStatusRequest{}, &pb.AuthStatusResponse{}) }
	userAdd := func(r *pb.AuthUserAddRequest) { authCall(b, "UserAdd", r, &pb.AuthUserAddResponse{}) }
	userGet := func(n string) { authCall(b, "UserGet", &pb.AuthUserGetRequest{Name: n}, &pb.AuthUserGetResponse{}) }
	userList := func() { authCall(b, "UserList", &pb.AuthUserListRequest{}, &pb.AuthUserListResponse{}) }
	userDelete := func(n string) {
		authCall(b, "UserDelete", &pb.AuthUserDeleteRequest{Name: n}, &pb.AuthUserDeleteResponse{})
	}
	passwd := func(n, p string) {
		authCall(b, "UserChangePassword", &pb.AuthUserChangePasswordRequest{Name: n, Password: p}, &pb.AuthUserChangePasswordResponse{})
	}
	grantRole := func(u, r string) {
		authCall(b, "UserGrantRole", &pb.AuthUserGrantRoleRequest{User: u, Role: r}, &pb.AuthUserGrantRoleResponse{})
	}
	revokeRole := func(u, r string) {
		authCall(b, "UserRevokeRole", &pb.AuthUserRevokeRoleRequest{Name: u, Role: r}, &pb.AuthUserRevokeRoleResponse{})
	}
	roleAdd := func(n string) { authCall(b, "RoleAdd", &pb.AuthRoleAddRequest{Name: n}, &pb.AuthRoleAddResponse{}) }
	roleGet := func(n string) { authCall(b, "RoleGet", &pb.AuthRoleGetRequest{Role: n}, &pb.AuthRoleGetResponse{}) }
	roleList := func() { authCall(b, "RoleList", &pb.AuthRoleListRequest{}, &pb.AuthRoleListResponse{}) }
	roleDelete := func(n string) {
		authCall(b, "RoleDelete", &pb.AuthRoleDeleteRequest{Role: n}, &pb.AuthRoleDeleteResponse{})
	}
	permit := func(role string, kind authpb.Permission_Type, key, end string) {
		authCall(b, "RoleGrantPermission", &pb.AuthRoleGrantPermissionRequest{Name: role,
			Perm: &authpb.Permission{PermType: kind, Key: k(key), RangeEnd: k(end)}}, &pb.AuthRoleGrantPermissionResponse{})
	}
	forbid := func(role, key, end string) {
		authCall(b, "RoleRevokePermission", &pb.AuthRoleRevokePermissionRequest{Role: role, Key: k(key), RangeEnd: k(end)}, &pb.AuthRoleRevokePermissionResponse{})
	}
	const read, write, both = authpb.Permission_READ, authpb.Permission_WRITE, authpb.Permission_READWRITE

	authStatus()
	enable()
	b.login("root", "secret")
	userAdd(&pb.AuthUserAddRequest{})
	userAdd(&pb.AuthUserAddRequest{Name: "root", Password: "secret"})
	userAdd(&pb.AuthUserAddRequest{Name: "root", Password: "secret"})
	enable()
	grantRole("root", "root")
	roleAdd("root")
	roleAdd("root")
	roleAdd("")
	grantRole("root", "root")
	grantRole("root", "root")
	grantRole("nobody", "root")
	grantRole("root", "nothing")
	userAdd(&pb.AuthUserAddRequest{Name: "reader", Password: "r"})
	userAdd(&pb.AuthUserAddRequest{Name: "writer", Password: "w", Options: &authpb.UserAddOptions{}})
	userAdd(&pb.AuthUserAddRequest{Name: "plain", Options: &authpb.UserAddOptions{NoPassword: true}})
	userAdd(&pb.AuthUserAddRequest{Name: "odd", Password: "p", Options: &authpb.UserAddOptions{NoPassword: true}})
	userAdd(&pb.AuthUserAddRequest{Name: "hashed", HashedPassword: "not base64!"})
	userAdd(&pb.AuthUserAddRequest{Name: "emptypass"})
	roleAdd("reads")
	roleAdd("writes")
	roleAdd("rest")
	permit("reads", read, "a/", "a0")
	permit("reads", read, "b", "")
	permit("writes", write, "a/", "a0")
	permit("writes", both, "w", "x")
	permit("rest", both, "m", "\x00")
	permit("rest", 7, "z", "")
	permit("nothing", read, "a", "")
	permit("reads", read, "", "")
	permit("reads", read, "q", "a")
	authCall(b, "RoleGrantPermission", &pb.AuthRoleGrantPermissionRequest{Name: "reads"}, &pb.AuthRoleGrantPermissionResponse{})
	permit("reads", both, "b", "") // replaces the type
	roleGet("reads")
	forbid("reads", "b", "")
	forbid("reads", "b", "")
	forbid("reads", "a/", "")
	forbid("nothing", "b", "")
	for _, r := range []string{"reads", "writes", "rest", "root", "nothing", ""} {
		roleGet(r)
	}
	grantRole("reader", "reads")
	grantRole("writer", "writes")
	grantRole("writer", "rest")
	revokeRole("writer", "reads")
	revokeRole("writer", "nothing")
	revokeRole("nobody", "reads")
	for _, u := range []string{"root", "reader", "writer", "plain", "nobody", ""} {
		userGet(u)
	}
	userList()
	roleList()
	authStatus()
	b.put("a/1", "one")
	b.put("b", "two")
	b.grant(71, 600)
	b.putReq(&pb.PutRequest{Key: k("b/leased"), Lease: 71})

	enable()
	enable() // without a token now
	authStatus()
	b.rng(&pb.RangeRequest{Key: k("a/1")})
	b.put("a/1", "x")
	b.login("root", "wrong")
	b.login("nobody", "x")
	b.login("plain", "x")
	b.login("", "")
	b.login("root", "secret")
	b.login("reader", "r")
	b.login("writer", "w")
	b.add("Range with a token that was never issued", func(ctx context.Context, s *session) answer {
		r, err := s.kv.Range(metadata.AppendToOutgoingContext(ctx, "token", "abc.1"), &pb.RangeRequest{Key: k("a/1")})
		return s.answerOf(r, err)
	})
	b.add("Range with the token as Authorization", func(ctx context.Context, s *session) answer {
		r, err := s.kv.Range(metadata.AppendToOutgoingContext(ctx, "authorization", s.tokens["reader"]), &pb.RangeRequest{Key: k("a/1")})
		return s.answerOf(r, err)
	})
	b.as("root", func(b *script) {
		enable := func() { authCall(b, "AuthEnable", &pb.AuthEnableRequest{}, &pb.AuthEnableResponse{}) }
		enable()
		b.put("a/2", "by root")
		b.rng(&pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	})
	for _, user := range []string{"reader", "writer"} {
		b.as(user, func(b *script) {
			b.rng(&pb.RangeRequest{Key: k("a/1")})
			b.rng(&pb.RangeRequest{Key: k("a/"), RangeEnd: k("a0")})
			b.rng(&pb.RangeRequest{Key: k("a/"), RangeEnd: k("a1")})
			b.rng(&pb.RangeRequest{Key: k("b")})
			b.rng(&pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
			b.rng(&pb.RangeRequest{Key: k("n"), RangeEnd: []byte{0}})
			b.stream(&pb.RangeRequest{Key: k("a/"), RangeEnd: k("a0")})
			b.stream(&pb.RangeRequest{Key: k("b")})
			b.put("a/3", "x")
			b.put("c", "x")
			b.put("w1", "x")
			b.put("x1", "x")
			b.putReq(&pb.PutRequest{Key: k("a/3"), PrevKv: true})
			b.putReq(&pb.PutRequest{Key: k("w1"), PrevKv: true})
			b.putReq(&pb.PutRequest{Key: k("w2"), Lease: 71})
			b.del("a/3", "")
			b.del("w", "x")
			b.delReq(&pb.DeleteRangeRequest{Key: k("a/3"), PrevKv: true})
			b.txn(&pb.TxnRequest{Success: ops(get("a/1")), Failure: ops(set("a/1", "x"))})
			b.txn(&pb.TxnRequest{Compare: []*pb.Compare{{Key: k("secret"), Target: pb.Compare_VERSION}}, Success: ops(set("w3", "x"))})
			b.compact(3, false)
			b.status()
			b.hashKV(0)
			b.grant(72, 600)
			b.timeToLive(71, true)
			b.timeToLive(71, false)
			b.revoke(71)
			b.keepAlive(71)
			b.leases()
			b.alarm(pb.AlarmRequest_GET, pb.AlarmType_NONE, nobody)
			b.alarm(pb.AlarmRequest_ACTIVATE, pb.AlarmType_NOSPACE, self)
			unary(b, "MemberList", &pb.MemberListRequest{Linearizable: true}, func(s *session, ctx context.Context, r *pb.MemberListRequest) (*pb.MemberListResponse, error) {
				return s.cluster.MemberList(ctx, r)
			})
			for _, m := range []string{"reader", "writer"} {
				authCall(b, "UserGet", &pb.AuthUserGetRequest{Name: m}, &pb.AuthUserGetResponse{})
			}
			for _, r := range []string{"reads", "rest"} {
				authCall(b, "RoleGet", &pb.AuthRoleGetRequest{Role: r}, &pb.AuthRoleGetResponse{})
			}
			authCall(b, "UserList", &pb.AuthUserListRequest{}, &pb.AuthUserListResponse{})
			authCall(b, "RoleList", &pb.AuthRoleListRequest{}, &pb.AuthRoleListResponse{})
			authCall(b, "UserAdd", &pb.AuthUserAddRequest{Name: "x", Password: "x"}, &pb.AuthUserAddResponse{})
			authCall(b, "AuthDisable", &pb.AuthDisableRequest{}, &pb.AuthDisableResponse{})
			stream := "auth-" + user
			b.watchOpenAs(stream)
			b.watchCreate(stream, &pb.WatchCreateRequest{Key: k("a/"), RangeEnd: k("a0"), StartRevision: 2})
			b.watchCreate(stream, &pb.WatchCreateRequest{Key: k("b")})
			b.watchCreate(stream, &pb.WatchCreateRequest{Key: k("n"), RangeEnd: []byte{0}})
			b.watchSeen(stream)
		})
	}
	b.as("root", func(b *script) {
		userDelete := func(n string) {
			authCall(b, "UserDelete", &pb.AuthUserDeleteRequest{Name: n}, &pb.AuthUserDeleteResponse{})
		}
		userDelete("root")
		userDelete("nobody")
		authCall(b, "RoleDelete", &pb.AuthRoleDeleteRequest{Role: "root"}, &pb.AuthRoleDeleteResponse{})
		authCall(b, "UserRevokeRole", &pb.AuthUserRevokeRoleRequest{Name: "root", Role: "root"}, &pb.AuthUserRevokeRoleResponse{})
		authCall(b, "UserChangePassword", &pb.AuthUserChangePasswordRequest{Name: "reader", Password: "new"}, &pb.AuthUserChangePasswordResponse{})
		authCall(b, "AuthStatus", &pb.AuthStatusRequest{}, &pb.AuthStatusResponse{})
	})
	b.as("reader", func(b *script) { b.rng(&pb.RangeRequest{Key: k("a/1")}) }) // its token is gone
	b.login("reader", "r")
	b.login("reader", "new")
	b.as("reader", func(b *script) { b.rng(&pb.RangeRequest{Key: k("a/1")}) })
	b.as("root", func(b *script) {
		authCall(b, "RoleDelete", &pb.AuthRoleDeleteRequest{Role: "reads"}, &pb.AuthRoleDeleteResponse{})
		authCall(b, "UserGet", &pb.AuthUserGetRequest{Name: "reader"}, &pb.AuthUserGetResponse{})
		authCall(b, "UserDelete", &pb.AuthUserDeleteRequest{Name: "writer"}, &pb.AuthUserDeleteResponse{})
	})
	b.as("reader", func(b *script) { b.rng(&pb.RangeRequest{Key: k("a/1")}) })
	b.as("writer", func(b *script) { b.put("a/1", "x") })
	b.as("root", func(b *script) {
		authCall(b, "AuthDisable", &pb.AuthDisableRequest{}, &pb.AuthDisableResponse{})
		authCall(b, "AuthDisable", &pb.AuthDisableRequest{}, &pb.AuthDisableResponse{})
	})
	authStatus()
	passwd("nobody", "x")
	passwd("reader", "")
	userDelete("reader")
	roleDelete("nothing")
	revokeRole("root", "root")
	roleDelete("root")
	userDelete("root")
	userList()
	roleList()
	authStatus()
	b.everything()
}

// watchOpenAs opens a stream with the credentials of ctx and without a fence: a user that may not read the
// fence's key could not have one.
func (b *script) watchOpenAs(stream string) {
	b.add("Watch open "+stream, func(ctx context.Context, s *session) answer {
		ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		st, err := s.watch.Watch(ctx)
		if err != nil {
			cancel()
			return failed(err)
		}
		w := newWatchStream(st, cancel)
		go w.collect()
		s.streams[stream] = w
		return nil
	})
}

// watchSeen reports the control responses so far; events may still be in flight.
func (b *script) watchSeen(stream string) {
	b.add("Watch "+stream+" answers so far", func(_ context.Context, s *session) answer {
		w, err := s.stream(stream)
		if err != nil {
			return failed(err)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		var control []*pb.WatchResponse
		for _, r := range w.pending {
			if r.Created || r.Canceled {
				control = append(control, r)
			}
		}
		return s.watchAnswer(control)
	})
}

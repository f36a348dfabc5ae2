package differential

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/metadata"
)

// jwtKey is the key with which both servers sign tokens.
const jwtKey = "a key that both servers have"

// signedToken is a token as a third party who has the key could make it.
func signedToken(head, claims, key string) string {
	enc := base64.RawURLEncoding.EncodeToString
	text := enc([]byte(head)) + "." + enc([]byte(claims))
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write([]byte(text))
	return text + "." + enc(mac.Sum(nil))
}

// jwtSection uses signed tokens that carry the auth revision they were issued at.
func jwtSection(b *script) {
	b.settled()
	add := func(name string) {
		authCall(b, "UserAdd", &pb.AuthUserAddRequest{Name: name, Password: name}, &pb.AuthUserAddResponse{})
	}
	grant := func(user, role string) {
		authCall(b, "UserGrantRole", &pb.AuthUserGrantRoleRequest{User: user, Role: role}, &pb.AuthUserGrantRoleResponse{})
	}
	permit := func(kind authpb.Permission_Type, key, end string) {
		authCall(b, "RoleGrantPermission", &pb.AuthRoleGrantPermissionRequest{Name: "r",
			Perm: &authpb.Permission{PermType: kind, Key: k(key), RangeEnd: k(end)}}, &pb.AuthRoleGrantPermissionResponse{})
	}
	add("root")
	grant("root", "root")
	add("u")
	authCall(b, "RoleAdd", &pb.AuthRoleAddRequest{Name: "r"}, &pb.AuthRoleAddResponse{})
	permit(authpb.Permission_READWRITE, "a", "b")
	grant("u", "r")
	b.put("a1", "x")
	b.grant(81, 600)
	b.putReq(&pb.PutRequest{Key: k("a2"), Lease: 81})
	b.grant(82, 600)
	b.putReq(&pb.PutRequest{Key: k("z"), Lease: 82})
	authCall(b, "AuthEnable", &pb.AuthEnableRequest{}, &pb.AuthEnableResponse{})
	b.login("u", "wrong")
	b.login("u", "u")
	b.login("root", "root")
	calls := func(b *script) {
		b.rng(&pb.RangeRequest{Key: k("a1")})
		b.rng(&pb.RangeRequest{Key: k("a1"), Serializable: true})
		b.rng(&pb.RangeRequest{Key: k("a"), RangeEnd: k("c")})
		b.stream(&pb.RangeRequest{Key: k("a"), RangeEnd: k("b")})
		b.put("a1", "y")
		b.put("z", "y")
		b.del("z", "")
		b.delReq(&pb.DeleteRangeRequest{Key: k("a3"), PrevKv: true})
		b.txn(&pb.TxnRequest{Success: ops(get("a1"))})
		b.txn(&pb.TxnRequest{Success: ops(get("a1"), set("a1", "z"))})
		b.txn(&pb.TxnRequest{Success: ops(get("z"), set("a1", "z"))})
		b.grant(83, 600)
		b.keepAlive(81)
		b.keepAlive(82)
		b.timeToLive(81, true)
		b.timeToLive(82, true)
		b.timeToLive(82, false)
		b.revoke(82)
		b.revoke(83)
		b.leases()
		b.status()
		b.compact(3, false)
		b.hashKV(0)
		b.alarm(pb.AlarmRequest_GET, pb.AlarmType_NONE, nobody)
		authCall(b, "UserGet", &pb.AuthUserGetRequest{Name: "u"}, &pb.AuthUserGetResponse{})
		authCall(b, "RoleGet", &pb.AuthRoleGetRequest{Role: "r"}, &pb.AuthRoleGetResponse{})
		authCall(b, "UserList", &pb.AuthUserListRequest{}, &pb.AuthUserListResponse{})
	}
	watched := func(b *script, stream string) {
		b.watchOpenAs(stream)
		b.watchCreate(stream, &pb.WatchCreateRequest{Key: k("a"), RangeEnd: k("b")})
		b.watchCreate(stream, &pb.WatchCreateRequest{Key: k("z")})
		b.watchSeen(stream)
	}
	b.as("u", calls)
	b.as("u", func(b *script) { watched(b, "jwt-u") })
	b.as("root", calls)

	// Any change of users and roles makes the tokens stale, but not for what only root may do.
	b.as("root", func(b *script) {
		authCall(b, "UserAdd", &pb.AuthUserAddRequest{Name: "v", Options: &authpb.UserAddOptions{NoPassword: true}}, &pb.AuthUserAddResponse{})
	})
	b.as("u", calls)
	b.as("u", func(b *script) { watched(b, "jwt-u-old") })
	b.as("root", calls)
	b.login("u", "u")
	b.as("u", func(b *script) { b.rng(&pb.RangeRequest{Key: k("a1")}) })

	const head = `{"alg":"HS256","typ":"JWT"}`
	later := time.Now().Add(time.Hour).Unix()
	for _, c := range []struct{ name, token string }{
		{"another key", signedToken(head, fmt.Sprintf(`{"username":"root","revision":9,"exp":%d}`, later), "guess")},
		{"another method", signedToken(`{"alg":"HS384","typ":"JWT"}`, `{"username":"root","revision":9}`, jwtKey)},
		{"no method", signedToken(`{"alg":"none","typ":"JWT"}`, `{"username":"root","revision":9}`, jwtKey)},
		{"its time over", signedToken(head, `{"username":"root","revision":9,"exp":1000}`, jwtKey)},
		{"no end", signedToken(head, `{"username":"root","revision":99}`, jwtKey)},
		{"a time to come", signedToken(head, fmt.Sprintf(`{"username":"root","revision":99,"nbf":%d}`, later), jwtKey)},
		{"revision 0", signedToken(head, `{"username":"root","revision":0}`, jwtKey)},
		{"a revision of text", signedToken(head, `{"username":"root","revision":"9"}`, jwtKey)},
		{"no revision", signedToken(head, `{"username":"root"}`, jwtKey)},
		{"no user", signedToken(head, `{"revision":99}`, jwtKey)},
		{"an unknown user", signedToken(head, `{"username":"nobody","revision":99}`, jwtKey)},
		{"an empty user", signedToken(head, `{"username":"","revision":99}`, jwtKey)},
		{"claims that are no claims", signedToken(head, `[]`, jwtKey)},
		{"a subject that is a number", signedToken(head, `{"sub":7,"username":"root","revision":99}`, jwtKey)},
		{"nothing", ""},
		{"junk", "junk"},
		{"the form of a simple token", "abc.1"},
	} {
		with := func(name string, do func(ctx context.Context, s *session) answer) {
			b.add(name+" with a token of "+c.name, func(ctx context.Context, s *session) answer {
				return do(metadata.AppendToOutgoingContext(ctx, "token", c.token), s)
			})
		}
		with("Range", func(ctx context.Context, s *session) answer {
			r, err := s.kv.Range(ctx, &pb.RangeRequest{Key: k("a1")})
			return s.answerOf(r, err)
		})
		with("Put", func(ctx context.Context, s *session) answer {
			r, err := s.kv.Put(ctx, &pb.PutRequest{Key: k("a1"), Value: k(c.name)})
			return s.answerOf(r, err)
		})
		with("UserList", func(ctx context.Context, s *session) answer {
			r, err := s.auth.UserList(ctx, &pb.AuthUserListRequest{})
			return s.answerOf(r, err)
		})
	}
	b.add("Range with Bearer in front of the token", func(ctx context.Context, s *session) answer {
		r, err := s.kv.Range(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+s.tokens["u"]), &pb.RangeRequest{Key: k("a1")})
		return s.answerOf(r, err)
	})
	// A signed token survives a change of password, but is stale then.
	b.as("root", func(b *script) {
		authCall(b, "UserChangePassword", &pb.AuthUserChangePasswordRequest{Name: "u", Password: "new"}, &pb.AuthUserChangePasswordResponse{})
	})
	b.as("u", func(b *script) { b.rng(&pb.RangeRequest{Key: k("a1")}) })
	b.login("u", "u")
	b.login("u", "new")
	b.as("u", func(b *script) { b.rng(&pb.RangeRequest{Key: k("a1")}) })
	b.as("root", func(b *script) { authCall(b, "AuthDisable", &pb.AuthDisableRequest{}, &pb.AuthDisableResponse{}) })
	b.as("u", func(b *script) { b.rng(&pb.RangeRequest{Key: k("a1")}) })
	b.everything()
}

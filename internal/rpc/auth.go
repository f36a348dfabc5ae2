package rpc

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

const authService = "etcdserverpb.Auth"

func (e *edge) authDesc() service {
	a := e.b.Accounts
	return service{
		name: authService,
		methods: []method{
			unary(e, authService, "AuthEnable", filled(e.identity, a.AuthEnable)),
			unary(e, authService, "AuthDisable", filled(e.identity, a.AuthDisable)),
			unary(e, authService, "AuthStatus", filled(e.identity, a.AuthStatus)),
			unary(e, authService, "Authenticate", filled(e.identity, a.Authenticate)),
			unary(e, authService, "UserAdd", filled(e.identity, a.UserAdd)),
			unary(e, authService, "UserGet", filled(e.identity, a.UserGet)),
			unary(e, authService, "UserList", filled(e.identity, a.UserList)),
			unary(e, authService, "UserDelete", filled(e.identity, a.UserDelete)),
			unary(e, authService, "UserChangePassword", filled(e.identity, a.UserChangePassword)),
			unary(e, authService, "UserGrantRole", filled(e.identity, a.UserGrantRole)),
			unary(e, authService, "UserRevokeRole", filled(e.identity, a.UserRevokeRole)),
			unary(e, authService, "RoleAdd", filled(e.identity, a.RoleAdd)),
			unary(e, authService, "RoleGet", filled(e.identity, a.RoleGet)),
			unary(e, authService, "RoleList", filled(e.identity, a.RoleList)),
			unary(e, authService, "RoleDelete", filled(e.identity, a.RoleDelete)),
			unary(e, authService, "RoleGrantPermission", filled(e.identity, a.RoleGrantPermission)),
			unary(e, authService, "RoleRevokePermission", filled(e.identity, a.RoleRevokePermission)),
		},
	}
}

// filled wraps call to complete the header of its response.
func filled[Q any, R interface {
	comparable
	GetHeader() *pb.ResponseHeader
}](id identity, call func(context.Context, *Q) (R, error)) func(context.Context, *Q) (R, error) {
	return func(ctx context.Context, req *Q) (R, error) {
		resp, err := call(ctx, req)
		if err == nil {
			id.fill(resp.GetHeader())
		}
		return resp, err
	}
}

// rootOnly wraps call to require that the user has the role root, unless
// authentication is disabled.
func rootOnly[Q, R any](access Access, call func(context.Context, *Q) (R, error)) func(context.Context, *Q) (R, error) {
	return func(ctx context.Context, req *Q) (resp R, err error) {
		if err := access.RequireRoot(ctx); err != nil {
			return resp, err
		}
		return call(ctx, req)
	}
}

package rpc

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

const authService = "etcdserverpb.Auth"

func (e *edge) authDesc() service {
	return service{
		name: authService,
		methods: []method{
			unary(e, authService, "AuthEnable", filled(e, e.b.Accounts.AuthEnable)),
			unary(e, authService, "AuthDisable", filled(e, e.b.Accounts.AuthDisable)),
			unary(e, authService, "AuthStatus", filled(e, e.b.Accounts.AuthStatus)),
			unary(e, authService, "Authenticate", filled(e, e.b.Accounts.Authenticate)),
			unary(e, authService, "UserAdd", filled(e, e.b.Accounts.UserAdd)),
			unary(e, authService, "UserGet", filled(e, e.b.Accounts.UserGet)),
			unary(e, authService, "UserList", filled(e, e.b.Accounts.UserList)),
			unary(e, authService, "UserDelete", filled(e, e.b.Accounts.UserDelete)),
			unary(e, authService, "UserChangePassword", filled(e, e.b.Accounts.UserChangePassword)),
			unary(e, authService, "UserGrantRole", filled(e, e.b.Accounts.UserGrantRole)),
			unary(e, authService, "UserRevokeRole", filled(e, e.b.Accounts.UserRevokeRole)),
			unary(e, authService, "RoleAdd", filled(e, e.b.Accounts.RoleAdd)),
			unary(e, authService, "RoleGet", filled(e, e.b.Accounts.RoleGet)),
			unary(e, authService, "RoleList", filled(e, e.b.Accounts.RoleList)),
			unary(e, authService, "RoleDelete", filled(e, e.b.Accounts.RoleDelete)),
			unary(e, authService, "RoleGrantPermission", filled(e, e.b.Accounts.RoleGrantPermission)),
			unary(e, authService, "RoleRevokePermission", filled(e, e.b.Accounts.RoleRevokePermission)),
		},
	}
}

// filled wraps call to complete the header of its response.
func filled[Q any, R interface {
	comparable
	GetHeader() *pb.ResponseHeader
}](e *edge, call func(context.Context, *Q) (R, error)) func(context.Context, *Q) (R, error) {
	return func(ctx context.Context, req *Q) (R, error) {
		resp, err := call(ctx, req)
		if err == nil {
			e.fill(resp.GetHeader())
		}
		return resp, err
	}
}

// rootOnly wraps call to require that the user has the role root, unless
// authentication is disabled.
func rootOnly[Q, R any](e *edge, call func(context.Context, *Q) (R, error)) func(context.Context, *Q) (R, error) {
	return func(ctx context.Context, req *Q) (resp R, err error) {
		if err := e.b.Access.RequireRoot(ctx); err != nil {
			return resp, err
		}
		return call(ctx, req)
	}
}

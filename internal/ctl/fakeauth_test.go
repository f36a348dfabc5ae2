package ctl

import (
	"context"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// The users and roles of the fake server: the users root and alice; no request changes
// anything except whether root has its role.

func fakeUser(name string) error {
	if name == "" {
		return rpctypes.ErrGRPCUserEmpty
	}
	if name != "root" && name != "alice" {
		return rpctypes.ErrGRPCUserNotFound
	}
	return nil
}

func fakeRole(name string) error {
	if name == "" {
		return rpctypes.ErrGRPCRoleEmpty
	}
	if name != "root" && name != "r1" && name != "empty" {
		return rpctypes.ErrGRPCRoleNotFound
	}
	return nil
}

func (f *fakeServer) AuthEnable(context.Context, *pb.AuthEnableRequest) (*pb.AuthEnableResponse, error) {
	if !f.rootGranted.Load() {
		return nil, rpctypes.ErrGRPCRootRoleNotExist
	}
	return &pb.AuthEnableResponse{Header: f.header()}, nil
}

func (f *fakeServer) AuthDisable(context.Context, *pb.AuthDisableRequest) (*pb.AuthDisableResponse, error) {
	return &pb.AuthDisableResponse{Header: f.header()}, nil
}

func (f *fakeServer) AuthStatus(context.Context, *pb.AuthStatusRequest) (*pb.AuthStatusResponse, error) {
	return &pb.AuthStatusResponse{Header: f.header(), Enabled: true, AuthRevision: 14}, nil
}

func (f *fakeServer) UserAdd(_ context.Context, r *pb.AuthUserAddRequest) (*pb.AuthUserAddResponse, error) {
	if fakeUser(r.Name) == nil {
		return nil, rpctypes.ErrGRPCUserAlreadyExist
	}
	return &pb.AuthUserAddResponse{Header: f.header()}, nil
}

func (f *fakeServer) UserDelete(_ context.Context, r *pb.AuthUserDeleteRequest) (*pb.AuthUserDeleteResponse, error) {
	return &pb.AuthUserDeleteResponse{Header: f.header()}, fakeUser(r.Name)
}

func (f *fakeServer) UserGet(_ context.Context, r *pb.AuthUserGetRequest) (*pb.AuthUserGetResponse, error) {
	resp := &pb.AuthUserGetResponse{Header: f.header()}
	if r.Name == "alice" {
		resp.Roles = []string{"empty", "r1", "root"}
	}
	return resp, fakeUser(r.Name)
}

func (f *fakeServer) UserList(context.Context, *pb.AuthUserListRequest) (*pb.AuthUserListResponse, error) {
	return &pb.AuthUserListResponse{Header: f.header(), Users: []string{"alice", "root"}}, nil
}

func (f *fakeServer) UserChangePassword(_ context.Context, r *pb.AuthUserChangePasswordRequest) (*pb.AuthUserChangePasswordResponse, error) {
	return &pb.AuthUserChangePasswordResponse{Header: f.header()}, fakeUser(r.Name)
}

func (f *fakeServer) UserGrantRole(_ context.Context, r *pb.AuthUserGrantRoleRequest) (*pb.AuthUserGrantRoleResponse, error) {
	if r.User == "root" && r.Role == "root" {
		f.rootGranted.Store(true)
	}
	if err := fakeUser(r.User); err != nil {
		return nil, err
	}
	return &pb.AuthUserGrantRoleResponse{Header: f.header()}, fakeRole(r.Role)
}

func (f *fakeServer) UserRevokeRole(_ context.Context, r *pb.AuthUserRevokeRoleRequest) (*pb.AuthUserRevokeRoleResponse, error) {
	if r.Role != "r1" {
		return nil, rpctypes.ErrGRPCRoleNotGranted
	}
	return &pb.AuthUserRevokeRoleResponse{Header: f.header()}, fakeUser(r.Name)
}

func (f *fakeServer) RoleAdd(_ context.Context, r *pb.AuthRoleAddRequest) (*pb.AuthRoleAddResponse, error) {
	if r.Name == "r1" {
		return nil, rpctypes.ErrGRPCRoleAlreadyExist
	}
	return &pb.AuthRoleAddResponse{Header: f.header()}, nil
}

func (f *fakeServer) RoleDelete(_ context.Context, r *pb.AuthRoleDeleteRequest) (*pb.AuthRoleDeleteResponse, error) {
	return &pb.AuthRoleDeleteResponse{Header: f.header()}, fakeRole(r.Role)
}

func (f *fakeServer) RoleGet(_ context.Context, r *pb.AuthRoleGetRequest) (*pb.AuthRoleGetResponse, error) {
	resp := &pb.AuthRoleGetResponse{Header: f.header()}
	perm := func(kind authpb.Permission_Type, key, end string) {
		resp.Perm = append(resp.Perm, &authpb.Permission{PermType: kind, Key: []byte(key), RangeEnd: []byte(end)})
	}
	switch r.Role {
	case "root":
		perm(authpb.Permission_READWRITE, "", "\x00")
	case "r1":
		perm(authpb.Permission_READWRITE, "k", "")
		perm(authpb.Permission_READ, "p", "q")
		perm(authpb.Permission_WRITE, "q", "z")
		perm(authpb.Permission_READ, "t", "\x00")
		perm(authpb.Permission_WRITE, "\xff", "\x00")
	}
	return resp, fakeRole(r.Role)
}

func (f *fakeServer) RoleList(context.Context, *pb.AuthRoleListRequest) (*pb.AuthRoleListResponse, error) {
	return &pb.AuthRoleListResponse{Header: f.header(), Roles: []string{"empty", "r1", "root"}}, nil
}

func (f *fakeServer) RoleGrantPermission(_ context.Context, r *pb.AuthRoleGrantPermissionRequest) (*pb.AuthRoleGrantPermissionResponse, error) {
	return &pb.AuthRoleGrantPermissionResponse{Header: f.header()}, fakeRole(r.Name)
}

func (f *fakeServer) RoleRevokePermission(_ context.Context, r *pb.AuthRoleRevokePermissionRequest) (*pb.AuthRoleRevokePermissionResponse, error) {
	return &pb.AuthRoleRevokePermissionResponse{Header: f.header()}, fakeRole(r.Role)
}

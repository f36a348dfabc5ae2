package apply

import (
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"

	"quorate/internal/auth"
	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/lease"
)

// This file decides about permissions, for entries and, with the exported
// functions, for requests that a member serves without the log. The order of the
// checks is etcd's, because it determines which of two errors a client sees.

// users applies requests about users and roles, and decides about permissions.
type users struct {
	auth *auth.Store
	keys *keyspace
	now  func() time.Time
	lg   *zap.Logger
}

// load loads users and roles, and initializes a new store.
func (u *users) load(eng engine.Engine) error {
	fresh, err := u.auth.Load(eng)
	if err == nil && fresh {
		b := eng.NewBatch()
		u.auth.Init(b)
		err = b.Commit()
	}
	return err
}

// caller returns the user named in an entry's header.
func caller(r *pb.InternalRaftRequest) auth.Info {
	return auth.Info{User: r.Header.GetUsername(), Rev: r.Header.GetAuthRevision()}
}

// permitted rejects an entry whose user lacks the permission for it. Its
// decisions are part of the replicated state.
func (u *users) permitted(r *pb.InternalRaftRequest) error {
	st := u.auth.Next()
	if !st.Enabled() {
		return nil
	}
	who := caller(r)
	switch {
	case r.Put != nil:
		return CheckPut(st, who, u.keys.lessor, r.Put)
	case r.Txn != nil:
		return CheckTxn(st, who, u.keys.lessor, r.Txn)
	case r.DeleteRange != nil:
		if err := st.CanWrite(who, r.DeleteRange.Key, r.DeleteRange.RangeEnd); err != nil || !r.DeleteRange.PrevKv {
			return err
		}
		return st.CanRead(who, r.DeleteRange.Key, r.DeleteRange.RangeEnd)
	case r.LeaseRevoke != nil:
		return CheckLease(st, who, u.keys.lessor, lease.ID(r.LeaseRevoke.ID))
	case r.AuthUserGet != nil:
		if err := st.IsAdmin(who); err != nil && r.AuthUserGet.Name != who.User {
			return err
		}
	case r.AuthRoleGet != nil:
		if err := st.IsAdmin(who); err != nil && !st.HasRole(who.User, r.AuthRoleGet.Role) {
			return err
		}
	case adminOnly(r):
		return st.IsAdmin(who)
	}
	return nil
}

// adminOnly reports whether the entry requires the role root.
func adminOnly(r *pb.InternalRaftRequest) bool {
	return r.AuthEnable != nil || r.AuthDisable != nil ||
		r.AuthUserAdd != nil || r.AuthUserDelete != nil || r.AuthUserChangePassword != nil ||
		r.AuthUserGrantRole != nil || r.AuthUserRevokeRole != nil || r.AuthUserList != nil ||
		r.AuthRoleAdd != nil || r.AuthRoleDelete != nil || r.AuthRoleList != nil ||
		r.AuthRoleGrantPermission != nil || r.AuthRoleRevokePermission != nil
}

// CheckPut decides whether who may execute the put. Attaching a key to a lease
// requires write permission for all keys attached to the lease, which revoking it
// requires, too.
func CheckPut(st *auth.State, who auth.Info, l *lease.Lessor, r *pb.PutRequest) error {
	if !st.Enabled() {
		return nil
	}
	if err := st.CanWrite(who, r.Key, nil); err != nil {
		return err
	}
	if err := CheckLease(st, who, l, lease.ID(r.Lease)); err != nil {
		return err
	}
	if r.PrevKv {
		return st.CanRead(who, r.Key, nil)
	}
	return nil
}

// CheckLease decides whether who may write all keys of a lease. The role root may,
// regardless of the revision of its token.
func CheckLease(st *auth.State, who auth.Info, l *lease.Lessor, id lease.ID) error {
	if st.IsAdmin(who) == nil {
		return nil
	}
	for _, key := range l.Keys(id) {
		if err := st.CanWrite(who, key, nil); err != nil {
			return err
		}
	}
	return nil
}

// CheckTxn decides whether who may execute all of the transaction: the compares
// and both branches.
func CheckTxn(st *auth.State, who auth.Info, l *lease.Lessor, r *pb.TxnRequest) error {
	if !st.Enabled() {
		return nil
	}
	for _, c := range r.Compare {
		if err := st.CanRead(who, c.Key, c.RangeEnd); err != nil {
			return err
		}
	}
	if err := checkOps(st, who, l, r.Success); err != nil {
		return err
	}
	return checkOps(st, who, l, r.Failure)
}

func checkOps(st *auth.State, who auth.Info, l *lease.Lessor, ops []*pb.RequestOp) error {
	for _, op := range ops {
		var err error
		switch q := op.Request.(type) {
		case *pb.RequestOp_RequestRange:
			err = st.CanRead(who, q.RequestRange.GetKey(), q.RequestRange.GetRangeEnd())
		case *pb.RequestOp_RequestPut:
			err = CheckPut(st, who, l, q.RequestPut)
		case *pb.RequestOp_RequestDeleteRange:
			d := q.RequestDeleteRange
			if d.GetPrevKv() {
				err = st.CanRead(who, d.Key, d.RangeEnd)
			}
			if err == nil {
				err = st.CanWrite(who, d.GetKey(), d.GetRangeEnd())
			}
		case *pb.RequestOp_RequestTxn:
			err = CheckTxn(st, who, l, q.RequestTxn)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// request applies requests of the auth service.
func (u *users) request(b engine.Batch, e *Entry, r *pb.InternalRaftRequest) Result {
	if resp, err, ok := u.read(e, r); ok {
		return Result{Resp: resp, Err: err}
	}
	var (
		resp any
		err  error
		h    = u.keys.header()
		was  = lookBefore(u.auth.Next(), r)
	)
	switch {
	case r.Authenticate != nil:
		return u.authenticate(e, r.Authenticate)
	case r.AuthEnable != nil:
		resp, err = &pb.AuthEnableResponse{Header: h}, u.auth.Enable(b)
	case r.AuthDisable != nil:
		u.auth.Disable(b)
		resp = &pb.AuthDisableResponse{Header: h}
	case r.AuthUserAdd != nil:
		resp, err = &pb.AuthUserAddResponse{Header: h}, u.auth.UserAdd(b, r.AuthUserAdd)
	case r.AuthUserDelete != nil:
		resp, err = &pb.AuthUserDeleteResponse{Header: h}, u.auth.UserDelete(b, r.AuthUserDelete.Name)
	case r.AuthUserChangePassword != nil:
		resp, err = &pb.AuthUserChangePasswordResponse{Header: h}, u.auth.UserChangePassword(b, r.AuthUserChangePassword)
	case r.AuthUserGrantRole != nil:
		resp, err = &pb.AuthUserGrantRoleResponse{Header: h}, u.auth.UserGrantRole(b, r.AuthUserGrantRole.User, r.AuthUserGrantRole.Role)
	case r.AuthUserRevokeRole != nil:
		resp, err = &pb.AuthUserRevokeRoleResponse{Header: h}, u.auth.UserRevokeRole(b, r.AuthUserRevokeRole.Name, r.AuthUserRevokeRole.Role)
	case r.AuthRoleAdd != nil:
		resp, err = &pb.AuthRoleAddResponse{Header: h}, u.auth.RoleAdd(b, r.AuthRoleAdd.Name)
	case r.AuthRoleDelete != nil:
		resp, err = &pb.AuthRoleDeleteResponse{Header: h}, u.auth.RoleDelete(b, r.AuthRoleDelete.Role)
	case r.AuthRoleGrantPermission != nil:
		resp, err = &pb.AuthRoleGrantPermissionResponse{Header: h}, u.auth.RoleGrantPermission(b, r.AuthRoleGrantPermission.Name, r.AuthRoleGrantPermission.Perm)
	case r.AuthRoleRevokePermission != nil:
		q := r.AuthRoleRevokePermission
		resp, err = &pb.AuthRoleRevokePermissionResponse{Header: h}, u.auth.RoleRevokePermission(b, q.Role, q.Key, q.RangeEnd)
	}
	if err != nil {
		was.refused(u.lg, r, err)
		return Result{Err: err}
	}
	was.done(u.lg, u.auth.Next(), r)
	return Result{Resp: resp}
}

// read answers requests that only read, if a caller on this member
// waits for the result.
func (u *users) read(e *Entry, r *pb.InternalRaftRequest) (resp any, err error, ok bool) {
	reads := r.AuthStatus != nil || r.AuthUserGet != nil || r.AuthUserList != nil || r.AuthRoleGet != nil || r.AuthRoleList != nil
	if !reads || !e.Local {
		return nil, nil, reads
	}
	st := u.auth.Next()
	switch {
	case r.AuthStatus != nil:
		resp = &pb.AuthStatusResponse{Header: u.keys.header(), Enabled: st.Enabled(), AuthRevision: st.Revision()}
	case r.AuthUserList != nil:
		resp = &pb.AuthUserListResponse{Header: u.keys.header(), Users: st.Users()}
	case r.AuthRoleList != nil:
		resp = &pb.AuthRoleListResponse{Header: u.keys.header(), Roles: st.Roles()}
	case r.AuthUserGet != nil:
		x := &pb.AuthUserGetResponse{Header: u.keys.header()}
		x.Roles, err = st.RolesOf(r.AuthUserGet.Name)
		resp = x
	case r.AuthRoleGet != nil:
		x := &pb.AuthRoleGetResponse{Header: u.keys.header()}
		x.Perm, err = st.Permissions(r.AuthRoleGet.Role)
		resp = x
	}
	if err != nil {
		return nil, err, true
	}
	return resp, nil, true
}

func (u *users) authenticate(e *Entry, r *pb.InternalAuthenticateRequest) Result {
	token, err := u.auth.Authenticate(r.Name, r.SimpleToken, ids.Index(e.GetIndex()), u.now())
	if err != nil {
		return Result{Err: err}
	}
	return Result{Resp: &pb.AuthenticateResponse{Header: u.keys.header(), Token: token}}
}

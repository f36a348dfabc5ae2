package apply

import (
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"

	"quorate/internal/auth"
)

// authBefore is the state before a change of users and roles, as far as the log line needs
// it.
type authBefore struct {
	enabled bool
	roles   []string // of the user that the change concerns
}

func lookBefore(st *auth.State, r *pb.InternalRaftRequest) authBefore {
	name := ""
	switch {
	case r.AuthUserDelete != nil:
		name = r.AuthUserDelete.Name
	case r.AuthUserGrantRole != nil:
		name = r.AuthUserGrantRole.User
	case r.AuthUserRevokeRole != nil:
		name = r.AuthUserRevokeRole.Name
	}
	roles, _ := st.RolesOf(name) // an unknown user has none
	return authBefore{enabled: st.Enabled(), roles: roles}
}

func userName(name string) zap.Field { return zap.String("user-name", name) }
func roleName(name string) zap.Field { return zap.String("role-name", name) }

// refused logs, in etcd's words, that a change was rejected because it would lock out all users.
func (was authBefore) refused(lg *zap.Logger, r *pb.InternalRaftRequest, err error) {
	if !errors.Is(err, auth.ErrInvalidAuthMgmt) || !was.enabled {
		return
	}
	switch {
	case r.AuthUserDelete != nil:
		lg.Error("cannot delete 'root' user", userName(r.AuthUserDelete.Name))
	case r.AuthUserRevokeRole != nil:
		lg.Error("'root' user cannot revoke 'root' role", userName(r.AuthUserRevokeRole.Name), roleName(r.AuthUserRevokeRole.Role))
	case r.AuthRoleDelete != nil:
		lg.Error("cannot delete 'root' role", roleName(r.AuthRoleDelete.Role))
	}
}

// done logs, in etcd's words, a change that was made; st is the state after it.
func (was authBefore) done(lg *zap.Logger, st *auth.State, r *pb.InternalRaftRequest) {
	switch {
	case r.AuthEnable != nil && was.enabled:
		lg.Info("authentication is already enabled; ignored auth enable request")
	case r.AuthEnable != nil:
		lg.Info("enabled authentication")
	case r.AuthDisable != nil && was.enabled:
		lg.Info("disabled authentication")
	case r.AuthUserAdd != nil:
		lg.Info("added a user", userName(r.AuthUserAdd.Name))
	case r.AuthUserDelete != nil:
		lg.Info("deleted a user", userName(r.AuthUserDelete.Name), zap.Strings("user-roles", was.roles))
	case r.AuthUserChangePassword != nil:
		roles, _ := st.RolesOf(r.AuthUserChangePassword.Name)
		lg.Info("changed a password of a user", userName(r.AuthUserChangePassword.Name), zap.Strings("user-roles", roles))
	case r.AuthUserGrantRole != nil:
		was.granted(lg, st, r.AuthUserGrantRole)
	case r.AuthUserRevokeRole != nil:
		q := r.AuthUserRevokeRole
		roles, _ := st.RolesOf(q.Name)
		lg.Info("revoked a role from a user", userName(q.Name), zap.Strings("old-user-roles", was.roles), zap.Strings("new-user-roles", roles),
			zap.String("revoked-role-name", q.Role))
	case r.AuthRoleAdd != nil:
		lg.Info("created a role", roleName(r.AuthRoleAdd.Name))
	case r.AuthRoleDelete != nil:
		lg.Info("deleted a role", roleName(r.AuthRoleDelete.Role))
	case r.AuthRoleGrantPermission != nil:
		p := r.AuthRoleGrantPermission
		lg.Info("granted/updated a permission to a user", userName(p.Name), zap.String("permission-name", p.Perm.GetPermType().String()),
			zap.ByteString("key", p.Perm.GetKey()), zap.ByteString("range-end", p.Perm.GetRangeEnd()))
	case r.AuthRoleRevokePermission != nil:
		p := r.AuthRoleRevokePermission
		lg.Info("revoked a permission on range", roleName(p.Role), zap.ByteString("key", p.Key), zap.ByteString("range-end", p.RangeEnd))
	}
}

func (was authBefore) granted(lg *zap.Logger, st *auth.State, q *pb.AuthUserGrantRoleRequest) {
	roles, _ := st.RolesOf(q.User)
	if len(roles) == len(was.roles) {
		lg.Warn("ignored grant role request to a user", userName(q.User), zap.Strings("user-roles", roles), zap.String("duplicate-role-name", q.Role))
		return
	}
	lg.Info("granted a role to a user", userName(q.User), zap.Strings("user-roles", roles), zap.String("added-role-name", q.Role))
}

package server

import (
	"context"
	"crypto/rand"
	"errors"
	"math/big"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"go.uber.org/zap"

	"quorate/internal/auth"
	"quorate/internal/password"
	"quorate/internal/proposal"
)

// Accounts serves users and roles. Each call is an entry of the log; the password
// itself does not enter the log.
type Accounts struct {
	cfg       *Config
	lg        *zap.Logger
	replica   *localReplica
	auth      *auth.Store
	passwords *password.Hasher
}

// Authenticate checks a password and proposes the entry that issues a token. The
// password itself does not enter the log.
func (a *Accounts) Authenticate(ctx context.Context, r *pb.AuthenticateRequest) (*pb.AuthenticateResponse, error) {
	if err := a.replica.barrier(ctx); err != nil {
		return nil, err
	}
	for {
		st := a.auth.State()
		if err := a.checkPassword(ctx, st, r.Name, r.Password); err != nil {
			if !errors.Is(err, auth.ErrAuthNotEnabled) {
				a.lg.Warn("invalid authentication was requested", zap.String("user", r.Name), zap.Error(err))
			}
			return nil, err
		}
		req := &pb.InternalAuthenticateRequest{Name: r.Name}
		tokens := a.auth.Tokens()
		if tokens.Simple() {
			var err error
			if req.SimpleToken, err = randomLetters(auth.PrefixLetters); err != nil {
				return nil, err
			}
		}
		resp, err := answered[pb.AuthenticateResponse](a.replica.propose(ctx, &pb.InternalRaftRequest{Authenticate: req}))
		if err != nil {
			return nil, err
		}
		if st.Revision() != a.auth.State().Revision() {
			// The password that was checked may have been replaced.
			a.lg.Info("revision when password checked became stale; retrying")
			continue
		}
		if tokens.Signed() {
			resp.Token, err = tokens.Sign(r.Name, st.Revision(), a.cfg.Clock.Now())
		}
		return resp, err
	}
}

func (a *Accounts) checkPassword(ctx context.Context, st *auth.State, user, given string) error {
	hash, err := st.Password(user)
	if err != nil {
		return err
	}
	ok, err := a.passwords.Matches(ctx, hash, given)
	if err != nil {
		return err
	}
	if !ok {
		a.lg.Info("invalid password", zap.String("user-name", user))
		return auth.ErrAuthFailed
	}
	return nil
}

const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

func randomLetters(n int) (string, error) {
	b := make([]byte, n)
	for i := range b {
		k, err := rand.Int(rand.Reader, big.NewInt(int64(len(letters))))
		if err != nil {
			return "", err
		}
		b[i] = letters[k.Int64()]
	}
	return string(b), nil
}

// answered returns the response of type R from the outcome of a proposal.
func answered[R any](res proposal.Result, err error) (*R, error) {
	if err != nil {
		return nil, err
	}
	return any(res.Resp).(*R), nil
}

// AuthEnable turns authentication on.
func (a *Accounts) AuthEnable(ctx context.Context, r *pb.AuthEnableRequest) (*pb.AuthEnableResponse, error) {
	return answered[pb.AuthEnableResponse](a.replica.propose(ctx, &pb.InternalRaftRequest{AuthEnable: r}))
}

// AuthDisable turns authentication off.
func (a *Accounts) AuthDisable(ctx context.Context, r *pb.AuthDisableRequest) (*pb.AuthDisableResponse, error) {
	return answered[pb.AuthDisableResponse](a.replica.propose(ctx, &pb.InternalRaftRequest{AuthDisable: r}))
}

// AuthStatus reports whether authentication is on, and the revision of users and roles.
func (a *Accounts) AuthStatus(ctx context.Context, r *pb.AuthStatusRequest) (*pb.AuthStatusResponse, error) {
	return answered[pb.AuthStatusResponse](a.replica.propose(ctx, &pb.InternalRaftRequest{AuthStatus: r}))
}

// UserAdd adds a user; the log contains the hash of the password.
func (a *Accounts) UserAdd(ctx context.Context, r *pb.AuthUserAddRequest) (*pb.AuthUserAddResponse, error) {
	if err := a.passwords.Added(ctx, r); err != nil {
		return nil, err
	}
	return answered[pb.AuthUserAddResponse](a.replica.propose(ctx, &pb.InternalRaftRequest{AuthUserAdd: r}))
}

// UserDelete deletes a user.
func (a *Accounts) UserDelete(ctx context.Context, r *pb.AuthUserDeleteRequest) (*pb.AuthUserDeleteResponse, error) {
	return answered[pb.AuthUserDeleteResponse](a.replica.propose(ctx, &pb.InternalRaftRequest{AuthUserDelete: r}))
}

// UserChangePassword replaces a user's password; the log contains its hash.
func (a *Accounts) UserChangePassword(ctx context.Context, r *pb.AuthUserChangePasswordRequest) (*pb.AuthUserChangePasswordResponse, error) {
	if err := a.passwords.Changed(ctx, r); err != nil {
		return nil, err
	}
	return answered[pb.AuthUserChangePasswordResponse](a.replica.propose(ctx, &pb.InternalRaftRequest{AuthUserChangePassword: r}))
}

// UserGrantRole grants a user a role.
func (a *Accounts) UserGrantRole(ctx context.Context, r *pb.AuthUserGrantRoleRequest) (*pb.AuthUserGrantRoleResponse, error) {
	return answered[pb.AuthUserGrantRoleResponse](a.replica.propose(ctx, &pb.InternalRaftRequest{AuthUserGrantRole: r}))
}

// UserGet returns the roles of a user.
func (a *Accounts) UserGet(ctx context.Context, r *pb.AuthUserGetRequest) (*pb.AuthUserGetResponse, error) {
	return answered[pb.AuthUserGetResponse](a.replica.propose(ctx, &pb.InternalRaftRequest{AuthUserGet: r}))
}

// UserList returns the names of all users.
func (a *Accounts) UserList(ctx context.Context, r *pb.AuthUserListRequest) (*pb.AuthUserListResponse, error) {
	return answered[pb.AuthUserListResponse](a.replica.propose(ctx, &pb.InternalRaftRequest{AuthUserList: r}))
}

// UserRevokeRole revokes a role of a user.
func (a *Accounts) UserRevokeRole(ctx context.Context, r *pb.AuthUserRevokeRoleRequest) (*pb.AuthUserRevokeRoleResponse, error) {
	return answered[pb.AuthUserRevokeRoleResponse](a.replica.propose(ctx, &pb.InternalRaftRequest{AuthUserRevokeRole: r}))
}

// RoleAdd adds a role.
func (a *Accounts) RoleAdd(ctx context.Context, r *pb.AuthRoleAddRequest) (*pb.AuthRoleAddResponse, error) {
	return answered[pb.AuthRoleAddResponse](a.replica.propose(ctx, &pb.InternalRaftRequest{AuthRoleAdd: r}))
}

// RoleGrantPermission grants a role access to a range of keys.
func (a *Accounts) RoleGrantPermission(ctx context.Context, r *pb.AuthRoleGrantPermissionRequest) (*pb.AuthRoleGrantPermissionResponse, error) {
	return answered[pb.AuthRoleGrantPermissionResponse](a.replica.propose(ctx, &pb.InternalRaftRequest{AuthRoleGrantPermission: r}))
}

// RoleGet returns the permissions of a role.
func (a *Accounts) RoleGet(ctx context.Context, r *pb.AuthRoleGetRequest) (*pb.AuthRoleGetResponse, error) {
	return answered[pb.AuthRoleGetResponse](a.replica.propose(ctx, &pb.InternalRaftRequest{AuthRoleGet: r}))
}

// RoleList returns the names of all roles.
func (a *Accounts) RoleList(ctx context.Context, r *pb.AuthRoleListRequest) (*pb.AuthRoleListResponse, error) {
	return answered[pb.AuthRoleListResponse](a.replica.propose(ctx, &pb.InternalRaftRequest{AuthRoleList: r}))
}

// RoleRevokePermission revokes a role's access to a range of keys.
func (a *Accounts) RoleRevokePermission(ctx context.Context, r *pb.AuthRoleRevokePermissionRequest) (*pb.AuthRoleRevokePermissionResponse, error) {
	return answered[pb.AuthRoleRevokePermissionResponse](a.replica.propose(ctx, &pb.InternalRaftRequest{AuthRoleRevokePermission: r}))
}

// RoleDelete deletes a role.
func (a *Accounts) RoleDelete(ctx context.Context, r *pb.AuthRoleDeleteRequest) (*pb.AuthRoleDeleteResponse, error) {
	return answered[pb.AuthRoleDeleteResponse](a.replica.propose(ctx, &pb.InternalRaftRequest{AuthRoleDelete: r}))
}

package server

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"math/big"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"
	"golang.org/x/crypto/bcrypt"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"quorate/internal/auth"
	"quorate/internal/proposal"
	"quorate/internal/watch"
)

// openAuth reads what the configuration says about tokens and passwords.
func (m *Member) openAuth() error {
	cfg := &m.cfg
	if cfg.AuthToken == "simple" {
		m.lg.Warn("simple token is not cryptographically signed")
	}
	tokens, err := auth.NewTokens(cfg.AuthToken, cfg.AuthTokenTTL, os.ReadFile, m.lg)
	if err != nil {
		m.lg.Warn("failed to create token provider", zap.Error(err))
		return err
	}
	m.auth = auth.NewStore(tokens)
	if cfg.BcryptCost < bcrypt.MinCost || cfg.BcryptCost > bcrypt.MaxCost {
		m.lg.Warn("use default bcrypt cost instead of the invalid given cost", zap.Int("min-cost", bcrypt.MinCost),
			zap.Int("max-cost", bcrypt.MaxCost), zap.Int("default-cost", bcrypt.DefaultCost), zap.Int("given-cost", cfg.BcryptCost))
		cfg.BcryptCost = bcrypt.DefaultCost
	}
	return nil
}

type rootKey struct{}

// asRoot marks what the member does by itself, which it may do whatever users and
// roles there are.
func asRoot(ctx context.Context) context.Context { return context.WithValue(ctx, rootKey{}, true) }

// WithToken returns a context as that of a call which carried the token.
func WithToken(ctx context.Context, token string) context.Context {
	return metadata.NewIncomingContext(ctx, metadata.Pairs(rpctypes.TokenFieldNameGRPC, token))
}

// AsRoot is for requests of the process itself, such as health checks.
func AsRoot(ctx context.Context) context.Context { return asRoot(ctx) }

// tokenOf returns the token that came with a call.
func tokenOf(ctx context.Context) (string, bool) {
	for _, field := range []string{rpctypes.TokenFieldNameGRPC, rpctypes.TokenFieldNameSwagger} {
		if v := metadata.ValueFromIncomingContext(ctx, field); len(v) > 0 {
			return v[0], true
		}
	}
	return "", false
}

// caller returns who makes a call: nobody, which is the zero value and no error,
// if the call says nothing about it or authentication is off. The token counts
// before the certificate.
func (m *Member) caller(ctx context.Context) (auth.Info, error) {
	st := m.auth.State()
	if st.Enabled() {
		if ctx.Value(rootKey{}) != nil {
			return auth.Info{User: auth.Root, Rev: st.Revision()}, nil
		}
		if token, ok := tokenOf(ctx); ok {
			return m.bearer(ctx, token)
		}
	}
	if m.cfg.ClientCertAuth {
		return m.certified(ctx)
	}
	return auth.Info{}, nil
}

// tokenPatience is how long to wait for the entry that may have given out a token.
const tokenPatience = time.Second

// bearer returns who has the token. The token may be younger than what is applied
// here: its number says for which entry to wait.
func (m *Member) bearer(ctx context.Context, token string) (auth.Info, error) {
	token = strings.TrimPrefix(token, "Bearer ")
	tokens := m.auth.Tokens()
	find := func() (auth.Info, bool) {
		return tokens.Resolve(token, m.auth.State().Revision(), m.cfg.Clock.Now())
	}
	if !tokens.Simple() {
		if who, ok := find(); ok {
			return who, nil
		}
	} else if index, ok := auth.Index(token); ok {
		if who, ok := find(); ok {
			return who, nil
		}
		if m.reach(ctx, index, m.cfg.requestTimeout()) {
			// The number is that of the entry before, which is why the one that
			// counts may still be missing. Nobody waits long for it: the token may
			// be an invention.
			if who, ok := find(); ok || m.reach(ctx, index+1, tokenPatience) && retry(find, &who) {
				return who, nil
			}
		}
	}
	sum := sha256.Sum256([]byte(token))
	m.lg.Warn("invalid auth token", zap.String("token-fingerprint", hex.EncodeToString(sum[:])[:12]))
	return auth.Info{}, auth.ErrInvalidAuthToken
}

func retry(find func() (auth.Info, bool), who *auth.Info) (ok bool) {
	*who, ok = find()
	return ok
}

// reach reports whether the entry is applied here, for which it waits.
func (m *Member) reach(ctx context.Context, index uint64, limit time.Duration) bool {
	if m.mach().Applied() >= index {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for m.mach().Applied() < index {
		if m.pause(ctx, applyPoll) != nil {
			return false
		}
	}
	return true
}

// certified returns the user that the certificate of the client names. That of
// the JSON gateway names the gateway, whoever its client is.
func (m *Member) certified(ctx context.Context) (auth.Info, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return auth.Info{}, nil
	}
	tls, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return auth.Info{}, nil
	}
	md, ok := metadata.FromIncomingContext(ctx)
	if !ok {
		return auth.Info{}, nil
	}
	for _, chain := range tls.State.VerifiedChains {
		if len(chain) == 0 {
			continue
		}
		name := chain[0].Subject.CommonName
		if len(md.Get("grpcgateway-accept")) > 0 {
			m.lg.Warn("ignoring common name in gRPC-gateway proxy request", zap.String("common-name", name))
			return auth.Info{}, nil
		}
		if !utf8.ValidString(name) {
			return auth.Info{}, errBadName
		}
		return auth.Info{User: name, Rev: m.auth.State().Revision()}, nil
	}
	return auth.Info{}, nil
}

// errBadName has the words of what refuses such a name in etcd.
var errBadName = errors.New("proto: field etcdserverpb.RequestHeader.username contains invalid UTF-8")

// AuthEnabled reports whether authentication is on.
func (m *Member) AuthEnabled() bool { return m.auth.State().Enabled() }

// RequireUser refuses a call that does not say who makes it, if authentication is
// on.
func (m *Member) RequireUser(ctx context.Context) error {
	if !m.auth.State().Enabled() {
		return nil
	}
	who, err := m.caller(ctx)
	if err == nil && who == (auth.Info{}) {
		return auth.ErrUserEmpty
	}
	return err
}

// RequireRoot refuses a call of a user without the role root, if authentication is
// on.
func (m *Member) RequireRoot(ctx context.Context) error {
	if !m.auth.State().Enabled() {
		return nil
	}
	who, err := m.caller(ctx)
	if err != nil {
		return err
	}
	return m.auth.State().IsAdmin(who)
}

// permit returns who makes a call and what that user may do now. What is read
// after it may be handed out only if unchanged agrees then.
func (m *Member) permit(ctx context.Context) (auth.Info, *auth.State, error) {
	who, err := m.caller(ctx)
	return who, m.auth.State(), err
}

// unchanged refuses to hand out what was read while users and roles changed.
func (m *Member) unchanged(who auth.Info) error {
	if who.Rev != 0 && who.Rev != m.auth.State().Revision() {
		return auth.ErrAuthOldRevision
	}
	return nil
}

// permitLease decides about a call that needs the right to touch all keys of the
// leases. touch is that for one key.
func (m *Member) permitLease(ctx context.Context, ids []int64, touch func(st *auth.State, who auth.Info, key []byte) error) error {
	st := m.auth.State()
	if !st.Enabled() {
		return nil
	}
	who, err := m.caller(ctx)
	switch {
	case err != nil:
		return err
	case who == (auth.Info{}):
		return auth.ErrUserEmpty
	case st.IsAdmin(who) == nil:
		return nil
	}
	for _, id := range ids {
		for _, key := range m.lessor.Keys(id) {
			if err := touch(st, who, key); err != nil {
				return err
			}
		}
	}
	if st.Revision() != m.auth.State().Revision() {
		return auth.ErrAuthOldRevision
	}
	return nil
}

func mayRead(st *auth.State, who auth.Info, key []byte) error  { return st.CanRead(who, key, nil) }
func mayWrite(st *auth.State, who auth.Info, key []byte) error { return st.CanWrite(who, key, nil) }

// CreateWatch creates a watcher on the stream for the user of the call, or answers
// that there is none. From then on RecheckWatches looks after it.
func (m *Member) CreateWatch(ctx context.Context, ws *watch.Stream, r *pb.WatchCreateRequest) error {
	if r.StartRevision < 0 {
		return ws.Create(r) // refused, before anything else
	}
	who, st, err := m.permit(ctx)
	if err == nil {
		key := r.Key
		if len(key) == 0 {
			key = []byte{0}
		}
		err = st.CanRead(who, key, r.RangeEnd)
	}
	if err != nil {
		return ws.Refuse(refusal(err))
	}
	if !st.Enabled() {
		who.User = ""
	}
	if err := ws.CreateFor(who.User, r); err != nil {
		return err
	}
	if m.auth.State() != st {
		m.recheckWatches()
	}
	return nil
}

// refusal is the reason that the client of a watcher gets.
func refusal(err error) string {
	for from, to := range map[error]error{
		auth.ErrInvalidAuthToken: rpctypes.ErrGRPCInvalidAuthToken,
		auth.ErrAuthOldRevision:  rpctypes.ErrGRPCAuthOldRevision,
		auth.ErrUserEmpty:        rpctypes.ErrGRPCUserEmpty,
	} {
		if errors.Is(err, from) {
			return to.Error()
		}
	}
	return rpctypes.ErrGRPCPermissionDenied.Error()
}

// recheckWatches ends the watchers whose users may not read their keys any more.
func (m *Member) recheckWatches() {
	st := m.auth.State()
	if !st.Enabled() {
		return
	}
	m.hub.Recheck(func(owner string, key, end []byte) string {
		who := auth.Info{User: owner, Rev: st.Revision()}
		if owner == "" {
			who = auth.Info{} // created while authentication was off
		}
		if err := st.CanRead(who, key, end); err != nil {
			return refusal(err)
		}
		return ""
	})
}

// Authenticate checks a password and has the log give out a token. The password
// does not enter the log.
func (m *Member) Authenticate(ctx context.Context, r *pb.AuthenticateRequest) (*pb.AuthenticateResponse, error) {
	if err := m.barrier(ctx); err != nil {
		return nil, err
	}
	for {
		st := m.auth.State()
		if err := m.checkPassword(ctx, st, r.Name, r.Password); err != nil {
			if !errors.Is(err, auth.ErrAuthNotEnabled) {
				m.lg.Warn("invalid authentication was requested", zap.String("user", r.Name), zap.Error(err))
			}
			return nil, err
		}
		req := &pb.InternalAuthenticateRequest{Name: r.Name}
		tokens := m.auth.Tokens()
		if tokens.Simple() {
			var err error
			if req.SimpleToken, err = randomLetters(auth.PrefixLetters); err != nil {
				return nil, err
			}
		}
		resp, err := answered[pb.AuthenticateResponse](m.propose(ctx, &pb.InternalRaftRequest{Authenticate: req}))
		if err != nil {
			return nil, err
		}
		if st.Revision() != m.auth.State().Revision() {
			// The password that was checked may be the one before.
			m.lg.Info("revision when password checked became stale; retrying")
			continue
		}
		if tokens.Signed() {
			resp.Token, err = tokens.Sign(r.Name, st.Revision(), m.cfg.Clock.Now())
		}
		return resp, err
	}
}

func (m *Member) checkPassword(ctx context.Context, st *auth.State, user, password string) error {
	hash, err := st.Password(user)
	if err != nil {
		return err
	}
	ok, err := m.passwords.matches(ctx, hash, password)
	if err != nil {
		return err
	}
	if !ok {
		m.lg.Info("invalid password", zap.String("user-name", user))
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

// answered takes the answer of its kind out of the outcome of a proposal.
func answered[R any](res proposal.Result, err error) (*R, error) {
	if err != nil {
		return nil, err
	}
	return any(res.Resp).(*R), nil
}

// AuthEnable turns authentication on.
func (m *Member) AuthEnable(ctx context.Context, r *pb.AuthEnableRequest) (*pb.AuthEnableResponse, error) {
	return answered[pb.AuthEnableResponse](m.propose(ctx, &pb.InternalRaftRequest{AuthEnable: r}))
}

// AuthDisable turns authentication off.
func (m *Member) AuthDisable(ctx context.Context, r *pb.AuthDisableRequest) (*pb.AuthDisableResponse, error) {
	return answered[pb.AuthDisableResponse](m.propose(ctx, &pb.InternalRaftRequest{AuthDisable: r}))
}

// AuthStatus tells whether authentication is on, and the revision of users and
// roles.
func (m *Member) AuthStatus(ctx context.Context, r *pb.AuthStatusRequest) (*pb.AuthStatusResponse, error) {
	return answered[pb.AuthStatusResponse](m.propose(ctx, &pb.InternalRaftRequest{AuthStatus: r}))
}

// UserAdd adds a user; the log gets the hash of the password.
func (m *Member) UserAdd(ctx context.Context, r *pb.AuthUserAddRequest) (*pb.AuthUserAddResponse, error) {
	if !r.Options.GetNoPassword() {
		hash, err := m.passwords.hash(ctx, r.Password)
		if err != nil {
			return nil, err
		}
		r.HashedPassword = base64.StdEncoding.EncodeToString(hash)
	}
	r.Password = ""
	return answered[pb.AuthUserAddResponse](m.propose(ctx, &pb.InternalRaftRequest{AuthUserAdd: r}))
}

// UserDelete deletes a user.
func (m *Member) UserDelete(ctx context.Context, r *pb.AuthUserDeleteRequest) (*pb.AuthUserDeleteResponse, error) {
	return answered[pb.AuthUserDeleteResponse](m.propose(ctx, &pb.InternalRaftRequest{AuthUserDelete: r}))
}

// UserChangePassword gives a user another password; the log gets its hash. Without a
// password it is the hash that the client has sent, and without that either none:
// nobody can log in as the user then. The hash of the empty password would let in
// everybody.
func (m *Member) UserChangePassword(ctx context.Context, r *pb.AuthUserChangePasswordRequest) (*pb.AuthUserChangePasswordResponse, error) {
	if r.Password != "" {
		hash, err := m.passwords.hash(ctx, r.Password)
		if err != nil {
			return nil, err
		}
		r.HashedPassword, r.Password = base64.StdEncoding.EncodeToString(hash), ""
	}
	return answered[pb.AuthUserChangePasswordResponse](m.propose(ctx, &pb.InternalRaftRequest{AuthUserChangePassword: r}))
}

// UserGrantRole gives a user a role.
func (m *Member) UserGrantRole(ctx context.Context, r *pb.AuthUserGrantRoleRequest) (*pb.AuthUserGrantRoleResponse, error) {
	return answered[pb.AuthUserGrantRoleResponse](m.propose(ctx, &pb.InternalRaftRequest{AuthUserGrantRole: r}))
}

// UserGet returns the roles of a user.
func (m *Member) UserGet(ctx context.Context, r *pb.AuthUserGetRequest) (*pb.AuthUserGetResponse, error) {
	return answered[pb.AuthUserGetResponse](m.propose(ctx, &pb.InternalRaftRequest{AuthUserGet: r}))
}

// UserList returns the names of all users.
func (m *Member) UserList(ctx context.Context, r *pb.AuthUserListRequest) (*pb.AuthUserListResponse, error) {
	return answered[pb.AuthUserListResponse](m.propose(ctx, &pb.InternalRaftRequest{AuthUserList: r}))
}

// UserRevokeRole takes a role from a user.
func (m *Member) UserRevokeRole(ctx context.Context, r *pb.AuthUserRevokeRoleRequest) (*pb.AuthUserRevokeRoleResponse, error) {
	return answered[pb.AuthUserRevokeRoleResponse](m.propose(ctx, &pb.InternalRaftRequest{AuthUserRevokeRole: r}))
}

// RoleAdd adds a role.
func (m *Member) RoleAdd(ctx context.Context, r *pb.AuthRoleAddRequest) (*pb.AuthRoleAddResponse, error) {
	return answered[pb.AuthRoleAddResponse](m.propose(ctx, &pb.InternalRaftRequest{AuthRoleAdd: r}))
}

// RoleGrantPermission lets a role touch a range of keys.
func (m *Member) RoleGrantPermission(ctx context.Context, r *pb.AuthRoleGrantPermissionRequest) (*pb.AuthRoleGrantPermissionResponse, error) {
	return answered[pb.AuthRoleGrantPermissionResponse](m.propose(ctx, &pb.InternalRaftRequest{AuthRoleGrantPermission: r}))
}

// RoleGet returns the permissions of a role.
func (m *Member) RoleGet(ctx context.Context, r *pb.AuthRoleGetRequest) (*pb.AuthRoleGetResponse, error) {
	return answered[pb.AuthRoleGetResponse](m.propose(ctx, &pb.InternalRaftRequest{AuthRoleGet: r}))
}

// RoleList returns the names of all roles.
func (m *Member) RoleList(ctx context.Context, r *pb.AuthRoleListRequest) (*pb.AuthRoleListResponse, error) {
	return answered[pb.AuthRoleListResponse](m.propose(ctx, &pb.InternalRaftRequest{AuthRoleList: r}))
}

// RoleRevokePermission takes a range of keys from a role.
func (m *Member) RoleRevokePermission(ctx context.Context, r *pb.AuthRoleRevokePermissionRequest) (*pb.AuthRoleRevokePermissionResponse, error) {
	return answered[pb.AuthRoleRevokePermissionResponse](m.propose(ctx, &pb.InternalRaftRequest{AuthRoleRevokePermission: r}))
}

// RoleDelete deletes a role.
func (m *Member) RoleDelete(ctx context.Context, r *pb.AuthRoleDeleteRequest) (*pb.AuthRoleDeleteResponse, error) {
	return answered[pb.AuthRoleDeleteResponse](m.propose(ctx, &pb.InternalRaftRequest{AuthRoleDelete: r}))
}

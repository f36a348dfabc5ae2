package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"time"
	"unicode/utf8"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"quorate/internal/auth"
	"quorate/internal/ids"
	"quorate/internal/lease"
)

// Access authenticates calls and checks the permissions of their users.
type Access struct {
	cfg    *Config
	lg     *zap.Logger
	life   *life
	stored *stored
	auth   *auth.Store
	lessor *lease.Lessor
}

type rootKey struct{}

// asRoot marks requests of the member itself, which are allowed whatever users and
// roles exist.
func asRoot(ctx context.Context) context.Context { return context.WithValue(ctx, rootKey{}, true) }

// WithToken returns a context like that of a call with the token.
func WithToken(ctx context.Context, token string) context.Context {
	return metadata.NewIncomingContext(ctx, metadata.Pairs(rpctypes.TokenFieldNameGRPC, token))
}

// AsRoot is asRoot for requests of the process itself, such as health checks.
func AsRoot(ctx context.Context) context.Context { return asRoot(ctx) }

// tokenOf returns the token of a call.
func tokenOf(ctx context.Context) (string, bool) {
	for _, field := range []string{rpctypes.TokenFieldNameGRPC, rpctypes.TokenFieldNameSwagger} {
		if v := metadata.ValueFromIncomingContext(ctx, field); len(v) > 0 {
			return v[0], true
		}
	}
	return "", false
}

// caller returns the user of a call. Without a token or certificate, or with
// authentication off, it returns the zero value and no error. A token takes precedence
// over the certificate.
func (a *Access) caller(ctx context.Context) (auth.Info, error) {
	st := a.auth.State()
	if st.Enabled() {
		if ctx.Value(rootKey{}) != nil {
			return auth.Info{User: auth.Root, Rev: st.Revision()}, nil
		}
		if token, ok := tokenOf(ctx); ok {
			return a.bearer(ctx, token)
		}
	}
	if a.cfg.ClientCertAuth {
		return a.certified(ctx)
	}
	return auth.Info{}, nil
}

// tokenPatience bounds the wait for the entry that may have issued a token.
const tokenPatience = time.Second

// bearer returns the user of a token. The entry that issued it may not be applied here
// yet: the number in the token says which entry to wait for.
func (a *Access) bearer(ctx context.Context, token string) (auth.Info, error) {
	token = strings.TrimPrefix(token, "Bearer ")
	tokens := a.auth.Tokens()
	find := func() (auth.Info, bool) {
		return tokens.Resolve(token, a.auth.State().Revision(), a.cfg.Clock.Now())
	}
	if !tokens.Simple() {
		if who, ok := find(); ok {
			return who, nil
		}
	} else if index, ok := auth.Index(token); ok {
		if who, ok := find(); ok {
			return who, nil
		}
		if a.reach(ctx, index, a.cfg.requestTimeout()) {
			// The number is the index of the entry before the one that issued the
			// token, so that one may still be missing. The wait is short, because the
			// token may be invented.
			if who, ok := find(); ok || a.reach(ctx, index+1, tokenPatience) && retry(find, &who) {
				return who, nil
			}
		}
	}
	sum := sha256.Sum256([]byte(token))
	a.lg.Warn("invalid auth token", zap.String("token-fingerprint", hex.EncodeToString(sum[:])[:12]))
	return auth.Info{}, auth.ErrInvalidAuthToken
}

func retry(find func() (auth.Info, bool), who *auth.Info) (ok bool) {
	*who, ok = find()
	return ok
}

// reach waits up to limit until the entry is applied here, and reports whether it is.
func (a *Access) reach(ctx context.Context, index ids.Index, limit time.Duration) bool {
	if a.stored.mach().Applied() >= index {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for a.stored.mach().Applied() < index {
		if a.life.pause(ctx, applyPoll) != nil {
			return false
		}
	}
	return true
}

// certified returns the user in the client's certificate. The JSON gateway's own
// certificate does not identify its clients, so it is ignored.
func (a *Access) certified(ctx context.Context) (auth.Info, error) {
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
			a.lg.Warn("ignoring common name in gRPC-gateway proxy request", zap.String("common-name", name))
			return auth.Info{}, nil
		}
		if !utf8.ValidString(name) {
			return auth.Info{}, errBadName
		}
		return auth.Info{User: name, Rev: a.auth.State().Revision()}, nil
	}
	return auth.Info{}, nil
}

// errBadName has the text of the error with which etcd rejects such a name.
var errBadName = errors.New("proto: field etcdserverpb.RequestHeader.username contains invalid UTF-8")

// AuthEnabled reports whether authentication is on.
func (a *Access) AuthEnabled() bool { return a.auth.State().Enabled() }

// RequireUser rejects a call without a user if authentication is on.
func (a *Access) RequireUser(ctx context.Context) error {
	if !a.auth.State().Enabled() {
		return nil
	}
	who, err := a.caller(ctx)
	if err == nil && who == (auth.Info{}) {
		return auth.ErrUserEmpty
	}
	return err
}

// RequireRoot rejects a call of a user without the role root if authentication is on.
func (a *Access) RequireRoot(ctx context.Context) error {
	if !a.auth.State().Enabled() {
		return nil
	}
	who, err := a.caller(ctx)
	if err != nil {
		return err
	}
	return a.auth.State().IsAdmin(who)
}

// permit returns the user of a call and the permissions to check. What is read after
// that may be returned only if unchanged succeeds afterwards.
func (a *Access) permit(ctx context.Context) (auth.Info, *auth.State, error) {
	who, err := a.caller(ctx)
	return who, a.auth.State(), err
}

// unchanged returns an error if users or roles changed during a read.
func (a *Access) unchanged(who auth.Info) error {
	if who.Rev != 0 && who.Rev != a.auth.State().Revision() {
		return auth.ErrAuthOldRevision
	}
	return nil
}

// permitLease checks that the caller may access all keys of the leases. touch checks
// one key.
func (a *Access) permitLease(ctx context.Context, ids []lease.ID, touch func(st *auth.State, who auth.Info, key []byte) error) error {
	st := a.auth.State()
	if !st.Enabled() {
		return nil
	}
	who, err := a.caller(ctx)
	switch {
	case err != nil:
		return err
	case who == (auth.Info{}):
		return auth.ErrUserEmpty
	case st.IsAdmin(who) == nil:
		return nil
	}
	for _, id := range ids {
		for _, key := range a.lessor.Keys(id) {
			if err := touch(st, who, key); err != nil {
				return err
			}
		}
	}
	if st.Revision() != a.auth.State().Revision() {
		return auth.ErrAuthOldRevision
	}
	return nil
}

func mayRead(st *auth.State, who auth.Info, key []byte) error  { return st.CanRead(who, key, nil) }
func mayWrite(st *auth.State, who auth.Info, key []byte) error { return st.CanWrite(who, key, nil) }

// mayRange returns the user of a range request, if that user may read the keys.
func (a *Access) mayRange(ctx context.Context, r *pb.RangeRequest) (auth.Info, error) {
	who, st, err := a.permit(ctx)
	if err == nil {
		err = st.CanRead(who, r.Key, r.RangeEnd)
	}
	return who, err
}

package v2http

import (
	"context"
	"net/http"

	"go.uber.org/zap"

	"quorate/internal/legacy/v2auth"
)

const noCredentials = "Insufficient credentials"

// caller authenticates the request. ok is false if authentication fails; a nil user is an
// anonymous request.
func (h *handler) caller(ctx context.Context, r *http.Request) (u *v2auth.User, ok bool, err error) {
	if r.Header.Get("Authorization") == "" {
		u, err = h.certified(ctx, r)
		return u, err == nil, err
	}
	name, password, ok := r.BasicAuth()
	if !ok {
		h.lg.Warn("malformed basic auth encoding", zap.String("remote-addr", r.RemoteAddr))
		return nil, false, nil
	}
	u, err = h.auth.Authenticate(ctx, name, password)
	if err == nil && u == nil {
		h.lg.Warn("unknown user or incorrect password", zap.String("user-name", name), zap.String("remote-addr", r.RemoteAddr))
	}
	return u, u != nil, err
}

// certified returns the user named in the client's certificate, nil if there is none.
func (h *handler) certified(ctx context.Context, r *http.Request) (*v2auth.User, error) {
	if !h.o.ClientCertAuth || r.TLS == nil {
		return nil, nil
	}
	for _, chain := range r.TLS.VerifiedChains {
		if len(chain) == 0 {
			continue
		}
		if u, err := h.auth.Named(ctx, chain[0].Subject.CommonName); u != nil || err != nil {
			return u, err
		}
	}
	return nil, nil
}

// mayUseKeys reports whether the request may access a key and, with recursive, everything
// below it.
func (h *handler) mayUseKeys(ctx context.Context, r *http.Request, key string, recursive bool) (bool, error) {
	on, err := h.auth.Enabled(ctx)
	if err != nil || !on {
		return err == nil, err
	}
	u, ok, err := h.caller(ctx, r)
	if err != nil || !ok {
		return false, err
	}
	ok, err = h.auth.Allowed(ctx, u, key, r.Method != http.MethodGet && r.Method != http.MethodHead, recursive)
	if err == nil && !ok {
		name := v2auth.GuestRole
		if u != nil {
			name = u.User
		}
		h.lg.Warn("invalid access for user on key", zap.String("user-name", name), zap.String("key", key))
	}
	return ok, err
}

// isRoot reports whether the request may administer, and answers it if not.
func (h *handler) isRoot(ctx context.Context, w http.ResponseWriter, r *http.Request) bool {
	on, err := h.auth.Enabled(ctx)
	if err == nil && !on {
		return true
	}
	var u *v2auth.User
	if err == nil {
		u, _, err = h.caller(ctx, r)
	}
	switch {
	case err != nil:
		h.writeError(w, r, err)
		return false
	case u == nil || !u.IsRoot():
		h.writeMessage(w, http.StatusUnauthorized, noCredentials)
		return false
	}
	return true
}

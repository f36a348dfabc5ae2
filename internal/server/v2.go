package server

import (
	"context"
	"time"

	"quorate/internal/ids"
	"quorate/internal/legacy/v2request"
	"quorate/internal/legacy/v2store"
	"quorate/internal/password"
	"quorate/internal/proposal"
	"quorate/internal/transport"
	"quorate/internal/transport/peerapi"
)

// v2Host is the member as package v2member, which serves the v2 API, sees it.
type v2Host struct {
	replica *localReplica
	peers   *peerapi.Client
	tr      *transport.Transport
}

func (h v2Host) Tree() *v2store.Store                 { return h.replica.mach().V2() }
func (h v2Host) Barrier(ctx context.Context) error    { return h.replica.barrier(ctx) }
func (h v2Host) SureToLead(ctx context.Context) error { return h.replica.sureToLead(ctx) }
func (h v2Host) TimeoutError(began time.Time) error   { return h.replica.timeoutError(began) }
func (h v2Host) Stopped() <-chan struct{}             { return h.replica.stop }
func (h v2Host) MemberID() ids.Member                 { return h.replica.id }
func (h v2Host) ActiveSince(id ids.Member) time.Time  { return h.tr.ActiveSince(id) }

func (h v2Host) Version(ctx context.Context, urls []string) (peerapi.Versions, error) {
	return h.peers.Version(ctx, urls, versionTimeout)
}

func (h v2Host) Propose(ctx context.Context, r *v2request.Request) (any, error) {
	r.ID = h.replica.ids.Next()
	res, err := h.replica.submit(ctx, &proposal.Pending{ID: r.ID, Foreign: r, Data: r.Marshal()})
	return res.Resp, err
}

// V2Passwords hashes passwords of the v2 API; they share one queue with all other passwords.
type V2Passwords struct{ passwords *password.Hasher }

// V2HashPassword returns the bcrypt hash of a password.
func (s *V2Passwords) V2HashPassword(ctx context.Context, text string) ([]byte, error) {
	return s.passwords.HashV2(ctx, text)
}

// V2PasswordMatches reports whether hash is that of the password.
func (s *V2Passwords) V2PasswordMatches(ctx context.Context, hash []byte, text string) (bool, error) {
	return s.passwords.Matches(ctx, hash, text)
}

package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"quorate/internal/digest"
	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/mvcc"
	"quorate/internal/transport/peerapi"
)

// PeerHandler returns the handler of the peer URLs.
func (m *Member) PeerHandler() http.Handler {
	return peerapi.NewHandler(peerPort{m}, peerapi.Options{Logger: m.lg, RequestTimeout: m.cfg.requestTimeout(),
		Raft: m.tr, Leases: m.Leases})
}

// peerPort is the member as other members see it.
type peerPort struct{ m *Member }

var _ peerapi.Backend = peerPort{}

func (p peerPort) ClusterID() ids.Cluster { return p.m.cluster.ID() }

func (p peerPort) Members() []membership.Member { return p.m.cluster.Members() }

func (p peerPort) PromoteMember(ctx context.Context, token string, id ids.Member) ([]membership.Member, error) {
	if token != "" {
		ctx = WithToken(ctx, token)
	}
	_, err := p.m.Members.PromoteHere(ctx, id)
	switch {
	case err == nil:
		return p.Members(), nil
	case errors.Is(err, rpctypes.ErrGRPCMemberNotFound):
		return nil, membership.ErrIDNotFound
	case errors.Is(err, rpctypes.ErrGRPCMemberNotLearner):
		return nil, membership.ErrMemberNotLearner
	case errors.Is(err, rpctypes.ErrGRPCLearnerNotReady):
		return nil, membership.ErrLearnerNotReady
	}
	return nil, fmt.Errorf("promote member %s: %w", id, err)
}

func (p peerPort) HashKV(ctx context.Context, rev ids.Revision) (mvcc.HashResult, error) {
	return p.m.Maintenance.HashKV(ctx, rev)
}

func (p peerPort) Digest(from ids.Index) digest.Report { return p.m.Digests.own(from) }

func (p peerPort) DowngradeEnabled(ctx context.Context) (bool, error) {
	return p.m.Versions.DowngradeEnabled(ctx)
}

// Versions returns the versions of the cluster and of the stored data, empty when not decided.
func (p peerPort) Versions() (cluster, storage string) {
	return p.m.Versions.Decided(), p.m.Versions.StorageVersion()
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"quorate/internal/httpapi"
	"quorate/internal/membership"
	"quorate/internal/rpc"
	"quorate/internal/server"
)

// edge fits the member to what httpapi calls.
type edge struct{ *server.Member }

var (
	_ httpapi.Backend     = (*edge)(nil)
	_ httpapi.PeerBackend = peerEdge{}
)

// services are those of a member, as rpc calls them.
func services(m *server.Member) rpc.Backend {
	return rpc.Backend{Member: m, KV: m.KV, Watches: m.Watches, Leases: m.Leases, Members: m.Members,
		Maintenance: m.Maintenance, Accounts: m.Accounts, Access: m.Access}
}

// Alarms returns the alarms that are active here.
func (e *edge) Alarms() []*pb.AlarmMember { return e.Maintenance.Alarms() }

// CheckRead reads one key, to see whether reading works.
func (e *edge) CheckRead(ctx context.Context, serializable bool) error {
	_, err := e.KV.Range(server.AsRoot(ctx), &pb.RangeRequest{KeysOnly: true, Limit: 1, Serializable: serializable})
	return err
}

// Versions returns those of the cluster and of the stored data.
func (e *edge) Versions() (cluster, storage string) {
	if v := e.Cluster().Version(); v.Decided() {
		cluster = v.String()
	}
	return cluster, e.Member.Versions.StorageVersion()
}

// RaftStatus is raft's state in the field names of etcd.
func (e *edge) RaftStatus() json.RawMessage {
	b, err := json.Marshal(e.Member.RaftStatus())
	if err != nil {
		return json.RawMessage(`{}`)
	}
	return b
}

// MembersJSON is the body of /members.
func (e *edge) MembersJSON() ([]byte, error) { return e.Cluster().JSON() }

// PromoteMember promotes a learner on behalf of another member.
func (e *edge) PromoteMember(ctx context.Context, token string, id uint64) ([]byte, error) {
	if token != "" {
		ctx = server.WithToken(ctx, token)
	}
	_, err := e.Member.Members.PromoteHere(ctx, id)
	switch {
	case err == nil:
		return e.MembersJSON()
	case errors.Is(err, rpctypes.ErrGRPCMemberNotFound):
		return nil, &httpapi.StatusError{Status: http.StatusNotFound, Err: membership.ErrIDNotFound}
	case errors.Is(err, rpctypes.ErrGRPCMemberNotLearner):
		return nil, &httpapi.StatusError{Status: http.StatusPreconditionFailed, Err: membership.ErrMemberNotLearner}
	case errors.Is(err, rpctypes.ErrGRPCLearnerNotReady):
		return nil, &httpapi.StatusError{Status: http.StatusPreconditionFailed, Err: errors.New(rpctypes.ErrorDesc(err))}
	}
	return nil, fmt.Errorf("promote member %s: %w", membership.FormatID(id), err)
}

// DowngradeEnabled reports whether the cluster is being downgraded.
func (e *edge) DowngradeEnabled(ctx context.Context) (bool, error) {
	return e.Member.Versions.DowngradeEnabled(ctx)
}

// peerEdge is the edge as other members see it.
type peerEdge struct{ *edge }

// HashKV hashes the keys at a revision.
func (e peerEdge) HashKV(ctx context.Context, rev int64) (*pb.HashKVResponse, error) {
	h, err := e.Maintenance.HashKV(ctx, rev)
	if err != nil {
		return nil, err
	}
	return &pb.HashKVResponse{Header: &pb.ResponseHeader{Revision: h.CurrentRev},
		Hash: h.Hash, CompactRevision: h.CompactRev, HashRevision: h.HashRev}, nil
}

// learner fits the member to what has it promoted.
type learner struct{ *server.Member }

// MemberPromote asks for the promotion of a member.
func (l learner) MemberPromote(ctx context.Context, id uint64) ([]*pb.Member, error) {
	return l.Members.MemberPromote(ctx, id)
}

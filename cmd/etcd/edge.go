package main

import (
	"context"
	"encoding/json"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/internal/httpapi"
	"quorate/internal/rpc"
	"quorate/internal/server"
)

// edge fits the member to what httpapi calls.
type edge struct{ *server.Member }

var _ httpapi.Backend = (*edge)(nil)

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
	return e.Member.Versions.Decided(), e.Member.Versions.StorageVersion()
}

// RaftStatus is raft's state in the field names of etcd.
func (e *edge) RaftStatus() json.RawMessage {
	b, err := json.Marshal(e.Member.RaftStatus())
	if err != nil {
		return json.RawMessage(`{}`)
	}
	return b
}

// learner fits the member to what has it promoted.
type learner struct{ *server.Member }

// MemberPromote asks for the promotion of a member.
func (l learner) MemberPromote(ctx context.Context, id uint64) ([]*pb.Member, error) {
	return l.Members.MemberPromote(ctx, id)
}

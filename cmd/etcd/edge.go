package main

import (
	"context"
	"encoding/json"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/internal/httpapi"
	"quorate/internal/ids"
	"quorate/internal/rpc"
	"quorate/internal/server"
)

// edge adapts the member to the interface that httpapi declares.
type edge struct{ *server.Member }

var _ httpapi.Backend = (*edge)(nil)

// services returns the services of a member as rpc declares them.
func services(m *server.Member) rpc.Backend {
	return rpc.Backend{Member: m, KV: m.KV, Watches: m.Watches, Leases: m.Leases, Members: m.Members,
		Maintenance: m.Maintenance, Accounts: m.Accounts, Access: m.Access}
}

// Alarms returns the active alarms.
func (e *edge) Alarms() []*pb.AlarmMember { return e.Maintenance.Alarms() }

// CheckRead reads one key, to check whether reads work.
func (e *edge) CheckRead(ctx context.Context, serializable bool) error {
	_, err := e.KV.Range(server.AsRoot(ctx), &pb.RangeRequest{KeysOnly: true, Limit: 1, Serializable: serializable})
	return err
}

// Versions returns the versions of the cluster and of the stored data.
func (e *edge) Versions() (cluster, storage string) {
	return e.Member.Versions.Decided(), e.Member.Versions.StorageVersion()
}

// RaftStatus returns raft's state under etcd's field names.
func (e *edge) RaftStatus() json.RawMessage {
	b, err := json.Marshal(e.Member.RaftStatus())
	if err != nil {
		return json.RawMessage(`{}`)
	}
	return b
}

// learner adapts the member to the interface through which it asks to be promoted.
type learner struct{ *server.Member }

// MemberPromote asks for the promotion of a member.
func (l learner) MemberPromote(ctx context.Context, id ids.Member) ([]*pb.Member, error) {
	return l.Members.MemberPromote(ctx, id)
}

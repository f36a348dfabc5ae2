package ctl

import (
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// fieldsPrinter writes a line `"Name" : value` for each field; strings are quoted as in Go.
// An empty line follows each element of a list.
type fieldsPrinter struct {
	forward
	printerOptions
}

func (p *fieldsPrinter) field(name string, value any) {
	fmt.Fprintf(p.stdout, "%q : %v\n", name, value)
}

func (p *fieldsPrinter) quoted(name string, value any) {
	fmt.Fprintf(p.stdout, "%q : %q\n", name, value)
}

// id writes a member's or cluster's ID.
func (p *fieldsPrinter) id(name string, id uint64) {
	if p.hex {
		p.field(name, types.ID(id))
		return
	}
	p.field(name, id)
}

// lease writes a lease's ID, in hexadecimal with all 16 digits.
func (p *fieldsPrinter) lease(name string, id int64) {
	if p.hex {
		p.field(name, fmt.Sprintf("%016x", id))
		return
	}
	p.field(name, id)
}

func (p *fieldsPrinter) endOfElement() { fmt.Fprintln(p.stdout) }

func (p *fieldsPrinter) header(h *pb.ResponseHeader) {
	p.id("ClusterID", h.GetClusterId())
	p.id("MemberID", h.GetMemberId())
	if h.GetRevision() > 0 { // answers that are not about keys have none
		p.field("Revision", h.GetRevision())
	}
	p.field("RaftTerm", h.GetRaftTerm())
}

// kv writes a pair whose field names begin with prefix.
func (p *fieldsPrinter) kv(prefix string, kv *mvccpb.KeyValue) {
	p.quoted(prefix+"Key", kv.GetKey())
	p.field(prefix+"CreateRevision", kv.GetCreateRevision())
	p.field(prefix+"ModRevision", kv.GetModRevision())
	p.field(prefix+"Version", kv.GetVersion())
	p.quoted(prefix+"Value", kv.GetValue())
	p.lease(prefix+"Lease", kv.GetLease())
}

func (p *fieldsPrinter) put(r *clientv3.PutResponse) error {
	p.putResponse((*pb.PutResponse)(r))
	return nil
}

func (p *fieldsPrinter) putResponse(r *pb.PutResponse) {
	p.header(r.GetHeader())
	if r.GetPrevKv() != nil {
		p.kv("Prev", r.GetPrevKv())
	}
}

func (p *fieldsPrinter) get(r *clientv3.GetResponse) error {
	p.rangeResponse((*pb.RangeResponse)(r))
	return nil
}

func (p *fieldsPrinter) rangeResponse(r *pb.RangeResponse) {
	p.header(r.GetHeader())
	for _, kv := range r.GetKvs() {
		p.kv("", kv)
	}
	p.field("More", r.GetMore())
	p.field("Count", r.GetCount())
}

func (p *fieldsPrinter) del(r *clientv3.DeleteResponse) error {
	p.deleteResponse((*pb.DeleteRangeResponse)(r))
	return nil
}

func (p *fieldsPrinter) deleteResponse(r *pb.DeleteRangeResponse) {
	p.header(r.GetHeader())
	p.field("Deleted", r.GetDeleted())
	for _, kv := range r.GetPrevKvs() {
		p.kv("Prev", kv)
	}
}

func (p *fieldsPrinter) txn(r *clientv3.TxnResponse) error {
	resp := (*pb.TxnResponse)(r)
	p.header(resp.GetHeader())
	p.field("Succeeded", resp.GetSucceeded())
	for _, op := range resp.GetResponses() {
		switch one := op.GetResponse().(type) {
		case *pb.ResponseOp_ResponsePut:
			p.putResponse(one.ResponsePut)
		case *pb.ResponseOp_ResponseRange:
			p.rangeResponse(one.ResponseRange)
		case *pb.ResponseOp_ResponseDeleteRange:
			p.deleteResponse(one.ResponseDeleteRange)
		default:
			p.quoted("Unknown", fmt.Sprintf("%+v", one))
		}
	}
	return nil
}

func (p *fieldsPrinter) watch(r *clientv3.WatchResponse) error {
	p.header(r.Header)
	for _, ev := range r.Events {
		p.field("Type", ev.GetType())
		if ev.GetPrevKv() != nil {
			p.kv("Prev", ev.GetPrevKv())
		}
		p.kv("", ev.GetKv())
	}
	return nil
}

func (p *fieldsPrinter) leaseGrant(r *clientv3.LeaseGrantResponse) error {
	p.header(r.ResponseHeader)
	p.lease("ID", int64(r.ID))
	p.field("TTL", r.TTL)
	return nil
}

func (p *fieldsPrinter) leaseRevoke(_ clientv3.LeaseID, r *clientv3.LeaseRevokeResponse) error {
	p.header((*pb.LeaseRevokeResponse)(r).GetHeader())
	return nil
}

func (p *fieldsPrinter) leaseKeepAlive(r *clientv3.LeaseKeepAliveResponse) error {
	p.header(r.ResponseHeader)
	p.lease("ID", int64(r.ID))
	p.field("TTL", r.TTL)
	return nil
}

func (p *fieldsPrinter) leaseTimeToLive(r *clientv3.LeaseTimeToLiveResponse, _ bool) error {
	p.header(r.ResponseHeader)
	p.lease("ID", int64(r.ID))
	p.field("TTL", r.TTL)
	p.field("GrantedTTL", r.GrantedTTL)
	for _, k := range r.Keys {
		p.quoted("Key", k)
	}
	return nil
}

func (p *fieldsPrinter) leaseList(r *clientv3.LeaseLeasesResponse) error {
	p.header(r.ResponseHeader)
	for _, l := range r.Leases {
		p.lease("ID", int64(l.ID))
	}
	return nil
}

func (p *fieldsPrinter) memberList(r *clientv3.MemberListResponse) error {
	p.header(r.Header)
	for _, m := range r.Members {
		p.id("ID", m.GetID())
		p.quoted("Name", m.GetName())
		for _, u := range m.GetPeerURLs() {
			p.quoted("PeerURL", u)
		}
		for _, u := range m.GetClientURLs() {
			p.quoted("ClientURL", u)
		}
		p.field("IsLearner", m.GetIsLearner())
		p.endOfElement()
	}
	return nil
}

func (p *fieldsPrinter) endpointHealth(l []endpointHealth) error {
	for _, h := range l {
		p.quoted("Endpoint", h.Endpoint)
		p.field("Health", h.Health)
		p.field("Took", h.Took)
		p.field("Error", h.Error)
		p.endOfElement()
	}
	return nil
}

func (p *fieldsPrinter) endpointStatus(l []endpointStatus) error {
	for _, s := range l {
		r := (*pb.StatusResponse)(s.Status)
		p.header(r.GetHeader())
		p.quoted("Version", r.GetVersion())
		p.quoted("StorageVersion", r.GetStorageVersion())
		p.field("DBSize", r.GetDbSize())
		p.field("DBSizeInUse", r.GetDbSizeInUse())
		p.field("DBSizeQuota", r.GetDbSizeQuota())
		p.field("Leader", r.GetLeader())
		p.field("IsLearner", r.GetIsLearner())
		p.field("RaftIndex", r.GetRaftIndex())
		p.field("RaftAppliedIndex", r.GetRaftAppliedIndex())
		p.field("Errors", r.GetErrors())
		p.quoted("Endpoint", s.Endpoint)
		p.quoted("DowngradeTargetVersion", r.GetDowngradeInfo().GetTargetVersion())
		p.field("DowngradeEnabled", r.GetDowngradeInfo().GetEnabled())
		p.endOfElement()
	}
	return nil
}

func (p *fieldsPrinter) endpointHashKV(l []endpointHashKV) error {
	for _, h := range l {
		r := (*pb.HashKVResponse)(h.HashKV)
		p.header(r.GetHeader())
		p.quoted("Endpoint", h.Endpoint)
		p.field("Hash", r.GetHash())
		p.field("HashRevision", r.GetHashRevision())
		p.endOfElement()
	}
	return nil
}

func (p *fieldsPrinter) alarms(r *clientv3.AlarmResponse) error {
	resp := (*pb.AlarmResponse)(r)
	p.header(resp.GetHeader())
	for _, a := range resp.GetAlarms() {
		p.id("MemberID", a.GetMemberID())
		p.field("AlarmType", a.GetAlarm())
		p.endOfElement()
	}
	return nil
}

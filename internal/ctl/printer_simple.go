package ctl

import (
	"encoding/hex"
	"fmt"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// simplePrinter writes for people and for shell scripts: keys and values are printed
// unchanged, each followed by a newline.
type simplePrinter struct {
	printerOptions
	valueOnly bool // get --print-value-only
}

func (p *simplePrinter) line(format string, a ...any) {
	fmt.Fprintf(p.stdout, format+"\n", a...)
}

func (p *simplePrinter) bytes(b []byte) {
	if p.hex {
		fmt.Fprintln(p.stdout, escapeHex(b))
		return
	}
	fmt.Fprintf(p.stdout, "%s\n", b)
}

// escapeHex writes b as \x66\x6f\x6f.
func escapeHex(b []byte) string {
	var s strings.Builder
	for i := range b {
		s.WriteString(`\x`)
		s.WriteString(hex.EncodeToString(b[i : i+1]))
	}
	return s.String()
}

func (p *simplePrinter) kv(kv *mvccpb.KeyValue) {
	if !p.valueOnly {
		p.bytes(kv.GetKey())
	}
	p.bytes(kv.GetValue())
}

func (p *simplePrinter) put(r *clientv3.PutResponse) error {
	p.putResponse((*pb.PutResponse)(r))
	return nil
}

func (p *simplePrinter) putResponse(r *pb.PutResponse) {
	p.line("OK")
	if r.GetPrevKv() != nil {
		p.kv(r.GetPrevKv())
	}
}

func (p *simplePrinter) get(r *clientv3.GetResponse) error {
	p.rangeResponse((*pb.RangeResponse)(r))
	return nil
}

func (p *simplePrinter) rangeResponse(r *pb.RangeResponse) {
	for _, kv := range r.GetKvs() {
		p.kv(kv)
	}
}

func (p *simplePrinter) del(r *clientv3.DeleteResponse) error {
	p.deleteResponse((*pb.DeleteRangeResponse)(r))
	return nil
}

func (p *simplePrinter) deleteResponse(r *pb.DeleteRangeResponse) {
	p.line("%d", r.GetDeleted())
	for _, kv := range r.GetPrevKvs() {
		p.kv(kv)
	}
}

func (p *simplePrinter) txn(r *clientv3.TxnResponse) error {
	resp := (*pb.TxnResponse)(r)
	if resp.GetSucceeded() {
		p.line("SUCCESS")
	} else {
		p.line("FAILURE")
	}
	for _, op := range resp.GetResponses() {
		p.line("")
		switch one := op.GetResponse().(type) {
		case *pb.ResponseOp_ResponsePut:
			p.putResponse(one.ResponsePut)
		case *pb.ResponseOp_ResponseRange:
			p.rangeResponse(one.ResponseRange)
		case *pb.ResponseOp_ResponseDeleteRange:
			p.deleteResponse(one.ResponseDeleteRange)
		default:
			p.line("unexpected response %+v", op)
		}
	}
	return nil
}

func (p *simplePrinter) watch(r *clientv3.WatchResponse) error {
	for _, ev := range r.Events {
		p.line("%s", ev.GetType())
		if ev.GetPrevKv() != nil {
			p.kv(ev.GetPrevKv())
		}
		p.kv(ev.GetKv())
	}
	return nil
}

func (p *simplePrinter) leaseGrant(r *clientv3.LeaseGrantResponse) error {
	p.line("lease %016x granted with TTL(%ds)", r.ID, r.TTL)
	return nil
}

func (p *simplePrinter) leaseRevoke(id clientv3.LeaseID, _ *clientv3.LeaseRevokeResponse) error {
	p.line("lease %016x revoked", id)
	return nil
}

func (p *simplePrinter) leaseKeepAlive(r *clientv3.LeaseKeepAliveResponse) error {
	p.line("lease %016x keepalived with TTL(%d)", r.ID, r.TTL)
	return nil
}

func (p *simplePrinter) leaseTimeToLive(r *clientv3.LeaseTimeToLiveResponse, keys bool) error {
	if r.TTL == -1 && r.GrantedTTL == 0 {
		p.line("lease %016x already expired", r.ID)
		return nil
	}
	attached := ""
	if keys {
		attached = fmt.Sprintf(", attached keys(%s)", r.Keys)
	}
	p.line("lease %016x granted with TTL(%ds), remaining(%ds)%s", r.ID, r.GrantedTTL, r.TTL, attached)
	return nil
}

func (p *simplePrinter) leaseList(r *clientv3.LeaseLeasesResponse) error {
	p.line("found %d leases", len(r.Leases))
	for _, l := range r.Leases {
		p.line("%016x", l.ID)
	}
	return nil
}

func (p *simplePrinter) memberAdd(r *clientv3.MemberAddResponse) error {
	as := ""
	if r.Member.GetIsLearner() {
		as = " as learner"
	}
	p.line("Member %16x added%s to cluster %16x", r.Member.GetID(), as, r.Header.GetClusterId())
	return nil
}

func (p *simplePrinter) memberRemove(id uint64, r *clientv3.MemberRemoveResponse) error {
	p.line("Member %16x removed from cluster %16x", id, r.Header.GetClusterId())
	return nil
}

func (p *simplePrinter) memberUpdate(id uint64, r *clientv3.MemberUpdateResponse) error {
	p.line("Member %16x updated in cluster %16x", id, r.Header.GetClusterId())
	return nil
}

func (p *simplePrinter) memberPromote(id uint64, r *clientv3.MemberPromoteResponse) error {
	p.line("Member %16x promoted in cluster %16x", id, r.Header.GetClusterId())
	return nil
}

func (p *simplePrinter) memberList(r *clientv3.MemberListResponse) error {
	p.rows(memberRows(r))
	return nil
}

func (p *simplePrinter) endpointHealth(l []endpointHealth) error {
	for _, h := range l {
		if h.Error == "" {
			p.line("%s is healthy: successfully committed proposal: took = %s", h.Endpoint, h.Took)
		} else {
			fmt.Fprintf(p.stderr, "%s is unhealthy: failed to commit proposal: %s\n", h.Endpoint, h.Error)
		}
	}
	return nil
}

func (p *simplePrinter) endpointStatus(l []endpointStatus) error {
	p.rows(endpointStatusRows(l))
	return nil
}

func (p *simplePrinter) endpointHashKV(l []endpointHashKV) error {
	p.rows(endpointHashKVRows(l))
	return nil
}

func (p *simplePrinter) rows(rows [][]string) {
	for _, r := range rows {
		p.line("%s", strings.Join(r, ", "))
	}
}

// alarms writes the message in protobuf's text form, which is what etcdctl prints. That
// library varies the white space between builds on purpose; here it is fixed.
func (p *simplePrinter) alarms(r *clientv3.AlarmResponse) error {
	for _, a := range (*pb.AlarmResponse)(r).GetAlarms() {
		var fields []string
		if id := a.GetMemberID(); id != 0 {
			fields = append(fields, fmt.Sprintf("memberID:%d", id))
		}
		if t := a.GetAlarm(); t != pb.AlarmType_NONE {
			fields = append(fields, "alarm:"+t.String())
		}
		p.line("%s", strings.Join(fields, " "))
	}
	return nil
}

func (p *simplePrinter) moveLeader(from, to uint64, _ *clientv3.MoveLeaderResponse) error {
	p.line("Leadership transferred from %s to %s", types.ID(from), types.ID(to))
	return nil
}

func (p *simplePrinter) downgrade(action string, r *clientv3.DowngradeResponse) error {
	p.line("Downgrade %s success, cluster version %s", action, (*pb.DowngradeResponse)(r).GetVersion())
	return nil
}

package sim

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"quorate/internal/ids"
	"quorate/internal/lease"
)

// model is a sequential model of the store: a list of versions for each key, leases, and
// alarms. It applies one request after the other, in the order of the log, and drops no
// version, so it can also answer reads at an old revision. It shares no code with the
// store.
type model struct {
	index     ids.Index // of the last entry it has applied
	rev       ids.Revision
	compacted ids.Revision // -1 for never
	keys      map[string][]version
	leases    map[lease.ID]int64 // TTL by id
	alarms    map[string]*pb.AlarmMember
	events    []*mvccpb.Event // all events, in order
	eventAt   []ids.Index     // index of the entry that each event is of
	auth      *rights
	past      []pastRights // the states of auth, the newest last
	taken     []*pb.InternalRaftRequest

	sub int64 // writes so far in the current transaction
}

// version is the state of a key from a revision on.
type version struct {
	kv   *mvccpb.KeyValue
	gone bool
}

func newModel() *model {
	none := &rights{revision: 1, users: map[string][]string{}, roles: map[string][]*authpb.Permission{}}
	return &model{rev: 1, compacted: -1, keys: map[string][]version{}, leases: map[lease.ID]int64{}, alarms: map[string]*pb.AlarmMember{},
		auth: none, past: []pastRights{{0, none}}}
}

// answer is the expected answer to a request.
type answer struct {
	resp any
	err  error
}

// take applies the next request of the log and returns the expected answer.
func (m *model) take(r *pb.InternalRaftRequest) answer {
	m.taken = append(m.taken, r)
	if err := m.alarmed(r); err != nil {
		return answer{err: err}
	}
	if err := m.permitted(r); err != nil {
		return answer{err: err}
	}
	if isChange(r) {
		return m.change(r)
	}
	h := func() *pb.ResponseHeader { return &pb.ResponseHeader{Revision: int64(m.rev)} }
	switch {
	case r.Put != nil, r.DeleteRange != nil, r.Txn != nil:
		return m.write(r)
	case r.Compaction != nil:
		switch at := ids.Revision(r.Compaction.Revision); {
		case at <= m.compacted:
			return answer{err: rpctypes.ErrGRPCCompacted}
		case at > m.rev:
			return answer{err: rpctypes.ErrGRPCFutureRev}
		default:
			m.compacted = at
		}
		return answer{resp: &pb.CompactionResponse{Header: h()}}
	case r.LeaseGrant != nil:
		id := r.LeaseGrant.ID
		if _, there := m.leases[lease.ID(id)]; there {
			return answer{err: rpctypes.ErrGRPCLeaseExist}
		}
		m.leases[lease.ID(id)] = max(r.LeaseGrant.TTL, minTTL)
		return answer{resp: &pb.LeaseGrantResponse{ID: id, TTL: m.leases[lease.ID(id)], Header: h()}}
	case r.LeaseRevoke != nil:
		return m.revoke(r.LeaseRevoke.ID)
	case r.LeaseCheckpoint != nil:
		return answer{resp: &pb.LeaseCheckpointResponse{Header: h()}}
	case r.Alarm != nil:
		return m.alarm(r.Alarm)
	}
	return answer{}
}

func (m *model) alarmed(r *pb.InternalRaftRequest) error {
	full := slices.ContainsFunc(m.sortedAlarms(), func(a *pb.AlarmMember) bool { return a.Alarm == pb.AlarmType_NOSPACE })
	if full && (r.Put != nil || r.LeaseGrant != nil || r.Txn != nil && puts(r.Txn)) {
		return rpctypes.ErrGRPCNoSpace
	}
	return nil
}

// puts reports whether a transaction contains a put, in any branch.
func puts(t *pb.TxnRequest) bool {
	return slices.ContainsFunc(slices.Concat(t.Success, t.Failure), func(op *pb.RequestOp) bool {
		return op.GetRequestPut() != nil || op.GetRequestTxn() != nil && puts(op.GetRequestTxn())
	})
}

func (m *model) sortedAlarms() (all []*pb.AlarmMember) {
	for _, a := range m.alarms {
		all = append(all, a)
	}
	slices.SortFunc(all, func(a, b *pb.AlarmMember) int {
		return cmp.Or(cmp.Compare(a.MemberID, b.MemberID), cmp.Compare(a.Alarm, b.Alarm))
	})
	return all
}

func (m *model) alarm(r *pb.AlarmRequest) answer {
	resp := &pb.AlarmResponse{Header: &pb.ResponseHeader{Revision: int64(m.rev)}}
	name := fmt.Sprintf("%x %v", r.MemberID, r.Alarm)
	switch r.Action {
	case pb.AlarmRequest_GET:
		resp.Alarms = m.sortedAlarms()
	case pb.AlarmRequest_ACTIVATE:
		m.alarms[name] = &pb.AlarmMember{MemberID: r.MemberID, Alarm: r.Alarm}
		resp.Alarms = []*pb.AlarmMember{m.alarms[name]}
	case pb.AlarmRequest_DEACTIVATE:
		if a := m.alarms[name]; a != nil {
			resp.Alarms = []*pb.AlarmMember{a}
		}
		delete(m.alarms, name)
	}
	return answer{resp: resp}
}

// revoke deletes a lease and its keys, in one revision.
func (m *model) revoke(id int64) answer {
	if _, there := m.leases[lease.ID(id)]; !there {
		return answer{err: rpctypes.ErrGRPCLeaseNotFound}
	}
	delete(m.leases, lease.ID(id))
	m.sub = 0
	for _, kv := range m.at(m.rev, "", "\x00") {
		if kv.Lease == id {
			m.delete(string(kv.Key))
		}
	}
	m.end()
	return answer{resp: &pb.LeaseRevokeResponse{Header: &pb.ResponseHeader{Revision: int64(m.rev)}}}
}

// write runs a put, a delete or a transaction. A refused request has no effect.
func (m *model) write(r *pb.InternalRaftRequest) answer {
	m.sub = 0
	var (
		resp any
		err  error
	)
	switch {
	case r.Put != nil:
		if err = m.mayPut(r.Put); err == nil {
			resp = m.put(r.Put)
		}
	case r.DeleteRange != nil:
		resp = m.deleteRange(r.DeleteRange)
	default:
		if err = m.mayRun(r.Txn); err == nil {
			// All compares, also nested ones, see the state before the transaction.
			decisions := m.decide(r.Txn, nil)
			t, _ := m.run(r.Txn, decisions)
			m.end()
			t.Header = &pb.ResponseHeader{Revision: int64(m.rev)}
			return answer{resp: t}
		}
	}
	m.end()
	return answer{resp, err}
}

// now returns the revision that reads in the current transaction see.
func (m *model) now() ids.Revision {
	if m.sub > 0 {
		return m.rev + 1
	}
	return m.rev
}

func (m *model) end() {
	m.rev = m.now()
	m.sub = 0
}

func (m *model) mayPut(r *pb.PutRequest) error {
	if _, there := m.leases[lease.ID(r.Lease)]; r.Lease != 0 && !there {
		return rpctypes.ErrGRPCLeaseNotFound
	}
	if (r.IgnoreValue || r.IgnoreLease) && m.get(string(r.Key)) == nil {
		return rpctypes.ErrGRPCKeyNotFound
	}
	return nil
}

// mayRun checks the operations that the transaction will run. The workers' transactions do
// not touch a key twice, so no operation depends on another.
func (m *model) mayRun(t *pb.TxnRequest) error {
	for _, op := range m.branch(t) {
		var err error
		switch {
		case op.GetRequestPut() != nil:
			err = m.mayPut(op.GetRequestPut())
		case op.GetRequestTxn() != nil:
			err = m.mayRun(op.GetRequestTxn())
		case op.GetRequestRange() != nil:
			err = m.mayRead(ids.Revision(op.GetRequestRange().Revision), m.compacted)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (m *model) mayRead(rev, compacted ids.Revision) error {
	switch {
	case rev == 0:
	case rev < compacted:
		return rpctypes.ErrGRPCCompacted
	case rev > m.rev:
		return rpctypes.ErrGRPCFutureRev
	}
	return nil
}

func (m *model) branch(t *pb.TxnRequest) []*pb.RequestOp {
	if m.allHold(t.Compare) {
		return t.Success
	}
	return t.Failure
}

// decide returns which branches are taken, the outer transaction first.
func (m *model) decide(t *pb.TxnRequest, path []bool) []bool {
	ok := m.allHold(t.Compare)
	path = append(path, ok)
	for _, op := range m.branch(t) {
		if op.GetRequestTxn() != nil {
			path = m.decide(op.GetRequestTxn(), path)
		}
	}
	return path
}

func (m *model) allHold(all []*pb.Compare) bool {
	return !slices.ContainsFunc(all, func(c *pb.Compare) bool { return !m.holds(c) })
}

// holds reports whether a compare is true for all keys of its range. A missing key counts
// as one whose numbers are zero. It has no value: every compare of the value is false, also
// NOT_EQUAL.
func (m *model) holds(c *pb.Compare) bool {
	kvs := m.at(m.rev, string(c.Key), string(c.RangeEnd))
	if len(kvs) == 0 {
		if c.Target == pb.Compare_VALUE {
			return false
		}
		kvs = []*mvccpb.KeyValue{{}}
	}
	for _, kv := range kvs {
		var order int
		switch c.Target {
		case pb.Compare_VALUE:
			order = bytes.Compare(kv.Value, c.GetValue())
		case pb.Compare_VERSION:
			order = cmp.Compare(kv.Version, c.GetVersion())
		case pb.Compare_CREATE:
			order = cmp.Compare(kv.CreateRevision, c.GetCreateRevision())
		case pb.Compare_MOD:
			order = cmp.Compare(kv.ModRevision, c.GetModRevision())
		case pb.Compare_LEASE:
			order = cmp.Compare(kv.Lease, c.GetLease())
		}
		ok := map[pb.Compare_CompareResult]bool{pb.Compare_EQUAL: order == 0, pb.Compare_NOT_EQUAL: order != 0,
			pb.Compare_GREATER: order > 0, pb.Compare_LESS: order < 0}[c.Result]
		if !ok {
			return false
		}
	}
	return true
}

func (m *model) run(t *pb.TxnRequest, path []bool) (*pb.TxnResponse, []bool) {
	resp := &pb.TxnResponse{Succeeded: path[0], Header: &pb.ResponseHeader{}}
	ops := t.Failure
	if path[0] {
		ops = t.Success
	}
	path = path[1:]
	for _, op := range ops {
		out := &pb.ResponseOp{}
		switch {
		case op.GetRequestPut() != nil:
			out.Response = &pb.ResponseOp_ResponsePut{ResponsePut: m.put(op.GetRequestPut())}
		case op.GetRequestDeleteRange() != nil:
			out.Response = &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: m.deleteRange(op.GetRequestDeleteRange())}
		case op.GetRequestRange() != nil:
			out.Response = &pb.ResponseOp_ResponseRange{ResponseRange: m.read(op.GetRequestRange(), m.now())}
		case op.GetRequestTxn() != nil:
			var nested *pb.TxnResponse
			nested, path = m.run(op.GetRequestTxn(), path)
			out.Response = &pb.ResponseOp_ResponseTxn{ResponseTxn: nested}
		}
		resp.Responses = append(resp.Responses, out)
	}
	return resp, path
}

func (m *model) put(r *pb.PutRequest) *pb.PutResponse {
	old, key := m.get(string(r.Key)), string(r.Key)
	at := m.rev + 1
	kv := &mvccpb.KeyValue{Key: r.Key, Value: r.Value, Lease: r.Lease, CreateRevision: int64(at), ModRevision: int64(at), Version: 1}
	if old != nil {
		kv.CreateRevision, kv.Version = old.CreateRevision, old.Version+1
		if r.IgnoreValue {
			kv.Value = old.Value
		}
		if r.IgnoreLease {
			kv.Lease = old.Lease
		}
	}
	m.store(key, version{kv: kv}, old)
	resp := &pb.PutResponse{Header: &pb.ResponseHeader{Revision: int64(m.now())}}
	if r.PrevKv {
		resp.PrevKv = old
	}
	return resp
}

func (m *model) deleteRange(r *pb.DeleteRangeRequest) *pb.DeleteRangeResponse {
	resp := &pb.DeleteRangeResponse{}
	for _, kv := range m.at(m.now(), string(r.Key), string(r.RangeEnd)) {
		m.delete(string(kv.Key))
		resp.Deleted++
		if r.PrevKv {
			resp.PrevKvs = append(resp.PrevKvs, kv)
		}
	}
	resp.Header = &pb.ResponseHeader{Revision: int64(m.now())}
	return resp
}

func (m *model) delete(key string) {
	old := m.get(key)
	m.store(key, version{gone: true, kv: &mvccpb.KeyValue{Key: []byte(key), ModRevision: int64(m.rev + 1)}}, old)
}

func (m *model) store(key string, v version, old *mvccpb.KeyValue) {
	e := &mvccpb.Event{Kv: v.kv, PrevKv: old}
	if v.gone {
		e.Type = mvccpb.Event_DELETE
	}
	m.sub++
	m.keys[key] = append(m.keys[key], v)
	m.events, m.eventAt = append(m.events, e), append(m.eventAt, m.index)
}

// get returns a key as the current transaction sees it, nil if it does not exist.
func (m *model) get(key string) *mvccpb.KeyValue {
	if all := m.at(m.now(), key, ""); len(all) > 0 {
		return all[0]
	}
	return nil
}

// at returns the keys of a range at a revision, in order.
func (m *model) at(rev ids.Revision, key, end string) (out []*mvccpb.KeyValue) {
	for k, versions := range m.keys {
		if !inRange(k, key, end) {
			continue
		}
		i := len(versions) - 1
		for i >= 0 && ids.Revision(versions[i].kv.ModRevision) > rev {
			i--
		}
		if i >= 0 && !versions[i].gone {
			out = append(out, versions[i].kv)
		}
	}
	slices.SortFunc(out, func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Key, b.Key) })
	return out
}

func inRange(k, key, end string) bool {
	switch end {
	case "":
		return k == key
	case "\x00":
		return k >= key
	}
	return k >= key && k < end
}

// read returns a range at revision now, or at the revision that the request names.
func (m *model) read(r *pb.RangeRequest, now ids.Revision) *pb.RangeResponse {
	at := now
	if r.Revision > 0 {
		at = ids.Revision(r.Revision)
	}
	kvs := m.at(at, string(r.Key), string(r.RangeEnd))
	resp := &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: int64(now)}, Count: int64(len(kvs))}
	if r.CountOnly {
		return resp
	}
	if r.SortOrder == pb.RangeRequest_DESCEND {
		slices.Reverse(kvs)
	}
	if r.Limit > 0 && int64(len(kvs)) > r.Limit {
		kvs, resp.More = kvs[:r.Limit], true
	}
	for _, kv := range kvs {
		if r.KeysOnly { // drops the lease, too
			kv = &mvccpb.KeyValue{Key: kv.Key, CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision, Version: kv.Version}
		}
		resp.Kvs = append(resp.Kvs, kv)
	}
	return resp
}

// differs compares an answer with the expected one and describes the difference, "" if they
// are equal.
func (a answer) differs(resp any, err error) string {
	if fmt.Sprint(a.err) != fmt.Sprint(err) {
		return fmt.Sprintf("has the error %v, it must be %v", err, a.err)
	}
	if err != nil {
		return ""
	}
	have, want := text(resp), text(a.resp)
	if have != want {
		return fmt.Sprintf("is\n%s\nit must be\n%s", have, want)
	}
	return ""
}

// isNoSpace reports whether err is the answer of a member over its quota.
func isNoSpace(err error) bool { return errors.Is(err, rpctypes.ErrGRPCNoSpace) }

func text(resp any) string { return strings.TrimSpace(canonical(resp)) }

package apply

import (
	"fmt"
	"slices"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/metrics"
)

// ErrAlarmAction is the response to a request that neither lists nor raises nor
// clears alarms. Members of etcd panic at such a request, so etcd has no text for
// it.
var ErrAlarmAction = status.Error(codes.InvalidArgument, "etcdserver: unknown alarm action")

// alarms applies requests about alarms, and holds the active ones. Reading them is safe for concurrent
// use.
type alarms struct {
	active atomic.Pointer[[]*pb.AlarmMember]
}

// apply lists, raises or clears alarms. Raising an active alarm and clearing
// an inactive one are no errors.
func (x *alarms) apply(b engine.Batch, r *pb.AlarmRequest, h *pb.ResponseHeader) Result {
	resp := &pb.AlarmResponse{Header: h}
	same := func(a *pb.AlarmMember) bool { return a.MemberID == r.MemberID && a.Alarm == r.Alarm }
	all := x.list()
	switch r.Action {
	case pb.AlarmRequest_GET:
		for _, a := range all {
			if r.Alarm == pb.AlarmType_NONE || r.Alarm == a.Alarm {
				resp.Alarms = append(resp.Alarms, a)
			}
		}
	case pb.AlarmRequest_ACTIVATE:
		if r.Alarm == pb.AlarmType_NONE {
			break
		}
		a := &pb.AlarmMember{MemberID: r.MemberID, Alarm: r.Alarm}
		resp.Alarms = []*pb.AlarmMember{a}
		if slices.ContainsFunc(all, same) {
			break
		}
		key, err := proto.Marshal(a)
		if err != nil {
			return fatal(err)
		}
		b.Set(engine.Alarm.K(key), nil)
		x.set(append(slices.Clone(all), a))
		gaugeAlarm(a, 1)
	case pb.AlarmRequest_DEACTIVATE:
		i := slices.IndexFunc(all, same)
		if i < 0 {
			break
		}
		key, err := proto.Marshal(all[i])
		if err != nil {
			return fatal(err)
		}
		b.Delete(engine.Alarm.K(key))
		resp.Alarms = []*pb.AlarmMember{all[i]}
		gaugeAlarm(all[i], 0)
		x.set(slices.Delete(slices.Clone(all), i, i+1))
	default:
		return Result{Err: ErrAlarmAction}
	}
	return Result{Resp: resp}
}

func gaugeAlarm(a *pb.AlarmMember, v float64) {
	metrics.DebuggingServerAlarms.WithLabelValues(ids.Member(a.MemberID).String(), a.Alarm.String()).Set(v)
}

// forbid rejects requests that an active alarm forbids. CORRUPT takes
// precedence over NOSPACE.
func (x *alarms) forbid(r *pb.InternalRaftRequest) error {
	var corrupt, full bool
	for _, a := range x.list() {
		corrupt = corrupt || a.Alarm == pb.AlarmType_CORRUPT
		full = full || a.Alarm == pb.AlarmType_NOSPACE
	}
	if corrupt && (r.Put != nil || r.Txn != nil || r.DeleteRange != nil || r.Compaction != nil ||
		r.LeaseGrant != nil || r.LeaseRevoke != nil) {
		return rpctypes.ErrGRPCCorrupt
	}
	if full && (r.Put != nil || r.LeaseGrant != nil || r.Txn != nil && TxnCost(r.Txn) > 0) {
		return rpctypes.ErrGRPCNoSpace
	}
	return nil
}

// list returns the active alarms, sorted by member, then type. The caller
// must not modify the slice.
func (x *alarms) list() []*pb.AlarmMember {
	if p := x.active.Load(); p != nil {
		return *p
	}
	return nil
}

func (x *alarms) load(eng engine.Engine) error {
	lower, upper := engine.Alarm.Bounds()
	it, err := eng.NewIter(lower, upper)
	if err != nil {
		return err
	}
	defer it.Close()
	var all []*pb.AlarmMember
	for ok := it.First(); ok; ok = it.Next() {
		a := &pb.AlarmMember{}
		if err := proto.Unmarshal(it.Key()[1:], a); err != nil {
			return &engine.CorruptionError{File: fmt.Sprintf("bucket alarm, key %x", it.Key()[1:]), Err: err}
		}
		all = append(all, a)
	}
	if err := it.Error(); err != nil {
		return err
	}
	metrics.DebuggingServerAlarms.Reset() // drop the alarms of the state that this one replaces
	for _, a := range all {
		gaugeAlarm(a, 1)
	}
	x.set(all)
	return nil
}

func (x *alarms) set(all []*pb.AlarmMember) {
	slices.SortFunc(all, func(a, b *pb.AlarmMember) int {
		if a.MemberID != b.MemberID {
			if a.MemberID < b.MemberID {
				return -1
			}
			return 1
		}
		return int(a.Alarm) - int(b.Alarm)
	})
	x.active.Store(&all)
}

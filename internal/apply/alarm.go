package apply

import (
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"quorate/internal/engine"
	"quorate/internal/membership"
	"quorate/internal/metrics"
)

// ErrAlarmAction is the response to a request that neither lists nor raises nor
// clears alarms. Members of etcd panic at such a request, so etcd has no text for
// it.
var ErrAlarmAction = status.Error(codes.InvalidArgument, "etcdserver: unknown alarm action")

// alarm lists, raises or clears alarms. Raising an active alarm and clearing
// an inactive one are no errors.
func (m *Machine) alarm(b engine.Batch, r *pb.AlarmRequest) Result {
	resp := &pb.AlarmResponse{Header: m.header()}
	same := func(a *pb.AlarmMember) bool { return a.MemberID == r.MemberID && a.Alarm == r.Alarm }
	all := m.Alarms()
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
		m.setAlarms(append(slices.Clone(all), a))
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
		m.setAlarms(slices.Delete(slices.Clone(all), i, i+1))
	default:
		return Result{Err: ErrAlarmAction}
	}
	return Result{Resp: resp}
}

func gaugeAlarm(a *pb.AlarmMember, v float64) {
	metrics.DebuggingServerAlarms.WithLabelValues(membership.FormatID(a.MemberID), a.Alarm.String()).Set(v)
}

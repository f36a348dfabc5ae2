package apply

import (
	"testing"

	dto "github.com/prometheus/client_model/go"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/internal/ids"
	"quorate/internal/metrics"
)

// An alarm persists across restarts, and so must its metric.
func TestAlarmIsShownAfterReopen(t *testing.T) {
	r := newReplica(t)
	shown := func(id ids.Member) float64 {
		var m dto.Metric
		if err := metrics.DebuggingServerAlarms.WithLabelValues(id.String(), "CORRUPT").Write(&m); err != nil {
			t.Fatal(err)
		}
		return m.GetGauge().GetValue()
	}
	for id := range uint64(2) {
		r.must(today(t, &pb.InternalRaftRequest{Alarm: &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: id + 1, Alarm: pb.AlarmType_CORRUPT}}))
	}
	r.must(today(t, &pb.InternalRaftRequest{Alarm: &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: 2, Alarm: pb.AlarmType_CORRUPT}}))
	metrics.DebuggingServerAlarms.Reset() // as in a new process
	metrics.DebuggingServerAlarms.WithLabelValues("3", "CORRUPT").Set(1)
	r.reopen()
	for id, want := range map[ids.Member]float64{1: 1, 2: 0, 3: 0} {
		if got := shown(id); got != want {
			t.Errorf("alarm of member %d: got %v, want %v", id, got, want)
		}
	}
}

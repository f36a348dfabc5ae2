package differential

import (
	"cmp"
	"context"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

func (b *script) alarm(action pb.AlarmRequest_AlarmAction, kind pb.AlarmType, member func(s *session) uint64) {
	b.add("Alarm "+action.String()+" "+kind.String(), func(ctx context.Context, s *session) answer {
		r, err := s.maint.Alarm(ctx, &pb.AlarmRequest{Action: action, Alarm: kind, MemberID: member(s)})
		if err == nil { // etcd lists them in map order
			slices.SortFunc(r.Alarms, func(x, y *pb.AlarmMember) int {
				return cmp.Or(cmp.Compare(x.MemberID, y.MemberID), cmp.Compare(x.Alarm, y.Alarm))
			})
		}
		return s.answerOf(r, err)
	})
}

func self(s *session) uint64  { return s.member }
func nobody(*session) uint64  { return 0 }
func unknown(*session) uint64 { return 4711 }

func (b *script) checkHealth(service string) {
	unary(b, "Health/Check", &healthpb.HealthCheckRequest{Service: service},
		func(s *session, ctx context.Context, r *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
			return s.health.Check(ctx, r)
		})
}

func (b *script) downgrade(action pb.DowngradeRequest_DowngradeAction, version string) {
	unary(b, "Downgrade", &pb.DowngradeRequest{Action: action, Version: version},
		func(s *session, ctx context.Context, r *pb.DowngradeRequest) (*pb.DowngradeResponse, error) {
			return s.maint.Downgrade(ctx, r)
		})
}

// settled waits for what a new cluster decides asynchronously: the cluster version and, after it, the storage
// version.
func (b *script) settled() {
	b.until("versions are decided", func(ctx context.Context, s *session) (bool, error) {
		r, err := s.maint.Status(ctx, &pb.StatusRequest{})
		return err == nil && r.StorageVersion == "3.7.0", err
	})
}

func maintenanceSection(b *script) {
	b.settled()
	b.status()
	seed(b)
	b.status()
	unary(b, "Hash", &pb.HashRequest{}, func(s *session, ctx context.Context, r *pb.HashRequest) (*pb.HashResponse, error) {
		return s.maint.Hash(ctx, r)
	})
	b.add("Snapshot", func(ctx context.Context, s *session) answer { return s.snapshot(ctx) })
	unary(b, "Defragment", &pb.DefragmentRequest{}, func(s *session, ctx context.Context, r *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
		return s.maint.Defragment(ctx, r)
	})
	b.hashKV(0)
	b.checkHealth("")
	b.checkHealth("etcdserverpb.KV")
	unary(b, "Health/List", &healthpb.HealthListRequest{}, func(s *session, ctx context.Context, r *healthpb.HealthListRequest) (*healthpb.HealthListResponse, error) {
		return s.health.List(ctx, r)
	})
	b.add("Health/Watch first answer", func(ctx context.Context, s *session) answer {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		st, err := s.health.Watch(ctx, &healthpb.HealthCheckRequest{})
		if err != nil {
			return failed(err)
		}
		r, err := st.Recv()
		return s.answerOf(r, err)
	})
	// Alarms.
	get, on, off := pb.AlarmRequest_GET, pb.AlarmRequest_ACTIVATE, pb.AlarmRequest_DEACTIVATE
	space, corrupt, none := pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT, pb.AlarmType_NONE
	b.alarm(get, none, nobody)
	b.alarm(get, space, unknown)
	b.alarm(off, space, self)
	b.alarm(on, space, self)
	b.alarm(on, space, self)
	b.alarm(get, none, nobody)
	b.alarm(get, space, unknown)
	b.alarm(get, corrupt, nobody)
	b.status()
	b.put("a/1", "x")
	b.txn(&pb.TxnRequest{Success: ops(set("a/1", "x"))})
	b.txn(&pb.TxnRequest{Failure: ops(set("a/1", "x"))})
	b.txn(&pb.TxnRequest{Success: ops(get2("r/01"))})
	b.txn(&pb.TxnRequest{Success: ops(remove("r/01", ""))})
	b.txn(&pb.TxnRequest{Success: ops(opTxn(&pb.TxnRequest{Success: ops(set("a/1", "x"))}))})
	b.grant(31, 600)
	b.del("r/02", "")
	b.rng(&pb.RangeRequest{Key: k("r/"), RangeEnd: k("r0"), CountOnly: true})
	b.compact(12, true)
	b.alarm(off, corrupt, self)
	b.alarm(off, space, unknown)
	b.alarm(off, space, self)
	b.alarm(get, none, nobody)
	b.put("a/1", "x")
	b.alarm(on, corrupt, self)
	b.alarm(get, none, nobody)
	b.status()
	b.put("a/1", "y")
	b.del("a/1", "")
	b.txn(&pb.TxnRequest{Success: ops(set("a/1", "x"))})
	b.txn(&pb.TxnRequest{Success: ops(get2("a/1"))})
	b.compact(14, false)
	b.grant(32, 600)
	b.revoke(701)
	b.rng(&pb.RangeRequest{Key: k("a/1")})
	b.alarm(on, space, unknown)
	b.alarm(get, none, nobody)
	b.alarm(off, corrupt, self)
	b.alarm(off, space, unknown)
	b.alarm(on, none, self)
	b.alarm(get, none, nobody)
	// An unknown action is left out: etcd dereferences nil on it and crashes.
	b.alarm(on, pb.AlarmType(9), self)
	b.alarm(get, none, nobody)
	b.alarm(off, pb.AlarmType(9), self)
	b.put("a/1", "z")
	// Leadership in a cluster of one.
	b.add("MoveLeader to itself", func(ctx context.Context, s *session) answer {
		r, err := s.maint.MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: s.member})
		return s.answerOf(r, err)
	})
	unary(b, "MoveLeader", &pb.MoveLeaderRequest{TargetID: 4711}, func(s *session, ctx context.Context, r *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
		return s.maint.MoveLeader(ctx, r)
	})
	// Downgrade: every refusal, then an actual one and its end.
	validate, enable, cancel := pb.DowngradeRequest_VALIDATE, pb.DowngradeRequest_ENABLE, pb.DowngradeRequest_CANCEL
	for _, v := range []string{"", "x", "3", "3.7", "3.7.0", "3.8.0", "3.5.0", "3.6", "3.6.0", "3.6.9", "4.6.0"} {
		b.downgrade(validate, v)
	}
	b.downgrade(enable, "3.5.0")
	b.downgrade(cancel, "")
	b.downgrade(pb.DowngradeRequest_DowngradeAction(5), "3.6.0")
	b.status()
	b.everything()
}

// get2 is a range operation; the name get is taken by the alarm action where this is used.
func get2(key string) *pb.RequestOp { return get(key) }

func clusterSection(b *script) {
	list := func(linearizable bool) {
		unary(b, "MemberList", &pb.MemberListRequest{Linearizable: linearizable}, func(s *session, ctx context.Context, r *pb.MemberListRequest) (*pb.MemberListResponse, error) {
			return s.cluster.MemberList(ctx, r)
		})
	}
	add := func(name string, learner bool, urls ...string) {
		r := &pb.MemberAddRequest{PeerURLs: urls, IsLearner: learner}
		b.add(describe("MemberAdd", r), func(ctx context.Context, s *session) answer {
			resp, err := s.cluster.MemberAdd(ctx, r)
			if err == nil {
				s.name(resp.GetMember().GetID(), name) // the id depends on the time
			}
			return s.answerOf(resp, err)
		})
	}
	id := func(name string) func(s *session) uint64 {
		return func(s *session) uint64 {
			if name == "self" {
				return s.member
			}
			return s.ids[name]
		}
	}
	update := func(who string, urls ...string) {
		b.add("MemberUpdate "+who, func(ctx context.Context, s *session) answer {
			r, err := s.cluster.MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: id(who)(s), PeerURLs: urls})
			return s.answerOf(r, err)
		})
	}
	promote := func(who string) {
		b.add("MemberPromote "+who, func(ctx context.Context, s *session) answer {
			r, err := s.cluster.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: id(who)(s)})
			return s.answerOf(r, err)
		})
	}
	drop := func(who string) {
		b.add("MemberRemove "+who, func(ctx context.Context, s *session) answer {
			r, err := s.cluster.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: id(who)(s)})
			return s.answerOf(r, err)
		})
	}
	list(false)
	list(true)
	add("(bad)", true)
	add("(bad)", true, "not a url")
	add("(bad)", true, "http://127.0.0.1")
	add("(bad)", true, "ftp://127.0.0.1:1")
	add("(bad)", true, "http://127.0.0.1:1/path")
	add("(bad)", true, "http://127.0.0.1:2380") // the member's own
	add("(bad)", false, "http://127.0.0.1:2380")
	list(true)
	// Port 1 has no listener: the learner never starts, so it can neither vote nor catch up.
	add("(learner)", true, "http://127.0.0.1:1", "http://127.0.0.2:1")
	list(true)
	b.put("c/1", "x")
	add("(bad)", true, "http://127.0.0.1:1")
	add("(bad)", true, "http://127.0.0.1:3") // one learner is the limit
	promote("(learner)")
	promote("self")
	promote("nobody")
	update("(learner)", "http://127.0.0.1:4")
	update("(learner)", "http://127.0.0.1:2380")
	// Updating another member to no URL at all is left out: etcd panics when it applies that.
	update("nobody", "http://127.0.0.1:5")
	update("self", "http://127.0.0.1:2380", "http://127.0.0.3:2380")
	list(true)
	b.add("MoveLeader to the learner", func(ctx context.Context, s *session) answer {
		r, err := s.maint.MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: s.ids["(learner)"]})
		return s.answerOf(r, err)
	})
	drop("nobody")
	drop("(learner)")
	drop("(learner)")
	update("(learner)", "http://127.0.0.1:4")
	promote("(learner)")
	list(false)
	b.put("c/2", "x")
	b.settled()
	b.status()
	b.everything()
}

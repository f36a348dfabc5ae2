package grpcproxy

import (
	"context"
	"errors"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"quorate/internal/rpc/v3electionpb"
	"quorate/internal/rpc/v3lockpb"
)

// relay forwards the messages that a member streams until either side ends.
func relay[M any](from interface{ Recv() (*M, error) }, to interface{ Send(*M) error }) error {
	for {
		m, err := from.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := to.Send(m); err != nil {
			return err
		}
	}
}

// maintenanceServer forwards to one of the members, no matter which.
type maintenanceServer struct {
	pb.UnimplementedMaintenanceServer
	up pb.MaintenanceClient
}

func (s *maintenanceServer) Alarm(ctx context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	return s.up.Alarm(ctx, r)
}

func (s *maintenanceServer) Status(ctx context.Context, r *pb.StatusRequest) (*pb.StatusResponse, error) {
	return s.up.Status(ctx, r)
}

func (s *maintenanceServer) Defragment(ctx context.Context, r *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
	return s.up.Defragment(ctx, r)
}

func (s *maintenanceServer) Hash(ctx context.Context, r *pb.HashRequest) (*pb.HashResponse, error) {
	return s.up.Hash(ctx, r)
}

func (s *maintenanceServer) HashKV(ctx context.Context, r *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	return s.up.HashKV(ctx, r)
}

func (s *maintenanceServer) MoveLeader(ctx context.Context, r *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	return s.up.MoveLeader(ctx, r)
}

func (s *maintenanceServer) Downgrade(ctx context.Context, r *pb.DowngradeRequest) (*pb.DowngradeResponse, error) {
	return s.up.Downgrade(ctx, r)
}

func (s *maintenanceServer) Snapshot(r *pb.SnapshotRequest, to grpc.ServerStreamingServer[pb.SnapshotResponse]) error {
	from, err := s.up.Snapshot(to.Context(), r)
	if err != nil {
		return err
	}
	return relay(from, to)
}

type lockServer struct {
	v3lockpb.UnimplementedLockServer
	up v3lockpb.LockClient
}

func (s *lockServer) Lock(ctx context.Context, r *v3lockpb.LockRequest) (*v3lockpb.LockResponse, error) {
	return s.up.Lock(ctx, r)
}

func (s *lockServer) Unlock(ctx context.Context, r *v3lockpb.UnlockRequest) (*v3lockpb.UnlockResponse, error) {
	return s.up.Unlock(ctx, r)
}

type electionServer struct {
	v3electionpb.UnimplementedElectionServer
	up v3electionpb.ElectionClient
}

func (s *electionServer) Campaign(ctx context.Context, r *v3electionpb.CampaignRequest) (*v3electionpb.CampaignResponse, error) {
	return s.up.Campaign(ctx, r)
}

func (s *electionServer) Proclaim(ctx context.Context, r *v3electionpb.ProclaimRequest) (*v3electionpb.ProclaimResponse, error) {
	return s.up.Proclaim(ctx, r)
}

func (s *electionServer) Leader(ctx context.Context, r *v3electionpb.LeaderRequest) (*v3electionpb.LeaderResponse, error) {
	return s.up.Leader(ctx, r)
}

func (s *electionServer) Resign(ctx context.Context, r *v3electionpb.ResignRequest) (*v3electionpb.ResignResponse, error) {
	return s.up.Resign(ctx, r)
}

func (s *electionServer) Observe(r *v3electionpb.LeaderRequest, to grpc.ServerStreamingServer[v3electionpb.LeaderResponse]) error {
	from, err := s.up.Observe(to.Context(), r)
	if err != nil {
		return err
	}
	return relay(from, to)
}

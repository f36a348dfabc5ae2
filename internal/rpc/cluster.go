package rpc

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/types"

	"quorate/internal/ids"
)

const clusterService = "etcdserverpb.Cluster"

// clusterServer serves the service Cluster.
type clusterServer struct {
	identity
	members Members
}

func (c *clusterServer) describe(e *edge) service {
	return service{
		name: clusterService,
		methods: []method{
			unary(e, clusterService, "MemberAdd", c.memberAdd),
			unary(e, clusterService, "MemberRemove", c.memberRemove),
			unary(e, clusterService, "MemberUpdate", c.memberUpdate),
			unary(e, clusterService, "MemberList", c.memberList),
			unary(e, clusterService, "MemberPromote", c.memberPromote),
		},
	}
}

func (c *clusterServer) memberAdd(ctx context.Context, req *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	urls, err := types.NewURLs(req.PeerURLs)
	if err != nil {
		return nil, rpctypes.ErrGRPCMemberBadURLs
	}
	added, all, err := c.members.MemberAdd(ctx, urls.StringSlice(), req.IsLearner)
	if err != nil {
		return nil, err
	}
	return &pb.MemberAddResponse{Header: c.bare(), Member: added, Members: all}, nil
}

func (c *clusterServer) memberRemove(ctx context.Context, req *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	all, err := c.members.MemberRemove(ctx, ids.Member(req.ID))
	if err != nil {
		return nil, err
	}
	return &pb.MemberRemoveResponse{Header: c.bare(), Members: all}, nil
}

func (c *clusterServer) memberUpdate(ctx context.Context, req *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	all, err := c.members.MemberUpdate(ctx, ids.Member(req.ID), req.PeerURLs)
	if err != nil {
		return nil, err
	}
	return &pb.MemberUpdateResponse{Header: c.bare(), Members: all}, nil
}

func (c *clusterServer) memberList(ctx context.Context, req *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	all, err := c.members.MemberList(ctx, req.Linearizable)
	if err != nil {
		return nil, err
	}
	return &pb.MemberListResponse{Header: c.bare(), Members: all}, nil
}

func (c *clusterServer) memberPromote(ctx context.Context, req *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	all, err := c.members.MemberPromote(ctx, ids.Member(req.ID))
	if err != nil {
		return nil, err
	}
	return &pb.MemberPromoteResponse{Header: c.bare(), Members: all}, nil
}

package rpc

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/types"
)

const clusterService = "etcdserverpb.Cluster"

func (e *edge) clusterDesc() service {
	return service{
		name: clusterService,
		methods: []method{
			unary(e, clusterService, "MemberAdd", e.memberAdd),
			unary(e, clusterService, "MemberRemove", e.memberRemove),
			unary(e, clusterService, "MemberUpdate", e.memberUpdate),
			unary(e, clusterService, "MemberList", e.memberList),
			unary(e, clusterService, "MemberPromote", e.memberPromote),
		},
	}
}

func (e *edge) memberAdd(ctx context.Context, req *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	urls, err := types.NewURLs(req.PeerURLs)
	if err != nil {
		return nil, rpctypes.ErrGRPCMemberBadURLs
	}
	added, all, err := e.b.Members.MemberAdd(ctx, urls.StringSlice(), req.IsLearner)
	if err != nil {
		return nil, err
	}
	return &pb.MemberAddResponse{Header: e.bare(), Member: added, Members: all}, nil
}

func (e *edge) memberRemove(ctx context.Context, req *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	all, err := e.b.Members.MemberRemove(ctx, req.ID)
	if err != nil {
		return nil, err
	}
	return &pb.MemberRemoveResponse{Header: e.bare(), Members: all}, nil
}

func (e *edge) memberUpdate(ctx context.Context, req *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	all, err := e.b.Members.MemberUpdate(ctx, req.ID, req.PeerURLs)
	if err != nil {
		return nil, err
	}
	return &pb.MemberUpdateResponse{Header: e.bare(), Members: all}, nil
}

func (e *edge) memberList(ctx context.Context, req *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	all, err := e.b.Members.MemberList(ctx, req.Linearizable)
	if err != nil {
		return nil, err
	}
	return &pb.MemberListResponse{Header: e.bare(), Members: all}, nil
}

func (e *edge) memberPromote(ctx context.Context, req *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	all, err := e.b.Members.MemberPromote(ctx, req.ID)
	if err != nil {
		return nil, err
	}
	return &pb.MemberPromoteResponse{Header: e.bare(), Members: all}, nil
}

package rpc

import (
	"bytes"
	"context"
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"quorate/internal/ids"
	"quorate/internal/lease"
	"quorate/internal/rpc/v3electionpb"
)

const electionService = "v3electionpb.Election"

var (
	errMissingLeader = errors.New(`"leader" field must be provided`)
	errNotElected    = errors.New("election: not leader")
	errNoneElected   = errors.New("election: no leader")
)

// electionServer serves the service Election.
type electionServer struct{ inner }

func (l *electionServer) describe(e *edge) service {
	return service{
		name: electionService,
		methods: []method{
			lateUnary(e, electionService, "Campaign", l.campaign),
			lateUnary(e, electionService, "Proclaim", l.proclaim),
			lateUnary(e, electionService, "Leader", l.electedLeader),
			lateUnary(e, electionService, "Resign", l.resign),
			{name: "Observe", stream: l.observe, fromServer: true},
		},
	}
}

// campaign waits until the caller's key is the oldest with the election's prefix. A
// candidate that already campaigns updates its value.
func (l *electionServer) campaign(ctx context.Context, req *v3electionpb.CampaignRequest) (*v3electionpb.CampaignResponse, error) {
	ctx, _, done := until(l.stopping, ctx)
	defer done()
	c, err := l.newClaim(ctx, req.Name, lease.ID(req.Lease))
	if err != nil {
		return nil, err
	}
	resp, held, err := l.stake(ctx, &c, req.Value)
	if err != nil {
		return nil, err
	}
	if held != nil && !bytes.Equal(held.Value, req.Value) {
		if _, err := l.proclaimValue(ctx, &c, req.Value); err != nil {
			l.giveUp(ctx, &c)
			return nil, err
		}
	}
	if err := l.waitTurn(ctx, &c); err != nil {
		if ctx.Err() != nil {
			l.giveUp(ctx, &c)
		}
		return nil, err
	}
	return &v3electionpb.CampaignResponse{Header: resp.Header,
		Leader: &v3electionpb.LeaderKey{Name: req.Name, Key: c.key, Rev: int64(c.rev), Lease: int64(c.lease)}}, nil
}

// giveUp withdraws a claim whose caller has gone. If that fails, the claim ends with its
// lease.
func (l *electionServer) giveUp(ctx context.Context, c *claim) {
	after, cancel := afterwards(ctx)
	defer cancel()
	_, _ = l.withdraw(after, c)
}

// claimOf returns the claim that a client says it holds.
func claimOf(k *v3electionpb.LeaderKey) (*claim, error) {
	if k == nil {
		return nil, errMissingLeader
	}
	return &claim{key: k.Key, lease: lease.ID(k.Lease), rev: ids.Revision(k.Rev)}, nil
}

// heldClaim is claimOf with a lease, which is granted if there is none, as for a campaign.
func (l *electionServer) heldClaim(ctx context.Context, k *v3electionpb.LeaderKey) (*claim, error) {
	c, err := claimOf(k)
	if err != nil || c.lease != 0 {
		return c, err
	}
	fresh, err := l.newClaim(ctx, k.Name, 0)
	c.lease = fresh.lease
	return c, err
}

func (l *electionServer) proclaim(ctx context.Context, req *v3electionpb.ProclaimRequest) (*v3electionpb.ProclaimResponse, error) {
	c, err := l.heldClaim(ctx, req.Leader)
	if err != nil {
		return nil, err
	}
	h, err := l.proclaimValue(ctx, c, req.Value)
	if err != nil {
		return nil, err
	}
	return &v3electionpb.ProclaimResponse{Header: h}, nil
}

func (l *electionServer) proclaimValue(ctx context.Context, c *claim, value []byte) (*pb.ResponseHeader, error) {
	put := &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: c.key, Value: value, Lease: int64(c.lease)}}
	resp, err := l.txn(ctx, &pb.TxnRequest{Compare: []*pb.Compare{createdAt(c.key, c.rev)}, Success: []*pb.RequestOp{{Request: put}}})
	if err != nil {
		return nil, err
	}
	if !resp.Succeeded {
		return nil, errNotElected
	}
	return resp.Header, nil
}

func (l *electionServer) resign(ctx context.Context, req *v3electionpb.ResignRequest) (*v3electionpb.ResignResponse, error) {
	c, err := l.heldClaim(ctx, req.Leader)
	if err != nil {
		return nil, err
	}
	h, err := l.withdraw(ctx, c)
	if err != nil {
		return nil, err
	}
	return &v3electionpb.ResignResponse{Header: h}, nil
}

// withdraw deletes the key of a claim, provided that it is still the same key.
func (l *electionServer) withdraw(ctx context.Context, c *claim) (*pb.ResponseHeader, error) {
	del := &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: c.key}}
	resp, err := l.txn(ctx, &pb.TxnRequest{Compare: []*pb.Compare{createdAt(c.key, c.rev)}, Success: []*pb.RequestOp{{Request: del}}})
	if err != nil {
		return nil, err
	}
	return resp.Header, nil
}

func (l *electionServer) electedLeader(ctx context.Context, req *v3electionpb.LeaderRequest) (*v3electionpb.LeaderResponse, error) {
	h, kvs, err := l.read(ctx, oldestOf(string(req.Name)+"/"))
	if err != nil {
		return nil, err
	}
	if len(kvs) == 0 {
		return nil, errNoneElected
	}
	return &v3electionpb.LeaderResponse{Header: h, Kv: kvs[0]}, nil
}

// observe sends the leader and its values, and then those of each new leader. A failed read
// or watch ends the stream without an error, as in etcd.
func (l *electionServer) observe(s *stream) error {
	req := new(v3electionpb.LeaderRequest)
	if err := s.RecvMsg(req); err != nil {
		return err
	}
	var sent error // error of the last send
	send := func(h *pb.ResponseHeader, kv *mvccpb.KeyValue) error {
		sent = s.SendMsg(&v3electionpb.LeaderResponse{Header: h, Kv: kv})
		return sent
	}
	ctx := s.Context()
	for {
		err := l.observeOne(ctx, string(req.Name)+"/", send)
		switch {
		case sent != nil:
			return sent
		case ctx.Err() != nil:
			return endOf(ctx)
		case err != nil:
			return nil
		}
	}
}

// observeOne waits for a leader and follows it until its key is deleted.
func (l *electionServer) observeOne(ctx context.Context, prefix string, send func(*pb.ResponseHeader, *mvccpb.KeyValue) error) error {
	h, kvs, err := l.read(ctx, oldestOf(prefix))
	if err != nil {
		return err
	}
	var leader *mvccpb.KeyValue
	if len(kvs) > 0 {
		leader = kvs[0]
	} else {
		first := &pb.WatchCreateRequest{Key: []byte(prefix), RangeEnd: prefixEnd(prefix), StartRevision: h.Revision}
		err := l.watch(ctx, first, func(at *pb.ResponseHeader, ev *mvccpb.Event) (bool, error) {
			if ev.Type == mvccpb.Event_PUT {
				h, leader = at, ev.Kv
				h.Revision = ev.Kv.ModRevision // the response may contain several revisions
			}
			return leader != nil, nil
		})
		if err != nil {
			return err
		}
	}
	if err := send(h, leader); err != nil {
		return err
	}
	changes := &pb.WatchCreateRequest{Key: leader.Key, StartRevision: h.Revision + 1}
	return l.watch(ctx, changes, func(at *pb.ResponseHeader, ev *mvccpb.Event) (bool, error) {
		if ev.Type == mvccpb.Event_DELETE {
			return true, nil
		}
		return false, send(at, ev.Kv)
	})
}

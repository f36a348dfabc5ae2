package rpc

import (
	"bytes"
	"context"
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"quorate/internal/rpc/v3electionpb"
)

const electionService = "v3electionpb.Election"

var (
	errMissingLeader = errors.New(`"leader" field must be provided`)
	errNotElected    = errors.New("election: not leader")
	errNoneElected   = errors.New("election: no leader")
)

func (e *edge) electionDesc() service {
	return service{
		name: electionService,
		methods: []method{
			lateUnary(e, electionService, "Campaign", e.campaign),
			lateUnary(e, electionService, "Proclaim", e.proclaim),
			lateUnary(e, electionService, "Leader", e.electedLeader),
			lateUnary(e, electionService, "Resign", e.resign),
			{name: "Observe", stream: e.observe, fromServer: true},
		},
	}
}

// campaign waits until the caller's key is the oldest with the election's prefix. A
// candidate that already campaigns updates its value.
func (e *edge) campaign(ctx context.Context, req *v3electionpb.CampaignRequest) (*v3electionpb.CampaignResponse, error) {
	ctx, _, done := until(e.stopping, ctx)
	defer done()
	c, err := e.newClaim(ctx, req.Name, req.Lease)
	if err != nil {
		return nil, err
	}
	resp, held, err := e.stake(ctx, &c, req.Value)
	if err != nil {
		return nil, err
	}
	if held != nil && !bytes.Equal(held.Value, req.Value) {
		if _, err := e.proclaimValue(ctx, &c, req.Value); err != nil {
			e.giveUp(ctx, &c)
			return nil, err
		}
	}
	if err := e.waitTurn(ctx, &c); err != nil {
		if ctx.Err() != nil {
			e.giveUp(ctx, &c)
		}
		return nil, err
	}
	return &v3electionpb.CampaignResponse{Header: resp.Header,
		Leader: &v3electionpb.LeaderKey{Name: req.Name, Key: c.key, Rev: c.rev, Lease: c.lease}}, nil
}

// giveUp withdraws a claim whose caller has gone. If that fails, the claim ends with its
// lease.
func (e *edge) giveUp(ctx context.Context, c *claim) {
	after, cancel := afterwards(ctx)
	defer cancel()
	_, _ = e.withdraw(after, c)
}

// claimOf returns the claim that a client says it holds.
func claimOf(l *v3electionpb.LeaderKey) (*claim, error) {
	if l == nil {
		return nil, errMissingLeader
	}
	return &claim{key: l.Key, lease: l.Lease, rev: l.Rev}, nil
}

// heldClaim is claimOf with a lease, which is granted if there is none, as for a campaign.
func (e *edge) heldClaim(ctx context.Context, l *v3electionpb.LeaderKey) (*claim, error) {
	c, err := claimOf(l)
	if err != nil || c.lease != 0 {
		return c, err
	}
	fresh, err := e.newClaim(ctx, l.Name, 0)
	c.lease = fresh.lease
	return c, err
}

func (e *edge) proclaim(ctx context.Context, req *v3electionpb.ProclaimRequest) (*v3electionpb.ProclaimResponse, error) {
	c, err := e.heldClaim(ctx, req.Leader)
	if err != nil {
		return nil, err
	}
	h, err := e.proclaimValue(ctx, c, req.Value)
	if err != nil {
		return nil, err
	}
	return &v3electionpb.ProclaimResponse{Header: h}, nil
}

func (e *edge) proclaimValue(ctx context.Context, c *claim, value []byte) (*pb.ResponseHeader, error) {
	put := &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: c.key, Value: value, Lease: c.lease}}
	resp, err := e.innerTxn(ctx, &pb.TxnRequest{Compare: []*pb.Compare{createdAt(c.key, c.rev)}, Success: []*pb.RequestOp{{Request: put}}})
	if err != nil {
		return nil, err
	}
	if !resp.Succeeded {
		return nil, errNotElected
	}
	return resp.Header, nil
}

func (e *edge) resign(ctx context.Context, req *v3electionpb.ResignRequest) (*v3electionpb.ResignResponse, error) {
	c, err := e.heldClaim(ctx, req.Leader)
	if err != nil {
		return nil, err
	}
	h, err := e.withdraw(ctx, c)
	if err != nil {
		return nil, err
	}
	return &v3electionpb.ResignResponse{Header: h}, nil
}

// withdraw deletes the key of a claim, provided that it is still the same key.
func (e *edge) withdraw(ctx context.Context, c *claim) (*pb.ResponseHeader, error) {
	del := &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: c.key}}
	resp, err := e.innerTxn(ctx, &pb.TxnRequest{Compare: []*pb.Compare{createdAt(c.key, c.rev)}, Success: []*pb.RequestOp{{Request: del}}})
	if err != nil {
		return nil, err
	}
	return resp.Header, nil
}

func (e *edge) electedLeader(ctx context.Context, req *v3electionpb.LeaderRequest) (*v3electionpb.LeaderResponse, error) {
	h, kvs, err := e.innerRange(ctx, oldestOf(string(req.Name)+"/"))
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
func (e *edge) observe(s *stream) error {
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
		err := e.observeOne(ctx, string(req.Name)+"/", send)
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
func (e *edge) observeOne(ctx context.Context, prefix string, send func(*pb.ResponseHeader, *mvccpb.KeyValue) error) error {
	h, kvs, err := e.innerRange(ctx, oldestOf(prefix))
	if err != nil {
		return err
	}
	var leader *mvccpb.KeyValue
	if len(kvs) > 0 {
		leader = kvs[0]
	} else {
		first := &pb.WatchCreateRequest{Key: []byte(prefix), RangeEnd: prefixEnd(prefix), StartRevision: h.Revision}
		err := e.innerWatch(ctx, first, func(at *pb.ResponseHeader, ev *mvccpb.Event) (bool, error) {
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
	return e.innerWatch(ctx, changes, func(at *pb.ResponseHeader, ev *mvccpb.Event) (bool, error) {
		if ev.Type == mvccpb.Event_DELETE {
			return true, nil
		}
		return false, send(at, ev.Kv)
	})
}

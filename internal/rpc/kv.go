package rpc

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

const kvService = "etcdserverpb.KV"

// kvServer serves the service KV.
type kvServer struct {
	identity
	kv     KV
	maxOps int
}

func (k *kvServer) describe(e *edge) service {
	return service{
		name: kvService,
		methods: []method{
			unary(e, kvService, "Range", k.getRange),
			unary(e, kvService, "Put", k.put),
			unary(e, kvService, "DeleteRange", k.deleteRange),
			unary(e, kvService, "Txn", k.txn),
			unary(e, kvService, "Compact", rootOnly(e.b.Access, k.compact)),
			{name: "RangeStream", stream: k.rangeStream, fromServer: true},
		},
	}
}

// getRange reads a single key at once; several keys are read while they are sent.
func (k *kvServer) getRange(ctx context.Context, c *rangeCall) (*rangeReply, error) {
	if len(c.req.RangeEnd) == 0 || c.req.CountOnly {
		return k.rangeInMemory(ctx, c)
	}
	if err := checkRange(&c.req); err != nil {
		return nil, err
	}
	l, err := k.kv.List(ctx, &c.req)
	if err != nil {
		return nil, err
	}
	return &rangeReply{list: l}, nil
}

// rangeInMemory reads everything that the request asks for.
func (k *kvServer) rangeInMemory(ctx context.Context, c *rangeCall) (*rangeReply, error) {
	if err := checkRange(&c.req); err != nil {
		return nil, err
	}
	res, err := k.kv.Range(ctx, &c.req)
	if err != nil {
		return nil, err
	}
	return &rangeReply{header: k.header(res.Revision), res: res}, nil
}

func (k *kvServer) put(ctx context.Context, c *putCall) (*pb.PutResponse, error) {
	if err := checkPut(&c.req); err != nil {
		return nil, err
	}
	resp, err := k.kv.Put(ctx, &c.req, c.raw)
	if err != nil {
		return nil, err
	}
	resp.Header = k.fill(resp.Header)
	return resp, nil
}

func (k *kvServer) deleteRange(ctx context.Context, c *deleteCall) (*pb.DeleteRangeResponse, error) {
	if err := checkDelete(&c.req); err != nil {
		return nil, err
	}
	resp, err := k.kv.DeleteRange(ctx, &c.req, c.raw)
	if err != nil {
		return nil, err
	}
	resp.Header = k.fill(resp.Header)
	return resp, nil
}

func (k *kvServer) txn(ctx context.Context, c *txnCall) (*pb.TxnResponse, error) {
	if err := checkTxn(&c.req, k.maxOps); err != nil {
		return nil, err
	}
	resp, err := k.kv.Txn(ctx, &c.req, c.raw)
	if err != nil {
		return nil, err
	}
	resp.Header = k.fill(resp.Header)
	return resp, nil
}

func (k *kvServer) compact(ctx context.Context, req *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	resp, err := k.kv.Compact(ctx, req)
	if err != nil {
		return nil, err
	}
	resp.Header = k.fill(resp.Header)
	return resp, nil
}

package rpc

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

const kvService = "etcdserverpb.KV"

func (e *edge) kvDesc() service {
	return service{
		name: kvService,
		methods: []method{
			unary(e, kvService, "Range", e.getRange),
			unary(e, kvService, "Put", e.put),
			unary(e, kvService, "DeleteRange", e.deleteRange),
			unary(e, kvService, "Txn", e.txn),
			unary(e, kvService, "Compact", rootOnly(e, e.compact)),
			{name: "RangeStream", stream: e.rangeStream, fromServer: true},
		},
	}
}

// getRange reads a single key at once; several keys are read while they are sent.
func (e *edge) getRange(ctx context.Context, c *rangeCall) (*rangeReply, error) {
	if len(c.req.RangeEnd) == 0 || c.req.CountOnly {
		return e.rangeInMemory(ctx, c)
	}
	if err := checkRange(&c.req); err != nil {
		return nil, err
	}
	l, err := e.b.KV.List(ctx, &c.req)
	if err != nil {
		return nil, err
	}
	return &rangeReply{list: l}, nil
}

// rangeInMemory reads everything that the request asks for.
func (e *edge) rangeInMemory(ctx context.Context, c *rangeCall) (*rangeReply, error) {
	if err := checkRange(&c.req); err != nil {
		return nil, err
	}
	res, err := e.b.KV.Range(ctx, &c.req)
	if err != nil {
		return nil, err
	}
	return &rangeReply{header: e.header(res.Revision), res: res}, nil
}

func (e *edge) put(ctx context.Context, c *putCall) (*pb.PutResponse, error) {
	if err := checkPut(&c.req); err != nil {
		return nil, err
	}
	resp, err := e.b.KV.Put(ctx, &c.req, c.raw)
	if err != nil {
		return nil, err
	}
	resp.Header = e.fill(resp.Header)
	return resp, nil
}

func (e *edge) deleteRange(ctx context.Context, c *deleteCall) (*pb.DeleteRangeResponse, error) {
	if err := checkDelete(&c.req); err != nil {
		return nil, err
	}
	resp, err := e.b.KV.DeleteRange(ctx, &c.req, c.raw)
	if err != nil {
		return nil, err
	}
	resp.Header = e.fill(resp.Header)
	return resp, nil
}

func (e *edge) txn(ctx context.Context, c *txnCall) (*pb.TxnResponse, error) {
	if err := checkTxn(&c.req, int(e.o.MaxTxnOps)); err != nil {
		return nil, err
	}
	resp, err := e.b.KV.Txn(ctx, &c.req, c.raw)
	if err != nil {
		return nil, err
	}
	resp.Header = e.fill(resp.Header)
	return resp, nil
}

func (e *edge) compact(ctx context.Context, req *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	resp, err := e.b.KV.Compact(ctx, req)
	if err != nil {
		return nil, err
	}
	resp.Header = e.fill(resp.Header)
	return resp, nil
}

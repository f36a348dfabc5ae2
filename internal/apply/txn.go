package apply

import (
	"bytes"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/mvcc"
)

// view is the state that a transaction reads: an mvcc.Txn during apply, an
// mvcc.View for transactions that only read.
type view interface {
	Range(*pb.RangeRequest) (*mvcc.RangeResult, error)
	Lookup(key []byte) (mvcc.Meta, bool)
	Rev() ids.Revision
}

// txn runs in three passes: evaluate all compares in the initial state, check the
// selected operations in the same state, then execute them. Only the last pass
// writes, and if it fails for a reason that the second could not foresee, it is
// rolled back, so a rejected transaction changes nothing.
func (k *keyspace) txn(b engine.Batch, r *pb.TxnRequest, local bool, out *Outcome) Result {
	t := k.kv.Begin(b)
	resp, err := k.txnIn(t, r, local)
	k.finish(t, out)
	if err != nil {
		return answer(err)
	}
	resp.Header = k.header()
	return Result{Resp: resp}
}

func (k *keyspace) txnIn(t *mvcc.Txn, r *pb.TxnRequest, local bool) (*pb.TxnResponse, error) {
	path, err := choose(t, r, nil)
	if err != nil {
		return nil, err
	}
	c := checker{keys: k, t: t}
	if _, err := c.check(r, path); err != nil {
		return nil, err
	}
	if c.unsure() {
		t.Savepoint()
	}
	x := executor{keys: k, v: t, t: t, local: local}
	resp, _, err := x.run(r, path)
	switch {
	case err == nil:
		return resp, nil
	case requestError(err) == nil:
		return nil, err
	case c.unsure():
		t.Rollback()
		return nil, err
	}
	return nil, fatal(err).Err // the check has rejected everything else that can fail
}

// ReadTxn runs a read-only transaction against a view.
func ReadTxn(v *mvcc.View, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	path, err := choose(v, r, nil)
	if err != nil {
		return nil, err
	}
	for _, op := range branch(r, path[0]) {
		if err := CheckRead(op.GetRequestRange(), v.Rev(), v.CompactRev()); err != nil {
			return nil, requestError(err)
		}
	}
	x := executor{v: v, local: true}
	resp, _, err := x.run(r, path)
	if err != nil {
		if mapped := requestError(err); mapped != nil {
			return nil, mapped
		}
		return nil, err
	}
	resp.Header = &pb.ResponseHeader{Revision: int64(v.Rev())}
	return resp, nil
}

// choose evaluates the compares of r and of the nested transactions on the
// selected branches. It appends the decisions to path in the order in which
// the passes visit the transactions.
func choose(v view, r *pb.TxnRequest, path []bool) ([]bool, error) {
	ok := true
	for _, c := range r.Compare {
		var err error
		if ok, err = holds(v, c); err != nil {
			return nil, err
		}
		if !ok {
			break
		}
	}
	path = append(path, ok)
	for _, op := range branch(r, ok) {
		if nested := op.GetRequestTxn(); nested != nil {
			var err error
			if path, err = choose(v, nested, path); err != nil {
				return nil, err
			}
		}
	}
	return path, nil
}

func branch(r *pb.TxnRequest, ok bool) []*pb.RequestOp {
	if ok {
		return r.Success
	}
	return r.Failure
}

// holds evaluates one compare. For a range, it must hold for every key; an
// empty range counts as one missing key.
func holds(v view, c *pb.Compare) (bool, error) {
	if len(c.RangeEnd) == 0 && c.Target != pb.Compare_VALUE && c.Target != pb.Compare_LEASE {
		meta, _ := v.Lookup(c.Key) // views know no lease
		return compareNumber(c, meta.Version, int64(meta.Create), int64(meta.Mod), 0), nil
	}
	res, err := v.Range(&pb.RangeRequest{Key: c.Key, RangeEnd: c.RangeEnd})
	if err != nil {
		return false, err
	}
	if len(res.KVs) == 0 {
		// A missing value is not even unequal to a value.
		return c.Target != pb.Compare_VALUE && compareNumber(c, 0, 0, 0, 0), nil
	}
	for _, b := range res.KVs {
		kv, err := decodeKV(b)
		if err != nil {
			return false, err
		}
		if !compareKV(c, kv) {
			return false, nil
		}
	}
	return true, nil
}

func compareKV(c *pb.Compare, kv *mvccpb.KeyValue) bool {
	if c.Target == pb.Compare_VALUE {
		return decide(c.Result, bytes.Compare(kv.Value, c.GetValue()))
	}
	return compareNumber(c, kv.Version, kv.CreateRevision, kv.ModRevision, kv.Lease)
}

func compareNumber(c *pb.Compare, version, create, mod, lease int64) bool {
	var got, want int64
	switch c.Target {
	case pb.Compare_VERSION:
		got, want = version, c.GetVersion()
	case pb.Compare_CREATE:
		got, want = create, c.GetCreateRevision()
	case pb.Compare_MOD:
		got, want = mod, c.GetModRevision()
	case pb.Compare_LEASE:
		got, want = lease, c.GetLease()
	}
	order := 0
	if got < want {
		order = -1
	} else if got > want {
		order = 1
	}
	return decide(c.Result, order)
}

func decide(r pb.Compare_CompareResult, order int) bool {
	switch r {
	case pb.Compare_EQUAL:
		return order == 0
	case pb.Compare_NOT_EQUAL:
		return order != 0
	case pb.Compare_GREATER:
		return order > 0
	case pb.Compare_LESS:
		return order < 0
	}
	return true // an unknown relation always holds, as in etcd
}

// checker rejects operations that cannot run in the state before the
// transaction.
type checker struct {
	keys    *keyspace
	t       *mvcc.Txn
	deletes bool // a checked operation is a delete
	relies  bool // a checked operation is a put that requires its key to exist
}

// unsure reports whether the transaction may still fail while it runs: it may
// delete a key, and then put it with IgnoreValue or IgnoreLease.
func (c *checker) unsure() bool { return c.deletes && c.relies }

// check checks the selected operations of r. It returns the decisions that it
// has not consumed.
func (c *checker) check(r *pb.TxnRequest, path []bool) ([]bool, error) {
	ok, path := path[0], path[1:]
	for _, op := range branch(r, ok) {
		var err error
		switch q := op.Request.(type) {
		case *pb.RequestOp_RequestPut:
			c.relies = c.relies || q.RequestPut.GetIgnoreValue() || q.RequestPut.GetIgnoreLease()
			err = c.keys.checkPut(c.t, q.RequestPut)
		case *pb.RequestOp_RequestDeleteRange:
			c.deletes = true
		case *pb.RequestOp_RequestRange:
			err = CheckRead(q.RequestRange, c.t.Rev(), c.t.CompactRev())
		case *pb.RequestOp_RequestTxn:
			path, err = c.check(q.RequestTxn, path)
		}
		if err != nil {
			return nil, err
		}
	}
	return path, nil
}

// CheckRead validates the revision of a read in a transaction. current is the newest
// revision, compacted the one below which nothing can be read, -1 if there was no
// compaction. Unlike a read outside a transaction, it cannot request the current state
// with a negative number: that counts as compacted, as in etcd.
func CheckRead(r *pb.RangeRequest, current, compacted ids.Revision) error {
	switch rev := ids.Revision(r.GetRevision()); {
	case rev == 0:
		return nil
	case rev > current:
		return mvcc.ErrFutureRev
	case rev < compacted:
		return mvcc.ErrCompacted
	}
	return nil
}

// executor runs the selected operations. t is nil for a read-only transaction.
type executor struct {
	keys  *keyspace
	v     view
	t     *mvcc.Txn
	local bool
}

func (x executor) run(r *pb.TxnRequest, path []bool) (*pb.TxnResponse, []bool, error) {
	ok, path := path[0], path[1:]
	resp := &pb.TxnResponse{Succeeded: ok}
	for _, op := range branch(r, ok) {
		var (
			out = &pb.ResponseOp{}
			err error
		)
		switch q := op.Request.(type) {
		case *pb.RequestOp_RequestRange:
			var rr *pb.RangeResponse
			if rr, err = x.read(q.RequestRange); err == nil {
				out.Response = &pb.ResponseOp_ResponseRange{ResponseRange: rr}
			}
		case *pb.RequestOp_RequestPut:
			var pr *pb.PutResponse
			if pr, err = x.keys.putIn(x.t, q.RequestPut); err == nil {
				out.Response = &pb.ResponseOp_ResponsePut{ResponsePut: pr}
			}
		case *pb.RequestOp_RequestDeleteRange:
			var dr *pb.DeleteRangeResponse
			if dr, err = deleteIn(x.t, q.RequestDeleteRange); err == nil {
				out.Response = &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: dr}
			}
		case *pb.RequestOp_RequestTxn:
			var tr *pb.TxnResponse
			if tr, path, err = x.run(q.RequestTxn, path); err == nil {
				tr.Header = &pb.ResponseHeader{}
				out.Response = &pb.ResponseOp_ResponseTxn{ResponseTxn: tr}
			}
		}
		if err != nil {
			return nil, nil, err
		}
		resp.Responses = append(resp.Responses, out)
	}
	return resp, path, nil
}

// read executes a range on the member whose client waits; the other members
// only need to know that it is valid.
func (x executor) read(r *pb.RangeRequest) (*pb.RangeResponse, error) {
	if !x.local {
		return &pb.RangeResponse{}, nil
	}
	res, err := x.v.Range(r)
	if err != nil {
		return nil, err
	}
	kvs, err := decodeKVs(res.KVs)
	if err != nil {
		return nil, err
	}
	return &pb.RangeResponse{
		Header: &pb.ResponseHeader{Revision: int64(x.v.Rev())},
		Kvs:    kvs, Count: res.Count, More: res.More,
	}, nil
}

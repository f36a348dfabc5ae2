package sim

import (
	"errors"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"quorate/internal/command"
	"quorate/internal/ids"
	"quorate/internal/lease"
	"quorate/internal/mvcc"
	"quorate/internal/proposal"
	"quorate/internal/replica"
)

// worker is a client of the v3 API: transactions over several keys, ranges, leases,
// compactions, alarms. Its answers are compared with the model.
type worker struct {
	w       *World
	id      int
	n       int
	stopped bool
}

// allKinds are the kinds of requests that workers make, by name.
var allKinds = []string{"txn", "read", "old read", "compact", "grant", "revoke", "keepalive", "alarm", "auth"}

func (c *worker) pause() { c.w.after(c.w.between(time.Millisecond, 60*time.Millisecond), c.next) }

func (c *worker) next() {
	if c.stopped {
		return
	}
	w := c.w
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	if n.down || !n.joined() {
		c.pause()
		return
	}
	c.n++
	kind := c.choose()
	if len(w.model.alarms) > 0 && w.rng.IntN(4) == 0 {
		kind = "alarm" // disarm it soon
	}
	if w.without[kind] {
		c.pause()
		return
	}
	switch kind {
	case "txn":
		c.submit(n, kind, w.someUser(), c.someWrite())
	case "read", "old read":
		c.read(n, kind == "old read")
	case "auth":
		user := w.root()
		if w.rng.IntN(10) == 0 {
			user = w.someUser()
		}
		c.submit(n, kind, user, c.someChange())
	case "compact":
		c.submit(n, kind, w.root(), &pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: int64(max(1, w.model.rev-ids.Revision(w.rng.Int64N(30))+1))}})
	case "grant":
		id := lease.ID(c.id+1)<<32 | lease.ID(c.n)
		ttl := 1 + w.rng.Int64N(5)
		w.leases.grant(w, id, max(ttl, minTTL))
		c.submit(n, kind, w.root(), &pb.InternalRaftRequest{LeaseGrant: &pb.LeaseGrantRequest{ID: int64(id), TTL: ttl}})
	case "revoke":
		id := c.someLease()
		w.leases.revoke(id)
		c.submit(n, kind, w.someUser(), &pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: int64(id)}})
	case "keepalive":
		c.keepAlive(c.someLease())
	case "alarm":
		action, of := pb.AlarmRequest_DEACTIVATE, w.nodes[0].id
		if all := w.model.sortedAlarms(); len(all) > 0 {
			of = ids.Member(all[w.rng.IntN(len(all))].MemberID)
		} else {
			action = pb.AlarmRequest_AlarmAction(w.rng.IntN(2))
		}
		c.submit(n, kind, w.root(), &pb.InternalRaftRequest{Alarm: &pb.AlarmRequest{Action: action, Alarm: pb.AlarmType_NOSPACE, MemberID: uint64(of)}})
	}
}

func (c *worker) choose() string {
	if c.w.faults.Auth && c.w.rng.IntN(10) == 0 {
		return "auth"
	}
	switch x := c.w.rng.IntN(100); {
	case x < 45:
		return "txn"
	case x < 60:
		return "read"
	case x < 70:
		return "old read"
	case x < 73:
		return "compact"
	case x < 80:
		return "grant"
	case x < 82:
		return "revoke"
	case x < 98:
		return "keepalive"
	}
	return "alarm"
}

// someLease returns the id of a recent lease, which may have expired, 0 if there was none.
func (c *worker) someLease() lease.ID {
	ids := c.w.leases.order
	if len(ids) == 0 {
		return 0
	}
	return ids[max(0, len(ids)-1-c.w.rng.IntN(8))]
}

const sharedKeys = 6

func (c *worker) key(i int) []byte { return fmt.Appendf(nil, "t%d", i%sharedKeys) }

// someWrite returns a put, a delete or a transaction. No path of it touches a key twice.
func (c *worker) someWrite() *pb.InternalRaftRequest {
	free := c.w.rng.Perm(sharedKeys)
	switch c.w.rng.IntN(6) {
	case 0:
		return &pb.InternalRaftRequest{Put: c.somePut(free[0])}
	case 1:
		return &pb.InternalRaftRequest{DeleteRange: c.someDelete(free[0], true)}
	}
	return &pb.InternalRaftRequest{Txn: c.someTxn(free, 2)}
}

func (c *worker) somePut(i int) *pb.PutRequest {
	c.n++
	p := &pb.PutRequest{Key: c.key(i), Value: fmt.Appendf(nil, "%d.%d", c.id, c.n), PrevKv: c.w.rng.IntN(2) == 0}
	switch c.w.rng.IntN(8) {
	case 0, 1, 2:
		p.Lease = int64(c.someLease())
	case 3:
		p.Value, p.IgnoreValue = nil, true
	case 4:
		p.IgnoreLease = true
	}
	return p
}

func (c *worker) someDelete(i int, wide bool) *pb.DeleteRangeRequest {
	d := &pb.DeleteRangeRequest{Key: c.key(i), PrevKv: c.w.rng.IntN(2) == 0}
	if wide && c.w.rng.IntN(3) == 0 {
		d.RangeEnd = c.key(min(i+2, sharedKeys-1))
		if string(d.RangeEnd) <= string(d.Key) {
			d.RangeEnd = nil
		}
	}
	return d
}

func (c *worker) someTxn(free []int, depth int) *pb.TxnRequest {
	t := &pb.TxnRequest{}
	for range c.w.rng.IntN(3) {
		t.Compare = append(t.Compare, c.someCompare())
	}
	t.Success, t.Failure = c.someOps(free, depth), c.someOps(free, depth)
	return t
}

func (c *worker) someOps(free []int, depth int) (ops []*pb.RequestOp) {
	for len(free) > 0 && len(ops) < 3 {
		switch x := c.w.rng.IntN(8); {
		case x < 3:
			ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: c.somePut(free[0])}})
		case x == 3:
			ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: c.someDelete(free[0], false)}})
		case x < 6:
			r := c.someRange()
			if c.w.rng.IntN(4) == 0 {
				r.Revision = int64(max(1, c.w.model.rev-ids.Revision(c.w.rng.Int64N(20))+1))
			}
			ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r}})
		case x == 6 && depth > 0:
			half := len(free) / 2
			ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: c.someTxn(free[:half], depth-1)}})
			free = free[half:]
			continue
		default:
			return ops
		}
		free = free[1:]
	}
	return ops
}

func (c *worker) someCompare() *pb.Compare {
	w := c.w
	x := &pb.Compare{Key: c.key(w.rng.IntN(sharedKeys)), Result: pb.Compare_CompareResult(w.rng.IntN(4))}
	if w.rng.IntN(4) == 0 {
		x.RangeEnd = []byte("u")
	}
	near := max(0, w.model.rev-ids.Revision(w.rng.Int64N(10)))
	switch x.Target = pb.Compare_CompareTarget(w.rng.IntN(5)); x.Target {
	case pb.Compare_VERSION:
		x.TargetUnion = &pb.Compare_Version{Version: w.rng.Int64N(3)}
	case pb.Compare_CREATE:
		x.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: int64(near)}
	case pb.Compare_MOD:
		x.TargetUnion = &pb.Compare_ModRevision{ModRevision: int64(near)}
	case pb.Compare_VALUE:
		x.TargetUnion = &pb.Compare_Value{Value: fmt.Appendf(nil, "%d.%d", w.rng.IntN(3), c.n)}
	case pb.Compare_LEASE:
		x.TargetUnion = &pb.Compare_Lease{Lease: int64(c.someLease())}
	}
	return x
}

func (c *worker) someRange() *pb.RangeRequest {
	rng := c.w.rng
	r := &pb.RangeRequest{Key: c.key(rng.IntN(sharedKeys))}
	if rng.IntN(2) == 0 {
		r.RangeEnd = []byte("u")
		r.Limit = rng.Int64N(4)
		if rng.IntN(4) == 0 {
			r.SortOrder, r.SortTarget = pb.RangeRequest_DESCEND, pb.RangeRequest_KEY
		}
	}
	r.CountOnly, r.KeysOnly = rng.IntN(8) == 0, rng.IntN(8) == 0
	return r
}

// submit proposes a request and checks the answer.
func (c *worker) submit(n *node, kind, user string, r *pb.InternalRaftRequest) {
	w := c.w
	p, err := n.pending(r, user)
	if err != nil {
		w.fail("encode %v: %w", r, err)
		return
	}
	if n.refuses(r) || n.props.Admit(p, w.time(), requestTimeout) != nil {
		c.pause()
		return
	}
	before := w.acked
	n.wait(func() bool {
		select {
		case res := <-p.Done():
			w.log("worker %d %s at %d: %v %v", c.id, kind, n.index, res.Err, text(res.Resp))
			if res.Err == nil || status.Code(res.Err) != codes.Unknown || isAuth(res.Err) { // else the outcome is not known
				w.did[kind]++
				if isAuth(res.Err) {
					w.did["refused user"]++
				}
				w.acknowledged(r, res.Resp, res.Err, before)
				if r.Compaction != nil && res.Err == nil {
					w.compacted = max(w.compacted, ids.Revision(r.Compaction.Revision))
				}
			}
			c.pause()
			return true
		default:
			return false
		}
	})
	n.step(replica.Input{Propose: []*proposal.Pending{p}})
}

// pending encodes a request of a user for proposal at this member.
func (n *node) pending(r *pb.InternalRaftRequest, user string) (*proposal.Pending, error) {
	who := n.caller(user)
	r.Header = &pb.RequestHeader{ID: n.ids.Next(), Username: who.User, AuthRevision: who.Rev}
	data, err := command.EncodeRequest(r)
	n.w.proposed[checksum(data)]++
	return &proposal.Pending{ID: r.Header.ID, Req: r, Data: data}, err
}

// readMark is the least that a read must see: what was acknowledged when it started.
type readMark struct {
	applied   ids.Index
	compacted ids.Revision
}

func (c *worker) read(n *node, old bool) {
	w := c.w
	r := c.someRange()
	if old {
		r.Revision = int64(max(1, w.model.rev-ids.Revision(w.rng.Int64N(40))))
	}
	user, mark := w.someUser(), readMark{w.acked, w.compacted}
	round, first := n.reads.Join()
	n.wait(func() bool {
		select {
		case <-round.Done():
		default:
			return false
		}
		if round.Err() == nil && w.mayRead(n, user, r, mark) {
			w.did[map[bool]string{true: "old read", false: "read"}[old]]++
			w.checkRead(n, r, mark)
		}
		c.pause()
		return true
	})
	if first {
		n.step(replica.Input{ReadWanted: true})
	}
}

// mayRead asks the member, as its KV service does, whether the user may read. What it permits
// must have been permitted at some time between the start of the read and now.
func (w *World) mayRead(n *node, user string, r *pb.RangeRequest, mark readMark) bool {
	if err := n.auth.State().CanRead(n.caller(user), r.Key, r.RangeEnd); err != nil {
		w.did["refused user"]++
		return false
	}
	if !w.model.everMay(mark.applied, user, r.Key, r.RangeEnd) {
		w.fail("member %d lets %q read %v, which was not permitted since entry %d", n.index, user, r, mark.applied)
	}
	return true
}

// checkRead reads at a member as its KV service does and compares with the model.
func (w *World) checkRead(n *node, r *pb.RangeRequest, mark readMark) {
	if at := n.machine.Applied(); at < mark.applied {
		w.fail("member %d reads at entry %d, although %d was acknowledged before", n.index, at, mark.applied)
	}
	v := n.machine.KV().View()
	defer v.Close()
	res, err := v.Range(r)
	now := v.Rev()
	w.log("read %d rev=%d at=%d: %v", n.index, now, r.Revision, err)
	switch {
	case errors.Is(err, mvcc.ErrCompacted):
		w.compactedReads++
		if ids.Revision(r.Revision) >= w.model.compacted {
			w.fail("member %d reports revision %d as compacted; the compaction was at %d", n.index, r.Revision, w.model.compacted)
		}
	case errors.Is(err, mvcc.ErrFutureRev):
		if ids.Revision(r.Revision) <= now {
			w.fail("member %d reports revision %d as a future one; it is at %d", n.index, r.Revision, now)
		}
	case err != nil:
		w.fail("read at member %d: %w", n.index, err)
	case r.Revision > 0 && ids.Revision(r.Revision) < mark.compacted:
		w.fail("member %d reads revision %d, although the compaction at %d was acknowledged before", n.index, r.Revision, mark.compacted)
	default:
		have := &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: int64(now)}, Count: res.Count, More: res.More}
		if have.Kvs, err = decodeAll(res.KVs); err != nil {
			w.fail("decode a key of member %d: %w", n.index, err)
		}
		if d := (answer{resp: w.model.read(r, now)}).differs(have, nil); d != "" {
			w.fail("the read of member %d (%v) %s", n.index, r, d)
		}
	}
}

func decodeAll(all [][]byte) (out []*mvccpb.KeyValue, err error) {
	for _, b := range all {
		kv := &mvccpb.KeyValue{}
		if err := proto.Unmarshal(b, kv); err != nil {
			return nil, err
		}
		out = append(out, kv)
	}
	return out, nil
}

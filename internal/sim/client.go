package sim

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/protobuf/proto"

	"quorate/internal/command"
	"quorate/internal/legacy/v2request"
	"quorate/internal/legacy/v2store"
	"quorate/internal/proposal"
	"quorate/internal/replica"
)

const requestTimeout = 7 * time.Second

var (
	errTimeout = errors.New("sim: request timed out")
	errChanged = errors.New("sim: leader changed")
	errCrashed = errors.New("sim: member crashed")
)

// client runs one operation after the other on a few keys, each at a random member, and
// records the results for the linearizability check.
type client struct {
	w       *World
	id      int
	keys    int
	n       int
	stopped bool
	history []porcupine.Operation
	acked   int
	slowest time.Duration // longest duration of an operation, including failed ones
}

// input is an operation on one key.
type input struct {
	key   string
	op    string // get, put or cas
	value string // to write
	old   string // the value that cas compares with
}

// v2Prefix is the prefix of the keys that are stored in the tree of the v2 API.
const v2Prefix = "v2/"

func (i input) v2() bool { return strings.HasPrefix(i.key, v2Prefix) }

func v2Path(key string) string { return "/1/" + strings.TrimPrefix(key, v2Prefix) }

// output is the result of an operation.
type output struct {
	value   string // of a get
	swapped bool   // whether a cas has written
	unknown bool   // it may take effect at any time after its call, or never
}

func (c *client) next() {
	if c.stopped {
		return
	}
	c.n++
	in := input{key: fmt.Sprintf("k%d", c.w.rng.IntN(c.keys)), value: fmt.Sprintf("%d.%d", c.id, c.n)}
	switch x := c.w.rng.IntN(10); {
	case x < 4:
		in.op = "put"
	case x < 6:
		in.op, in.old = "cas", fmt.Sprintf("%d.%d", c.w.rng.IntN(len(c.w.clients)), max(1, c.n-c.w.rng.IntN(3)))
	default:
		in.op = "get"
	}
	if c.w.rng.IntN(4) == 0 {
		in.key = v2Prefix + in.key
	}
	n := c.w.nodes[c.w.rng.IntN(len(c.w.nodes))]
	if n.down || !n.joined() {
		c.pause()
		return
	}
	switch {
	case in.op == "get":
		c.read(n, in)
	case in.v2():
		c.writeV2(n, in)
	default:
		c.write(n, in)
	}
}

func (c *client) pause() { c.w.after(c.w.between(time.Millisecond, 40*time.Millisecond), c.next) }

func (c *client) done(in input, start time.Duration, out output) {
	c.slowest = max(c.slowest, c.w.now-start)
	op := porcupine.Operation{ClientId: c.id, Input: in, Output: out, Call: int64(start), Return: int64(c.w.now)}
	if out.unknown {
		op.Return = math.MaxInt64
	} else {
		c.acked++
	}
	c.w.log("client %d %+v -> %+v", c.id, in, out)
	c.history = append(c.history, op)
	c.pause()
}

// never records an operation that failed as certainly not executed: no leader has accepted
// it. It is left out of the history, so a read of its value fails the check.
func (c *client) never(in input, start time.Duration) {
	c.slowest = max(c.slowest, c.w.now-start)
	c.w.never++
	c.w.log("client %d %+v -> never", c.id, in)
	c.pause()
}

func (c *client) write(n *node, in input) {
	id, who := n.ids.Next(), n.caller(c.w.root())
	req := &pb.InternalRaftRequest{Header: &pb.RequestHeader{ID: id, Username: who.User, AuthRevision: who.Rev}}
	var (
		body []byte
		kind command.Kind
		err  error
	)
	put := &pb.PutRequest{Key: []byte(in.key), Value: []byte(in.value)}
	if in.op == "put" {
		req.Put, kind = put, command.Put
		body, err = proto.Marshal(put)
	} else {
		req.Txn, kind = &pb.TxnRequest{
			Compare: []*pb.Compare{
				{Key: put.Key, Target: pb.Compare_VALUE, Result: pb.Compare_EQUAL, TargetUnion: &pb.Compare_Value{Value: []byte(in.old)}},
				// This compare always holds, so the other one decides.
				{Key: put.Key, Target: pb.Compare_VERSION, Result: pb.Compare_GREATER, TargetUnion: &pb.Compare_Version{Version: -1}},
			},
			Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: put}}},
		}, command.Txn
		body, err = proto.Marshal(req.Txn)
	}
	if err != nil {
		c.w.fail("encode request: %w", err)
		return
	}
	if n.refuses(req) {
		c.pause()
		return
	}
	c.submit(n, in, &proposal.Pending{ID: id, Req: req, Data: command.Encode(req.Header, kind, body)}, func(res proposal.Result) output {
		t, ok := res.Resp.(*pb.TxnResponse)
		return output{unknown: res.Err != nil, swapped: ok && t.Succeeded}
	})
}

// writeV2 is write through the v2 API. Now and then it also creates a key that expires.
func (c *client) writeV2(n *node, in input) {
	r := &v2request.Request{ID: n.ids.Next(), Method: "PUT", Path: v2Path(in.key), Val: in.value, PrevValue: in.old, Time: n.wall().UnixNano()}
	if c.w.rng.IntN(3) == 0 {
		c.propose(n, &v2request.Request{ID: n.ids.Next(), Method: "POST", Path: "/1/brief", Val: in.value,
			Expiration: c.w.time().Add(c.w.between(0, 2*time.Second)).UnixNano()})
	}
	c.submit(n, in, &proposal.Pending{ID: r.ID, Foreign: r, Data: r.Marshal()}, func(res proposal.Result) output {
		var refused *v2store.Error
		if errors.As(res.Err, &refused) {
			return output{} // the compare failed
		}
		return output{unknown: res.Err != nil, swapped: res.Err == nil}
	})
}

// propose proposes a request whose outcome does not matter.
func (c *client) propose(n *node, r *v2request.Request) {
	p := &proposal.Pending{ID: r.ID, Foreign: r, Data: r.Marshal()}
	if n.props.Admit(p, c.w.time(), requestTimeout) == nil {
		n.step(replica.Input{Propose: []*proposal.Pending{p}})
	}
}

// submit proposes a write and records its outcome.
func (c *client) submit(n *node, in input, p *proposal.Pending, outcome func(proposal.Result) output) {
	// Some timeouts are short, so that requests expire while there is no leader.
	if n.props.Admit(p, c.w.time(), requestTimeout>>(c.n%4)) != nil {
		c.pause()
		return
	}
	start := c.w.now
	n.wait(func() bool {
		select {
		case res := <-p.Done():
			switch {
			case errors.Is(res.Err, context.DeadlineExceeded):
				c.never(in, start)
			case errors.Is(res.Err, rpctypes.ErrGRPCNoSpace) && c.w.set.Quota == 0:
				c.pause() // refused because of an alarm: it had no effect
			case isAuth(res.Err):
				c.pause() // users have changed meanwhile
			default:
				c.done(in, start, outcome(res))
			}
			return true
		default:
			return false
		}
	})
	n.step(replica.Input{Propose: []*proposal.Pending{p}})
}

func (c *client) read(n *node, in input) {
	start := c.w.now
	round, first := n.reads.Join()
	n.wait(func() bool {
		select {
		case <-round.Done():
		default:
			return false
		}
		if round.Err() != nil {
			c.slowest = max(c.slowest, c.w.now-start)
			c.pause() // a failed read returns nothing to check
			return true
		}
		value, err := n.value(in.key)
		if err != nil {
			c.w.fail("read at member %d: %w", n.index, err)
			return true
		}
		c.done(in, start, output{value: value})
		return true
	})
	if first {
		n.step(replica.Input{ReadWanted: true})
	}
}

// value returns the value of a key in the store, "" if the key does not exist.
func (n *node) value(key string) (string, error) {
	if strings.HasPrefix(key, v2Prefix) {
		e, err := n.machine.V2().Get(v2Path(key), false, false)
		var refused *v2store.Error
		if errors.As(err, &refused) && refused.Code == v2store.CodeKeyNotFound {
			return "", nil
		} else if err != nil {
			return "", err
		}
		return *e.Node.Value, nil
	}
	v := n.machine.KV().View()
	defer v.Close()
	res, err := v.Range(&pb.RangeRequest{Key: []byte(key)})
	if err != nil {
		return "", err
	}
	return valueOf(res.KVs), nil
}

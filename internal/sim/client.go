package sim

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/anishathalye/porcupine"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/command"
	"quorate/internal/proposal"
	"quorate/internal/server"
)

const requestTimeout = 7 * time.Second

var (
	errTimeout = errors.New("sim: request timed out")
	errChanged = errors.New("sim: leader changed")
	errCrashed = errors.New("sim: member crashed")
)

// client does one operation after the other on a few keys, each at a random
// member, and writes down what it saw.
type client struct {
	w       *World
	id      int
	keys    int
	n       int
	stopped bool
	history []porcupine.Operation
	acked   int
	slowest time.Duration // any operation has taken, also one that failed
}

// input and output of an operation on one key, a register.
type input struct {
	key   string
	op    string // get, put or cas
	value string // to write
	old   string // what cas expects
}

type output struct {
	value   string // of a get
	swapped bool   // by a cas
	unknown bool   // it may or may not have happened, at any time since
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
	n := c.w.nodes[c.w.rng.IntN(len(c.w.nodes))]
	if n.down || !n.joined() {
		c.pause()
		return
	}
	if in.op == "get" {
		c.read(n, in)
	} else {
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

func (c *client) write(n *node, in input) {
	req := &pb.InternalRaftRequest{}
	id := n.ids.Next()
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
			Compare: []*pb.Compare{{Key: put.Key, Target: pb.Compare_VALUE, Result: pb.Compare_EQUAL, TargetUnion: &pb.Compare_Value{Value: []byte(in.old)}}},
			Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: put}}},
		}, command.Txn
		body, err = proto.Marshal(req.Txn)
	}
	if err != nil {
		c.w.fail("encode request: %w", err)
		return
	}
	req.Header = &pb.RequestHeader{ID: id}
	p := &proposal.Pending{ID: id, Req: req, Data: command.Encode(req.Header, kind, body)}
	if n.props.Admit(p, c.w.time(), requestTimeout) != nil {
		c.pause()
		return
	}
	start := c.w.now
	n.wait(func() bool {
		select {
		case res := <-p.Done():
			if res.Err != nil {
				c.done(in, start, output{unknown: true})
				return true
			}
			out := output{}
			if t, ok := res.Resp.(*pb.TxnResponse); ok {
				out.swapped = t.Succeeded
			}
			c.done(in, start, out)
			return true
		default:
			return false
		}
	})
	n.step(server.Input{Propose: []*proposal.Pending{p}})
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
			c.pause() // a read that failed has seen nothing
			return true
		}
		v := n.machine.KV().View()
		res, err := v.Range(&pb.RangeRequest{Key: []byte(in.key)})
		v.Close()
		if err != nil {
			c.w.fail("read at member %d: %w", n.index, err)
			return true
		}
		c.done(in, start, output{value: valueOf(res.KVs)})
		return true
	})
	if first {
		n.step(server.Input{ReadWanted: true})
	}
}

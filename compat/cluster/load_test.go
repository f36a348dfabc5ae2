package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
)

const (
	opTimeout = 3 * time.Second
	// pace keeps histories at a size that can be checked; the load comes from the unique writers.
	pace      = 8 * time.Millisecond
	registers = 4
	epoch     = 5 * time.Second // after which registers get new names, so that each search stays short
)

// load is a set of clients and what they have recorded.
type load struct {
	members []*child.Client
	start   time.Time
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	mu  sync.Mutex
	ops []op // of clients that have ended

	acked, unknown atomic.Int64
	lastWrite      atomic.Int64 // nanoseconds since start
	longest        atomic.Int64 // nanoseconds without an acknowledged write
}

func newLoad(t *testing.T, addrs []string) *load {
	l := &load{start: time.Now()}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	t.Cleanup(l.cancel)
	for _, a := range addrs {
		l.members = append(l.members, child.Dial(t, a))
	}
	return l
}

// stop lets every client finish its operation and returns all that were recorded.
func (l *load) stop() []op {
	l.cancel()
	l.wg.Wait()
	return l.ops
}

// client runs next in a loop, each time against a member that answered last.
func (l *load) client(id int, pace time.Duration, next func(r *rand.Rand, o *op)) {
	r := rand.New(rand.NewPCG(*seed, uint64(id)))
	l.wg.Go(func() {
		var ops []op
		member := id % len(l.members)
		tick := time.NewTicker(max(pace, time.Microsecond))
		defer tick.Stop()
		for l.ctx.Err() == nil {
			o := op{client: id}
			next(r, &o)
			sent := l.do(l.members[member], &o)
			if sent {
				ops = append(ops, o)
			}
			if !o.known {
				member = r.IntN(len(l.members))
				if !sent { // refused at once: do not spin
					sleep(l.ctx, 20*time.Millisecond)
				}
			}
			if pace > 0 {
				select {
				case <-tick.C:
				case <-l.ctx.Done():
				}
			}
		}
		l.mu.Lock()
		l.ops = append(l.ops, ops...)
		l.mu.Unlock()
	})
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// do makes the call of o and fills in the answer. It returns false if the call was never sent.
func (l *load) do(c *child.Client, o *op) (sent bool) {
	ctx, cancel := context.WithTimeout(context.Background(), opTimeout)
	defer cancel()
	key := []byte(o.key)
	o.call = time.Since(l.start)
	var (
		err error
		h   *pb.ResponseHeader
	)
	switch o.kind {
	case get:
		var r *pb.RangeResponse
		if r, err = c.Range(ctx, &pb.RangeRequest{Key: key}); err == nil {
			h, o.read = r.Header, valueOf(r)
		}
	case put:
		var r *pb.PutResponse
		if r, err = c.Put(ctx, &pb.PutRequest{Key: key, Value: []byte(o.value)}); err == nil {
			h = r.Header
		}
	case del:
		var r *pb.DeleteRangeResponse
		if r, err = c.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: key}); err == nil {
			h, o.wrote = r.Header, r.Deleted > 0
		}
	case cas:
		compare := &pb.Compare{Key: key, Target: pb.Compare_VALUE, TargetUnion: &pb.Compare_Value{Value: []byte(o.old)}}
		if o.old == "" {
			compare = &pb.Compare{Key: key, Target: pb.Compare_VERSION, TargetUnion: &pb.Compare_Version{Version: 0}}
		}
		var r *pb.TxnResponse
		if r, err = c.Txn(ctx, &pb.TxnRequest{
			Compare: []*pb.Compare{compare},
			Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: []byte(o.value)}}}},
			Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key}}}},
		}); err == nil {
			h, o.wrote = r.Header, r.Succeeded
			if !r.Succeeded {
				o.read = valueOf(r.Responses[0].GetResponseRange())
			}
		}
	}
	o.ret = time.Since(l.start)
	if err != nil {
		if child.NeverSent(err) {
			return false
		}
		l.unknown.Add(1)
		return true
	}
	o.known, o.rev = true, h.Revision
	l.acked.Add(1)
	if o.kind == put || o.wrote {
		if gap := int64(o.ret) - l.lastWrite.Swap(int64(o.ret)); gap > l.longest.Load() {
			l.longest.Store(gap)
		}
	}
	return true
}

func valueOf(r *pb.RangeResponse) string {
	if len(r.Kvs) == 0 {
		return ""
	}
	return string(r.Kvs[0].Value)
}

// mix starts a client that reads, writes, exchanges and deletes a few keys.
func (l *load) mix(id int) {
	n := 0
	held := map[string]string{} // what this client knows of a key
	var last *op
	l.client(id, pace, func(r *rand.Rand, o *op) {
		if last != nil && last.known {
			held[last.key] = last.read
			if last.kind == put || last.kind == cas && last.wrote {
				held[last.key] = last.value
			}
		}
		last = o
		n++
		o.key = fmt.Sprintf("reg-%03d-%d", time.Since(l.start)/epoch, r.IntN(registers))
		o.value = fmt.Sprintf("%d.%d", id, n)
		switch p := r.IntN(100); {
		case p < 40:
			o.kind = get
		case p < 65:
			o.kind = put
		case p < 90:
			o.kind, o.old = cas, held[o.key]
		default:
			o.kind = del
		}
	})
}

// unique starts a client that writes each key once, as fast as it is answered.
func (l *load) unique(id int) {
	n := 0
	l.client(id, 0, func(_ *rand.Rand, o *op) {
		n++
		o.kind = put
		o.key = fmt.Sprintf("unique-%d-%07d", id, n)
		o.value = o.key + strings.Repeat("x", 200)
	})
}

package history

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
)

const (
	opTimeout = 3 * time.Second
	// pace keeps histories at a size that can be checked; the load comes from the unique writers.
	pace      = 8 * time.Millisecond
	registers = 4
	epoch     = 5 * time.Second // after this many, registers get new names, so that each search stays short
)

// Load is a set of clients and their recorded operations.
type Load struct {
	start  time.Time
	ctx    context.Context
	cancel context.CancelFunc
	seed   uint64
	wg     sync.WaitGroup

	mu      sync.Mutex
	members []*child.Client
	ops     []Op // of clients that have returned

	// Acked and Unknown count the operations with and without an answer.
	Acked, Unknown atomic.Int64
	lastWrite      atomic.Int64 // nanoseconds since start
	longest        atomic.Int64 // nanoseconds without an acknowledged write
}

// NewLoad returns a load without clients on the given members. seed determines the choices of the clients.
func NewLoad(members []*child.Client, seed uint64) *Load {
	l := &Load{start: time.Now(), members: members, seed: seed}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// Set replaces the members that clients call, beginning with their next call. There must be at least one.
func (l *Load) Set(members []*child.Client) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.members = members
}

// Stop lets every client finish its operation and returns all recorded operations.
func (l *Load) Stop() []Op {
	l.cancel()
	l.wg.Wait()
	return l.ops
}

// Go runs f next to the clients, until it returns; ctx is canceled when the load is stopped.
func (l *Load) Go(f func(ctx context.Context)) { l.wg.Go(func() { f(l.ctx) }) }

// Since is the time since the load was started.
func (l *Load) Since() time.Duration { return time.Since(l.start) }

// Longest is the longest time without an acknowledged write.
func (l *Load) Longest() time.Duration { return time.Duration(l.longest.Load()) }

// Member returns the member at a position, modulo their number.
func (l *Load) Member(i int) *child.Client {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.members[i%len(l.members)]
}

// client runs next in a loop, each time against the member that answered last.
func (l *Load) client(id int, pace time.Duration, next func(r *rand.Rand, o *Op)) {
	r := rand.New(rand.NewPCG(l.seed, uint64(id)))
	l.wg.Go(func() {
		var ops []Op
		member := id
		tick := time.NewTicker(max(pace, time.Microsecond))
		defer tick.Stop()
		for l.ctx.Err() == nil {
			o := Op{client: id}
			next(r, &o)
			sent := l.do(l.Member(member), &o)
			if sent {
				ops = append(ops, o)
			}
			if !o.known {
				member = r.IntN(1 << 16)
				if !sent { // refused immediately: do not spin
					Sleep(l.ctx, 20*time.Millisecond)
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

// Sleep waits for d or until ctx is done.
func Sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// do makes the call of o and records the answer. It returns false if the call was never sent.
func (l *Load) do(c *child.Client, o *Op) (sent bool) {
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
		l.Unknown.Add(1)
		return true
	}
	o.known, o.rev = true, h.Revision
	l.Acked.Add(1)
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

// Mix starts a client that gets, puts, compares-and-swaps and deletes a few keys.
func (l *Load) Mix(id int) {
	n := 0
	held := map[string]string{} // what this client knows about a key
	var last *Op
	l.client(id, pace, func(r *rand.Rand, o *Op) {
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

// Unique starts a client that writes each key once: one per pace, or with a pace of 0 as fast as it gets
// answers.
func (l *Load) Unique(id int, pace time.Duration) {
	n := 0
	l.client(id, pace, func(_ *rand.Rand, o *Op) {
		n++
		o.kind = put
		o.key = fmt.Sprintf("unique-%d-%07d", id, n)
		o.value = o.key + strings.Repeat("x", 200)
	})
}

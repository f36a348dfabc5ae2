package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"quorate/bench/lean"
)

// clients is a set of connections to one side.
type clients struct{ conns []*lean.Conn }

// dial opens n connections, spread evenly over the addresses, each with options o.
func dial(ctx context.Context, addrs []string, n int, o lean.Options) (*clients, error) {
	c := &clients{}
	for i := range n {
		conn, err := lean.Dial(ctx, addrs[i%len(addrs)], o)
		if err != nil {
			c.close()
			return nil, fmt.Errorf("connect: %w", err)
		}
		c.conns = append(c.conns, conn)
	}
	return c, nil
}

func (c *clients) close() {
	for _, conn := range c.conns {
		conn.Close()
	}
}

// abort ends all calls in progress.
func (c *clients) abort(why error) {
	for _, conn := range c.conns {
		conn.Abort(why)
	}
}

// outcome is the result of one load.
type outcome struct {
	ops       int
	elapsed   time.Duration
	latencies []time.Duration // sorted
}

func (o outcome) perSecond() float64 { return float64(o.ops) / o.elapsed.Seconds() }

func (o outcome) percentile(p float64) time.Duration {
	if len(o.latencies) == 0 {
		return 0
	}
	return o.latencies[min(len(o.latencies)-1, int(p*float64(len(o.latencies))))]
}

// callTimeout bounds one request; the slowest legitimate one is a physical compaction.
const callTimeout = 3 * time.Minute

// loop is n clients that send one request after the other.
type loop struct {
	method string
	// request appends the bytes of the seq-th request; sequence numbers are unique over all clients.
	request func(b []byte, seq int) []byte
	// refused tells which errors fail only the request, after which a client pauses for the returned time.
	refused func(err error) (rest time.Duration, ok bool)
	most    int // number of requests; 0: until the time is over

	end  time.Time
	seq  atomic.Int64
	left sync.WaitGroup
}

// looper is one client of a loop. It continues from the callback of an answer, without waking a goroutine.
type looper struct {
	*loop
	conn      *lean.Conn
	call      lean.Call
	mine      int // the number of the request
	began     time.Time
	latencies []time.Duration
	err       error
}

func (l *looper) next() {
	l.began = time.Now()
	l.mine = int(l.seq.Add(1) - 1)
	if !l.began.Before(l.end) || l.most > 0 && l.mine >= l.most {
		l.left.Done()
		return
	}
	if err := l.conn.Start(&l.call, l.method, l.append, true); err != nil {
		l.err = err
		l.left.Done()
	}
}

func (l *looper) append(b []byte) []byte { return l.request(b, l.mine) }

func (l *looper) ended(err error) {
	if err == nil {
		l.latencies = append(l.latencies, time.Since(l.began))
		l.next()
		return
	}
	if l.refused != nil {
		if rest, ok := l.refused(err); ok {
			time.AfterFunc(rest, l.next)
			return
		}
	}
	l.err = err
	l.left.Done()
}

// run runs n clients for d.
func (l *loop) run(ctx context.Context, c *clients, n int, d time.Duration) (outcome, error) {
	defer context.AfterFunc(ctx, func() { c.abort(ctx.Err()) })()
	late := time.AfterFunc(d+callTimeout, func() { c.abort(errors.New("a request takes too long")) })
	defer late.Stop()
	all := make([]looper, n)
	start := time.Now()
	l.end = start.Add(d)
	l.left.Add(n)
	for i := range all {
		all[i].loop, all[i].conn = l, c.conns[i%len(c.conns)]
		all[i].call.OnEnd = all[i].ended
		all[i].next()
	}
	l.left.Wait()
	o := outcome{elapsed: time.Since(start)}
	var errs []error
	for i := range all {
		o.latencies = append(o.latencies, all[i].latencies...)
		errs = append(errs, all[i].err)
	}
	o.ops = len(o.latencies)
	slices.Sort(o.latencies)
	if err := errors.Join(errs...); err != nil {
		return o, err
	}
	if o.ops == 0 {
		return o, errors.New("no request was finished")
	}
	return o, nil
}

// closedLoop has n clients send one request after the other for d.
func closedLoop(ctx context.Context, c *clients, n int, d time.Duration, method string, request func(b []byte, seq int) []byte) (outcome, error) {
	return (&loop{method: method, request: request}).run(ctx, c, n, d)
}

func call(ctx context.Context, conn *lean.Conn, method string, b []byte, r *reply) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	a, err := conn.Do(ctx, method, b, r.keep)
	r.size, r.body = a.Size, a.Body
	return err
}

// pacer sends puts at a fixed rate until it is stopped, whatever the answers' delay: a stall of the member shows
// in the latencies of all requests that were due meanwhile.
type pacer struct {
	stop chan struct{}
	done chan struct{}

	mu        sync.Mutex
	latencies []time.Duration // including refused puts
	failed    int
	err       error // of the first that was refused
}

const pacerClients = 256 // maximum number of requests in flight; beyond it the schedule slips and latency still counts from the due time

func startPacer(c *clients, perSecond int, keys int) *pacer {
	p := &pacer{stop: make(chan struct{}), done: make(chan struct{})}
	slots := make(chan struct{}, pacerClients)
	go func() {
		defer close(p.done)
		var wg sync.WaitGroup
		defer wg.Wait()
		step := time.Second / time.Duration(perSecond)
		due := time.Now()
		timer := time.NewTimer(0)
		defer timer.Stop()
		for i := 0; ; i++ {
			due = due.Add(step)
			timer.Reset(time.Until(due))
			select {
			case <-p.stop:
				return
			case <-timer.C:
			}
			select {
			case <-p.stop:
				return
			case slots <- struct{}{}:
			}
			due := due // of this put; the outer one changes
			wg.Add(1)
			done := func(err error) {
				p.mu.Lock()
				p.latencies = append(p.latencies, time.Since(due))
				if err != nil {
					if p.failed++; p.failed == 1 {
						p.err = err
					}
				}
				p.mu.Unlock()
				<-slots
				wg.Done()
			}
			err := c.conns[i%len(c.conns)].Start(&lean.Call{OnEnd: done}, methodPut, func(b []byte) []byte {
				var key [keySize]byte
				var value [256]byte
				return putRequest(b, keyAt(key[:], "paced", i%keys), valueAt(value[:], uint64(i)))
			}, true)
			if err != nil {
				done(err)
			}
		}
	}()
	return p
}

// finish stops the pacer, waits for requests in flight and returns the sorted latencies. The error is the first
// of a put; the latencies of all are returned anyway.
func (p *pacer) finish() (outcome, error) {
	close(p.stop)
	<-p.done
	slices.Sort(p.latencies)
	if p.err == nil && len(p.latencies) == 0 {
		return outcome{}, errors.New("no paced put was finished")
	}
	return outcome{ops: len(p.latencies), latencies: p.latencies}, p.err
}

const (
	txnOps   = 128     // etcd's default limit on operations in a transaction
	txnBytes = 1 << 20 // stays clear of the 1.5 MiB limit on requests
)

// preload writes keys [from, to) of a data set, many to a transaction.
func preload(ctx context.Context, c *clients, prefix string, from, to, valueSize int, seed uint64) error {
	perTxn := min(txnOps, txnBytes/(keySize+valueSize+16))
	const writers = 16
	var (
		wg   sync.WaitGroup
		next atomic.Int64
		errs = make([]error, writers)
	)
	next.Store(int64(from))
	for w := range writers {
		wg.Go(func() {
			key, value := make([]byte, 0, keySize), make([]byte, valueSize)
			for {
				first := int(next.Add(int64(perTxn))) - perTxn
				if first >= to {
					return
				}
				puts := make([][]byte, 0, perTxn)
				for i := first; i < min(first+perTxn, to); i++ {
					key = keyAt(key, prefix, i)
					puts = append(puts, putRequest(nil, key, valueAt(value, uint64(i)+seed)))
				}
				if errs[w] = call(ctx, c.conns[w%len(c.conns)], methodTxn, txnPuts(puts), &reply{}); errs[w] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("load %s: %w", prefix, err)
	}
	return nil
}

// revision asks for the current revision.
func revision(ctx context.Context, c *clients) (int64, error) {
	r := &reply{keep: true}
	if err := call(ctx, c.conns[0], methodRange, rangeRequest(nil, []byte("any"), rangeOptions{}), r); err != nil {
		return 0, err
	}
	return intField(r.body, 1, 3)
}

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// clients is a set of connections to one side.
type clients struct{ conns []*grpc.ClientConn }

// dial opens n connections, spread evenly over the addresses.
func dial(addrs []string, n int) (*clients, error) {
	c := &clients{}
	for i := range n {
		conn, err := grpc.NewClient("passthrough:///"+addrs[i%len(addrs)],
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(callOptions...),
			grpc.WithInitialWindowSize(1<<20), grpc.WithInitialConnWindowSize(1<<21))
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

// outcome of one load.
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

// closedLoop lets n clients send one request after the other for d. request appends the bytes
// of the seq-th request to b; sequence numbers are unique over all clients.
func closedLoop(ctx context.Context, c *clients, n int, d time.Duration, method string, request func(b []byte, seq int) []byte) (outcome, error) {
	var (
		wg   sync.WaitGroup
		seq  atomic.Int64
		errs = make([]error, n)
		all  = make([][]time.Duration, n)
	)
	start := time.Now()
	end := start.Add(d)
	for i := range n {
		wg.Go(func() {
			conn := c.conns[i%len(c.conns)]
			for {
				began := time.Now()
				if !began.Before(end) {
					return
				}
				// A fresh buffer: grpc may hold on to the bytes after the call has returned.
				b := request(make([]byte, 0, 512), int(seq.Add(1)-1))
				if errs[i] = call(ctx, conn, method, b, &reply{}); errs[i] != nil {
					return
				}
				all[i] = append(all[i], time.Since(began))
			}
		})
	}
	wg.Wait()
	o := outcome{elapsed: time.Since(start)}
	for _, l := range all {
		o.latencies = append(o.latencies, l...)
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

func call(ctx context.Context, conn *grpc.ClientConn, method string, b []byte, r *reply) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return conn.Invoke(ctx, method, b, r)
}

// pacer sends puts at a fixed rate until it is stopped, whatever the answers' delay: a member
// that stands still shows in the latencies of all requests that were due meanwhile.
type pacer struct {
	stop chan struct{}
	done chan struct{}

	mu        sync.Mutex
	latencies []time.Duration // of refused puts too
	failed    int
	err       error // of the first that was refused
}

const pacerClients = 256 // requests under way at most; beyond it the schedule slips and latency still counts from the due time

func startPacer(ctx context.Context, c *clients, perSecond int, keys int) *pacer {
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
			due := due // of this put; the outer one moves on
			wg.Go(func() {
				defer func() { <-slots }()
				b := putRequest(make([]byte, 0, 512), keyAt(make([]byte, 0, keySize), "paced", i%keys), valueAt(make([]byte, 256), uint64(i)))
				err := call(ctx, c.conns[i%len(c.conns)], methodPut, b, &reply{})
				p.mu.Lock()
				defer p.mu.Unlock()
				p.latencies = append(p.latencies, time.Since(due))
				if err != nil {
					if p.failed++; p.failed == 1 {
						p.err = err
					}
				}
			})
		}
	}()
	return p
}

// finish stops the pacer, waits for what is under way and returns the sorted latencies. The error is
// the first of a put, beside the latencies of all.
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

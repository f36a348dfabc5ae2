// Package tcprelay is etcd's gateway: it forwards TCP connections to the members of a
// cluster, without inspecting the bytes. (The JSON gateway is unrelated: package gateway.)
//
// In: the values of the flags; a listener, and the addresses of members with priority and
// weight as in SRV records. Out: each accepted connection joined to one to an endpoint that
// could be dialled, and log lines when endpoints fail and recover. Always true: a
// connection stays with one endpoint until it ends; there are at most as many connections
// as Options allow; after Close returns, no goroutine and no socket is left.
package tcprelay

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"go.uber.org/zap"

	"quorate/internal/clock"
)

// Defaults of the zero Options.
const (
	DefaultRetryDelay = 5 * time.Minute
	DefaultMaxConns   = 65536
	DefaultDialLimit  = 5 * time.Second
	DefaultLinger     = 30 * time.Second
)

// maxPause bounds the wait after an Accept that failed for lack of descriptors or memory.
const maxPause = time.Second

// fullInterval is the minimum interval between two log lines of a relay at its limit.
const fullInterval = time.Minute

// Options of a relay. Zero fields have the default given with them.
type Options struct {
	Endpoints []net.SRV // host names or addresses; required

	RetryDelay time.Duration // between two probes of the endpoints that failed; 5 minutes
	MaxConns   int           // concurrent connections; 65,536. Further ones are closed at once
	DialLimit  time.Duration // for dialling one endpoint; 5 s
	Linger     time.Duration // how long a half-closed connection may be silent; 30 s

	Logger *zap.Logger
	Clock  clock.Clock                                              // nil is the system's
	IntN   func(n int) int                                          // random, in [0, n); called by one goroutine at a time
	Dial   func(ctx context.Context, addr string) (net.Conn, error) // TCP
}

func (o *Options) fill() {
	if o.RetryDelay == 0 {
		o.RetryDelay = DefaultRetryDelay
	}
	if o.MaxConns == 0 {
		o.MaxConns = DefaultMaxConns
	}
	if o.DialLimit == 0 {
		o.DialLimit = DefaultDialLimit
	}
	if o.Linger == 0 {
		o.Linger = DefaultLinger
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.Clock == nil {
		o.Clock = clock.Real{}
	}
	if o.IntN == nil {
		o.IntN = rand.IntN
	}
	if o.Dial == nil {
		o.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		}
	}
}

// Relay forwards connections. It is safe for concurrent use; Serve may be called once.
type Relay struct {
	o   Options
	lg  *zap.Logger
	ctx context.Context // cancelled by Close, together with every dial

	wg sync.WaitGroup // goroutines of connections and of a round of probes

	mu        sync.Mutex
	cancel    context.CancelFunc
	closed    bool
	stopProbe func() bool
	listener  net.Listener
	conns     map[net.Conn]struct{} // accepted and dialled connections; closed by Close
	busy      int                   // accepted connections
	saidFull  time.Time
	endpoints endpoints
}

// New returns a relay that is ready for Serve.
func New(o Options) *Relay {
	o.fill()
	ctx, cancel := context.WithCancel(context.Background())
	return &Relay{
		o: o, lg: o.Logger, ctx: ctx, cancel: cancel,
		conns: map[net.Conn]struct{}{}, endpoints: newEndpoints(o.Endpoints, o.IntN),
	}
}

// Serve accepts connections until Close, and then returns nil, or until the listener fails.
// It owns the listener.
func (r *Relay) Serve(l net.Listener) error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return l.Close()
	}
	r.listener = l
	r.lg.Info("ready to proxy client requests", zap.Strings("endpoints", r.endpoints.addrs()))
	r.armProbe()
	r.mu.Unlock()
	pause := time.Duration(0)
	for {
		c, err := l.Accept()
		if err == nil {
			pause = 0
			r.take(c)
			continue
		}
		if r.ctx.Err() != nil {
			return nil
		}
		// Descriptors and memory become available when other connections end; a client that
		// has already disconnected is no reason to stop either.
		if passing := (interface{ Temporary() bool })(nil); !errors.As(err, &passing) || !passing.Temporary() {
			return fmt.Errorf("accept connections on %s: %w", l.Addr(), err)
		}
		pause = min(max(2*pause, 5*time.Millisecond), maxPause)
		r.lg.Warn("failed to accept a connection", zap.Duration("retry-after", pause), zap.Error(err))
		select {
		case <-clock.After(pause):
		case <-r.ctx.Done():
		}
	}
}

// Close stops the relay and closes all its connections.
func (r *Relay) Close() {
	r.mu.Lock()
	if !r.closed {
		r.closed = true
		r.cancel()
		if r.stopProbe != nil {
			r.stopProbe()
		}
		if r.listener != nil {
			r.listener.Close()
		}
		for c := range r.conns {
			c.Close()
		}
	}
	r.mu.Unlock()
	r.wg.Wait()
}

// take starts a goroutine for an accepted connection if the limit allows.
func (r *Relay) take(c net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		c.Close()
		return
	}
	if r.busy >= r.o.MaxConns {
		c.Close() // closed rather than left waiting: its client has other endpoints
		if now := r.o.Clock.Now(); r.saidFull.IsZero() || now.Sub(r.saidFull) >= fullInterval {
			r.saidFull = now
			r.lg.Warn("too many connections; closing new ones", zap.Int("connections", r.busy), zap.String("remote-addr", c.RemoteAddr().String()))
		}
		return
	}
	r.busy++
	r.conns[c] = struct{}{}
	r.wg.Add(1)
	go func() {
		defer r.wg.Done()
		r.serve(c)
		c.Close()
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.conns, c)
		r.busy--
	}()
}

// serve joins a client to the first endpoint that can be dialled.
func (r *Relay) serve(client net.Conn) {
	var tried []*endpoint
	for {
		r.mu.Lock()
		e := r.endpoints.pick(r.o.Clock.Now(), tried)
		r.mu.Unlock()
		if e == nil {
			return
		}
		tried = append(tried, e)
		c, err := r.dial(e)
		if err != nil {
			if r.ctx.Err() != nil {
				return
			}
			continue
		}
		join(client, c, r.o.Linger)
		r.mu.Lock()
		delete(r.conns, c)
		r.mu.Unlock()
		return
	}
}

// dial connects to an endpoint and records the outcome. Close closes the connection; the
// caller deletes it from conns.
func (r *Relay) dial(e *endpoint) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(r.ctx, r.o.DialLimit)
	defer cancel()
	c, err := r.o.Dial(ctx, e.addr)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		if err == nil {
			c.Close()
		}
		return nil, net.ErrClosed
	case err != nil && ownFault(err):
		r.lg.Warn("failed to dial an endpoint for want of resources", zap.String("address", e.addr), zap.Error(err))
		return nil, err
	case err != nil:
		if e.failed(r.o.Clock.Now()) {
			r.lg.Warn("deactivated endpoint", zap.String("address", e.addr), zap.Duration("interval", r.o.RetryDelay), zap.Error(err))
		}
		return nil, err
	}
	if e.answered() {
		r.lg.Info("activated", zap.String("address", e.addr))
	}
	r.conns[c] = struct{}{}
	return c, nil
}

// armProbe schedules the next round of probes. The lock must be held.
func (r *Relay) armProbe() {
	r.stopProbe = r.o.Clock.AfterFunc(r.o.RetryDelay, r.probe)
}

// probe dials all failed endpoints at once, and schedules the next round when the last of
// them has answered or timed out.
func (r *Relay) probe() {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return
	}
	inactive := r.endpoints.inactive()
	r.wg.Add(1)
	defer r.wg.Done()
	r.mu.Unlock()

	var round sync.WaitGroup
	for _, e := range inactive {
		round.Go(func() {
			c, err := r.dial(e)
			if err == nil {
				c.Close()
				r.mu.Lock()
				delete(r.conns, c)
				r.mu.Unlock()
			} else if r.ctx.Err() == nil {
				r.lg.Warn("failed to activate endpoint (stay inactive for another interval)",
					zap.String("address", e.addr), zap.Duration("interval", r.o.RetryDelay), zap.Error(err))
			}
		})
	}
	round.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.armProbe()
	}
}

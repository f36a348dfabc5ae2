package h2

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"quorate/internal/clock"

	"google.golang.org/grpc/mem"
)

// Keepalive configures pings in both directions. Zero fields mean gRPC's defaults.
type Keepalive struct {
	MinTime time.Duration // minimum interval between a client's pings
	Time    time.Duration // silence after which the server pings
	Timeout time.Duration // time a client has to answer a ping
}

// Options configures a Server. Zero numbers mean grpc-go's defaults.
type Options struct {
	// MaxMessage is the largest message a client may send, in bytes; 0 means 4 MiB.
	MaxMessage int
	// MaxStreams limits the concurrent calls of one connection, and the handlers
	// running for it; 0 means no limit.
	MaxStreams uint32
	// MaxHeaders limits the header list of a call, in bytes as HTTP/2 counts them;
	// 0 means 16 MiB.
	MaxHeaders uint32
	Keepalive  Keepalive
	// Workers is the number of goroutines that wait for unary calls. Their stacks
	// have already grown. Calls that find no idle worker run on a new goroutine.
	Workers int
}

// Unary handles one request. The handler owns req; the server frees the reply.
type Unary func(s *Stream, req []byte) (Reply, error)

// Reply is the answer to a unary call: buffers, a message that encodes itself, or a
// message that is produced while it is being sent.
type Reply struct {
	Pieces mem.BufferSlice
	// Small, if set, is the message; it encodes to at most Size bytes, straight into
	// the connection's write buffer when that is possible.
	Small Appender
	// Source, if set, produces the message of exactly Size bytes.
	Source Source
	Size   int
}

// Source produces a message piece by piece. If it fails the stream is reset: the
// client already has part of the message, so no status can follow.
type Source interface {
	// Next returns the next piece, which is valid until the next call, and whether
	// the piece after it is immediately available, so that both can be written
	// together. It is not called after the last piece.
	Next() (piece []byte, soon bool, err error)
	// Close is called once, when the call ends.
	Close()
}

// Len returns the length of the message (for Small, its upper bound).
func (r Reply) Len() int {
	if r.Small != nil || r.Source != nil {
		return r.Size
	}
	return r.Pieces.Len()
}

// Streaming handles a streaming call. Its error becomes the status of the call.
type Streaming func(s *Stream) error

type method struct {
	unary  Unary // exactly one of the two is set
	stream Streaming
}

// ErrServerStopped is returned by Serve after Stop or GracefulStop.
var ErrServerStopped = errors.New("h2: the server has been stopped")

// Server serves connections. All methods must be added before the first connection.
type Server struct {
	o        Options
	methods  map[string]*method
	services map[string]bool
	work     chan *Stream
	done     chan struct{} // closed by Stop
	handlers sync.WaitGroup
	common   atomic.Pointer[parsed]

	mu        sync.Mutex
	empty     *sync.Cond // signaled when a connection has ended
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	locals    []*Local
	draining  bool
	stopped   bool
}

// New returns a server without methods.
func New(o Options) *Server {
	if o.MaxMessage == 0 {
		o.MaxMessage = 4 << 20
	}
	if o.MaxStreams == 0 {
		o.MaxStreams = unboundedStreams
	}
	if o.MaxHeaders == 0 {
		o.MaxHeaders = 16 << 20
	}
	if o.Keepalive.MinTime == 0 {
		o.Keepalive.MinTime = defaultKeepaliveMinTime
	}
	if o.Keepalive.Time == 0 {
		o.Keepalive.Time = defaultKeepaliveTime
	}
	if o.Keepalive.Timeout == 0 {
		o.Keepalive.Timeout = defaultKeepaliveTimeout
	}
	srv := &Server{
		o:         o,
		methods:   make(map[string]*method),
		services:  make(map[string]bool),
		work:      make(chan *Stream),
		done:      make(chan struct{}),
		listeners: make(map[net.Listener]struct{}),
		conns:     make(map[*conn]struct{}),
	}
	srv.empty = sync.NewCond(&srv.mu)
	for range o.Workers {
		go srv.worker()
	}
	return srv
}

// HandleUnary registers a unary method under its full name, /service/method.
func (srv *Server) HandleUnary(path string, f Unary) { srv.add(path, &method{unary: f}) }

// HandleStream registers a streaming method under its full name.
func (srv *Server) HandleStream(path string, f Streaming) { srv.add(path, &method{stream: f}) }

func (srv *Server) add(path string, m *method) {
	srv.methods[path] = m
	srv.services[strings.TrimPrefix(path[:strings.LastIndexByte(path, '/')], "/")] = true
}

// Serve accepts connections on l until Accept fails or the server is stopped. It
// closes l.
func (srv *Server) Serve(l net.Listener) error {
	srv.mu.Lock()
	if srv.draining || srv.stopped {
		srv.mu.Unlock()
		l.Close()
		return ErrServerStopped
	}
	srv.listeners[l] = struct{}{}
	srv.mu.Unlock()
	defer func() {
		srv.mu.Lock()
		delete(srv.listeners, l)
		srv.mu.Unlock()
		l.Close()
	}()
	var pause time.Duration
	for {
		nc, err := l.Accept()
		if err == nil {
			pause = 0
			go srv.ServeConn(nc)
			continue
		}
		if srv.ending() {
			return ErrServerStopped
		}
		var temporary interface{ Temporary() bool }
		if !errors.As(err, &temporary) || !temporary.Temporary() {
			return err
		}
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		select { // probably out of file descriptors
		case <-clock.After(pause):
		case <-srv.done:
			return ErrServerStopped
		}
	}
}

func (srv *Server) ending() bool {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	return srv.draining || srv.stopped
}

// ServeConn serves one connection whose client preface has not been read yet, and
// closes it.
func (srv *Server) ServeConn(nc net.Conn) {
	c := newConn(srv, nc)
	srv.mu.Lock()
	if srv.draining || srv.stopped {
		srv.mu.Unlock()
		nc.Close()
		return
	}
	srv.conns[c] = struct{}{}
	srv.mu.Unlock()
	newReceiver(c).serve()
	srv.mu.Lock()
	delete(srv.conns, c)
	srv.empty.Broadcast()
	srv.mu.Unlock()
}

// Stop closes all connections, which cancels their calls. It does not wait for
// handlers.
func (srv *Server) Stop() {
	srv.end(true)
	srv.mu.Lock()
	for c := range srv.conns {
		go c.close(ErrServerStopped)
	}
	for _, l := range srv.locals {
		go l.Close()
	}
	srv.mu.Unlock()
	srv.awaitConns()
}

// GracefulStop accepts no more connections and calls, and returns when those in
// progress have ended. Stop interrupts it.
func (srv *Server) GracefulStop() {
	srv.end(false)
	srv.awaitConns()
	srv.handlers.Wait() // no connection is left that could start another
	srv.end(true)
}

func (srv *Server) end(now bool) {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	for l := range srv.listeners {
		l.Close()
	}
	if !srv.draining && !now {
		for c := range srv.conns {
			go c.drain("graceful_stop")
		}
	}
	if now && !srv.stopped {
		close(srv.done)
	}
	srv.draining, srv.stopped = true, srv.stopped || now
	srv.empty.Broadcast()
}

func (srv *Server) awaitConns() {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	for len(srv.conns) > 0 {
		srv.empty.Wait()
	}
}

// worker runs unary calls until the server stops.
func (srv *Server) worker() {
	for {
		select {
		case s := <-srv.work:
			srv.handle(s, s.runUnary)
		case <-srv.done:
			return
		}
	}
}

// dispatch runs a call on another goroutine.
func (srv *Server) dispatch(s *Stream) {
	srv.handlers.Add(1)
	if s.method.stream != nil {
		go srv.handle(s, s.run)
		return
	}
	select {
	case srv.work <- s:
	default:
		go srv.handle(s, s.runUnary)
	}
}

// handle runs a call and releases its resources.
func (srv *Server) handle(s *Stream, run func()) {
	run()
	s.cancel(context.Canceled)
	s.t.handlerEnded()
	srv.handlers.Done()
}

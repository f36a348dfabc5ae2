package h2

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"time"

	"quorate/internal/clock"

	"google.golang.org/grpc/mem"
)

// Keepalive says who pings when. Zero fields mean gRPC's own.
type Keepalive struct {
	MinTime time.Duration // the least time between two pings of a client
	Time    time.Duration // how long a connection may be silent before it is pinged
	Timeout time.Duration // how long it may take to answer
}

// Options of a Server. The zero value of each number stands for grpc-go's default.
type Options struct {
	// MaxMessage bounds a message of a client, in bytes; 0 is 4 MiB.
	MaxMessage int
	// MaxStreams bounds the calls of one connection that are in progress, and the
	// handlers that run for it; 0 is no bound.
	MaxStreams uint32
	// MaxHeaders bounds the headers of a call, in bytes as HTTP/2 counts them; 0 is
	// 16 MiB.
	MaxHeaders uint32
	Keepalive  Keepalive
	// Workers is how many goroutines wait for unary calls, with stacks that have
	// grown already; calls beyond that get fresh ones. 0 is none.
	Workers int
}

// Unary answers a request. req belongs to it; the server frees the answer.
type Unary func(s *Stream, req []byte) (Reply, error)

// Reply is the answer to a request: pieces, a message that encodes itself, or one
// that is made while it is sent.
type Reply struct {
	Pieces mem.BufferSlice
	// Small, if set, is the message, of Size bytes. It is encoded where it waits for
	// the socket if that can be.
	Small Appender
	// Source, if set, makes the message, of Size bytes.
	Source Source
	Size   int
}

// Source makes a message piece by piece. When it fails, the stream is reset: the
// client has a part of the message already, so there is no status any more.
type Source interface {
	// Next returns the next piece, which the caller has until it calls again, and
	// whether the one after that is at hand, so that both may go out together. It is
	// not called after the last.
	Next() (piece []byte, soon bool, err error)
	// Close is called once, at the end of the call.
	Close()
}

// Len is the length of the message.
func (r Reply) Len() int {
	if r.Small != nil || r.Source != nil {
		return r.Size
	}
	return r.Pieces.Len()
}

// Streaming carries out a call. The error it returns is the status of the call.
type Streaming func(s *Stream) error

type method struct {
	unary  Unary // or
	stream Streaming
}

// ErrServerStopped is returned by Serve after Stop or GracefulStop.
var ErrServerStopped = errors.New("h2: the server has been stopped")

// Server serves connections. Methods are added before the first is served.
type Server struct {
	o        Options
	methods  map[string]*method
	services map[string]bool
	work     chan *Stream
	done     chan struct{} // closed when nothing more comes
	handlers sync.WaitGroup

	mu        sync.Mutex
	empty     *sync.Cond // a connection has ended
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	draining  bool
	stopped   bool
}

// New returns a server that has no methods yet.
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

// HandleUnary adds a method of one request and one answer by its full name,
// /service/method.
func (srv *Server) HandleUnary(path string, f Unary) { srv.add(path, &method{unary: f}) }

// HandleStream adds a method of any number of messages each way.
func (srv *Server) HandleStream(path string, f Streaming) { srv.add(path, &method{stream: f}) }

func (srv *Server) add(path string, m *method) {
	srv.methods[path] = m
	srv.services[strings.TrimPrefix(path[:strings.LastIndexByte(path, '/')], "/")] = true
}

// Serve serves the connections of l until it fails, or the server is stopped; l
// is closed then.
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
		select { // files have run out, perhaps
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

// ServeConn serves one connection, whose client has yet to send its preface, and
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
	c.serve()
	srv.mu.Lock()
	delete(srv.conns, c)
	srv.empty.Broadcast()
	srv.mu.Unlock()
}

// Stop closes all connections, which cancels their calls. It does not wait for
// the handlers.
func (srv *Server) Stop() {
	srv.end(true)
	srv.mu.Lock()
	for c := range srv.conns {
		go c.close(ErrServerStopped)
	}
	srv.mu.Unlock()
	srv.awaitConns()
}

// GracefulStop takes no more connections and calls, and returns when those in
// progress have ended. Stop cuts it short.
func (srv *Server) GracefulStop() {
	srv.end(false)
	srv.awaitConns()
	srv.handlers.Wait() // no connection is left to start another
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

// worker answers unary calls.
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

// dispatch has a call carried out on another goroutine.
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

// handle carries out a call.
func (srv *Server) handle(s *Stream, run func()) {
	run()
	s.cancel(context.Canceled)
	s.t.handlerEnded()
	srv.handlers.Done()
}

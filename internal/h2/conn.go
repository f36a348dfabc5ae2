package h2

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"

	"quorate/internal/clock"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// conn is one connection: what its reader, its handlers and its timers share. receiver
// has the state of the reading goroutine.
type conn struct {
	srv    *Server
	nc     net.Conn
	values context.Context // carries the peer

	mu       sync.Mutex
	err      error // why the connection was closed; nil while it is open
	streams  streams
	maxID    uint32 // highest stream ID the client has opened
	handlers uint32
	quota    sync.Cond // signaled when a handler returns or w.controls shrinks

	w         flusher
	in        recvWindows
	out       sendWindows
	fields    fieldLimits
	deadlines deadlines

	drain1, drain2 bool          // the first and the final GOAWAY have been sent
	drainAck       chan struct{} // closed when the client has acknowledged the first GOAWAY; nil until that is sent
	alive          keepalive
	pings          pingPolicy
}

// streams are the open streams of a connection. Many connections never have more than one
// at a time, which needs no map.
type streams struct {
	one  *Stream
	more map[uint32]*Stream
}

func (t *streams) get(id uint32) *Stream {
	if t.one != nil && t.one.id == id {
		return t.one
	}
	return t.more[id]
}

func (t *streams) add(s *Stream) {
	if t.one == nil {
		t.one = s
		return
	}
	if t.more == nil {
		t.more = make(map[uint32]*Stream)
	}
	t.more[s.id] = s
}

func (t *streams) remove(id uint32) {
	if t.one != nil && t.one.id == id {
		t.one = nil
		return
	}
	delete(t.more, id)
}

func (t *streams) len() int {
	if t.one == nil {
		return len(t.more)
	}
	return len(t.more) + 1
}

// all calls f for each of them, until it returns false.
func (t *streams) all(f func(*Stream) bool) {
	if t.one != nil && !f(t.one) {
		return
	}
	for _, s := range t.more {
		if !f(s) {
			return
		}
	}
}

func newConn(srv *Server, nc net.Conn) *conn {
	p := &peer.Peer{Addr: nc.RemoteAddr(), LocalAddr: nc.LocalAddr()}
	c := &conn{srv: srv, nc: nc, values: peer.NewContext(context.Background(), p),
		out: sendWindows{conn: defaultWindow, initial: defaultWindow}, fields: fieldLimits{maxList: -1}}
	c.in.w = &c.w
	c.w.buf = make([]byte, 0, firstBuffer)
	c.w.direct, c.w.gatherer = socketOf(nc), gathererOf(nc)
	c.quota.L = &c.mu
	return c
}

// beforeRead is called before a read that may block: all buffered input has been
// handled. It starts a flush, and blocks while too many control frames are pending.
func (c *conn) beforeRead() {
	c.mu.Lock()
	if len(c.w.buf) > 0 && !c.w.busy {
		// Never write here: a client that writes without reading would stop this reader.
		c.w.busy = true
		go c.flushOwned()
	}
	for c.w.controls > controlBytes && c.err == nil {
		c.quota.Wait()
	}
	c.mu.Unlock()
}

func (c *conn) stream(id uint32) *Stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.streams.get(id)
}

// waitForHandlers blocks the reader while MaxStreams handlers are running. Open
// streams are limited separately, but the handler of a reset stream may still run.
func (c *conn) waitForHandlers() {
	for c.handlers >= c.srv.o.MaxStreams && c.err == nil {
		c.quota.Wait()
	}
}

func (c *conn) handlerEnded() {
	c.mu.Lock()
	c.handlers--
	if c.handlers+1 >= c.srv.o.MaxStreams {
		c.quota.Broadcast()
	}
	c.mu.Unlock()
}

// resetStream ends a stream with an HTTP/2 error code.
func (c *conn) resetStream(id uint32, code errCode) {
	if s := c.stream(id); s != nil {
		c.endStream(s, true, code, context.Canceled)
		return
	}
	c.mu.Lock()
	c.w.control(func(b []byte) []byte { return appendReset(b, id, code) })
	c.mu.Unlock()
}

// endStream closes a stream, with RST_STREAM if rst is set, and cancels the context
// of its handler.
func (c *conn) endStream(s *Stream, rst bool, code errCode, why error) {
	c.mu.Lock()
	if !s.flow.done {
		c.forget(s)
		if rst {
			c.w.control(func(b []byte) []byte { return appendReset(b, s.id, code) })
			c.flushElsewhere()
		}
	}
	c.mu.Unlock()
	s.cancel(why)
}

// forget removes a stream from the connection. c.mu must be held.
func (c *conn) forget(s *Stream) {
	s.flow.done = true
	c.streams.remove(s.id)
	c.deadlines.remove(s)
	c.in.dropUnread(s)
	c.in.withdraw(s)
	c.out.wake(s)
	if c.drain2 && c.streams.len() == 0 {
		c.closeWhenWritten()
	}
}

// close closes the connection and cancels all its calls.
func (c *conn) close(err error) {
	if err == nil {
		err = io.EOF
	}
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	open := c.streams
	c.streams = streams{}
	for s := range open.all {
		s.flow.done, s.flow.due = true, 0
		c.out.wake(s)
	}
	c.out.waiting, c.in.wanting, c.deadlines.heap = nil, nil, nil
	c.deadlines.stop()
	c.quota.Broadcast()
	c.alive.stop()
	c.drainSeen()
	writing := c.w.busy
	c.mu.Unlock()
	if writing && c.w.gatherer != nil {
		c.w.gatherer.Close() // the writer may wait for the client; TLS would wait for the writer to say good-bye
	}
	c.nc.Close()
	for s := range open.all {
		s.cancel(context.Canceled)
		s.in.end(status.Error(codes.Canceled, context.Canceled.Error()))
	}
}

// abort sends a GOAWAY with the reason and reads on for a moment before the caller
// closes the connection: closing with unread data would make the kernel discard the
// GOAWAY.
func (c *conn) abort(e *connError) {
	c.nc.SetDeadline(clock.Now().Add(lingerTimeout))
	c.mu.Lock()
	c.w.buf = appendGoAway(c.w.buf, c.maxID, e.code, e.text)
	for c.w.busy && c.err == nil {
		c.quota.Wait()
	}
	c.flush()
	c.mu.Unlock()
	var end any = c.nc
	if c.w.direct != nil {
		end = c.w.direct // connections around the socket do not have the method
	}
	if half, ok := end.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		io.CopyN(io.Discard, c.nc, connWindow)
	}
}

var (
	errClosing     = status.Error(codes.Unavailable, "transport is closing")
	errDrained     = errors.New("h2: the connection was drained")
	errHeaderSent  = status.Error(codes.Internal, "transport: the stream is done or WriteHeader was already called")
	errHeaderTwice = status.Error(codes.Internal, "transport: SendHeader called multiple times")
	errHeaderList  = status.Error(codes.Internal, "transport: trying to send header list size larger than the limit set by peer")
)

package h2

import (
	"context"
	"io"
	"math"
	"net"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"quorate/internal/clock"
)

// Local is a client within the process. Its calls reach the handlers without a connection,
// within the limits that a connection has. Safe for concurrent use.
type Local struct {
	srv    *Server
	values context.Context // carries the peer
	slots  chan struct{}   // one element for each call; bounded like the streams of a connection

	mu     sync.Mutex
	calls  map[*LocalCall]struct{}
	closed bool
}

// NewLocal returns a client whose calls come from addr.
func (srv *Server) NewLocal(addr net.Addr) *Local {
	l := &Local{srv: srv, values: peer.NewContext(context.Background(), &peer.Peer{Addr: addr, LocalAddr: addr}),
		slots: make(chan struct{}, min(srv.o.MaxStreams, math.MaxInt32)), calls: make(map[*LocalCall]struct{})}
	srv.mu.Lock()
	defer srv.mu.Unlock()
	srv.locals = append(srv.locals, l)
	return l
}

// Close ends all calls. Later ones fail.
func (l *Local) Close() {
	l.mu.Lock()
	l.closed = true
	calls := l.calls
	l.calls = nil
	l.mu.Unlock()
	for c := range calls {
		c.end(errClosing, context.Canceled)
	}
}

// LocalCall is one call of a Local. The client's methods are Send, CloseSend, Recv, Header and
// Trailer; Send and Recv may each be used by one goroutine. The call ends with its context.
type LocalCall struct {
	local *Local
	s     *Stream
	stop  func() bool // stops watching the context

	mu         sync.Mutex
	changed    sync.Cond
	header     metadata.MD
	trailer    metadata.MD
	headerSent bool
	bare       bool // the status came without a header
	done       bool
	err        error    // how it ended; nil means success
	queue      [][]byte // messages for the client
	queued     int      // bytes of them
	unread     int      // bytes of the client's messages that the handler has not taken
}

// NewCall starts a call of a method with a full name. md is its metadata, as a server sees it,
// and belongs to the call. A unary call waits for Send and CloseSend.
func (l *Local) NewCall(ctx context.Context, path string, md metadata.MD) (*LocalCall, error) {
	if size := listSize(path, md); size > int64(l.srv.o.MaxHeaders) {
		return nil, status.Errorf(codes.Internal, "header list size to send violates the maximum size (%d bytes) set by server", l.srv.o.MaxHeaders)
	}
	deadline, limited := ctx.Deadline()
	if limited && clock.Until(deadline) <= 0 { // the timer of ctx may be late
		return nil, errDeadline
	}
	select {
	case l.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, statusOf(ctx.Err()).Err()
	}
	c := &LocalCall{local: l}
	c.changed.L = &c.mu
	c.s = &Stream{srv: l.srv, t: c, req: request{path: path, md: md}, method: l.srv.methods[path]}
	c.s.in.max = l.srv.o.MaxMessage
	c.s.values = metadata.NewIncomingContext(l.values, md)
	c.s.deadline = deadline
	if !l.add(c) {
		<-l.slots
		return nil, errClosing
	}
	c.stop = context.AfterFunc(ctx, func() { c.end(statusOf(ctx.Err()).Err(), ctx.Err()) })
	switch m := c.s.method; {
	case m == nil:
		c.finish(c.s, l.srv.unknown(path))
		l.srv.handle(c.s, func() {})
	case m.stream != nil:
		go l.srv.handle(c.s, c.s.run)
	}
	return c, nil
}

// add registers a call, with the server and here, unless one of them is closing.
func (l *Local) add(c *LocalCall) bool {
	l.srv.mu.Lock()
	defer l.srv.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.srv.draining || l.srv.stopped || l.closed {
		return false
	}
	l.calls[c] = struct{}{}
	l.srv.handlers.Add(1)
	return true
}

// listSize is the size of the headers that the call would have on a connection.
func listSize(path string, md metadata.MD) int64 {
	var l fieldList
	l.count(":method", "POST")
	l.count(":scheme", "http")
	l.count(":path", path)
	l.count("te", "trailers")
	for name, values := range md {
		for _, v := range values {
			l.count(name, v)
		}
	}
	return l.size
}

// Send sends a message, which the server owns from then on. It blocks while the handler has
// not taken earlier ones, and returns io.EOF if the call has ended; Recv has the reason.
func (c *LocalCall) Send(msg []byte) error {
	c.mu.Lock()
	for c.unread > streamWindow && !c.done {
		c.changed.Wait()
	}
	c.unread += prefixLen + len(msg)
	done := c.done
	c.mu.Unlock()
	if done {
		return io.EOF
	}
	c.s.in.put(msg)
	return nil
}

// CloseSend says that no more messages follow. It runs the handler of a unary call: on this
// goroutine, unless the call has a deadline, which not every handler watches.
func (c *LocalCall) CloseSend() {
	c.s.in.end(io.EOF)
	m := c.s.method
	if m == nil || m.unary == nil {
		return
	}
	run := func() { c.local.srv.handle(c.s, c.s.runUnary) }
	if !c.s.deadline.IsZero() {
		go run()
		return
	}
	run()
}

// Recv returns the next message, which the caller owns, or how the call ended: io.EOF for
// success, or the error of a status.
func (c *LocalCall) Recv() ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.queue) == 0 && !c.done {
		c.changed.Wait()
	}
	if len(c.queue) == 0 {
		if c.err != nil {
			return nil, c.err
		}
		return nil, io.EOF
	}
	b := c.queue[0]
	c.queue[0] = nil
	c.queue = c.queue[1:]
	c.queued -= len(b)
	c.changed.Broadcast()
	return b, nil
}

// Header waits for the header; nil if the call ended without one.
func (c *LocalCall) Header() metadata.MD {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.headerSent && !c.done {
		c.changed.Wait()
	}
	if c.bare || !c.headerSent {
		return nil
	}
	return metadata.Join(metadata.MD{"content-type": {baseContentType}}, c.header)
}

// Trailer returns the trailer of a call that has ended.
func (c *LocalCall) Trailer() metadata.MD {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bare {
		return metadata.Join(metadata.MD{"content-type": {baseContentType}}, c.trailer)
	}
	return c.trailer
}

// end ends the call for both sides; only the first end counts.
func (c *LocalCall) end(err, why error) {
	c.mu.Lock()
	if !c.done {
		c.done, c.err, c.queue = true, err, nil
		c.changed.Broadcast()
	}
	c.mu.Unlock()
	c.s.cancel(why)
	c.s.in.end(c.s.ended())
}

func (c *LocalCall) setHeader(_ *Stream, md metadata.MD) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.headerSent || c.done {
		return errHeaderSent
	}
	c.header = metadata.Join(c.header, md)
	return nil
}

func (c *LocalCall) setTrailer(_ *Stream, md metadata.MD) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.trailer = metadata.Join(c.trailer, md)
}

func (c *LocalCall) sendHeader(s *Stream, md metadata.MD) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.done:
		return s.ended()
	case c.headerSent:
		return errHeaderTwice
	}
	c.header, c.headerSent = metadata.Join(c.header, md), true
	c.changed.Broadcast()
	return nil
}

func (c *LocalCall) send(s *Stream, _ [prefixLen]byte, msg mem.BufferSlice, _ bool) error {
	b := msg.Materialize()
	msg.Free()
	return c.deliver(s, b)
}

// deliver queues a message for the client. It blocks while the client leaves too much unread.
func (c *LocalCall) deliver(s *Stream, b []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.queued >= outBytes && !c.done {
		c.changed.Wait()
	}
	if c.done {
		return s.ended()
	}
	c.headerSent = true
	c.queue = append(c.queue, b)
	c.queued += len(b)
	c.changed.Broadcast()
	return nil
}

func (c *LocalCall) sendInPlace(_ *Stream, _ Run, i, _ int, _ bool) (int, error) { return i, nil }

func (c *LocalCall) reply(s *Stream, prefix [prefixLen]byte, msg mem.BufferSlice) {
	if c.send(s, prefix, msg, false) == nil {
		c.finish(s, okStatus)
	}
}

func (c *LocalCall) answer(*Stream, []byte, int, Answer) bool { return false }

func (c *LocalCall) replyInPlace(s *Stream, m Appender, size int) bool {
	if c.deliver(s, m.AppendTo(make([]byte, 0, size))) == nil {
		c.finish(s, okStatus)
	}
	return true
}

func (c *LocalCall) replyFrom(s *Stream, _ [prefixLen]byte, src Source, size int) {
	b := make([]byte, 0, size)
	for len(b) < size {
		piece, _, err := src.Next()
		if err != nil || len(piece) == 0 || len(piece) > size-len(b) {
			c.finish(s, status.New(codes.Internal, "stream terminated by RST_STREAM with error code: INTERNAL_ERROR"))
			return
		}
		b = append(b, piece...)
	}
	if c.deliver(s, b) == nil {
		c.finish(s, okStatus)
	}
}

func (c *LocalCall) finish(s *Stream, st *status.Status) {
	c.mu.Lock()
	if !c.done {
		c.done, c.err = true, st.Err()
		c.bare = !c.headerSent && len(c.header) == 0
		c.headerSent = true
		c.changed.Broadcast()
	}
	c.mu.Unlock()
	s.cancel(context.Canceled)
}

func (c *LocalCall) taken(_ *Stream, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unread -= n
	c.changed.Broadcast()
}

func (c *LocalCall) handlerEnded() {
	c.stop()
	c.local.mu.Lock()
	delete(c.local.calls, c)
	c.local.mu.Unlock()
	<-c.local.slots
}

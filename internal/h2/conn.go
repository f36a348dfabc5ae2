package h2

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"quorate/internal/clock"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// conn is one connection. The fields above mu are used only by the goroutine that
// runs serve.
type conn struct {
	srv    *Server
	nc     net.Conn
	values context.Context // carries the peer

	r        *frameReader
	block    *headerBlock
	blockOf  uint32 // stream of the header block being received; 0: none
	blockEnd bool   // the block has END_STREAM
	requests requests
	lastMD   metadataContext
	empties  int // empty DATA frames in a row
	unacked  int // bytes received that the connection's window has not been given back
	pings    pingPolicy

	mu       sync.Mutex
	err      error // why the connection was closed; nil while it is open
	streams  map[uint32]*Stream
	maxID    uint32 // highest stream ID the client has opened
	handlers uint32
	quota    *sync.Cond // signaled when a handler returns or w.controls shrinks
	held     int        // bytes received that no handler has taken yet
	extended int        // window granted beyond the normal windows of streams
	wanting  []*Stream  // streams waiting for such an extension, in order

	w flusher

	window        int64 // connection send window
	initialWindow int64 // initial send window of each stream; a stream adds its own credit
	windowless    int   // number of streams waiting for send window
	maxHeaders    int64 // the client's header list limit; -1: none
	tableShrunk   bool  // the client changed its table size; the next block must start with a size update
	waiting       []*Stream
	deadlines     deadlines

	drain1, drain2 bool          // the first and the final GOAWAY have been sent
	drainAck       chan struct{} // closed when the client has acknowledged the first GOAWAY
	alive          keepalive
}

// metadataContext caches the context made for the last metadata: consecutive calls
// of a client mostly share theirs.
type metadataContext struct {
	md  metadata.MD
	ctx context.Context
}

func newConn(srv *Server, nc net.Conn) *conn {
	p := &peer.Peer{Addr: nc.RemoteAddr(), LocalAddr: nc.LocalAddr()}
	c := &conn{srv: srv, nc: nc, values: peer.NewContext(context.Background(), p),
		block: newHeaderBlock(int(srv.o.MaxHeaders)), streams: make(map[uint32]*Stream),
		window: defaultWindow, initialWindow: defaultWindow, maxHeaders: -1, drainAck: make(chan struct{})}
	c.quota = sync.NewCond(&c.mu)
	c.r = newFrameReader(nc, c.beforeRead, c.alive.read)
	return c
}

// serve reads frames until the connection ends.
func (c *conn) serve() {
	err := c.open()
	for err == nil {
		var f frame
		if f, err = c.r.next(); err == nil {
			err = c.handle(&f)
		}
	}
	var ce *connError
	if errors.As(err, &ce) {
		c.abort(ce)
	}
	c.r.release()
	c.close(err)
}

// open performs the handshakes: TLS, SETTINGS and the preface.
func (c *conn) open() error {
	c.nc.SetDeadline(clock.Now().Add(prefaceTimeout))
	if secure, ok := c.nc.(*tls.Conn); ok {
		if err := secure.Handshake(); err != nil { // most listeners have already done it
			return err
		}
		p, _ := peer.FromContext(c.values)
		p.AuthInfo = credentials.TLSInfo{State: secure.ConnectionState(),
			CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}
	}
	settings := [][2]uint32{{settingMaxFrameSize, frameBytes}}
	if c.srv.o.MaxStreams != unboundedStreams {
		settings = append(settings, [2]uint32{settingMaxConcurrentStreams, c.srv.o.MaxStreams})
	}
	settings = append(settings, [2]uint32{settingMaxHeaderListSize, c.srv.o.MaxHeaders})
	c.mu.Lock()
	c.w.buf = appendWindowUpdate(appendSettings(c.w.buf, settings...), 0, connWindow-defaultWindow)
	c.flush()
	c.mu.Unlock()
	if err := c.r.preface(); err != nil {
		return io.EOF // the peer does not speak HTTP/2, so no GOAWAY
	}
	f, err := c.r.next()
	if err != nil {
		return err
	}
	if f.kind != frameSettings || f.has(flagAck) {
		return &connError{codeProtocol, "the first frame is not SETTINGS"}
	}
	c.nc.SetDeadline(time.Time{})
	limitSilence(c.nc, c.srv.o.Keepalive.Timeout)
	c.startKeepalive()
	return c.handle(&f)
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

// handle processes one frame. A connError ends the connection.
func (c *conn) handle(f *frame) error {
	if c.blockOf != 0 && (f.kind != frameContinuation || f.stream != c.blockOf) {
		return &connError{codeProtocol, "a block of headers is interrupted"}
	}
	switch f.kind {
	case frameData:
		return c.data(f)
	case frameHeaders:
		return c.headers(f)
	case frameContinuation:
		return c.continuation(f)
	case frameRSTStream:
		return c.reset(f)
	case frameSettings:
		return c.settings(f)
	case framePing:
		return c.ping(f)
	case frameWindowUpdate:
		return c.windowUpdate(f)
	case framePriority:
		return c.priority(f)
	case framePushPromise:
		return &connError{codeProtocol, "a client cannot push"}
	case frameGoAway:
		if f.stream != 0 {
			return &connError{codeProtocol, "GOAWAY on a stream"}
		}
		if len(f.payload) < 8 {
			return &connError{codeFrameSize, "GOAWAY of the wrong length"}
		}
	}
	return nil // unknown frame types are ignored
}

func (c *conn) priority(f *frame) error {
	switch {
	case f.stream == 0:
		return &connError{codeProtocol, "PRIORITY without a stream"}
	case len(f.payload) != 5:
		c.resetStream(f.stream, codeFrameSize)
	case binary.BigEndian.Uint32(f.payload)&maxStreamID == f.stream:
		c.resetStream(f.stream, codeProtocol)
	}
	return nil
}

// known returns an error unless the frame is on a stream that the client has opened.
func (c *conn) known(f *frame, what string) error {
	if f.stream == 0 || f.stream > c.maxID {
		return &connError{codeProtocol, what + " on a stream that is not open"}
	}
	return nil
}

func (c *conn) stream(id uint32) *Stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.streams[id]
}

func (c *conn) data(f *frame) error {
	if err := c.known(f, "DATA"); err != nil {
		return err
	}
	p, err := unpad(f)
	if err != nil {
		return err
	}
	n := len(f.payload) // padding counts against the window
	if c.unacked += n; c.unacked > connWindow {
		return &connError{codeFlowControl, "more data than the connection's window"}
	}
	if c.empties++; len(p) > 0 || f.has(flagEndStream) {
		c.empties = 0
	}
	if c.empties > emptyFrames {
		return &connError{codeEnhanceYourCalm, "too many empty frames"}
	}
	if c.unacked >= connWindow/4 {
		c.mu.Lock()
		c.control(func(b []byte) []byte { return appendWindowUpdate(b, 0, uint32(c.unacked)) })
		c.mu.Unlock()
		c.unacked = 0
	}
	s := c.stream(f.stream)
	if s == nil {
		return nil // already closed on our side; the client learns of it from what we sent
	}
	return c.dataOf(s, f, p)
}

// dataOf handles a DATA frame of an open stream.
func (c *conn) dataOf(s *Stream, f *frame, p []byte) error {
	c.mu.Lock()
	if s.flow.clientEnded {
		c.mu.Unlock()
		c.resetStream(s.id, codeStreamClosed)
		return nil
	}
	if s.flow.recvWindow -= int64(len(f.payload)); s.flow.recvWindow < 0 {
		c.mu.Unlock()
		c.resetStream(s.id, codeFlowControl)
		return nil
	}
	if padding := len(f.payload) - len(p); padding > 0 {
		c.giveBack(s, padding)
	}
	s.flow.unread += len(p)
	c.held += len(p)
	c.mu.Unlock()
	s.in.feed(p, func(missing int) { c.extend(s, missing) })
	if f.has(flagEndStream) {
		c.clientEnded(s)
		return nil
	}
	if s.method.unary == nil {
		return nil
	}
	if err := s.in.broken(); err != nil { // the handler is not running yet, so report the error here
		c.finish(s, statusOf(err))
	}
	return nil
}

// clientEnded records END_STREAM. A unary call starts now.
func (c *conn) clientEnded(s *Stream) {
	c.mu.Lock()
	s.flow.clientEnded = true
	start := s.method.unary != nil && !s.flow.done
	if start {
		c.held -= s.flow.unread // from here on the handler owns the request
		s.flow.unread = 0
		c.waitForHandlers()
		c.handlers++
	}
	c.mu.Unlock()
	s.in.end(io.EOF)
	if start {
		c.srv.dispatch(s)
	}
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

func (c *conn) headers(f *frame) error {
	if f.stream%2 == 0 || f.stream <= c.maxID {
		return &connError{codeProtocol, "received an illegal stream id"}
	}
	p, err := unpad(f)
	if err != nil {
		return err
	}
	c.block.begin()
	if f.has(flagPriority) {
		if len(p) < 5 {
			return &connError{codeFrameSize, "HEADERS of the wrong length"}
		}
		if binary.BigEndian.Uint32(p)&maxStreamID == f.stream {
			c.block.malformed = "a stream that depends on itself"
		}
		p = p[5:]
	}
	c.mu.Lock()
	c.maxID = f.stream
	c.mu.Unlock()
	c.blockOf, c.blockEnd = f.stream, f.has(flagEndStream)
	return c.fragment(f, p)
}

func (c *conn) continuation(f *frame) error {
	if c.blockOf == 0 {
		return &connError{codeProtocol, "CONTINUATION without HEADERS"}
	}
	return c.fragment(f, f.payload)
}

func (c *conn) fragment(f *frame, p []byte) error {
	if err := c.block.fragment(p); err != nil {
		return err
	}
	if !f.has(flagEndHeaders) {
		return nil
	}
	if err := c.block.end(); err != nil {
		return err
	}
	id := c.blockOf
	c.blockOf = 0
	switch {
	case c.block.malformed != "":
		c.resetStream(id, codeProtocol)
	case c.block.truncated:
		c.resetStream(id, codeFrameSize)
	default:
		c.call(id, c.blockEnd)
	}
	return nil
}

// call starts a call once its headers are complete.
func (c *conn) call(id uint32, ended bool) {
	r, refused := c.requests.parse(c.block.fields)
	if refused != nil {
		c.refuse(id, &r, refused, ended)
		return
	}
	s := &Stream{srv: c.srv, t: c, id: id, req: r, method: c.srv.methods[r.path]}
	s.in.max = c.srv.o.MaxMessage
	s.values = c.withMetadata(r.md)
	s.flow.clientEnded = ended
	s.flow.recvWindow = streamWindow
	c.mu.Lock()
	switch {
	case c.err != nil || c.drain2:
		c.mu.Unlock()
		return
	case uint32(len(c.streams)) >= c.srv.o.MaxStreams || c.held >= heldBytes:
		c.control(func(b []byte) []byte { return appendReset(b, id, codeRefusedStream) })
		c.mu.Unlock()
		return
	}
	c.streams[id] = s
	start := s.method != nil && (s.method.stream != nil || ended)
	if start {
		c.waitForHandlers()
		c.handlers++
	}
	if r.hasTimeout && c.err == nil {
		c.expireAt(s, clock.Now().Add(r.timeout))
	}
	c.mu.Unlock()
	if s.method == nil {
		c.finish(s, c.srv.unknown(r.path))
		return
	}
	if ended {
		s.in.end(io.EOF)
	}
	if start {
		c.srv.dispatch(s)
	}
}

// withMetadata returns the connection's context with the metadata of a call.
func (c *conn) withMetadata(md metadata.MD) context.Context {
	if c.lastMD.ctx == nil || !sameMap(c.lastMD.md, md) {
		c.lastMD = metadataContext{md, metadata.NewIncomingContext(c.values, md)}
	}
	return c.lastMD.ctx
}

// refuse answers a call that is rejected because of its headers.
func (c *conn) refuse(id uint32, r *request, why *refusal, ended bool) {
	if why.status == nil {
		c.resetStream(id, why.code)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var l fieldList
	c.beginBlock(&l)
	l.early(why.http, r.subtype, why.status)
	c.control(func(b []byte) []byte {
		if !c.takes(&l) {
			return appendReset(b, id, codeInternal)
		}
		b = appendHeaders(b, l.block, true, id)
		if !ended {
			b = appendReset(b, id, codeNo)
		}
		return b
	})
}

func (c *conn) reset(f *frame) error {
	if err := c.known(f, "RST_STREAM"); err != nil {
		return err
	}
	if len(f.payload) != 4 {
		return &connError{codeFrameSize, "RST_STREAM of the wrong length"}
	}
	if s := c.stream(f.stream); s != nil {
		c.endStream(s, false, 0, context.Canceled)
	}
	return nil
}

// resetStream ends a stream with an HTTP/2 error code.
func (c *conn) resetStream(id uint32, code errCode) {
	if s := c.stream(id); s != nil {
		c.endStream(s, true, code, context.Canceled)
		return
	}
	c.mu.Lock()
	c.control(func(b []byte) []byte { return appendReset(b, id, code) })
	c.mu.Unlock()
}

// endStream closes a stream, with RST_STREAM if rst is set, and cancels the context
// of its handler.
func (c *conn) endStream(s *Stream, rst bool, code errCode, why error) {
	c.mu.Lock()
	if !s.flow.done {
		c.forget(s)
		if rst {
			c.control(func(b []byte) []byte { return appendReset(b, s.id, code) })
			c.flushElsewhere()
		}
	}
	c.mu.Unlock()
	s.cancel(why)
}

// forget removes a stream from the connection. c.mu must be held.
func (c *conn) forget(s *Stream) {
	s.flow.done = true
	delete(c.streams, s.id)
	c.deadlines.remove(s)
	c.held -= s.flow.unread
	s.flow.unread = 0
	c.withdraw(s)
	c.wake(s)
	if c.drain2 && len(c.streams) == 0 {
		c.closeWhenWritten()
	}
}

// settings applies the client's SETTINGS.
func (c *conn) settings(f *frame) error {
	switch {
	case f.stream != 0:
		return &connError{codeProtocol, "SETTINGS on a stream"}
	case f.has(flagAck) && len(f.payload) != 0, len(f.payload)%6 != 0:
		return &connError{codeFrameSize, "SETTINGS of the wrong length"}
	case f.has(flagAck):
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.initialWindow
	for p := f.payload; len(p) > 0; p = p[6:] {
		if err := c.setting(binary.BigEndian.Uint16(p), binary.BigEndian.Uint32(p[2:])); err != nil {
			return err
		}
	}
	if c.initialWindow > before && c.windowless > 0 {
		for _, s := range c.streams {
			c.windowChanged(s)
		}
	}
	c.control(appendSettingsAck)
	return nil
}

func (c *conn) setting(id uint16, v uint32) error {
	switch id {
	case settingInitialWindowSize:
		if v > maxWindow {
			return &connError{codeFlowControl, "initial window too large"}
		}
		c.initialWindow = int64(v)
	case settingMaxFrameSize:
		if v < frameBytes || v > 1<<24-1 {
			return &connError{codeProtocol, "maximal frame size out of range"}
		}
	case settingEnablePush:
		if v > 1 {
			return &connError{codeProtocol, "ENABLE_PUSH is neither 0 nor 1"}
		}
	case settingMaxHeaderListSize:
		c.maxHeaders = int64(v)
	case settingHeaderTableSize:
		c.tableShrunk = true
	}
	return nil
}

func (c *conn) windowUpdate(f *frame) error {
	if len(f.payload) != 4 {
		return &connError{codeFrameSize, "WINDOW_UPDATE of the wrong length"}
	}
	n := int64(binary.BigEndian.Uint32(f.payload) & maxWindow)
	if f.stream == 0 {
		c.mu.Lock()
		defer c.mu.Unlock()
		if n == 0 {
			return &connError{codeProtocol, "WINDOW_UPDATE by nothing"}
		}
		if c.window += n; c.window > maxWindow {
			return &connError{codeFlowControl, "window too large"}
		}
		c.wakeNext()
		return nil
	}
	if err := c.known(f, "WINDOW_UPDATE"); err != nil {
		return err
	}
	if n == 0 {
		c.resetStream(f.stream, codeProtocol)
		return nil
	}
	c.mu.Lock()
	s := c.streams[f.stream]
	tooLarge := false
	if s != nil {
		s.flow.credit += n
		tooLarge = c.windowOf(s) > maxWindow
		c.windowChanged(s)
	}
	c.mu.Unlock()
	if tooLarge {
		c.resetStream(f.stream, codeFlowControl)
	}
	return nil
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
	streams := c.streams
	c.streams = nil
	for _, s := range streams {
		s.flow.done, s.flow.due = true, 0
		c.wake(s)
	}
	c.waiting, c.wanting, c.deadlines.heap = nil, nil, nil
	c.deadlines.stop()
	c.quota.Broadcast()
	c.alive.stop()
	c.drainSeen()
	c.mu.Unlock()
	c.nc.Close()
	for _, s := range streams {
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
	if half, ok := c.nc.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
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

package h2

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"time"

	"quorate/internal/clock"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
)

// receiver is the reading side of a connection: it handles the frames of the client, on
// the goroutine that runs serve, which alone uses its fields.
type receiver struct {
	*conn
	r        *frameReader
	block    *headerBlock
	blockOf  uint32 // stream of the header block being received; 0: none
	blockEnd bool   // the block has END_STREAM
	requests requests
	lastMD   metadataContext
	empties  int // empty DATA frames in a row
	unacked  int // bytes received that the connection's window has not been given back
}

func newReceiver(c *conn) *receiver {
	return &receiver{conn: c, block: newHeaderBlock(int(c.srv.o.MaxHeaders)), requests: requests{common: &c.srv.common}, r: newFrameReader(c.nc, c.beforeRead, c.alive.read)}
}

// metadataContext caches the context made for the last metadata: consecutive calls
// of a client mostly share theirs.
type metadataContext struct {
	md  metadata.MD
	ctx context.Context
}

// serve reads frames until the connection ends.
func (c *receiver) serve() {
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
func (c *receiver) open() error {
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

// handle processes one frame. A connError ends the connection.
func (c *receiver) handle(f *frame) error {
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

func (c *receiver) priority(f *frame) error {
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
func (c *receiver) known(f *frame, what string) error {
	if f.stream == 0 || f.stream > c.maxID {
		return &connError{codeProtocol, what + " on a stream that is not open"}
	}
	return nil
}

func (c *receiver) data(f *frame) error {
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
		c.w.control(func(b []byte) []byte { return appendWindowUpdate(b, 0, uint32(c.unacked)) })
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
func (c *receiver) dataOf(s *Stream, f *frame, p []byte) error {
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
		c.in.giveBack(s, padding)
	}
	c.in.received(s, len(p))
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
func (c *receiver) clientEnded(s *Stream) {
	c.mu.Lock()
	s.flow.clientEnded = true
	start := s.method.unary != nil && !s.flow.done
	if start {
		c.in.dropUnread(s) // from here on the handler owns the request
		c.waitForHandlers()
		c.handlers++
	}
	c.mu.Unlock()
	s.in.end(io.EOF)
	if start {
		c.srv.dispatch(s)
	}
}

func (c *receiver) headers(f *frame) error {
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

func (c *receiver) continuation(f *frame) error {
	if c.blockOf == 0 {
		return &connError{codeProtocol, "CONTINUATION without HEADERS"}
	}
	return c.fragment(f, f.payload)
}

func (c *receiver) fragment(f *frame, p []byte) error {
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
	c.block.release()
	return nil
}

// call starts a call once its headers are complete.
func (c *receiver) call(id uint32, ended bool) {
	r, refused := c.requests.parse(c.block)
	if refused != nil {
		c.refuse(id, &r, refused, ended)
		return
	}
	s := &Stream{srv: c.srv, t: c.conn, id: id, req: r, method: c.srv.methods[r.path]}
	s.in.max = c.srv.o.MaxMessage
	s.values = c.withMetadata(r.md)
	s.flow.clientEnded = ended
	s.flow.recvWindow = streamWindow
	c.mu.Lock()
	switch {
	case c.err != nil || c.drain2:
		c.mu.Unlock()
		return
	case uint32(c.streams.len()) >= c.srv.o.MaxStreams || c.in.held >= heldBytes:
		c.w.control(func(b []byte) []byte { return appendReset(b, id, codeRefusedStream) })
		c.mu.Unlock()
		return
	}
	c.streams.add(s)
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
func (c *receiver) withMetadata(md metadata.MD) context.Context {
	if c.lastMD.ctx == nil || !sameMap(c.lastMD.md, md) {
		c.lastMD = metadataContext{md, metadata.NewIncomingContext(c.values, md)}
	}
	return c.lastMD.ctx
}

// refuse answers a call that is rejected because of its headers.
func (c *receiver) refuse(id uint32, r *request, why *refusal, ended bool) {
	if why.status == nil {
		c.resetStream(id, why.code)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var l fieldList
	c.fields.begin(&l)
	l.early(why.http, r.subtype, why.status)
	c.w.control(func(b []byte) []byte {
		if !c.fields.takes(&l) {
			return appendReset(b, id, codeInternal)
		}
		b = appendHeaders(b, l.block, true, id)
		if !ended {
			b = appendReset(b, id, codeNo)
		}
		return b
	})
}

func (c *receiver) reset(f *frame) error {
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

// settings applies the client's SETTINGS.
func (c *receiver) settings(f *frame) error {
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
	before := c.out.initial
	for p := f.payload; len(p) > 0; p = p[6:] {
		if err := c.setting(binary.BigEndian.Uint16(p), binary.BigEndian.Uint32(p[2:])); err != nil {
			return err
		}
	}
	if c.out.initial > before && c.out.lacking > 0 {
		for s := range c.streams.all {
			c.out.changed(s)
		}
	}
	c.w.control(appendSettingsAck)
	return nil
}

func (c *receiver) setting(id uint16, v uint32) error {
	switch id {
	case settingInitialWindowSize:
		if v > maxWindow {
			return &connError{codeFlowControl, "initial window too large"}
		}
		c.out.initial = int64(v)
	case settingMaxFrameSize:
		if v < frameBytes || v > 1<<24-1 {
			return &connError{codeProtocol, "maximal frame size out of range"}
		}
	case settingEnablePush:
		if v > 1 {
			return &connError{codeProtocol, "ENABLE_PUSH is neither 0 nor 1"}
		}
	case settingMaxHeaderListSize:
		c.fields.maxList = int64(v)
	case settingHeaderTableSize:
		c.fields.shrunk = true
	}
	return nil
}

func (c *receiver) windowUpdate(f *frame) error {
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
		if c.out.conn += n; c.out.conn > maxWindow {
			return &connError{codeFlowControl, "window too large"}
		}
		c.out.wakeNext()
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
	s := c.streams.get(f.stream)
	tooLarge := false
	if s != nil {
		s.flow.credit += n
		tooLarge = c.out.of(s) > maxWindow
		c.out.changed(s)
	}
	c.mu.Unlock()
	if tooLarge {
		c.resetStream(f.stream, codeFlowControl)
	}
	return nil
}

func (c *receiver) ping(f *frame) error {
	switch {
	case f.stream != 0:
		return &connError{codeProtocol, "PING on a stream"}
	case len(f.payload) != 8:
		return &connError{codeFrameSize, "PING of the wrong length"}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.has(flagAck) {
		if string(f.payload) == string(drainPing[:]) && c.drain1 {
			c.drainSeen()
		}
		return nil
	}
	c.w.control(func(b []byte) []byte { return appendPing(b, flagAck, f.payload) })
	now := clock.Now()
	least := c.srv.o.Keepalive.MinTime
	if c.streams.len() == 0 {
		least = quietPing
	}
	switch {
	case c.pings.excused:
		c.pings.excused, c.pings.strikes = false, 0
	case c.pings.last.Add(least).After(now):
		c.pings.strikes++
	}
	c.pings.last = now
	if c.pings.strikes > pingStrikes {
		return &connError{codeEnhanceYourCalm, "too_many_pings"}
	}
	return nil
}

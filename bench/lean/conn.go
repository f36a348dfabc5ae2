// Package lean is a gRPC client for load generators: it costs far less than the server that it measures, so that
// the server saturates first.
//
// In: calls whose requests are encoded directly into the socket's buffer. Out: their answers, to functions that
// the connection's reader calls, and that may begin the next call at once. It knows neither protobuf nor the
// services.
//
// Invariant: what a server can see of a call is what grpc-go's client would send, except for pings: the same
// headers, indexed from the second call of a method on, and flow control that is enforced both ways. Requests
// that are begun while a batch of answers is processed leave in one write. A connection has one goroutine, which
// reads. A connection that fails ends all its calls with the reason; it never reconnects.
package lean

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

const (
	frameData         = 0x0
	frameHeaders      = 0x1
	frameReset        = 0x3
	frameSettings     = 0x4
	framePing         = 0x6
	frameGoAway       = 0x7
	frameWindowUpdate = 0x8
	frameContinuation = 0x9

	flagEnd        = 0x1 // of a stream
	flagAck        = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20

	settingPush          = 0x2
	settingInitialWindow = 0x4

	codeCancel = 0x8

	frameHead     = 9
	prefixLen     = 5 // of a gRPC message
	frameBytes    = 16 << 10
	defaultWindow = 1<<16 - 1

	// streamWindow and connWindow are the receive windows that the server gets.
	streamWindow = 1 << 20
	connWindow   = 1 << 21

	readBytes = 64 << 10
)

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// ErrClosed ends the calls of a connection that this end has closed.
var ErrClosed = errors.New("lean: the connection has been closed")

// Options are the options of a connection.
type Options struct {
	TLS    *tls.Config // nil: clear text
	Fields [][2]string // metadata of each call
}

// Conn is one connection.
type Conn struct {
	nc   net.Conn
	done chan struct{} // closed when the reader has returned

	mu            sync.Mutex
	err           error // why no call can begin any more
	out, spare    []byte
	writing       bool // a writer is active, and goes on until nothing is left
	reading       bool // the reader is processing a batch of frames, and flushes after it
	calls         map[uint32]*Call
	nextID        uint32
	blocks        requestBlocks
	window        int64 // send window of the connection
	initialWindow int64 // initial one of a stream
	blocked       []*Call

	// Used by the reader only.
	buf     []byte
	r, w    int
	answers answerBlocks
	block   []byte // the header block received so far
	blockOf uint32
	blockEnds,
	inBlock bool
	unacked int
}

// Dial connects and sends the client preface.
func Dial(ctx context.Context, addr string, o Options) (*Conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	scheme := "http"
	if o.TLS != nil {
		cfg := o.TLS.Clone()
		cfg.NextProtos = []string{"h2"}
		if cfg.ServerName == "" {
			cfg.ServerName, _, _ = net.SplitHostPort(addr)
		}
		secure := tls.Client(nc, cfg)
		if err := secure.HandshakeContext(ctx); err != nil {
			nc.Close()
			return nil, fmt.Errorf("TLS handshake with %s: %w", addr, err)
		}
		nc, scheme = secure, "https"
	}
	c := &Conn{nc: nc, done: make(chan struct{}), calls: make(map[uint32]*Call), nextID: 1,
		window: defaultWindow, initialWindow: defaultWindow, buf: make([]byte, 4<<10)}
	c.blocks.init(scheme, addr, o.Fields)
	c.answers.init()
	b := append([]byte(nil), preface...)
	b = appendHead(b, 12, frameSettings, 0, 0)
	b = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(b, settingPush), 0)
	b = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(b, settingInitialWindow), streamWindow)
	b = appendUpdate(b, 0, connWindow-defaultWindow)
	if _, err := nc.Write(b); err != nil {
		nc.Close()
		return nil, err
	}
	go c.serve()
	return c, nil
}

// Close closes the connection, ends its calls, and waits for the reader.
func (c *Conn) Close() {
	c.Abort(ErrClosed)
	<-c.done
}

// Abort is Close without the wait: the callbacks of calls may use it.
func (c *Conn) Abort(why error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = why
	}
	c.mu.Unlock()
	c.nc.Close()
}

func (c *Conn) serve() {
	defer close(c.done)
	err := c.read()
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	why, calls := c.err, c.calls
	c.calls = map[uint32]*Call{}
	c.mu.Unlock()
	c.nc.Close()
	for _, x := range calls {
		x.end(why)
	}
}

// read processes input, one batch after the other.
func (c *Conn) read() error {
	for {
		if c.r == c.w {
			c.r, c.w = 0, 0
		}
		if len(c.buf)-c.w < len(c.buf)/2 {
			c.makeRoom()
		}
		n, err := c.nc.Read(c.buf[c.w:])
		if n == 0 && err != nil {
			if err == io.EOF {
				err = errors.New("lean: the server has closed the connection")
			}
			return err
		}
		c.w += n
		c.mu.Lock()
		c.reading = true
		c.mu.Unlock()
		err = c.batch()
		c.mu.Lock()
		c.reading = false
		c.flush()
		c.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// makeRoom moves unread input to the front, of a larger buffer if there is much to read: an idle connection has
// a small one.
func (c *Conn) makeRoom() {
	if len(c.buf) < readBytes && c.w == len(c.buf) {
		larger := make([]byte, readBytes)
		c.w = copy(larger, c.buf[c.r:c.w])
		c.r, c.buf = 0, larger
		return
	}
	c.w = copy(c.buf, c.buf[c.r:c.w])
	c.r = 0
}

// batch processes all complete frames.
func (c *Conn) batch() error {
	for c.w-c.r >= frameHead {
		h := c.buf[c.r : c.r+frameHead]
		n := int(h[0])<<16 | int(h[1])<<8 | int(h[2])
		if n > frameBytes {
			return fmt.Errorf("lean: the server has sent a frame of %d bytes", n)
		}
		if c.w-c.r < frameHead+n {
			if frameHead+n > len(c.buf) {
				larger := make([]byte, readBytes)
				c.w = copy(larger, c.buf[c.r:c.w])
				c.r, c.buf = 0, larger
			}
			return nil
		}
		kind, flags, stream := h[3], h[4], binary.BigEndian.Uint32(h[5:])&(1<<31-1)
		p := c.buf[c.r+frameHead : c.r+frameHead+n]
		c.r += frameHead + n
		if err := c.frame(kind, flags, stream, p); err != nil {
			return err
		}
	}
	return nil
}

func (c *Conn) frame(kind, flags byte, stream uint32, p []byte) error {
	if c.inBlock && (kind != frameContinuation || stream != c.blockOf) {
		return errors.New("lean: a block of headers is interrupted")
	}
	switch kind {
	case frameData:
		return c.data(flags, stream, p)
	case frameHeaders:
		p, err := unpad(flags, p)
		if err != nil {
			return err
		}
		if flags&flagPriority != 0 {
			if len(p) < 5 {
				return errors.New("lean: HEADERS that are too short")
			}
			p = p[5:]
		}
		if flags&flagEndHeaders != 0 {
			return c.headers(stream, p, flags&flagEnd != 0)
		}
		c.inBlock, c.blockOf, c.blockEnds = true, stream, flags&flagEnd != 0
		c.block = append(c.block[:0], p...)
	case frameContinuation:
		if !c.inBlock {
			return errors.New("lean: CONTINUATION without HEADERS")
		}
		c.block = append(c.block, p...)
		if flags&flagEndHeaders != 0 {
			c.inBlock = false
			return c.headers(stream, c.block, c.blockEnds)
		}
	case frameReset:
		if len(p) != 4 {
			return errors.New("lean: RST_STREAM of the wrong length")
		}
		c.finish(stream, &Status{Code: unavailable, Message: fmt.Sprintf("the server has reset the stream with code %d", binary.BigEndian.Uint32(p))})
	case frameSettings:
		return c.settings(flags, p)
	case framePing:
		if flags&flagAck == 0 && len(p) == 8 {
			c.mu.Lock()
			c.out = append(appendHead(c.out, 8, framePing, flagAck, 0), p...)
			c.mu.Unlock()
		}
	case frameGoAway:
		if len(p) < 8 {
			return errors.New("lean: GOAWAY that is too short")
		}
		c.mu.Lock()
		if c.err == nil {
			c.err = fmt.Errorf("lean: the server takes no more calls: code %d %q", binary.BigEndian.Uint32(p[4:]), p[8:])
		}
		c.mu.Unlock()
	case frameWindowUpdate:
		return c.windowUpdate(stream, p)
	}
	return nil
}

func unpad(flags byte, p []byte) ([]byte, error) {
	if flags&flagPadded == 0 {
		return p, nil
	}
	if len(p) == 0 || int(p[0]) >= len(p) {
		return nil, errors.New("lean: more padding than payload")
	}
	return p[1 : len(p)-int(p[0])], nil
}

func (c *Conn) data(flags byte, stream uint32, p []byte) error {
	whole := len(p)
	p, err := unpad(flags, p)
	if err != nil {
		return err
	}
	c.mu.Lock()
	x := c.calls[stream]
	if c.unacked += whole; c.unacked >= connWindow/4 {
		c.out = appendUpdate(c.out, 0, uint32(c.unacked))
		c.unacked = 0
	}
	if x != nil && flags&flagEnd == 0 {
		if x.unacked += whole; x.unacked >= streamWindow/4 {
			c.out = appendUpdate(c.out, stream, uint32(x.unacked))
			x.unacked = 0
		}
	}
	c.mu.Unlock()
	if x == nil {
		return nil // canceled here
	}
	x.feed(p)
	if flags&flagEnd != 0 {
		c.finish(stream, &Status{Code: internal, Message: "the stream has ended without a status"})
	}
	return nil
}

func (c *Conn) headers(stream uint32, block []byte, ends bool) error {
	a, err := c.answers.decode(block)
	if err != nil {
		return err
	}
	if !ends {
		return nil
	}
	if !a.hasStatus {
		c.finish(stream, &Status{Code: internal, Message: "the stream has ended without a status, with HTTP's " + a.http})
		return nil
	}
	if a.status.Code == 0 {
		c.finish(stream, nil)
		return nil
	}
	c.finish(stream, &a.status)
	return nil
}

// finish ends a call; st is nil on success.
func (c *Conn) finish(stream uint32, st *Status) {
	c.mu.Lock()
	x := c.calls[stream]
	delete(c.calls, stream)
	c.mu.Unlock()
	switch {
	case x == nil:
	case st == nil:
		x.end(nil)
	default:
		x.end(st)
	}
}

func (c *Conn) settings(flags byte, p []byte) error {
	if flags&flagAck != 0 {
		return nil
	}
	if len(p)%6 != 0 {
		return errors.New("lean: SETTINGS of the wrong length")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for ; len(p) > 0; p = p[6:] {
		if id, v := binary.BigEndian.Uint16(p), binary.BigEndian.Uint32(p[2:]); id == settingInitialWindow {
			change := int64(v) - c.initialWindow
			c.initialWindow = int64(v)
			for _, x := range c.calls {
				x.window += change
			}
		}
	}
	c.out = appendHead(c.out, 0, frameSettings, flagAck, 0)
	c.unblock()
	return nil
}

func (c *Conn) windowUpdate(stream uint32, p []byte) error {
	if len(p) != 4 {
		return errors.New("lean: WINDOW_UPDATE of the wrong length")
	}
	n := int64(binary.BigEndian.Uint32(p) & (1<<31 - 1))
	c.mu.Lock()
	defer c.mu.Unlock()
	if stream == 0 {
		c.window += n
	} else if x := c.calls[stream]; x != nil {
		x.window += n
	}
	c.unblock()
	return nil
}

// unblock continues calls that waited for a window. Must be called with c.mu held.
func (c *Conn) unblock() {
	left := c.blocked[:0]
	for _, x := range c.blocked {
		if c.calls[x.id] == x && !c.push(x) {
			left = append(left, x)
		}
	}
	clear(c.blocked[len(left):])
	c.blocked = left
}

// push sends as much of a call's message as the windows allow, and reports whether that was all of it.
func (c *Conn) push(x *Call) bool {
	for len(x.pending) > 0 {
		n := int(min(int64(len(x.pending)), frameBytes, x.window, c.window))
		if n <= 0 {
			return false
		}
		flags := byte(0)
		if x.pendingEnds && n == len(x.pending) {
			flags = flagEnd
		}
		c.out = append(appendHead(c.out, n, frameData, flags, x.id), x.pending[:n]...)
		x.pending = x.pending[n:]
		x.window -= int64(n)
		c.window -= int64(n)
	}
	x.pending = nil
	return true
}

// flush writes pending output unless another goroutine does or will. c.mu is held on entry and return, but not
// while writing.
func (c *Conn) flush() {
	if c.writing || c.reading {
		return
	}
	c.writing = true
	for len(c.out) > 0 {
		b := c.out
		c.out, c.spare = c.spare[:0], nil
		c.mu.Unlock()
		_, err := c.nc.Write(b)
		if err != nil {
			c.Abort(err) // the reader ends the calls
		}
		c.mu.Lock()
		if cap(b) <= readBytes {
			c.spare = b[:0]
		}
	}
	c.writing = false
}

func appendHead(b []byte, n int, kind, flags byte, stream uint32) []byte {
	return append(b, byte(n>>16), byte(n>>8), byte(n), kind, flags,
		byte(stream>>24), byte(stream>>16), byte(stream>>8), byte(stream))
}

func appendUpdate(b []byte, stream, n uint32) []byte {
	return binary.BigEndian.AppendUint32(appendHead(b, 4, frameWindowUpdate, 0, stream), n)
}

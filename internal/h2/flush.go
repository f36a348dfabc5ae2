package h2

import (
	"crypto/tls"
	"io"
	"net"
	"runtime"
	"sync"
)

// flusher is the write side of a connection: frames accumulate in buf, and one
// goroutine at a time writes them. Guarded by conn.mu.
type flusher struct {
	buf      []byte
	spare    []byte
	small    []byte // what is left for an idle connection while buf is borrowed
	busy     bool
	closing  bool // close the connection once buf is written
	controls int  // approximate bytes in buf that the client caused without a successful call

	// direct is the socket, if several parts can be written to it at once. parts are those
	// of such a write, whose owner has set busy.
	direct   io.Writer
	parts    net.Buffers
	gatherer gatherer // nil without TLS
}

const (
	// keepBuffer is the largest buffer that an idle connection keeps.
	keepBuffer = 512
	// firstBuffer is the size of the first one: small replies fit.
	firstBuffer = 192
	// gatherBytes is the size from which a write is worth a system call of its own.
	gatherBytes = 1 << 10
	// directLeast is how much of a message is written from where it is instead of being
	// copied into the buffer, and directMost how much of it at once.
	directLeast = 16 << 10
	directMost  = 256 << 10
	// flushTurns is how many times in a row a goroutine writes for others before it
	// hands the job to a background goroutine.
	flushTurns = 4
)

// largeBuffer is the write buffer of a busy connection. The buffer exceeds outBytes
// by at most one frame and its overhead. A mediumBuffer is enough for a few replies.
type (
	largeBuffer  [outBytes + 2*frameBytes]byte
	mediumBuffer [4 << 10]byte
)

var (
	largeBuffers  = sync.Pool{New: func() any { return new(largeBuffer) }}
	mediumBuffers = sync.Pool{New: func() any { return new(mediumBuffer) }}
)

// room makes room for n bytes in the buffer. While a connection has much to write, it
// borrows a buffer from a pool.
func (w *flusher) room(n int) {
	have := len(w.buf) + n
	if have <= cap(w.buf) || have > len(largeBuffer{}) {
		return // append grows it
	}
	var borrowed []byte
	if have <= keepBuffer {
		borrowed = make([]byte, 0, keepBuffer) // its own, for good
	} else if have <= len(mediumBuffer{}) {
		borrowed = mediumBuffers.Get().(*mediumBuffer)[:0]
	} else {
		borrowed = largeBuffers.Get().(*largeBuffer)[:0]
	}
	old := w.buf
	w.buf = append(borrowed, old...)
	w.keep(giveBackBuffer(old))
}

// keep keeps a small buffer, nil for none, for when nothing is borrowed.
func (w *flusher) keep(b []byte) {
	if cap(b) > cap(w.small) {
		w.small = b
	}
}

// settle gives back what is borrowed. The buffer must be empty.
func (w *flusher) settle() {
	w.keep(giveBackBuffer(w.buf))
	w.keep(giveBackBuffer(w.spare))
	w.buf, w.small, w.spare = w.small, nil, nil
}

// giveBackBuffer returns a borrowed buffer to its pool. It returns b emptied if b is
// small enough to keep, and nil otherwise.
func giveBackBuffer(b []byte) []byte {
	switch cap(b) {
	case len(mediumBuffer{}):
		mediumBuffers.Put((*mediumBuffer)(b[:cap(b)]))
	case len(largeBuffer{}):
		largeBuffers.Put((*largeBuffer)(b[:cap(b)]))
	}
	if cap(b) <= keepBuffer {
		return b[:0]
	}
	return nil
}

// flush writes the buffer unless another goroutine is writing. c.mu must be held; it
// is released while writing.
func (c *conn) flush() {
	if c.w.busy || len(c.w.buf) == 0 {
		return
	}
	c.w.busy = true
	if c.handlers > 1 && len(c.w.buf) < gatherBytes {
		// The system call is the most expensive part of a reply. Yield once, so that
		// goroutines about to finish another reply can add it to this write.
		c.mu.Unlock()
		runtime.Gosched()
		c.mu.Lock()
	}
	if !c.flushSome(flushTurns) {
		go c.flushOwned()
	}
}

// flushElsewhere is flush for callers that must not block on the client.
func (c *conn) flushElsewhere() {
	if c.w.busy || len(c.w.buf) == 0 {
		return
	}
	c.w.busy = true
	go c.flushOwned()
}

// flushOwned writes until the buffer is empty. The caller has set w.busy for it.
func (c *conn) flushOwned() {
	c.mu.Lock()
	c.flushSome(-1)
	c.mu.Unlock()
}

// flushSome writes up to turns times (forever if negative) and reports whether the
// buffer is empty. If it is not, w.busy stays set. c.mu must be held.
func (c *conn) flushSome(turns int) bool {
	for ; len(c.w.buf) > 0 && c.err == nil; turns-- {
		if turns == 0 {
			return false
		}
		c.write(false)
	}
	c.w.busy = false
	if len(c.w.buf) == 0 {
		c.w.settle()
	}
	if c.w.closing && c.err == nil {
		go c.close(errDrained)
	}
	return true
}

// write writes the buffer, or w.parts, of which the buffer is a part. The caller has set
// w.busy. c.mu must be held; it is released while writing.
func (c *conn) write(parts bool) {
	out := c.w.buf
	if c.w.buf = c.w.spare; c.w.buf == nil {
		c.w.buf, c.w.small = c.w.small, nil
	}
	c.w.spare = nil
	c.w.controls = 0
	c.mu.Unlock()
	var err error
	if parts {
		rest := c.w.parts // WriteTo consumes it
		_, err = rest.WriteTo(c.w.direct)
		clear(c.w.parts)
	} else {
		err = c.writeOut(out)
	}
	if err != nil {
		c.close(err)
	}
	c.mu.Lock()
	c.w.spare = out[:0]
	c.out.wakeNext()
	c.quota.Broadcast()
}

// gatherer is the connection underneath TLS. Between Gather and Send it collects what is
// written to it.
type gatherer interface {
	Gather(buf []byte)
	Send() (buf []byte, err error)
	Close() error
}

// gathererOf returns the gatherer underneath a connection, or nil.
func gathererOf(nc net.Conn) gatherer {
	if secure, ok := nc.(*tls.Conn); ok {
		g, _ := secure.NetConn().(gatherer)
		return g
	}
	return nil
}

// writeOut writes the buffer, several records of TLS with one system call.
func (c *conn) writeOut(out []byte) error {
	if c.w.gatherer == nil || len(out) <= frameBytes {
		_, err := c.nc.Write(out)
		return err
	}
	c.w.gatherer.Gather(largeBuffers.Get().(*largeBuffer)[:0])
	_, err := c.nc.Write(out)
	buf, sent := c.w.gatherer.Send()
	giveBackBuffer(buf)
	if err == nil {
		err = sent
	}
	return err
}

// socketOf returns the socket of a connection, to which several parts can be written with
// one system call; nil if what is written may be changed on the way, as by TLS.
func socketOf(nc net.Conn) io.Writer {
	for {
		switch under := nc.(type) {
		case *net.TCPConn:
			return under
		case *net.UnixConn:
			return under
		case interface{ Under() net.Conn }:
			nc = under.Under()
		default:
			return nil
		}
	}
}

// closeWhenWritten closes the connection once all frames are written. c.mu must be
// held.
func (c *conn) closeWhenWritten() {
	c.w.closing = true
	if !c.w.busy {
		c.w.busy = true
		go c.flushOwned()
	}
}

// control appends frames that the client has caused, and counts them against
// controlBytes.
func (w *flusher) control(add func([]byte) []byte) {
	n := len(w.buf)
	w.buf = add(w.buf)
	w.controls += len(w.buf) - n
}

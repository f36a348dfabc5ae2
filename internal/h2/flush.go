package h2

import (
	"runtime"
	"sync"
)

// flusher is the way to the socket: frames wait in buf, and one goroutine at a
// time writes them. Guarded by the lock of the connection.
type flusher struct {
	buf      []byte
	spare    []byte
	busy     bool
	controls int  // bytes of buf, about, that the client has caused without a call
	closing  bool // the connection ends when all is written
}

const (
	// keepBuffer is the largest buffer that a quiet connection keeps.
	keepBuffer = 4 << 10
	// gatherBytes is from where on a write is worth it by itself.
	gatherBytes = 1 << 10
	// flushTurns is how often in a row a goroutine writes for others before it
	// hands that on.
	flushTurns = 4
)

// largeBuffer takes what waits for the socket on a busy connection: more than
// outBytes by no more than a frame and what goes with it.
type largeBuffer [outBytes + 2*frameBytes]byte

var largeBuffers = sync.Pool{New: func() any { return new(largeBuffer) }}

// room makes room for n bytes in the buffer. A connection borrows a large buffer
// for as long as it has much to write.
func (c *conn) room(n int) {
	if have := len(c.w.buf) + n; have <= cap(c.w.buf) || have <= keepBuffer || have > len(largeBuffer{}) {
		return // append will see to it
	}
	large := largeBuffers.Get().(*largeBuffer)
	old := c.w.buf
	c.w.buf = append(large[:0], old...)
	giveBackBuffer(old)
}

// giveBackBuffer returns what is kept of a buffer that has been used: small ones.
func giveBackBuffer(b []byte) []byte {
	switch {
	case cap(b) <= keepBuffer:
		return b[:0]
	case cap(b) == len(largeBuffer{}):
		largeBuffers.Put((*largeBuffer)(b[:cap(b)]))
	}
	return nil
}

// flush writes what waits unless somebody does. c.mu is held, but not while
// writing.
func (c *conn) flush() {
	if c.w.busy || len(c.w.buf) == 0 {
		return
	}
	c.w.busy = true
	if c.handlers > 1 && len(c.w.buf) < gatherBytes {
		// A write is the dearest part of an answer. Whoever is about to have one of
		// the others' answers gets the chance to add it.
		c.mu.Unlock()
		runtime.Gosched()
		c.mu.Lock()
	}
	if !c.flushSome(flushTurns) {
		go c.flushOwned()
	}
}

// flushElsewhere is flush for those who must not wait for the client.
func (c *conn) flushElsewhere() {
	if c.w.busy || len(c.w.buf) == 0 {
		return
	}
	c.w.busy = true
	go c.flushOwned()
}

// flushOwned writes on until nothing is left; w.busy has been set for it.
func (c *conn) flushOwned() {
	c.mu.Lock()
	c.flushSome(-1)
	c.mu.Unlock()
}

// flushSome writes up to turns times and reports whether nothing is left; w.busy
// stays set if something is.
func (c *conn) flushSome(turns int) bool {
	for ; len(c.w.buf) > 0 && c.err == nil; turns-- {
		if turns == 0 {
			return false
		}
		out := c.w.buf
		c.w.buf, c.w.spare = c.w.spare, nil
		c.w.controls = 0
		c.mu.Unlock()
		_, err := c.nc.Write(out)
		if err != nil {
			c.close(err)
		}
		c.mu.Lock()
		c.w.spare = out[:0]
		c.wakeNext()
		c.quota.Broadcast()
	}
	c.w.busy = false
	if len(c.w.buf) == 0 {
		c.w.buf = giveBackBuffer(c.w.buf)
	}
	c.w.spare = giveBackBuffer(c.w.spare)
	if c.w.closing && c.err == nil {
		go c.close(errDrained)
	}
	return true
}

// closeWhenWritten ends the connection once all frames have gone. c.mu is held.
func (c *conn) closeWhenWritten() {
	c.w.closing = true
	if !c.w.busy {
		c.w.busy = true
		go c.flushOwned()
	}
}

// control appends frames that the client has caused. c.mu is held.
func (c *conn) control(add func([]byte) []byte) {
	n := len(c.w.buf)
	c.w.buf = add(c.w.buf)
	c.w.controls += len(c.w.buf) - n
}

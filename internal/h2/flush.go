package h2

import (
	"runtime"
	"sync"
)

// flusher is the write side of a connection: frames accumulate in buf, and one
// goroutine at a time writes them. Guarded by conn.mu.
type flusher struct {
	buf      []byte
	spare    []byte
	busy     bool
	controls int  // approximate bytes in buf that the client caused without a successful call
	closing  bool // close the connection once buf is written
}

const (
	// keepBuffer is the largest buffer that an idle connection keeps.
	keepBuffer = 4 << 10
	// gatherBytes is the size from which a write is worth a system call of its own.
	gatherBytes = 1 << 10
	// flushTurns is how many times in a row a goroutine writes for others before it
	// hands the job to a background goroutine.
	flushTurns = 4
)

// largeBuffer is the write buffer of a busy connection. The buffer exceeds outBytes
// by at most one frame and its overhead.
type largeBuffer [outBytes + 2*frameBytes]byte

var largeBuffers = sync.Pool{New: func() any { return new(largeBuffer) }}

// room makes room for n bytes in the buffer. While a connection has much to write, it
// borrows a large buffer from the pool.
func (w *flusher) room(n int) {
	if have := len(w.buf) + n; have <= cap(w.buf) || have <= keepBuffer || have > len(largeBuffer{}) {
		return // append grows it
	}
	large := largeBuffers.Get().(*largeBuffer)
	old := w.buf
	w.buf = append(large[:0], old...)
	giveBackBuffer(old)
}

// giveBackBuffer returns a large buffer to the pool. It returns b emptied if b is
// small enough to keep, and nil otherwise.
func giveBackBuffer(b []byte) []byte {
	switch {
	case cap(b) <= keepBuffer:
		return b[:0]
	case cap(b) == len(largeBuffer{}):
		largeBuffers.Put((*largeBuffer)(b[:cap(b)]))
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
		c.out.wakeNext()
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

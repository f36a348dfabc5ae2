package h2

import "runtime"

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
	if cap(c.w.buf) > keepBuffer {
		c.w.buf = nil
	}
	if cap(c.w.spare) > keepBuffer {
		c.w.spare = nil
	}
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

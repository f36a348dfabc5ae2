package h2

import (
	"errors"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"quorate/internal/clock"

	"golang.org/x/sys/unix"
)

// pingPolicy enforces the minimum interval between a client's pings. A ping is exempt
// if headers or data were sent since the previous one.
type pingPolicy struct {
	excused bool // guarded by conn.mu
	last    time.Time
	strikes int
}

// pingsAllowed is called when data or headers are sent. c.mu must be held.
func (c *conn) pingsAllowed() { c.pings.excused = true }

// drainPing follows the first GOAWAY. Its acknowledgement proves that the client has
// seen the GOAWAY.
var drainPing = [8]byte{'d', 'r', 'a', 'i', 'n', 'i', 'n', 'g'}

// drain shuts a connection down gracefully: a GOAWAY with the maximal stream ID asks the
// client to open no more streams; once the client has acknowledged it, or after
// drainTimeout, a second GOAWAY names the last stream that is served; the connection
// closes when the remaining streams have ended.
func (c *conn) drain(why string) {
	c.mu.Lock()
	if c.drain1 || c.err != nil {
		c.mu.Unlock()
		return
	}
	c.drain1, c.drainAck = true, make(chan struct{})
	c.w.buf = appendPing(appendGoAway(c.w.buf, maxStreamID, codeNo, why), 0, drainPing[:])
	c.flushElsewhere()
	c.mu.Unlock()
	wait := clock.NewTimer(clock.System, drainTimeout)
	defer wait.Stop()
	select {
	case <-c.drainAck:
	case <-wait.C:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.drain2 = true
	c.w.buf = appendGoAway(c.w.buf, c.maxID, codeNo, why)
	c.flushElsewhere()
	if c.streams.len() == 0 {
		c.closeWhenWritten()
	}
}

// drainSeen is called when the client has seen the first GOAWAY, or never will. c.mu
// must be held.
func (c *conn) drainSeen() {
	if !c.drain1 {
		return
	}
	select {
	case <-c.drainAck:
	default:
		close(c.drainAck)
	}
}

// keepalive detects clients that are silent and gone.
type keepalive struct {
	last  atomic.Int64 // time of the last read, in Unix nanoseconds
	timer *clock.Alarm // guarded by conn.mu
	asked bool         // a ping is outstanding; used by the timer only
	left  time.Duration
}

func (k *keepalive) read() { k.last.Store(clock.Now().UnixNano()) }

func (k *keepalive) stop() {
	if k.timer != nil {
		k.timer.Stop()
	}
}

func (c *conn) startKeepalive() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		seen := c.alive.last.Load()
		c.alive.timer = clock.AfterFunc(c.srv.o.Keepalive.Time, func() { c.look(seen) })
	}
}

// look pings a client that has been silent since seen, and closes the connection if the
// ping is not answered in time.
func (c *conn) look(seen int64) {
	k, o := &c.alive, &c.srv.o
	var next time.Duration
	switch last := k.last.Load(); {
	case last > seen:
		k.asked, seen = false, last
		next = clock.Until(time.Unix(0, last).Add(o.Keepalive.Time))
	case k.asked && k.left <= 0:
		c.close(errKeepalive)
		return
	default:
		if !k.asked {
			c.mu.Lock()
			c.w.buf = appendPing(c.w.buf, 0, make([]byte, 8))
			c.flushElsewhere()
			c.mu.Unlock()
			k.asked, k.left = true, o.Keepalive.Timeout
		}
		next = min(o.Keepalive.Time, k.left)
		k.left -= next
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		k.timer = clock.AfterFunc(max(next, 0), func() { c.look(seen) })
	}
}

var errKeepalive = errors.New("h2: keepalive ping not acked in time")

// limitSilence sets TCP_USER_TIMEOUT, as gRPC does: the kernel closes a connection whose
// peer has not acknowledged data for d.
func limitSilence(nc net.Conn, d time.Duration) {
	if under, ok := nc.(interface{ NetConn() net.Conn }); ok {
		nc = under.NetConn()
	}
	raw, ok := nc.(syscall.Conn)
	if !ok {
		return
	}
	if rc, err := raw.SyscallConn(); err == nil {
		rc.Control(func(fd uintptr) {
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds())) // fails on sockets that are not TCP
		})
	}
}

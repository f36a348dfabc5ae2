package tcprelay

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"quorate/internal/clock"
)

// A buffer starts small, because most connections carry little, and grows for a connection
// that carries much.
const (
	minBuffer = 4 << 10
	maxBuffer = 64 << 10
)

// join copies both ways between two connections and closes them at the end. When one side
// shuts down sending, join tells the other, which may continue to send as long as it is not
// silent for linger; an error ends both directions. Received bytes are forwarded before
// anything is closed, so an answer in flight is not lost.
func join(a, b net.Conn, linger time.Duration) {
	var half atomic.Bool // one direction has ended
	one := func(dst, src net.Conn) {
		if err := pass(dst, src, &half, linger); err == nil && half.CompareAndSwap(false, true) && closeWrite(dst) == nil {
			// The other direction may be blocked in a Read without a deadline.
			dst.SetReadDeadline(clock.Now().Add(linger))
			return
		}
		a.Close()
		b.Close()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		one(a, b)
	}()
	one(b, a)
	<-done
}

// pass copies until src reaches its end. Once half is set, linger bounds each wait.
func pass(dst, src net.Conn, half *atomic.Bool, linger time.Duration) error {
	buf := make([]byte, minBuffer)
	for {
		if half.Load() {
			src.SetReadDeadline(clock.Now().Add(linger))
		}
		n, err := src.Read(buf)
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if n == len(buf) && n < maxBuffer {
			buf = make([]byte, 4*n)
		}
	}
}

// closeWrite shuts down sending, if conn is a TCP connection; others have no half-close.
func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return errors.ErrUnsupported
}

// ownFault reports whether a dial failed for reasons of this process or machine, which say
// nothing about the endpoint.
func ownFault(err error) bool {
	for _, e := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

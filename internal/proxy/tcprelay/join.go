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

// A buffer starts small, as most connections say little, and grows for one that
// moves much.
const (
	minBuffer = 4 << 10
	maxBuffer = 64 << 10
)

// join copies both ways between two connections and closes them at the end. When
// one side ends its sending, the other is told, and may still send for as long as
// it is not silent for linger; an error ends both ways. Nothing is closed before
// what came in has been passed on, so an answer that is on its way is not lost.
func join(a, b net.Conn, linger time.Duration) {
	var half atomic.Bool // one way has ended
	one := func(dst, src net.Conn) {
		if err := pass(dst, src, &half, linger); err == nil && half.CompareAndSwap(false, true) && closeWrite(dst) == nil {
			// The other way may be waiting in a Read without a deadline.
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

// pass copies until src has nothing more to say. From the moment that half is
// set, each wait is bounded by linger.
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

// closeWrite tells the other end that nothing more comes. What is no TCP
// connection cannot say that.
func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return errors.ErrUnsupported
}

// ownFault reports that a dial failed for reasons of this process or machine,
// which say nothing about the endpoint.
func ownFault(err error) bool {
	for _, e := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

package listen

import (
	"net"
	"sync"
	"sync/atomic"
)

// Places bounds the open connections of the listeners that share it. It holds an element for
// each connection, and for each listener that waits for one.
type Places chan struct{}

// NewPlaces returns places for n connections.
func NewPlaces(n int) Places { return make(Places, n) }

// limited is a listener with a bounded number of open connections. That of x/net/netutil
// hides the accepted connection, and with it the socket.
type limited struct {
	net.Listener
	places Places
	once   sync.Once
	done   chan struct{} // closed by Close
}

// Limit returns a listener that owns l and has open connections as long as there are places;
// without one, new ones wait in the kernel.
func Limit(l net.Listener, p Places) net.Listener {
	return &limited{Listener: l, places: p, done: make(chan struct{})}
}

func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.places <- struct{}{}:
	case <-l.done:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.places
		return nil, err
	}
	return &limitedConn{Conn: conn, of: l}, nil
}

func (l *limited) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.Listener.Close()
}

// limitedConn gives its place back when it is closed.
type limitedConn struct {
	net.Conn
	of     *limited
	closed atomic.Bool
}

func (c *limitedConn) Close() error {
	err := c.Conn.Close()
	if !c.closed.Swap(true) {
		<-c.of.places
	}
	return err
}

// Under returns the connection that was accepted; h2 writes large messages to its socket.
func (c *limitedConn) Under() net.Conn { return c.Conn }

package listen

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"

	"quorate/internal/clock"
)

// preface is the start of every HTTP/2 connection without TLS, including gRPC. No HTTP/1
// request starts like this.
const preface = "PRI * HTTP/2.0\r\n"

const (
	// DefaultSniffTimeout limits the time until a connection has shown its protocol.
	DefaultSniffTimeout = 10 * time.Second

	// DefaultMaxSniffing limits the number of connections that have not shown it yet.
	DefaultMaxSniffing = 4096

	// DefaultMaxHandshakes is that limit for a port with TLS, where each of them costs
	// more memory.
	DefaultMaxHandshakes = 1024

	maxAcceptBackoff = time.Second
)

// Accepts configures the protocols of a port: TLS if set, and also clear text if Plain is
// set. The first byte of a connection distinguishes them.
type Accepts struct {
	Plain bool
	TLS   *TLS
}

// Mux splits a listener in two by the protocol of each connection: without TLS by its first
// bytes, with TLS by the ALPN protocols that the client offers.
//
// One goroutine accepts (Serve). Each connection is inspected, including its TLS handshake, on
// a goroutine of its own, which returns when the connection has been handed over, has timed
// out, is evicted, or its side is closed. If too many are pending, the oldest is closed: an
// honest client sends at once, so the oldest is the least likely to be one.
type Mux struct {
	root         net.Listener
	accepts      Accepts
	sniffTimeout time.Duration
	maxSniffing  int
	grpc, http   *side // the same if the port serves only one protocol

	mu       sync.Mutex
	sniffing *list.List // of net.Conn, oldest first; guarded by mu
	closed   bool       // guarded by mu
	why      error      // why root failed before Close; guarded by mu

	wg     sync.WaitGroup  // goroutines that inspect connections
	done   <-chan struct{} // closed by Close
	ctx    context.Context // done after Close
	cancel context.CancelFunc
}

// NewMux returns a Mux that owns root. It accepts nothing before Serve. Both sides must be
// accepted from or closed: a connection blocks until its side accepts it. The number of
// such connections is limited by root (Options.Places).
func NewMux(root net.Listener, a Accepts) *Mux {
	m := newMux(root, a)
	m.grpc, m.http = newSide(root.Addr(), m.done), newSide(root.Addr(), m.done)
	return m
}

func newMux(root net.Listener, a Accepts) *Mux {
	m := &Mux{
		root:         root,
		accepts:      a,
		sniffTimeout: DefaultSniffTimeout,
		maxSniffing:  DefaultMaxSniffing,
		sniffing:     list.New(),
	}
	if a.TLS != nil {
		m.maxSniffing = DefaultMaxHandshakes
		m.accepts.TLS = a.TLS.listening()
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.done = m.ctx.Done()
	return m
}

// GRPC returns the listener for connections that start with the HTTP/2 preface, or that
// offer only HTTP/2 in TLS. Once it is closed, such connections are dropped; the other side
// stays open.
func (m *Mux) GRPC() net.Listener { return m.grpc }

// HTTP returns the listener for all other connections.
func (m *Mux) HTTP() net.Listener { return m.http }

// Serve accepts connections until Close, or until root fails, and returns the error.
func (m *Mux) Serve() error {
	defer m.Close()
	var backoff time.Duration
	for {
		conn, err := m.root.Accept()
		if err != nil {
			if !isTemporary(err) {
				m.mu.Lock()
				if !m.closed {
					m.why = err
				}
				m.mu.Unlock()
				return err
			}
			// Probably out of file descriptors: wait until some are closed.
			backoff = min(max(2*backoff, 5*time.Millisecond), maxAcceptBackoff)
			select {
			case <-clock.After(backoff):
				continue
			case <-m.done:
				return net.ErrClosed
			}
		}
		backoff = 0
		if e := m.admit(conn); e != nil {
			go m.sniff(conn, e)
		}
	}
}

func isTemporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}

// Close closes the listener and both sides, drops the connections that have not been handed
// over, and waits for their goroutines.
func (m *Mux) Close() error {
	m.mu.Lock()
	first := !m.closed
	m.closed = true
	if first {
		m.cancel()
		for e := m.sniffing.Front(); e != nil; e = e.Next() {
			e.Value.(net.Conn).Close()
		}
	}
	m.mu.Unlock()
	var err error
	if first {
		err = m.root.Close()
	}
	m.wg.Wait()
	return err
}

// admit adds conn to the connections being inspected, evicting the oldest if there are too
// many. It closes conn and returns nil if the mux is closed.
func (m *Mux) admit(conn net.Conn) *list.Element {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		conn.Close()
		return nil
	}
	if m.sniffing.Len() >= m.maxSniffing {
		oldest := m.sniffing.Front()
		m.sniffing.Remove(oldest).(net.Conn).Close()
	}
	m.wg.Add(1)
	return m.sniffing.PushBack(conn)
}

// sniff determines the side of conn and hands it over.
func (m *Mux) sniff(conn net.Conn, e *list.Element) {
	defer m.wg.Done()
	ready, to, err := m.classify(conn)
	m.mu.Lock()
	m.sniffing.Remove(e)
	m.mu.Unlock()
	if err != nil {
		conn.Close()
		return
	}
	to.hand(ready)
}

// classify determines the side of conn and returns the connection to hand over. A single
// deadline covers all of it.
func (m *Mux) classify(conn net.Conn) (net.Conn, *side, error) {
	limit := clock.Now().Add(m.sniffTimeout)
	if err := conn.SetDeadline(limit); err != nil {
		return nil, nil, err
	}
	var (
		ready net.Conn
		to    *side
		err   error
	)
	switch secure, head, e := m.isTLS(conn); {
	case e != nil:
		err = e
	case secure:
		ready, to, err = m.shakeHands(&helloConn{sniffedConn: sniffedConn{Conn: conn, head: head}}, limit)
	case m.grpc == m.http:
		ready, to = &sniffedConn{Conn: conn, head: head}, m.http
	default:
		ready, to, err = m.readHead(conn, head)
	}
	if err != nil {
		return nil, nil, err
	}
	return ready, to, conn.SetDeadline(time.Time{})
}

// firstTLSByte is the first byte of every TLS connection, and of no text protocol.
const firstTLSByte = 0x16

// isTLS distinguishes TLS from clear text on a port that accepts both. It returns the bytes
// it had to read.
func (m *Mux) isTLS(conn net.Conn) (secure bool, head []byte, err error) {
	if m.accepts.TLS == nil || !m.accepts.Plain {
		return m.accepts.TLS != nil, nil, nil
	}
	head = make([]byte, 1, len(preface))
	if n, err := conn.Read(head); n == 0 {
		return false, nil, errors.Join(err, errors.New("nothing read"))
	}
	return head[0] == firstTLSByte, head, nil
}

// shakeHands performs the TLS handshake. A client that offers only HTTP/2 is a gRPC client.
// One that also offers HTTP/1.1, such as curl or a browser, goes to the HTTP side, whichever
// protocol it gets.
func (m *Mux) shakeHands(conn *helloConn, limit time.Time) (net.Conn, *side, error) {
	t := m.accepts.TLS
	secure := tls.Server(conn, t.Config)
	if err := secure.Handshake(); err != nil {
		t.refused(secure, err)
		return nil, nil, err
	}
	state := secure.ConnectionState()
	if t.Check != nil {
		ctx, cancel := context.WithDeadline(m.ctx, limit)
		err := t.Check(ctx, state, conn.RemoteAddr())
		cancel()
		if err != nil {
			t.refused(secure, err)
			return nil, nil, err
		}
	}
	if state.NegotiatedProtocol == "h2" && !conn.offersHTTP1 {
		return secure, m.grpc, nil
	}
	return secure, m.http, nil
}

// readHead reads after head until the bytes equal the preface or differ from it.
func (m *Mux) readHead(conn net.Conn, head []byte) (net.Conn, *side, error) {
	buf := make([]byte, len(preface))
	n := copy(buf, head)
	for n < len(buf) && string(buf[:n]) == preface[:n] {
		k, err := conn.Read(buf[n:])
		n += k
		if err != nil && k == 0 {
			return nil, nil, err
		}
	}
	to := m.http
	if string(buf[:n]) == preface {
		to = m.grpc
	}
	return &sniffedConn{Conn: conn, head: buf[:n]}, to, nil
}

// sniffedConn returns the inspected bytes before the rest. Like any connection, it supports
// one reader at a time.
type sniffedConn struct {
	net.Conn
	head []byte
}

func (c *sniffedConn) Read(p []byte) (int, error) {
	if len(c.head) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.head)
	c.head = c.head[n:]
	if len(c.head) == 0 {
		c.head = nil
	}
	return n, nil
}

// Under returns the connection that was inspected. It is not called NetConn, by which h2
// would find the socket and set a timeout on it that etcd's clear-text connections lack.
func (c *sniffedConn) Under() net.Conn { return c.Conn }

// side is one of the two listeners. Connections wait in the goroutine that inspected them
// until they are accepted.
type side struct {
	addr  net.Addr
	conns chan net.Conn
	mux   <-chan struct{} // closed by Mux.Close

	once   sync.Once
	closed chan struct{}
}

func newSide(addr net.Addr, mux <-chan struct{}) *side {
	return &side{addr: addr, conns: make(chan net.Conn), mux: mux, closed: make(chan struct{})}
}

func (s *side) hand(conn net.Conn) {
	select {
	case s.conns <- conn:
	case <-s.closed:
		conn.Close()
	case <-s.mux:
		conn.Close()
	}
}

func (s *side) Accept() (net.Conn, error) {
	select {
	case <-s.closed:
		return nil, net.ErrClosed
	case <-s.mux:
		return nil, net.ErrClosed
	default:
	}
	select {
	case conn := <-s.conns:
		return conn, nil
	case <-s.closed:
		return nil, net.ErrClosed
	case <-s.mux:
		return nil, net.ErrClosed
	}
}

func (s *side) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func (s *side) Addr() net.Addr { return s.addr }

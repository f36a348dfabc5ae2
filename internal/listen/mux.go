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

// preface is how every HTTP/2 connection without TLS begins, gRPC's among them.
// No HTTP/1 request begins so.
const preface = "PRI * HTTP/2.0\r\n"

const (
	// DefaultSniffTimeout is how long a connection may take to show what it
	// speaks.
	DefaultSniffTimeout = 10 * time.Second

	// DefaultMaxSniffing is how many connections may be about to show it.
	DefaultMaxSniffing = 4096

	// DefaultMaxHandshakes is the same on a port with TLS, where each of them
	// costs more memory.
	DefaultMaxHandshakes = 1024

	maxAcceptBackoff = time.Second
)

// Accepts says what a port speaks: TLS if that is set, and without it if Plain
// is, too; the first byte tells one from the other.
type Accepts struct {
	Plain bool
	TLS   *TLS
}

// Mux splits one listener in two by what each connection speaks: without TLS by
// its first bytes, with TLS by the protocols that the client offers.
//
// One goroutine accepts (Serve). Each connection is looked at, and its TLS
// handshake done, on a goroutine of its own, which ends when the connection has
// been handed over, has taken too long, is evicted, or its side is closed. When
// too many are waiting, the oldest is closed: an honest client speaks at once,
// so the oldest is the least likely to be one.
type Mux struct {
	root         net.Listener
	accepts      Accepts
	sniffTimeout time.Duration
	maxSniffing  int
	grpc, http   *side // the same one if the port serves one of them alone

	mu       sync.Mutex
	sniffing *list.List // of net.Conn, oldest first; guarded by mu
	closed   bool       // guarded by mu
	why      error      // why root failed before Close; guarded by mu

	wg     sync.WaitGroup  // goroutines that look at connections
	done   <-chan struct{} // closed by Close
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
}

// NewMux takes over root. Nothing is accepted before Serve. Both sides are to be
// accepted from or closed: a connection waits for its side to take it, and what
// bounds these is the limit of root (Options.MaxConns).
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

// GRPC is the side of connections that begin with the HTTP/2 preface. Closing
// it leaves the other side open; such connections are dropped from then on.
func (m *Mux) GRPC() net.Listener { return m.grpc }

// HTTP is the side of all other connections.
func (m *Mux) HTTP() net.Listener { return m.http }

// Serve accepts until Close, or until the listener fails, and returns why.
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
			// Out of files, most likely: wait for some to be closed.
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

// Close closes the listener and both sides, drops the connections that have not
// been handed over, and waits for their goroutines.
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

// admit makes room for conn among those that are being looked at. It returns
// nil, having closed conn, when the mux is closed.
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

// sniff decides which side conn belongs to and hands it over.
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

// classify looks at conn and returns it as its side is to see it. One deadline
// holds for all of it, however slowly the bytes come.
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

// firstTLSByte begins every TLS connection, and no text.
const firstTLSByte = 0x16

// isTLS tells the two apart on a port that takes both. It returns what it had to
// read for that.
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

// shakeHands takes conn through the handshake. A client that offers HTTP/2 and
// nothing else is a gRPC client. One that offers HTTP/1.1 as well, such as curl
// or a browser, gets to the HTTP side with either of them.
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

// readHead reads behind head until the bytes are the preface or differ from it.
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

// sniffedConn reads the bytes that were looked at before the rest. Like any
// connection it has one reader at a time.
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

// side is one of the two listeners. Connections wait in the goroutine that
// looked at them until they are accepted.
type side struct {
	addr  net.Addr
	conns chan net.Conn
	mux   <-chan struct{} // closed when the whole mux is

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

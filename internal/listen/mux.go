package listen

import (
	"container/list"
	"errors"
	"net"
	"sync"
	"time"
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

	maxAcceptBackoff = time.Second
)

// Mux splits one listener in two by the first bytes of each connection.
//
// One goroutine accepts (Serve). Each connection is looked at on a goroutine of
// its own, which ends when the connection has been handed over, has been
// silent for too long, is evicted, or its side is closed. When too many are
// waiting, the oldest is closed: an honest client speaks at once, so the oldest
// is the least likely to be one.
type Mux struct {
	root         net.Listener
	sniffTimeout time.Duration
	maxSniffing  int
	grpc, http   *side

	mu       sync.Mutex
	sniffing *list.List // of net.Conn, oldest first; guarded by mu
	closed   bool       // guarded by mu

	wg   sync.WaitGroup // goroutines that look at connections
	done chan struct{}  // closed by Close
}

// NewMux takes over root. Nothing is accepted before Serve. Both sides are to be
// accepted from or closed: a connection waits for its side to take it, and what
// bounds these is the limit of root (Options.MaxConns).
func NewMux(root net.Listener) *Mux {
	m := &Mux{
		root:         root,
		sniffTimeout: DefaultSniffTimeout,
		maxSniffing:  DefaultMaxSniffing,
		sniffing:     list.New(),
		done:         make(chan struct{}),
	}
	m.grpc, m.http = newSide(root.Addr(), m.done), newSide(root.Addr(), m.done)
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
				return err
			}
			// Out of files, most likely: wait for some to be closed.
			backoff = min(max(2*backoff, 5*time.Millisecond), maxAcceptBackoff)
			select {
			case <-time.After(backoff):
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
		close(m.done)
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
	head, isGRPC, err := m.readHead(conn)
	m.mu.Lock()
	m.sniffing.Remove(e)
	m.mu.Unlock()
	if err != nil {
		conn.Close()
		return
	}
	to := m.http
	if isGRPC {
		to = m.grpc
	}
	to.hand(&sniffedConn{Conn: conn, head: head})
}

// readHead reads until the bytes are the preface or differ from it. One
// deadline holds for all of it, however slowly the bytes come.
func (m *Mux) readHead(conn net.Conn) (head []byte, isGRPC bool, err error) {
	if err := conn.SetReadDeadline(time.Now().Add(m.sniffTimeout)); err != nil {
		return nil, false, err
	}
	buf := make([]byte, len(preface))
	n := 0
	for n < len(buf) && string(buf[:n]) == preface[:n] {
		k, err := conn.Read(buf[n:])
		n += k
		if err != nil && k == 0 {
			return nil, false, err
		}
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return nil, false, err
	}
	return buf[:n], string(buf[:n]) == preface, nil
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

package main

import (
	"io"
	"net"
	"sync"
)

// recorder passes connections on to a server and keeps the first bytes of both directions.
type recorder struct {
	l      net.Listener
	target string

	mu    sync.Mutex
	conns []*recording
	wg    sync.WaitGroup
}

// recording is one connection. Each direction keeps at most maxRecorded bytes.
type recording struct {
	mu       sync.Mutex
	up, down []byte // from the client, from the server
}

const maxRecorded = 256 << 10

// record listens on a free port and passes connections on to target, which may be set later.
func record(target string) (*recorder, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &recorder{l: l, target: target}
	r.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.wg.Go(func() { r.serve(c) })
		}
	})
	return r, nil
}

func (r *recorder) addr() string { return r.l.Addr().String() }

func (r *recorder) serve(c net.Conn) {
	defer c.Close()
	s, err := net.Dial("tcp", r.target)
	if err != nil {
		return
	}
	defer s.Close()
	x := &recording{}
	r.mu.Lock()
	r.conns = append(r.conns, x)
	r.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { x.pump(s, c, &x.up) })
	both.Go(func() { x.pump(c, s, &x.down) })
	both.Wait()
}

func (x *recording) pump(to, from net.Conn, kept *[]byte) {
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		x.mu.Lock()
		*kept = append(*kept, b[:min(n, maxRecorded-len(*kept))]...)
		x.mu.Unlock()
		if _, werr := to.Write(b[:n]); err != nil || werr != nil {
			break
		}
	}
	if c, ok := to.(*net.TCPConn); ok {
		c.CloseWrite()
	}
	if _, err := io.Copy(io.Discard, from); err != nil {
		to.Close()
	}
}

// recorded returns the connections so far.
func (r *recorder) recorded() []*recording {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.conns
}

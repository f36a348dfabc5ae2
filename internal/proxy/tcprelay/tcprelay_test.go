package tcprelay

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"quorate/internal/clock"
)

// limit bounds every step on a busy machine.
const limit = time.Minute

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is an endpoint of the test: serve is called for each connection.
func server(t *testing.T, serve func(*net.TCPConn)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().String()
}

// says sends its name at once and then echoes what it receives.
func says(name string) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		if _, err := io.WriteString(c, name+"\n"); err == nil {
			io.Copy(c, c)
		}
	}
}

// world is a relay in front of endpoints that the test turns on and off.
type world struct {
	t     *testing.T
	relay *Relay
	addr  string
	clock *clock.Manual
	logs  *observer.ObservedLogs

	mu    sync.Mutex
	down  map[string]error
	dials []string
}

// start runs a relay in front of the endpoints until the end of the test.
func start(t *testing.T, o Options, addrs ...string) *world {
	t.Helper()
	core, logs := observer.New(zap.InfoLevel)
	w := &world{t: t, clock: clock.NewManual(noon), logs: logs, down: map[string]error{}}
	var err error
	if o.Endpoints, err = ParseEndpoints(addrs); err != nil {
		t.Fatal(err)
	}
	o.Clock, o.Logger = w.clock, zap.New(core)
	o.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
		w.mu.Lock()
		err := w.down[addr]
		w.dials = append(w.dials, addr)
		w.mu.Unlock()
		if errors.Is(err, context.DeadlineExceeded) { // no answer, as from a host that is gone
			<-ctx.Done()
			return nil, ctx.Err()
		}
		if err != nil {
			return nil, err
		}
		// Running endpoints answer, however long this machine takes.
		return new(net.Dialer).DialContext(context.WithoutCancel(ctx), "tcp", addr)
	}
	w.relay = New(o)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr = l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- w.relay.Serve(l) }()
	t.Cleanup(func() {
		w.relay.Close()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	w.eventually("the relay serves", func() bool { return logs.FilterMessage("ready to proxy client requests").Len() == 1 })
	return w
}

func (w *world) set(addr string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down[addr] = err
}

func (w *world) dialled() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.dials, " ")
}

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("%s: not within %v", what, limit)
		}
	}
}

// open connects to the relay.
func (w *world) open() *net.TCPConn {
	w.t.Helper()
	c, err := net.Dial("tcp", w.addr)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(limit))
	return c.(*net.TCPConn)
}

// name returns the first line received on a new connection, "" if it is closed before.
func (w *world) name() string {
	w.t.Helper()
	c := w.open()
	defer c.Close()
	return line(w.t, c)
}

func line(t *testing.T, c net.Conn) string {
	t.Helper()
	var out []byte
	for b := make([]byte, 1); ; {
		if _, err := c.Read(b); err != nil {
			if len(out) == 0 && closed(err) {
				return ""
			}
			t.Fatalf("after %q: %v", out, err)
		}
		if b[0] == '\n' {
			return string(out)
		}
		out = append(out, b[0])
	}
}

// closed reports whether the other side has closed the connection, in whatever way.
func closed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func TestRelayFailedEndpoints(t *testing.T) {
	a, b := server(t, says("a")), server(t, says("b"))
	w := start(t, Options{RetryDelay: time.Minute}, a, b)
	if got := w.name() + w.name() + w.name(); got != "aba" {
		t.Fatalf("three connections came to %s, want aba", got)
	}

	w.set(a, syscall.ECONNREFUSED)
	got := ""
	for range 4 {
		got += w.name()
	}
	if got != "bbbb" {
		t.Errorf("with a down, connections came to %s, want bbbb", got)
	}
	deactivated := w.logs.FilterMessage("deactivated endpoint").All()
	if len(deactivated) != 1 || deactivated[0].ContextMap()["address"] != a || deactivated[0].ContextMap()["interval"] != time.Minute {
		t.Errorf("deactivated: %+v", deactivated)
	}

	// A failed probe changes nothing.
	w.clock.Advance(time.Minute)
	still := w.logs.FilterMessage("failed to activate endpoint (stay inactive for another interval)")
	if still.Len() != 1 || w.logs.FilterMessage("deactivated endpoint").Len() != 1 {
		t.Errorf("after a probe in vain: %+v", w.logs.All())
	}
	// Between the probes it is not used, even though it is running again.
	w.set(a, nil)
	w.clock.Advance(time.Minute - time.Second)
	if got := w.name() + w.name(); got != "bb" {
		t.Errorf("before the probe, connections came to %s, want bb", got)
	}
	w.clock.Advance(time.Second)
	if w.logs.FilterMessage("activated").FilterField(zap.String("address", a)).Len() != 1 {
		t.Errorf("after the probe: %+v", w.logs.All())
	}
	if got := w.name() + w.name(); got != "ab" && got != "ba" {
		t.Errorf("after the probe, connections came to %s, want both", got)
	}
}

// If no endpoint is left, the relay closes the client's connection. The next client finds
// the first endpoint that recovers, without waiting for a probe.
func TestRelayAllFailed(t *testing.T) {
	a, b := server(t, says("a")), server(t, says("b"))
	w := start(t, Options{RetryDelay: time.Hour}, a, b)
	w.set(a, syscall.ECONNREFUSED)
	w.set(b, syscall.EHOSTUNREACH)
	if got := w.name() + w.name(); got != "" {
		t.Errorf("came to %s although both are down", got)
	}
	if got, want := w.dialled(), a+" "+b; got != want {
		t.Errorf("two connections within a second dialled %s, want %s once", got, want)
	}
	w.set(b, nil)
	w.clock.Advance(lastResort)
	if got := w.name(); got != "b" {
		t.Errorf("came to %q, want b", got)
	}
	if got := w.logs.FilterMessage("activated").Len(); got != 1 {
		t.Errorf("%d lines about an activated endpoint, want 1", got)
	}
}

// A host that does not answer costs the dial limit once, and the connection goes to another
// endpoint.
func TestRelayDialLimit(t *testing.T) {
	a, b := server(t, says("a")), server(t, says("b"))
	w := start(t, Options{DialLimit: 50 * time.Millisecond}, a, b)
	w.set(a, context.DeadlineExceeded)
	if got := w.name() + w.name() + w.name(); got != "bbb" {
		t.Errorf("connections came to %s, want bbb", got)
	}
	if got := strings.Count(w.dialled(), a); got != 1 {
		t.Errorf("dialled %d times, want once", got)
	}
}

// A lack of descriptors here says nothing about an endpoint.
func TestRelayOwnFault(t *testing.T) {
	a := server(t, says("a"))
	w := start(t, Options{}, a)
	w.set(a, &net.OpError{Op: "dial", Err: syscall.EMFILE})
	if got := w.name(); got != "" {
		t.Errorf("came to %q", got)
	}
	w.set(a, nil)
	if got := w.name(); got != "a" {
		t.Errorf("came to %q, want a", got)
	}
	if n := w.logs.FilterMessage("deactivated endpoint").Len(); n != 0 {
		t.Errorf("deactivated %d times", n)
	}
}

// Much data in both directions at once arrives unchanged.
func TestRelayBytes(t *testing.T) {
	w := start(t, Options{}, server(t, func(c *net.TCPConn) { io.Copy(c, c) }))
	data := make([]byte, 8<<20)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(data)
	c := w.open()
	var wg sync.WaitGroup
	wg.Go(func() {
		for rest := data; len(rest) > 0; {
			n := min(len(rest), 1+len(rest)%100_000)
			if _, err := c.Write(rest[:n]); err != nil {
				t.Error(err)
				return
			}
			rest = rest[n:]
		}
		c.CloseWrite()
	})
	got, err := io.ReadAll(c)
	wg.Wait()
	if err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
		t.Errorf("%d of %d bytes came back, equal %v, %v", len(got), len(data), bytes.Equal(got, data), err)
	}
}

// A client that ends its request by closing its side receives the whole answer.
func TestRelayHalfClose(t *testing.T) {
	w := start(t, Options{}, server(t, func(c *net.TCPConn) {
		request, err := io.ReadAll(c)
		if err == nil {
			c.Write(bytes.Repeat(request, 100_000))
		}
	}))
	c := w.open()
	if _, err := c.Write([]byte("request")); err != nil {
		t.Fatal(err)
	}
	c.CloseWrite()
	if got, err := io.ReadAll(c); err != nil || len(got) != 700_000 {
		t.Errorf("%d bytes of the answer, %v; want 700000", len(got), err)
	}
}

// Whichever side closes, the other sees it.
func TestRelayClose(t *testing.T) {
	ended := make(chan error, 2)
	member := make(chan *net.TCPConn, 2)
	w := start(t, Options{}, server(t, func(c *net.TCPConn) {
		member <- c
		_, err := c.Read(make([]byte, 1))
		ended <- err
	}))
	c := w.open()
	<-member
	c.Close()
	if err := <-ended; !closed(err) {
		t.Errorf("the member sees %v after the client closed", err)
	}
	c = w.open()
	m := <-member
	m.SetLinger(0) // as a killed process's connection: reset
	m.Close()
	<-ended
	if _, err := c.Read(make([]byte, 1)); !closed(err) {
		t.Errorf("the client sees %v after the member closed", err)
	}
	w.eventually("the connections are forgotten", func() bool {
		w.relay.mu.Lock()
		defer w.relay.mu.Unlock()
		return len(w.relay.conns) == 0 && w.relay.busy == 0
	})
}

// A side that never closes after the other has closed is not waited for forever; one that
// keeps sending is.
func TestRelayLinger(t *testing.T) {
	const linger, pieces = time.Second, 20
	hold := make(chan struct{})
	defer close(hold)
	var slowest atomic.Int64
	w := start(t, Options{Linger: linger}, server(t, func(c *net.TCPConn) {
		io.ReadAll(c)
		last := time.Now()
		for range pieces { // a total that takes longer than linger
			time.Sleep(linger / 12)
			if _, err := io.WriteString(c, "x"); err != nil {
				return
			}
			slowest.Store(max(slowest.Load(), int64(time.Since(last))))
			last = time.Now()
		}
		<-hold
	}))
	c := w.open()
	c.CloseWrite()
	got, err := io.ReadAll(c)
	if err != nil && !closed(err) {
		t.Fatal(err)
	}
	// If this machine paused for longer than linger, the connection may have ended in
	// between.
	if pause := time.Duration(slowest.Load()); pause < linger/2 && len(got) != pieces {
		t.Errorf("%d pieces arrived, with pauses of at most %v; want %d", len(got), pause, pieces)
	}
}

// Nor is a side that is silent.
func TestRelayLingerSilent(t *testing.T) {
	hold := make(chan struct{})
	defer close(hold)
	w := start(t, Options{Linger: 50 * time.Millisecond}, server(t, func(c *net.TCPConn) {
		io.WriteString(c, "hello\n")
		<-hold
	}))
	c := w.open()
	if got := line(t, c); got != "hello" {
		t.Fatalf("got %q", got)
	}
	c.CloseWrite()
	if _, err := c.Read(make([]byte, 1)); !closed(err) {
		t.Errorf("got %v, want the end", err)
	}
}

func TestRelayBound(t *testing.T) {
	w := start(t, Options{MaxConns: 2}, server(t, says("a")))
	first, second := w.open(), w.open()
	line(t, first)
	line(t, second)
	for range 3 {
		if got := w.name(); got != "" {
			t.Errorf("a third connection came to %q", got)
		}
	}
	if n := w.logs.FilterMessage("too many connections; closing new ones").Len(); n != 1 {
		t.Errorf("%d lines say so, want one a minute", n)
	}
	// Existing connections continue, and when one ends there is room for another.
	fmt.Fprintln(first, "still here")
	if got := line(t, first); got != "still here" {
		t.Errorf("got %q", got)
	}
	first.Close()
	w.eventually("there is room again", func() bool { return w.name() == "a" })
}

// broken is a listener that fails in the given ways before it works.
type broken struct {
	net.Listener
	errs chan error
}

func (b broken) Accept() (net.Conn, error) {
	select {
	case err := <-b.errs:
		return nil, err
	default:
		return b.Listener.Accept()
	}
}

func TestRelayAcceptErrors(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := broken{l, make(chan error, 3)}
	b.errs <- &net.OpError{Op: "accept", Err: syscall.EMFILE}
	b.errs <- &net.OpError{Op: "accept", Err: syscall.ECONNABORTED}
	b.errs <- &net.OpError{Op: "accept", Err: syscall.EINVAL}
	core, logs := observer.New(zap.WarnLevel)
	r := New(Options{Logger: zap.New(core)})
	if err := r.Serve(b); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("Serve: %v, want the error that does not pass", err)
	}
	if logs.Len() != 2 {
		t.Errorf("%d lines about errors that pass, want 2", logs.Len())
	}
	l.Close()
	r.Close()
}

// Close ends connections, dials and probes in progress.
func TestRelayStop(t *testing.T) {
	a, b := server(t, says("a")), server(t, says("b"))
	w := start(t, Options{DialLimit: time.Hour}, a, b)
	joined := w.open()
	if got := line(t, joined); got != "a" {
		t.Fatalf("came to %s", got)
	}
	w.set(b, context.DeadlineExceeded)
	dialling := w.open()
	w.eventually("the second is being dialled", func() bool { return strings.Contains(w.dialled(), b) })
	w.relay.Close()
	for _, c := range []net.Conn{joined, dialling} {
		if _, err := c.Read(make([]byte, 1)); !closed(err) {
			t.Errorf("after Close: %v", err)
		}
	}
	if c, err := net.Dial("tcp", w.addr); err == nil {
		t.Error("still listens")
		c.Close()
	}
	if n := w.logs.FilterMessage("deactivated endpoint").Len(); n != 0 {
		t.Errorf("an endpoint is said to have failed at the stop")
	}
}

package lean

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// raw passes messages through as bytes.
type raw struct{}

func (raw) Name() string { return "proto" }
func (raw) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}
func (raw) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

const (
	echo   = "/test.Test/Echo"   // echoes the request
	fail   = "/test.Test/Fail"   // code 5 with the request as its text
	repeat = "/test.Test/Repeat" // answers the first message 100 times, then one each
	meta   = "/test.Test/Meta"   // answers with the metadata "token" and whether there is a deadline
	never  = "/test.Test/Never"  // blocks until the call ends
)

// serve starts grpc-go's server and returns its address.
func serve(t *testing.T, o ...grpc.ServerOption) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(append(o, grpc.ForceServerCodecV2(raw{}), grpc.MaxRecvMsgSize(8<<20), grpc.UnknownServiceHandler(handle))...)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() { srv.Stop(); <-done })
	return l.Addr().String()
}

func handle(_ any, s grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(s)
	for n := 0; ; n++ {
		var b []byte
		if err := s.RecvMsg(&b); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		times := 1
		switch method {
		case fail:
			return status.Error(codes.NotFound, string(b))
		case repeat:
			if n == 0 {
				times = 100
			}
		case meta:
			md, _ := metadata.FromIncomingContext(s.Context())
			_, limited := s.Context().Deadline()
			b = fmt.Append(nil, md["token"], limited)
		case never:
			<-s.Context().Done()
			return s.Context().Err()
		}
		for range times {
			if err := s.SendMsg(&b); err != nil {
				return err
			}
		}
	}
}

func dialed(t *testing.T, addr string, o Options) *Conn {
	c, err := Dial(t.Context(), addr, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestCalls(t *testing.T) {
	c := dialed(t, serve(t), Options{Fields: [][2]string{{"token", "abc"}}})
	for round := range 3 { // headers are sent in three ways
		for _, n := range []int{0, 1, 10, frameBytes - prefixLen, frameBytes, defaultWindow, 3 << 20} {
			want := bytes.Repeat([]byte{'x'}, n)
			a, err := c.Do(t.Context(), echo, want, true)
			if err != nil || !bytes.Equal(a.Body, want) || a.Size != n {
				t.Fatalf("round %d: echo of %d bytes: got %d (size %d), %v", round, n, len(a.Body), a.Size, err)
			}
			if a, err = c.Do(t.Context(), echo, want, false); err != nil || a.Body != nil || a.Size != n {
				t.Fatalf("echo of %d bytes, not kept: got %d (size %d), %v", n, len(a.Body), a.Size, err)
			}
		}
		for _, text := range []string{"", "not there", "100% größer\n", strings.Repeat("long ", 1000)} {
			var st *Status
			if _, err := c.Do(t.Context(), fail, []byte(text), true); !errors.As(err, &st) || st.Code != int(codes.NotFound) || st.Message != text {
				t.Fatalf("fail with %q: got %v", text, err)
			}
		}
		if a, err := c.Do(t.Context(), meta, nil, true); err != nil || string(a.Body) != "[abc] true" {
			t.Fatalf("metadata: got %q, %v", a.Body, err)
		}
	}
}

func TestStream(t *testing.T) {
	c := dialed(t, serve(t), Options{})
	big := bytes.Repeat([]byte{'y'}, 40<<10) // 100 of them exceed the windows
	got, ended := make(chan int, 1000), make(chan error, 1)
	x := &Call{OnMessage: func(b []byte) { got <- len(b) }, OnEnd: func(err error) { ended <- err }}
	add := func(p []byte) Request { return func(b []byte) []byte { return append(b, p...) } }
	if err := c.Start(x, repeat, add(big), false); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if n := <-got; n != len(big) {
			t.Fatalf("got a message of %d bytes, want %d", n, len(big))
		}
	}
	for i := range 200 { // more than the server accepts concurrently
		if err := c.Send(x, add(big[:i]), false); err != nil {
			t.Fatal(err)
		}
		if n := <-got; n != i {
			t.Fatalf("got %d bytes, want %d", n, i)
		}
	}
	if err := c.Send(x, add(nil), true); err != nil {
		t.Fatal(err)
	}
	if n := <-got; n != 0 {
		t.Fatalf("got %d bytes, want none", n)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if x.Messages != 301 {
		t.Errorf("got %d messages, want 301", x.Messages)
	}
	if err := c.Send(x, add(nil), true); err == nil {
		t.Error("a message of a call that has ended: got no error")
	}
}

// The next call is started from the callback of the previous answer.
func TestChains(t *testing.T) {
	c := dialed(t, serve(t), Options{})
	const callers, each = 50, 200
	var wg sync.WaitGroup
	wg.Add(callers)
	for i := range callers {
		left := each
		var x Call
		request := func(b []byte) []byte { return fmt.Append(b, i, left) }
		x.OnMessage = func(b []byte) {
			if want := fmt.Sprint(i, left); string(b) != want {
				t.Errorf("got %q, want %q", b, want)
			}
		}
		x.OnEnd = func(err error) {
			if left--; err != nil || left == 0 {
				if err != nil {
					t.Error(err)
				}
				wg.Done()
				return
			}
			if err := c.Start(&x, echo, request, true); err != nil {
				t.Error(err)
				wg.Done()
			}
		}
		if err := c.Start(&x, echo, request, true); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
}

func TestEnds(t *testing.T) {
	c := dialed(t, serve(t), Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := c.Do(ctx, never, nil, false); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a call beyond its context: got %v", err)
	}
	if _, err := c.Do(t.Context(), echo, []byte("a"), true); err != nil {
		t.Errorf("a call after one that was given up: got %v", err)
	}
	ended := make(chan error, 1)
	if err := c.Start(&Call{OnEnd: func(err error) { ended <- err }}, never, func(b []byte) []byte { return b }, true); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Errorf("a call of a closed connection: got %v", err)
	}
	if _, err := c.Do(t.Context(), echo, nil, false); !errors.Is(err, ErrClosed) {
		t.Errorf("a call on a closed connection: got %v", err)
	}
}

func TestTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	roots := x509.NewCertPool()
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots.AddCert(leaf)
	addr := serve(t, grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert})))
	c := dialed(t, addr, Options{TLS: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}}})
	want := bytes.Repeat([]byte{'z'}, 100<<10)
	if a, err := c.Do(t.Context(), echo, want, true); err != nil || !bytes.Equal(a.Body, want) {
		t.Errorf("got %d bytes, %v", len(a.Body), err)
	}
	if _, err := Dial(t.Context(), addr, Options{TLS: &tls.Config{}}); err == nil {
		t.Error("a server with an untrusted certificate: got no error")
	}
}

// A cached block must mean the same each time it arrives.
func TestChangesTable(t *testing.T) {
	for _, tc := range []struct {
		block []byte
		want  bool
	}{
		{[]byte{0x88, 0xc0, 0xff, 0x10}, false},                             // indexed
		{[]byte{0x00, 1, 'a', 1, 'b', 0x0f, 3, 1, 'c'}, false},              // in no table
		{[]byte{0x10, 1, 'a', 1, 'b'}, false},                               // never
		{[]byte{0x88, 0x40, 1, 'a', 1, 'b'}, true},                          // new
		{[]byte{0x3f, 0xe1, 0x1f}, true},                                    // another size
		{append([]byte{0x00, 1, 'a', 127, 1}, make([]byte, 128)...), false}, // long
		{nil, false},
	} {
		if got := changesTable(tc.block); got != tc.want {
			t.Errorf("%x: got %v, want %v", tc.block, got, tc.want)
		}
	}
	var r answerBlocks
	r.init()
	var buf bytes.Buffer
	enc := hpack.NewEncoder(&buf)
	for i := range 200 { // the table is evicted and refilled
		buf.Reset()
		message := fmt.Sprint("m", i/3)
		for _, f := range []hpack.HeaderField{{Name: ":status", Value: "200"}, {Name: "grpc-status", Value: fmt.Sprint(i / 3 % 5)}, {Name: "grpc-message", Value: message}} {
			if err := enc.WriteField(f); err != nil {
				t.Fatal(err)
			}
		}
		a, err := r.decode(buf.Bytes())
		if err != nil || a.status.Code != i/3%5 || a.status.Message != message || !a.hasStatus || a.http != "200" {
			t.Fatalf("block %d: got %+v, %v", i, a, err)
		}
	}
}

package h2

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/status"

	"golang.org/x/net/http2"
)

// sourceServer replies with the request.
func sourceServer(t *testing.T) (addr string, answer chan<- *pieces) {
	t.Helper()
	srv, addr := newTestServer(t, Options{Workers: 1})
	answers := make(chan *pieces, 1)
	srv.HandleUnary("/test.S/Pieces", func(*Stream, []byte) (Reply, error) {
		p := <-answers
		return Reply{Source: p, Size: len(p.left)}, nil
	})
	return addr, answers
}

// The start of a reply reaches the client before the rest is produced.
func TestFirstPieceGoesOut(t *testing.T) {
	addr, answer := sourceServer(t)
	want := bytes.Repeat([]byte("0123456789"), 50_000)
	seen := make(chan struct{})
	calls := 0
	p := &pieces{left: want, closed: make(chan struct{})}
	p.before = func() error {
		if calls++; calls == 3 {
			<-seen
		}
		return nil
	}
	answer <- p
	c := dialRaw(t, addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
	c.fr.WriteWindowUpdate(0, 1<<30)
	c.headers(1, false, call_("/test.S/Pieces")...)
	c.fr.WriteData(1, true, framed(""))
	var got []byte
	for ended := false; !ended; {
		f, err := c.fr.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		switch f := f.(type) {
		case *http2.DataFrame:
			if len(got) == 0 {
				close(seen)
			}
			got = append(got, f.Data()...)
		case *http2.MetaHeadersFrame:
			ended = f.StreamEnded()
		}
	}
	if !bytes.Equal(got, framed(string(want))) {
		t.Errorf("got %d bytes, want %d", len(got), prefixLen+len(want))
	}
	<-p.closed
}

// A reply whose source fails does not look complete to the client.
func TestSourceFails(t *testing.T) {
	addr, answer := sourceServer(t)
	cc := dial(t, addr)
	for _, compressed := range []bool{false, true} {
		calls := 0
		p := &pieces{left: make([]byte, 500_000), closed: make(chan struct{})}
		p.before = func() error {
			if calls++; calls > 5 {
				return errors.New("broken")
			}
			return nil
		}
		answer <- p
		var o []grpc.CallOption
		if compressed {
			o = append(o, grpc.UseCompressor(gzip.Name))
		}
		var req, resp []byte
		err := cc.Invoke(context.Background(), "/test.S/Pieces", &req, &resp, o...)
		if want := map[bool]codes.Code{false: codes.Internal, true: codes.Unknown}[compressed]; status.Code(err) != want {
			t.Errorf("compressed %v: got %v", compressed, err)
		}
		<-p.closed
	}
}

// A client that disconnects stops the source of its reply.
func TestSourceOfClientThatGoes(t *testing.T) {
	addr, answer := sourceServer(t)
	cc := dial(t, addr)
	ctx, cancel := context.WithCancel(context.Background())
	p := &pieces{left: make([]byte, 50<<20), closed: make(chan struct{})}
	calls := 0
	p.before = func() error {
		if calls++; calls == 4 {
			cancel()
		}
		return nil
	}
	answer <- p
	var req, resp []byte
	if err := cc.Invoke(ctx, "/test.S/Pieces", &req, &resp); status.Code(err) != codes.Canceled {
		t.Errorf("got %v", err)
	}
	<-p.closed
}

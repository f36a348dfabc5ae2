package listen

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
)

func TestPipe(t *testing.T) {
	p := NewPipe()
	served := make(chan error, 1)
	go func() {
		c, err := p.Accept()
		if err == nil {
			_, err = io.Copy(c, c)
			c.Close()
		}
		served <- err
	}()
	c, err := p.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := c.RemoteAddr().String(); got != "in-process" {
		t.Errorf("remote address %q", got)
	}
	large := make([]byte, 1<<20) // more than fits into the socket buffers
	go func() { c.Write(large); c.(pipeConn).Conn.(*net.UnixConn).CloseWrite() }()
	got, err := io.ReadAll(c)
	if err != nil || len(got) != len(large) {
		t.Errorf("%d bytes came back, %v; want %d", len(got), err, len(large))
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	c.Close()

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Dial(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("dial without a server: %v", err)
	}
	p.Close()
	if _, err := p.Dial(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("dial after Close: %v", err)
	}
	if _, err := p.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after Close: %v", err)
	}
}

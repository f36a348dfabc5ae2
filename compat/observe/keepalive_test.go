package observe

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"quorate/compat/harness"
)

// speaker exchanges HTTP/2 frames with a server, as a client that follows no policy.
type speaker struct {
	net.Conn
	*http2.Framer
}

func speak(m *harness.Member) (*speaker, error) {
	conn, err := net.DialTimeout("tcp", m.ClientAddr(), limit)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return nil, err
	}
	s := &speaker{conn, http2.NewFramer(conn, conn)}
	return s, s.WriteSettings()
}

// settings are what the server announces about itself.
func settings(m *harness.Member) (string, error) {
	s, err := speak(m)
	if err != nil {
		return "", err
	}
	defer s.Close()
	f, err := s.ReadFrame()
	if err != nil {
		return "", err
	}
	set, ok := f.(*http2.SettingsFrame)
	if !ok {
		return "", fmt.Errorf("first frame is %v", f)
	}
	n, given := set.Value(http2.SettingMaxConcurrentStreams)
	return fmt.Sprintf("most streams %d, given %v", n, given), nil
}

// watchCall opens a long-lived call.
func (s *speaker) watchCall(authority string) error {
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	for _, f := range []hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: "/etcdserverpb.Watch/Watch"},
		{Name: ":authority", Value: authority}, {Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"},
	} {
		if err := e.WriteField(f); err != nil {
			return err
		}
	}
	return s.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true})
}

const pings = 5 // two are tolerated

// pester pings without a pause during a call, and returns the server's reaction.
func pester(m *harness.Member) (string, error) {
	s, err := speak(m)
	if err != nil {
		return "", err
	}
	defer s.Close()
	if err := s.watchCall(m.ClientAddr()); err != nil {
		return "", err
	}
	for i := range byte(pings) {
		if err := s.WritePing(false, [8]byte{i}); err != nil {
			break // the server has closed the connection; what it sent before can still be read
		}
	}
	for answered := 0; ; {
		f, err := s.ReadFrame()
		if err != nil {
			return "", fmt.Errorf("closed without a word: %w", err)
		}
		switch f := f.(type) {
		case *http2.GoAwayFrame:
			return fmt.Sprintf("%v %s", f.ErrCode, f.DebugData()), nil
		case *http2.PingFrame:
			if f.IsAck() {
				answered++
			}
		}
		if answered == pings {
			return "all answered", nil
		}
	}
}

// neglect leaves the server's pings unanswered.
func neglect(m *harness.Member) (string, error) {
	s, err := speak(m)
	if err != nil {
		return "", err
	}
	defer s.Close()
	pings := 0
	for {
		f, err := s.ReadFrame()
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			return "", fmt.Errorf("still open after %v and %d pings", limit, pings)
		}
		if err != nil {
			return fmt.Sprintf("closed after %d pings", pings), nil
		}
		if p, ok := f.(*http2.PingFrame); ok && !p.IsAck() {
			pings++
		}
	}
}

// compareTalk compares the behaviour of both servers.
func compareTalk(t *testing.T, what string, members [2]*harness.Member, want string, talk func(*harness.Member) (string, error)) {
	t.Helper()
	var got [2]string
	var errs [2]error
	var wg sync.WaitGroup
	for i, m := range members {
		wg.Go(func() { got[i], errs[i] = talk(m) })
	}
	wg.Wait()
	for i := range got {
		if errs[i] != nil || !strings.Contains(got[i], want) {
			t.Errorf("%s of server %c: got %q, %v; want %q", what, 'a'+i, got[i], errs[i], want)
		}
	}
	if got[0] != got[1] {
		t.Errorf("%s: got %q, want %q", what, got[1], got[0])
	}
}

// TestKeepalive checks that the flags for keepalive and streams have their effect.
func TestKeepalive(t *testing.T) {
	t.Parallel()
	members, _ := single(t, "--grpc-keepalive-min-time=1h", "--grpc-keepalive-interval=1s", "--grpc-keepalive-timeout=1s", "--max-concurrent-streams=7")
	compareTalk(t, "settings", members, "most streams 7,", settings)
	compareTalk(t, "too many pings", members, "ENHANCE_YOUR_CALM too_many_pings", pester)
	compareTalk(t, "pings without an answer", members, "closed after 1 pings", neglect)

	members, _ = single(t, "--grpc-keepalive-min-time=1ns")
	compareTalk(t, "pings that are allowed", members, "all answered", pester)
}

package utl

import (
	"bytes"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
)

// If no endpoint answers, member rebuild says why, for each of them.
func TestRebuildSaysWhyThereIsNoAnswer(t *testing.T) {
	backup, _ := savedFile(t)
	dir := filepath.Join(t.TempDir(), "data")
	if _, stderr, code := run("snapshot", "restore", backup, "--data-dir", dir); code != 0 {
		t.Fatalf("restore: %d %s", code, stderr)
	}
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	secure.StartTLS()
	t.Cleanup(secure.Close)
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	for _, c := range []struct{ endpoint, user, want string }{
		{endpoint: "http://127.0.0.1:1", want: "connection refused (nothing listens there"},
		{endpoint: "http://127.0.0.1:1", user: "root:x", want: "connection refused (nothing listens there"},
		{endpoint: "http://" + secure.Listener.Addr().String(), want: "needs an https:// endpoint"},
		{endpoint: secure.URL, want: "--cacert"},
		{endpoint: "https://" + plain.Listener.Addr().String(), want: "needs an http:// endpoint"},
		{endpoint: "http://" + silent.Addr().String(), want: "may be waiting for other members"},
	} {
		t.Run(c.endpoint+c.user, func(t *testing.T) {
			t.Parallel()
			var stderr bytes.Buffer
			a := &app{Process: Process{Stderr: &stderr}, lg: zap.NewNop()}
			f := rebuildFlags{dataDir: dir, endpoints: []string{c.endpoint, "http://127.0.0.1:2"}, user: c.user, timeout: 500 * time.Millisecond}
			code := a.report(memberCommands{a}.rebuild(t.Context(), f))
			lines := strings.Split(strings.TrimSuffix(stderr.String(), "\n"), "\n")
			if code != exitError || len(lines) != 3 || !strings.HasPrefix(lines[0], "Error: ") ||
				!strings.HasPrefix(lines[1], "endpoint "+c.endpoint+": ") || !strings.Contains(lines[1], c.want) || !strings.Contains(lines[2], "127.0.0.1:2: connect: connection refused") {
				t.Errorf("exit code %d, want %d; standard error\n%s\nwant %q", code, exitError, stderr.String(), c.want)
			}
		})
	}
}

package moving

import (
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"quorate/compat/child"
	"quorate/compat/harness"
)

// A start that takes over a store of etcd reports it to systemd, and asks for more time, before it reports
// readiness.
func TestTakeOverTellsSystemd(t *testing.T) {
	t.Parallel()
	m := start(t, real37)
	fill(t, m, 300)
	end(t, m, false)
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"})
	must(t, err)
	defer notify.Close()
	must(t, notify.SetReadDeadline(time.Now().Add(limit)))
	addrs, err := harness.FreeAddrs(2)
	must(t, err)
	p := child.Start(t, child.Config{Program: etcd, Dir: filepath.Join(t.TempDir(), "etcd"), Env: []string{"NOTIFY_SOCKET=" + notify.LocalAddr().String()},
		Args: []string{"--name", m.Name(), "--data-dir", m.DataDir(), "--listen-client-urls", "http://" + addrs[0], "--advertise-client-urls", "http://" + addrs[0],
			"--listen-peer-urls", "http://" + addrs[1]}})
	var said []string
	for b := make([]byte, 4096); ; {
		n, err := notify.Read(b)
		if err != nil {
			t.Fatalf("%v; before: %q", err, said)
		}
		said = append(said, string(b[:n]))
		if strings.Contains(string(b[:n]), "READY=1") {
			break
		}
	}
	if !strings.HasPrefix(said[0], "EXTEND_TIMEOUT_USEC=60000000\nSTATUS=") || !strings.Contains(strings.Join(said, "\n"), "STATUS=copying the store of etcd") {
		t.Errorf("systemd heard %q", said)
	}
	p.Signal(syscall.SIGTERM)
	p.Wait(t, limit)
}

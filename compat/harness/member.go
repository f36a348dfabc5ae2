package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// ErrExited reports a server process that exited unexpectedly.
var ErrExited = errors.New("server process exited")

// Config describes one member. Empty fields take the default named next to them.
type Config struct {
	Binary string // server executable; required
	Name   string // --name; "m0"
	Dir    string // holds data directory and log; required

	ClientAddr string // host:port to listen on; a free loopback port
	PeerAddr   string // host:port to listen on; a free loopback port

	// The advertised URLs decide member and cluster ids. Two single-member servers that
	// advertise the same URLs and the same token have equal ids although they listen on
	// different ports, which is what makes their answers comparable field by field.
	AdvertiseClientURL string // http://ClientAddr
	AdvertisePeerURL   string // http://PeerAddr

	InitialCluster string   // "Name=AdvertisePeerURL"
	ClusterState   string   // --initial-cluster-state; "new"
	Token          string   // --initial-cluster-token; "harness"
	Args           []string // additional flags, after the ones above
	Env            []string // additional environment entries, NAME=VALUE
}

// Member is one server process and, across restarts, its data directory.
// Its methods must be called from one goroutine at a time, except CPU, Memory and Ready.
type Member struct {
	cfg    Config
	cmd    *exec.Cmd
	exited chan struct{} // closed when the current process has been waited for
	status error         // of the current process, valid once exited is closed
}

// Ports come from below the range that Linux assigns to outgoing connections, so that no such connection
// occupies the port of a member that is down for a moment.
const minPort, endPort = 10240, 32768

// FreeAddrs returns n distinct loopback addresses that were free a moment ago. Another process
// can take one before the server binds it; callers that start servers retry on ErrAddrInUse.
func FreeAddrs(n int) ([]string, error) {
	addrs := make([]string, 0, n)
	var last error
	for tries := 0; len(addrs) < n; tries++ {
		if tries > 100*n {
			return nil, fmt.Errorf("find a free port: %w", last)
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", minPort+rand.IntN(endPort-minPort)))
		if last = err; err != nil {
			continue
		}
		defer l.Close() // all stay open until the last is found, so they are distinct
		addrs = append(addrs, l.Addr().String())
	}
	return addrs, nil
}

func (c *Config) fill() error {
	if c.Binary == "" || c.Dir == "" {
		return errors.New("harness: Config needs Binary and Dir")
	}
	// The server runs in its own directory, so that nothing it writes ends up elsewhere.
	abs, err := filepath.Abs(c.Binary)
	if err != nil {
		return fmt.Errorf("resolve server binary: %w", err)
	}
	c.Binary = abs
	if c.Dir, err = filepath.Abs(c.Dir); err != nil {
		return fmt.Errorf("resolve member directory: %w", err)
	}
	addrs, err := FreeAddrs(2)
	if err != nil {
		return err
	}
	setDefault(&c.Name, "m0")
	setDefault(&c.ClientAddr, addrs[0])
	setDefault(&c.PeerAddr, addrs[1])
	setDefault(&c.AdvertiseClientURL, "http://"+c.ClientAddr)
	setDefault(&c.AdvertisePeerURL, "http://"+c.PeerAddr)
	setDefault(&c.InitialCluster, c.Name+"="+c.AdvertisePeerURL)
	setDefault(&c.ClusterState, "new")
	setDefault(&c.Token, "harness")
	return os.MkdirAll(c.Dir, 0o700)
}

func setDefault(s *string, v string) {
	if *s == "" {
		*s = v
	}
}

// Start launches one member and returns without waiting for readiness; see [Member.WaitReady].
func Start(cfg Config) (*Member, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	m := &Member{cfg: cfg}
	return m, m.Restart()
}

// Restart launches the process again on the same directory and addresses. The previous process must have exited.
// The log file is appended to.
func (m *Member) Restart() error {
	if m.Running() {
		return fmt.Errorf("restart %s: still running", m.cfg.Name)
	}
	log, err := os.OpenFile(m.LogPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open server log: %w", err)
	}
	defer log.Close() // the child has its own descriptor
	c := m.cfg
	args := append([]string{
		"--name=" + c.Name,
		"--data-dir=" + m.DataDir(),
		"--listen-client-urls=http://" + c.ClientAddr,
		"--advertise-client-urls=" + c.AdvertiseClientURL,
		"--listen-peer-urls=http://" + c.PeerAddr,
		"--initial-advertise-peer-urls=" + c.AdvertisePeerURL,
		"--initial-cluster=" + c.InitialCluster,
		"--initial-cluster-state=" + c.ClusterState,
		"--initial-cluster-token=" + c.Token,
		"--logger=zap",
		"--log-outputs=stderr",
	}, c.Args...)
	cmd := exec.Command(c.Binary, args...)
	cmd.Dir = c.Dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(withoutEtcdEnv(os.Environ()), c.Env...)
	cmd.SysProcAttr = childAttr()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", c.Name, err)
	}
	exited := make(chan struct{})
	m.cmd, m.exited = cmd, exited
	go func() {
		m.status = cmd.Wait()
		close(exited)
	}()
	return nil
}

// withoutEtcdEnv drops ETCD_* entries: they are configuration to the child and would change it.
func withoutEtcdEnv(env []string) []string {
	kept := make([]string, 0, len(env))
	for _, e := range env {
		if !strings.HasPrefix(e, "ETCD_") {
			kept = append(kept, e)
		}
	}
	return kept
}

// Name, addresses and paths of the member.
func (m *Member) Name() string       { return m.cfg.Name }
func (m *Member) Binary() string     { return m.cfg.Binary }
func (m *Member) ClientAddr() string { return m.cfg.ClientAddr }
func (m *Member) ClientURL() string  { return "http://" + m.cfg.ClientAddr }
func (m *Member) PeerURL() string    { return "http://" + m.cfg.PeerAddr }
func (m *Member) DataDir() string    { return filepath.Join(m.cfg.Dir, m.cfg.Name+".etcd") }
func (m *Member) LogPath() string    { return filepath.Join(m.cfg.Dir, m.cfg.Name+".log") }

// SetBinary makes the next Restart run another server on the same data directory.
func (m *Member) SetBinary(path string) error {
	abs, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("resolve server binary: %w", err)
	}
	m.cfg.Binary = abs
	return nil
}

// SetArgs replaces the additional flags of the next Restart.
func (m *Member) SetArgs(args ...string) { m.cfg.Args = args }

// Pid is the process id of the current or last process.
func (m *Member) Pid() int { return m.cmd.Process.Pid }

// Running reports whether the process has been started and has not been waited for.
func (m *Member) Running() bool {
	if m.cmd == nil {
		return false
	}
	select {
	case <-m.exited:
		return false
	default:
		return true
	}
}

// Exited is closed when the current process has exited.
func (m *Member) Exited() <-chan struct{} { return m.exited }

var healthClient = &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// Ready queries the member's /health once: nil means that a linearizable read was served.
func (m *Member) Ready(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.ClientURL()+"/health", nil)
	if err != nil {
		return err
	}
	resp, err := healthClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("health: %s: %s", resp.Status, bytes.TrimSpace(body))
	}
	return nil
}

// WaitReady polls health until it is good, the process exits or ctx is done. The poll interval is 5 ms, which is
// also the resolution of times to readiness.
func (m *Member) WaitReady(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := m.Ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-m.exited:
			return fmt.Errorf("%s: %w (%v); log ends with:\n%s", m.cfg.Name, ErrExited, m.status, m.LogTail(20))
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w (last answer: %v); log ends with:\n%s",
				m.cfg.Name, ctx.Err(), err, m.LogTail(20))
		case <-tick.C:
		}
	}
}

// Signal sends sig to the process.
func (m *Member) Signal(sig syscall.Signal) error { return m.cmd.Process.Signal(sig) }

// Kill kills the process with SIGKILL and waits for it.
func (m *Member) Kill() error {
	if !m.Running() {
		return nil
	}
	if err := m.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s: %w", m.cfg.Name, err)
	}
	<-m.exited
	return nil
}

// Stop sends SIGTERM, waits for the process until ctx is done and then kills it.
func (m *Member) Stop(ctx context.Context) error {
	if !m.Running() {
		return nil
	}
	if err := m.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", m.cfg.Name, err)
	}
	select {
	case <-m.exited:
		return nil
	case <-ctx.Done():
		if err := m.Kill(); err != nil {
			return err
		}
		return fmt.Errorf("stop %s: %w, killed", m.cfg.Name, ctx.Err())
	}
}

// LogTail returns the last n lines of the member's log.
func (m *Member) LogTail(n int) string {
	b, err := os.ReadFile(m.LogPath())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// addrInUse reports whether the process exited because a port was taken in the meantime.
func (m *Member) addrInUse() bool {
	return !m.Running() && strings.Contains(m.LogTail(50), "address already in use")
}

// At is a handle for a member that this package did not start: for its addresses and readiness alone.
func At(clientAddr string) *Member {
	return &Member{cfg: Config{Name: clientAddr, ClientAddr: clientAddr}}
}

// Package embed replaces etcd's package of that name while Kubernetes' own storage tests run: it has the parts
// that they use, and starts the program that ETCD_UNDER_TEST names as a separate process, so the tests run as
// published against that server.
//
// In: a configuration as the tests fill it. Out: a running server, or an error. Invariant: the process is
// stopped by its Close, or with the test binary at the latest; Err reports a process that exits before.
package embed

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.uber.org/zap"
)

// Program is the environment variable that names the server.
const Program = "ETCD_UNDER_TEST"

// Config has the fields that the tests set.
type Config struct {
	Name, Dir                   string
	UnsafeNoFsync               bool
	ListenPeerUrls              []url.URL
	AdvertisePeerUrls           []url.URL
	ListenClientUrls            []url.URL
	AdvertiseClientUrls         []url.URL
	InitialCluster              string
	ClientTLSInfo               transport.TLSInfo
	WatchProgressNotifyInterval time.Duration
	QuotaBackendBytes           int64
	ZapLoggerBuilder            func(*Config) error
}

// NewConfig has etcd's defaults where the program's differ from them.
func NewConfig() *Config { return &Config{Name: "default"} }

// InitialClusterFromName is the cluster of this member alone.
func (c *Config) InitialClusterFromName(name string) string {
	return name + "=" + join(c.AdvertisePeerUrls)
}

// NewZapLoggerBuilder takes a logger that is never written to: the server is another process.
func NewZapLoggerBuilder(*zap.Logger) func(*Config) error { return func(*Config) error { return nil } }

func join(urls []url.URL) string {
	var all []string
	for _, u := range urls {
		all = append(all, u.String())
	}
	return strings.Join(all, ",")
}

func (c *Config) args() []string {
	args := []string{
		"--name=" + c.Name, "--data-dir=" + c.Dir, "--initial-cluster=" + c.InitialCluster,
		"--listen-peer-urls=" + join(c.ListenPeerUrls), "--initial-advertise-peer-urls=" + join(c.AdvertisePeerUrls),
		"--listen-client-urls=" + join(c.ListenClientUrls), "--advertise-client-urls=" + join(c.AdvertiseClientUrls),
	}
	if c.UnsafeNoFsync {
		args = append(args, "--unsafe-no-fsync")
	}
	if d := c.WatchProgressNotifyInterval; d > 0 {
		args = append(args, "--watch-progress-notify-interval="+d.String())
	}
	if n := c.QuotaBackendBytes; n > 0 {
		args = append(args, "--quota-backend-bytes="+strconv.FormatInt(n, 10))
	}
	if t := c.ClientTLSInfo; t.CertFile != "" {
		args = append(args, "--cert-file="+t.CertFile, "--key-file="+t.KeyFile, "--trusted-ca-file="+t.TrustedCAFile)
	}
	return args
}

// Etcd is a running server.
type Etcd struct {
	Server *Server
	cmd    *exec.Cmd
	ended  chan struct{} // closed when the process has been waited for
	errs   chan error
	closed atomic.Bool
}

// Server is what the tests need of a server inside their own process.
type Server struct {
	ready   chan struct{}
	cluster *Cluster
	stop    func()
}

// Cluster has one member.
type Cluster struct{ urls []string }

// ReadyNotify is closed when the server serves.
func (s *Server) ReadyNotify() <-chan struct{} { return s.ready }

// Stop stops the server.
func (s *Server) Stop() { s.stop() }

// Cluster is the server's cluster.
func (s *Server) Cluster() *Cluster { return s.cluster }

// ClientURLs are the advertised ones.
func (c *Cluster) ClientURLs() []string { return c.urls }

// StartEtcd starts the program and returns when it serves, or has exited.
func StartEtcd(c *Config) (*Etcd, error) {
	program := os.Getenv(Program)
	if program == "" {
		return nil, errors.New(Program + " names no server; make kubernetes sets it")
	}
	e := &Etcd{cmd: exec.Command(program, c.args()...), ended: make(chan struct{}), errs: make(chan error, 1)}
	e.Server = &Server{ready: make(chan struct{}), stop: e.Close, cluster: &Cluster{urls: strings.Split(join(c.AdvertiseClientUrls), ",")}}
	e.cmd.Dir = c.Dir
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := e.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := e.cmd.Start(); err != nil {
		return nil, err
	}
	go e.follow(log)
	select {
	case <-e.Server.ready:
		return e, nil
	case err := <-e.errs:
		return nil, err
	}
}

// follow reads the log until the process exits, and waits for it.
func (e *Etcd) follow(log io.Reader) {
	defer close(e.ended)
	defer close(e.errs)
	var last string
	lines, ready := bufio.NewReader(log), false
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			last = line
		}
		if !ready && strings.Contains(line, `"msg":"ready to serve client requests"`) {
			ready = true
			close(e.Server.ready)
		}
		if err != nil {
			break
		}
	}
	if err := e.cmd.Wait(); !e.closed.Load() {
		e.errs <- fmt.Errorf("the server ended: %v; its last line: %s", err, last)
	}
}

// Close stops the server and waits for it.
func (e *Etcd) Close() {
	e.closed.Store(true)
	_ = e.cmd.Process.Kill() // it may have exited
	<-e.ended
}

// Err reports a server that exited by itself; it is closed when the server has exited.
func (e *Etcd) Err() <-chan error { return e.errs }

package secure

import (
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"quorate/compat/child"
	"quorate/compat/harness"
	"quorate/compat/pki"
)

var (
	etcdFlag = flag.String("etcd", "", "server binary; empty: built from this tree")
	ctlFlag  = flag.String("etcdctl", "", "etcdctl binary; empty: built from this tree")
	realFlag = flag.String("real", "../bin/etcd37", "real etcd 3.7")
	realCtl  = flag.String("realctl", "../bin/etcdctl37", "real etcdctl 3.7; without it, only ours is tried")
)

var etcd, etcdctl, real string // paths of the binaries

// limit is the upper bound of any single wait, generous because the machine may be busy.
const limit = 90 * time.Second

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "secure")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if etcd, err = child.Binary(*etcdFlag, "etcd", dir); err == nil {
		etcdctl, err = child.Binary(*ctlFlag, "etcdctl", dir)
	}
	if err == nil {
		real, err = filepath.Abs(*realFlag)
	}
	if err == nil {
		_, err = os.Stat(real)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// site holds the members of a test and their files.
type site struct {
	*testing.T
	files pki.Dir
	dir   string
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{T: t, dir: t.TempDir()}
	s.files = pki.Dir{TB: t, Path: filepath.Join(s.dir, "tls")}
	if err := os.Mkdir(s.files.Path, 0o700); err != nil {
		t.Fatal(err)
	}
	return s
}

// member is a server with an https client URL and an https peer URL, unless its flags override that.
type member struct {
	s            *site
	program      string
	name         string
	client, peer string // host:port
	flags        []string
	initial      string
	dir          string // working directory; empty: one of its own
	p            *child.Process
}

// members prepares a cluster, one member per program; nothing runs yet.
func (s *site) members(programs ...string) []*member {
	s.Helper()
	addrs, err := harness.FreeAddrs(2 * len(programs))
	if err != nil {
		s.Fatal(err)
	}
	var ms []*member
	var initial []string
	for i, program := range programs {
		m := &member{s: s, program: program, name: fmt.Sprintf("m%d", i), client: addrs[2*i], peer: addrs[2*i+1]}
		initial = append(initial, m.name+"=https://"+m.peer)
		ms = append(ms, m)
	}
	for _, m := range ms {
		m.initial = strings.Join(initial, ",")
	}
	return ms
}

// start runs the member with additional flags, which override those before.
func (m *member) start() {
	m.s.Helper()
	args := append([]string{
		"--name=" + m.name, "--data-dir=" + filepath.Join(m.s.dir, m.name+".etcd"),
		"--listen-client-urls=https://" + m.client, "--advertise-client-urls=https://" + m.client,
		"--listen-peer-urls=https://" + m.peer, "--initial-advertise-peer-urls=https://" + m.peer,
		"--initial-cluster=" + m.initial,
		// A busy machine must not cause elections in the middle of a test.
		"--heartbeat-interval=200", "--election-timeout=2000",
	}, m.flags...)
	if m.dir == "" {
		m.dir = filepath.Join(m.s.dir, m.name)
	}
	m.p = child.Start(m.s.T, child.Config{Program: m.program, Args: args, Dir: m.dir})
}

// stop shuts the member down gracefully.
func (m *member) stop() {
	m.s.Helper()
	m.p.Signal(15)
	m.p.Wait(m.s.T, limit)
}

// tlsFlags are those of the pair NAME and the authority ca.pem for clients and peers alike.
func (s *site) tlsFlags(name string) []string {
	var flags []string
	for _, prefix := range []string{"", "peer-"} {
		flags = append(flags, "--"+prefix+"cert-file="+s.files.File(name+".pem"), "--"+prefix+"key-file="+s.files.File(name+".key"),
			"--"+prefix+"trusted-ca-file="+s.files.File("ca.pem"), "--"+prefix+"client-cert-auth")
	}
	return flags
}

// grpcClient connects to one address, with TLS unless c is nil.
func (s *site) grpcClient(target string, c *tls.Config) (*child.Client, func()) {
	s.Helper()
	creds := insecure.NewCredentials()
	if c != nil {
		creds = credentials.NewTLS(c)
	}
	opts := []grpc.DialOption{grpc.WithTransportCredentials(creds),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 20 * time.Second,
			Backoff: backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, MaxDelay: 200 * time.Millisecond}})}
	if strings.HasPrefix(target, "unix:") {
		opts = append(opts, grpc.WithAuthority("localhost")) // a certificate has no paths
	} else {
		target = "passthrough:///" + target
	}
	conn, err := grpc.NewClient(target, opts...)
	if err != nil {
		s.Fatal(err)
	}
	return &child.Client{Conn: conn, KVClient: pb.NewKVClient(conn), Maintenance: pb.NewMaintenanceClient(conn),
		Cluster: pb.NewClusterClient(conn)}, func() { conn.Close() }
}

// put writes a key over a new connection.
func (s *site) put(target string, c *tls.Config, key string) error {
	s.Helper()
	client, end := s.grpcClient(target, c)
	defer end()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	_, err := client.Put(ctx, &pb.PutRequest{Key: []byte(key), Value: []byte("v")})
	return err
}

// waitReady waits until the member serves writes.
func (m *member) waitReady(c *tls.Config) {
	m.s.Helper()
	child.Eventually(m.s.T, limit, m.name+" serves", func() error {
		if !m.p.Running() {
			m.s.Fatalf("%s has ended:\n%s", m.name, m.p.Tail(20))
		}
		client, end := m.s.grpcClient(m.client, c)
		defer end()
		_, err := client.PutWithin(10*time.Second, "ready", m.name)
		return err
	})
}

// get requests an HTTP page over a new connection and returns the version of HTTP, the status and the body.
func get(url string, c *tls.Config, h2 bool) (string, error) {
	transport := &http.Transport{TLSClientConfig: c.Clone(), ForceAttemptHTTP2: h2}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: limit}).Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return fmt.Sprint(resp.Proto, " ", resp.StatusCode, " ", strings.TrimSpace(string(body))), err
}

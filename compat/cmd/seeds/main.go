package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"quorate/compat/harness"
)

// limit is for everything that the recording waits for.
const limit = 2 * time.Minute

func main() {
	root := flag.String("root", "..", "the root of the repository")
	flag.Parse()
	if err := run(*root); err != nil {
		fmt.Fprintln(os.Stderr, "seeds:", err)
		os.Exit(1)
	}
}

func run(root string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*limit)
	defer cancel()
	root, err := filepath.Abs(root)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "seeds")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	c := &corpus{root: root, has: map[string]int{}}
	if err := c.clear(); err != nil {
		return err
	}
	bin := filepath.Join(root, "compat", "bin")
	for what, f := range map[string]func() error{
		"cluster of 3.7":  func() error { return c.cluster37(ctx, bin, filepath.Join(dir, "37")) },
		"signed tokens":   func() error { return c.signedTokens(ctx, bin, filepath.Join(dir, "jwt")) },
		"member of 3.5":   func() error { return c.member35(ctx, bin, filepath.Join(dir, "35")) },
		"files of a user": func() error { return c.userFiles(ctx, bin, filepath.Join(dir, "files")) },
	} {
		if err := f(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	for key, n := range c.has {
		fmt.Println(n, key)
	}
	return c.errs
}

// ctl is a run of etcdctl against an address; stdin may be empty. Some commands are to fail.
type ctl struct {
	program, endpoint string
	env               []string
}

func (x ctl) run(stdin, command string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, x.program, strings.Fields(command)...)
	cmd.Env = append(append(os.Environ(), "ETCDCTL_ENDPOINTS=http://"+x.endpoint), x.env...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil && os.Getenv("SEEDS_VERBOSE") != "" {
		fmt.Printf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

// cluster37 has a cluster do a bit of everything, with a member that falls behind.
func (c *corpus) cluster37(ctx context.Context, bin, dir string) error {
	const size = 3
	ports, err := harness.FreeAddrs(2 * size)
	if err != nil {
		return err
	}
	var peers []*recorder
	var initial []string
	for i := range size {
		r, err := record(ports[2*i+1])
		if err != nil {
			return err
		}
		defer r.l.Close()
		peers, initial = append(peers, r), append(initial, fmt.Sprintf("m%d=http://%s", i, r.addr()))
	}
	var members []*harness.Member
	for i := range size {
		m, err := harness.Start(harness.Config{Binary: filepath.Join(bin, "etcd37"), Name: fmt.Sprintf("m%d", i), Dir: dir,
			ClientAddr: ports[2*i], PeerAddr: ports[2*i+1], AdvertisePeerURL: "http://" + peers[i].addr(), InitialCluster: strings.Join(initial, ","),
			Args: []string{"--snapshot-count=60", "--snapshot-catchup-entries=10", "--unsafe-no-fsync"}})
		if err != nil {
			return err
		}
		defer m.Kill()
		members = append(members, m)
	}
	for _, m := range members {
		if err := m.WaitReady(ctx); err != nil {
			return err
		}
	}
	client, err := record(members[0].ClientAddr())
	if err != nil {
		return err
	}
	defer client.l.Close()
	x := ctl{program: filepath.Join(bin, "etcdctl37"), endpoint: client.addr()}
	follower := ctl{program: x.program, endpoint: members[1].ClientAddr()}
	lease := ""
	for _, line := range commands37 {
		command, stdin, _ := strings.Cut(strings.ReplaceAll(line, "LEASE", lease), " <<< ")
		out := strings.Fields(x.run(strings.ReplaceAll(stdin, "|", "\n"), command))
		if len(out) > 2 && out[0] == "lease" && out[2] == "granted" {
			lease = out[1]
		}
		if strings.HasPrefix(command, "lease timetolive") || strings.HasPrefix(command, "lease keep-alive") {
			follower.run("", command) // which asks the leader
		}
	}
	if err := members[2].Kill(); err != nil {
		return err
	}
	if err := putMany(ctx, members[0].ClientAddr(), 120); err != nil {
		return err
	}
	if err := members[2].Restart(); err != nil {
		return err
	}
	if err := members[2].WaitReady(ctx); err != nil {
		return err
	}
	for _, m := range members {
		if err := m.Stop(ctx); err != nil {
			return err
		}
	}
	for _, r := range peers {
		for _, conn := range r.recorded() {
			c.peerTraffic(conn)
		}
	}
	for _, conn := range client.recorded() {
		c.client(conn)
	}
	for _, m := range members[:1] {
		err = errors.Join(c.wal(filepath.Join(m.DataDir(), "member", "wal"), "3.7"), c.snap(filepath.Join(m.DataDir(), "member", "snap"), "3.7"),
			c.database(filepath.Join(m.DataDir(), "member", "snap", "db"), "3.7"))
	}
	return err
}

// putMany writes n keys at the member at addr.
func putMany(ctx context.Context, addr string, n int) error {
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	for i := range n {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		_, err = pb.NewKVClient(conn).Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "behind-%d", i), Value: []byte("v")})
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

// The commands of the recording; what follows <<< is standard input, with | for a new line.
var commands37 = []string{
	"put foo bar", "put foo baz --prev-kv", "get foo -w json", "get f --prefix --keys-only", "get a z --limit=3 --order=DESCEND --sort-by=MODIFY",
	"get foo --rev=2 --consistency=s", "get nothing --rev=900", "put dir/a 1", "put dir/b 2", "del dir/a --prev-kv", "del x y --range",
	`txn <<< mod("foo") > "0"|value("foo") = "baz"||put foo "in txn"|get foo||del foo||`, `txn <<< create("new") = "0"||put new v||get new||`,
	"lease grant 3600", "put leased v --lease=LEASE", "lease timetolive LEASE --keys", "lease keep-alive --once LEASE", "lease list", "lease revoke 2f",
	"watch foo --rev=1 --prev-kv --progress-notify <<< ", "watch -i <<< watch dir --prefix --rev=1|progress|", "compact 3", "compact 900", "alarm list", "member list -w json",
	"member add learner --learner --peer-urls=http://127.0.0.1:1", "endpoint status -w json", "endpoint hashkv", "defrag",
	"lock name true", "role add r", "role grant-permission r readwrite a z", "role grant-permission r read q --prefix", "role get r",
	"user add root:pw", "user grant-role root root", "user add u:pw", "user grant-role u r", "user add n --no-password", "auth enable",
	"--user u:pw put b 1", "--user u:pw get zz", "--user u:wrong get b", "--user root:pw user list", "get b", "--user root:pw auth status", "--user root:pw auth disable",
}

// signedTokens records a client whose tokens are signed.
func (c *corpus) signedTokens(ctx context.Context, bin, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	key := filepath.Join(dir, "key")
	if err := os.WriteFile(key, []byte("a key of the recording"), 0o600); err != nil {
		return err
	}
	cfg := harness.Config{Binary: filepath.Join(bin, "etcd37"), Dir: dir, Args: []string{"--auth-token=jwt,sign-method=HS256,ttl=1h,priv-key=" + key}}
	return recordMember(ctx, cfg, c.client, func(_ *harness.Member, addr string) error {
		x := ctl{program: filepath.Join(bin, "etcdctl37"), endpoint: addr}
		for _, command := range []string{"user add root:pw", "user grant-role root root", "auth enable", "--user root:pw put a b", "--user root:pw get a"} {
			x.run("", command)
		}
		return nil
	})
}

// recordMember starts a member and records its clients, which use it at the given address.
func recordMember(ctx context.Context, cfg harness.Config, keep func(*recording), use func(m *harness.Member, addr string) error) error {
	m, err := harness.Start(cfg)
	if err != nil {
		return err
	}
	defer m.Kill()
	if err := m.WaitReady(ctx); err != nil {
		return err
	}
	client, err := record(m.ClientAddr())
	if err != nil {
		return err
	}
	defer client.l.Close()
	if err := use(m, client.addr()); err != nil {
		return err
	}
	for _, conn := range client.recorded() {
		keep(conn)
	}
	return nil
}

// member35 records the v2 API, and the files of a member that serves it.
func (c *corpus) member35(ctx context.Context, bin, dir string) error {
	cfg := harness.Config{Binary: filepath.Join(bin, "etcd35"), Dir: dir, Args: []string{"--enable-v2", "--snapshot-count=20", "--unsafe-no-fsync"}}
	data := ""
	err := recordMember(ctx, cfg, c.v2, func(m *harness.Member, addr string) error {
		data = filepath.Join(m.DataDir(), "member")
		x := ctl{program: filepath.Join(bin, "etcdctl35"), endpoint: addr, env: []string{"ETCDCTL_API=2", "ETCDCTL_ENDPOINT=http://" + addr}}
		for _, command := range []string{"set /a 1", "set /a 2 --ttl 1000", "set /a 3 --swap-with-value 2", "mk /b/c x", "mk /b/c x", "mkdir /d", "rm /none", "update /a 4", "get /a", "ls --recursive / ",
			"setdir /e --ttl 500", "rm /b --recursive", "user add root:pw", "auth enable", "--username root:pw set /f g", "--username root:wrong get /f", "--username root:pw auth disable", "exec-watch --after-index 1 /a -- true"} {
			x.run("", "--no-sync "+command) // else it goes around the recorder
		}
		for i := range 30 { // enough for a snapshot
			resp, err := http.PostForm("http://"+m.ClientAddr()+"/v2/keys/many", url.Values{"value": {fmt.Sprint(i)}})
			if err != nil {
				return err
			}
			resp.Body.Close()
		}
		return m.Stop(ctx)
	})
	if err != nil {
		return err
	}
	return errors.Join(c.wal(filepath.Join(data, "wal"), "3.5"), c.snap(filepath.Join(data, "snap"), "3.5"), c.database(filepath.Join(data, "snap", "db"), "3.5"))
}

// userFiles keeps a configuration file that real etcd runs on, and certificates that it has made.
func (c *corpus) userFiles(ctx context.Context, bin, dir string) error {
	ports, err := harness.FreeAddrs(2)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	text := fmt.Sprintf(`# a member as operators write it down
name: m1
data-dir: %[1]s/data
listen-client-urls: http://%[2]s
advertise-client-urls: http://%[2]s
listen-peer-urls: https://%[3]s
initial-advertise-peer-urls: https://%[3]s
initial-cluster: m1=https://%[3]s
initial-cluster-state: new
peer-transport-security:
  auto-tls: true
snapshot-count: 10000
heartbeat-interval: 100
quota-backend-bytes: 0
auto-compaction-mode: periodic
auto-compaction-retention: "1"
log-outputs: [stderr]
feature-gates: LeaseCheckpoint=true
`, dir, ports[0], ports[1])
	file := filepath.Join(dir, "etcd.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	run := exec.CommandContext(ctx, filepath.Join(bin, "etcd37"), "--config-file="+file)
	run.Stderr = os.Stderr
	if os.Getenv("SEEDS_VERBOSE") == "" {
		run.Stderr = nil
	}
	if err := run.Start(); err != nil {
		return err
	}
	defer func() {
		run.Process.Kill()
		run.Wait()
	}()
	if err := harness.At(ports[0]).WaitReady(ctx); err != nil {
		return err
	}
	c.add("config", "FuzzFile", "file", []byte(strings.ReplaceAll(text, dir, "/var/lib/etcd")))
	cert, err := os.ReadFile(filepath.Join(dir, "data", "fixtures", "peer", "cert.pem"))
	if err != nil {
		return err
	}
	c.add("certs", "FuzzFiles", "certificate", cert, []byte(nil)) // no private key belongs into a repository
	return err
}

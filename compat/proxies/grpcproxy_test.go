package proxies

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/metadata"

	"quorate/compat/child"
	"quorate/compat/harness"
	"quorate/compat/pki"
)

var realCtlFlag = flag.String("realctl", "../bin/etcdctl37", "real etcdctl 3.7")

// grpcProxy is a running `etcd grpc-proxy start` in front of a member of its own.
type grpcProxy struct {
	*child.Process
	name, addr string
	member     *harness.Member
}

// startGRPCProxy runs one until the test ends, and waits until it is healthy.
func startGRPCProxy(t *testing.T, name, program string, m *harness.Member, args ...string) *grpcProxy {
	t.Helper()
	for {
		addrs, err := harness.FreeAddrs(1)
		if err != nil {
			t.Fatal(err)
		}
		p := &grpcProxy{name: name, addr: addrs[0], member: m}
		p.Process = child.Start(t, child.Config{Program: program, Dir: filepath.Join(t.TempDir(), "proxy-"+name), Args: append([]string{
			"grpc-proxy", "start", "--listen-addr", p.addr, "--advertise-client-url", p.addr, "--endpoints", m.ClientAddr()}, args...)})
		deadline := time.Now().Add(limit)
		for p.Running() {
			if strings.Contains(p.Output(), `"started gRPC proxy"`) {
				return p
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s is not ready after %v:\n%s", name, limit, p.Output())
			}
			time.Sleep(10 * time.Millisecond)
		}
		// Another process may have taken the port since it was found free.
		if out := p.Output(); !strings.Contains(out, "address already in use") {
			t.Fatalf("%s has ended with %d:\n%s", name, p.Code(), out)
		}
	}
}

// startPair runs both programs with the same arguments, each in front of a member of this tree.
func startPair(t *testing.T, args ...string) [2]*grpcProxy {
	t.Helper()
	var pair [2]*grpcProxy
	for i, p := range []struct{ name, program string }{{"ours", etcd}, {"real", realEtcd}} {
		pair[i] = startGRPCProxy(t, p.name, p.program, startMember(t), args...)
	}
	return pair
}

func startMember(t *testing.T, args ...string) *harness.Member {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	m, err := harness.StartSingle(ctx, harness.Config{Binary: etcd, Name: "m", Dir: t.TempDir(), Args: args})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Kill() })
	return m
}

// What differs between runs: addresses, ids, sizes.
var varying = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), "ADDR"},
	{regexp.MustCompile(`\b[0-9a-f]{14,16}\b`), "ID"},
	{regexp.MustCompile(`"(cluster_id|member_id|leader|lease|ID|id)":"?\d+"?`), `"$1":0`},
	{regexp.MustCompile(`"(raft_term|raftTerm|raftIndex|raftAppliedIndex|dbSize|dbSizeInUse|hash|ttl)":"?\d+"?`), `"$1":0`},
	{regexp.MustCompile(`remaining\(\d+s\)`), "remaining"},
	{regexp.MustCompile(`"(ClusterID|MemberID|RaftTerm)" : \d+`), `"$1"`},
	{regexp.MustCompile(`took[ =]+[0-9.]+[µmn]?s`), "took"},
	{regexp.MustCompile(`\d+(\.\d+)? [kM]B`), "SIZE"},
	{regexp.MustCompile(`/tmp/\S+`), "FILE"},
}

func normal(s string) string {
	for _, v := range varying {
		s = v.pattern.ReplaceAllString(s, v.with)
	}
	return s
}

// ctl runs an etcdctl through p; a part of the command after "<<" is its standard input.
func (p *grpcProxy) ctl(t *testing.T, program, command string, flags ...string) outcome {
	t.Helper()
	return ctlAt(t, program, p.addr, command, flags...)
}

func ctlAt(t *testing.T, program, addr, command string, flags ...string) outcome {
	t.Helper()
	command, input, _ := strings.Cut(command, " << ")
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	args := append([]string{"--endpoints", addr, "--command-timeout", "60s"}, flags...)
	cmd := exec.CommandContext(ctx, program, append(args, fields(command)...)...)
	cmd.Stdin = strings.NewReader(strings.ReplaceAll(input, ";", "\n"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("%s %s: %v\n%s", program, command, err, &stderr)
	}
	var said []string
	for line := range strings.Lines(stderr.String()) {
		if !strings.HasPrefix(line, "{") {
			said = append(said, line)
		}
	}
	return outcome{cmd.ProcessState.ExitCode(), normal(stdout.String()), normal(strings.Join(said, ""))}
}

// fields are the words of a command; ” is an empty one.
func fields(command string) []string {
	words := strings.Fields(command)
	for i, w := range words {
		if w == "''" {
			words[i] = ""
		}
	}
	return words
}

// compare runs commands through both proxies, one after the other, and compares their output.
func compare(t *testing.T, pair [2]*grpcProxy, program, script string) {
	t.Helper()
	for command := range strings.Lines(script) {
		if command = strings.TrimSpace(command); command == "" {
			continue
		}
		ours, want := pair[0].ctl(t, program, command), pair[1].ctl(t, program, command)
		if ours != want {
			t.Errorf("%s %s:\n%+v\nreal etcd:\n%+v", filepath.Base(program), command, ours, want)
		}
	}
}

// compareMembers compares the members behind the proxies.
func compareMembers(t *testing.T, pair [2]*grpcProxy, command string) {
	t.Helper()
	ours, want := ctlAt(t, etcdctl, pair[0].member.ClientAddr(), command), ctlAt(t, etcdctl, pair[1].member.ClientAddr(), command)
	if ours != want {
		t.Errorf("behind the proxies: %s:\n%+v\nreal etcd:\n%+v", command, ours, want)
	}
}

// background is a command that runs until it is interrupted.
type background struct {
	mu  sync.Mutex
	out bytes.Buffer
	cmd *exec.Cmd
}

func (b *background) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.Write(p)
}

func (b *background) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.String()
}

func (p *grpcProxy) begin(t *testing.T, program, command string) *background {
	t.Helper()
	b := &background{}
	b.cmd = exec.Command(program, append([]string{"--endpoints", p.addr}, fields(command)...)...)
	b.cmd.Stdout = b
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.end)
	return b
}

func (b *background) end() {
	_ = b.cmd.Process.Signal(syscall.SIGTERM) // it may have exited
	_ = b.cmd.Wait()
}

// prints waits until the output, normalised, is want.
func (b *background) prints(t *testing.T, who, want string) {
	t.Helper()
	for deadline := time.Now().Add(limit); normal(b.String()) != want; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s prints\n%swant\n%s", who, b.String(), want)
		}
	}
}

func bothCtls(t *testing.T) []string {
	t.Helper()
	realCtl, err := filepath.Abs(*realCtlFlag)
	if err != nil {
		t.Fatal(err)
	}
	return []string{etcdctl, realCtl}
}

const grpcProxyScript = `
put a 1
get a
get a --consistency s
put a 2 --prev-kv
get a --consistency s -w json
get a -w json
get a --rev 2
put '' x
get '' --from-key
get '' --from-key --keys-only --limit 1 -w json
get none
get a --rev 1000
put b x --lease 12345
put b x --ignore-lease
del a --prev-kv
get a --consistency s
put c 1
put d 2
put e 3
get c e
get c e --count-only --write-out fields
get c --prefix --sort-by VALUE --order DESCEND
del c d
txn -i=false << value("d") = "2";;put d 3;get d;;get d;
txn -i=false << value("d") = "2";;put d 3;get d;;get d;;
txn -i=false << version("none") = "0";;put none 1;del e;;get d;;
get e --consistency s
get none --consistency s
compaction 5
get a --rev 3
get a --rev 3 --consistency s
compaction 5
compaction 5000
lease grant 300
lease timetolive 1
lease keep-alive --once 1
lease revoke 1
lease list
member list
member list -w json
member remove 1
endpoint health
endpoint status -w json
endpoint hashkv -w json
alarm list
defrag
lock l echo locked
move-leader 1
`

// The same commands through both proxies, with both etcdctls: the same texts and exit codes.
func TestGRPCProxyCommands(t *testing.T) {
	t.Parallel()
	for _, program := range bothCtls(t) {
		t.Run(filepath.Base(program), func(t *testing.T) {
			t.Parallel()
			pair := startPair(t)
			compare(t, pair, program, grpcProxyScript)
			// Promotion is forwarded, and the member refuses it in its own words.
			got := pair[0].ctl(t, program, "member promote 1")
			if want := ctlAt(t, program, pair[0].member.ClientAddr(), "member promote 1"); got.Code != want.Code || !strings.Contains(got.Stderr, "etcdserver: member not found") {
				t.Errorf("member promote: %+v, from the member %+v", got, want)
			}
			var saved [2]outcome
			for i, p := range pair {
				saved[i] = p.ctl(t, program, "snapshot save "+filepath.Join(t.TempDir(), "s.db"))
			}
			if saved[0] != saved[1] || saved[0].Code != 0 {
				t.Errorf("snapshot save: %+v, real etcd %+v", saved[0], saved[1])
			}
			compareMembers(t, pair, "get --from-key '' -w json")
		})
	}
}

// Watches from the past and from now on, leases kept alive, locks and elections.
func TestGRPCProxyStreams(t *testing.T) {
	t.Parallel()
	pair := startPair(t)
	for i, program := range bothCtls(t) {
		for _, p := range pair {
			key := fmt.Sprint("k", i)
			rev := 1 // before all
			var watches []*background
			p.ctl(t, program, "put "+key+" 1")
			for range 3 {
				watches = append(watches, p.begin(t, program, fmt.Sprintf("watch --rev %d %s --prev-kv", rev, key)))
			}
			p.ctl(t, program, "put "+key+" 2")
			past := fmt.Sprintf("PUT\n%s\n1\nPUT\n%s\n1\n%s\n2\n", key, key, key)
			for _, w := range watches {
				w.prints(t, p.name+": a watch from the start", past)
			}
			now := p.begin(t, program, "watch "+key+" "+key+"z")
			child.Eventually(t, limit, "a watch from now on", func() error {
				p.ctl(t, program, "put "+key+"x x")
				if !strings.Contains(now.String(), "PUT\n"+key+"x\nx\n") {
					return errors.New("nothing yet")
				}
				return nil
			})
			p.ctl(t, program, "del "+key)
			for _, w := range watches {
				w.prints(t, p.name+": a watch", past+fmt.Sprintf("DELETE\n%s\n2\n%s\n\n", key, key))
				w.end()
			}
			now.end()

			elect := p.begin(t, program, "elect e"+key+" me")
			child.Eventually(t, limit, "an election", func() error {
				if !strings.HasSuffix(elect.String(), "\nme\n") {
					return errors.New("not yet")
				}
				return nil
			})
			observe := p.begin(t, program, "elect -l e"+key)
			child.Eventually(t, limit, "who is elected", func() error {
				if observe.String() != elect.String() {
					return errors.New("not yet")
				}
				return nil
			})
			observe.end()
			elect.end()

			granted := p.ctl(t, program, "lease grant 2 -w fields").Stdout
			if !strings.Contains(granted, `"TTL" : 2`) {
				t.Fatalf("%s: lease grant: %s", p.name, granted)
			}
			id := fmt.Sprintf("%x", 0x123450+i)
			if out := p.ctl(t, program, "lock --ttl 3 "+id+" true"); out.Code != 0 {
				t.Errorf("%s: lock: %+v", p.name, out)
			}
		}
	}
	// A lease without keepalives expires; one that is kept alive does not.
	p := pair[0]
	c := child.Dial(t, p.addr)
	lease, err := c.Lease.LeaseGrant(t.Context(), &pb.LeaseGrantRequest{TTL: 2})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if ttl := keepAlive(t, c, lease.ID); ttl != lease.TTL {
			t.Fatalf("kept for %d s, want %d", ttl, lease.TTL)
		}
	}
	child.Eventually(t, limit, "the lease expires", func() error {
		r, err := c.Lease.LeaseTimeToLive(t.Context(), &pb.LeaseTimeToLiveRequest{ID: lease.ID})
		if err == nil && r.TTL >= 0 {
			err = fmt.Errorf("%d s are left", r.TTL)
		}
		return err
	})
	if ttl := keepAlive(t, c, lease.ID); ttl != 0 {
		t.Fatalf("a lease that has expired is kept for %d s", ttl)
	}
}

// A request for progress is answered behind the proxy as in front of it: once the client's watcher has come as
// far, which is how an API server of Kubernetes knows that its cache is fresh.
func TestGRPCProxyProgress(t *testing.T) {
	t.Parallel()
	for name, addr := range func() map[string]string {
		p := startGRPCProxy(t, "ours", etcd, startMember(t))
		return map[string]string{"through the proxy": p.addr, "at the member": p.member.ClientAddr()}
	}() {
		t.Run(name, func(t *testing.T) {
			c := child.Dial(t, addr)
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			w, err := c.Watcher.Watch(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, key := range []string{"a", "b"} {
				if err := w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte(key)}}}); err != nil {
					t.Fatal(err)
				}
				if r, err := w.Recv(); err != nil || !r.Created {
					t.Fatalf("create: %v, %v", r, err)
				}
			}
			for range 10 {
				put, err := c.Put(ctx, &pb.PutRequest{Key: []byte("a"), Value: []byte("v")})
				if err != nil {
					t.Fatal(err)
				}
				other, err := c.Put(ctx, &pb.PutRequest{Key: []byte("unwatched"), Value: []byte("v")})
				if err != nil {
					t.Fatal(err)
				}
				seen := false
				for reached := int64(0); reached < other.Header.Revision; {
					if err := w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}); err != nil {
						t.Fatal(err)
					}
					for answered := false; !answered; {
						r, err := w.Recv()
						if err != nil {
							t.Fatal(err)
						}
						for _, e := range r.Events {
							seen = seen || e.Kv.ModRevision == put.Header.Revision
						}
						if answered = len(r.Events) == 0; answered {
							if r.WatchId != -1 {
								t.Fatalf("answer %v", r)
							}
							reached = r.Header.Revision
						}
					}
				}
				if !seen {
					t.Fatal("told to have come to a revision before its event")
				}
			}
		})
	}
}

// keepAlive renews a lease, on a separate stream that the client half-closes before the answer comes, and
// returns its TTL.
func keepAlive(t *testing.T, c *child.Client, id int64) int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	stream, err := c.Lease.LeaseKeepAlive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(stream.Send(&pb.LeaseKeepAliveRequest{ID: id}), stream.CloseSend()); err != nil {
		t.Fatal(err)
	}
	r, err := stream.Recv()
	if err != nil || r.ID != id {
		t.Fatalf("keepalive: %v, %v", r, err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Fatalf("after the answer: %v", err)
	}
	return r.TTL
}

// Through the proxy, users see what they are permitted to see.
func TestGRPCProxyAuth(t *testing.T) {
	t.Parallel()
	pair := startPair(t)
	compare(t, pair, etcdctl, `
user add root:r
user grant-role root root
user add alice:a
role add reader
role grant-permission reader read a
user grant-role alice reader
user list
role get reader
put a 1
put b 2
auth enable
get a
--user alice:a get a
--user alice:a get a --consistency s
--user alice:a get b
--user alice:a put a 2
--user alice:wrong get a
--user root:r put a 2
--user root:r get a
--user alice:a get a --consistency s
--user alice:a user get alice
--user alice:a user list
--user root:r auth status
--user root:r lease list
--user alice:a txn -i=false << ;;put b 1;;;
`)
	// What one user has read is not served to the other, nor to an unauthenticated client. Real etcd's cache does
	// that.
	p := pair[0]
	p.ctl(t, etcdctl, "get b --consistency s", "--user", "root:r")
	for user, want := range map[string]string{"alice:a": "etcdserver: permission denied", "": "etcdserver: user name is empty"} {
		var flags []string
		if user != "" {
			flags = []string{"--user", user}
		}
		if got := p.ctl(t, etcdctl, "get b --consistency s", flags...); got.Code == 0 || !strings.Contains(got.Stderr, want) {
			t.Errorf("cached for root, read by %q: %+v", user, got)
		}
	}
	out := exec.Command(etcdctl, "--endpoints", p.addr, "--user", "alice:a", "watch", "b")
	if text, err := out.CombinedOutput(); err == nil || !strings.Contains(string(text), "permission denied") {
		t.Errorf("watch of another's key: %v, %s", err, text)
	}
	w := p.begin(t, etcdctl, "--user alice:a watch a --rev 1")
	w.prints(t, "a watch of one's own key", "PUT\na\n1\nPUT\na\n2\n")

	// Leases are kept alive for clients that may keep them; a client that may not fails alone.
	lease := grantLease(t, p, "root:r")
	compareKept(t, p, lease)
	compare(t, pair, etcdctl, "--user root:r auth disable\nget b")
}

// grantLease returns the id of a lease as etcdctl prints it.
func grantLease(t *testing.T, p *grpcProxy, user string) string {
	t.Helper()
	out, err := exec.Command(etcdctl, "--endpoints", p.addr, "--user", user, "lease", "grant", "600").Output()
	words := strings.Fields(string(out))
	if err != nil || len(words) < 2 {
		t.Fatalf("lease grant: %v, %s", err, out)
	}
	return words[1]
}

// compareKept keeps a lease with a key of root alive through p, while clients without permission try to.
func compareKept(t *testing.T, p *grpcProxy, lease string) {
	t.Helper()
	if got := p.ctl(t, etcdctl, "--user root:r put kept 3 --lease "+lease); got.Code != 0 {
		t.Fatalf("put with a lease: %+v", got)
	}
	c := child.Dial(t, p.addr)
	token, err := pb.NewAuthClient(c.Conn).Authenticate(t.Context(), &pb.AuthenticateRequest{Name: "root", Password: "r"})
	if err != nil {
		t.Fatal(err)
	}
	id, err := strconv.ParseInt(lease, 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := c.Lease.LeaseKeepAlive(metadata.AppendToOutgoingContext(t.Context(), "token", token.Token))
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range []string{"", "--user root:r", "--user alice:a", ""} {
		if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: id}); err != nil {
			t.Fatal(err)
		}
		if r, err := stream.Recv(); err != nil || r.TTL != 600 {
			t.Fatalf("keepalive with a token: %v, %v", r, err)
		}
		command := strings.TrimSpace(other + " lease keep-alive --once " + lease)
		got, want := p.ctl(t, etcdctl, command), ctlAt(t, etcdctl, p.member.ClientAddr(), command)
		if got != want {
			t.Errorf("%s through the proxy: %+v, without it %+v", command, got, want)
		}
	}
}

// The wrappers around the key space leave behind what real etcd's leave.
func TestGRPCProxyWrappers(t *testing.T) {
	t.Parallel()
	script := `
put a 1
put b 2
get a
get a --consistency s
get '' --from-key
get a --prefix
get a z
del b
txn -i=false << value("a") = "1";;put a 2;get a;;get a;;
txn -i=false << value("a") = "1";;put a 3;get a;;get a;;
get a
get a
put a 4
get a
del '' --from-key
get a
`
	for name, args := range map[string][]string{
		"namespace":           {"--namespace=ns/"},
		"ordering":            {"--experimental-serializable-ordering"},
		"leasing":             {"--experimental-leasing-prefix=lp/"},
		"all":                 {"--namespace=ns/", "--experimental-serializable-ordering", "--experimental-leasing-prefix=lp/"},
		"without an address ": {"--advertise-client-url="},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pair := startPair(t, args...)
			compare(t, pair, etcdctl, script)
			compareMembers(t, pair, "get --from-key '' --print-value-only=false")
			compare(t, pair, etcdctl, "put k v\nput l v\nmember list -w json\nlease list")
			for _, p := range pair {
				w := p.begin(t, etcdctl, "watch k --rev 1 --prefix")
				// A leasing client may write more than once.
				child.Eventually(t, limit, p.name+": a watch", func() error {
					if !strings.HasPrefix(w.String(), "PUT\nk\nv\n") {
						return errors.New(w.String())
					}
					return nil
				})
				w.end()
			}
			compareMembers(t, pair, "get --from-key '' --keys-only")
		})
	}
}

// Proxies that are registered are the members that clients see.
func TestGRPCProxyResolver(t *testing.T) {
	t.Parallel()
	pair := startPair(t, "--resolver-prefix=proxies", "--resolver-ttl=20", "--namespace=ns/")
	registered := func(p *grpcProxy) string {
		return ctlAt(t, etcdctl, p.member.ClientAddr(), "get --prefix ns/proxies/").Stdout
	}
	for _, p := range pair {
		child.Eventually(t, limit, p.name+" is registered", func() error {
			if registered(p) == "" {
				return errors.New("not yet")
			}
			return nil
		})
	}
	if ours, want := registered(pair[0]), registered(pair[1]); ours != want {
		t.Errorf("registered: %s, real etcd %s", ours, want)
	}
	// One of the other kind joins, and each sees both.
	other := startGRPCProxy(t, "second", realEtcd, pair[0].member, "--resolver-prefix=proxies", "--resolver-ttl=20", "--namespace=ns/")
	for _, p := range []*grpcProxy{pair[0], other} {
		child.Eventually(t, limit, p.name+" sees two proxies", func() error {
			if out := p.ctl(t, etcdctl, "member list").Stdout; strings.Count(out, "ADDR") != 2 {
				return errors.New(out)
			}
			return nil
		})
	}
	compare(t, pair, etcdctl, "endpoint health\nmember list --bogus")
	// One that shuts down gracefully is gone at once.
	pair[0].Signal(syscall.SIGTERM)
	if code := pair[0].Wait(t, limit); code != 128+int(syscall.SIGTERM) {
		t.Errorf("ended with %d:\n%s", code, pair[0].Output())
	}
	if left := strings.Count(registered(pair[0]), `"Addr"`); left != 1 {
		t.Errorf("%d are registered after one has ended", left)
	}
}

// The member dies and comes back: the proxy, its watches and its keepalives go on.
func TestGRPCProxyMemberDies(t *testing.T) {
	t.Parallel()
	p := startGRPCProxy(t, "ours", etcd, startMember(t))
	if out := p.ctl(t, etcdctl, "put k 1"); out.Code != 0 {
		t.Fatal(out)
	}
	watches := []*background{p.begin(t, etcdctl, "watch k --rev 1"), p.begin(t, etcdctl, "watch k --rev 1")}
	for _, w := range watches {
		w.prints(t, "a watch", "PUT\nk\n1\n")
	}
	c := child.Dial(t, p.addr)
	lease, err := c.Lease.LeaseGrant(t.Context(), &pb.LeaseGrantRequest{TTL: 600})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.member.Kill(); err != nil {
		t.Fatal(err)
	}
	if out := p.ctl(t, etcdctl, "get k --command-timeout=1s"); out.Code == 0 {
		t.Errorf("a read without a member: %+v", out)
	}
	// A proxy that starts now waits for the member.
	watches = append(watches, p.begin(t, etcdctl, "watch k --rev 1"))
	if err := p.member.Restart(); err != nil {
		t.Fatal(err)
	}
	child.Eventually(t, limit, "a write through the proxy", func() error {
		_, err := c.PutWithin(5*time.Second, "k", "2")
		return err
	})
	for _, w := range watches {
		child.Eventually(t, limit, "a watch goes on", func() error {
			if s := w.String(); !strings.HasPrefix(s, "PUT\nk\n1\nPUT\nk\n2\n") {
				return errors.New(s)
			}
			return nil
		})
	}
	if ttl := keepAlive(t, c, lease.ID); ttl != lease.TTL {
		t.Errorf("kept for %d s, want %d", ttl, lease.TTL)
	}
	// The shutdown, with watches open.
	p.Signal(syscall.SIGTERM)
	if code := p.Wait(t, limit); code != 128+int(syscall.SIGTERM) {
		t.Errorf("ended with %d:\n%s", code, p.Output())
	}
}

// page is the response of a URL.
func page(t *testing.T, method, url string, client *http.Client) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d %s %q\n%s", resp.StatusCode, resp.Header.Get("Content-Type"), resp.Header.Get("Allow"), body)
}

func TestGRPCProxyPages(t *testing.T) {
	t.Parallel()
	addrs, err := harness.FreeAddrs(2)
	if err != nil {
		t.Fatal(err)
	}
	var pair [2]*grpcProxy
	for i, program := range []string{etcd, realEtcd} {
		pair[i] = startGRPCProxy(t, []string{"ours", "real"}[i], program, startMember(t), "--metrics-addr=http://"+addrs[i], "--enable-pprof", "--advertise-client-url=")
	}
	for _, path := range []string{"/health", "/proxy/health", "/version", "/", "/v3/kv/range", "/v2/keys", "/debug/vars", "/debug/pprof/cmdline"} {
		for _, method := range []string{"GET", "POST"} {
			ours, want := page(t, method, "http://"+pair[0].addr+path, http.DefaultClient), page(t, method, "http://"+pair[1].addr+path, http.DefaultClient)
			if path == "/debug/pprof/cmdline" {
				ours, want = ours[:4], want[:4]
			}
			if ours != want {
				t.Errorf("%s %s:\n%s\nreal etcd:\n%s", method, path, ours, want)
			}
		}
	}
	series := regexp.MustCompile(`(?m)^# TYPE (etcd_grpc_proxy_\S+ \S+)$`)
	for i := range pair {
		for _, base := range []string{pair[i].addr, addrs[i]} {
			if body := page(t, "GET", "http://"+base+"/metrics", http.DefaultClient); !strings.HasPrefix(body, "200 text/plain; version=0.0.4 ") || !strings.Contains(body, "\netcd_server_has_leader 1\n") {
				t.Errorf("%s: /metrics is not the member's: %.200s", pair[i].name, body)
			}
			if body := page(t, "GET", "http://"+base+"/health", http.DefaultClient); !strings.HasPrefix(body, "200 ") {
				t.Errorf("%s: /health: %s", pair[i].name, body)
			}
		}
	}
	ours := series.FindAllString(page(t, "GET", "http://"+addrs[0]+"/proxy/metrics", http.DefaultClient), -1)
	want := series.FindAllString(page(t, "GET", "http://"+addrs[1]+"/proxy/metrics", http.DefaultClient), -1)
	if len(want) != 5 || fmt.Sprint(ours) != fmt.Sprint(want) {
		t.Errorf("series of the proxy: %q, real etcd %q", ours, want)
	}
}

// TLS on both sides, and the proxy's messages about unusable files.
func TestGRPCProxyTLS(t *testing.T) {
	t.Parallel()
	files := pki.Dir{TB: t, Path: t.TempDir()}
	ca := pki.NewCA("ours")
	files.Put("ca.pem", ca.PEM)
	files.PutPair("server", ca.Issue("server", "127.0.0.1"))
	files.PutPair("nameless", ca.Issue("", "127.0.0.1"))
	files.PutPair("named", ca.Issue("named", "127.0.0.1"))
	addrs, err := harness.FreeAddrs(1)
	if err != nil {
		t.Fatal(err)
	}
	m, err := harness.Start(harness.Config{Binary: etcd, Name: "m", Dir: t.TempDir(), ClientAddr: addrs[0], AdvertiseClientURL: "https://" + addrs[0], Args: []string{
		"--listen-client-urls=https://" + addrs[0], "--cert-file=" + files.File("server.pem"), "--key-file=" + files.File("server.key"), "--client-cert-auth", "--trusted-ca-file=" + files.File("ca.pem")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Kill() })
	upstream := func(pair string) []string {
		return []string{"--cert=" + files.File(pair+".pem"), "--key=" + files.File(pair+".key"), "--cacert=" + files.File("ca.pem")}
	}
	p := startGRPCProxy(t, "ours", etcd, m, append(upstream("nameless"), "--cert-file="+files.File("server.pem"), "--key-file="+files.File("server.key"), "--trusted-ca-file="+files.File("ca.pem"))...)
	flags := []string{"--cacert", files.File("ca.pem"), "--cert", files.File("nameless.pem"), "--key", files.File("nameless.key")}
	child.Eventually(t, limit, "a write", func() error {
		if out := p.ctl(t, etcdctl, "put a 1", flags...); out.Code != 0 {
			return fmt.Errorf("%+v", out)
		}
		return nil
	})
	if out := p.ctl(t, etcdctl, "get a --command-timeout=2s", "--cacert", files.File("ca.pem")); out.Code == 0 {
		t.Errorf("without a certificate: %+v", out)
	}
	nameless := ca.Issue("", "127.0.0.1")
	browser := &http.Client{Transport: &http.Transport{TLSClientConfig: pki.Client(ca.PEM, &nameless)}}
	defer browser.CloseIdleConnections()
	for _, path := range []string{"/health", "/proxy/health"} {
		if got := page(t, "GET", "https://"+p.addr+path, browser); !strings.Contains(got, `{"health":"true","reason":""}`) {
			t.Errorf("%s: %s", path, got)
		}
	}
	if got := page(t, "GET", "https://"+p.addr+"/metrics", browser); !strings.Contains(got, "\netcd_server_has_leader 1\n") {
		t.Errorf("/metrics: %.200s", got)
	}

	auto := startGRPCProxy(t, "auto", etcd, m, append(upstream("nameless"), "--auto-tls", "--data-dir="+t.TempDir())...)
	if out := auto.ctl(t, etcdctl, "get a", "--insecure-skip-tls-verify", "--insecure-transport=false"); out.Stdout != "a\n1\n" {
		t.Errorf("with a generated certificate: %+v", out)
	}
	for _, x := range []struct {
		args []string
		flag string // that ours names
	}{
		{upstream("named"), ": --cert:"}, {upstream("none"), "--cert: open"},
		{[]string{"--cert=" + files.File("named.pem")}, ": --key and --cert"}, {[]string{"--cacert=" + files.File("none.pem")}, "--cacert: open"},
	} {
		args := append([]string{"grpc-proxy", "start", "--listen-addr=127.0.0.1:0"}, x.args...)
		if ours, want := end(t, etcd, args...), end(t, realEtcd, args...); ours.differs(want, x.flag) {
			t.Errorf("%q:\n%+v\nreal etcd:\n%+v", args, ours, want)
		}
	}
	// Real etcd says it in a log line.
	const say = "cannot listen on TLS for 127.0.0.1:0: KeyFile and CertFile are not presented: --trusted-ca-file asks for TLS; give --cert-file and --key-file, or --auto-tls"
	if got := end(t, etcd, "grpc-proxy", "start", "--listen-addr=127.0.0.1:0", "--trusted-ca-file="+files.File("ca.pem")); got.Code != 1 || !strings.Contains(got.Stderr, say) {
		t.Errorf("authorities without a certificate: %+v", got)
	}
}

// Help and mistakes: the same texts on the same streams, and the same exit codes.
func TestGRPCProxyMistakes(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	// The flag that ours names.
	named := map[string]string{
		"start --tls-min-version=TLS1.3 --tls-max-version=TLS1.2":                            ": --tls-min-version and --tls-max-version",
		"start --tls-min-version=TLS1.3 --listen-cipher-suites=TLS_RSA_WITH_AES_128_CBC_SHA": ": leave out --listen-cipher-suites, or lower --tls-min-version",
		"start --auto-tls --self-signed-cert-validity=0":                                     ": --self-signed-cert-validity",
		"start --listen-addr=abc":                                                            ": --listen-addr",
		"start --listen-addr=127.0.0.1:99999":                                                ": --listen-addr",
		"start extra --listen-addr=" + taken.Addr().String():                                 ": --listen-addr: another process or another flag uses it",
	}
	for _, args := range []string{
		"",
		"other",
		"--help",
		"--nope",
		"start --help",
		"start --nope",
		"start --resolver-ttl abc",
		"start --max-concurrent-streams=-1",
		"start --resolver-prefix=x",
		"start --resolver-prefix=x --resolver-ttl=-1",
		"start --resolver-ttl=3",
		"start --resolver-prefix=x --resolver-ttl=3 --advertise-client-url=",
		"start --tls-min-version=x",
		"start --tls-max-version=TLS1.1",
		"start --tls-min-version=TLS1.3 --tls-max-version=TLS1.2",
		"start --tls-min-version=TLS1.3 --listen-cipher-suites=TLS_RSA_WITH_AES_128_CBC_SHA",
		"start --auto-tls --self-signed-cert-validity=0",
		"start --listen-addr=abc",
		"start --listen-addr=127.0.0.1:99999",
		"start extra --listen-addr=" + taken.Addr().String(),
		"start --listen-addr=127.0.0.1:0 --endpoints=",
		"start --listen-addr=127.0.0.1:0 --max-recv-bytes=5",
	} {
		words := append([]string{"grpc-proxy"}, strings.Fields(args)...)
		if ours, want := end(t, etcd, words...), end(t, realEtcd, words...); ours.differs(want, named[args]) {
			t.Errorf("%s:\n%+v\nreal etcd:\n%+v", args, ours, want)
		}
	}
	// These real etcd puts inside a log line, or prints with a time, or not at all.
	for args, text := range map[string]string{
		"--cert-file=none.pem":                                       "KeyFile and CertFile must both be present[key: , cert: none.pem]: --key-file and --cert-file",
		"--cert-file=none.pem --key-file=none.key":                   "--cert-file: open none.pem: no such file or directory",
		"--trusted-ca-file=" + os.DevNull:                            "--trusted-ca-file=/dev/null: no certificate in the file",
		"--cert-file=a --key-file=b --listen-cipher-suites=TLS_NONE": `unexpected TLS cipher suite "TLS_NONE": --listen-cipher-suites`,
		"--metrics-addr=%zz":                                         `cannot parse "%zz"`,
		"--metrics-addr=127.0.0.1:0":                                 `cannot parse "127.0.0.1:0"`,
		"--metrics-addr=https://127.0.0.1:0":                         `--metrics-addr=https://127.0.0.1:0: no TLS for scheme "https" without --cert-file and --key-file`,
		"--metrics-addr=localhost":                                   `--metrics-addr=localhost: cannot listen with scheme ""`,
	} {
		got := end(t, etcd, append([]string{"grpc-proxy", "start", "--listen-addr=127.0.0.1:0"}, strings.Fields(args)...)...)
		if got != (outcome{1, "", text}) {
			t.Errorf("%s: %+v, want %q", args, got, text)
		}
	}
}

// With --endpoints-auto-sync-interval the members replace --endpoints, and the log names them.
func TestGRPCProxySync(t *testing.T) {
	t.Parallel()
	m := startMember(t)
	_, port, _ := strings.Cut(m.ClientAddr(), ":")
	for name, program := range both() {
		p := child.Start(t, child.Config{Program: program, Dir: filepath.Join(t.TempDir(), "proxy-"+name), Args: []string{
			"grpc-proxy", "start", "--listen-addr", "127.0.0.1:0", "--endpoints", "localhost:" + port, "--endpoints-auto-sync-interval", "1s"}})
		child.Eventually(t, limit, name+" uses the member's own URL", func() error {
			for line := range strings.Lines(p.Output()) {
				if strings.Contains(line, m.ClientAddr()) {
					return nil
				}
			}
			return errors.New("not said yet")
		})
	}
}

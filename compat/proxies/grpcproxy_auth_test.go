package proxies

import (
	"os/exec"
	"strconv"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/metadata"

	"quorate/compat/child"
)

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

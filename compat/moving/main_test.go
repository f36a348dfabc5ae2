package moving

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
	"quorate/compat/harness"
)

var (
	etcdFlag = flag.String("etcd", "", "server binary; empty: built from this tree")
	ctlFlag  = flag.String("etcdctl", "", "etcdctl binary; empty: built from this tree")
	utlFlag  = flag.String("etcdutl", "", "etcdutl binary; empty: built from this tree")
	keysFlag = flag.Int("keys", 20_000, "keys of the measured way there and back")
)

var (
	etcd, etcdctl, etcdutl string // of this tree
	real35, real36, real37 string
	realctl, realutl       string
	binaries               = map[string]*string{"etcd35": &real35, "etcd36": &real36, "etcd37": &real37, "etcdctl37": &realctl, "etcdutl37": &realutl}
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "moving")
	if err == nil {
		defer os.RemoveAll(dir)
		err = find(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func find(dir string) (err error) {
	for _, x := range []struct {
		to            *string
		path, command string
	}{{&etcd, *etcdFlag, "etcd"}, {&etcdctl, *ctlFlag, "etcdctl"}, {&etcdutl, *utlFlag, "etcdutl"}} {
		if *x.to, err = child.Binary(x.path, x.command, dir); err != nil {
			return err
		}
	}
	for name, to := range binaries {
		if *to, err = filepath.Abs(filepath.Join("..", "bin", name)); err != nil {
			return err
		}
		if _, err := os.Stat(*to); err != nil {
			return fmt.Errorf("%w (make compat builds it)", err)
		}
	}
	return nil
}

// limit is the upper bound of any single wait, generous because the machine may be busy.
const limit = 90 * time.Second

func withLimit(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// start starts a single member that is stopped with the test.
func start(t testing.TB, binary string, args ...string) *harness.Member {
	t.Helper()
	m, err := harness.StartSingle(withLimit(t), harness.Config{Binary: binary, Dir: t.TempDir(), Args: args})
	must(t, err)
	t.Cleanup(func() { m.Kill() })
	return m
}

// end stops a member: gracefully, or with kill -9.
func end(t testing.TB, m *harness.Member, kill bool) {
	t.Helper()
	if kill {
		must(t, m.Kill())
		return
	}
	must(t, m.Stop(withLimit(t)))
}

// become starts another binary on the directory of a stopped member.
func become(t testing.TB, m *harness.Member, binary string) {
	t.Helper()
	must(t, m.SetBinary(binary))
	must(t, m.Restart())
	must(t, m.WaitReady(withLimit(t)))
}

// result is the output of a tool.
type result struct {
	stdout, stderr string
	code           int
}

func tool(t testing.TB, program string, args ...string) result {
	t.Helper()
	cmd := exec.CommandContext(withLimit(t), program, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "ETCD") {
			cmd.Env = append(cmd.Env, e)
		}
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// done runs a tool that must succeed.
func done(t testing.TB, program string, args ...string) string {
	t.Helper()
	r := tool(t, program, args...)
	if r.code != 0 {
		t.Fatalf("%s %q: code %d\n%s%s", filepath.Base(program), args, r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// fill writes n keys and some of everything else that a store can hold: overwritten and deleted keys, leases
// with keys, users and roles where the server has them, and a compaction after which more is written.
func fill(t testing.TB, m *harness.Member, n int) {
	t.Helper()
	ctx := context.Background()
	c := child.Dial(t, m.ClientAddr())
	const batch = 100
	put := func(from, to int, value string) {
		t.Helper()
		var ops []*pb.RequestOp
		for i := from; i < to; i++ {
			ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{
				Key: fmt.Appendf(nil, "key/%08d", i), Value: fmt.Appendf(nil, "%s-%d-%s", value, i, strings.Repeat("x", 100))}}})
		}
		if _, err := c.Txn(ctx, &pb.TxnRequest{Success: ops}); err != nil {
			t.Fatalf("fill: %v", err)
		}
	}
	for i := 0; i < n; i += batch {
		put(i, min(i+batch, n), "first")
	}
	put(0, min(n, batch), "second")
	_, err := c.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("key/00000010"), RangeEnd: []byte("key/00000020")})
	must(t, err)
	for id := range int64(3) {
		_, err := c.Lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 1000 + id, TTL: 3600 + id})
		must(t, err)
		_, err = c.Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "leased/%d", id), Value: []byte("v"), Lease: 1000 + id})
		must(t, err)
	}
	auth := pb.NewAuthClient(c.Conn)
	if _, err := auth.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: "reader"}); err == nil {
		_, err = auth.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "alice", Options: nil, HashedPassword: "", Password: "secret"})
		must(t, err)
		_, err = auth.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: "alice", Role: "reader"})
		must(t, err)
	}
	r, err := c.PutWithin(limit, "before", "compaction")
	must(t, err)
	_, err = c.Compact(ctx, &pb.CompactionRequest{Revision: r.Header.Revision - 3, Physical: true})
	must(t, err)
	for i := range 20 {
		_, err := c.PutWithin(limit, fmt.Sprintf("late/%d", i%7), fmt.Sprint(i))
		must(t, err)
	}
}

// state is what must be the same on both sides of a move.
type state struct {
	Rev, Compacted int64
	Hash           uint32
	Count          int64
	Leases         string
	Members        string
	Users          string // empty if the server has no users
}

// look reads the state at revision rev, 0 meaning the current one.
func look(t testing.TB, m *harness.Member, rev int64) state {
	t.Helper()
	ctx := withLimit(t)
	c := child.Dial(t, m.ClientAddr())
	var s state
	child.Eventually(t, limit, "the member answers", func() error {
		r, err := c.Range(ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, CountOnly: true, Revision: rev})
		if err == nil {
			s.Rev, s.Count = r.Header.Revision, r.Count
		}
		return err
	})
	if rev != 0 {
		s.Rev = rev
	}
	h, err := c.Maintenance.HashKV(ctx, &pb.HashKVRequest{Revision: s.Rev})
	must(t, err)
	s.Hash, s.Compacted = h.Hash, h.CompactRevision
	l, err := c.Lease.LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
	must(t, err)
	var leases []string
	for _, x := range l.Leases {
		ttl, err := c.Lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: x.ID, Keys: true})
		must(t, err)
		leases = append(leases, fmt.Sprintf("%d: %d s, keys %q", x.ID, ttl.GrantedTTL, ttl.Keys))
	}
	slices.Sort(leases)
	s.Leases = strings.Join(leases, "; ")
	ms, err := c.Cluster.MemberList(ctx, &pb.MemberListRequest{})
	must(t, err)
	var members []string
	for _, x := range ms.Members {
		members = append(members, fmt.Sprintf("%x %s %v %v", x.ID, x.Name, x.PeerURLs, x.ClientURLs))
	}
	slices.Sort(members)
	s.Members = fmt.Sprintf("cluster %x: %s", ms.Header.ClusterId, strings.Join(members, "; "))
	auth := pb.NewAuthClient(c.Conn)
	if u, err := auth.UserGet(ctx, &pb.AuthUserGetRequest{Name: "alice"}); err == nil {
		s.Users = fmt.Sprint(u.Roles)
	}
	return s
}

// same compares the current state with the one before a move.
func same(t testing.TB, what string, got, want state) {
	t.Helper()
	if got.Users == "" || want.Users == "" {
		got.Users, want.Users = "", ""
	}
	if got != want {
		t.Errorf("%s:\n  %+v\nwant\n  %+v", what, got, want)
	}
}

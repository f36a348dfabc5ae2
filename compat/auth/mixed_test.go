package auth

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"quorate/compat/child"
	"quorate/compat/harness"
)

var (
	etcdFlag = flag.String("etcd", "", "server binary; empty: built from this tree")
	realFlag = flag.String("real", "../bin/etcd37", "real etcd 3.7")
	seed     = flag.Uint64("seed", 1, "of the requests")
)

// limit is the upper bound of any single wait, generous because the machine may be busy.
const limit = 90 * time.Second

// member is one member and the client services that the lane uses.
type member struct {
	*harness.Member
	auth  pb.AuthClient
	kv    pb.KVClient
	lease pb.LeaseClient
	maint pb.MaintenanceClient
	watch pb.WatchClient
	id    uint64
}

type cluster struct {
	t       *testing.T
	members []*member // Quorate, etcd, Quorate
	tokens  map[string]string
}

func start(t *testing.T, args ...string) *cluster {
	t.Helper()
	ours, err := child.Binary(*etcdFlag, "etcd", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := filepath.Abs(*realFlag)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(theirs); err != nil {
		t.Fatalf("real etcd: %v (make compat builds it)", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	h, err := harness.StartCluster(ctx, t.TempDir(), []string{ours, theirs, ours},
		append([]string{"--bcrypt-cost=4", "--snapshot-count=100", "--snapshot-catchup-entries=10"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Kill)
	c := &cluster{t: t, tokens: map[string]string{}}
	for _, m := range h.Members {
		conn, err := grpc.NewClient("passthrough:///"+m.ClientAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		c.members = append(c.members, &member{Member: m, auth: pb.NewAuthClient(conn), kv: pb.NewKVClient(conn),
			lease: pb.NewLeaseClient(conn), maint: pb.NewMaintenanceClient(conn), watch: pb.NewWatchClient(conn)})
	}
	for _, m := range c.members {
		c.must("status", func(ctx context.Context) error {
			r, err := m.maint.Status(ctx, &pb.StatusRequest{})
			if err == nil {
				m.id = r.Header.MemberId
			}
			return err
		})
	}
	return c
}

// must runs a call as root and retries it while the cluster refuses for a passing reason.
func (c *cluster) must(what string, f func(ctx context.Context) error) {
	c.t.Helper()
	child.Eventually(c.t, limit, what, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		return f(as(ctx, c.tokens["root"]))
	})
}

func as(ctx context.Context, token string) context.Context {
	if token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "token", token)
}

// login gets a token for a user from one member.
func (c *cluster) login(m *member, user, password string) string {
	c.t.Helper()
	var token string
	c.must(user+" logs in at "+m.Name(), func(ctx context.Context) error {
		r, err := m.auth.Authenticate(ctx, &pb.AuthenticateRequest{Name: user, Password: password})
		token = r.GetToken()
		return err
	})
	return token
}

var users = []string{"alice", "bob"}

// users creates root, alice and bob and enables authentication, using a different member for each call.
func (c *cluster) prepare() {
	c.t.Helper()
	n := 0
	do := func(what string, f func(ctx context.Context, a pb.AuthClient) error) {
		c.t.Helper()
		m := c.members[n%len(c.members)]
		n++
		c.must(what, func(ctx context.Context) error { return f(ctx, m.auth) })
	}
	for _, u := range append([]string{"root"}, users...) {
		do("add "+u, func(ctx context.Context, a pb.AuthClient) error {
			_, err := a.UserAdd(ctx, &pb.AuthUserAddRequest{Name: u, Password: "pw-" + u})
			if status.Code(err) == codes.FailedPrecondition { // an earlier attempt succeeded
				return nil
			}
			return err
		})
		role := "role-" + u
		if u == "root" {
			role = u
		}
		do("add role "+role, func(ctx context.Context, a pb.AuthClient) error {
			_, err := a.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: role})
			if status.Code(err) == codes.FailedPrecondition {
				return nil
			}
			return err
		})
		do("grant "+role, func(ctx context.Context, a pb.AuthClient) error {
			_, err := a.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: u, Role: role})
			return err
		})
	}
	for _, p := range []struct {
		role, key, end string
		kind           authpb.Permission_Type
	}{
		{"role-alice", "a", "c", authpb.Permission_READWRITE}, {"role-alice", "c", "d", authpb.Permission_READ},
		{"role-alice", "k", "", authpb.Permission_WRITE}, {"role-bob", "b", "\x00", authpb.Permission_READ},
		{"role-bob", "c", "e", authpb.Permission_WRITE},
	} {
		do("permission", func(ctx context.Context, a pb.AuthClient) error { return permit(ctx, a, p.role, p.kind, p.key, p.end) })
	}
	do("enable", func(ctx context.Context, a pb.AuthClient) error {
		_, err := a.AuthEnable(ctx, &pb.AuthEnableRequest{})
		if err != nil && status.Convert(err).Message() == "etcdserver: user name is empty" {
			return nil // authentication is enabled
		}
		return err
	})
}

func permit(ctx context.Context, a pb.AuthClient, role string, kind authpb.Permission_Type, key, end string) error {
	_, err := a.RoleGrantPermission(ctx, &pb.AuthRoleGrantPermissionRequest{Name: role,
		Perm: &authpb.Permission{PermType: kind, Key: []byte(key), RangeEnd: []byte(end)}})
	return err
}

// leader returns the member that leads.
func (c *cluster) leader() *member {
	c.t.Helper()
	var lead *member
	c.must("a leader", func(ctx context.Context) error {
		for _, m := range c.members {
			if !m.Running() {
				continue
			}
			r, err := m.maint.Status(ctx, &pb.StatusRequest{})
			if err == nil && r.Leader == m.id {
				lead = m
				return nil
			}
		}
		return errors.New("no member reports that it leads")
	})
	return lead
}

func (c *cluster) moveTo(m *member) {
	c.t.Helper()
	c.must("lead "+m.Name(), func(ctx context.Context) error {
		lead := c.leader()
		if lead == m {
			return nil
		}
		_, err := lead.maint.MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: m.id})
		return err
	})
}

// sameEverywhere waits until all members hold the same keys, users and roles.
func (c *cluster) sameEverywhere(when string) {
	c.t.Helper()
	c.must("the same everywhere "+when, func(ctx context.Context) error {
		var (
			first string
			held  [][]byte // records of the first member
		)
		for i, m := range c.members {
			st, err := m.auth.AuthStatus(ctx, &pb.AuthStatusRequest{})
			if err != nil {
				return err
			}
			h, err := m.maint.HashKV(ctx, &pb.HashKVRequest{})
			if err != nil {
				return err
			}
			got := fmt.Sprintf("enabled %v, auth revision %d, hash %d of revision %d\n", st.Enabled, st.AuthRevision, h.Hash, h.HashRevision)
			db, err := download(ctx, m)
			if err != nil {
				return err
			}
			if i == 0 {
				first, held = got, records(db)
				if len(held) != len(users)+2 {
					return fmt.Errorf("%s holds %q, want a record for each user and the state of the whole", m.Name(), held)
				}
				continue
			}
			for _, r := range held {
				if !bytes.Contains(db, r) {
					return fmt.Errorf("%s holds %q, %s does not", c.members[0].Name(), r, m.Name())
				}
			}
			if got != first {
				return fmt.Errorf("%s has\n%s\n%s has\n%s", m.Name(), got, c.members[0].Name(), first)
			}
		}
		return nil
	})
}

func download(ctx context.Context, m *member) ([]byte, error) {
	s, err := m.maint.Snapshot(ctx, &pb.SnapshotRequest{})
	if err != nil {
		return nil, err
	}
	var db bytes.Buffer
	for {
		r, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return db.Bytes(), nil
		}
		if err != nil {
			return nil, err
		}
		db.Write(r.Blob)
	}
}

// userRecord and authKeys find records in a database file. In a file that etcd has written to, free pages may
// hold old records as well.
var (
	userRecord = regexp.MustCompile(`(?s)\x0a.(alice|bob|root)\x12\x3c\$2a\$04\$[./A-Za-z0-9]{53}(?:\x1a.[a-z-]+)*\x22\x00`)
	authKeys   = regexp.MustCompile(`(?s)authEnabled[\x00\x01]authRevision.{8}`)
)

// records returns the user records in a database file written by Quorate.
func records(db []byte) [][]byte {
	return append(userRecord.FindAll(db, -1), authKeys.FindAll(db, -1)...)
}

func outcome(err error) string {
	if err == nil {
		return "done"
	}
	return status.Convert(err).Message()
}

func TestMixedCluster(t *testing.T) {
	key := filepath.Join(t.TempDir(), "jwt.key")
	if err := os.WriteFile(key, []byte("a key that all members have"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, arg := range map[string]string{
		"simple": "--auth-token=simple",
		"jwt":    "--auth-token=jwt,sign-method=HS256,priv-key=" + key + ",ttl=1h",
	} {
		t.Run(name, func(t *testing.T) {
			c := start(t, arg)
			c.prepare()
			c.tokens["root"] = c.login(c.members[0], "root", "pw-root")
			c.tokensEverywhere()
			c.sameEverywhere("after the logins")
			c.chaos()
			c.sameEverywhere("after many requests")
			c.catchUp(c.members[2], c.members[1])
			c.catchUp(c.members[1], c.members[0])
			c.tokensEverywhere()
			c.sameEverywhere("in the end")
		})
	}
}

// tokensEverywhere logs in at each member and uses the token at every member at once.
func (c *cluster) tokensEverywhere() {
	t := c.t
	t.Helper()
	for _, at := range c.members {
		c.tokens["root"] = c.login(at, "root", "pw-root")
		for _, user := range users {
			token := c.login(at, user, "pw-"+user)
			for _, m := range c.members {
				ctx, cancel := context.WithTimeout(as(context.Background(), token), limit)
				var got []string
				for _, q := range []*pb.RangeRequest{{Key: []byte("b")}, {Key: []byte("a"), RangeEnd: []byte("d")}, {Key: []byte("k")}, {Key: []byte("d"), RangeEnd: []byte{0}}} {
					_, err := m.kv.Range(ctx, q)
					got = append(got, outcome(err))
				}
				for _, k := range []string{"b", "c", "k", "x"} {
					_, err := m.kv.Put(ctx, &pb.PutRequest{Key: []byte(k), Value: []byte(user)})
					got = append(got, outcome(err))
				}
				cancel()
				const no = "etcdserver: permission denied"
				want := map[string][]string{
					"alice": {"done", "done", no, no, "done", no, "done", no},
					"bob":   {"done", no, "done", "done", no, "done", no, no},
				}[user]
				if !slices.Equal(got, want) {
					t.Errorf("token of %s from %s at %s: got %q, want %q", user, at.Name(), m.Name(), got, want)
				}
			}
		}
	}
}

// chaos has users read and write through all members while their permissions change. Whether a request is denied
// is decided when it is applied, so all members must agree on every request.
func (c *cluster) chaos() {
	rnd := rand.New(rand.NewPCG(*seed, 7))
	c.t.Logf("-seed=%d", *seed)
	pick := func() *member { return c.members[rnd.IntN(len(c.members))] }
	key := func() []byte { return []byte{byte('a' + rnd.IntN(6))} }
	denied, done := 0, 0
	for i := range 400 {
		m, user := pick(), users[rnd.IntN(len(users))]
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		token := c.tokens[user]
		if token == "" {
			token = c.login(m, user, "pw-"+user)
			c.tokens[user] = token
		}
		uctx := as(ctx, token)
		var err error
		switch rnd.IntN(8) {
		case 0, 1, 2:
			_, err = m.kv.Put(uctx, &pb.PutRequest{Key: key(), Value: fmt.Append(nil, i), PrevKv: rnd.IntN(3) == 0})
		case 3:
			_, err = m.kv.DeleteRange(uctx, &pb.DeleteRangeRequest{Key: key(), PrevKv: rnd.IntN(3) == 0})
		case 4:
			_, err = m.kv.Txn(uctx, &pb.TxnRequest{
				Compare: []*pb.Compare{{Key: key(), Target: pb.Compare_VERSION, Result: pb.Compare_GREATER}},
				Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key(), Value: []byte("yes")}}}},
				Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key()}}}, {Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: key()}}}},
			})
		case 5:
			id := int64(1000 + i)
			if _, err = m.lease.LeaseGrant(uctx, &pb.LeaseGrantRequest{ID: id, TTL: 600}); err == nil {
				m.kv.Put(uctx, &pb.PutRequest{Key: key(), Lease: id})
				other := users[rnd.IntN(len(users))]
				_, err = m.lease.LeaseRevoke(as(ctx, c.tokens[other]), &pb.LeaseRevokeRequest{ID: id})
			}
		case 6:
			rctx := as(ctx, c.tokens["root"])
			if rnd.IntN(2) == 0 {
				err = permit(rctx, pick().auth, "role-"+user, authpb.Permission_Type(rnd.IntN(3)), string(key()), "")
			} else {
				_, err = pick().auth.RoleRevokePermission(rctx, &pb.AuthRoleRevokePermissionRequest{Role: "role-" + user, Key: key()})
			}
			c.tokens["root"] = c.login(pick(), "root", "pw-root") // a signed token is stale now
		case 7:
			c.tokens[user] = c.login(pick(), user, "pw-"+user)
		}
		cancel()
		if err != nil {
			denied++
		} else {
			done++
		}
	}
	if denied < 40 || done < 40 {
		c.t.Errorf("%d requests were denied and %d done: that proves little", denied, done)
	}
	for _, u := range users { // the state that the matrix of tokensEverywhere expects
		for k := byte('a'); k < 'g'; k++ {
			c.must("revoke", func(ctx context.Context) error {
				c.tokens["root"] = c.login(pick(), "root", "pw-root")
				_, err := c.members[0].auth.RoleRevokePermission(as(context.Background(), c.tokens["root"]), &pb.AuthRoleRevokePermissionRequest{Role: "role-" + u, Key: []byte{k}})
				if status.Code(err) == codes.FailedPrecondition {
					return nil
				}
				return err
			})
		}
	}
	clear(c.tokens)
	c.tokens["root"] = c.login(c.members[0], "root", "pw-root")
}

// catchUp pauses a member until the others have truncated the entries it needs, so that the leader sends it a
// snapshot, and changes passwords meanwhile.
func (c *cluster) catchUp(behind, from *member) {
	t := c.t
	t.Helper()
	c.moveTo(from)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := behind.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	var up []*member
	for _, m := range c.members {
		if m != behind {
			up = append(up, m)
		}
	}
	for _, u := range users {
		c.must("change the password of "+u, func(ctx context.Context) error {
			_, err := up[0].auth.UserChangePassword(ctx, &pb.AuthUserChangePasswordRequest{Name: u, Password: "pw-" + u})
			return err
		})
		c.tokens["root"] = c.login(up[1], "root", "pw-root")
	}
	for i := range 300 {
		c.must("put", func(ctx context.Context) error {
			_, err := up[i%2].kv.Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "fill%d", i%10), Value: fmt.Append(nil, i)})
			return err
		})
	}
	if err := behind.Restart(); err != nil {
		t.Fatal(err)
	}
	rctx, rcancel := context.WithTimeout(context.Background(), limit)
	defer rcancel()
	if err := behind.WaitReady(rctx); err != nil {
		t.Fatal(err)
	}
	if log, err := os.ReadFile(behind.LogPath()); err != nil || !installed.Match(log) {
		t.Errorf("%s has not got a snapshot (%v)", behind.Name(), err)
	}
	for _, u := range users {
		c.login(behind, u, "pw-"+u)
	}
}

// installed matches the line that either kind logs when it has received a snapshot.
var installed = regexp.MustCompile(`received and saved database snapshot|applied snapshot|restored from a snapshot|installed a snapshot`)

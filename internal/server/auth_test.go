package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"golang.org/x/crypto/bcrypt"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"quorate/internal/auth"
	"quorate/internal/clock"
)

// again calls f until it succeeds or fails with a permanent error.
func (n *node) again(what string, f func(ctx context.Context) error) {
	n.t.Helper()
	var err error
	eventually(n.t, what, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		err = f(ctx)
		return err == nil || !retried(err)
	})
	if err != nil {
		n.t.Fatalf("%s at %s: %v", what, n.name, err)
	}
}

// login returns the context of a user who has logged in at n.
func (n *node) login(user, password string) context.Context {
	n.t.Helper()
	var token string
	n.again(user+" logs in", func(ctx context.Context) error {
		r, err := n.m.Accounts.Authenticate(ctx, &pb.AuthenticateRequest{Name: user, Password: password})
		token = r.GetToken()
		return err
	})
	return WithToken(background(n.t), token)
}

func (n *node) permit(ctx context.Context, role, key, end string) {
	n.t.Helper()
	n.again("grant", func(context.Context) error {
		_, err := n.m.Accounts.RoleGrantPermission(ctx, &pb.AuthRoleGrantPermissionRequest{Name: role,
			Perm: &authpb.Permission{PermType: authpb.Permission_READWRITE, Key: []byte(key), RangeEnd: []byte(end)}})
		return err
	})
}

// enableAuth adds root and the user u with the permission on the keys [a, b), and turns
// authentication on. Each password equals the name.
func (n *node) enableAuth() {
	n.t.Helper()
	for _, user := range []string{auth.Root, "u"} {
		n.again("add "+user, func(ctx context.Context) error {
			_, err := n.m.Accounts.UserAdd(ctx, &pb.AuthUserAddRequest{Name: user, Password: user})
			if errors.Is(err, auth.ErrUserAlreadyExist) {
				return nil
			}
			return err
		})
		n.again("add role of "+user, func(ctx context.Context) error {
			_, err := n.m.Accounts.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: user})
			if errors.Is(err, auth.ErrRoleAlreadyExist) {
				return nil
			}
			return err
		})
		n.again("grant", func(ctx context.Context) error {
			_, err := n.m.Accounts.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: user, Role: user})
			return err
		})
	}
	n.permit(background(n.t), "u", "a", "b")
	n.again("enable", func(ctx context.Context) error {
		_, err := n.m.Accounts.AuthEnable(ctx, &pb.AuthEnableRequest{})
		if errors.Is(err, auth.ErrUserEmpty) {
			return nil // already enabled
		}
		return err
	})
	// A member that has not applied it yet forwards requests without checking their user.
	for _, x := range n.cluster.nodes {
		if x.m != nil && x.handler.Load() != nil && !x.cut.Load() {
			eventually(n.t, x.name+" knows that authentication is on", func() bool { return x.m.Access.AuthEnabled() })
		}
	}
}

func (n *node) putAs(ctx context.Context, key string) error {
	var err error
	eventually(n.t, "put "+key, func() bool {
		_, err = n.m.KV.Put(ctx, &pb.PutRequest{Key: []byte(key), Value: []byte("v")}, nil)
		return err == nil || !retried(err)
	})
	return err
}

func (n *node) getAs(ctx context.Context, key string, serializable bool) error {
	var err error
	eventually(n.t, "get "+key, func() bool {
		_, err = n.m.KV.Range(ctx, &pb.RangeRequest{Key: []byte(key), Serializable: serializable})
		return err == nil || !retried(err)
	})
	return err
}

// TestAuthEverywhere uses tokens of one member immediately on another, and checks that all
// members reject the same requests.
func TestAuthEverywhere(t *testing.T) {
	c := newCluster(t, 3, calm)
	c.follower().enableAuth()
	for _, at := range c.nodes {
		user := at.login("u", "u")
		root := at.login(auth.Root, auth.Root)
		for _, n := range c.nodes {
			for _, x := range []struct {
				what string
				err  error
				want error
			}{
				{"put", n.putAs(user, "a1"), nil},
				{"put of others", n.putAs(user, "b"), auth.ErrPermissionDenied},
				{"put by root", n.putAs(root, "b"), nil},
				{"put by nobody", n.putAs(background(t), "a1"), auth.ErrUserEmpty},
				{"get", n.getAs(user, "a1", false), nil},
				{"local get of others", n.getAs(user, "b", true), auth.ErrPermissionDenied},
				{"get by nobody", n.getAs(background(t), "a1", true), auth.ErrUserEmpty},
				{"get with an invented token", n.getAs(WithToken(background(t), "abc.1"), "a1", true), auth.ErrInvalidAuthToken},
				{"get with what is no token", n.getAs(WithToken(background(t), "abc"), "a1", true), auth.ErrInvalidAuthToken},
				{"list", second(n.m.Members.MemberList(background(t), false)), auth.ErrUserEmpty},
				{"remove a member", second(n.m.Members.MemberRemove(user, 1)), auth.ErrPermissionDenied},
				{"promote a member", second(n.m.Members.MemberPromote(user, 1)), auth.ErrPermissionDenied},
				{"what the member does itself", n.getAs(AsRoot(background(t)), "b", true), nil},
			} {
				if !errors.Is(x.err, x.want) {
					t.Errorf("%s at %s with a token of %s: got %v, want %v", x.what, n.name, at.name, x.err, x.want)
				}
			}
		}
	}
	c.sameHash()
}

func second[T any](_ T, err error) error { return err }

func TestLeasesOfOthers(t *testing.T) {
	c := newCluster(t, 3, calm)
	n := c.follower()
	n.grant(7, 1000)
	n.grant(8, 1000)
	n.putReq(&pb.PutRequest{Key: []byte("a"), Lease: 7})
	n.putReq(&pb.PutRequest{Key: []byte("z"), Lease: 8})
	n.enableAuth()
	for _, n := range c.nodes {
		user, nobody := n.login("u", "u"), background(t)
		for _, x := range []struct {
			what string
			err  error
			want error
		}{
			{"renew", second(n.m.Leases.LeaseRenew(user, 7)), nil},
			{"renew that of others", second(n.m.Leases.LeaseRenew(user, 8)), auth.ErrPermissionDenied},
			{"renew as nobody", second(n.m.Leases.LeaseRenew(nobody, 7)), auth.ErrUserEmpty},
			{"keys", second(n.m.Leases.TimeToLive(user, &pb.LeaseTimeToLiveRequest{ID: 7, Keys: true})), nil},
			{"keys of others", second(n.m.Leases.TimeToLive(user, &pb.LeaseTimeToLiveRequest{ID: 8, Keys: true})), auth.ErrPermissionDenied},
			{"time of others", second(n.m.Leases.TimeToLive(user, &pb.LeaseTimeToLiveRequest{ID: 8})), nil},
			{"time as nobody", second(n.m.Leases.TimeToLive(nobody, &pb.LeaseTimeToLiveRequest{ID: 8})), auth.ErrUserEmpty},
			{"list", second(n.m.Leases.LeaseLeases(user)), auth.ErrPermissionDenied},
			{"revoke that of others", second(n.m.Leases.LeaseRevoke(user, &pb.LeaseRevokeRequest{ID: 8})), auth.ErrPermissionDenied},
			{"hang a key on that of others", second(n.m.KV.Put(user, &pb.PutRequest{Key: []byte("a"), Lease: 8}, nil)), auth.ErrPermissionDenied},
			{"grant as nobody", second(n.m.Leases.LeaseGrant(nobody, &pb.LeaseGrantRequest{TTL: 60})), auth.ErrUserEmpty},
		} {
			if !errors.Is(x.err, x.want) && !retried(x.err) {
				t.Errorf("%s at %s: got %v, want %v", x.what, n.name, x.err, x.want)
			}
		}
	}
	// The cluster itself revokes leases regardless of permissions.
	c.clk.ahead.Add(int64(3000 * time.Second))
	for _, x := range c.nodes {
		eventually(t, "the leases are gone on "+x.name, func() bool { return !x.m.lessor.Exists(7) && !x.m.lessor.Exists(8) })
	}
}

// TestPasswordsWithoutPassword changes and adds users in all ways that omit the password, and
// then tries to log in.
func TestPasswordsWithoutPassword(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[0]
	n.enableAuth()
	root := n.login(auth.Root, auth.Root)
	hash, err := bcrypt.GenerateFromPassword([]byte("new"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	encoded := base64.StdEncoding.EncodeToString(hash)
	for _, x := range []struct {
		name   string
		add    *pb.AuthUserAddRequest
		change *pb.AuthUserChangePasswordRequest
		err    error
		opens  []string // the passwords that log in, of those tried
	}{
		{"changed", &pb.AuthUserAddRequest{Password: "old"}, &pb.AuthUserChangePasswordRequest{Password: "new"}, nil, []string{"new"}},
		{"nothing", &pb.AuthUserAddRequest{Password: "old"}, &pb.AuthUserChangePasswordRequest{}, nil, nil},
		{"hash", &pb.AuthUserAddRequest{Password: "old"}, &pb.AuthUserChangePasswordRequest{HashedPassword: encoded}, nil, []string{"new"}},
		{"both", &pb.AuthUserAddRequest{Password: "old"}, &pb.AuthUserChangePasswordRequest{Password: "other", HashedPassword: encoded}, nil, []string{"other"}},
		{"no hash", &pb.AuthUserAddRequest{Password: "old"}, &pb.AuthUserChangePasswordRequest{HashedPassword: "!"}, auth.ErrNoPasswordUser, []string{"old"}},
		{"hash of nothing known", &pb.AuthUserAddRequest{Password: "old"}, &pb.AuthUserChangePasswordRequest{HashedPassword: "b2xk"}, nil, nil},
		{"no password stays none", &pb.AuthUserAddRequest{Options: &authpb.UserAddOptions{NoPassword: true}}, &pb.AuthUserChangePasswordRequest{Password: "new"}, nil, nil},
		{"added with a hash", &pb.AuthUserAddRequest{Password: "old", HashedPassword: encoded}, nil, nil, []string{"old"}},
		{"added with nothing", &pb.AuthUserAddRequest{HashedPassword: encoded}, nil, nil, []string{""}}, // etcdctl asks for one
	} {
		x.add.Name = x.name
		if _, err := n.m.Accounts.UserAdd(root, x.add); err != nil {
			t.Fatal(err)
		}
		root = n.login(auth.Root, auth.Root)
		if x.change != nil {
			x.change.Name = x.name
			if _, err := n.m.Accounts.UserChangePassword(root, x.change); !errors.Is(err, x.err) {
				t.Errorf("%s: %v, want %v", x.name, err, x.err)
			}
		}
		var opens []string
		for _, password := range []string{"", "old", "new", "other", encoded, string(hash)} {
			if _, err := n.m.Accounts.Authenticate(background(t), &pb.AuthenticateRequest{Name: x.name, Password: password}); err == nil {
				opens = append(opens, password)
			}
		}
		if !slices.Equal(opens, x.opens) {
			t.Errorf("%s: %q log in, want %q", x.name, opens, x.opens)
		}
	}
}

// TestWatchEndsWithPermission revokes a permission between two puts: the watcher gets the
// first put, then its cancellation, and never the second put.
func TestWatchEndsWithPermission(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[0]
	before := n.m.Watches.Hub().NewStream(background(t)) // opened while authentication is off
	defer before.Close()
	if err := n.m.Watches.CreateWatch(background(t), before, &pb.WatchCreateRequest{Key: []byte("z")}); err != nil {
		t.Fatal(err)
	}
	n.enableAuth()
	root := n.login(auth.Root, auth.Root)
	n.permit(root, "u", "c", "")
	user := n.login("u", "u")

	ws := n.m.Watches.Hub().NewStream(user)
	defer ws.Close()
	for _, key := range []string{"a", "c", "z"} {
		if err := n.m.Watches.CreateWatch(user, ws, &pb.WatchCreateRequest{Key: []byte(key)}); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"created 0", "created 1", "created -1 " + rpctypes.ErrGRPCPermissionDenied.Error()} {
		r, err := ws.Next(user)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.TrimSpace(fmt.Sprintf("created %d %s", r.WatchID, r.CancelReason)); !r.Created || got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if r, err := before.Next(user); err != nil || !r.Created {
		t.Fatalf("%+v, %v", r, err)
	}
	if r, err := before.Next(user); err != nil || !r.Canceled || r.CancelReason != rpctypes.ErrGRPCUserEmpty.Error() {
		t.Errorf("the watcher of before: got %+v, %v", r, err)
	}

	for _, key := range []string{"a", "c"} {
		if err := n.putAs(root, key); err != nil {
			t.Fatal(err)
		}
	}
	n.again("revoke", func(context.Context) error {
		_, err := n.m.Accounts.RoleRevokePermission(root, &pb.AuthRoleRevokePermissionRequest{Role: "u", Key: []byte("a"), RangeEnd: []byte("b")})
		return err
	})
	for _, key := range []string{"a", "c"} {
		if err := n.putAs(root, key); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for len(got) < 4 {
		r, err := ws.Next(user)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%d: %d events %s", r.WatchID, len(r.Events), r.CancelReason))
	}
	want := []string{"0: 1 events ", "1: 1 events ", "0: 0 events " + rpctypes.ErrGRPCPermissionDenied.Error(), "1: 1 events "}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestAuthSurvives restarts a member and makes another one catch up by snapshot.
func TestAuthSurvives(t *testing.T) {
	c := newCluster(t, 3, smallLog)
	n := c.follower()
	c.isolate(n)
	c.fallBehind(n, "k")
	var up *node
	for _, x := range c.nodes {
		if x != n {
			up = x
		}
	}
	up.enableAuth()
	old := up.login("u", "u")
	n.heal()
	eventually(t, "the follower knows the users", func() bool { return n.m.auth.State().Enabled() })
	if err := n.putAs(n.login("u", "u"), "a1"); err != nil {
		t.Errorf("put at the one that got a snapshot: %v", err)
	}
	if err := n.putAs(n.login("u", "u"), "b"); !errors.Is(err, auth.ErrPermissionDenied) {
		t.Errorf("put of others there: %v", err)
	}

	// A member does not know a login that it applies only after its restart.
	logins := n.m.replica.mach().Applied()
	for _, x := range c.nodes {
		eventually(t, x.name+" has applied the logins", func() bool { return x.m.replica.mach().Applied() >= logins })
	}
	c.stop()
	for _, x := range c.nodes {
		x.mustStart()
	}
	for _, x := range c.nodes {
		x.ready()
	}
	for _, x := range c.nodes {
		if !x.m.auth.State().Enabled() {
			t.Errorf("%s has forgotten that authentication is on", x.name)
		}
		if x.m.auth.Tokens().Len() != 0 {
			t.Errorf("%s has %d tokens after a restart", x.name, x.m.auth.Tokens().Len())
		}
	}
	if err := up.getAs(old, "a1", true); !errors.Is(err, auth.ErrInvalidAuthToken) {
		t.Errorf("a token outlives a restart: %v", err)
	}
	if err := up.putAs(up.login("u", "u"), "a2"); err != nil {
		t.Error(err)
	}
	c.sameHash()
}

// TestPasswordChangesDuringLogin logs in with the old password continuously. Once the change
// is acknowledged, no token issued for the old password may be valid.
func TestPasswordChangesDuringLogin(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[0]
	n.enableAuth()
	root := n.login(auth.Root, auth.Root)
	for round := range 5 {
		was, now := "u", fmt.Sprintf("new%d", round)
		if round > 0 {
			was = fmt.Sprintf("new%d", round-1)
		}
		var (
			mu     sync.Mutex
			tokens []string
			wg     sync.WaitGroup
		)
		started := make(chan struct{}, 4)
		for range 4 {
			wg.Go(func() {
				for {
					r, err := n.m.Accounts.Authenticate(background(t), &pb.AuthenticateRequest{Name: "u", Password: was})
					if errors.Is(err, auth.ErrAuthFailed) {
						return
					}
					if err != nil {
						continue
					}
					mu.Lock()
					tokens = append(tokens, r.Token)
					mu.Unlock()
					select {
					case started <- struct{}{}:
					default:
					}
				}
			})
		}
		<-started
		n.again("change the password", func(context.Context) error {
			_, err := n.m.Accounts.UserChangePassword(root, &pb.AuthUserChangePasswordRequest{Name: "u", Password: now})
			return err
		})
		wg.Wait()
		for _, token := range tokens {
			if err := n.getAs(WithToken(background(t), token), "a", true); !errors.Is(err, auth.ErrInvalidAuthToken) {
				t.Fatalf("a token of the password before is good for %v", err)
			}
		}
	}
}

// withCertificate returns the context of a TLS call with a client certificate.
func withCertificate(ctx context.Context, name string, md ...string) context.Context {
	cert := &x509.Certificate{Subject: pkix.Name{CommonName: name}}
	info := credentials.TLSInfo{State: tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{cert}}}}
	return metadata.NewIncomingContext(peer.NewContext(ctx, &peer.Peer{AuthInfo: info}), metadata.Pairs(md...))
}

func TestCertificateNamesUser(t *testing.T) {
	c := newCluster(t, 1, func(cfg *Config) { cfg.ClientCertAuth = true })
	n := c.nodes[0]
	n.enableAuth()
	token, _ := tokenOf(n.login(auth.Root, auth.Root))
	for _, x := range []struct {
		what string
		ctx  context.Context
		key  string
		want error
	}{
		{"its own key", withCertificate(background(t), "u"), "a1", nil},
		{"another key", withCertificate(background(t), "u"), "b", auth.ErrPermissionDenied},
		{"an unknown user", withCertificate(background(t), "x"), "a1", auth.ErrPermissionDenied},
		{"with a token, which counts", withCertificate(background(t), "u", "token", token), "b", nil},
		{"with a bad token", withCertificate(background(t), "u", "token", "abc.1"), "a1", auth.ErrInvalidAuthToken},
		{"by the gateway, whose certificate it is", withCertificate(background(t), "u", "grpcgateway-accept", "*/*"), "a1", auth.ErrUserEmpty},
		{"a name that no entry can hold", withCertificate(background(t), "\xff"), "a1", errBadName},
		{"no certificate", background(t), "a1", auth.ErrUserEmpty},
	} {
		if err := n.putAs(x.ctx, x.key); !errors.Is(err, x.want) {
			t.Errorf("%s: got %v, want %v", x.what, err, x.want)
		}
	}
}

// hookedClock runs a function each time the clock is read.
type hookedClock struct {
	clock.Clock
	hook func()
}

func (c hookedClock) Now() time.Time {
	c.hook()
	return c.Clock.Now()
}

// A read whose permission is revoked before it is answered must not be returned: the data may
// have been written after the revocation, by a client that relied on it.
func TestRightsChangeDuringRead(t *testing.T) {
	n := newCluster(t, 1, calm).nodes[0]
	n.enableAuth()
	user, root := n.login("u", "u"), n.login(auth.Root, auth.Root)
	if _, err := n.m.KV.Put(root, &pb.PutRequest{Key: []byte("a"), Value: []byte("v")}, nil); err != nil {
		t.Fatal(err)
	}
	cfg := *n.m.KV.cfg
	kv := *n.m.KV
	kv.cfg = &cfg
	looks := 0
	cfg.Clock = hookedClock{n.m.KV.cfg.Clock, func() {
		if looks++; looks == 2 { // the read is done
			_, err := n.m.Accounts.RoleRevokePermission(root, &pb.AuthRoleRevokePermissionRequest{Role: "u", Key: []byte("a"), RangeEnd: []byte("b")})
			if err != nil {
				t.Error(err)
			}
		}
	}}
	res, err := kv.Range(user, &pb.RangeRequest{Key: []byte("a"), Serializable: true})
	if !errors.Is(err, auth.ErrAuthOldRevision) || res != nil {
		t.Errorf("the answer is %+v, %v", res, err)
	}
	if looks < 2 {
		t.Error("nothing was changed during the read: the test proves nothing")
	}
}

package proxies

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
)

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

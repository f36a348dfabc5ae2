package differential

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"quorate/compat/harness"
)

// TestRandomMixed sends random operations to the members of clusters of ours and real ones, one after the other
// and each to one of them, and every few operations compares what all members hold.
func TestRandomMixed(t *testing.T) {
	real := filepath.Dir(*flagA)
	for _, name := range []string{"etcd37", "etcd36", "etcd35"} {
		for i := range max(1, *seedsFlag/10) {
			seed := *seedFlag + uint64(i)
			t.Run(fmt.Sprintf("%s/seed=%d", name, seed), func(t *testing.T) {
				r := &mixedRunner{t: t, real: filepath.Join(real, name), old: name != "etcd37"}
				ops := randomOps(seed, *opsFlag, true)
				at, what := r.run(seed, ops)
				if what == "" {
					return
				}
				ops = shrink(ops[:at+1], *shrinkFor, func(ops []randomOp) bool {
					_, w := r.run(seed, ops)
					if w != "" {
						what = w
					}
					return w != ""
				})
				var list strings.Builder
				for i, o := range ops {
					fmt.Fprintf(&list, "%4d %s\n", i+1, o.name)
				}
				t.Errorf("seed %d: after these the members differ (0 is ours):\n%s%s", seed, &list, what)
			})
		}
	}
}

type mixedRunner struct {
	t    *testing.T
	n    int
	real string
	old  bool // the real members are 3.5 or 3.6
}

// admin is a user that random operations do not touch.
const admin = "admin"

// compareEvery is the number of operations between two comparisons.
const compareEvery = 12

// run returns the operation after which members were found to differ, and how.
func (r *mixedRunner) run(seed uint64, ops []randomOp) (at int, what string) {
	r.n++
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	c, err := harness.StartCluster(ctx, filepath.Join(r.t.TempDir(), fmt.Sprint(r.n)), []string{*flagB, r.real},
		"--unsafe-no-fsync", "--bcrypt-cost=4", "--heartbeat-interval=100", "--election-timeout=1000")
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Kill()
	members := make([]*session, len(c.Members))
	tokens := map[string]string{}
	for i, m := range c.Members {
		if members[i], err = newSession(m.ClientAddr()); err != nil {
			r.t.Fatal(err)
		}
		members[i].tokens = tokens // a token is valid at all members
		defer members[i].close()
	}
	first := members[0]
	if _, err := first.auth.UserAdd(ctx, &pb.AuthUserAddRequest{Name: admin, Password: admin}); err != nil {
		r.t.Fatal(err)
	}
	if _, err := first.auth.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: admin, Role: "root"}); err != nil {
		r.t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(seed, 11))
	for i, op := range ops {
		j := rnd.IntN(len(members))
		if op.restart {
			continue
		}
		if op.uneven && r.old {
			j = 0
		}
		octx, cancel := context.WithTimeout(ctx, opTimeout)
		op.do(octx, members[j])
		cancel()
		if (i+1)%compareEvery != 0 && i != len(ops)-1 {
			continue
		}
		for k, m := range c.Members {
			if !m.Running() {
				return i, fmt.Sprintf("member %d has ended: %s", k, lastWords(m))
			}
		}
		if what := r.differ(ctx, members); what != "" {
			return i, what
		}
	}
	return 0, ""
}

// lastWords is what a member wrote before the stack of its panic.
func lastWords(m *harness.Member) string {
	log := m.LogTail(80)
	if i := strings.LastIndex(log, "panic"); i >= 0 {
		log = log[max(0, i-1500):min(len(log), i+1000)]
	}
	return log
}

// differ compares what members hold.
func (r *mixedRunner) differ(ctx context.Context, members []*session) string {
	var held []answer
	for _, s := range members {
		a, err := holds(ctx, s)
		if err != nil {
			return err.Error()
		}
		held = append(held, a)
	}
	for i, a := range held[1:] {
		if lines := compare(held[0], a); len(lines) > 0 {
			return fmt.Sprintf("members 0 (a) and %d (b):\n     %s", i+1, strings.Join(lines, "\n     "))
		}
	}
	return ""
}

// holds reads the state of a member: keys, hash, leases, users with their passwords, roles and alarms.
func holds(ctx context.Context, s *session) (a answer, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := serving(ctx, s); err != nil { // it has applied what was answered before
		return nil, err
	}
	enabled := true
	switch r, err := s.auth.Authenticate(ctx, &pb.AuthenticateRequest{Name: admin, Password: admin}); {
	case err == nil:
		ctx = metadata.AppendToOutgoingContext(ctx, "token", r.Token)
	case strings.Contains(err.Error(), "authentication is not enabled"):
		enabled = false
	default:
		return nil, err
	}
	keys, err := s.kv.Range(ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	if err != nil {
		return nil, err
	}
	a.add("auth enabled", "%v", enabled)
	a.add("revision", "%d", keys.Header.Revision)
	for _, kv := range keys.Kvs {
		a.add(fmt.Sprintf("key %q", kv.Key), "%s", kvText(kv))
	}
	for i := range 5 { // existing leases only; the leader decides which have expired
		_, err := s.lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: int64(i)})
		a.add(fmt.Sprintf("lease %d", i), "%v", status.Code(err))
	}
	leases, err := s.lease.LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
	if err != nil {
		return nil, err
	}
	var ids []int64
	for _, l := range leases.Leases {
		ids = append(ids, l.ID)
	}
	slices.Sort(ids)
	a.add("leases", "%v", ids)
	users, err := s.auth.UserList(ctx, &pb.AuthUserListRequest{})
	if err != nil {
		return nil, err
	}
	slices.Sort(users.Users)
	for _, u := range users.Users {
		r, err := s.auth.UserGet(ctx, &pb.AuthUserGetRequest{Name: u})
		if err != nil {
			return nil, err
		}
		a.add("user "+u, "%v", r.Roles)
		for _, p := range []string{"", "new", u} {
			if !enabled || u == admin {
				break
			}
			_, err := s.auth.Authenticate(ctx, &pb.AuthenticateRequest{Name: u, Password: p})
			a.add(fmt.Sprintf("user %s with password %q", u, p), "%v", status.Code(err))
		}
	}
	roles, err := s.auth.RoleList(ctx, &pb.AuthRoleListRequest{})
	if err != nil {
		return nil, err
	}
	slices.Sort(roles.Roles)
	for _, role := range roles.Roles {
		if role == "root" {
			continue // 3.5 lists nothing where 3.7 lists everything
		}
		r, err := s.auth.RoleGet(ctx, &pb.AuthRoleGetRequest{Role: role})
		if err != nil {
			return nil, err
		}
		a.add("role "+role, "%v", r.Perm)
	}
	hash, err := s.maint.HashKV(ctx, &pb.HashKVRequest{Revision: keys.Header.Revision})
	if err != nil && status.Code(err) != codes.OK {
		return nil, err
	}
	a.add("hash", "%d, compacted %d", hash.Hash, hash.CompactRevision)
	return a, nil
}

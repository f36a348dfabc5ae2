package failure

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
)

// A member whose data differs from the cluster's finds out before it serves, whether the other members are of
// its own kind or of the other.
func TestInitialCorruptionCheck(t *testing.T) {
	if real == "" {
		t.Skip("there is no real etcd to form a cluster with")
	}
	t.Parallel()
	sites, flags := three(t)
	binaries := [3]string{etcd, real, etcd}

	// Two clusters of the same members, one after the other: same ids, same number of writes, different values. The
	// first one's directories are what a fault would have made of the second one's.
	live := func(value string) (procs [3]*child.Process, clients [3]*child.Client) {
		for i, s := range sites {
			procs[i], clients[i] = s.start(t, binaries[i], flags[i]...), child.Dial(t, s.client)
		}
		for i, c := range clients {
			child.Eventually(t, limit, fmt.Sprintf("member %d answers", i), func() error {
				_, _, err := c.GetWithin(2*time.Second, "any")
				return err
			})
		}
		child.Eventually(t, limit, "the value is there", func() error {
			if _, found, err := clients[0].GetWithin(2*time.Second, "k"); err != nil || found {
				return err
			}
			_, err := clients[0].PutWithin(5*time.Second, "k", value)
			return err
		})
		for i, c := range clients {
			child.Eventually(t, limit, fmt.Sprintf("member %d has the value", i), func() error {
				got, _, err := c.GetWithin(2*time.Second, "k")
				if err == nil && got != value {
					err = fmt.Errorf("k is %q", got)
				}
				return err
			})
		}
		return procs, clients
	}
	stop := func(procs ...*child.Process) {
		for _, p := range procs {
			p.Signal(syscall.SIGTERM)
		}
		for _, p := range procs {
			p.Wait(t, limit)
		}
	}
	other := func(i int) string { return "--data-dir=" + sites[i].data + "-other" }
	first := [3][]string{}
	copy(first[:], flags[:])
	for i := range flags {
		flags[i] = append(first[i][:len(first[i]):len(first[i])], other(i))
	}
	procs, clients := live("wrong")
	wrong := lengthen(t, clients[2])
	stop(procs[:]...)
	flags = first
	procs, clients = live("right")
	if right := lead(t, clients, 2, wrong.RaftTerm); right.RaftIndex >= wrong.RaftIndex {
		t.Fatalf("the log of the right cluster has %d entries, that of the wrong one %d", right.RaftIndex, wrong.RaftIndex)
	}

	gate := "--feature-gates=InitialCorruptCheck=true"
	for i := range 2 {
		stop(procs[i])
		args := append(flags[i][:len(flags[i]):len(flags[i])], gate)
		p := sites[i].start(t, binaries[i], append(args, other(i))...)
		if code := p.Wait(t, limit); code != 1 || !strings.Contains(p.Output(), "found different hash values from remote peer") ||
			!strings.Contains(strings.Join(child.Reasons(p.Output()), "\n"), "found data inconsistency with peers") {
			t.Errorf("member %d with wrong data: exit code %d, output:\n%s", i, code, p.Output())
		}
		procs[i] = sites[i].start(t, binaries[i], args...)
		c := child.Dial(t, sites[i].client)
		child.Eventually(t, limit, fmt.Sprintf("member %d serves again", i), func() error {
			if !procs[i].Running() {
				t.Fatalf("member %d ended with code %d", i, procs[i].Code())
			}
			got, _, err := c.GetWithin(2*time.Second, "k")
			if err == nil && got != "right" {
				t.Fatalf("member %d has %q", i, got)
			}
			return err
		})
		if !strings.Contains(procs[i].Output(), "initial corruption checking passed; no corruption") {
			t.Errorf("member %d did not check its data:\n%s", i, procs[i].Output())
		}
	}
}

// lengthen adds entries to the log that change no key, and returns the state of the cluster after them. The
// leader of the right cluster knows what each member has acknowledged. A member whose log is shorter than
// that is lost in another way than this test is about: it ends as soon as the leader's heartbeat reaches it.
func lengthen(t *testing.T, c *child.Client) (st *pb.StatusResponse) {
	t.Helper()
	const entries = 100
	for i := range entries {
		child.Eventually(t, limit, "a lease", func() error {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			_, err := c.Lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: int64(i + 1), TTL: 3600})
			if err != nil && strings.Contains(err.Error(), "lease already exists") {
				return nil // an attempt whose answer was lost
			}
			return err
		})
	}
	child.Eventually(t, limit, "the state of the cluster", func() (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		st, err = c.Maintenance.Status(ctx, &pb.StatusRequest{})
		return err
	})
	return st
}

// lead makes the member the leader of a term after the given one, and returns its state. A member with a later
// term than the leader's would depose it, and a new leader, which has to find out how much of its log each
// member shares, sends entries that contradict what a member with wrong data has committed. Real etcd panics
// then.
func lead(t *testing.T, clients [3]*child.Client, leader int, after uint64) (st *pb.StatusResponse) {
	t.Helper()
	child.Eventually(t, limit, fmt.Sprintf("member %d leads in a term after %d", leader, after), func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		var states [3]*pb.StatusResponse
		now := -1
		for i, c := range clients {
			var err error
			if states[i], err = c.Maintenance.Status(ctx, &pb.StatusRequest{}); err != nil {
				return err
			}
			if states[i].Leader == states[i].Header.MemberId {
				now = i
			}
		}
		if now < 0 {
			return errors.New("no member leads")
		}
		st = states[leader]
		to := states[leader].Header.MemberId
		if now == leader {
			if st.RaftTerm > after {
				return nil
			}
			to = states[0].Header.MemberId
		}
		if _, err := clients[now].Maintenance.MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: to}); err != nil {
			return err
		}
		return errors.New("leadership has just moved")
	})
	return st
}

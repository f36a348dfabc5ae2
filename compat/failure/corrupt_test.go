package failure

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

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
	live := func(value string, more ...string) (procs [3]*child.Process) {
		var clients [3]*child.Client
		for i, s := range sites {
			procs[i], clients[i] = s.start(t, binaries[i], append(flags[i], more...)...), child.Dial(t, s.client)
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
		return procs
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
	procs := live("wrong")
	stop(procs[:]...)
	flags = first
	procs = live("right")

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

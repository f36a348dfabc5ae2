package mixed

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
	"quorate/compat/harness"
)

// The log of a cluster that began with 3.5 holds requests that no member of 3.7 can read. Such a member can
// still join, from the first entry on, without a snapshot in between.
func TestOldEntries(t *testing.T) {
	t.Parallel()
	long(t)
	g := found(t, nil, etcd35)
	put(t, g.members[0], "a", "1", 0)
	old := g.members[0]
	mine := g.add(ours, true)
	g.makeLead(mine)
	put(t, mine, "b", "2", 0)
	g.remove(old)
	for i, k := range []*kind{etcd37, ours} {
		m := g.add(k, i%2 == 0)
		put(t, m, "from "+m.name, "v", 0)
		g.equal()
		if strings.Contains(logOf(t, m), snapshotLine(m)) {
			t.Errorf("%s was sent a snapshot, which proves nothing about entries", m)
		}
		if m.kind != ours {
			continue
		}
		// It is sent the entries in translated form, and sends them on.
		g.makeLead(m)
		put(t, m, "led by "+m.name, "v", 0)
		g.add(etcd37, true)
		g.equal()
	}
	for _, m := range g.members {
		g.kill(m)
		g.restart(m)
		g.ready(m)
	}
	g.equal()
}

// A downgrade looks the same everywhere, whichever member leads or is asked: real members of 3.7 are replaced by
// those of 3.6 on the same data, and ours stays.
func TestDowngrade(t *testing.T) {
	t.Parallel()
	g := found(t, nil, etcd37, ours, etcd37)
	g.version("3.7.0")
	state := func(enabled bool, target string) {
		t.Helper()
		for _, m := range g.members {
			child.Eventually(t, limit, fmt.Sprintf("%s knows the state of the downgrade", m), func() error {
				s, err := m.status()
				if err != nil {
					return err
				}
				if d := s.DowngradeInfo; m.kind != etcd35 && (d.GetEnabled() != enabled || d.GetTargetVersion() != target) {
					return fmt.Errorf("enabled %v, target %q", d.GetEnabled(), d.GetTargetVersion())
				}
				return nil
			})
		}
	}
	refused := func(m *member, action pb.DowngradeRequest_DowngradeAction, version, want string) {
		t.Helper()
		refuses(t, m, fmt.Sprintf("%v %s", action, version), want, func(ctx context.Context, c *child.Client) error {
			_, err := c.Maintenance.Downgrade(ctx, &pb.DowngradeRequest{Action: action, Version: version})
			return err
		})
	}
	for _, lead := range g.members {
		g.makeLead(lead)
		for _, m := range g.members {
			refused(m, pb.DowngradeRequest_VALIDATE, "3.5", "invalid downgrade target version")
		}
	}
	mine := g.members[1]
	g.makeLead(mine)
	g.downgrade(pb.DowngradeRequest_ENABLE, "3.6")
	state(true, "3.6.0")
	g.version("3.6.0")
	for _, m := range g.members {
		refused(m, pb.DowngradeRequest_ENABLE, "3.5", "downgrade job in progress")
	}
	for _, m := range []*member{g.members[0], g.members[2]} {
		g.swap(m, etcd36)
		put(t, m, "as 3.6/"+m.name, "v", 0)
		g.makeLead(m)
		g.equal()
	}
	g.downgrade(pb.DowngradeRequest_CANCEL, "")
	state(false, "")
	g.version("3.6.0")
	// And up again.
	for _, m := range []*member{g.members[0], g.members[2]} {
		g.swap(m, etcd37)
	}
	g.makeLead(mine)
	g.version("3.7.0")
	g.equal()
}

// A server that is older than the cluster does not join it: our members tell it what it needs to find that out.
func TestTooOld(t *testing.T) {
	t.Parallel()
	g := found(t, nil, ours, ours)
	g.version("3.7.0")
	m := g.make(etcd36)
	g.announce(m, true)
	m.cfg.InitialCluster, m.cfg.ClusterState = g.initial(m), "existing"
	m.expectFailure = "incompatible with current running cluster"
	g.refused(m)
}

// refused starts a member that is expected to exit by itself.
func (g *group) refused(m *member) {
	g.t.Helper()
	addrs, err := harness.FreeAddrs(2)
	if err != nil {
		g.t.Fatal(err)
	}
	m.cfg.ClientAddr, m.cfg.PeerAddr = addrs[0], addrs[1]
	if m.proc, err = harness.Start(m.cfg); err != nil {
		g.t.Fatal(err)
	}
	m.gate.lead(m.proc.Pid(), m.cfg.PeerAddr)
	select {
	case <-m.proc.Exited():
	case <-time.After(limit):
		g.t.Fatalf("%s still runs", m)
	}
	if log := logOf(g.t, m); !strings.Contains(log, m.expectFailure) {
		g.t.Errorf("%s ended without saying %q:\n%s", m, m.expectFailure, m.proc.LogTail(5))
	}
}

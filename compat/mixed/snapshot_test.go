package mixed

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"quorate/compat/child"
)

// little makes the log so short that a member which was away for a moment needs a snapshot.
var little = []string{"--snapshot-count=200", "--snapshot-catchup-entries=50"}

// A member that was down for longer than the log covers is sent a snapshot by a leader of the other kind, while
// writes go on.
func TestSnapshotToFollower(t *testing.T) {
	t.Parallel()
	for _, k := range []*kind{etcd37, etcd36, etcd35} {
		t.Run(k.name, func(t *testing.T) {
			if k != etcd37 {
				long(t)
			}
			g := found(t, little, k, k, ours)
			g.strain(newSeed(t))
			mine := g.members[2]
			for _, c := range []struct{ lead, behind *member }{{mine, g.members[0]}, {g.members[1], mine}} {
				g.makeLead(c.lead)
				g.fallBehind(c.behind)
				g.restart(c.behind)
				g.ready(c.behind)
				g.rewire()
				g.equal()
				if !strings.Contains(logOf(t, c.behind), snapshotLine(c.behind)) {
					t.Errorf("%s has caught up without a snapshot from %s", c.behind, c.lead)
				}
			}
			// Both again after a restart on the state from the snapshot.
			for _, m := range g.members {
				g.kill(m)
				g.restart(m)
				g.ready(m)
			}
			g.equal()
			g.verdict()
		})
	}
}

// snapshotLine is what a member logs when it is about to install a snapshot.
func snapshotLine(m *member) string {
	if m.kind == ours {
		return "applying snapshot"
	}
	return "received and saved database snapshot"
}

// fallBehind kills a member and waits until the others have written much more than the log keeps.
func (g *group) fallBehind(m *member) {
	g.t.Helper()
	g.rewire(m)
	s, err := m.status()
	if err != nil {
		g.t.Fatal(err)
	}
	g.kill(m)
	lead := g.leader()
	child.Eventually(g.t, limit, "the others write on", func() error {
		now, err := lead.status()
		if err == nil && now.RaftIndex < s.RaftIndex+600 {
			err = fmt.Errorf("index %d, %s was at %d", now.RaftIndex, m, s.RaftIndex)
		}
		return err
	})
}

// A member that has lost its data comes back under a new id, from the other kind's snapshot.
func TestWiped(t *testing.T) {
	t.Parallel()
	g := found(t, little, etcd37, ours, etcd37)
	g.strain(newSeed(t))
	real, mine := g.members[0], g.members[1]
	for _, c := range []struct{ lead, wiped *member }{{mine, real}, {g.members[2], mine}} {
		g.makeLead(c.lead)
		g.fallBehind(c.wiped)
		if err := os.RemoveAll(c.wiped.proc.DataDir()); err != nil {
			t.Fatal(err)
		}
		m := g.replace(c.wiped, c.wiped.kind, false)
		g.equal()
		if !strings.Contains(logOf(t, m), snapshotLine(m)) {
			t.Errorf("%s has joined without a snapshot from %s", m, c.lead)
		}
	}
	g.verdict()
}

// A minority that was partitioned together with the leader gives way, whichever kinds it consists of: no client
// sees what it could not commit.
func TestCutLeaders(t *testing.T) {
	t.Parallel()
	g := found(t, little, etcd37, ours, etcd36)
	g.strain(newSeed(t))
	for _, hard := range []bool{false, true} {
		for _, lead := range g.members {
			g.makeLead(lead)
			g.isolate(lead, hard)
			child.Eventually(t, limit, "the others have another leader", func() error {
				for _, m := range g.members {
					if s, err := m.status(); m != lead && (err != nil || s.Leader == 0 || s.Leader == lead.id) {
						return fmt.Errorf("%s: leader %x, %v", m, s.GetLeader(), err)
					}
				}
				return nil
			})
			g.goesOn(100) // with what the two others commit
			g.net.mend()
			g.ready(lead)
			g.goesOn(100)
			g.equal()
		}
	}
	g.verdict()
}

// goesOn waits until that many more operations are acknowledged.
func (g *group) goesOn(more int64) {
	g.t.Helper()
	before := g.load.Acked.Load()
	child.Eventually(g.t, limit, "the load goes on", func() error {
		if n := g.load.Acked.Load() - before; n < more {
			return fmt.Errorf("%d operations", n)
		}
		return nil
	})
}

func logOf(t *testing.T, m *member) string {
	t.Helper()
	b, err := os.ReadFile(m.proc.LogPath())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

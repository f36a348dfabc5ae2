package mixed

import (
	"cmp"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/history"
)

// From real etcd 3.7 to this server and back, without a lost write or a missed event.
func TestJourney37(t *testing.T) {
	t.Parallel()
	journey(t, etcd37, 3, leg{to: ours, n: 3}, leg{to: etcd37, n: 3})
}

// The same with 3.6: when its last member has gone the cluster is one of 3.7, and has to be downgraded to 3.6
// before a member of that version can come back.
func TestJourney36(t *testing.T) {
	t.Parallel()
	journey(t, etcd36, 3, leg{to: ours, n: 3}, leg{to: etcd36, n: 3, down: "3.6"})
}

// 3.5 writes requests to the log that later versions no longer know. A cluster that comes from there can go on
// to 3.7.
func TestJourney35(t *testing.T) {
	t.Parallel()
	long(t)
	journey(t, etcd35, 3, leg{to: ours, n: 2}, leg{to: etcd35, n: 2}, leg{to: ours, n: 3}, leg{to: etcd37, n: 3})
}

func TestJourneyOfFive(t *testing.T) {
	t.Parallel()
	for name, k := range map[string]*kind{"37": etcd37, "36": etcd36} {
		t.Run(name, func(t *testing.T) {
			long(t)
			journey(t, k, 5, leg{to: ours, n: 4}, leg{to: k, n: 4}, leg{to: ours, n: 5})
		})
	}
}

// Members of three versions and ours, all in one cluster.
func TestJourneyThroughVersions(t *testing.T) {
	t.Parallel()
	long(t)
	journey(t, etcd36, 3, leg{to: ours, n: 1}, leg{to: etcd37, n: 2}, leg{to: ours, n: 3}, leg{to: etcd37, n: 3})
}

// Real members only: what this lane's own code and etcd itself contribute to the figures and the logs of the
// other journeys.
func TestJourneyOfRealMembers(t *testing.T) {
	t.Parallel()
	long(t)
	journey(t, etcd37, 3, leg{to: etcd37, n: 3}, leg{to: etcd37, n: 3})
}

// leg replaces n members, starting with those of another kind.
type leg struct {
	to *kind
	n  int
	// down downgrades the cluster to an older version first, so that the members can join.
	down string
}

// journey founds a cluster of one kind and replaces its members, leg after leg, under load: every new member
// leads for a while, and members are killed and partitioned in between.
func journey(t *testing.T, from *kind, size int, legs ...leg) {
	seed := newSeed(t)
	kinds := make([]*kind, size)
	for i := range kinds {
		kinds[i] = from
	}
	g := found(t, []string{"--snapshot-count=1000", "--snapshot-catchup-entries=300"}, kinds...)
	g.strain(seed)
	step := func(what string, f func()) {
		t.Helper()
		at := g.load.Since()
		f()
		g.equal()
		t.Logf("%6.2fs %s: %.2fs; now %s", at.Seconds(), what, (g.load.Since() - at).Seconds(), g.kinds())
	}
	g.version(from.cluster)
	for _, l := range legs {
		for i := range l.n {
			old := g.members[0]
			for _, m := range g.members {
				if m.kind != l.to {
					old = m
					break
				}
			}
			var m *member
			step("replace "+old.name, func() {
				var announced []func()
				if i == 0 && l.down != "" {
					// As long as there is a member whose version is unknown, the cluster stays at the version that it was downgraded
					// to.
					g.downgrade(pb.DowngradeRequest_ENABLE, l.down)
					g.version(l.down + ".0")
					announced = append(announced, func() { g.downgrade(pb.DowngradeRequest_CANCEL, "") })
				}
				m = g.replace(old, l.to, i%2 == 0, announced...)
			})
			step("lead", func() { g.makeLead(m) })
			switch i {
			case 0:
				step("kill the leader", func() {
					g.kill(m)
					g.leader()
					g.restart(m)
					g.ready(m)
				})
			case 1:
				step("cut the leader off", func() {
					lead := g.leader()
					g.isolate(lead, seed%2 == 0)
					history.Sleep(t.Context(), 3*time.Second)
					g.net.mend()
					g.ready(lead)
				})
			}
		}
		g.version(g.oldest().cluster)
	}
	g.verdict()
}

// oldest is the kind that determines the version of the cluster.
func (g *group) oldest() *kind {
	k := g.members[0].kind
	for _, m := range g.members {
		if cmp.Compare(m.kind.cluster, k.cluster) < 0 {
			k = m.kind
		}
	}
	return k
}

package sim

import (
	"context"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"

	"quorate/internal/membership"
)

// Members are restarted into another release, by the rules that operators follow: one by
// one into a newer one, and into an older one only after the cluster was prepared for that.
// The stored data of a release is readable by the release that the cluster version names.

// oldest and newest are the releases that members run.
var oldest, newest = membership.V36, membership.V37

// keepVersion decides as the leader on the version of the cluster, and ends a downgrade
// that is complete, as production does.
func (n *node) keepVersion() {
	if !n.leads() {
		return
	}
	var servers []string
	lowest, same := n.release, true
	for _, x := range n.cluster.Members() {
		to := n.w.byID[x.ID]
		if to.down || n.w.cut[[2]int{n.index, to.index}] || n.w.cut[[2]int{to.index, n.index}] {
			servers, same = append(servers, ""), false
			continue
		}
		servers, same = append(servers, to.release.String()), same && to.release == lowest
	}
	current, d := n.cluster.Version(), n.cluster.Downgrade()
	next, change, err := membership.NextClusterVersion(current, membership.MinServerVersion(servers), d)
	switch {
	case err != nil: // others know already that it is lower
		n.w.log("member %d cannot decide the cluster version: %v", n.index, err)
	case change:
		n.w.log("member %d sets the cluster version from %v to %v", n.index, current, next)
		n.decide(&pb.InternalRaftRequest{ClusterVersionSet: &membershippb.ClusterVersionSetRequest{Ver: next.String()}})
	case d.Enabled && same && lowest.String() == d.Target:
		n.w.did["complete downgrade"]++
		n.decide(&pb.InternalRaftRequest{DowngradeInfoSet: &membershippb.DowngradeInfoSetRequest{}})
	}
}

// decide proposes a decision of this leader, one at a time.
func (n *node) decide(r *pb.InternalRaftRequest) {
	if n.deciding {
		return
	}
	n.deciding = true
	term := n.core().Node().State().Term
	n.later(n.w.hesitation(), func() {
		p := n.proposeIn(term, r)
		if p == nil || n.down {
			n.deciding = false
			return
		}
		n.wait(func() bool {
			select {
			case <-p.Done():
				n.deciding = false
				return true
			default:
				return false
			}
		})
	})
}

// changeRelease does the next step of an operator who upgrades the cluster, or downgrades it.
func (w *World) changeRelease() {
	var able []*node
	var via *node // the one that knows most
	for _, n := range w.nodes {
		if n.down || !n.joined() || n.leaving {
			continue
		}
		if able = append(able, n); via == nil || n.machine.Applied() > via.machine.Applied() {
			via = n
		}
	}
	if via == nil {
		return
	}
	version, d := via.cluster.Version(), via.cluster.Downgrade()
	able = slices.DeleteFunc(able, func(n *node) bool {
		if d.Enabled {
			return version.String() != d.Target || n.cluster.Version() != version || !version.Less(n.release)
		}
		return n.release == newest
	})
	switch {
	case len(able) > 0 && d.Enabled:
		able[w.rng.IntN(len(able))].restartIn(version)
	case len(able) > 0:
		able[w.rng.IntN(len(able))].restartIn(newest)
	case !d.Enabled && version == newest && !w.lowering:
		w.lowering = true
		w.after(2*requestTimeout, func() { w.lowering = false }) // then it is in the log, or nowhere
		w.log("downgrade asked of %d", via.index)
		target, _ := membership.DowngradeTarget(version)
		via.proposeOwn(&pb.InternalRaftRequest{DowngradeInfoSet: &membershippb.DowngradeInfoSetRequest{Enabled: true, Ver: target.String()}})
	}
}

// restartIn stops the member and starts it in another release. Before an older one starts,
// the member is stopped in order: its store on disk is then one that the older one reads.
func (n *node) restartIn(release membership.Version) {
	w := n.w
	w.log("restart %d in %v instead of %v", n.index, release, n.release)
	if n.release.Less(release) && w.rng.IntN(2) == 0 {
		w.did["upgrade"]++
		n.crash(n.disk.crashed())
	} else {
		w.did[map[bool]string{true: "upgrade", false: "downgrade"}[n.release.Less(release)]]++
		if err := n.machine.Engine().Flush(context.Background()); err != nil {
			w.fail("flush member %d: %w", n.index, err)
		}
		n.stop()
	}
	n.release = release
	w.after(w.between(0, w.faults.Outage), n.start)
}

// checkVersions compares what members know about versions, and checks that the cluster
// version follows those of its members.
func (w *World) checkVersions() {
	if w.faults.Upgrades == 0 {
		return
	}
	members := w.members()
	version, d := members[0].cluster.Version(), members[0].cluster.Downgrade()
	var releases []string
	for _, n := range members {
		if v := n.cluster.Version(); v != version || n.cluster.Downgrade() != d {
			w.fail("member %d has the cluster version %v and %+v, the first one %v and %+v", n.index, v, n.cluster.Downgrade(), version, d)
		}
		releases = append(releases, n.release.String())
	}
	want := membership.MinServerVersion(releases)
	if d.Enabled {
		want, _ = membership.ParseVersion(d.Target)
	}
	if version != want {
		w.fail("the cluster version is %v with members of %q and %+v, want %v", version, slices.Compact(slices.Sorted(slices.Values(releases))), d, want)
	}
}

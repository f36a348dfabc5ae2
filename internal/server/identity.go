package server

import (
	"context"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/raftlog"
	"quorate/internal/transport"
)

// Time that other members have to answer a starting member.
const (
	foundTimeout   = time.Second
	joinTimeout    = 10 * time.Second
	resolveTimeout = 30 * time.Second
	joinPause      = 500 * time.Millisecond
)

// identity is the ids of a member, and what they were derived from.
type identity struct {
	id      ids.Member
	cluster ids.Cluster
	remotes []membership.Member // of a running cluster that is being joined
	entries []*raftpb.Entry     // first entries of a new cluster
}

// warnOtherCluster warns if the flags describe a different cluster than the data
// directory. Membership may have changed since, so it is no error; etcd also ignores the
// flags once there is a log.
func (o *opening) warnOtherCluster(md raftlog.Metadata) {
	if o.cfg.Existing || len(o.cfg.Initial) == 0 {
		return
	}
	_, cluster, err := membership.Founders(o.cfg.Initial, o.cfg.InitialToken)
	if err == nil && cluster != md.ClusterID {
		o.lg.Warn("--initial-cluster and --initial-cluster-token are ignored: the data directory belongs to a member already",
			zap.String("data-dir", o.cfg.DataDir), zap.Stringer("member-id", md.NodeID),
			zap.Stringer("cluster-id", md.ClusterID), zap.Stringer("cluster-id-of-the-flags", cluster))
	}
}

// warnOtherName warns if the data directory belongs to a member with another name, as
// when --data-dir was mixed up: the cluster will know the member by the new name.
func (o *opening) warnOtherName() {
	x, ok := o.cluster.Member(o.replica.id)
	if ok && x.Name != "" && x.Name != o.cfg.Name {
		o.lg.Warn("the data directory is that of a member with another name, which gets the name of --name; check --data-dir and --name",
			zap.String("data-dir", o.cfg.DataDir), zap.Stringer("member-id", o.replica.id), zap.String("name-in-the-directory", x.Name), zap.String("name", o.cfg.Name))
	}
}

// identify determines the ids of a member without a log.
func (o *opening) identify(ctx context.Context) (identity, error) {
	if err := membership.CheckInitial(o.cfg.Initial, o.cfg.Name); err != nil {
		return identity{}, err
	}
	if o.cfg.Existing {
		return o.join(ctx)
	}
	return o.found(ctx)
}

// found computes the identity of a founder. A founder whose cluster is running already
// has lost its data and must not vote again.
func (o *opening) found(ctx context.Context) (identity, error) {
	founders, cluster, err := membership.Founders(o.cfg.Initial, o.cfg.InitialToken)
	if err != nil {
		return identity{}, err
	}
	id := identity{cluster: cluster}
	for _, f := range founders {
		if f.Name == o.cfg.Name {
			id.id = f.ID
		}
	}
	if id.entries, err = membership.BootstrapEntries(founders); err != nil {
		return identity{}, err
	}
	if remotes := membership.RemotePeerURLs(o.cfg.Initial, o.cfg.Name); len(remotes) > 0 {
		if running, _, err := o.peers.Members(ctx, remotes, foundTimeout); err == nil {
			for _, x := range running {
				if x.ID == id.id && len(x.ClientURLs) > 0 {
					return identity{}, o.bootstrappedAlready(id.id)
				}
			}
		}
	}
	return id, nil
}

// bootstrappedAlready rejects a start without data as a member that has run before. It may
// have acknowledged entries and voted, so without its data it could help elect a leader
// that lacks acknowledged entries.
func (o *opening) bootstrappedAlready(id ids.Member) error {
	return fmt.Errorf("member %s has already been bootstrapped: there is no data of it in %s, and its cluster knows it. "+
		"Start it with the --data-dir and --wal-dir that it had; if they are lost, remove the member ('etcdctl member remove %[1]s'), "+
		"add it again ('etcdctl member add') and start it with --initial-cluster-state=existing and an empty --data-dir",
		id, o.cfg.DataDir)
}

// join asks the running cluster who this member is. The answer may come from a member that
// has not applied the addition yet, so join asks again for up to JoinPatience.
func (o *opening) join(ctx context.Context) (identity, error) {
	o.cfg.working("asking the cluster who this member is")
	deadline := o.cfg.Clock.Now().Add(o.cfg.JoinPatience)
	for {
		id, listed, err := o.joinOnce(ctx)
		if err == nil || listed || !o.cfg.Clock.Now().Before(deadline) {
			return id, err
		}
		o.lg.Info("the cluster does not list this member yet; asking again", zap.Error(err))
		if o.replica.pause(ctx, joinPause) != nil {
			return identity{}, err
		}
	}
}

// noClusterInfo is etcd's text.
const noClusterInfo = "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs"

// nobodyToAsk says what to do if the initial cluster has no other member. With
// --force-new-cluster the directory is the wrong one, as there is no data in it.
const nobodyToAsk = "--initial-cluster names no other member to ask: to join a running cluster, name its members as well; to found one, give --initial-cluster-state=new; " +
	"if this member has run before, give the --data-dir that it had"

// joinOnce asks once; listed is false if the answer does not contain this member.
func (o *opening) joinOnce(ctx context.Context) (_ identity, listed bool, _ error) {
	urls := membership.RemotePeerURLs(o.cfg.Initial, o.cfg.Name)
	if len(urls) == 0 {
		return identity{}, true, fmt.Errorf("%s (%s)", noClusterInfo, nobodyToAsk)
	}
	running, cluster, err := o.peers.Members(ctx, urls, joinTimeout)
	if err != nil {
		return identity{}, true, fmt.Errorf("%s (%s)", noClusterInfo, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	resolving, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	same := func(a, b []string) (bool, error) { return transport.SameURLs(resolving, o.lg, a, b) }
	matched, err := membership.MatchExisting(o.cfg.Initial, running, same)
	if err != nil {
		err = fmt.Errorf("error validating peerURLs %s: %w", membership.Describe(cluster, running), err)
		if text := membership.ExplainMismatch(o.cfg.Initial, running, same); text != "" {
			err = fmt.Errorf("%w (%s)", err, text)
		}
		return identity{}, false, err
	}
	id := identity{cluster: cluster}
	for _, x := range matched {
		if x.Name == o.cfg.Name {
			id.id = x.ID
		} else {
			id.remotes = append(id.remotes, x)
		}
	}
	if id.id == 0 {
		return identity{}, true, fmt.Errorf("couldn't find local name %q in the running cluster", o.cfg.Name)
	}
	for _, x := range running {
		if x.ID == id.id && len(x.ClientURLs) > 0 {
			return identity{}, true, o.bootstrappedAlready(id.id)
		}
	}
	var versions []string
	for _, r := range id.remotes {
		if v, err := o.peers.Version(ctx, r.PeerURLs, joinTimeout); err == nil {
			versions = append(versions, v.Cluster)
		}
	}
	downgrading, err := o.peers.DowngradeEnabled(ctx, urls, joinTimeout)
	if err != nil {
		downgrading = false // a member of an old release does not know this request
	}
	if err := membership.CheckJoin(versions, membership.Own, downgrading); err != nil {
		return id, true, err
	}
	return id, true, o.replica.checkLearners(running)
}

func (s *stored) checkLearners(ms []membership.Member) error {
	if err := membership.CheckLearners(ms, s.cfg.Membership.MaxLearners); err != nil {
		return fmt.Errorf("%w: there are more than --max-learners=%d: give this member a --max-learners as high as that of the others, or promote or remove learners first",
			err, s.cfg.Membership.MaxLearners)
	}
	return nil
}

package membership

import (
	"fmt"
	"slices"
	"sync/atomic"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/metrics"
)

// Options configures a Cluster.
type Options struct {
	LocalID   ids.Member
	ClusterID ids.Cluster
	// ServerVersion is the version of this server; a cluster version above it is
	// rejected.
	ServerVersion Version
	// MaxLearners must be equal on all members, because apply depends on it; 0 means 1.
	MaxLearners int
	Logger      *zap.Logger // nil disables logging
	// Aside marks a membership that is only read, not the one of this member: it does
	// not update metrics.
	Aside bool
}

// Cluster is the membership as far as this member has applied it.
//
// Only the apply goroutine may call the methods that take a Batch; all others are
// safe for concurrent use. Their results are shared and must not be modified. Readers
// see a change as soon as its method returns, before the batch is committed.
type Cluster struct {
	localID       ids.Member
	clusterID     ids.Cluster
	serverVersion Version
	maxLearners   int
	aside         bool
	lg            *zap.Logger
	st            atomic.Pointer[state]
}

// state is one immutable version of the membership.
type state struct {
	members   []Member // sorted by id
	removed   map[ids.Member]bool
	version   Version
	downgrade Downgrade
}

// New returns an empty cluster; Load or Reset fills it.
func New(o Options) *Cluster {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.MaxLearners == 0 {
		o.MaxLearners = 1
	}
	c := &Cluster{localID: o.LocalID, clusterID: o.ClusterID, serverVersion: o.ServerVersion, maxLearners: o.MaxLearners, lg: o.Logger}
	c.aside = o.Aside
	c.st.Store(&state{removed: map[ids.Member]bool{}})
	return c
}

func (s *state) find(id ids.Member) (int, bool) {
	return slices.BinarySearchFunc(s.members, id, func(m Member, id ids.Member) int { return byID(m, Member{ID: id}) })
}

// with returns a copy of s in which m is added or replaced.
func (s *state) with(m Member) *state {
	n := *s
	i, ok := s.find(m.ID)
	if ok {
		n.members = slices.Clone(s.members)
		n.members[i] = m
	} else {
		n.members = slices.Insert(slices.Clone(s.members), i, m)
	}
	return &n
}

// without returns a copy of s in which id is removed.
func (s *state) without(id ids.Member) *state {
	n := *s
	n.members = slices.DeleteFunc(slices.Clone(s.members), func(m Member) bool { return m.ID == id })
	n.removed = make(map[ids.Member]bool, len(s.removed)+1)
	for r := range s.removed {
		n.removed[r] = true
	}
	n.removed[id] = true
	return &n
}

// ID returns the cluster id.
func (c *Cluster) ID() ids.Cluster { return c.clusterID }

// LocalID returns the id of this member.
func (c *Cluster) LocalID() ids.Member { return c.localID }

// Members returns all members sorted by id.
func (c *Cluster) Members() []Member { return c.st.Load().members }

// Member returns the member with the id.
func (c *Cluster) Member(id ids.Member) (Member, bool) {
	s := c.st.Load()
	i, ok := s.find(id)
	if !ok {
		return Member{}, false
	}
	return s.members[i], true
}

// MemberIDs returns the ids of all members, ascending.
func (c *Cluster) MemberIDs() []ids.Member { return c.ids(func(Member) bool { return true }) }

// VoterIDs returns the ids of the voters, ascending.
func (c *Cluster) VoterIDs() []ids.Member { return c.ids(func(m Member) bool { return !m.IsLearner }) }

func (c *Cluster) ids(keep func(Member) bool) []ids.Member {
	var out []ids.Member
	for _, m := range c.Members() {
		if keep(m) {
			out = append(out, m.ID)
		}
	}
	return out
}

// IsRemoved reports whether a member with the id was removed from the cluster.
func (c *Cluster) IsRemoved(id ids.Member) bool { return c.st.Load().removed[id] }

// RemovedIDs returns the ids of all removed members, ascending.
func (c *Cluster) RemovedIDs() []ids.Member {
	s := c.st.Load()
	out := make([]ids.Member, 0, len(s.removed))
	for id := range s.removed {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

// IsLocalLearner reports whether this member is a learner.
func (c *Cluster) IsLocalLearner() bool {
	m, ok := c.Member(c.localID)
	return ok && m.IsLearner
}

// Version returns the cluster version, the zero Version before it is decided.
func (c *Cluster) Version() Version { return c.st.Load().version }

// Downgrade returns the state of the cluster downgrade.
func (c *Cluster) Downgrade() Downgrade { return c.st.Load().downgrade }

// JSON returns the body of the peer endpoint /members.
func (c *Cluster) JSON() ([]byte, error) { return EncodeMembers(c.Members()) }

// Validate checks whether a committed change may be applied. All members get the same
// result. A rejected change must still be passed to raft, with its NodeId set to 0.
func (c *Cluster) Validate(cc *raftpb.ConfChange) error {
	m, action, err := decodeChange(cc)
	if err != nil {
		return err
	}
	return c.st.Load().check(cc, m, action, c.maxLearners)
}

// Apply validates a committed change and applies it to the membership and to b. On an
// error it changes nothing.
func (c *Cluster) Apply(b engine.Batch, cc *raftpb.ConfChange) (Effect, error) {
	before := c.st.Load()
	s, eff, err := before.after(cc, c.maxLearners)
	if err != nil {
		return Effect{}, err
	}
	m := eff.Member
	if eff.Action == Removed {
		removeMember(b, m.ID)
	} else if err := Put(b, m); err != nil {
		return Effect{}, err
	}
	c.publish(s)
	if eff.Action == Removed && !c.aside {
		metrics.NetworkKnownPeers.WithLabelValues(c.localID.String(), m.ID.String()).Set(0)
	}
	if eff.Action == Removed {
		if i, ok := before.find(m.ID); ok {
			m = before.members[i] // the change contains only the id
		}
	}
	c.lg.Info("applied a configuration change through raft", zap.Stringer("local-member-id", c.localID),
		zap.Stringer("raft-conf-change", cc.GetType()), zap.Stringer("raft-conf-change-node-id", m.ID))
	c.logChange(eff.Action, m)
	return eff, nil
}

// logChange logs a change with etcd's message and fields.
func (c *Cluster) logChange(a Action, m Member) {
	lg := c.lg.With(zap.Stringer("cluster-id", c.clusterID), zap.Stringer("local-member-id", c.localID))
	id, urls, learner := m.ID.String(), m.PeerURLs, m.IsLearner
	switch a {
	case Added:
		lg.Info("added member", zap.String("added-peer-id", id), zap.Strings("added-peer-peer-urls", urls), zap.Bool("added-peer-is-learner", learner))
	case Promoted:
		lg.Info("promote member", zap.String("promoted-member-id", id))
	case Removed:
		lg.Info("removed member", zap.String("removed-remote-peer-id", id), zap.Strings("removed-remote-peer-urls", urls), zap.Bool("removed-remote-peer-is-learner", learner))
	case Updated:
		lg.Info("updated member", zap.String("updated-remote-peer-id", id), zap.Strings("updated-remote-peer-urls", urls), zap.Bool("updated-remote-peer-is-learner", learner))
	}
}

// after validates a change and returns the membership with it.
func (s *state) after(cc *raftpb.ConfChange, maxLearners int) (*state, Effect, error) {
	m, action, err := decodeChange(cc)
	if err != nil {
		return nil, Effect{}, err
	}
	if err := s.check(cc, m, action, maxLearners); err != nil {
		return nil, Effect{}, err
	}
	if i, exists := s.find(m.ID); exists {
		old := s.members[i].clone()
		switch action {
		case Promoted:
			old.IsLearner = false
		case Updated:
			old.PeerURLs = m.PeerURLs
		}
		m = old
	}
	if action == Removed {
		return s.without(m.ID), Effect{Action: action, Member: m}, nil
	}
	return s.with(m), Effect{Action: action, Member: m}, nil
}

// SetAttributes applies a member's name and client URLs. It ignores a removed member
// and returns ErrIDNotFound for one that never existed.
func (c *Cluster) SetAttributes(b engine.Batch, id ids.Member, name string, clientURLs []string) error {
	s := c.st.Load()
	i, ok := s.find(id)
	if !ok {
		if s.removed[id] {
			c.lg.Warn("skipped attributes update of removed member", zap.Stringer("cluster-id", c.clusterID),
				zap.Stringer("local-member-id", c.localID), zap.Stringer("updated-peer-id", id))
			return nil
		}
		return fmt.Errorf("set attributes of member %s: %w", id, ErrIDNotFound)
	}
	m := s.members[i].clone()
	m.Name, m.ClientURLs = name, slices.Clone(clientURLs)
	if err := Put(b, m); err != nil {
		return err
	}
	c.publish(s.with(m))
	return nil
}

// VersionTooLowError reports that this server does not support the cluster's version.
// A member does not start with a store of such a version.
type VersionTooLowError struct{ Server, Cluster Version }

func (e *VersionTooLowError) Error() string {
	return fmt.Sprintf("invalid downgrade; server version is lower than determined cluster version: server %v, cluster %v",
		e.Server, e.Cluster)
}

// SetVersion applies a cluster version. It fails with a VersionTooLowError,
// changing nothing, if this server is older than v.
func (c *Cluster) SetVersion(b engine.Batch, v Version) error {
	if err := c.CheckVersion(v); err != nil {
		return err
	}
	s := c.st.Load()
	n := *s
	n.version = v
	putVersion(b, v)
	c.publish(&n)
	lg := c.lg.With(zap.Stringer("cluster-id", c.clusterID), zap.Stringer("local-member-id", c.localID))
	if s.version == (Version{}) {
		lg.Info("set initial cluster version", zap.String("cluster-version", v.Short()))
	} else {
		lg.Info("updated cluster version", zap.String("from", s.version.Short()), zap.String("to", v.Short()))
	}
	c.lg.Info("enabled capabilities for version", zap.String("cluster-version", v.Short()))
	c.tellStored(s, &n)
	return nil
}

// CheckVersion returns a VersionTooLowError if this server is older than the
// cluster version v.
func (c *Cluster) CheckVersion(v Version) error {
	if v.Decided() && c.serverVersion.MajorMinor().Less(v) {
		return &VersionTooLowError{Server: c.serverVersion, Cluster: v}
	}
	return nil
}

// SetDowngrade applies the state of the cluster downgrade. It rejects a target that is
// not a version, because the next start must be able to read it.
func (c *Cluster) SetDowngrade(b engine.Batch, d Downgrade) error {
	if d.Enabled {
		if _, err := ParseVersion(d.Target); err != nil {
			return fmt.Errorf("%w: %w", ErrDowngradeTarget, err)
		}
	}
	if err := putDowngrade(b, d); err != nil {
		return err
	}
	n := *c.st.Load()
	n.downgrade = d
	c.publish(&n)
	return nil
}

// publish makes s visible to readers and updates the metrics.
func (c *Cluster) publish(s *state) {
	old := c.st.Swap(s)
	if c.aside {
		return
	}
	local := c.localID.String()
	for _, m := range s.members {
		metrics.NetworkKnownPeers.WithLabelValues(local, m.ID.String()).Set(1)
	}
	learner := 0.0
	if i, ok := s.find(c.localID); ok && s.members[i].IsLearner {
		learner = 1
	}
	metrics.ServerIsLearner.Set(learner)
	if s.version != old.version {
		if old.version.Decided() {
			metrics.ClusterVersion.WithLabelValues(old.version.MajorMinor().label()).Set(0)
		}
		if s.version.Decided() {
			metrics.ClusterVersion.WithLabelValues(s.version.MajorMinor().label()).Set(1)
		}
	}
}

// label returns major.minor, the form in which etcd shows a cluster version.
func (v Version) label() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

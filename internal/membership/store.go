package membership

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3/raftpb"

	"go.uber.org/zap"

	"quorate/internal/engine"
	"quorate/internal/ids"
)

// Keys of the buckets cluster and meta.
var (
	versionKey   = engine.Cluster.K([]byte("clusterVersion"))
	downgradeKey = engine.Cluster.K([]byte("downgrade"))
	confStateKey = engine.Meta.K([]byte("confState"))
)

// removedValue is what etcd stores under the id of a removed member.
var removedValue = []byte("removed")

// Put writes a member.
func Put(b engine.Batch, m Member) error {
	v, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode member %s: %w", m.ID, err)
	}
	b.Set(engine.Members.K([]byte(m.ID.String())), v)
	return nil
}

func removeMember(b engine.Batch, id ids.Member) {
	k := []byte(id.String())
	b.Delete(engine.Members.K(k))
	b.Set(engine.MembersRemoved.K(k), removedValue)
}

func putVersion(b engine.Batch, v Version) { b.Set(versionKey, []byte(v.String())) }

func putDowngrade(b engine.Batch, d Downgrade) error {
	v, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("encode downgrade: %w", err)
	}
	b.Set(downgradeKey, v)
	return nil
}

// Load replaces the membership with the state stored in r: at start, and after a
// snapshot was installed. It returns a VersionTooLowError if this server is older than
// the stored cluster version, and an engine.CorruptionError if a stored value cannot
// be decoded; then the membership is unchanged.
func (c *Cluster) Load(r engine.Reader) error {
	s := &state{removed: make(map[ids.Member]bool)}
	err := scan(r, engine.Members, func(key string, value []byte) error {
		id, err := ids.ParseMember(key)
		if err != nil {
			return err
		}
		m := Member{ID: id}
		if err := json.Unmarshal(value, &m); err != nil {
			return err
		}
		if m.ID != id || key != id.String() {
			return fmt.Errorf("value of member %s", m.ID)
		}
		s.members = append(s.members, m)
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortFunc(s.members, byID)
	err = scan(r, engine.MembersRemoved, func(key string, _ []byte) error {
		id, err := ids.ParseMember(key)
		s.removed[id] = true
		return err
	})
	if err != nil {
		return err
	}
	if s.version, err = loadVersion(r); err != nil {
		return err
	}
	if s.downgrade, err = loadDowngrade(r); err != nil {
		return err
	}
	if err := c.CheckVersion(s.version); err != nil {
		return err
	}
	old := c.st.Load()
	c.publish(s)
	for _, m := range s.members {
		c.lg.Info("recovered/added member from store", zap.Stringer("cluster-id", c.clusterID), zap.Stringer("local-member-id", c.localID),
			zap.Stringer("recovered-remote-peer-id", m.ID), zap.Strings("recovered-remote-peer-urls", m.PeerURLs), zap.Bool("recovered-remote-peer-is-learner", m.IsLearner))
	}
	if s.version.Decided() {
		c.lg.Info("set cluster version from store", zap.String("cluster-version", s.version.Short()))
	}
	if s.version.Decided() && s.version != old.version {
		c.lg.Info("enabled capabilities for version", zap.String("cluster-version", s.version.Short()))
	}
	if s.downgrade.Enabled {
		c.lg.Info("cluster is downgrading to target version", zap.String("target-cluster-version", s.downgrade.Target),
			zap.Stringer("current-server-version", c.serverVersion))
	}
	if len(old.members) > 0 { // not at start: a snapshot was installed
		c.tellStored(old, s)
	}
	return nil
}

// Reset replaces the stored membership and the one in memory with the given members,
// without removed members and without a version: for a new cluster, or one that is
// restored from a backup.
func (c *Cluster) Reset(b engine.Batch, members []Member) error {
	for _, bucket := range []engine.Bucket{engine.Members, engine.MembersRemoved, engine.Cluster} {
		lower, upper := bucket.Bounds()
		b.DeleteRange(lower, upper)
	}
	s := &state{removed: make(map[ids.Member]bool)}
	for _, m := range members {
		if err := Put(b, m); err != nil {
			return err
		}
		s = s.with(m.clone())
	}
	c.publish(s)
	return nil
}

// Replace replaces the stored members with the given ones, without removed members;
// the cluster version stays. It is used to restore a backup.
func Replace(b engine.Batch, members []Member) error {
	for _, bucket := range []engine.Bucket{engine.Members, engine.MembersRemoved} {
		lower, upper := bucket.Bounds()
		b.DeleteRange(lower, upper)
	}
	for _, m := range members {
		if err := Put(b, m); err != nil {
			return err
		}
	}
	return nil
}

// scan calls fn with each key, without the bucket, and value of a bucket.
func scan(r engine.Reader, bucket engine.Bucket, fn func(key string, value []byte) error) (err error) {
	lower, upper := bucket.Bounds()
	it, err := r.NewIter(lower, upper)
	if err != nil {
		return fmt.Errorf("read bucket %v: %w", bucket, err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.Value()
		if err != nil {
			return fmt.Errorf("read bucket %v: %w", bucket, err)
		}
		key := string(it.Key()[1:])
		if err := fn(key, v); err != nil {
			return &engine.CorruptionError{File: fmt.Sprintf("key %q of bucket %v", key, bucket), Err: err}
		}
	}
	if err := it.Error(); err != nil {
		return fmt.Errorf("read bucket %v: %w", bucket, err)
	}
	return nil
}

// get returns the value of key, nil if there is none.
func get(r engine.Reader, key []byte) ([]byte, error) {
	v, err := r.Get(nil, key)
	if errors.Is(err, engine.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read key %q of bucket %v: %w", key[1:], engine.Bucket(key[0]), err)
	}
	return v, nil
}

func loadVersion(r engine.Reader) (Version, error) {
	b, err := get(r, versionKey)
	if err != nil || b == nil {
		return Version{}, err
	}
	v, err := ParseVersion(string(b))
	if err != nil {
		return Version{}, &engine.CorruptionError{File: "key \"clusterVersion\" of bucket cluster", Err: err}
	}
	return v, nil
}

func loadDowngrade(r engine.Reader) (Downgrade, error) {
	b, err := get(r, downgradeKey)
	if err != nil || b == nil {
		return Downgrade{}, err
	}
	var d Downgrade
	err = json.Unmarshal(b, &d)
	if err == nil && d.Enabled {
		_, err = ParseVersion(d.Target)
	}
	if err != nil {
		return Downgrade{}, &engine.CorruptionError{File: "key \"downgrade\" of bucket cluster", Err: err}
	}
	return d, nil
}

// EncodeConfState returns the JSON of meta/confState.
func EncodeConfState(cs *raftpb.ConfState) ([]byte, error) {
	b, err := json.Marshal(cs)
	if err != nil {
		return nil, fmt.Errorf("encode conf state: %w", err)
	}
	return b, nil
}

// DecodeConfState decodes the JSON of meta/confState, as any release writes it.
func DecodeConfState(b []byte) (*raftpb.ConfState, error) {
	cs := new(raftpb.ConfState)
	if err := json.Unmarshal(b, cs); err != nil {
		return nil, fmt.Errorf("decode conf state: %w", err)
	}
	return cs, nil
}

// PutConfState writes cs to meta/confState.
func PutConfState(b engine.Batch, cs *raftpb.ConfState) error {
	v, err := EncodeConfState(cs)
	if err != nil {
		return err
	}
	b.Set(confStateKey, v)
	return nil
}

// LoadConfState reads meta/confState, nil if it was never written.
func LoadConfState(r engine.Reader) (*raftpb.ConfState, error) {
	b, err := get(r, confStateKey)
	if err != nil || b == nil {
		return nil, err
	}
	cs, err := DecodeConfState(b)
	if err != nil {
		return nil, &engine.CorruptionError{File: "key \"confState\" of bucket meta", Err: err}
	}
	return cs, nil
}

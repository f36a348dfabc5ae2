package snapshot

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
)

// Member is one member as the v2 store describes it.
type Member struct {
	ID         uint64
	Name       string
	PeerURLs   []string
	ClientURLs []string // empty until the member has published them
	IsLearner  bool
}

var errV2 = errors.New("not a v2 store")

// v2Node is a node of etcd's v2 store, reduced to what is read from it: the value
// of a file or the children of a directory, which are not nil even if none.
type v2Node struct {
	Path     string
	Value    string             `json:",omitempty"`
	Children map[string]*v2Node `json:",omitzero"`
}

// v2Dump is the whole store.
type v2Dump struct {
	Root           *v2Node
	CurrentIndex   uint64
	CurrentVersion int
}

type raftAttributes struct {
	PeerURLs  []string `json:"peerURLs"`
	IsLearner bool     `json:"isLearner,omitempty"`
}

type attributes struct {
	Name       string   `json:"name,omitempty"`
	ClientURLs []string `json:"clientURLs,omitempty"`
}

// V2Store returns the membership in the form that raftpb.Snapshot.Data has had
// since etcd 2: a dump of the v2 store with nothing else in it. etcd 3.5 and
// 3.6 take the membership of a received snapshot from there, so it must name
// every member, every removed member and the cluster version ("" if not known).
// The same input gives the same bytes.
func V2Store(members []Member, removed []uint64, clusterVersion string) []byte {
	root := &v2Node{Path: "/"}
	for _, dir := range []string{"0", "1"} {
		root.at(dir).Children = map[string]*v2Node{}
	}
	for _, m := range members {
		peers := slices.Clone(m.PeerURLs)
		if peers == nil {
			peers = []string{}
		}
		id := strconv.FormatUint(m.ID, 16)
		root.at("0", "members", id, "raftAttributes").Value = mustJSON(raftAttributes{peers, m.IsLearner})
		if len(m.ClientURLs) > 0 {
			root.at("0", "members", id, "attributes").Value = mustJSON(attributes{m.Name, m.ClientURLs})
		}
	}
	for _, id := range removed {
		root.at("0", "removed_members", strconv.FormatUint(id, 16))
	}
	if clusterVersion != "" {
		root.at("0", "version").Value = clusterVersion
	}
	return []byte(mustJSON(v2Dump{Root: root, CurrentIndex: 1, CurrentVersion: 2}))
}

// at returns the node at a path, making it and the directories on the way.
func (n *v2Node) at(names ...string) *v2Node {
	for _, name := range names {
		if n.Children == nil {
			n.Children = map[string]*v2Node{}
		}
		c := n.Children[name]
		if c == nil {
			c = &v2Node{Path: path.Join(n.Path, name)}
			n.Children[name] = c
		}
		n = c
	}
	return n
}

// mustJSON encodes values that cannot fail to encode.
func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("snapshot: encode %T: %v", v, err))
	}
	return string(b)
}

// child returns a node below n, nil if there is none.
func (n *v2Node) child(names ...string) *v2Node {
	for _, name := range names {
		if n == nil {
			return nil
		}
		n = n.Children[name]
	}
	return n
}

// ParseV2Store is the inverse of V2Store. It also reads the full dumps that etcd
// 3.5 writes; what they hold beside the membership is passed over. Members and
// removed ids are in ascending order.
func ParseV2Store(data []byte) (members []Member, removed []uint64, clusterVersion string, err error) {
	var d v2Dump
	if err := json.Unmarshal(data, &d); err != nil {
		return nil, nil, "", fmt.Errorf("snapshot: %w: %w", errV2, err)
	}
	if d.Root == nil {
		return nil, nil, "", fmt.Errorf("snapshot: %w: no root", errV2)
	}
	if dir := d.Root.child("0", "members"); dir != nil {
		for name, n := range dir.Children {
			m, err := parseMember(name, n)
			if err != nil {
				return nil, nil, "", err
			}
			members = append(members, m)
		}
	}
	if dir := d.Root.child("0", "removed_members"); dir != nil {
		for name := range dir.Children {
			id, err := parseID(name)
			if err != nil {
				return nil, nil, "", err
			}
			removed = append(removed, id)
		}
	}
	if n := d.Root.child("0", "version"); n != nil {
		clusterVersion = n.Value
	}
	slices.SortFunc(members, func(a, b Member) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	slices.Sort(removed)
	return members, removed, clusterVersion, nil
}

// V2Key returns the path of a key in a dump of the v2 store that is not part of
// the membership: data that clients wrote through etcd's API of version 2. It is
// empty if there is none.
func V2Key(data []byte) (string, error) {
	var d v2Dump
	if err := json.Unmarshal(data, &d); err != nil {
		return "", fmt.Errorf("snapshot: %w: %w", errV2, err)
	}
	// Keys of clients lie below /1; /0 is the cluster's own.
	n := d.Root.child("1")
	if n == nil || len(n.Children) == 0 {
		return "", nil
	}
	return path.Join("/1", slices.Sorted(maps.Keys(n.Children))[0]), nil
}

func parseID(name string) (uint64, error) {
	id, err := strconv.ParseUint(name, 16, 64)
	if err != nil {
		return 0, fmt.Errorf("snapshot: %w: member id %q", errV2, name)
	}
	return id, nil
}

func parseMember(name string, n *v2Node) (Member, error) {
	id, err := parseID(name)
	if err != nil {
		return Member{}, err
	}
	var r raftAttributes
	var a attributes
	ra := n.child("raftAttributes")
	if ra == nil {
		return Member{}, fmt.Errorf("snapshot: %w: member %s has no raftAttributes", errV2, name)
	}
	if err := json.Unmarshal([]byte(ra.Value), &r); err != nil {
		return Member{}, fmt.Errorf("snapshot: %w: raftAttributes of member %s: %w", errV2, name, err)
	}
	if at := n.child("attributes"); at != nil {
		if err := json.Unmarshal([]byte(at.Value), &a); err != nil {
			return Member{}, fmt.Errorf("snapshot: %w: attributes of member %s: %w", errV2, name, err)
		}
	}
	return Member{ID: id, Name: a.Name, PeerURLs: r.PeerURLs, ClientURLs: a.ClientURLs, IsLearner: r.IsLearner}, nil
}

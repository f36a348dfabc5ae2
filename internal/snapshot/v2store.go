package snapshot

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"

	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/legacy/v2store"
)

// Member is one member as the v2 store describes it.
type Member struct {
	ID         ids.Member
	Name       string
	PeerURLs   []string
	ClientURLs []string // empty until the member has published them
	IsLearner  bool
}

type raftAttributes struct {
	PeerURLs  []string `json:"peerURLs"`
	IsLearner bool     `json:"isLearner,omitempty"`
}

type attributes struct {
	Name       string   `json:"name,omitempty"`
	ClientURLs []string `json:"clientURLs,omitempty"`
}

// V2Store returns what raftpb.Snapshot.Data has held since etcd 2: a dump of the v2 store. etcd
// 3.5 and 3.6 take the membership of a received snapshot from there, so it must name every
// member, every removed member and the cluster version ("" if unknown). With a state of
// the engine it also contains the keys of the v2 API, which members of 3.5 get from
// nowhere else. The same input gives the same bytes.
func V2Store(members []Member, removed []ids.Member, clusterVersion string, state engine.Reader) ([]byte, error) {
	d := v2store.NewDump()
	cluster := d.Root.At("0")
	for _, m := range members {
		peers := slices.Clone(m.PeerURLs)
		if peers == nil {
			peers = []string{}
		}
		id := m.ID.String()
		cluster.At("members", id, "raftAttributes").Value = mustJSON(raftAttributes{peers, m.IsLearner})
		if len(m.ClientURLs) > 0 {
			cluster.At("members", id, "attributes").Value = mustJSON(attributes{m.Name, m.ClientURLs})
		}
	}
	for _, id := range removed {
		cluster.At("removed_members", id.String())
	}
	if clusterVersion != "" {
		cluster.At("version").Value = clusterVersion
	}
	if state != nil {
		if err := d.Fill(state); err != nil {
			return nil, err
		}
	}
	return d.Marshal()
}

// mustJSON encodes values that cannot fail to encode.
func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("snapshot: encode %T: %v", v, err))
	}
	return string(b)
}

// ParseV2Store reads the membership in a dump, of Quorate or of etcd; members and removed ids
// are in ascending order. It returns v2store.ErrDump if the bytes are not a dump.
func ParseV2Store(data []byte) (members []Member, removed []ids.Member, clusterVersion string, err error) {
	d, err := v2store.ParseDump(data)
	if err != nil {
		return nil, nil, "", fmt.Errorf("snapshot: %w", err)
	}
	cluster := d.Root.Child("0")
	if dir := cluster.Child("members"); dir != nil {
		for name, n := range dir.Children {
			m, err := parseMember(name, n)
			if err != nil {
				return nil, nil, "", err
			}
			members = append(members, m)
		}
	}
	if dir := cluster.Child("removed_members"); dir != nil {
		for name := range dir.Children {
			id, err := parseID(name)
			if err != nil {
				return nil, nil, "", err
			}
			removed = append(removed, id)
		}
	}
	if n := cluster.Child("version"); n != nil {
		clusterVersion = n.Value
	}
	slices.SortFunc(members, func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })
	slices.Sort(removed)
	return members, removed, clusterVersion, nil
}

func parseID(name string) (ids.Member, error) {
	id, err := ids.ParseMember(name)
	if err != nil {
		return 0, fmt.Errorf("snapshot: %w: member id %q", v2store.ErrDump, name)
	}
	return id, nil
}

func parseMember(name string, n *v2store.DumpNode) (Member, error) {
	id, err := parseID(name)
	if err != nil {
		return Member{}, err
	}
	var r raftAttributes
	var a attributes
	ra := n.Child("raftAttributes")
	if ra == nil {
		return Member{}, fmt.Errorf("snapshot: %w: member %s has no raftAttributes", v2store.ErrDump, name)
	}
	if err := json.Unmarshal([]byte(ra.Value), &r); err != nil {
		return Member{}, fmt.Errorf("snapshot: %w: raftAttributes of member %s: %w", v2store.ErrDump, name, err)
	}
	if at := n.Child("attributes"); at != nil {
		if err := json.Unmarshal([]byte(at.Value), &a); err != nil {
			return Member{}, fmt.Errorf("snapshot: %w: attributes of member %s: %w", v2store.ErrDump, name, err)
		}
	}
	return Member{ID: id, Name: a.Name, PeerURLs: r.PeerURLs, ClientURLs: a.ClientURLs, IsLearner: r.IsLearner}, nil
}

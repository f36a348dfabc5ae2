package membership

import (
	"crypto/sha1"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"quorate/internal/ids"
)

// Member is one member of the cluster. Its JSON is that of the peer endpoint
// /members, of the bucket members and of configuration changes: the order of the
// fields is part of the format.
type Member struct {
	ID         ids.Member `json:"id"`
	PeerURLs   []string   `json:"peerURLs"`
	IsLearner  bool       `json:"isLearner,omitempty"`
	Name       string     `json:"name,omitempty"`
	ClientURLs []string   `json:"clientURLs,omitempty"`
}

// Started reports whether the member has published its name.
func (m Member) Started() bool { return m.Name != "" }

func (m Member) clone() Member {
	m.PeerURLs = slices.Clone(m.PeerURLs)
	m.ClientURLs = slices.Clone(m.ClientURLs)
	return m
}

// ComputeMemberID derives a member id from its peer URLs, in any order, and the
// cluster token. A member that is added to a running cluster has an empty token and
// the time of the request; a founder has no time, so that all founders compute the
// same ids.
func ComputeMemberID(peerURLs []string, token string, now *time.Time) ids.Member {
	sorted := slices.Clone(peerURLs)
	slices.Sort(sorted)
	b := []byte(strings.Join(sorted, "") + token)
	if now != nil {
		b = strconv.AppendInt(b, now.Unix(), 10)
	}
	sum := sha1.Sum(b)
	return ids.Member(binary.BigEndian.Uint64(sum[:8]))
}

// ComputeClusterID derives the cluster id from the ids of the founders.
func ComputeClusterID(memberIDs []ids.Member) ids.Cluster {
	sorted := slices.Clone(memberIDs)
	slices.Sort(sorted)
	b := make([]byte, 0, 8*len(sorted))
	for _, id := range sorted {
		b = binary.BigEndian.AppendUint64(b, uint64(id))
	}
	sum := sha1.Sum(b)
	return ids.Cluster(binary.BigEndian.Uint64(sum[:8]))
}

// NewMember returns a member to be added to a running cluster, with the id that
// follows from its URLs and the time of the request.
func NewMember(peerURLs []string, learner bool, now time.Time) Member {
	return Member{ID: ComputeMemberID(peerURLs, "", &now), PeerURLs: slices.Clone(peerURLs), IsLearner: learner}
}

// EncodeMembers returns the body of the peer endpoint /members.
func EncodeMembers(ms []Member) ([]byte, error) {
	if ms == nil {
		ms = []Member{}
	}
	b, err := json.Marshal(ms)
	if err != nil {
		return nil, fmt.Errorf("encode members: %w", err)
	}
	return b, nil
}

// DecodeMembers reads the body of the peer endpoint /members and returns the
// members sorted by id.
func DecodeMembers(b []byte) ([]Member, error) {
	var ms []Member
	if err := json.Unmarshal(b, &ms); err != nil {
		return nil, fmt.Errorf("decode members: %w", err)
	}
	slices.SortFunc(ms, byID)
	return ms, nil
}

func byID(a, b Member) int {
	switch {
	case a.ID < b.ID:
		return -1
	case a.ID > b.ID:
		return 1
	}
	return 0
}

package membership

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/ids"
)

// Reasons to reject a configuration change. The texts are etcd's and reach clients.
var (
	ErrIDRemoved        = errors.New("membership: ID removed")
	ErrIDExists         = errors.New("membership: ID exists")
	ErrIDNotFound       = errors.New("membership: ID not found")
	ErrPeerURLExists    = errors.New("membership: peerURL exists")
	ErrMemberNotLearner = errors.New("membership: can only promote a learner member")
	ErrTooManyLearners  = errors.New("membership: too many learner members in cluster")
	// ErrLastVoter does not exist in etcd, whose members all exit at such a removal and cannot restart.
	ErrLastVoter = errors.New("membership: the last voting member cannot be removed")
	// ErrMalformedChange is a change that no member of any release proposes: of an
	// unknown type, or with a context that is not JSON or names another member.
	ErrMalformedChange = errors.New("membership: malformed configuration change")
)

// changeContext is the Context of a ConfChange. Only a promotion writes the
// key isPromote; a missing key reads as false.
type changeContext struct {
	Member
	IsPromote bool `json:"isPromote,omitempty"`
}

func encodeContext(m Member, promote bool) ([]byte, error) {
	b, err := json.Marshal(changeContext{Member: m, IsPromote: promote})
	if err != nil {
		return nil, fmt.Errorf("encode context of member %s: %w", m.ID, err)
	}
	return b, nil
}

// AddChange returns the change that adds m, as a learner if it is one. The
// caller sets the request id.
func AddChange(m Member) (*raftpb.ConfChange, error) {
	ctx, err := encodeContext(Member{ID: m.ID, PeerURLs: m.PeerURLs, IsLearner: m.IsLearner}, false)
	if err != nil {
		return nil, err
	}
	typ := raftpb.ConfChangeAddNode
	if m.IsLearner {
		typ = raftpb.ConfChangeAddLearnerNode
	}
	return &raftpb.ConfChange{Type: typ.Enum(), NodeId: new(uint64(m.ID)), Context: ctx}, nil
}

// PromoteChange returns the change that makes a learner a voter.
func PromoteChange(id ids.Member) (*raftpb.ConfChange, error) {
	ctx, err := encodeContext(Member{ID: id}, true)
	if err != nil {
		return nil, err
	}
	return &raftpb.ConfChange{Type: raftpb.ConfChangeAddNode.Enum(), NodeId: new(uint64(id)), Context: ctx}, nil
}

// RemoveChange returns the change that removes a member.
func RemoveChange(id ids.Member) *raftpb.ConfChange {
	return &raftpb.ConfChange{Type: raftpb.ConfChangeRemoveNode.Enum(), NodeId: new(uint64(id))}
}

// UpdateChange returns the change that replaces a member's peer URLs.
func UpdateChange(id ids.Member, peerURLs []string) (*raftpb.ConfChange, error) {
	ctx, err := encodeContext(Member{ID: id, PeerURLs: peerURLs}, false)
	if err != nil {
		return nil, err
	}
	return &raftpb.ConfChange{Type: raftpb.ConfChangeUpdateNode.Enum(), NodeId: new(uint64(id)), Context: ctx}, nil
}

// Action is the effect of an applied change.
type Action int

// The actions.
const (
	Added    Action = iota + 1 // a voter or, by Member.IsLearner, a learner was added
	Promoted                   // a learner became a voter
	Removed                    // a member left for good
	Updated                    // a member has new peer URLs
)

// Effect describes an applied change, so that the server can start, stop or redirect
// the peer.
type Effect struct {
	Action Action
	Member Member // as it is now; for Removed, as it was
}

// decodeChange returns the member that a change is about, and the action.
func decodeChange(cc *raftpb.ConfChange) (m Member, action Action, err error) {
	id := ids.Member(cc.GetNodeId())
	if id == 0 {
		return Member{}, 0, fmt.Errorf("%w: member id 0", ErrMalformedChange)
	}
	switch cc.GetType() {
	case raftpb.ConfChangeAddNode, raftpb.ConfChangeAddLearnerNode:
		action = Added
	case raftpb.ConfChangeUpdateNode:
		action = Updated
	case raftpb.ConfChangeRemoveNode:
		return Member{ID: id}, Removed, nil
	default:
		return Member{}, 0, fmt.Errorf("%w: type %d", ErrMalformedChange, cc.GetType())
	}
	var ctx changeContext
	if err := json.Unmarshal(cc.GetContext(), &ctx); err != nil {
		return Member{}, 0, fmt.Errorf("%w: %w", ErrMalformedChange, err)
	}
	if ctx.ID != id {
		return Member{}, 0, fmt.Errorf("%w: context of member %s in a change of member %s",
			ErrMalformedChange, ctx.ID, id)
	}
	if ctx.IsPromote && action == Added {
		action = Promoted
	}
	return ctx.Member, action, nil
}

// DecodeChange decodes the change in an entry that is about to be proposed. It
// rejects changes that no member proposes: once in the log, releases would treat them
// differently, and some members would exit.
func DecodeChange(data []byte) (*raftpb.ConfChange, error) {
	cc := &raftpb.ConfChange{}
	if err := proto.Unmarshal(data, cc); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformedChange, err)
	}
	m, action, err := decodeChange(cc)
	if err != nil {
		return nil, err
	}
	learner := cc.GetType() == raftpb.ConfChangeAddLearnerNode
	if action == Added && m.IsLearner != learner || action == Promoted && learner {
		return nil, fmt.Errorf("%w: %v of a member that is a learner: %v", ErrMalformedChange, cc.GetType(), m.IsLearner)
	}
	return cc, nil
}

// check returns nil if the change may be applied to s.
func (s *state) check(cc *raftpb.ConfChange, m Member, action Action, maxLearners int) error {
	if s.removed[m.ID] {
		return ErrIDRemoved
	}
	i, exists := s.find(m.ID)
	switch action {
	case Promoted:
		if !exists {
			return ErrIDNotFound
		}
		if !s.members[i].IsLearner {
			return ErrMemberNotLearner
		}
	case Added:
		if exists {
			return ErrIDExists
		}
		if s.usesURL(m) {
			return ErrPeerURLExists
		}
		if m.IsLearner && cc.GetType() == raftpb.ConfChangeAddLearnerNode && s.learners()+1 > maxLearners {
			return ErrTooManyLearners
		}
	case Removed:
		if !exists {
			return ErrIDNotFound
		}
		if s.lastVoter(m.ID) {
			return ErrLastVoter
		}
	case Updated:
		if !exists {
			return ErrIDNotFound
		}
		if s.usesURL(m) {
			return ErrPeerURLExists
		}
	}
	return nil
}

// usesURL reports whether another member has one of m's peer URLs.
func (s *state) usesURL(m Member) bool {
	for _, o := range s.members {
		if o.ID == m.ID {
			continue
		}
		for _, u := range m.PeerURLs {
			if slices.Contains(o.PeerURLs, u) {
				return true
			}
		}
	}
	return false
}

// lastVoter reports whether the member with the id is the only voter.
func (s *state) lastVoter(id ids.Member) bool {
	n, _, _ := voters(s.members, id, nil)
	all, _, _ := voters(s.members, 0, nil)
	return all == 1 && n == 0
}

func (s *state) learners() int {
	n := 0
	for _, m := range s.members {
		if m.IsLearner {
			n++
		}
	}
	return n
}

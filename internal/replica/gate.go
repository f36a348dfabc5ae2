package replica

import (
	"bytes"
	"errors"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/proposal"
)

// Whether a membership change is allowed depends on the changes before it. It is checked
// when the request arrives, for a fast answer, and again here, when the leader is about to
// append the change to its log. The second check covers every source: a client of the
// leader, a follower, and retries of an unanswered request. Only one change may be in
// flight, so at this point all earlier changes are applied, and of two removals that were
// both allowed on arrival only one happens.
//
// Apply cannot check: all members have to decide alike there, and etcd members do not
// check.

// gate decides whether the leader may propose a change now; inSync reports whether a
// learner has caught up.
type gate func(cc *raftpb.ConfChange, inSync func(id ids.Member) bool) error

// verdict is the decision about a membership change that is to be proposed.
type verdict int

const (
	pass verdict = iota
	wait
	refuse // with an error
)

// judge decides about a membership change that is to be proposed. A follower passes it:
// the leader decides.
func (c *Core) judge(now time.Time, change []byte) (verdict, error) {
	if c.awaitsHandOver(now, change) {
		return wait, nil
	}
	if !c.node.Leading() {
		return pass, nil
	}
	if c.node.ChangePending() {
		return wait, nil
	}
	cc := &raftpb.ConfChange{}
	if err := proto.Unmarshal(change, cc); err != nil {
		return refuse, err
	}
	if c.gate != nil {
		if err := c.gate(cc, c.inSync); err != nil {
			return refuse, err
		}
	}
	return pass, nil
}

// inSync reports whether a learner has caught up with this leader.
func (c *Core) inSync(id ids.Member) bool {
	st := c.node.Status()
	return membership.LearnerInSync(ids.Index(st.Progress[uint64(c.node.ID())].Match), ids.Index(st.Progress[uint64(id)].Match))
}

// sift returns the proposals that may be handed to raft now. It holds those that have to
// wait and fails those that are refused.
func (c *Core) sift(now time.Time, all []*proposal.Pending) []*proposal.Pending {
	isChange := func(p *proposal.Pending) bool { return p.ConfChange }
	first := slices.IndexFunc(all, isChange)
	if first < 0 {
		return all
	}
	out := slices.Clone(all[:first])
	changes := 0
	for _, p := range all[first:] {
		if !p.ConfChange {
			out = append(out, p)
			continue
		}
		v, err := c.judge(now, p.Data)
		if v == pass && changes > 0 && c.node.Leading() {
			v = wait // for the change that passes now
		}
		switch v {
		case pass:
			out = append(out, p)
			changes++
		case wait:
			c.held.Keep([]*proposal.Pending{p}, 0)
		case refuse:
			c.props.Fail(p.ID, err)
		}
	}
	return out
}

// offer hands a message of a peer to raft and returns the parts that have to be offered
// again later. It drops changes in a follower's proposal that the leader refuses: the
// follower checks again when it retries and gets the reason itself.
func (c *Core) offer(now time.Time, m *raftpb.Message) (again []*raftpb.Message) {
	if m.GetType() == raftpb.MsgProp && c.node.Leading() {
		if m, again = c.siftEntries(now, m); m == nil {
			return again
		}
	}
	if err := c.take(m); err != nil {
		again = append(again, m)
	}
	return again
}

// siftEntries returns the message without the membership changes that have to wait or are
// refused, nil if nothing is left. Each change that waits is returned in its own message.
func (c *Core) siftEntries(now time.Time, m *raftpb.Message) (left *raftpb.Message, later []*raftpb.Message) {
	isChange := func(e *raftpb.Entry) bool { return e.GetType() == raftpb.EntryConfChange }
	first := slices.IndexFunc(m.Entries, isChange)
	if first < 0 {
		return m, nil
	}
	ents := slices.Clone(m.Entries[:first])
	changes := 0
	for _, e := range m.Entries[first:] {
		v := pass
		if isChange(e) {
			var err error
			v, err = c.judge(now, e.Data)
			// The follower has checked its own connections. Those of this leader may be
			// younger, and an etcd follower does not retry: its client would time out.
			if v == refuse && errors.Is(err, membership.ErrUnhealthy) || v == pass && changes > 0 {
				v = wait
			}
		}
		switch v {
		case pass:
			ents = append(ents, e)
			if isChange(e) {
				changes++
			}
		case wait:
			later = append(later, &raftpb.Message{Type: m.Type, To: m.To, From: m.From, Entries: []*raftpb.Entry{e}})
		}
	}
	if len(ents) == 0 {
		return nil, later
	}
	return &raftpb.Message{Type: m.Type, To: m.To, From: m.From, Entries: ents}, later
}

// waitsAlready reports whether a message holds a membership change that is already among
// those that wait: its proposer retries until it has an answer.
func (c *Core) waitsAlready(m *raftpb.Message) bool {
	if len(m.Entries) != 1 || m.Entries[0].GetType() != raftpb.EntryConfChange {
		return false
	}
	return slices.ContainsFunc(c.forwarded, func(f forwarded) bool {
		return len(f.msg.Entries) == 1 && f.msg.Entries[0].GetType() == raftpb.EntryConfChange && bytes.Equal(f.msg.Entries[0].Data, m.Entries[0].Data)
	})
}

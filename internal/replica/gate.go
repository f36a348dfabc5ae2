package replica

import (
	"bytes"
	"errors"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/membership"
	"quorate/internal/proposal"
)

// Whether a change of the membership may be made depends on those before it. It is asked
// when the request comes, for a quick answer, and again here, at the moment when the
// leader takes the change into its log, wherever it comes from and however often: from a
// client of the leader, from a follower, or once more because nobody has answered. At that
// moment every change before it is applied, as one at a time may be under way, so two
// removals that were both allowed when they were asked for do not both happen.
//
// Apply cannot ask: all members must decide alike there, and etcd's do not ask.

// gate decides whether the leader may propose a change now; inSync tells whether a
// learner has caught up.
type gate func(cc *raftpb.ConfChange, inSync func(id uint64) bool) error

// verdict is what becomes of a change of the membership that is to be proposed.
type verdict int

const (
	pass verdict = iota
	wait
	refuse // for the reason that comes with it
)

// judge decides about a change that is to be proposed. A follower passes it on.
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
func (c *Core) inSync(id uint64) bool {
	st := c.node.Status()
	return membership.LearnerInSync(st.Progress[c.node.ID()].Match, st.Progress[id].Match)
}

// sift returns the proposals that may be handed to raft now. Those that must wait are
// held, those that are refused have their answer.
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
			v = wait // for the one that goes now
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

// offer hands a message of a peer to raft, and returns what of it must be offered again
// later. Of a proposal that a follower has sent it leaves out what the leader refuses: the
// follower asks again, and finds out by itself.
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

// siftEntries returns the message without the changes of the membership that must wait or
// are refused, nil if nothing is left; each of those that wait is a message of its own.
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
			// The follower has asked whether its own connections are good. This leader's may
			// be younger, and one of etcd does not ask twice: its client would wait in vain.
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

// waitsAlready reports whether a message is the change of the membership that another
// one is which waits: whoever proposes it asks again and again.
func (c *Core) waitsAlready(m *raftpb.Message) bool {
	if len(m.Entries) != 1 || m.Entries[0].GetType() != raftpb.EntryConfChange {
		return false
	}
	return slices.ContainsFunc(c.forwarded, func(f forwarded) bool {
		return len(f.msg.Entries) == 1 && f.msg.Entries[0].GetType() == raftpb.EntryConfChange && bytes.Equal(f.msg.Entries[0].Data, m.Entries[0].Data)
	})
}

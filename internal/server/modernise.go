package server

import (
	"slices"

	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/command"
	"quorate/internal/membership"
)

// firstWithoutV2 is the oldest release that is served as well by what the newest
// understands. Those before propose v2 requests, and whoever waits for the outcome
// of one must find it in the log as it was made.
var firstWithoutV2 = membership.Version{Major: 3, Minor: 6}

// modernise translates the v2 requests of members of etcd 3.5 in what is sent to
// later ones: a member of 3.7 would end at the first that it gets, and a log keeps
// them long after the last member of 3.5 has gone. Raft compares entries by index
// and term only.
func (m *Member) modernise(msgs []*raftpb.Message) []*raftpb.Message {
	for _, msg := range msgs {
		if msg.GetType() != raftpb.MsgApp || len(msg.Entries) == 0 {
			continue
		}
		if ents := modernEntries(msg.Entries); ents != nil {
			if v, known := m.tr.Version(msg.GetTo()); !known || !v.Less(firstWithoutV2) {
				msg.Entries = ents // the slice is the log's, the message is ours
			}
		}
	}
	return msgs
}

// modernEntries returns a translated copy, nil if there is nothing to translate.
func modernEntries(ents []*raftpb.Entry) []*raftpb.Entry {
	var out []*raftpb.Entry
	for i, e := range ents {
		if e.GetType() != raftpb.EntryNormal {
			continue
		}
		data := command.Modern(e.Data)
		if len(data) == 0 || &data[0] == &e.Data[0] {
			continue
		}
		if out == nil {
			out = slices.Clone(ents)
		}
		out[i] = &raftpb.Entry{Type: e.Type, Term: e.Term, Index: e.Index, Data: data}
	}
	return out
}

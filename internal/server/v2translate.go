package server

import (
	"slices"

	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/ids"
	"quorate/internal/legacy/v2request"
	"quorate/internal/membership"
)

// translated returns a translated copy, nil if there is nothing to translate.
func translated(ents []*raftpb.Entry, translate func([]byte) []byte) []*raftpb.Entry {
	var out []*raftpb.Entry
	for i, e := range ents {
		if e.GetType() != raftpb.EntryNormal {
			continue
		}
		data := translate(e.Data)
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

// translateV2 translates v2 requests in messages to members later than etcd 3.5: a member of
// 3.6 or 3.7 would exit at the first one, and a log retains them long after the last member
// of 3.5 has gone. A translated request has no effect on those members, who pass it on to
// members of Quorate; for members of 3.5 it is translated back. Raft compares entries by
// index and term only.
func (d *driver) translateV2(msgs []*raftpb.Message) []*raftpb.Message {
	for _, msg := range msgs {
		if t := msg.GetType(); t != raftpb.MsgApp && t != raftpb.MsgProp || len(msg.Entries) == 0 {
			continue
		}
		translate := v2request.Modern
		if v, known := d.tr.Version(ids.Member(msg.GetTo())); known && v.Less(membership.FirstWithoutV2) {
			translate = v2request.Plain
		}
		if ents := translated(msg.Entries, translate); ents != nil {
			msg.Entries = ents // the slice belongs to the log, the message to us
		}
	}
	return msgs
}

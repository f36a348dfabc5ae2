package raftnode

import (
	"fmt"
	"slices"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

func app(to, term, index, logTerm, commit uint64, ents ...*raftpb.Entry) *raftpb.Message {
	return &raftpb.Message{Type: raftpb.MsgApp.Enum(), To: &to, Term: &term, Index: &index, LogTerm: &logTerm, Commit: &commit, Entries: ents}
}

func ack(to, term, index uint64) *raftpb.Message {
	return &raftpb.Message{Type: raftpb.MsgAppResp.Enum(), To: &to, Term: &term, Index: &index}
}

func describe(ms []*raftpb.Message) (out []string) {
	for _, m := range ms {
		out = append(out, fmt.Sprintf("%v to %d after %d: %d entries, commit %d", m.GetType(), m.GetTo(), m.GetIndex(), len(m.Entries), m.GetCommit()))
	}
	return out
}

func TestJoin(t *testing.T) {
	for name, x := range map[string]struct {
		sent []*raftpb.Message
		want []string
	}{
		"entries that follow": {[]*raftpb.Message{app(2, 3, 5, 3, 4, entry(6, 3, "a")), app(3, 3, 5, 3, 4, entry(6, 3, "a")), app(2, 3, 6, 3, 5, entry(7, 3, "b"), entry(8, 3, "c"))},
			[]string{"MsgApp to 2 after 5: 3 entries, commit 5", "MsgApp to 3 after 5: 1 entries, commit 4"}},
		"a commit index before entries": {[]*raftpb.Message{app(2, 3, 5, 3, 5), app(2, 3, 5, 3, 5, entry(6, 3, "a"))}, []string{"MsgApp to 2 after 5: 1 entries, commit 5"}},
		"a commit index after entries":  {[]*raftpb.Message{app(2, 3, 5, 3, 5, entry(6, 3, "a")), app(2, 3, 6, 3, 6)}, []string{"MsgApp to 2 after 5: 1 entries, commit 6"}},
		"a gap":                         {[]*raftpb.Message{app(2, 3, 5, 3, 5), app(2, 3, 6, 3, 5)}, []string{"MsgApp to 2 after 5: 0 entries, commit 5", "MsgApp to 2 after 6: 0 entries, commit 5"}},
		"entries again":                 {[]*raftpb.Message{app(2, 3, 5, 3, 5, entry(6, 3, "a")), app(2, 3, 5, 3, 5, entry(6, 3, "a"))}, []string{"MsgApp to 2 after 5: 1 entries, commit 5", "MsgApp to 2 after 5: 1 entries, commit 5"}},
		"another term":                  {[]*raftpb.Message{app(2, 3, 5, 3, 5), app(2, 4, 5, 3, 5)}, []string{"MsgApp to 2 after 5: 0 entries, commit 5", "MsgApp to 2 after 5: 0 entries, commit 5"}},
		"too much":                      {[]*raftpb.Message{app(2, 3, 5, 3, 5, entry(6, 3, "aaaaaa")), app(2, 3, 6, 3, 5, entry(7, 3, "aaaaa"))}, []string{"MsgApp to 2 after 5: 1 entries, commit 5", "MsgApp to 2 after 6: 1 entries, commit 5"}},
		"other messages":                {[]*raftpb.Message{ack(2, 3, 5), ack(2, 3, 6)}, []string{"MsgAppResp to 2 after 5: 0 entries, commit 0", "MsgAppResp to 2 after 6: 0 entries, commit 0"}},
	} {
		var got []*raftpb.Message
		for _, m := range x.sent {
			got = join(got, m, 10)
		}
		if !slices.Equal(describe(got), x.want) {
			t.Errorf("%s: %q, want %q", name, describe(got), x.want)
		}
	}
	// raft keeps the slice of the entries of a message.
	kept := append(make([]*raftpb.Entry, 0, 4), entry(6, 3, "a"))
	join([]*raftpb.Message{app(2, 3, 5, 3, 5, kept...)}, app(2, 3, 6, 3, 5, entry(7, 3, "b")), 10)
	if kept[:2][1] != nil {
		t.Error("a slice of raft was written to")
	}
}

func TestLeaveOut(t *testing.T) {
	var s acks
	commit := func(ms ...*raftpb.Message) Append {
		return Append{HardState: &raftpb.HardState{Term: new(uint64(3)), Commit: new(uint64(9))}, Responses: ms}
	}
	for _, x := range []struct {
		what string
		a    Append
		want int
	}{
		{"entries", Append{Entries: []*raftpb.Entry{entry(5, 3, "")}, MustSync: true, Responses: []*raftpb.Message{ack(2, 3, 5)}}, 1},
		{"a commit index", commit(ack(2, 3, 5)), 0},
		{"another one: the first answer may have been lost", commit(ack(2, 3, 5)), 1},
		{"more entries", Append{MustSync: true, Responses: []*raftpb.Message{ack(2, 3, 7)}}, 1},
		{"a question without a new commit index", Append{Responses: []*raftpb.Message{ack(2, 3, 7)}}, 1},
		{"a commit index, and a refusal", commit(ack(2, 3, 7), with(ack(2, 3, 7), func(m *raftpb.Message) { m.Reject = new(true) })), 1},
		{"another term", commit(ack(2, 4, 7)), 1},
		{"another leader", commit(ack(1, 4, 7)), 1},
		{"a new vote", Append{HardState: &raftpb.HardState{}, MustSync: true, Responses: []*raftpb.Message{ack(1, 4, 7)}}, 1},
	} {
		if s.leaveOut(&x.a); len(x.a.Responses) != x.want {
			t.Errorf("%s: %d responses, want %d", x.what, len(x.a.Responses), x.want)
		}
	}
}

func TestNewestAcks(t *testing.T) {
	got := describe(NewestAcks([]*raftpb.Message{ack(2, 3, 5), ack(2, 3, 7), ack(2, 3, 6), ack(2, 4, 6), message(raftpb.MsgVoteResp, 1, 4), ack(2, 4, 8), ack(1, 4, 8)}))
	want := []string{"MsgAppResp to 2 after 7: 0 entries, commit 0", "MsgAppResp to 2 after 6: 0 entries, commit 0", "MsgVoteResp to 1 after 0: 0 entries, commit 0",
		"MsgAppResp to 2 after 8: 0 entries, commit 0", "MsgAppResp to 1 after 8: 0 entries, commit 0"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

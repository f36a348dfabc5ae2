package membership

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/ids"
)

func TestLeaveAlone(t *testing.T) {
	a := Member{ID: 1, PeerURLs: []string{"http://a:1"}}
	b := Member{ID: 2, PeerURLs: []string{"http://b:1"}}
	learner := Member{ID: 3, PeerURLs: []string{"http://c:1"}, IsLearner: true}
	add := func(m Member) *raftpb.ConfChange { return must(AddChange(m)) }
	for _, tt := range []struct {
		name    string
		stored  []Member
		pending []*raftpb.ConfChange
		local   ids.Member
		want    string
		err     error
	}{
		{name: "alone already", stored: []Member{a}, local: 1},
		{name: "one of three", stored: []Member{a, b, learner}, local: 1, want: "ConfChangeRemoveNode 2, ConfChangeRemoveNode 3"},
		{name: "an addition that is not applied", stored: []Member{a}, pending: []*raftpb.ConfChange{add(b)}, local: 1, want: "ConfChangeRemoveNode 2"},
		{name: "a removal that is not applied", stored: []Member{a, b}, pending: []*raftpb.ConfChange{RemoveChange(2)}, local: 1},
		{name: "a change that is refused", stored: []Member{a, b}, pending: []*raftpb.ConfChange{RemoveChange(9), add(b)}, local: 2, want: "ConfChangeRemoveNode 1"},
		{name: "nothing stored, founded by the log", pending: []*raftpb.ConfChange{add(a), add(b)}, local: 2, want: "ConfChangeRemoveNode 1"},
		{name: "a learner", stored: []Member{a, learner}, local: 3, want: "ConfChangeAddNode 3, ConfChangeRemoveNode 1"},
		{name: "unknown to itself", stored: []Member{a, b}, local: 7, want: "ConfChangeAddNode 7, ConfChangeRemoveNode 1, ConfChangeRemoveNode 2"},
		{name: "removed", stored: []Member{a, b}, pending: []*raftpb.ConfChange{RemoveChange(2)}, local: 2, err: ErrLocalRemoved},
		{name: "unknown, and its URL is another's", stored: []Member{{ID: 1, PeerURLs: []string{"http://x:1"}}}, local: 7, err: ErrPeerURLExists},
	} {
		t.Run(tt.name, func(t *testing.T) {
			store := fakeEngine{}
			c := New(Options{LocalID: tt.local, ClusterID: 9})
			for _, m := range tt.stored {
				must(c.Apply(store, add(m)))
			}
			before := store.dump()
			changes, err := c.LeaveAlone(tt.pending, []string{"http://x:1"})
			if !errors.Is(err, tt.err) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			var got []string
			for _, cc := range changes {
				got = append(got, fmt.Sprintf("%s %d", cc.GetType(), cc.GetNodeId()))
			}
			if s := strings.Join(got, ", "); s != tt.want {
				t.Errorf("got  %s\nwant %s", s, tt.want)
			}
			if store.dump() != before || len(c.Members()) != len(tt.stored) {
				t.Error("the membership has changed already")
			}
			if err != nil {
				return
			}
			for _, cc := range tt.pending {
				c.Apply(store, cc) // some are refused
			}
			for _, cc := range changes {
				if _, err := c.Apply(store, cc); err != nil {
					t.Errorf("apply %s: %v", cc, err)
				}
			}
			if ms := c.Members(); len(ms) != 1 || ms[0].ID != tt.local || ms[0].IsLearner {
				t.Errorf("members at the end: %v", ms)
			}
		})
	}
}

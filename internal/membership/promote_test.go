package membership

import (
	"errors"
	"testing"

	"quorate/internal/ids"
)

// A promotion may enter the log only if the started members form a quorum of the voters after it.
// This is checked at each proposal, so a change that was valid before may be rejected now.
func TestMayPromote(t *testing.T) {
	member := func(id ids.Member, name string, learner bool) Member {
		return Member{ID: id, Name: name, PeerURLs: []string{"http://x"}, IsLearner: learner}
	}
	learner := member(9, "learner", true)
	in, out := func(ids.Member) bool { return true }, func(ids.Member) bool { return false }
	for _, tt := range []struct {
		what    string
		members []Member
		strict  bool
		inSync  func(ids.Member) bool
		want    error
	}{
		{"three started", []Member{member(1, "a", false), member(2, "b", false), member(3, "c", false), learner}, true, in, nil},
		{"one of two started", []Member{member(1, "a", false), member(2, "", false), learner}, true, in, nil},
		{"one of three started", []Member{member(1, "a", false), member(2, "", false), member(3, "", false), learner}, true, in, ErrNotEnoughStarted},
		{"one of three, not strict", []Member{member(1, "a", false), member(2, "", false), member(3, "", false), learner}, false, in, nil},
		{"two of five started", []Member{member(1, "a", false), member(2, "b", false), member(3, "", false), member(4, "", false), member(5, "", false), learner}, true, in, ErrNotEnoughStarted},
		{"not in sync", []Member{member(1, "a", false), learner}, true, out, ErrLearnerNotReady},
		{"not in sync, not strict", []Member{member(1, "a", false), learner}, false, out, ErrLearnerNotReady},
		{"nobody can tell", []Member{member(1, "a", false), learner}, true, nil, nil},
		{"promoted meanwhile", []Member{member(1, "a", false), member(2, "", false), member(9, "learner", false)}, true, out, nil}, // apply rejects it
		{"removed meanwhile", []Member{member(1, "a", false)}, true, out, nil},
	} {
		c := New(Options{LocalID: 1})
		s := *c.st.Load()
		s.members = tt.members
		c.st.Store(&s)
		cc, err := PromoteChange(learner.ID)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.MayPropose(cc, Rules{Strict: tt.strict, Connected: in, Reachable: in, InSync: tt.inSync}); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.what, err, tt.want)
		}
	}
}

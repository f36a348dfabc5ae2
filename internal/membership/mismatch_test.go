package membership

import (
	"slices"
	"strings"
	"testing"
)

func TestExplainMismatch(t *testing.T) {
	same := func(a, b []string) (bool, error) { return slices.Equal(a, b), nil }
	a := Member{ID: 0xa, Name: "a", PeerURLs: []string{"http://a:1"}}
	b := Member{ID: 0xb, PeerURLs: []string{"http://b:1", "http://b:2"}}
	c := Member{ID: 0xc, PeerURLs: []string{"http://c:1"}}
	for _, tt := range []struct {
		name, initial string
		existing      []Member
		want          string
	}{
		// After a second "member add", the lines that the first one printed are outdated.
		{"added twice", "a=http://a:1,b=http://b:1,b=http://b:2", []Member{a, b, c},
			"--initial-cluster leaves out member c at http://c:1, which was added and has not been started; " +
				"the cluster is --initial-cluster=a=http://a:1,b=http://b:1,b=http://b:2,c=http://c:1"},
		{"not added", "a=http://a:1,c=http://c:1", []Member{a},
			"the cluster has no member at http://c:1, which is c in --initial-cluster: it has to be added first (etcdctl member add c --peer-urls=http://c:1); " +
				"the cluster is --initial-cluster=a=http://a:1"},
		{"other URL", "x=http://x:1,c=http://c:1", []Member{a, c},
			"the cluster has no member at http://x:1, which is x in --initial-cluster: it has to be added first (etcdctl member add x --peer-urls=http://x:1); " +
				"--initial-cluster leaves out member a at http://a:1, with the name a; the cluster is --initial-cluster=a=http://a:1,c=http://c:1"},
		{"equal", "other=http://a:1", []Member{a}, ""},
	} {
		initial, err := ParseInitialCluster(tt.initial)
		if err != nil {
			t.Fatal(err)
		}
		if got := ExplainMismatch(initial, tt.existing, same); got != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.name, got, tt.want)
		}
	}
}

func TestNoLocalName(t *testing.T) {
	initial, err := ParseInitialCluster("a=http://a:1,=http://b:1,c=http://c:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckInitial(initial, "b"); err == nil || !strings.Contains(err.Error(), `couldn't find local name "b" in the initial cluster configuration: in front of =http://b:1 the name is missing`) {
		t.Errorf("%v", err)
	}
}

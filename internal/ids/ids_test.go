package ids

import (
	"encoding/json"
	"fmt"
	"math"
	"testing"
)

// The texts are those of etcd's types.ID, and JSON has the number.
func TestFormat(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 10: "a", 0x8e9e05c52164694d: "8e9e05c52164694d", math.MaxUint64: "ffffffffffffffff"} {
		for _, x := range []fmt.Stringer{Member(n), Cluster(n)} {
			if x.String() != want {
				t.Errorf("%T(%d) is printed as %s, want %s", x, n, x, want)
			}
			if b, err := json.Marshal(x); err != nil || string(b) != fmt.Sprint(n) {
				t.Errorf("%T(%d) as JSON: %s, %v", x, n, b, err)
			}
		}
		if m, err := ParseMember(want); err != nil || m != Member(n) {
			t.Errorf("member of %q: %d, %v", want, m, err)
		}
		if c, err := ParseCluster(want); err != nil || c != Cluster(n) {
			t.Errorf("cluster of %q: %d, %v", want, c, err)
		}
	}
	for _, bad := range []string{"", "x", "-1", "10000000000000000"} {
		if _, err := ParseMember(bad); err == nil {
			t.Errorf("%q is taken for a member", bad)
		}
		if _, err := ParseCluster(bad); err == nil {
			t.Errorf("%q is taken for a cluster", bad)
		}
	}
}

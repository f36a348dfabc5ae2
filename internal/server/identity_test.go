package server

import "testing"

// A member that is to join a cluster and knows no other member says what to do.
func TestNobodyToAsk(t *testing.T) {
	n := prepareCluster(t, 1, calm).nodes[0]
	n.existing = true
	const want = "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs (" + nobodyToAsk + ")"
	if err := n.start(); err == nil || err.Error() != want {
		t.Errorf("ended with %v, want %s", err, want)
	}
}

package metrics

// Values of the label "of" of DigestDiffers.
const (
	DifferState = "state" // records that must be equal on all members
	DifferV2    = "v2"    // the tree of the v2 API, which an etcd member may have left different
)

var (
	// DigestDiffers is 1 for each member that, according to the leader, has written other
	// records for the same entries than the majority or than the leader.
	DigestDiffers = newGaugeVec("quorate_digest_differs", "1 for a member that wrote other records for the same log entries, as the leader sees it", "member", "of")
	// DigestComparedIndex is the index up to which the leader has found all members that
	// report a digest to be equal.
	DigestComparedIndex = newGauge("quorate_digest_compared_index", "Index of the log up to which all members that answer were found equal by this leader")
)

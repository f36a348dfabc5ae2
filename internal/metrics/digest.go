package metrics

// What DigestDiffers tells of.
const (
	DifferState = "state" // records that all members of the cluster must hold alike
	DifferV2    = "v2"    // the tree of the v2 API, which a member of etcd may have kept from another
)

var (
	// DigestDiffers is 1 for each member that the leader has found to write other records
	// for the same entries than the majority, or than itself.
	DigestDiffers = newGaugeVec("quorate_digest_differs", "1 for a member that wrote other records for the same log entries, as the leader sees it", "member", "of")
	// DigestComparedIndex is up to where the leader has found the members equal that tell
	// a digest.
	DigestComparedIndex = newGauge("quorate_digest_compared_index", "Index of the log up to which all members that answer were found equal by this leader")
)

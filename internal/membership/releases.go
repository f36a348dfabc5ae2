package membership

import "quorate/internal/build"

// Own is build.EtcdVersion, the version of this server.
var Own = func() Version {
	v, err := ParseVersion(build.EtcdVersion)
	if err != nil {
		panic(err) // a constant
	}
	return v
}()

// The releases of etcd that share clusters and data directories with Quorate.
var (
	V35 = Version{Major: 3, Minor: 5}
	V36 = Version{Major: 3, Minor: 6}
	V37 = Version{Major: 3, Minor: 7}
)

// Differences between them, by the release that introduced each.
var (
	// MinClusterVersion is the version of a cluster whose members are not all known
	// yet, and the oldest version that a member can join.
	MinClusterVersion = Version{Major: 3}
	// FirstTakenOver is the oldest release whose data directories can be imported and
	// exported.
	FirstTakenOver = V35
	// FirstWithoutV2 stores no data of the v2 API and proposes no v2 requests. Earlier
	// releases do, and need such requests in the log unchanged.
	FirstWithoutV2 = V36
	// FirstStorageVersion records in the database which releases may open it.
	FirstStorageVersion = V36
	// FirstCheckpoints stores the remaining TTL of leases in the database by default.
	FirstCheckpoints = V36
	// FirstEqualReads is the first release in which all members treat a transaction that
	// writes and reads alike.
	FirstEqualReads = V37
	// FirstPureV3 cannot decode any v2 request; 3.6 decodes those in which members describe themselves.
	FirstPureV3 = V37
)

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

// The releases of etcd that share clusters and data directories with us.
var (
	V35 = Version{Major: 3, Minor: 5}
	V36 = Version{Major: 3, Minor: 6}
	V37 = Version{Major: 3, Minor: 7}
)

// What differs between them, by the release with which it began.
var (
	// MinClusterVersion is the version of a cluster whose members are not all
	// known yet, and the oldest one that a member can join.
	MinClusterVersion = Version{Major: 3}
	// FirstTakenOver is the oldest release whose data directories are understood, and
	// for which a directory can be made.
	FirstTakenOver = V35
	// FirstWithoutV2 keeps no data of the v2 API and proposes no v2 requests. Those before
	// do, and must find such a request in the log as it was made.
	FirstWithoutV2 = V36
	// FirstStorageVersion writes into a database which releases may open it.
	FirstStorageVersion = V36
	// FirstCheckpoints keeps what is left of leases in the database by itself.
	FirstCheckpoints = V36
	// FirstEqualReads is that from which all members decide alike about a transaction
	// that writes and reads.
	FirstEqualReads = V37
	// FirstPureV3 cannot read a v2 request at all; 3.6 reads those of members about themselves.
	FirstPureV3 = V37
)

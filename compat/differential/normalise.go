package differential

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// volatile lists every field that two correct servers may answer differently, and what is still compared of it.
// Everything not named here is compared as it is.
var volatile = map[protoreflect.FullName]func(protoreflect.Value) string{
	// Elections and internal entries are not part of the contract.
	"etcdserverpb.ResponseHeader.raft_term":        positive,
	"etcdserverpb.StatusResponse.raftTerm":         positive,
	"etcdserverpb.StatusResponse.raftIndex":        positive,
	"etcdserverpb.StatusResponse.raftAppliedIndex": positive,
	// Sizes of files belong to the storage engine.
	"etcdserverpb.StatusResponse.dbSize":      positive,
	"etcdserverpb.StatusResponse.dbSizeInUse": positive,
	// A hash over the whole database file differs even between members of one cluster.
	"etcdserverpb.HashResponse.hash": positive,
	// Tokens of authentication are random.
	"etcdserverpb.AuthenticateResponse.token": nonEmpty,
}

// Beyond single fields: identities that a server draws at random (an added member, a lease
// granted without an id) are replaced by the name that the script gives them; the remaining
// seconds of a lease are compared with a tolerance (leaseAnswer); the order of keys in
// LeaseTimeToLive and of alarms is unspecified, so they are sorted (leaseAnswer, alarm); watch responses are
// concatenated per watcher, because how events are grouped depends on timing, and the header
// revision is only compared on created and cancelled responses (watchStream.answer); chunks of
// RangeStream and Snapshot are concatenated (rangeStream, snapshot).

// oneBlank undoes what the protobuf library does to texts to keep callers from relying on them: whether it
// writes one space, two, or a non-breaking one depends on the bytes of the binary.
func oneBlank(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(s, "\u00a0", " "), "  ", " ")
}

func positive(v protoreflect.Value) string {
	switch n := v.Interface().(type) {
	case uint64:
		return sign(n > 0)
	case int64:
		return sign(n > 0)
	case uint32:
		return sign(n > 0)
	}
	return fmt.Sprintf("(unexpected type %T)", v.Interface())
}

func sign(ok bool) string {
	if ok {
		return "(positive)"
	}
	return "(not positive)"
}

func nonEmpty(v protoreflect.Value) string {
	if v.String() != "" {
		return "(not empty)"
	}
	return "(empty)"
}

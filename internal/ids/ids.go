// Package ids has a type for each kind of number that names something in a cluster, so
// that the compiler refuses one where another is meant.
//
// In: plain numbers, where they enter: decoded messages, records and texts. Out: the same
// numbers with a type, which prints as etcd prints it. Always true: a value converts to and
// from its plain number without loss; nothing here allocates unless it formats.
package ids

import "strconv"

// Member is the id of a member.
type Member uint64

// NoMember is the id of no member, as raft.None.
const NoMember Member = 0

// String returns the id as etcd writes it in headers, paths and logs: lower-case hex
// without padding.
func (m Member) String() string { return strconv.FormatUint(uint64(m), 16) }

// ParseMember parses what String wrote.
func ParseMember(s string) (Member, error) {
	n, err := strconv.ParseUint(s, 16, 64)
	return Member(n), err
}

// Cluster is the id of a cluster. 0 means that it is not known.
type Cluster uint64

// String returns the id as etcd writes it, like that of a member.
func (c Cluster) String() string { return strconv.FormatUint(uint64(c), 16) }

// ParseCluster parses what String wrote.
func ParseCluster(s string) (Cluster, error) {
	n, err := strconv.ParseUint(s, 16, 64)
	return Cluster(n), err
}

// Revision is a main revision of the store: the number of the transaction that wrote a record.
type Revision int64

// Term is a term of raft.
type Term uint64

// Index is the index of an entry of the raft log.
type Index uint64

// Package membership holds the members of the cluster.
//
// In: committed configuration changes, attributes and versions, from the apply
// goroutine, together with the batch that makes them durable; at start, the
// engine or the --initial-cluster flag. Out: the members, sorted by id, their
// JSON, the entries of a new cluster, and decisions (is this change allowed, what
// is the cluster version) as pure functions.
// Always true: two members that applied the same entries hold the same
// membership, byte for byte; an id that was removed never comes back; readers
// see a consistent state and never wait for the writer.
package membership

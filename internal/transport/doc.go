// Package transport carries raft messages and snapshots between members in
// etcd's peer protocol.
//
// In: messages from the raft loop (Send), snapshots with their database
// (SendSnapshot), the peers of the membership, and HTTP/1.1 requests of other
// members. Out: messages, snapshots and reports, by way of Host.
// Always true: Send never blocks; every queue is bounded and a message that
// does not fit is dropped and reported as unreachable, which raft tolerates;
// nothing that a peer sends can make this member panic or hold memory beyond
// what it has sent.
//
// Each member dials two GET requests to every peer and reads messages from the
// endless answers, so messages from A to B travel on connections that B opened:
// one stream for MsgApp, one for the rest. Without a stream a message goes by
// POST /raft, a snapshot always by POST /raft/snapshot. Requests and their answers are made
// and read in peerapi, what flows in between here. The bytes are described
// in docs/format/peer.md.
package transport

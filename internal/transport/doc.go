// Package transport carries raft messages and snapshots between members in
// etcd's peer protocol.
//
// In: messages from the raft loop (Send), snapshots with their database (SendSnapshot),
// the peers of the membership, and HTTP/1.1 requests of other members. Out: messages,
// snapshots and reports, through Host. Always true: Send never blocks; every queue is
// bounded, and a message that does not fit is dropped and its receiver reported as
// unreachable, which raft tolerates; nothing that a peer sends can make this member panic
// or allocate more memory than the peer has sent.
//
// Each member sends two GET requests to every peer and reads messages from the endless
// responses, so messages from A to B use connections that B opened: one stream for MsgApp,
// one for all other types. Without a stream, a message is sent with POST /raft; a snapshot
// is always sent with POST /raft/snapshot. Package peerapi encodes and decodes requests and
// responses, this package what flows in between. docs/format/peer.md describes the bytes.
package transport

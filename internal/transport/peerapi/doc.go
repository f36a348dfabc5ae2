// Package peerapi is what members ask each other over HTTP, both halves of each
// question beside each other.
//
// In: on the one side what the member has to say (Backend, LeaseServer), on the other
// calls of Client and an http.Client to make them with. Out: the handler of the peer
// URLs, and answers as values and errors of the packages that they are about. Always
// true: a path, a header, a status and a text of the protocol is written down once,
// beside the type that both halves encode and decode; paths, bodies, status codes and
// headers are those of etcd, of which 3.5 to 3.7 are on the other side; what a peer sends
// is bounded, and read to its end or refused.
//
// raft.go and sender.go are what goes before and around raft's messages, which package
// transport carries. Any other question is a file: its path, its body, the server's half as a method of handlers,
// the client's as one of Client. NewHandler lists the paths. The bytes are described in
// docs/format/peer.md.
package peerapi

// Package peerapi is the HTTP API between members, with the server's and the client's half of each query next to
// each other.
//
// In: on the server side the member's state (Backend, LeaseServer), on the client side calls of Client and an
// http.Client. Out: the handler of the peer URLs, and responses as values and errors of the packages
// concerned. Always true: each path, header, status and text of the protocol is defined once, next to the type
// that both halves encode and decode; paths, bodies, status codes and headers are compatible with etcd 3.5 to
// 3.7; what a peer sends is bounded, and read completely or rejected.
//
// raft.go and sender.go hold the requests and headers around raft's messages, which package transport carries.
// Every other query has a file: its path, its body, the server's half as a method of handlers, the client's as a
// method of Client. NewHandler lists the paths. docs/format/peer.md describes the bytes.
package peerapi

// Package rpc is the client edge: etcd's gRPC services over one member.
//
// In: gRPC calls from clients. Out: calls to a Backend, which the server
// implements, and answers in etcd's wire format with the codes and texts of
// etcd's errors. Always true: a request that reaches the Backend is valid, and
// every answer names the member that gave it. The hot messages are decoded and
// encoded by hand; what the store keeps encoded goes to the wire as it is.
package rpc

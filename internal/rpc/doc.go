// Package rpc serves etcd's gRPC services for one member.
//
// In: gRPC calls from clients. Out: calls to a Backend, which the server implements,
// and replies in etcd's wire format with the codes and texts of etcd's errors. Always true:
// a request that reaches the Backend is valid, and every reply names the member that sent
// it. Hot messages are decoded and encoded by hand; records that are stored encoded are
// sent as they are.
package rpc

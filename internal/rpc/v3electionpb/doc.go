// Package v3electionpb holds the messages, the stubs and the JSON routes of
// etcd's election service.
//
// In: v3election.proto and gateway.yaml, from which scripts/generate makes the
// code. Out: types for package rpc and routes for package gateway. Always true:
// names and numbers on the wire are those of etcd.
package v3electionpb

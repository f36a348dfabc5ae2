// Package v3lockpb holds the messages, the stubs and the JSON routes of etcd's
// lock service.
//
// In: v3lock.proto and gateway.yaml, from which scripts/generate makes the code.
// Out: types for package rpc and routes for package gateway. Always true: names
// and numbers on the wire are those of etcd.
package v3lockpb

// Package h2 has third-party suites judge our HTTP/2 server.
//
// In: the server as a library under h2spec and gRPC's interop cases, and a member under clients of other stacks
// (clients/install brings them). Out: the cases that fail. Invariant: whatever grpc-go's server passes, ours
// passes.
package h2

// Package h2 has others judge the HTTP/2 server of this tree.
//
// In: the server as a library under h2spec and gRPC's interop cases, and a member under clients of
// other stacks (clients/install brings them). Out: what fails.
// Always true: whatever grpc-go's server passes, ours passes.
package h2

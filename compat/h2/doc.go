// Package h2 has others judge the HTTP/2 server of this tree.
//
// In: the server as a library, and the suites h2spec and gRPC's interop cases. Out: what fails.
// Always true: whatever grpc-go's server passes, ours passes.
package h2

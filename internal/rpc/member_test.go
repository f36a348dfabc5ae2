package rpc

import "quorate/internal/server"

// A member is what the edge is for.
var _ Backend = (*server.Member)(nil)

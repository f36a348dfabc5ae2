package rpc

import "quorate/internal/server"

// A member's services are what the edge is for.
func _(m *server.Member) Backend {
	return Backend{Member: m, KV: m.KV, Watches: m.Watches, Leases: m.Leases, Members: m.Members,
		Maintenance: m.Maintenance, Accounts: m.Accounts, Access: m.Access}
}

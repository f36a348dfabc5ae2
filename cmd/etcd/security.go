package main

import (
	"go.uber.org/zap"

	"quorate/internal/certs"
	"quorate/internal/config"
	"quorate/internal/listen"
)

// security is the trust of this member on each kind of connection.
type security struct{ certs.Member }

func openSecurity(cfg *config.Config) (security, error) {
	m, err := certs.OpenMember(cfg.Security())
	return security{m}, err
}

// peerTLS is the configuration of peer listeners: HTTP/1.1 alone, and the address must
// match the certificate.
func (s security) peerTLS(lg *zap.Logger) *listen.TLS {
	return &listen.TLS{Config: s.Peer.Server("http/1.1"), Check: s.Peer.CheckAddress, Refused: listen.LogRefused(lg, "rejected connection on peer endpoint")}
}

// clientTLS is the configuration of client listeners for the given protocols.
func (s security) clientTLS(lg *zap.Logger, protocols ...string) *listen.TLS {
	return &listen.TLS{Config: s.Client.Server(protocols...), Refused: listen.LogRefused(lg, "rejected connection on client endpoint")}
}

// metricsTLS is clientTLS, but the address must match the certificate, as in etcd.
func (s security) metricsTLS(lg *zap.Logger) *listen.TLS {
	t := s.clientTLS(lg, "h2", "http/1.1")
	t.Check = s.Client.CheckAddress
	return t
}

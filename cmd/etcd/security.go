package main

import (
	"crypto/tls"
	"net/url"
	"path/filepath"
	"slices"

	"go.uber.org/zap"

	"quorate/internal/certs"
	"quorate/internal/config"
	"quorate/internal/listen"
)

// security is the trust of this member on each kind of connection.
type security struct {
	peer, client *certs.Store // nil: not configured, or no URL uses it
}

// openSecurity reads the certificates, and generates those that were asked for.
func openSecurity(cfg *config.Config) (security, error) {
	var s security
	peer, generated, err := selfSign(cfg, cfg.PeerTLS, "peer", cfg.ListenPeerURLs)
	if err != nil {
		return s, err
	}
	if !peer.Empty() || peer.TrustedCAFile != "" || peer.CRLFile != "" {
		o := cfg.Certs(peer, "peer-")
		o.SkipServerVerify = generated
		if s.peer, err = certs.Open(o); err != nil {
			return s, err
		}
	}
	if !peer.Empty() {
		cfg.Log().Info("starting with peer TLS", zap.Stringer("tls-info", &peer), zap.Strings("cipher-suites", cfg.CipherSuites))
	}
	warnPlain(cfg, peer, cfg.ListenPeerURLs, "peer")

	clientURLs := slices.Concat(cfg.ListenClientURLs, cfg.ListenClientHTTPURLs)
	client, generated, err := selfSign(cfg, cfg.ClientTLS, "client", clientURLs)
	if err != nil {
		return s, err
	}
	warnPlain(cfg, client, clientURLs, "client")
	if !client.Empty() {
		cfg.Log().Info("starting with client TLS", zap.Stringer("tls-info", &client), zap.Strings("cipher-suites", cfg.CipherSuites))
	}
	secure := slices.ContainsFunc(clientURLs, config.IsSecure)
	if !secure && !slices.ContainsFunc(cfg.ListenMetricsURLs, config.IsSecure) {
		return s, nil // files that no URL uses may be invalid
	}
	o := cfg.Certs(client, "")
	o.SkipServerVerify = generated
	if s.client, err = certs.Open(o); err != nil && secure {
		err = &startError{"listener failed", err}
	}
	return s, err
}

// selfSign replaces t by a generated certificate if t asks for one. Like etcd it then drops
// all other settings in t, and logs that.
func selfSign(cfg *config.Config, t certs.Files, kind string, urls []url.URL) (_ certs.Files, generated bool, err error) {
	if !t.AutoTLS {
		return t, false, nil
	}
	lg := cfg.Log()
	if !t.Empty() {
		lg.Warn("ignoring " + kind + " auto TLS since certs given")
		return t, false, nil
	}
	hosts := make([]string, len(urls))
	for i, u := range urls {
		hosts[i] = u.Host
	}
	cert, key, err := certs.SelfSigned(filepath.Join(cfg.Member.DataDir, "fixtures", kind), hosts, cfg.SelfSignedCertValidity, lg)
	if err != nil {
		return t, false, &startError{"failed to get " + kind + " self-signed certs", err}
	}
	if t.ClientCertAuth || t.TrustedCAFile != "" || t.CRLFile != "" || len(t.AllowedCNs) > 0 || len(t.AllowedHostnames) > 0 {
		lg.Warn("generated certificates replace all other TLS settings: no client certificate is requested", zap.String("traffic", kind))
	}
	return certs.Files{CertFile: cert, KeyFile: key, ClientCertFile: cert, ClientKeyFile: key}, true, nil
}

// warnPlain warns about URLs without TLS where TLS is configured.
func warnPlain(cfg *config.Config, t certs.Files, urls []url.URL, kind string) {
	scheme, auth := "http or unix", "--client-cert-auth"
	if kind == "peer" {
		scheme, auth = "HTTP", "--peer-client-cert-auth"
	}
	for _, u := range urls {
		if config.IsSecure(u) {
			continue
		}
		if !t.Empty() {
			cfg.Log().Warn("scheme is "+scheme+" while key and cert files are present; ignoring key and cert files", zap.String(kind+"-url", u.String()))
		}
		if t.ClientCertAuth {
			cfg.Log().Warn("scheme is "+scheme+" while "+auth+" is enabled; ignoring client cert auth for this URL", zap.String(kind+"-url", u.String()))
		}
	}
}

// dialPeers returns the TLS configuration for https peers; nil is Go's default.
func (s security) dialPeers() func() *tls.Config {
	if s.peer == nil {
		return nil
	}
	return s.peer.Client
}

// dialClients returns the TLS configuration for the client URLs of other members; nil is
// Go's default.
func (s security) dialClients() *tls.Config {
	if s.client == nil {
		return nil
	}
	return s.client.Client()
}

// peerTLS is the configuration of peer listeners: HTTP/1.1 alone, and the address must
// match the certificate.
func (s security) peerTLS(lg *zap.Logger) *listen.TLS {
	return &listen.TLS{Config: s.peer.Server("http/1.1"), Check: s.peer.CheckAddress, Refused: listen.LogRefused(lg, "rejected connection on peer endpoint")}
}

// clientTLS is the configuration of client listeners for the given protocols.
func (s security) clientTLS(lg *zap.Logger, protocols ...string) *listen.TLS {
	return &listen.TLS{Config: s.client.Server(protocols...), Refused: listen.LogRefused(lg, "rejected connection on client endpoint")}
}

// metricsTLS is clientTLS, but the address must match the certificate, as in etcd.
func (s security) metricsTLS(lg *zap.Logger) *listen.TLS {
	t := s.clientTLS(lg, "h2", "http/1.1")
	t.Check = s.client.CheckAddress
	return t
}

package certs

import (
	"crypto/tls"
	"net/url"
	"path/filepath"
	"slices"

	"go.uber.org/zap"
)

// Member is the trust of a member on its two kinds of connection.
type Member struct {
	Peer, Client *Store // nil: not configured, or no URL uses it
}

// MemberOptions are the files of a member and the URLs that it listens on.
type MemberOptions struct {
	Peer, Client Files
	Protocols    Protocols

	PeerURLs, ClientURLs []url.URL
	Metrics              []url.URL // they use Client
	Generated            string    // directory for generated certificates
	Validity             uint      // years of generated certificates
	Logger               *zap.Logger
}

// StartError is a failure that etcd reports with a message of its own.
type StartError struct {
	Message string
	Err     error
}

func (e *StartError) Error() string { return e.Err.Error() }
func (e *StartError) Unwrap() error { return e.Err }

// OpenMember reads the certificates, and generates those that were asked for.
func OpenMember(o MemberOptions) (Member, error) {
	var m Member
	peer, generated, err := o.selfSign(o.Peer, "peer", o.PeerURLs)
	if err != nil {
		return m, err
	}
	if !peer.Empty() || peer.TrustedCAFile != "" || peer.CRLFile != "" {
		opts := o.Protocols.Options(peer, "peer-", o.Logger)
		opts.SkipServerVerify = generated
		if m.Peer, err = Open(opts); err != nil {
			return m, err
		}
	}
	if !peer.Empty() {
		o.Logger.Info("starting with peer TLS", zap.Stringer("tls-info", &peer), zap.Strings("cipher-suites", o.Protocols.CipherSuites))
	}
	o.warnPlain(peer, o.PeerURLs, "peer")

	client, generated, err := o.selfSign(o.Client, "client", o.ClientURLs)
	if err != nil {
		return m, err
	}
	o.warnPlain(client, o.ClientURLs, "client")
	if !client.Empty() {
		o.Logger.Info("starting with client TLS", zap.Stringer("tls-info", &client), zap.Strings("cipher-suites", o.Protocols.CipherSuites))
	}
	secure := slices.ContainsFunc(o.ClientURLs, asksForTLS)
	if !secure && !slices.ContainsFunc(o.Metrics, asksForTLS) {
		return m, nil // files that no URL uses may be invalid
	}
	opts := o.Protocols.Options(client, "", o.Logger)
	opts.SkipServerVerify = generated
	if m.Client, err = Open(opts); err != nil && secure {
		err = &StartError{"listener failed", err}
	}
	return m, err
}

func asksForTLS(u url.URL) bool { return u.Scheme == "https" || u.Scheme == "unixs" }

// selfSign replaces t by a generated certificate if t asks for one. Like etcd it then drops
// all other settings in t, and logs that.
func (o *MemberOptions) selfSign(t Files, kind string, urls []url.URL) (_ Files, generated bool, err error) {
	if !t.AutoTLS {
		return t, false, nil
	}
	if !t.Empty() {
		o.Logger.Warn("ignoring " + kind + " auto TLS since certs given")
		return t, false, nil
	}
	hosts := make([]string, len(urls))
	for i, u := range urls {
		hosts[i] = u.Host
	}
	cert, key, err := SelfSigned(filepath.Join(o.Generated, kind), hosts, o.Validity, o.Logger)
	if err != nil {
		return t, false, &StartError{"failed to get " + kind + " self-signed certs", err}
	}
	if t.ClientCertAuth || t.TrustedCAFile != "" || t.CRLFile != "" || len(t.AllowedCNs) > 0 || len(t.AllowedHostnames) > 0 {
		o.Logger.Warn("generated certificates replace all other TLS settings: no client certificate is requested", zap.String("traffic", kind))
	}
	return Files{CertFile: cert, KeyFile: key, ClientCertFile: cert, ClientKeyFile: key}, true, nil
}

// warnPlain warns about URLs without TLS where TLS is configured.
func (o *MemberOptions) warnPlain(t Files, urls []url.URL, kind string) {
	scheme, auth := "http or unix", "--client-cert-auth"
	if kind == "peer" {
		scheme, auth = "HTTP", "--peer-client-cert-auth"
	}
	for _, u := range urls {
		if asksForTLS(u) {
			continue
		}
		if !t.Empty() {
			o.Logger.Warn("scheme is "+scheme+" while key and cert files are present; ignoring key and cert files", zap.String(kind+"-url", u.String()))
		}
		if t.ClientCertAuth {
			o.Logger.Warn("scheme is "+scheme+" while "+auth+" is enabled; ignoring client cert auth for this URL", zap.String(kind+"-url", u.String()))
		}
	}
}

// DialPeers returns the TLS configuration for https peers; nil is Go's default.
func (m Member) DialPeers() func() *tls.Config {
	if m.Peer == nil {
		return nil
	}
	return m.Peer.Client
}

// DialClients returns the TLS configuration for the client URLs of other members; nil is
// Go's default.
func (m Member) DialClients() *tls.Config {
	if m.Client == nil {
		return nil
	}
	return m.Client.Client()
}

package config

import (
	"fmt"
	"net/url"
	"slices"

	"quorate/internal/listen"
)

// IsSecure reports whether the scheme of u asks for TLS.
func IsSecure(u url.URL) bool { return isSecure(u) }

// security rejects URLs that ask for TLS without a certificate, and unknown cipher
// suites.
func (c validator) security() error {
	if err := c.Protocols.CheckSuites(); err != nil {
		return err
	}
	noCert := c.ClientTLS.Empty() && !c.ClientTLS.AutoTLS
	for _, u := range slices.Concat(c.ListenClientURLs, c.ListenClientHTTPURLs) {
		if isSecure(u) && noCert {
			return fmt.Errorf("TLS key/cert (--cert-file, --key-file) must be provided for client url %s with HTTPS scheme, or --auto-tls", u.String())
		}
	}
	for _, u := range c.ListenClientHTTPURLs {
		same := func(v url.URL) bool {
			_, a := listen.Address(u)
			_, b := listen.Address(v)
			return a == b
		}
		if slices.ContainsFunc(c.ListenClientURLs, same) {
			return fmt.Errorf("cannot bind both --listen-client-urls and --listen-client-http-urls on the same url %s", u.String())
		}
	}
	for _, u := range c.ListenMetricsURLs {
		if isSecure(u) && noCert {
			return fmt.Errorf("client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url, or --auto-tls: --listen-metrics-urls=%s", u.String())
		}
	}
	return nil
}

package config

import (
	"fmt"
	"net"
	"net/url"

	"go.etcd.io/etcd/client/pkg/v3/types"
)

// ParseURLs parses, validates and sorts URLs: scheme http or https with host and port and
// no path, or unix or unixs.
func ParseURLs(texts []string) ([]url.URL, error) { return types.NewURLs(texts) }

// mustURLs parses a constant of this package.
func mustURLs(text string) []url.URL {
	urls, err := ParseURLs([]string{text})
	if err != nil {
		panic(err)
	}
	return urls
}

// URLStrings returns the URLs as strings, in the same order.
func URLStrings(urls []url.URL) []string {
	texts := make([]string, len(urls))
	for i := range urls {
		texts[i] = urls[i].String()
	}
	return texts
}

// isUnix reports whether u names a Unix socket.
func isUnix(u url.URL) bool { return u.Scheme == "unix" || u.Scheme == "unixs" }

// isSecure reports whether the scheme of u asks for TLS.
func isSecure(u url.URL) bool { return u.Scheme == "https" || u.Scheme == "unixs" }

// checkBind requires an IP address in URLs to listen on: a host name could resolve to an
// unintended interface.
func checkBind(urls []url.URL) error {
	for _, u := range urls {
		if isUnix(u) {
			continue
		}
		host, _, err := net.SplitHostPort(u.Host)
		if err != nil {
			return err
		}
		if host != "localhost" && net.ParseIP(host) == nil {
			return fmt.Errorf("expected IP in URL for binding (%s)", u.String())
		}
	}
	return nil
}

// checkHost requires a host in URLs that others dial.
func checkHost(urls []url.URL) error {
	for _, u := range urls {
		if isUnix(u) {
			continue
		}
		host, _, err := net.SplitHostPort(u.Host)
		if err != nil {
			return err
		}
		if host == "" {
			return fmt.Errorf("unexpected empty host (%s)", u.String())
		}
	}
	return nil
}

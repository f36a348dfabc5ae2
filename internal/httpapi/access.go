package httpapi

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"

	"go.uber.org/zap"
)

// accessControl wraps the client handlers. It rejects host names that are not allowed, so
// that a web page cannot reach the member through a name it controls, and tells browsers
// which origins may call.
type accessControl struct {
	next  http.Handler
	lg    *zap.Logger
	cors  []string
	hosts []string
	named func() bool // see Options.RefuseNamed
}

func newAccessControl(next http.Handler, o Options) http.Handler {
	return &accessControl{next: next, lg: o.Logger, cors: o.CORS, hosts: o.HostWhitelist, named: o.RefuseNamed}
}

func (a *accessControl) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if rest, ok := strings.CutPrefix(r.URL.Path, "/v3beta/"); ok {
		r.URL.Path = "/v3/" + rest
	}
	if host := hostname(r); r.TLS == nil && !listed(a.hosts, host) {
		a.lg.Warn("rejecting HTTP request to prevent DNS rebinding attacks", zap.String("host", host))
		http.Error(w, misdirected(host), http.StatusMisdirectedRequest)
		return
	}
	if r.TLS != nil && a.named != nil && strings.HasPrefix(r.URL.Path, "/v3/") && hasName(r.TLS) && a.named() {
		http.Error(w, "CommonName of client sending a request against gateway will be ignored and not used as expected", http.StatusBadRequest)
		return
	}
	if !crossOrigin(w, r, a.cors) {
		a.next.ServeHTTP(w, r)
	}
}

// crossOrigin adds the CORS headers. done means that the request has been answered.
func crossOrigin(w http.ResponseWriter, r *http.Request, cors []string) (done bool) {
	if origin := r.Header.Get("Origin"); listed(cors, "*") {
		allowOrigin(w, "*")
	} else if listed(cors, origin) {
		allowOrigin(w, origin)
	}
	if r.Method == http.MethodOptions {
		w.WriteHeader(http.StatusOK)
		return true
	}
	return false
}

// listed reports whether s is allowed. An empty list, or one with "*", allows everything.
func listed(list []string, s string) bool {
	return len(list) == 0 || slices.Contains(list, "*") || slices.Contains(list, s)
}

// hasName reports whether the client's certificate has a common name.
func hasName(state *tls.ConnectionState) bool {
	for _, chain := range state.VerifiedChains {
		if len(chain) > 0 && chain[0].Subject.CommonName != "" {
			return true
		}
	}
	return false
}

func hostname(r *http.Request) string {
	if host, _, err := net.SplitHostPort(r.Host); err == nil {
		return host
	}
	return r.Host
}

func allowOrigin(w http.ResponseWriter, origin string) {
	h := w.Header()
	h.Add("Access-Control-Allow-Methods", "POST, GET, OPTIONS, PUT, DELETE")
	h.Add("Access-Control-Allow-Origin", origin)
	h.Add("Access-Control-Allow-Headers", "accept, content-type, authorization")
}

func misdirected(host string) string {
	return fmt.Sprintf(`
The member got this request under a host name that it does not answer to.

Either connect over TLS, or allow the name:

  etcd --host-whitelist %q

The check protects against DNS rebinding (CVE-2018-5702).
`, host)
}

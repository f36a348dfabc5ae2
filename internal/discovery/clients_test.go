package discovery

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/etcd/client/pkg/v3/srv"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"quorate/internal/certs"
)

// tlsServer accepts connections with a certificate for the names, and requires a client
// certificate that no client can have. It returns its address and the file with the
// certificate.
func tlsServer(t *testing.T, demand bool, maxVersion uint16, names ...string) (addr, ca string) {
	t.Helper()
	for i := range names {
		names[i] += ":0"
	}
	cert, key, err := certs.SelfSigned(filepath.Join(t.TempDir(), "tls"), names, 1, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{pair}, MaxVersion: maxVersion, NextProtos: []string{"h2"}}
	if demand {
		config.ClientAuth, config.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				c.(*tls.Conn).Handshake()
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().String(), cert
}

// records is the answer of a DNS server about client endpoints.
func records(urls ...string) func(service, domain, suffix string) (*srv.SRVClients, error) {
	return func(service, domain, suffix string) (*srv.SRVClients, error) {
		if service != "etcd-client" || domain != "example.com" || suffix != "blue" {
			return nil, fmt.Errorf("asked for %s, %s, %s", service, domain, suffix)
		}
		out := &srv.SRVClients{Endpoints: urls}
		for i := range urls {
			out.SRVs = append(out.SRVs, &net.SRV{Target: urls[i], Priority: uint16(i), Weight: 7})
		}
		return out, nil
	}
}

func TestClients(t *testing.T) {
	good, ca := tlsServer(t, false, 0, "example.com")
	strict12, ca12 := tlsServer(t, true, tls.VersionTLS12, "example.com")
	strict13, ca13 := tlsServer(t, true, tls.VersionTLS13, "example.com")
	other, caOther := tlsServer(t, false, 0, "127.0.0.1", "example.org")
	unknown, _ := tlsServer(t, false, 0, "example.com")
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := plain.Addr().String()
	plain.Close()

	all := filepath.Join(t.TempDir(), "ca.pem")
	for _, file := range []string{ca, ca12, ca13, caOther} {
		pem, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(all, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(pem); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	for _, tc := range []struct {
		name     string
		urls     []string
		insecure bool
		ca       string
		want     []int  // of urls
		reason   string // in the warning; "": no warning
	}{
		{name: "all good", urls: []string{"https://" + good, "https://" + strict12, "https://" + strict13}, ca: all, want: []int{0, 1, 2}},
		{name: "another name", urls: []string{"https://" + other, "https://" + good}, ca: all, want: []int{1}, reason: "example.org"},
		{name: "another authority", urls: []string{"https://" + good, "https://" + unknown}, ca: all, want: []int{0}, reason: "certificate"},
		{name: "the machine's authorities", urls: []string{"https://" + good}, reason: "certificate"},
		{name: "http, and nobody", urls: []string{"http://" + good, "https://" + gone}, ca: all, reason: `"http://` + good + `" is insecure,"https://` + gone + `" failed to dial (`},
		{name: "no such file", urls: []string{"https://" + good}, ca: all + ".nope", reason: "no such file"},
		{name: "insecure", urls: []string{"http://" + good, "https://" + gone}, insecure: true, ca: all + ".nope", want: []int{0, 1}},
	} {
		core, logs := observer.New(zap.InfoLevel)
		urls, found, err := Clients{Domain: "example.com", Suffix: "blue", Insecure: tc.insecure, TrustedCAFile: tc.ca, lookup: records(tc.urls...)}.Find(zap.New(core))
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		var got []int
		for i, u := range urls {
			n := slices.Index(tc.urls, u)
			got = append(got, n)
			if r := found[i]; r.Target != u || int(r.Priority) != n || r.Weight != 7 {
				t.Errorf("%s: %s has the record %+v", tc.name, u, r)
			}
		}
		if len(urls) != len(found) || !slices.Equal(got, tc.want) {
			t.Errorf("%s: found %v (%v), want %v", tc.name, got, urls, tc.want)
		}
		warned := ""
		for _, e := range logs.FilterMessage("failed to validate discovered endpoints").All() {
			warned = fmt.Sprint(e.ContextMap()["error"])
		}
		if !strings.Contains(warned, tc.reason) || (warned == "") != (tc.reason == "") {
			t.Errorf("%s: warned %q, want %q", tc.name, warned, tc.reason)
		}
	}

	failed := errors.New("dns lookup errors: a and b")
	if _, _, err := (Clients{lookup: func(string, string, string) (*srv.SRVClients, error) { return nil, failed }}).Find(zap.NewNop()); !errors.Is(err, failed) {
		t.Errorf("a lookup in vain: %v", err)
	}
}

package transport

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"quorate/internal/certs"
	"quorate/internal/certs/certstest"
	"quorate/internal/ids"
	socket "quorate/internal/listen"
	"quorate/internal/transport/peerapi"
)

// secureSite holds the TLS files of the members of a test, and a clock that
// makes them reload the files.
type secureSite struct {
	t   *testing.T
	dir string

	mu  sync.Mutex
	now time.Time
}

func (s *secureSite) later() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = s.now.Add(time.Second)
}

func (s *secureSite) put(name string, content []byte) {
	s.t.Helper()
	if err := certstest.Write(filepath.Join(s.dir, name), content); err != nil {
		s.t.Fatal(err)
	}
}

func (s *secureSite) pair(name string, ca *certstest.CA, l certstest.Leaf) {
	s.t.Helper()
	if _, _, err := ca.Issue(l).WriteTo(s.dir, name); err != nil {
		s.t.Fatal(err)
	}
}

func (s *secureSite) open(name string) *certs.Store {
	s.t.Helper()
	path := func(name string) string { return filepath.Join(s.dir, name) }
	store, err := certs.Open(certs.Options{Files: certs.Files{CertFile: path(name + ".pem"), KeyFile: path(name + ".key"),
		TrustedCAFile: path("ca.pem"), ClientCertAuth: true}, Flags: certs.FlagNames{Prefix: "peer-"},
		Now: func() time.Time { s.mu.Lock(); defer s.mu.Unlock(); return s.now }})
	if err != nil {
		s.t.Fatal(err)
	}
	return store
}

// start is startNode with TLS.
func (s *secureSite) start(id ids.Member, store *certs.Store) *node {
	s.t.Helper()
	n := &node{host: newHost(), tls: true}
	l := listen(s.t, "127.0.0.1:0")
	n.addr = l.Addr().String()
	var err error
	n.Transport, err = New(Config{ID: id, ClusterID: testCluster, PeerURLs: []string{n.url()}, Host: n.host, Version: "3.7.3", TLS: store.Client})
	if err != nil {
		s.t.Fatal(err)
	}
	n.serve(secured(l, store))
	s.t.Cleanup(func() {
		n.Stop()
		n.close(s.t)
	})
	return n
}

func secured(l net.Listener, store *certs.Store) net.Listener {
	return socket.NewListener(l, socket.Accepts{TLS: &socket.TLS{Config: store.Server("http/1.1"), Check: store.CheckAddress}})
}

// restart closes every connection to n and listens again.
func (s *secureSite) restart(n *node, store *certs.Store) {
	s.t.Helper()
	table := n.table.Load()
	n.close(s.t)
	for _, p := range table.peers {
		for k := range p.links {
			if l := p.links[k].Load(); l != nil {
				l.close()
			}
		}
	}
	n.serve(secured(listen(s.t, n.addr), store))
}

func TestTLS(t *testing.T) {
	t.Parallel()
	s := &secureSite{t: t, dir: t.TempDir(), now: time.Now()}
	ca := certstest.NewCA("ca")
	s.put("ca.pem", ca.PEM)
	stores := make([]*certs.Store, 2)
	nodes := make([]*node, 2)
	for i, name := range []string{"a", "b"} {
		s.pair(name, ca, certstest.Leaf{CN: name})
		stores[i] = s.open(name)
		nodes[i] = s.start(ids.Member(i+1), stores[i])
	}
	a, b := nodes[0], nodes[1]
	connect(t, a, b)

	exchange := func() {
		t.Helper()
		ms := travelling(1, 2)
		a.Send(ms)
		expect(t, b.host, ms)
		ms = travelling(2, 1)
		b.Send(ms)
		expect(t, a.host, ms)
	}
	snapshot := func() {
		t.Helper()
		const size = 4 << 20
		a.SendSnapshot(snapMessage(1, 2, 42), &zeros{size, io.EOF})
		if err := receive(t, "body", b.host.snapErrs); err != nil {
			t.Fatal(err)
		}
		receive(t, "message", b.host.snapMsgs)
		if got := len(receive(t, "database", b.host.snapData)); got != size {
			t.Errorf("%d bytes", got)
		}
		if r := receive(t, "report", a.host.snapshots); r != (snapshotReport{2, true}) {
			t.Errorf("%+v", r)
		}
	}
	probe := func() {
		t.Helper()
		for _, c := range []*http.Client{a.streams, a.requests} {
			if _, _, err := a.table.Load().peers[2].probeOnce(c); err != nil {
				t.Error(err)
			}
		}
	}
	exchange()
	snapshot()
	probe()

	// The CA is replaced: first both are trusted, then all members get a new
	// certificate, then the old CA is removed.
	next := certstest.NewCA("next")
	s.put("ca.pem", append(bytes.Clone(ca.PEM), next.PEM...))
	s.later()
	for _, name := range []string{"a", "b"} {
		s.pair(name, next, certstest.Leaf{CN: name})
	}
	s.put("ca.pem", next.PEM)
	s.later()
	exchange() // on existing connections
	snapshot()
	s.restart(b, stores[1])
	s.restart(a, stores[0])
	connect(t, a, b)
	exchange()
	snapshot()
	probe()

	// A client with a certificate of the old CA is rejected, and so is one from
	// another address, and one without a certificate.
	old := &secureSite{t: t, dir: t.TempDir(), now: time.Now()}
	old.put("ca.pem", next.PEM) // it does trust the members
	old.pair("old", ca, certstest.Leaf{})
	old.pair("elsewhere", next, certstest.Leaf{IPs: []string{"192.0.2.1"}})
	old.pair("fine", next, certstest.Leaf{})
	for name, letIn := range map[string]bool{"old": false, "elsewhere": false, "fine": true} {
		store := old.open(name)
		c := peerapi.NewClient(RequestClient(store.Client, time.Second))
		_, err := c.Version(t.Context(), []string{a.url()}, 30*time.Second)
		c.Close()
		// a responds with 404 to accepted clients: it has no such page.
		if got := strings.Contains(fmt.Sprint(err), "status 404"); got != letIn {
			t.Errorf("%s: let in %v, want %v: %v", name, got, letIn, err)
		}
	}
	c := peerapi.NewClient(RequestClient(nil, time.Second))
	defer c.Close()
	if _, err := c.Version(t.Context(), []string{a.url()}, 30*time.Second); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("with the roots of the machine: %v", err)
	}
}

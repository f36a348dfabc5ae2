package secure

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
	"quorate/compat/pki"
)

// passing reports whether a request failed for a reason that is normal for a cluster on a busy machine.
func passing(err error) bool {
	for _, text := range []string{"etcdserver: leader changed", "etcdserver: no leader", "etcdserver: request timed out"} {
		if strings.Contains(err.Error(), text) {
			return true
		}
	}
	return false
}

// TestRotation replaces every certificate and then the authority of a cluster that requires
// certificates of clients and members, under load on old and on new connections.
func TestRotation(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ca := pki.NewCA("first")
	s.files.Put("ca.pem", ca.PEM)
	ms := s.members(etcd, etcd, etcd)
	for _, m := range ms {
		s.files.PutPair(m.name, ca.Issue(m.name))
		m.flags = s.tlsFlags(m.name)
		m.start()
	}
	pair := ca.Issue("client")
	first := pki.Client(ca.PEM, &pair)
	for _, m := range ms {
		m.waitReady(first)
	}

	var (
		mu       sync.RWMutex // held while a new connection is opened and used
		current  = first
		requests atomic.Int64
		failed   = make(chan error, 100)
	)
	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	request := func(c *child.Client, key string) {
		for ctx.Err() == nil {
			_, err := c.PutWithin(limit, key, "v")
			if err == nil {
				requests.Add(1)
				return
			}
			if !passing(err) {
				select {
				case failed <- fmt.Errorf("put %s: %w", key, err):
				default:
				}
				return
			}
		}
	}
	for i, m := range ms {
		load.Go(func() { // one connection for the whole time
			c, end := s.grpcClient(m.client, first)
			defer end()
			for n := 0; ctx.Err() == nil; n++ {
				request(c, fmt.Sprintf("old/%d/%d", i, n%50))
			}
		})
		load.Go(func() { // each request on a new connection
			for n := 0; ctx.Err() == nil; n++ {
				mu.RLock()
				c, end := s.grpcClient(m.client, current)
				request(c, fmt.Sprintf("new/%d/%d", i, n%50))
				end()
				mu.RUnlock()
			}
		})
	}
	// some waits until there have been more requests of each kind.
	some := func() {
		t.Helper()
		want := requests.Load() + 60
		child.Eventually(t, limit, "more requests", func() error {
			if n := requests.Load(); n < want {
				return fmt.Errorf("%d of %d", n, want)
			}
			return nil
		})
	}
	use := func(c *tls.Config) {
		mu.Lock()
		defer mu.Unlock()
		current = c
	}
	some()

	// The same authority, new certificates.
	for _, m := range ms {
		s.files.PutPair(m.name, ca.Issue(m.name+" renewed"))
	}
	for _, m := range ms {
		child.Eventually(t, limit, "new certificate", func() error {
			if cn := shown(t, m.client, first); cn != m.name+" renewed" {
				return fmt.Errorf("%s shows %s", m.name, cn)
			}
			return nil
		})
		child.Eventually(t, limit, "new certificate for members", func() error {
			if cn := shown(t, m.peer, first); cn != m.name+" renewed" {
				return fmt.Errorf("%s shows %s", m.name, cn)
			}
			return nil
		})
	}
	some()

	// A new authority in addition to the old one, and clients that know both.
	next := pki.NewCA("next")
	both := append(bytes.Clone(ca.PEM), next.PEM...)
	s.files.Put("ca.pem", both)
	use(pki.Client(both, &pair))
	newPair := next.Issue("client")
	for _, m := range ms {
		child.Eventually(t, limit, "trust in the new authority", func() error { return s.put(m.client, pki.Client(both, &newPair), "k") })
		child.Eventually(t, limit, "trust in the new authority's members", func() error {
			_, err := get("https://"+m.peer+"/version", pki.Client(both, &newPair), false)
			return err
		})
	}
	use(pki.Client(both, &newPair))
	some()

	// Its certificates, and the end of the old one.
	for _, m := range ms {
		s.files.PutPair(m.name, next.Issue(m.name))
	}
	for _, m := range ms {
		child.Eventually(t, limit, "certificate of the new authority", func() error { return s.put(m.client, pki.Client(next.PEM, &newPair), "k") })
	}
	last := pki.Client(next.PEM, &newPair)
	use(last)
	s.files.Put("ca.pem", next.PEM)
	for _, m := range ms {
		child.Eventually(t, limit, "no trust in the old authority", func() error {
			if _, err := get("https://"+m.client+"/health", pki.Client(next.PEM, &pair), false); err == nil {
				return fmt.Errorf("%s lets an old client in", m.name)
			}
			return nil
		})
	}
	some()

	// A broken file changes nothing, and the log names it.
	s.files.Put("m0.pem", []byte("no certificate"))
	child.Eventually(t, limit, "a line in the log", func() error {
		if err := s.put(ms[0].client, last, "k"); err != nil {
			t.Fatalf("with a broken certificate file: %v", err)
		}
		if !slices.ContainsFunc(strings.Split(ms[0].p.Output(), "\n"), func(line string) bool {
			return strings.Contains(line, `"error"`) && strings.Contains(line, s.files.File("m0.pem"))
		}) {
			return fmt.Errorf("nothing names %s", s.files.File("m0.pem"))
		}
		return nil
	})
	some()
	s.files.PutPair("m0", next.Issue("m0"))

	stop()
	load.Wait()
	close(failed)
	for err := range failed {
		t.Error(err)
	}
	t.Logf("%d requests", requests.Load())

	// Members that come back find each other under the new authority alone.
	for _, m := range ms {
		m.p.Kill()
		m.start()
		m.waitReady(last)
	}
	s.sameHash(ms, last)
}

// shown is the common name of the certificate that a server presents.
func shown(t *testing.T, addr string, c *tls.Config) string {
	t.Helper()
	c = c.Clone()
	c.ServerName = "localhost"
	d := &tls.Dialer{Config: c}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Subject.CommonName
}

// sameHash waits until all members have the same data.
func (s *site) sameHash(ms []*member, c *tls.Config) {
	s.Helper()
	child.Eventually(s.T, limit, "equal hashes", func() error {
		var seen []string
		for _, m := range ms {
			client, end := s.grpcClient(m.client, c)
			ctx, cancel := context.WithTimeout(s.Context(), 20*time.Second)
			r, err := client.Maintenance.HashKV(ctx, &pb.HashKVRequest{})
			cancel()
			end()
			if err != nil {
				return err
			}
			seen = append(seen, fmt.Sprintf("%x at %d from %d", r.Hash, r.HashRevision, r.CompactRevision))
		}
		if slices.ContainsFunc(seen, func(h string) bool { return h != seen[0] }) {
			return fmt.Errorf("%v", seen)
		}
		return nil
	})
}

// TestMixed runs members of ours and of real etcd 3.7 in one cluster with TLS, certificates required and names
// restricted, and lets each of them fall so far behind that it is sent a snapshot.
func TestMixed(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ca := pki.NewCA("ca")
	s.files.Put("ca.pem", ca.PEM)
	ms := s.members(etcd, real, etcd)
	for _, m := range ms {
		s.files.PutPair(m.name, ca.Issue("member"))
		m.flags = append(s.tlsFlags(m.name), "--peer-cert-allowed-cn=other,member", "--snapshot-count=40", "--snapshot-catchup-entries=5")
		m.start()
	}
	pair := ca.Issue("client")
	c := pki.Client(ca.PEM, &pair)
	for _, m := range ms {
		m.waitReady(c)
	}
	snapshots := 0
	for i, down := range ms {
		down.stop()
		up := ms[(i+1)%len(ms)]
		client, end := s.grpcClient(up.client, c)
		for n := range 150 {
			child.Eventually(t, limit, "put", func() error {
				_, err := client.PutWithin(20*time.Second, fmt.Sprintf("k%d/%d", i, n), "v")
				return err
			})
		}
		end()
		down.start()
		down.waitReady(c)
		s.sameHash(ms, c)
		if strings.Contains(down.p.Output(), "receiving database snapshot") {
			snapshots++
		}
	}
	if snapshots == 0 {
		t.Error("no member was sent a snapshot")
	}
	t.Logf("%d of 3 were sent a snapshot", snapshots)
}

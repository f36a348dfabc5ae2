package secure

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"quorate/compat/harness"
	"quorate/compat/pki"
)

// TestDoors opens ports of every kind on one member and requests from each of them what it serves; what ours
// answers, etcd answers.
func TestDoors(t *testing.T) {
	t.Parallel()
	ca := pki.NewCA("ca")
	pair := ca.Issue("client")
	c := pki.Client(ca.PEM, &pair)
	c.ServerName = "localhost"
	for _, program := range []string{etcd, real} {
		t.Run(filepath.Base(program), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.files.Put("ca.pem", ca.PEM)
			s.files.PutPair("m0", ca.Issue("m0"))
			m := s.members(program)[0]
			more, err := harness.FreeAddrs(3)
			if err != nil {
				t.Fatal(err)
			}
			plain, metrics, secureMetrics := more[0], more[1], more[2]
			m.flags = append(s.tlsFlags("m0"),
				// The first port serves with TLS and without.
				"--listen-client-urls=https://"+m.client+",http://"+m.client+",http://"+plain+",unix://plain.sock,unixs://secure.sock",
				"--listen-metrics-urls=http://"+metrics+",https://"+secureMetrics)
			m.start()
			m.waitReady(c)

			socket := func(name string) string { return "unix:" + filepath.Join(s.dir, m.name, name) }
			for _, x := range []struct {
				target string
				c      *tls.Config
			}{
				{m.client, c}, {m.client, nil}, {plain, nil}, {socket("plain.sock"), nil}, {socket("secure.sock"), c},
			} {
				if err := s.put(x.target, x.c, "k"); err != nil {
					t.Errorf("gRPC at %s with TLS %v: %v", x.target, x.c != nil, err)
				}
				client, end := s.grpcClient(x.target, x.c)
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				r, err := healthpb.NewHealthClient(client.Conn).Check(ctx, &healthpb.HealthCheckRequest{})
				cancel()
				end()
				if err != nil || r.Status != healthpb.HealthCheckResponse_SERVING {
					t.Errorf("gRPC health at %s: %v, %v", x.target, r, err)
				}
			}
			const healthy = ` 200 {"health":"true","reason":""}`
			for _, x := range []struct {
				url  string
				h2   bool
				want string
			}{
				{"https://" + m.client, true, "HTTP/2.0" + healthy},
				{"https://" + m.client, false, "HTTP/1.1" + healthy},
				{"http://" + m.client, false, "HTTP/1.1" + healthy},
				{"http://" + plain, false, "HTTP/1.1" + healthy},
				{"https://" + plain, false, "error"},
				{"http://" + metrics, false, "HTTP/1.1" + healthy},
				{"https://" + secureMetrics, false, "HTTP/1.1" + healthy},
				{"http://" + secureMetrics, false, "error"},
			} {
				got, err := get(x.url+"/health", c, x.h2)
				if err != nil {
					got = "error"
				}
				if got != x.want {
					t.Errorf("%s: got %q, %v, want %q", x.url, got, err, x.want)
				}
			}
			if got, err := get("https://"+m.client+"/health", pki.Client(ca.PEM, nil), true); err == nil {
				t.Errorf("without a certificate: %s", got)
			}
			if got := gateway(t, "https://"+m.client, c); !strings.Contains(got, `"count":"1"`) {
				t.Errorf("JSON gateway: %s", got)
			}
		})
	}
}

// gateway reads a key through the JSON gateway, over HTTP/2. Without an Accept header, etcd would attribute the
// request to the user named by the server's own certificate.
func gateway(t *testing.T, url string, c *tls.Config) string {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: c.Clone(), ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequest(http.MethodPost, url+"/v3/kv/range", strings.NewReader(`{"key":"aw=="}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "*/*")
	resp, err := (&http.Client{Transport: transport, Timeout: limit}).Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	var compact bytes.Buffer
	if json.Compact(&compact, b) == nil {
		return compact.String() // the protobuf library randomises spaces
	}
	return string(b)
}

// TestSplit serves gRPC and HTTP on ports of their own, with TLS and without.
func TestSplit(t *testing.T) {
	t.Parallel()
	ca := pki.NewCA("ca")
	pair := ca.Issue("client")
	c := pki.Client(ca.PEM, &pair)
	for _, program := range []string{etcd, real} {
		t.Run(filepath.Base(program), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.files.Put("ca.pem", ca.PEM)
			s.files.PutPair("m0", ca.Issue("m0"))
			m := s.members(program)[0]
			more, err := harness.FreeAddrs(3)
			if err != nil {
				t.Fatal(err)
			}
			plain, httpPlain, httpSecure := more[0], more[1], more[2]
			m.flags = append(s.tlsFlags("m0"), "--listen-client-urls=https://"+m.client+",http://"+plain,
				"--listen-client-http-urls=https://"+httpSecure+",http://"+httpPlain)
			m.start()
			m.waitReady(c)
			if err := s.put(plain, nil, "k"); err != nil {
				t.Errorf("gRPC without TLS: %v", err)
			}
			for _, url := range []string{"https://" + httpSecure, "http://" + httpPlain} {
				if got, err := get(url+"/health", c, true); !strings.HasSuffix(got, `200 {"health":"true","reason":""}`) {
					t.Errorf("%s: %s, %v", url, got, err)
				}
				if got := gateway(t, url, c); !strings.Contains(got, `"count":"1"`) {
					t.Errorf("JSON gateway at %s: %s", url, got)
				}
			}
			for _, url := range []string{"https://" + m.client, "http://" + plain} {
				if got, err := get(url+"/health", c, false); err == nil {
					t.Errorf("HTTP on the port for gRPC: %s", got)
				}
			}
			for addr, c := range map[string]*tls.Config{httpSecure: c, httpPlain: nil} {
				client, end := s.grpcClient(addr, c)
				if _, err := client.PutWithin(3*time.Second, "k", "v"); err == nil {
					t.Errorf("gRPC on %s, a port for HTTP", addr)
				}
				end()
			}
		})
	}
}

// TestSocketPeers runs clusters whose members reach each other by socket files: one mixed with real etcd, and
// one with TLS, which etcd does not do there.
func TestSocketPeers(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		scheme   string
		programs []string
		flags    []string
	}{
		{"unix", []string{etcd, real, etcd}, nil},
		{"unixs", []string{etcd, etcd, etcd}, []string{"--peer-auto-tls"}},
	} {
		t.Run(tt.scheme, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			ms := s.members(tt.programs...)
			var initial []string
			for _, m := range ms {
				m.dir = filepath.Join(s.dir, "sockets")
				initial = append(initial, m.name+"="+tt.scheme+"://"+m.name+":1")
			}
			for _, m := range ms {
				m.initial = strings.Join(initial, ",")
				peer, client := tt.scheme+"://"+m.name+":1", "http://"+m.client
				m.flags = append(tt.flags[:len(tt.flags):len(tt.flags)], "--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer,
					"--listen-client-urls="+client, "--advertise-client-urls="+client)
				m.start()
			}
			for _, m := range ms {
				m.waitReady(nil)
			}
			s.sameHash(ms, nil)
		})
	}
}

// TestHostile attacks the ports of a cluster that requires certificates, while it works.
func TestHostile(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ca := pki.NewCA("ca")
	s.files.Put("ca.pem", ca.PEM)
	ms := s.members(etcd, etcd, etcd)
	for _, m := range ms {
		s.files.PutPair(m.name, ca.Issue(m.name))
		m.flags = s.tlsFlags(m.name)
		m.start()
	}
	pair := ca.Issue("client")
	c := pki.Client(ca.PEM, &pair)
	for _, m := range ms {
		m.waitReady(c)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	var open []net.Conn
	defer func() {
		for _, conn := range open {
			conn.Close()
		}
	}()
	for round := range 60 {
		for _, m := range ms {
			for _, addr := range []string{m.client, m.peer} {
				conn, err := net.DialTimeout("tcp", addr, limit)
				if err != nil {
					t.Fatal(err)
				}
				open = append(open, conn) // all stay open
				switch round % 4 {
				case 0: // silent
				case 1:
					conn.Write(random(1 + r.IntN(3000)))
				case 2: // the head of a hello, and then nothing
					conn.Write(append([]byte{0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3}, random(r.IntN(200))...))
				case 3:
					io.WriteString(conn, "POST /raft HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
				}
			}
		}
		if err := s.put(ms[round%3].client, c, fmt.Sprint("k", round)); err != nil {
			t.Fatal(err)
		}
	}
	// A client without a certificate cannot reach a page of the peer port.
	for _, m := range ms {
		for _, c := range []*tls.Config{pki.Client(ca.PEM, nil), {InsecureSkipVerify: true}} {
			for _, path := range []string{"/version", "/members", "/raft/probing"} {
				if got, err := get("https://"+m.peer+path, c, false); err == nil {
					t.Errorf("%s: %s", path, got)
				}
			}
		}
		if got, err := get("http://"+m.peer+"/version", nil, false); err == nil {
			t.Errorf("without TLS: %s", got)
		}
		if !m.p.Running() {
			t.Errorf("%s has ended", m.name)
		}
	}
	s.sameHash(ms, c)
}

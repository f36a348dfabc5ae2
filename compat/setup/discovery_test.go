package setup

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"quorate/compat/child"
)

// Three founding members that know only a discovery service find each other; one of them is real etcd, so the
// service's keys and their order mean the same to both. A fourth is told that the cluster is full.
func TestDiscoveryRegister(t *testing.T) {
	t.Parallel()
	h := newHosts(t, 5)
	h[0].found(t, etcd)
	if _, err := child.Dial(t, h[0].client).PutWithin(limit, "/_etcd/registry/token-1/_config/size", "3"); err != nil {
		t.Fatal(err)
	}
	start := func(x *host, program string) {
		x.start(t, program, "--advertise-client-urls", "http://"+x.client, "--initial-advertise-peer-urls", "http://"+x.peer,
			"--discovery-token", "token-1", "--discovery-endpoints", "http://"+h[0].client)
	}
	start(h[1], etcd)
	child.Eventually(t, limit, "the first has registered", func() error {
		if out := h[1].proc.Output(); !strings.Contains(out, "waiting for peers from discovery service") {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	h[1].proc.Kill() // and is restarted, with its registration kept
	start(h[1], etcd)
	start(h[2], *realFlag)
	start(h[3], etcd)
	voters(t, h[1].client, 3)
	if _, err := child.Dial(t, h[3].client).PutWithin(limit, "found", "yes"); err != nil {
		t.Fatal(err)
	}
	holds(t, h[2].client, "found", "yes")
	start(h[4], etcd)
	if code := h[4].proc.Wait(t, limit); code != 1 || !strings.Contains(h[4].proc.Output(), "discovery: cluster is full") ||
		!strings.Contains(h[4].proc.Output(), `"msg":"do not reuse discovery token; generate a new one to bootstrap a cluster"`) {
		t.Errorf("a fourth ends with %d:\n%s", code, h[4].proc.Tail(3))
	}
}

// The same with a v2 discovery service, in the v2 keys of a real etcd 3.5: two of ours and one of that release
// found a cluster together.
func TestDiscoveryV2(t *testing.T) {
	t.Parallel()
	h := newHosts(t, 5)
	h[0].start(t, *realFlag35, "--advertise-client-urls", "http://"+h[0].client, "--initial-advertise-peer-urls", "http://"+h[0].peer,
		"--initial-cluster", "a=http://"+h[0].peer, "--enable-v2")
	token := "http://" + h[0].client + "/v2/keys/_etcd/registry/token-1"
	child.Eventually(t, limit, "the size is written", func() error {
		req, err := http.NewRequest(http.MethodPut, token+"/_config/size", strings.NewReader("value=3"))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode/100 != 2 {
			return fmt.Errorf("%s", resp.Status)
		}
		return nil
	})
	start := func(x *host, program string) {
		x.start(t, program, "--advertise-client-urls", "http://"+x.client, "--initial-advertise-peer-urls", "http://"+x.peer, "--discovery", token)
	}
	// A member that cannot listen has not registered, which it could do only once.
	busy := *h[1]
	busy.client = h[0].client
	start(&busy, etcd)
	if code := busy.proc.Wait(t, limit); code != 1 || !strings.Contains(busy.proc.Output(), "address already in use") {
		t.Fatalf("on a port that is taken it ends with %d:\n%s", code, busy.proc.Tail(3))
	}
	start(h[1], etcd)
	start(h[2], *realFlag35)
	start(h[3], etcd)
	voters(t, h[1].client, 3)
	if _, err := child.Dial(t, h[3].client).PutWithin(limit, "found", "yes"); err != nil {
		t.Fatal(err)
	}
	holds(t, h[2].client, "found", "yes")
	start(h[4], etcd)
	if code := h[4].proc.Wait(t, limit); code != 1 || !strings.Contains(h[4].proc.Output(), "failed to join discovery cluster (discovery: cluster is full)") {
		t.Errorf("a fourth ends with %d:\n%s", code, h[4].proc.Tail(3))
	}
	// If configured so, it becomes a proxy of the cluster, and stays one from then on.
	for range 2 {
		h[4].start(t, etcd, "--discovery", token, "--discovery-fallback", "proxy")
		proxied(t, h[4].client)
		h[4].proc.Kill()
	}
}

// proxied waits until a proxy forwards a range of the JSON gateway, and no gRPC.
func proxied(t *testing.T, client string) {
	t.Helper()
	child.Eventually(t, limit, "the proxy passes requests on", func() error {
		resp, err := http.Post("http://"+client+"/v3/kv/range", "application/json", strings.NewReader(`{"key":"Zm91bmQ="}`)) // found
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err == nil && !strings.Contains(string(b), `"value":"eWVz"`) { // yes
			err = fmt.Errorf("%s: %s", resp.Status, b)
		}
		return err
	})
	resp, err := http.Get("http://" + client + "/v2/config/local/proxy")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || strings.Count(string(b), "http://") != 3 {
		t.Errorf("the proxy knows %s %v, want three members", b, err)
	}
}

// Three machines whose DNS has SRV records for the domain need no member list, and the tool finds them the same
// way.
func TestDiscoverySRV(t *testing.T) {
	t.Parallel()
	if !child.Isolated(t, *required, "-etcd="+etcd, "-etcdctl="+etcdctl, "-etcdutl="+etcdutl) {
		return
	}
	machines := child.NewMachines(t, 3)
	dir := t.TempDir()
	serveDNS(t, machines, dir)
	for i := 1; i <= 3; i++ {
		name, ip := machines.Name(i), machines.IP(i)
		child.Start(t, child.Config{Program: "ip", Dir: filepath.Join(dir, name), Args: machines.On(i, etcd, "--name", name, "--data-dir", filepath.Join(dir, name, "data"),
			"--initial-advertise-peer-urls", "http://"+name+".example.test:2380", "--listen-peer-urls", "http://"+ip+":2380",
			"--listen-client-urls", "http://"+ip+":2379,http://127.0.0.1:2379", "--advertise-client-urls", "http://"+name+".example.test:2379",
			"--discovery-srv", "example.test", "--discovery-srv-name", "prod", "--initial-cluster-token", "srv")})
	}
	child.Eventually(t, limit, "etcdctl finds the cluster by its domain", func() error {
		out, err := machines.Run(20*time.Second, 1, etcdctl, "--discovery-srv", "example.test", "--discovery-srv-name", "prod", "put", "greeting", "hello")
		if err != nil || out != "OK\n" {
			return fmt.Errorf("%q, %v", out, err)
		}
		return nil
	})
	out, err := machines.Run(30*time.Second, 3, etcdctl, "member", "list")
	if err != nil || strings.Count(out, ", started, ") != 3 {
		t.Errorf("%q, %v", out, err)
	}
}

// serveDNS answers for example.test on the bridge's address, and makes that the resolver of this
// process's mount namespace.
func serveDNS(t *testing.T, machines child.Machines, dir string) {
	t.Helper()
	conf := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver 10.0.0.254\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	child.Must(t, "mount", "--bind", conf, "/etc/resolv.conf")
	pc, err := net.ListenPacket("udp", "10.0.0.254:53")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	go func() {
		b := make([]byte, 4096)
		for {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			if answer := resolve(b[:n], machines); answer != nil {
				pc.WriteTo(answer, from)
			}
		}
	}()
}

// resolve answers one question about example.test.
func resolve(b []byte, machines child.Machines) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	reply := dnsmessage.Message{Header: dnsmessage.Header{ID: h.ID, Response: true, Authoritative: true, RecursionDesired: h.RecursionDesired, RecursionAvailable: true}, Questions: []dnsmessage.Question{q}}
	head := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 1}
	known := false
	for i := 1; i <= int(machines); i++ {
		host := machines.Name(i) + ".example.test."
		switch name := q.Name.String(); {
		case name == "_etcd-server-prod._tcp.example.test." || name == "_etcd-client-prod._tcp.example.test.":
			known = true
			port := uint16(2380)
			if strings.HasPrefix(name, "_etcd-client") {
				port = 2379
			}
			if q.Type == dnsmessage.TypeSRV {
				reply.Answers = append(reply.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.SRVResource{Port: port, Target: dnsmessage.MustNewName(host)}})
			}
		case name == host:
			known = true
			if q.Type == dnsmessage.TypeA {
				reply.Answers = append(reply.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: [4]byte(net.ParseIP(machines.IP(i)).To4())}})
			}
		}
	}
	if !known {
		reply.RCode = dnsmessage.RCodeNameError
	}
	out, err := reply.Pack()
	if err != nil {
		return nil
	}
	return out
}

package proxies

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"quorate/compat/child"
	"quorate/compat/harness"
	"quorate/compat/pki"
)

// outcome is the result of a command that exits by itself.
type outcome struct {
	Code           int
	Stdout, Stderr string // without log lines and empty lines at the end
}

// differs compares our output with that of real etcd: it must be the same, except that a mistake about a socket
// or a certificate also names its flag.
func (ours outcome) differs(real outcome, flag string) bool {
	if flag != "" && strings.Contains(ours.Stderr, flag) && strings.Contains(ours.Stderr, real.Stderr) && real.Stderr != "" {
		ours.Stderr = real.Stderr
	}
	return ours != real || flag != "" && strings.Contains(real.Stderr, flag)
}

// end runs a program to completion.
func end(t *testing.T, program string, args ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("%s %q: %v", program, args, err)
	}
	var said []string
	for line := range strings.Lines(stderr.String()) {
		if !json.Valid([]byte(line)) {
			said = append(said, line)
		}
	}
	return outcome{cmd.ProcessState.ExitCode(), strings.TrimRight(stdout.String(), "\n"), strings.TrimRight(strings.Join(said, ""), "\n")}
}

// Help and mistakes: the same texts on the same streams, and the same exit codes.
func TestGatewayMistakes(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, args := range []string{
		"gateway",
		"gateway --help",
		"gateway other",
		"gateway --nope",
		"gateway start --help",
		"gateway start -h --endpoints abc",
		"gateway start --nope",
		"gateway start -x",
		"gateway start --retry-delay abc",
		"gateway start --retry-delay",
		"gateway start --insecure-discovery=maybe",
		"gateway start --endpoints abc",
		"gateway start --endpoints 127.0.0.1:1,abc",
		"gateway start --endpoints http://abc",
		"gateway start --endpoints=",
		"gateway start --endpoints host.invalid:2379",
		"gateway start --listen-addr zzz",
		"gateway start --listen-addr zzz --endpoints abc",
		"gateway start --listen-addr :23790",
		"gateway start --listen-addr host.invalid:23790",
		"gateway start --listen-addr 127.0.0.1:99999",
		"gateway start --listen-addr 127.0.0.1:23790 --endpoints 127.0.0.1:23790",
		"gateway start --listen-addr localhost:23790 --endpoints 127.0.0.1:1,http://127.0.0.1:23790",
		"gateway start --listen-addr " + taken.Addr().String(),
	} {
		ours, want := end(t, etcd, strings.Fields(args)...), end(t, realEtcd, strings.Fields(args)...)
		flag := ""
		if strings.HasPrefix(want.Stderr, "listen tcp") {
			flag = ": --listen-addr"
		}
		if ours.differs(want, flag) {
			t.Errorf("%s:\n%+v\nreal etcd:\n%+v", args, ours, want)
		}
	}
	// Real etcd accepts these, and then dials port 0 or probes without a pause.
	for args, text := range map[string]string{
		"gateway start --endpoints 127.0.0.1:abc":                              `error parsing endpoint "127.0.0.1:abc"`,
		"gateway start --retry-delay -1s":                                      "--retry-delay must not be negative",
		"gateway start --listen-addr 0.0.0.0:1 --endpoints 127.0.0.1:1":        "SRV or endpoint (127.0.0.1:1->127.0.0.1:1) should not resolve to the gateway listen addr (0.0.0.0:1)",
		"gateway start --listen-addr 127.0.0.1:7 --endpoints http://0.0.0.0:7": "SRV or endpoint (0.0.0.0:7->0.0.0.0:7) should not resolve to the gateway listen addr (127.0.0.1:7)",
	} {
		if got := end(t, etcd, strings.Fields(args)...); got != (outcome{1, text, ""}) {
			t.Errorf("%s: %+v, want %q", args, got, text)
		}
	}
}

// gateway is a running `etcd gateway start`.
type gateway struct {
	*child.Process
	addr  string
	ready chan struct{} // closed when it has reported that to systemd
}

// startGateway runs one on a free port, as systemd would, until the test ends.
func startGateway(t *testing.T, program string, args ...string) *gateway {
	t.Helper()
	for {
		g := tryGateway(t, program, args...)
		select {
		case <-g.ready:
			return g
		case <-g.Exited():
			// Another process may have taken the port since it was found free.
			if out := g.Output(); !strings.Contains(out, "address already in use") {
				t.Fatalf("the gateway has ended with %d:\n%s", g.Code(), out)
			}
		case <-time.After(limit):
			t.Fatalf("the gateway is not ready after %v:\n%s", limit, g.Output())
		}
	}
}

func tryGateway(t *testing.T, program string, args ...string) *gateway {
	t.Helper()
	// A socket's path may have 107 bytes, fewer than some test directories need.
	sockets, err := os.MkdirTemp("", "gw")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(sockets) })
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(sockets, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { notify.Close() })
	addrs, err := harness.FreeAddrs(1)
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{addr: addrs[0], ready: make(chan struct{})}
	go func() {
		for b, first := make([]byte, 512), true; ; first = false {
			n, err := notify.Read(b)
			if err != nil {
				return
			}
			switch said := string(b[:n]); {
			case said == "READY=1":
				close(g.ready)
				return
			case first && !strings.HasPrefix(said, "EXTEND_TIMEOUT_USEC=60000000\nSTATUS="):
				t.Errorf("systemd hears %q first", said)
			}
		}
	}()
	g.Process = child.Start(t, child.Config{Program: program, Args: append([]string{"gateway", "start", "--listen-addr", g.addr}, args...),
		Dir: filepath.Join(t.TempDir(), "gateway"), Env: []string{"NOTIFY_SOCKET=" + notify.LocalAddr().String()}})
	return g
}

// put writes through a new connection and returns the member that accepted it. An election may fail the write; a
// missing connection may not.
func (g *gateway) put(t *testing.T, key string) (member uint64) {
	t.Helper()
	c := child.Dial(t, g.addr)
	child.Eventually(t, limit, "a write of "+key, func() error {
		resp, err := c.PutWithin(limit, key, "x")
		if err != nil && child.NeverSent(err) {
			t.Fatalf("no connection for %s: %v\n%s", key, err, g.Output())
		}
		member = resp.GetHeader().GetMemberId()
		return err
	})
	return member
}

// lines returns the log lines with a message, each without time, caller and level.
func (g *gateway) lines(msg string) []map[string]any {
	var out []map[string]any
	for line := range strings.Lines(g.Output()) {
		var l map[string]any
		if json.Unmarshal([]byte(line), &l) == nil && l["msg"] == msg {
			delete(l, "ts")
			delete(l, "caller")
			out = append(out, l)
		}
	}
	return out
}

// waitLine waits for a log line with a message and the field address.
func (g *gateway) waitLine(t *testing.T, msg, address string) map[string]any {
	t.Helper()
	var found map[string]any
	child.Eventually(t, limit, fmt.Sprintf("the gateway logs %q about %s", msg, address), func() error {
		for _, l := range g.lines(msg) {
			if l["address"] == address {
				found = l
				return nil
			}
		}
		return errors.New("not yet")
	})
	return found
}

// A cluster of three behind both gateways: clients reach it through either, also while a member is down, which
// is skipped, logged, and used again later.
func TestGatewayCluster(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cluster, err := harness.StartCluster(ctx, t.TempDir(), []string{etcd, etcd, etcd})
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Kill()
	addrs := cluster.ClientAddrs()
	// One as URL: the lines below name the address alone.
	endpoints := addrs[0] + ",http://" + addrs[1] + "," + addrs[2]
	gateways := map[string]*gateway{}
	for name, program := range both() {
		gateways[name] = startGateway(t, program, "--endpoints", endpoints, "--retry-delay", "500ms")
	}
	for name, g := range gateways {
		out, err := child.Run(limit, etcdctl, "--endpoints", g.addr, "put", "through", name)
		if err != nil || out != "OK\n" {
			t.Fatalf("put through %s: %q, %v", name, out, err)
		}
		if out, err := child.Run(limit, etcdctl, "--endpoints", g.addr, "get", "through", "--print-value-only"); err != nil || out != name+"\n" {
			t.Errorf("get through %s: %q, %v", name, out, err)
		}
	}
	// Connections take turns. One that broke and was retried would change the order.
	for name, g := range gateways {
		members := map[uint64]bool{}
		for range 9 {
			members[g.put(t, "which")] = true
		}
		if len(members) != 3 {
			t.Errorf("nine connections through %s reached %d members", name, len(members))
		}
	}

	if err := cluster.Members[1].Kill(); err != nil {
		t.Fatal(err)
	}
	said := map[string]map[string]any{}
	for name, g := range gateways {
		for i := range 6 {
			g.put(t, fmt.Sprintf("%s-%d", name, i))
		}
		said[name] = g.waitLine(t, "deactivated endpoint", addrs[1])
		g.waitLine(t, "failed to activate endpoint (stay inactive for another interval)", addrs[1])
	}
	if !maps.Equal(said["ours"], said["real"]) {
		t.Errorf("deactivated:\n%v\nreal etcd:\n%v", said["ours"], said["real"])
	}
	if err := cluster.Members[1].Restart(); err != nil {
		t.Fatal(err)
	}
	for name, g := range gateways {
		said[name] = g.waitLine(t, "activated", addrs[1])
	}
	if !maps.Equal(said["ours"], said["real"]) {
		t.Errorf("activated:\n%v\nreal etcd:\n%v", said["ours"], said["real"])
	}
	for _, msg := range []string{"ready to proxy client requests", "notifying init daemon", "successfully notified init daemon"} {
		ours, want := gateways["ours"].lines(msg), gateways["real"].lines(msg)
		if len(ours) != 1 || fmt.Sprint(ours) != fmt.Sprint(want) {
			t.Errorf("%s:\n%v\nreal etcd:\n%v", msg, ours, want)
		}
	}

	// The shutdown, with connections open.
	for name, g := range gateways {
		c, err := net.Dial("tcp", g.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		g.Signal(syscall.SIGTERM)
		if code := g.Wait(t, limit); code != 128+int(syscall.SIGTERM) {
			t.Errorf("%s ends with %d on SIGTERM", name, code)
		}
	}
}

// With a low limit on open files, connections beyond it are closed, and the existing ones go on.
func TestGatewayFewFiles(t *testing.T) {
	t.Parallel()
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); io.Copy(c, c) }()
		}
	}()
	const room = 8 // of 80 files, 64 are reserved
	sh := filepath.Join(t.TempDir(), "few")
	if err := os.WriteFile(sh, fmt.Appendf(nil, "#!/bin/sh\nulimit -n 80\nexec %s \"$@\"\n", etcd), 0o700); err != nil {
		t.Fatal(err)
	}
	g := startGateway(t, sh, "--endpoints", echo.Addr().String())
	// works writes a byte and reads it back.
	works := func(c net.Conn) error {
		c.SetDeadline(time.Now().Add(limit))
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	}
	var open []net.Conn
	for range room + 3 {
		c, err := net.Dial("tcp", g.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := works(c); (err == nil) != (len(open) < room) {
			t.Fatalf("with %d connections another one: %v", len(open), err)
		} else if err == nil {
			open = append(open, c)
		}
	}
	for i, c := range open {
		if err := works(c); err != nil {
			t.Errorf("connection %d no longer works: %v", i, err)
		}
	}
	open[0].Close()
	child.Eventually(t, limit, "there is room again", func() error {
		c, err := net.Dial("tcp", g.addr)
		if err != nil {
			return err
		}
		defer c.Close()
		return works(c)
	})
}

// Endpoints from DNS: by priority, and only those that present a certificate for the domain unless that is
// waived. If none is left, --endpoints count.
func TestGatewaySRV(t *testing.T) {
	t.Parallel()
	if !child.Isolated(t, *required, "-etcd="+etcd, "-etcdctl="+etcdctl, "-real="+realEtcd) {
		return
	}
	child.Must(t, "ip", "link", "set", "lo", "up")
	files := pki.Dir{TB: t, Path: t.TempDir()}
	ca, other := pki.NewCA("ours"), pki.NewCA("others")
	files.Put("ca.pem", ca.PEM)
	files.PutPair("good", ca.Issue("member", "example.test", "localhost", "127.0.0.1"))
	files.PutPair("alien", other.Issue("member", "example.test"))
	files.PutPair("misnamed", ca.Issue("member", "m3.example.test"))
	member := func(name string, flags ...string) *harness.Member {
		t.Helper()
		scheme := "http"
		if len(flags) > 0 {
			scheme = "https"
		}
		addrs, err := harness.FreeAddrs(1)
		if err != nil {
			t.Fatal(err)
		}
		m, err := harness.Start(harness.Config{Binary: etcd, Name: name, Dir: t.TempDir(), ClientAddr: addrs[0], AdvertiseClientURL: scheme + "://" + addrs[0],
			Args: append([]string{"--listen-client-urls=" + scheme + "://" + addrs[0]}, flags...)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Kill() })
		return m
	}
	withTLS := func(name, pair string) *harness.Member {
		return member(name, "--cert-file="+files.File(pair+".pem"), "--key-file="+files.File(pair+".key"), "--client-cert-auth", "--trusted-ca-file="+files.File("ca.pem"))
	}
	good, alien, misnamed, plain := withTLS("m1", "good"), withTLS("m2", "alien"), withTLS("m3", "misnamed"), member("m4")
	port := func(addr string) uint16 {
		a, err := net.ResolveTCPAddr("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		return uint16(a.Port)
	}
	serveSRV(t, map[string][]dnsmessage.SRVResource{
		"_etcd-client-ssl._tcp.example.test.": {srvTo("m2", 1, port(alien.ClientAddr())), srvTo("m1", 2, port(good.ClientAddr())), srvTo("m3", 3, port(misnamed.ClientAddr()))},
		"_etcd-client._tcp.example.test.":     {srvTo("m4", 4, port(plain.ClientAddr()))},
		// Only plain ones: none of them passes the check.
		"_etcd-client-plain._tcp.example.test.": {srvTo("m4", 1, port(plain.ClientAddr()))},
		// The gateway's own address.
		"_etcd-client-loop._tcp.example.test.": {srvTo("m1", 1, 23790)},
	})
	for _, m := range []*harness.Member{good, alien, misnamed, plain} {
		child.Eventually(t, limit, m.Name()+" listens", func() error {
			c, err := net.Dial("tcp", m.ClientAddr())
			if err == nil {
				c.Close()
			}
			return err
		})
	}
	at := func(name string, m *harness.Member) string {
		return fmt.Sprintf("%s.example.test.:%d", name, port(m.ClientAddr()))
	}
	endpoints := func(g *gateway) []string {
		var list []string
		child.Eventually(t, limit, "the gateway serves", func() error {
			lines := g.lines("ready to proxy client requests")
			if len(lines) != 1 {
				return errors.New("not yet")
			}
			for _, e := range lines[0]["endpoints"].([]any) {
				list = append(list, e.(string))
			}
			return nil
		})
		return list
	}

	// With the check, m1 alone is left: it presents the domain's certificate, though it requires one itself.
	g := startGateway(t, etcd, "--discovery-srv", "example.test", "--trusted-ca-file", files.File("ca.pem"))
	if got, want := endpoints(g), []string{at("m1", good)}; !slices.Equal(got, want) {
		t.Errorf("with the check: %v, want %v", got, want)
	}
	out, err := child.Run(limit, etcdctl, "--endpoints", "https://"+g.addr, "--cacert", files.File("ca.pem"), "--cert", files.File("good.pem"), "--key", files.File("good.key"), "put", "a", "b")
	if err != nil || out != "OK\n" {
		t.Errorf("put through TLS: %q, %v", out, err)
	}
	for name, program := range both() {
		// Without it all count, the lowest priority value first: m2.
		g := startGateway(t, program, "--discovery-srv", "example.test", "--insecure-discovery", "--retry-delay", "1h")
		if got, want := endpoints(g), []string{at("m2", alien), at("m1", good), at("m3", misnamed), at("m4", plain)}; !slices.Equal(got, want) {
			t.Errorf("%s, without the check: %v, want %v", name, got, want)
		}
		// Only plain records: back to --endpoints.
		g = startGateway(t, program, "--discovery-srv", "example.test", "--discovery-srv-name", "plain", "--endpoints", plain.ClientURL())
		if got, want := endpoints(g), []string{plain.ClientAddr()}; !slices.Equal(got, want) {
			t.Errorf("%s, with nothing left: %v, want %v", name, got, want)
		}
		if out, err := child.Run(limit, etcdctl, "--endpoints", g.addr, "put", "a", "b"); err != nil || out != "OK\n" {
			t.Errorf("%s, put after falling back: %q, %v", name, out, err)
		}
	}
	for _, args := range []string{
		"gateway start --discovery-srv none.test",
		"gateway start --discovery-srv example.test --discovery-srv-name none",
		"gateway start --discovery-srv example.test --discovery-srv-name loop --insecure-discovery",
	} {
		ours, want := end(t, etcd, strings.Fields(args)...), end(t, realEtcd, strings.Fields(args)...)
		if ours != want || ours.Code != 1 {
			t.Errorf("%s:\n%+v\nreal etcd:\n%+v", args, ours, want)
		}
	}
}

func srvTo(host string, priority, port uint16) dnsmessage.SRVResource {
	return dnsmessage.SRVResource{Priority: priority, Port: port, Target: dnsmessage.MustNewName(host + ".example.test.")}
}

// serveSRV answers with the given records, and with 127.0.0.1 for every host in example.test. It
// becomes the resolver of this process's mount namespace.
func serveSRV(t *testing.T, records map[string][]dnsmessage.SRVResource) {
	t.Helper()
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver 127.0.0.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	child.Must(t, "mount", "--bind", conf, "/etc/resolv.conf")
	t.Cleanup(func() { child.Must(t, "umount", "/etc/resolv.conf") })
	pc, err := net.ListenPacket("udp", "127.0.0.1:53")
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
			if answer := answerDNS(b[:n], records); answer != nil {
				pc.WriteTo(answer, from)
			}
		}
	}()
}

func answerDNS(b []byte, records map[string][]dnsmessage.SRVResource) []byte {
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
	list, known := records[q.Name.String()]
	host := strings.HasSuffix(q.Name.String(), ".example.test.") && !strings.HasPrefix(q.Name.String(), "_")
	switch {
	case !known && !host:
		reply.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeSRV:
		for _, r := range list {
			reply.Answers = append(reply.Answers, dnsmessage.Resource{Header: head, Body: &r})
		}
	case host && q.Type == dnsmessage.TypeA:
		reply.Answers = append(reply.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}})
	}
	out, err := reply.Pack()
	if err != nil {
		return nil
	}
	return out
}

package ctl

import (
	"context"
	"net"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// nameServer answers SRV queries from records, name to target and port.
func nameServer(t *testing.T, records map[string]dnsmessage.SRVResource) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		b := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return // closed
			}
			var q dnsmessage.Message
			if q.Unpack(b[:n]) != nil || len(q.Questions) != 1 {
				continue
			}
			a := dnsmessage.Message{Header: dnsmessage.Header{ID: q.ID, Response: true, Authoritative: true}, Questions: q.Questions}
			if r, ok := records[q.Questions[0].Name.String()]; ok {
				a.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 1},
					Body:   &r,
				}}
			} else {
				a.RCode = dnsmessage.RCodeNameError
			}
			if out, err := a.Pack(); err == nil {
				conn.WriteTo(out, from)
			}
		}
	}()
	was := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
	t.Cleanup(func() { net.DefaultResolver = was })
}

func service(target string, port uint16) dnsmessage.SRVResource {
	return dnsmessage.SRVResource{Target: dnsmessage.MustNewName(target), Port: port}
}

func TestDiscovery(t *testing.T) {
	nameServer(t, map[string]dnsmessage.SRVResource{
		"_etcd-client._tcp.example.com.":            service("plain.example.com.", 2379),
		"_etcd-client-ssl._tcp.example.com.":        service("safe.example.com.", 2379),
		"_etcd-client-blue._tcp.example.com.":       service("blue.example.com.", 12379),
		"_etcd-client._tcp.plain-only.example.com.": service("plain.example.com.", 2379),
	})
	for _, c := range []struct {
		args   []string
		want   string
		stderr string
	}{
		{args: nil, want: "127.0.0.1:2379"},
		{args: []string{"--discovery-srv=example.com"}, want: "https://safe.example.com.:2379 http://plain.example.com.:2379"},
		{args: []string{"-d", "example.com", "--discovery-srv-name=blue"}, want: "http://blue.example.com.:12379"},
		{args: []string{"--discovery-srv=example.com", "--insecure-discovery=false"}, want: "https://safe.example.com.:2379",
			stderr: "ignoring discovered insecure endpoint \"http://plain.example.com.:2379\"\n"},
		// None is left, so the flag is used.
		{args: []string{"--discovery-srv=plain-only.example.com", "--insecure-discovery=false", "--endpoints=a:1, b:2"}, want: "a:1 b:2",
			stderr: "ignoring discovered insecure endpoint \"http://plain.example.com.:2379\"\n"},
	} {
		var errs strings.Builder
		a := &app{Process: Process{Stderr: &errs}}
		if err := a.rootCommand().ParseFlags(c.args); err != nil {
			t.Fatal(err)
		}
		got, err := a.endpoints()
		if err != nil || strings.Join(got, " ") != c.want || errs.String() != c.stderr {
			t.Errorf("%v: endpoints %q, %v, %q; want %q, %q", c.args, got, err, errs.String(), c.want, c.stderr)
		}
	}
	_, stderr, code := run("get", "foo", "--discovery-srv=nowhere.example.com")
	if code != exitError || !strings.HasPrefix(stderr, "Error: dns lookup errors: ") {
		t.Errorf("a domain without records: exit code %d, %q", code, stderr)
	}
}

func TestDebug(t *testing.T) {
	st := newStage(t)
	out, errs := newScreen(), newScreen() // gRPC may still write to it
	code := Run(Process{Args: []string{"get", "foo", "--debug", "--endpoints=" + st.leader.addr}, Stdout: out, Stderr: errs})
	stderr := errs.String()
	if code != exitOK || out.String() != "foo\nbar\n" {
		t.Errorf("exit code %d, %q", code, out)
	}
	for _, want := range []string{"ETCDCTL_DEBUG=true\n", "ETCDCTL_ENDPOINTS=[" + st.leader.addr + "]\n", "ETCDCTL_COMMAND_TIMEOUT=5s\n", "ETCDCTL_WRITE_OUT=simple\n"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("--debug does not print %q", want)
		}
	}
}

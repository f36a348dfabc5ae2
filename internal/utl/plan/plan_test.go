package plan

import (
	"bytes"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"quorate/internal/config"
)

var update = flag.Bool("update", false, "write the golden files anew")

var now = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)

// hosts returns the hosts of valid arguments.
func hosts(t testing.TB, args ...string) []Host {
	t.Helper()
	h, err := ParseHosts(args)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func options(t testing.TB, f func(*Options), args ...string) Options {
	o := Default()
	o.Now, o.Hosts = now, hosts(t, args...)
	f(&o)
	return o
}

var three = []string{"etcd-1=192.168.79.134", "etcd-2=192.168.79.136", "etcd-3=192.168.79.137"}

// plans are the golden ones; each is made from options alone.
func plans(t testing.TB) map[string]Options {
	ca, err := NewAuthority(now, 10)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]Options{
		"unit":     options(t, func(o *Options) {}, three...),
		"unit-tls": options(t, func(o *Options) { o.TLS, o.Out = true, "my-cluster" }, three...),
		"yaml":     options(t, func(o *Options) { o.Format = YAML }, three...),
		"yaml-tls": options(t, func(o *Options) {
			o.Format, o.TLS, o.Out = YAML, true, "my cluster/"
			o.Token, o.DataDir, o.CertDir, o.ClientPort, o.PeerPort = "prod", "/data/etcd", "/data/pki", 4001, 7001
			o.HeartbeatMs, o.ElectionMs, o.Years = 200, 2000, 3
		}, "a=2001:db8::1", "b=etcd-b.example.test", "3=10.0.0.3", "d=10.0.0.4"),
		"join": options(t, func(o *Options) {
			o.Join, o.TLS, o.Authority, o.KeepClient, o.Out = []string{"https://192.168.79.134:2379", "https://192.168.79.136:2379"}, true, ca, true, "/srv/my-cluster"
		}, "etcd-4=192.168.79.138"),
		"join-yaml": options(t, func(o *Options) { o.Join, o.Format = []string{"http://192.168.79.134:2379"}, YAML }, "etcd-4=192.168.79.138", "etcd-5=192.168.79.139"),
		"one":       options(t, func(o *Options) { o.Out = "one" }, "etcd-1=127.0.0.1"),
		"two":       options(t, func(o *Options) {}, "a=host-a", "b=host-b"),
	}
}

// TestGolden compares every plan, without certificates and keys.
func TestGolden(t *testing.T) {
	for name, o := range plans(t) {
		p, err := New(o)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var files []File
		for _, f := range p.Files {
			if bytes.HasPrefix(f.Content, []byte("-----BEGIN")) {
				f.Content = []byte("(PEM)\n")
			}
			if f.Secret() != strings.HasSuffix(f.Path, ".key") || f.Mode != 0o600 && f.Mode != 0o644 {
				t.Errorf("%s: %s has mode %o", name, f.Path, f.Mode)
			}
			f.Host, f.Dest, f.Mode = f.Path, f.Host+":"+f.Dest, 0o644
			files = append(files, f)
		}
		got := (&Plan{Files: files, Steps: p.Steps, Notes: p.Notes}).Text(true)
		path := filepath.Join("testdata", name+".golden")
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s differs from %s; look at it, then run with -args -update:\n%s", name, path, got)
		}
	}
}

// TestWithoutOut prints what belongs on the hosts, and no secrets.
func TestWithoutOut(t *testing.T) {
	o := plans(t)["unit-tls"]
	o.Out = ""
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if text := p.Text(true); strings.Contains(text, "PRIVATE") || !strings.Contains(text, "# --- etcd-2: /etc/systemd/system/etcd.service\n[Unit]\n") {
		t.Error(text)
	}
}

// command returns the words of ExecStart in a unit.
func command(t *testing.T, unit []byte) []string {
	t.Helper()
	_, rest, ok := strings.Cut(string(unit), "\nExecStart=")
	line, _, end := strings.Cut(strings.ReplaceAll(rest, "\\\n", ""), "\n")
	if !ok || !end {
		t.Fatalf("no ExecStart in\n%s", unit)
	}
	return strings.Fields(line)
}

// TestServerTakesEveryPlan passes each planned command line or file to the server's
// parser, and checks that both formats mean the same.
func TestServerTakesEveryPlan(t *testing.T) {
	for name, o := range plans(t) {
		seen := map[string]map[Format]string{}
		for _, format := range []Format{Unit, YAML} {
			o.Format = format
			p, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			byPath := map[string][]byte{}
			for _, f := range p.Files {
				byPath[f.Host+" "+f.Dest] = f.Content
			}
			for _, h := range o.Hosts {
				args := command(t, byPath[h.Name+" "+unitPath])
				if format == YAML {
					file := filepath.Join(t.TempDir(), "etcd.conf.yml")
					if err := os.WriteFile(file, byPath[h.Name+" "+configPath], 0o644); err != nil {
						t.Fatal(err)
					}
					if len(args) != 3 || args[2] != configPath {
						t.Fatalf("%s: %q", name, args)
					}
					args[2] = file
				}
				meaning := parse(t, args)
				if seen[h.Name] == nil {
					seen[h.Name] = map[Format]string{}
				}
				seen[h.Name][format] = meaning
				if !strings.Contains(meaning, " name="+h.Name+" ") || !strings.Contains(meaning, " data="+o.DataDir+" ") {
					t.Errorf("%s: %s", name, meaning)
				}
			}
		}
		for host, m := range seen {
			if m[Unit] != m[YAML] {
				t.Errorf("%s: %s is told\n%s\nby its unit and\n%s\nby its file", name, host, m[Unit], m[YAML])
			}
		}
	}
}

// parse returns the server's configuration for a command line.
func parse(t *testing.T, args []string) string {
	t.Helper()
	var errs strings.Builder
	c, exit := config.Parse(args, nil, io.Discard, &errs)
	if exit != nil {
		t.Fatalf("%q is refused:\n%s", args, errs.String())
	}
	defer c.Close()
	for _, bad := range []string{`"level":"error"`, "failed to verify"} {
		if strings.Contains(errs.String(), bad) {
			t.Errorf("%q:\n%s", args, errs.String())
		}
	}
	return strings.Join([]string{"", "name=" + c.Member.Name, "data=" + c.Member.DataDir, "peer=" + strings.Join(config.URLStrings(c.ListenPeerURLs), ","), strings.Join(config.URLStrings(c.AdvertisePeerURLs), ","),
		"client=" + strings.Join(config.URLStrings(c.ListenClientURLs), ","), strings.Join(config.URLStrings(c.AdvertiseClientURLs), ","), "join=" + strings.Join(config.URLStrings(c.Join), ","),
		"cluster=" + c.InitialCluster, c.ClusterState, c.Member.InitialToken, c.Member.Tick.String(), c.Member.ElectionTimeout().String(),
		"tls=" + c.ClientTLS.String(), c.PeerTLS.String(), strings.Join(c.PeerTLS.AllowedCNs, ","), ""}, " ")
}

func TestArgumentsAreChecked(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string // in the error; empty: none
	}{
		{nil, "NAME=ADDRESS"},
		{[]string{"192.168.1.1"}, `"192.168.1.1": want NAME=ADDRESS`},
		{[]string{"=10.0.0.1"}, `"=10.0.0.1": the name before = is empty`},
		{[]string{"a="}, `"a=": the address after = is empty`},
		{[]string{"a b=10.0.0.1"}, `the name "a b" does not fit`},
		{[]string{"a,b=10.0.0.1"}, `the name "a,b" does not fit`},
		{[]string{"../a=10.0.0.1"}, "does not fit"},
		{[]string{"-a=10.0.0.1"}, "does not fit"},
		{[]string{strings.Repeat("a", 64) + "=10.0.0.1"}, "does not fit"},
		{[]string{"a=http://10.0.0.1:2380"}, "give the address without http:// and port"},
		{[]string{"a=10.0.0.1:2380"}, `"a=10.0.0.1:2380": leave out the port: 10.0.0.1, not 10.0.0.1:2380`},
		{[]string{"a=host:2380"}, "leave out the port: host"},
		{[]string{"a=[::1]:2380"}, "leave out the port: ::1"},
		{[]string{"a=10.0.0.256"}, `"10.0.0.256" is neither`},
		{[]string{"a=10.0.0"}, "is neither"},
		{[]string{"a=my_host"}, "is neither"},
		{[]string{"a=b=c"}, "is neither"},
		{[]string{"a=0.0.0.0"}, "0.0.0.0 is no address of one host"},
		{[]string{"a=224.0.0.1"}, "is no address of one host"},
		{[]string{"a=fe80::1%eth0"}, "zone"},
		{[]string{"a=10.0.0.1", "a=10.0.0.2"}, `"a=10.0.0.2": there are two members called a`},
		{[]string{"a=10.0.0.1", "b=10.0.0.1"}, `"b=10.0.0.1": a has this address already`},
		{[]string{"a=HOST", "b=host"}, "a has this address already"},
		{[]string{"a=::ffff:10.0.0.1", "b=10.0.0.1"}, "a has this address already"},
		{[]string{"a=[2001:DB8::1]", "b=2001:db8:0::1"}, "a has this address already"},
		{[]string{"a=10.0.0.1", "b=host-b.example.test", "c=2001:db8::1"}, ""},
	} {
		_, err := ParseHosts(c.args)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%q: %v, want %q", c.args, err, c.want)
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for _, c := range []struct {
		change func(*Options)
		want   string
	}{
		{func(o *Options) {}, ""},
		{func(o *Options) { o.Hosts = nil }, "no hosts"},
		{func(o *Options) { o.Hosts[1].Address = "127.0.0.1" }, `"etcd-2=127.0.0.1": the other hosts cannot reach`},
		{func(o *Options) { o.Format = "json" }, "--format json"},
		{func(o *Options) { o.Token = "" }, "--token"},
		{func(o *Options) { o.Token = "a b" }, "--token"},
		{func(o *Options) { o.DataDir = "etcd" }, `--data-dir "etcd": want an absolute path`},
		{func(o *Options) { o.DataDir = "/" }, "--data-dir"},
		{func(o *Options) { o.DataDir = "/a b" }, "--data-dir"},
		{func(o *Options) { o.CertDir = "/a%h" }, "--cert-dir"},
		{func(o *Options) { o.CertDir = "/a\n" }, "--cert-dir"},
		{func(o *Options) { o.ClientPort = 0 }, "--client-port 0"},
		{func(o *Options) { o.PeerPort = 65536 }, "--peer-port 65536"},
		{func(o *Options) { o.PeerPort = o.ClientPort }, "both 2379"},
		{func(o *Options) { o.Years = 0 }, "--valid 0"},
		{func(o *Options) { o.HeartbeatMs = -1 }, "above 0"},
		{func(o *Options) { o.HeartbeatMs = 300 }, "--election-timeout 1000 must be at least five times --heartbeat-interval 300"},
		{func(o *Options) { o.ElectionMs = 50001 }, "more than 50000"},
		{func(o *Options) { o.Join = []string{"10.0.0.9:2379"} }, `--join "10.0.0.9:2379": give client URLs`},
		{func(o *Options) { o.Join = []string{"http://10.0.0.9"} }, "--join"},
		{func(o *Options) { o.Join = []string{"http://10.0.0.9:2379/x'"} }, "--join"},
		{func(o *Options) { o.Join = []string{"http://a;b:2379"} }, "--join"},
		{func(o *Options) { o.Join = []string{"https://10.0.0.9:2379"} }, "add --tls"},
		{func(o *Options) { o.Join, o.TLS = []string{"http://10.0.0.9:2379"}, true }, "leave --tls out"},
		{func(o *Options) { o.Join, o.TLS = []string{"https://10.0.0.9:2379"}, true }, ErrNoAuthority.Error()},
	} {
		o := options(t, c.change, three...)
		_, err := New(o)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
}

func TestQuote(t *testing.T) {
	for in, want := range map[string]string{"a/b-1.pem": "a/b-1.pem", "my dir/x": "'my dir/x'", "it's": `'it'\''s'`, "-o": "'./-o'", "$HOME": "'$HOME'", "": "''"} {
		if got := quote(in); got != want {
			t.Errorf("quote(%q) = %s, want %s", in, got, want)
		}
	}
}

// FuzzParseHosts: accepted arguments contain no character with a meaning in a command
// line, and result in a plan that contains them.
func FuzzParseHosts(f *testing.F) {
	for _, s := range []string{"a=10.0.0.1", "a=::1", "a=[::1]", "x.y-z=host.example", "a=1:2", "=", "a=b=c", "a=http://x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, arg string) {
		h, err := ParseHosts([]string{arg})
		if err != nil {
			return
		}
		if strings.ContainsAny(h[0].Name+h[0].Address, " \t\n\r'\"\\$`%;&|<>(){}[]*?!#~,=/") {
			t.Errorf("%q gives %+v", arg, h[0])
		}
		o := Default()
		o.Hosts = h
		if _, err := New(o); err != nil {
			t.Errorf("%q: %v", arg, err)
		}
	})
}

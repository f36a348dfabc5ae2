package proxies

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"quorate/compat/child"
	"quorate/compat/harness"
	"quorate/compat/pki"
)

// page is the response of a URL.
func page(t *testing.T, method, url string, client *http.Client) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d %s %q\n%s", resp.StatusCode, resp.Header.Get("Content-Type"), resp.Header.Get("Allow"), body)
}

func TestGRPCProxyPages(t *testing.T) {
	t.Parallel()
	addrs, err := harness.FreeAddrs(2)
	if err != nil {
		t.Fatal(err)
	}
	var pair [2]*grpcProxy
	for i, program := range []string{etcd, realEtcd} {
		pair[i] = startGRPCProxy(t, []string{"ours", "real"}[i], program, startMember(t), "--metrics-addr=http://"+addrs[i], "--enable-pprof", "--advertise-client-url=")
	}
	for _, path := range []string{"/health", "/proxy/health", "/version", "/", "/v3/kv/range", "/v2/keys", "/debug/vars", "/debug/pprof/cmdline"} {
		for _, method := range []string{"GET", "POST"} {
			ours, want := page(t, method, "http://"+pair[0].addr+path, http.DefaultClient), page(t, method, "http://"+pair[1].addr+path, http.DefaultClient)
			if path == "/debug/pprof/cmdline" {
				ours, want = ours[:4], want[:4]
			}
			if ours != want {
				t.Errorf("%s %s:\n%s\nreal etcd:\n%s", method, path, ours, want)
			}
		}
	}
	series := regexp.MustCompile(`(?m)^# TYPE (etcd_grpc_proxy_\S+ \S+)$`)
	for i := range pair {
		for _, base := range []string{pair[i].addr, addrs[i]} {
			if body := page(t, "GET", "http://"+base+"/metrics", http.DefaultClient); !strings.HasPrefix(body, "200 text/plain; version=0.0.4 ") || !strings.Contains(body, "\netcd_server_has_leader 1\n") {
				t.Errorf("%s: /metrics is not the member's: %.200s", pair[i].name, body)
			}
			if body := page(t, "GET", "http://"+base+"/health", http.DefaultClient); !strings.HasPrefix(body, "200 ") {
				t.Errorf("%s: /health: %s", pair[i].name, body)
			}
		}
	}
	ours := series.FindAllString(page(t, "GET", "http://"+addrs[0]+"/proxy/metrics", http.DefaultClient), -1)
	want := series.FindAllString(page(t, "GET", "http://"+addrs[1]+"/proxy/metrics", http.DefaultClient), -1)
	if len(want) != 5 || fmt.Sprint(ours) != fmt.Sprint(want) {
		t.Errorf("series of the proxy: %q, real etcd %q", ours, want)
	}
}

// TLS on both sides, and the proxy's messages about unusable files.
func TestGRPCProxyTLS(t *testing.T) {
	t.Parallel()
	files := pki.Dir{TB: t, Path: t.TempDir()}
	ca := pki.NewCA("ours")
	files.Put("ca.pem", ca.PEM)
	files.PutPair("server", ca.Issue("server", "127.0.0.1"))
	files.PutPair("nameless", ca.Issue("", "127.0.0.1"))
	files.PutPair("named", ca.Issue("named", "127.0.0.1"))
	addrs, err := harness.FreeAddrs(1)
	if err != nil {
		t.Fatal(err)
	}
	m, err := harness.Start(harness.Config{Binary: etcd, Name: "m", Dir: t.TempDir(), ClientAddr: addrs[0], AdvertiseClientURL: "https://" + addrs[0], Args: []string{
		"--listen-client-urls=https://" + addrs[0], "--cert-file=" + files.File("server.pem"), "--key-file=" + files.File("server.key"), "--client-cert-auth", "--trusted-ca-file=" + files.File("ca.pem")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Kill() })
	upstream := func(pair string) []string {
		return []string{"--cert=" + files.File(pair+".pem"), "--key=" + files.File(pair+".key"), "--cacert=" + files.File("ca.pem")}
	}
	p := startGRPCProxy(t, "ours", etcd, m, append(upstream("nameless"), "--cert-file="+files.File("server.pem"), "--key-file="+files.File("server.key"), "--trusted-ca-file="+files.File("ca.pem"))...)
	flags := []string{"--cacert", files.File("ca.pem"), "--cert", files.File("nameless.pem"), "--key", files.File("nameless.key")}
	child.Eventually(t, limit, "a write", func() error {
		if out := p.ctl(t, etcdctl, "put a 1", flags...); out.Code != 0 {
			return fmt.Errorf("%+v", out)
		}
		return nil
	})
	if out := p.ctl(t, etcdctl, "get a --command-timeout=2s", "--cacert", files.File("ca.pem")); out.Code == 0 {
		t.Errorf("without a certificate: %+v", out)
	}
	nameless := ca.Issue("", "127.0.0.1")
	browser := &http.Client{Transport: &http.Transport{TLSClientConfig: pki.Client(ca.PEM, &nameless)}}
	defer browser.CloseIdleConnections()
	for _, path := range []string{"/health", "/proxy/health"} {
		if got := page(t, "GET", "https://"+p.addr+path, browser); !strings.Contains(got, `{"health":"true","reason":""}`) {
			t.Errorf("%s: %s", path, got)
		}
	}
	if got := page(t, "GET", "https://"+p.addr+"/metrics", browser); !strings.Contains(got, "\netcd_server_has_leader 1\n") {
		t.Errorf("/metrics: %.200s", got)
	}

	auto := startGRPCProxy(t, "auto", etcd, m, append(upstream("nameless"), "--auto-tls", "--data-dir="+t.TempDir())...)
	if out := auto.ctl(t, etcdctl, "get a", "--insecure-skip-tls-verify", "--insecure-transport=false"); out.Stdout != "a\n1\n" {
		t.Errorf("with a generated certificate: %+v", out)
	}
	for _, x := range []struct {
		args []string
		flag string // that ours names
	}{
		{upstream("named"), ": --cert:"}, {upstream("none"), "--cert: open"},
		{[]string{"--cert=" + files.File("named.pem")}, ": --key and --cert"}, {[]string{"--cacert=" + files.File("none.pem")}, "--cacert: open"},
	} {
		args := append([]string{"grpc-proxy", "start", "--listen-addr=127.0.0.1:0"}, x.args...)
		if ours, want := end(t, etcd, args...), end(t, realEtcd, args...); ours.differs(want, x.flag) {
			t.Errorf("%q:\n%+v\nreal etcd:\n%+v", args, ours, want)
		}
	}
	// Real etcd says it in a log line.
	const say = "cannot listen on TLS for 127.0.0.1:0: KeyFile and CertFile are not presented: --trusted-ca-file asks for TLS; give --cert-file and --key-file, or --auto-tls"
	if got := end(t, etcd, "grpc-proxy", "start", "--listen-addr=127.0.0.1:0", "--trusted-ca-file="+files.File("ca.pem")); got.Code != 1 || !strings.Contains(got.Stderr, say) {
		t.Errorf("authorities without a certificate: %+v", got)
	}
}

// Help and mistakes: the same texts on the same streams, and the same exit codes.
func TestGRPCProxyMistakes(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	// The flag that ours names.
	named := map[string]string{
		"start --tls-min-version=TLS1.3 --tls-max-version=TLS1.2":                            ": --tls-min-version and --tls-max-version",
		"start --tls-min-version=TLS1.3 --listen-cipher-suites=TLS_RSA_WITH_AES_128_CBC_SHA": ": leave out --listen-cipher-suites, or lower --tls-min-version",
		"start --auto-tls --self-signed-cert-validity=0":                                     ": --self-signed-cert-validity",
		"start --listen-addr=abc":                                                            ": --listen-addr",
		"start --listen-addr=127.0.0.1:99999":                                                ": --listen-addr",
		"start extra --listen-addr=" + taken.Addr().String():                                 ": --listen-addr: another process or another flag uses it",
	}
	for _, args := range []string{
		"",
		"other",
		"--help",
		"--nope",
		"start --help",
		"start --nope",
		"start --resolver-ttl abc",
		"start --max-concurrent-streams=-1",
		"start --resolver-prefix=x",
		"start --resolver-prefix=x --resolver-ttl=-1",
		"start --resolver-ttl=3",
		"start --resolver-prefix=x --resolver-ttl=3 --advertise-client-url=",
		"start --tls-min-version=x",
		"start --tls-max-version=TLS1.1",
		"start --tls-min-version=TLS1.3 --tls-max-version=TLS1.2",
		"start --tls-min-version=TLS1.3 --listen-cipher-suites=TLS_RSA_WITH_AES_128_CBC_SHA",
		"start --auto-tls --self-signed-cert-validity=0",
		"start --listen-addr=abc",
		"start --listen-addr=127.0.0.1:99999",
		"start extra --listen-addr=" + taken.Addr().String(),
		"start --listen-addr=127.0.0.1:0 --endpoints=",
		"start --listen-addr=127.0.0.1:0 --max-recv-bytes=5",
	} {
		words := append([]string{"grpc-proxy"}, strings.Fields(args)...)
		if ours, want := end(t, etcd, words...), end(t, realEtcd, words...); ours.differs(want, named[args]) {
			t.Errorf("%s:\n%+v\nreal etcd:\n%+v", args, ours, want)
		}
	}
	// These real etcd puts inside a log line, or prints with a time, or not at all.
	for args, text := range map[string]string{
		"--cert-file=none.pem":                                       "KeyFile and CertFile must both be present[key: , cert: none.pem]: --key-file and --cert-file",
		"--cert-file=none.pem --key-file=none.key":                   "--cert-file: open none.pem: no such file or directory",
		"--trusted-ca-file=" + os.DevNull:                            "--trusted-ca-file=/dev/null: no certificate in the file",
		"--cert-file=a --key-file=b --listen-cipher-suites=TLS_NONE": `unexpected TLS cipher suite "TLS_NONE": --listen-cipher-suites`,
		"--metrics-addr=%zz":                                         `cannot parse "%zz"`,
		"--metrics-addr=127.0.0.1:0":                                 `cannot parse "127.0.0.1:0"`,
		"--metrics-addr=https://127.0.0.1:0":                         `--metrics-addr=https://127.0.0.1:0: no TLS for scheme "https" without --cert-file and --key-file`,
		"--metrics-addr=localhost":                                   `--metrics-addr=localhost: cannot listen with scheme ""`,
	} {
		got := end(t, etcd, append([]string{"grpc-proxy", "start", "--listen-addr=127.0.0.1:0"}, strings.Fields(args)...)...)
		if got != (outcome{1, "", text}) {
			t.Errorf("%s: %+v, want %q", args, got, text)
		}
	}
}

// With --endpoints-auto-sync-interval the members replace --endpoints, and the log names them.
func TestGRPCProxySync(t *testing.T) {
	t.Parallel()
	m := startMember(t)
	_, port, _ := strings.Cut(m.ClientAddr(), ":")
	for name, program := range both() {
		p := child.Start(t, child.Config{Program: program, Dir: filepath.Join(t.TempDir(), "proxy-"+name), Args: []string{
			"grpc-proxy", "start", "--listen-addr", "127.0.0.1:0", "--endpoints", "localhost:" + port, "--endpoints-auto-sync-interval", "1s"}})
		child.Eventually(t, limit, name+" uses the member's own URL", func() error {
			for line := range strings.Lines(p.Output()) {
				if strings.Contains(line, m.ClientAddr()) {
					return nil
				}
			}
			return errors.New("not said yet")
		})
	}
}

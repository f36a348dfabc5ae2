package h2

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"quorate/compat/child"
	"quorate/compat/harness"
	"quorate/compat/pki"
)

var etcdFlag = flag.String("etcd", "", "server binary; empty: built from this tree")

// limit is the upper bound of any single wait, generous because the machine may be busy.
const limit = 3 * time.Minute

// served is a member with one port in clear text and one with TLS.
type served struct {
	*harness.Member
	plain, secure string // host:port
	ca            string // file
}

func serve(t *testing.T) served {
	t.Helper()
	dir := t.TempDir()
	binary, err := child.Binary(*etcdFlag, "etcd", dir)
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := harness.FreeAddrs(2)
	if err != nil {
		t.Fatal(err)
	}
	files := pki.Dir{TB: t, Path: dir}
	ca := pki.NewCA("clients")
	files.PutPair("server", ca.Issue("server"))
	s := served{plain: addrs[0], secure: addrs[1], ca: files.Put("ca.pem", ca.PEM)}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	s.Member, err = harness.StartSingle(ctx, harness.Config{Name: "m", Dir: dir, Binary: binary, ClientAddr: s.plain, Args: []string{
		"--listen-client-urls=http://" + s.plain + ",https://" + s.secure, "--max-request-bytes=10000000",
		"--cert-file=" + files.File("server.pem"), "--key-file=" + files.File("server.key")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Kill() })
	return s
}

// need skips a test whose client is not installed.
func need(t *testing.T, program string, args ...string) {
	t.Helper()
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		t.Skipf("%s is not here (clients/install brings it): %v %s", program, err, out)
	}
}

// TestOtherStacks has gRPC clients of other stacks make unary calls and streams with messages of 4 MiB, cancel
// midway, and observe the server's graceful shutdown.
func TestOtherStacks(t *testing.T) {
	for _, c := range []struct {
		name    string
		look    []string
		command []string
	}{
		{"C core", []string{"/usr/bin/python3", "-c", "import grpc"}, []string{"/usr/bin/python3", "clients/client.py"}},
		{"grpc-js", []string{"node", "-e", `require("./clients/node_modules/@grpc/grpc-js")`}, []string{"node", "clients/client.js"}},
	} {
		for _, secure := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, TLS %v", c.name, secure), func(t *testing.T) {
				need(t, c.look[0], c.look[1:]...)
				s := serve(t)
				args := append(c.command[1:len(c.command):len(c.command)], s.plain)
				if secure {
					args = append(c.command[1:len(c.command):len(c.command)], s.secure, s.ca)
				}
				drain(t, s, exec.Command(c.command[0], args...))
			})
		}
	}
}

// drain runs a client until it is ready, shuts the server down gracefully, and checks how the client's last
// stream ended.
func drain(t *testing.T, s served, cmd *exec.Cmd) {
	t.Helper()
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := time.AfterFunc(limit, func() { cmd.Process.Kill() })
	defer stop.Stop()
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "ready" {
		cmd.Wait()
		t.Fatalf("the client said %q and %s", lines.Text(), errs.String())
	}
	if err := s.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if !lines.Scan() || lines.Text() != "ended: UNAVAILABLE" {
		t.Errorf("the client said %q and %s", lines.Text(), errs.String())
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the client ended with %v: %s", err, errs.String())
	}
	<-s.Exited()
}

// putBody is a put, framed as gRPC does.
const putBody = "\x00\x00\x00\x00\x06\x0a\x01k\x12\x01v"

func TestCurl(t *testing.T) {
	need(t, "curl", "--version")
	s := serve(t)
	body := filepath.Join(t.TempDir(), "put")
	if err := os.WriteFile(body, []byte(putBody), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, at := range [][]string{{"--http2-prior-knowledge", "http://" + s.plain}, {"--http2", "--cacert", s.ca, "https://" + s.secure}} {
		args := append([]string{"-sS", "-v", "--max-time", "60", "-H", "content-type: application/grpc", "-H", "te: trailers", "--data-binary", "@" + body,
			"-o", os.DevNull}, at...)
		args[len(args)-1] += "/etcdserverpb.KV/Put"
		out, err := child.Run(limit, "curl", args...)
		if err != nil || !strings.Contains(out, "< HTTP/2 200") || !strings.Contains(out, "< grpc-status: 0") {
			t.Errorf("%v: %v\n%s", at, err, out)
		}
	}
}

var allGood = regexp.MustCompile(`(\d+) total, (\d+) started, (\d+) done, (\d+) succeeded, 0 failed, 0 errored, 0 timeout`)

func TestH2Load(t *testing.T) {
	need(t, "h2load", "--version")
	s := serve(t)
	body := filepath.Join(t.TempDir(), "put")
	if err := os.WriteFile(body, []byte(putBody), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{"http://" + s.plain, "https://" + s.secure} {
		out, err := child.Run(limit, "h2load", "-n", "5000", "-c", "10", "-m", "20", "-H", "content-type: application/grpc", "-H", "te: trailers", "-d", body,
			url+"/etcdserverpb.KV/Put")
		if m := allGood.FindStringSubmatch(out); err != nil || m == nil || m[4] != "5000" {
			t.Errorf("%s: %v\n%s", url, err, out)
		}
	}
}

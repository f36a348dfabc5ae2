package proxies

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"quorate/compat/child"
	"quorate/compat/harness"
)

var realCtlFlag = flag.String("realctl", "../bin/etcdctl37", "real etcdctl 3.7")

// grpcProxy is a running `etcd grpc-proxy start` in front of a member of its own.
type grpcProxy struct {
	*child.Process
	name, addr string
	member     *harness.Member
}

// startGRPCProxy runs one until the test ends, and waits until it is healthy.
func startGRPCProxy(t *testing.T, name, program string, m *harness.Member, args ...string) *grpcProxy {
	t.Helper()
	for {
		addrs, err := harness.FreeAddrs(1)
		if err != nil {
			t.Fatal(err)
		}
		p := &grpcProxy{name: name, addr: addrs[0], member: m}
		p.Process = child.Start(t, child.Config{Program: program, Dir: filepath.Join(t.TempDir(), "proxy-"+name), Args: append([]string{
			"grpc-proxy", "start", "--listen-addr", p.addr, "--advertise-client-url", p.addr, "--endpoints", m.ClientAddr()}, args...)})
		deadline := time.Now().Add(limit)
		for p.Running() {
			if strings.Contains(p.Output(), `"started gRPC proxy"`) {
				return p
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s is not ready after %v:\n%s", name, limit, p.Output())
			}
			time.Sleep(10 * time.Millisecond)
		}
		// Another process may have taken the port since it was found free.
		if out := p.Output(); !strings.Contains(out, "address already in use") {
			t.Fatalf("%s has ended with %d:\n%s", name, p.Code(), out)
		}
	}
}

// startPair runs both programs with the same arguments, each in front of a member of this tree.
func startPair(t *testing.T, args ...string) [2]*grpcProxy {
	t.Helper()
	var pair [2]*grpcProxy
	for i, p := range []struct{ name, program string }{{"ours", etcd}, {"real", realEtcd}} {
		pair[i] = startGRPCProxy(t, p.name, p.program, startMember(t), args...)
	}
	return pair
}

func startMember(t *testing.T, args ...string) *harness.Member {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	m, err := harness.StartSingle(ctx, harness.Config{Binary: etcd, Name: "m", Dir: t.TempDir(), Args: args})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Kill() })
	return m
}

// What differs between runs: addresses, ids, sizes.
var varying = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), "ADDR"},
	{regexp.MustCompile(`\b[0-9a-f]{14,16}\b`), "ID"},
	{regexp.MustCompile(`"(cluster_id|member_id|leader|lease|ID|id)":"?\d+"?`), `"$1":0`},
	{regexp.MustCompile(`"(raft_term|raftTerm|raftIndex|raftAppliedIndex|dbSize|dbSizeInUse|hash|ttl)":"?\d+"?`), `"$1":0`},
	{regexp.MustCompile(`remaining\(\d+s\)`), "remaining"},
	{regexp.MustCompile(`"(ClusterID|MemberID|RaftTerm)" : \d+`), `"$1"`},
	{regexp.MustCompile(`took[ =]+[0-9.]+[µmn]?s`), "took"},
	{regexp.MustCompile(`\d+(\.\d+)? [kM]B`), "SIZE"},
	{regexp.MustCompile(`/tmp/\S+`), "FILE"},
}

func normal(s string) string {
	for _, v := range varying {
		s = v.pattern.ReplaceAllString(s, v.with)
	}
	return s
}

// ctl runs an etcdctl through p; a part of the command after "<<" is its standard input.
func (p *grpcProxy) ctl(t *testing.T, program, command string, flags ...string) outcome {
	t.Helper()
	return ctlAt(t, program, p.addr, command, flags...)
}

func ctlAt(t *testing.T, program, addr, command string, flags ...string) outcome {
	t.Helper()
	command, input, _ := strings.Cut(command, " << ")
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	args := append([]string{"--endpoints", addr, "--command-timeout", "60s"}, flags...)
	cmd := exec.CommandContext(ctx, program, append(args, fields(command)...)...)
	cmd.Stdin = strings.NewReader(strings.ReplaceAll(input, ";", "\n"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("%s %s: %v\n%s", program, command, err, &stderr)
	}
	var said []string
	for line := range strings.Lines(stderr.String()) {
		if !strings.HasPrefix(line, "{") {
			said = append(said, line)
		}
	}
	return outcome{cmd.ProcessState.ExitCode(), normal(stdout.String()), normal(strings.Join(said, ""))}
}

// fields are the words of a command; ” is an empty one.
func fields(command string) []string {
	words := strings.Fields(command)
	for i, w := range words {
		if w == "''" {
			words[i] = ""
		}
	}
	return words
}

// compare runs commands through both proxies, one after the other, and compares their output.
func compare(t *testing.T, pair [2]*grpcProxy, program, script string) {
	t.Helper()
	for command := range strings.Lines(script) {
		if command = strings.TrimSpace(command); command == "" {
			continue
		}
		ours, want := pair[0].ctl(t, program, command), pair[1].ctl(t, program, command)
		if ours != want {
			t.Errorf("%s %s:\n%+v\nreal etcd:\n%+v", filepath.Base(program), command, ours, want)
		}
	}
}

// compareMembers compares the members behind the proxies.
func compareMembers(t *testing.T, pair [2]*grpcProxy, command string) {
	t.Helper()
	ours, want := ctlAt(t, etcdctl, pair[0].member.ClientAddr(), command), ctlAt(t, etcdctl, pair[1].member.ClientAddr(), command)
	if ours != want {
		t.Errorf("behind the proxies: %s:\n%+v\nreal etcd:\n%+v", command, ours, want)
	}
}

// background is a command that runs until it is interrupted.
type background struct {
	mu  sync.Mutex
	out bytes.Buffer
	cmd *exec.Cmd
}

func (b *background) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.Write(p)
}

func (b *background) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.String()
}

func (p *grpcProxy) begin(t *testing.T, program, command string) *background {
	t.Helper()
	b := &background{}
	b.cmd = exec.Command(program, append([]string{"--endpoints", p.addr}, fields(command)...)...)
	b.cmd.Stdout = b
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.end)
	return b
}

func (b *background) end() {
	_ = b.cmd.Process.Signal(syscall.SIGTERM) // it may have exited
	_ = b.cmd.Wait()
}

// prints waits until the output, normalised, is want.
func (b *background) prints(t *testing.T, who, want string) {
	t.Helper()
	for deadline := time.Now().Add(limit); normal(b.String()) != want; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s prints\n%swant\n%s", who, b.String(), want)
		}
	}
}

func bothCtls(t *testing.T) []string {
	t.Helper()
	realCtl, err := filepath.Abs(*realCtlFlag)
	if err != nil {
		t.Fatal(err)
	}
	return []string{etcdctl, realCtl}
}

const grpcProxyScript = `
put a 1
get a
get a --consistency s
put a 2 --prev-kv
get a --consistency s -w json
get a -w json
get a --rev 2
put '' x
get '' --from-key
get '' --from-key --keys-only --limit 1 -w json
get none
get a --rev 1000
put b x --lease 12345
put b x --ignore-lease
del a --prev-kv
get a --consistency s
put c 1
put d 2
put e 3
get c e
get c e --count-only --write-out fields
get c --prefix --sort-by VALUE --order DESCEND
del c d
txn -i=false << value("d") = "2";;put d 3;get d;;get d;
txn -i=false << value("d") = "2";;put d 3;get d;;get d;;
txn -i=false << version("none") = "0";;put none 1;del e;;get d;;
get e --consistency s
get none --consistency s
compaction 5
get a --rev 3
get a --rev 3 --consistency s
compaction 5
compaction 5000
lease grant 300
lease timetolive 1
lease keep-alive --once 1
lease revoke 1
lease list
member list
member list -w json
member remove 1
endpoint health
endpoint status -w json
endpoint hashkv -w json
alarm list
defrag
lock l echo locked
move-leader 1
`

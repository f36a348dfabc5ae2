package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"quorate/internal/config"
	"quorate/internal/server"
)

func parse(t *testing.T, args string) *config.Config {
	t.Helper()
	var stderr strings.Builder
	c, exit := config.Parse(append([]string{"etcd", "--data-dir", filepath.Join(t.TempDir(), "d")}, strings.Fields(args)...), nil, io.Discard, &stderr)
	if exit != nil {
		t.Fatalf("%s: exit %d: %s", args, exit.Code, stderr.String())
	}
	t.Cleanup(c.Close)
	return c
}

// The value of a flag arrives at the package that acts on it; the tests of that package
// show its effect.
func TestFlagsReachTheMember(t *testing.T) {
	for _, tc := range []struct {
		args string
		get  func(server.Config) any
		want any
	}{
		{"--initial-election-tick-advance=false", func(c server.Config) any { return c.InitialTickAdvance }, false},
		{"--pre-vote=false", func(c server.Config) any { return c.PreVote }, false},
		{"--strict-reconfig-check=false", func(c server.Config) any { return c.StrictReconfig }, false},
		{"--max-learners=3", func(c server.Config) any { return c.Membership.MaxLearners }, 3},
		{"--snapshot-count=77", func(c server.Config) any { return c.SnapshotCount }, uint64(77)},
		{"--snapshot-catchup-entries=78", func(c server.Config) any { return c.CatchUpEntries }, uint64(78)},
		{"--heartbeat-interval=50 --election-timeout=600", func(c server.Config) any { return fmt.Sprint(c.Tick, c.ElectionTicks) }, "50ms 12"},
		{"--max-request-bytes=1000", func(c server.Config) any { return c.MaxRequestBytes }, 1000},
		{"--quota-backend-bytes=5000000", func(c server.Config) any { return c.State.Quota }, int64(5000000)},
		{"--backend-batch-limit=9", func(c server.Config) any { return c.ApplyBatch }, 9},
		{"--backend-batch-interval=1m", func(c server.Config) any { return c.Upkeep.FlushInterval }, time.Minute},
		{"--backend-batch-interval=100ms", func(c server.Config) any { return c.Upkeep.FlushInterval }, 5 * time.Second},
		{"--bootstrap-defrag-threshold-megabytes=3", func(c server.Config) any { return c.Upkeep.DefragThreshold }, int64(3 << 20)},
		{"--downgrade-check-time=9s", func(c server.Config) any { return c.Upkeep.DowngradeCheck }, 9 * time.Second},
		{"--raft-read-timeout=7s", func(c server.Config) any { return c.Peers.ReadTimeout }, 7 * time.Second},
		{"--raft-write-timeout=8s", func(c server.Config) any { return c.Peers.WriteTimeout }, 8 * time.Second},
		{"--compaction-batch-limit=11", func(c server.Config) any { return c.State.MVCC.CompactionBatch }, 11},
		{"--compaction-sleep-interval=12ms", func(c server.Config) any { return c.State.MVCC.CompactionPause }, 12 * time.Millisecond},
		{"--auto-compaction-mode=periodic --auto-compaction-retention=2", func(c server.Config) any { return c.Upkeep.AutoCompaction.Period }, 2 * time.Hour},
		{"--auto-compaction-mode=revision --auto-compaction-retention=2", func(c server.Config) any { return c.Upkeep.AutoCompaction.Revisions }, int64(2)},
		{"--corrupt-check-time=1h", func(c server.Config) any { return c.Checks.Interval }, time.Hour},
		{"--digest-check-time=3s", func(c server.Config) any { return c.Checks.Digests }, 3 * time.Second},
		{"--scrub-interval=5h", func(c server.Config) any { return c.Checks.Scrub }, 5 * time.Hour},
		{"--feature-gates=CompactHashCheck=true --compact-hash-check-time=2m", func(c server.Config) any { return c.Checks.CompactionsInterval }, 2 * time.Minute},
		{"--feature-gates=LeaseCheckpoint=true,LeaseCheckpointPersist=true", func(c server.Config) any { return c.Lease.Checkpoints && c.State.PersistCheckpoints }, true},
		{"--feature-gates=PriorityRequest=true", func(c server.Config) any { return c.PriorityRequests }, true},
		{"--feature-gates=SetMemberLocalAddr=true --initial-advertise-peer-urls=http://0.0.0.0:1,http://10.1.1.1:1 --initial-cluster=default=http://0.0.0.0:1,default=http://10.1.1.1:1",
			func(c server.Config) any { return c.Peers.LocalIP.Equal(net.IPv4(10, 1, 1, 1)) }, true},
		{"--auth-token-ttl=99", func(c server.Config) any { return c.Tokens.TTL }, 99 * time.Second},
		{"--bcrypt-cost=5", func(c server.Config) any { return c.BcryptCost }, 5},
		{"--watch-progress-notify-interval=3s", func(c server.Config) any { return c.Watch.ProgressInterval }, 3 * time.Second},
		{"--warning-apply-duration=4s", func(c server.Config) any { return c.State.WarnApply }, 4 * time.Second},
		{"--enable-v2", func(c server.Config) any { return c.Peers.Stats }, true},
		{"--unsafe-no-fsync", func(c server.Config) any { return c.Log.NoSync }, true},
		{"--initial-cluster-token=tok", func(c server.Config) any { return c.InitialToken }, "tok"},
		{"--initial-cluster-state=existing", func(c server.Config) any { return c.Existing }, true},
	} {
		c := parse(t, tc.args)
		sc, err := memberConfig(t.Context(), c, false)
		if err != nil {
			t.Errorf("%s: %v", tc.args, err)
			continue
		}
		if got := tc.get(sc); got != tc.want {
			t.Errorf("%s: %v (%T), want %v (%T)", tc.args, got, got, tc.want, tc.want)
		}
		if inert := c.Inert(); len(inert) > 0 {
			t.Errorf("%s: said to be without effect: %q", tc.args, inert)
		}
	}
}

func TestFlagsReachTheRegister(t *testing.T) {
	c := parse(t, "--discovery-token=T --discovery-endpoints=http://a:1,http://b:1 --discovery-dial-timeout=1s --discovery-request-timeout=2s "+
		"--discovery-keepalive-time=3s --discovery-keepalive-timeout=4s --discovery-user=u --discovery-password=p --discovery-insecure-skip-tls-verify=true --discovery-insecure-transport=false")
	r, err := c.Discovery.Register(c.Log())
	if err != nil {
		t.Fatal(err)
	}
	if r.TLS == nil || !r.TLS.InsecureSkipVerify {
		t.Errorf("TLS %+v", r.TLS)
	}
	r.TLS, r.Logger = nil, nil
	if got, want := fmt.Sprintf("%+v", r), "{Token:T Endpoints:[http://a:1 http://b:1] DialTimeout:1s RequestTimeout:2s KeepAliveTime:3s KeepAliveTimeout:4s TLS:<nil> Username:u Password:p Logger:<nil>}"; got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	for _, flag := range []string{"--discovery-cert=/does/not/exist --discovery-key=/does/not/exist", "--discovery-cacert=/does/not/exist"} {
		c := parse(t, "--discovery-token=T --discovery-endpoints=http://a:1 "+flag)
		if _, err := c.Discovery.Register(c.Log()); err == nil || !strings.Contains(err.Error(), "/does/not/exist") {
			t.Errorf("%s: %v", flag, err)
		}
	}
}

// The flags of 3.4 to 3.6 that became feature gates set these gates.
func TestFormerFlagsSwitchGates(t *testing.T) {
	c := parse(t, "--experimental-initial-corrupt-check=true --experimental-compact-hash-check-enabled=true --experimental-enable-lease-checkpoint=true "+
		"--experimental-enable-lease-checkpoint-persist=true --experimental-stop-grpc-service-on-defrag=true")
	for _, gate := range []string{config.InitialCorruptCheck, config.CompactHashCheck, config.LeaseCheckpoint, config.LeaseCheckpointPersist, config.NotServingOnDefrag} {
		if !c.FeatureGates.Enabled(gate) {
			t.Errorf("%s is off", gate)
		}
	}
	if sc, err := memberConfig(t.Context(), c, true); err != nil || !sc.State.PersistCheckpoints || !sc.Checks.Compactions || sc.Checks.CompactionsInterval != time.Minute {
		t.Errorf("%+v, %v", sc, err)
	}
}

func TestLogFlags(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	c := parse(t, "--debug --log-format=console --log-outputs="+path+" --enable-log-rotation --log-rotation-config-json={\"maxsize\":1,\"maxbackups\":2}")
	line := strings.Repeat("x", 64<<10)
	c.Log().Debug("shown because of --debug")
	for i := range 40 { // more than two megabytes
		c.Log().Info(fmt.Sprint(i, line))
	}
	files, err := filepath.Glob(filepath.Dir(path) + "/*")
	if err != nil || len(files) < 2 {
		t.Errorf("nothing was rotated: %q, %v", files, err)
	}
	shown := false
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > 1<<20 {
			t.Errorf("%s has %d bytes, more than maxsize", f, len(b))
		}
		if bytes.Contains(b, []byte("{\"level\"")) {
			t.Errorf("%s has JSON lines", f)
		}
		shown = shown || bytes.Contains(b, []byte("shown because of --debug"))
	}
	if !shown {
		t.Error("--debug shows no debug line")
	}
}

// With --socket-reuse-port or --socket-reuse-address on both sides, two processes can share
// a port, or use it directly one after the other.
func TestSocketOptions(t *testing.T) {
	first := parse(t, "--socket-reuse-port --socket-reuse-address --listen-client-urls=http://127.0.0.1:0 --advertise-client-urls=http://x:1 --listen-peer-urls=http://127.0.0.1:0")
	p := &process{cfg: first, lg: first.Log()}
	if err := p.listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer p.closeListeners()
	again := "http://" + p.peer[0].Addr().String()
	share := parse(t, "--socket-reuse-port --listen-client-urls=http://127.0.0.1:0 --advertise-client-urls=http://x:1 --listen-peer-urls="+again)
	q := &process{cfg: share, lg: share.Log()}
	if err := q.listen(t.Context()); err != nil {
		t.Errorf("with --socket-reuse-port: %v", err)
	}
	q.closeListeners()
	alone := parse(t, "--listen-client-urls=http://127.0.0.1:0 --advertise-client-urls=http://x:1 --listen-peer-urls="+again)
	r := &process{cfg: alone, lg: alone.Log()}
	if err := r.listen(t.Context()); err == nil {
		t.Error("the port is shared without having been asked for")
	}
	r.closeListeners()
}

// --memory-mlock locks the memory, or says why it cannot.
func TestMemoryMlock(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("--memory-mlock is for Linux")
	}
	err := lockMemory()
	if err != nil {
		if !strings.Contains(err.Error(), "--memory-mlock") || !strings.Contains(err.Error(), "LimitMEMLOCK") {
			t.Errorf("%v", err)
		}
		return
	}
	defer unix.Munlockall()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(b, []byte("VmLck:\t       0 kB")) {
		t.Errorf("no memory is locked:\n%s", b)
	}
}

// Values that other versions knew are accepted or rejected as in etcd 3.7.
func TestFormerValues(t *testing.T) {
	if c := parse(t, "--v2-deprecation=write-only --discovery-fallback=exit"); len(c.Inert()) > 0 {
		t.Errorf("%q", c.Inert())
	}
}

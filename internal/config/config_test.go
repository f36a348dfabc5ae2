package config

import (
	"bytes"
	"crypto/tls"
	_ "embed"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"quorate/internal/certs"
	"quorate/internal/httpapi"
)

// result is the visible outcome of one call of Parse.
type result struct {
	c      *Config
	code   int // -1 if the member would run
	stdout string
	stderr string
}

// parse runs the parser with args after the program's name. A non-empty file becomes the
// configuration file.
func parse(t *testing.T, args, environ []string, file string) result {
	t.Helper()
	if file != "" {
		path := filepath.Join(t.TempDir(), "etcd.yml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append([]string{"--config-file", path}, args...)
	}
	var stdout, stderr bytes.Buffer
	p := &parser{
		args: append([]string{"etcd"}, args...), environ: environ, stdout: &stdout, stderr: &stderr,
		hostIP: func() (string, error) { return "10.1.2.3", nil }, hostToward: hostToward, goarch: "amd64",
	}
	c, exit := p.run()
	r := result{c: c, code: -1, stdout: stdout.String(), stderr: stderr.String()}
	if exit != nil {
		r.code = exit.Code
	} else {
		t.Cleanup(c.Close)
	}
	return r
}

// line is one log line.
type line map[string]any

// logged returns the log lines with the given message.
func (r result) logged(msg string) []line {
	var found []line
	for text := range strings.SplitSeq(r.stderr, "\n") {
		var l line
		if json.Unmarshal([]byte(text), &l) == nil && l["msg"] == msg {
			found = append(found, l)
		}
	}
	return found
}

// TestSources sets every setting that has an effect in each of the three ways and checks
// the field.
func TestSources(t *testing.T) {
	tests := []struct {
		flag, text string
		file       string // line of the file
		field      func(c *Config) any
		want       any
	}{
		{"name", "m1", "name: m1", func(c *Config) any { return c.Member.Name }, "m1"},
		{"data-dir", "/d", "data-dir: /d", func(c *Config) any { return c.Member.DataDir }, "/d"},
		{"wal-dir", "/w", "wal-dir: /w", func(c *Config) any { return c.Layout().WAL() }, "/w"},
		{"heartbeat-interval", "50", "heartbeat-interval: 50", func(c *Config) any { return c.Member.Tick }, 50 * time.Millisecond},
		{"election-timeout", "1999", "election-timeout: 1999", func(c *Config) any { return c.Member.ElectionTicks }, 19},
		{"initial-election-tick-advance", "false", "initial-election-tick-advance: false", func(c *Config) any { return c.Member.InitialTickAdvance }, false},
		{"pre-vote", "false", "pre-vote: false", func(c *Config) any { return c.Member.PreVote }, false},
		{"snapshot-count", "7", "snapshot-count: 7", func(c *Config) any { return c.Member.SnapshotCount }, uint64(7)},
		{"snapshot-catchup-entries", "8", "snapshot-catchup-entries: 8", func(c *Config) any { return c.Member.CatchUpEntries }, uint64(8)},
		{"listen-peer-urls", "http://10.0.0.2:1, http://10.0.0.1:1", "listen-peer-urls: http://10.0.0.2:1, http://10.0.0.1:1",
			func(c *Config) any { return URLStrings(c.ListenPeerURLs) }, []string{"http://10.0.0.1:1", "http://10.0.0.2:1"}},
		{"listen-client-http-urls", "http://10.0.0.1:3", "listen-client-http-urls: http://10.0.0.1:3",
			func(c *Config) any { return URLStrings(c.ListenClientHTTPURLs) }, []string{"http://10.0.0.1:3"}},
		{"listen-metrics-urls", "http://127.0.0.1:4", "listen-metrics-urls: http://127.0.0.1:4",
			func(c *Config) any { return URLStrings(c.ListenMetricsURLs) }, []string{"http://127.0.0.1:4"}},
		{"initial-advertise-peer-urls", "http://m1:1", "initial-advertise-peer-urls: http://m1:1",
			func(c *Config) any { return URLStrings(c.AdvertisePeerURLs) }, []string{"http://m1:1"}},
		{"advertise-client-urls", "http://m1:2,unix:///x/y", "advertise-client-urls: http://m1:2,unix:///x/y",
			func(c *Config) any { return URLStrings(c.AdvertiseClientURLs) }, []string{"http://m1:2", "unix:///x/y"}},
		{"initial-cluster", "a=http://a:1", "initial-cluster: a=http://a:1", func(c *Config) any { return c.InitialCluster }, "a=http://a:1"},
		{"initial-cluster-state", "existing", "initial-cluster-state: existing", func(c *Config) any { return c.IsNewCluster() }, false},
		{"initial-cluster-token", "tok", "initial-cluster-token: tok", func(c *Config) any { return c.Member.InitialToken }, "tok"},
		{"max-request-bytes", "99", "max-request-bytes: 99", func(c *Config) any { return c.Calls.MaxRequestBytes }, uint(99)},
		{"max-txn-ops", "9", "max-txn-ops: 9", func(c *Config) any { return c.Calls.MaxTxnOps }, uint(9)},
		{"max-concurrent-streams", "0x10", "max-concurrent-streams: 16", func(c *Config) any { return c.Calls.MaxConcurrentStreams }, uint32(16)},
		{"quota-backend-bytes", "-1", "quota-backend-bytes: -1", func(c *Config) any { _, limited := c.Quota(); return limited }, false},
		{"log-level", "error", "log-level: error", func(c *Config) any { return c.Logging.Level }, "error"},
		{"log-format", "console", "log-format: console", func(c *Config) any { return c.Logging.Format }, "console"},
		{"log-outputs", "stdout,stderr,stdout", "log-outputs: [stderr, stdout]", func(c *Config) any { return c.Logging.Outputs }, []string{"stderr", "stdout"}},
		{"metrics", "extensive", "metrics: extensive", func(c *Config) any { return c.Metrics }, MetricsExtensive},
		{"enable-pprof", "true", "enable-pprof: true", func(c *Config) any { return c.EnablePprof }, true},
		{"grpc-keepalive-min-time", "1s", "grpc-keepalive-min-time: 1000000000", func(c *Config) any { return c.Calls.Keepalive.MinTime }, time.Second},
		{"grpc-keepalive-interval", "2s", "grpc-keepalive-interval: 2000000000", func(c *Config) any { return c.Calls.Keepalive.Time }, 2 * time.Second},
		{"grpc-keepalive-timeout", "3s", "grpc-keepalive-timeout: 3000000000", func(c *Config) any { return c.Calls.Keepalive.Timeout }, 3 * time.Second},
		{"warning-apply-duration", "4s", "warning-apply-duration: 4000000000", func(c *Config) any { return c.Member.State.WarnApply }, 4 * time.Second},
		{"warning-unary-request-duration", "5s", "warning-unary-request-duration: 5000000000", func(c *Config) any { return c.Calls.WarnUnaryDuration }, 5 * time.Second},
		{"watch-progress-notify-interval", "6s", "watch-progress-notify-interval: 6000000000", func(c *Config) any { return c.Member.Watch.ProgressInterval }, 6 * time.Second},
		{"experimental-watch-progress-notify-interval", "6s", "experimental-watch-progress-notify-interval: 6000000000", func(c *Config) any { return c.Member.Watch.ProgressInterval }, 6 * time.Second},
		{"compaction-batch-limit", "11", "compaction-batch-limit: 11", func(c *Config) any { return c.Member.State.MVCC.CompactionBatch }, 11},
		{"compaction-sleep-interval", "7s", "compaction-sleep-interval: 7000000000", func(c *Config) any { return c.Member.State.MVCC.CompactionPause }, 7 * time.Second},
		{"feature-gates", "LeaseCheckpoint=true", "feature-gates: LeaseCheckpoint=true", func(c *Config) any { return c.FeatureGates.Enabled(LeaseCheckpoint) }, true},
		{"experimental-enable-lease-checkpoint", "true", "experimental-enable-lease-checkpoint: true", func(c *Config) any { return c.FeatureGates.Enabled(LeaseCheckpoint) }, true},
		{"socket-reuse-port", "true", "socket-options: {reuse-port: true}", func(c *Config) any { return c.ReusePort }, true},
		{"socket-reuse-address", "true", "socket-options: {reuse-address: true}", func(c *Config) any { return c.ReuseAddress }, true},
		{"unsafe-no-fsync", "true", "unsafe-no-fsync: true", func(c *Config) any { return c.Member.Log.NoSync }, true},
		{"cors", "http://a:1,http://b:1", "cors: http://a:1,http://b:1", func(c *Config) any { return c.Pages.CORS }, []string{"http://a:1", "http://b:1"}},
		{"host-whitelist", "b,a", "host-whitelist: b,a", func(c *Config) any { return c.Pages.HostWhitelist }, []string{"a", "b"}},
	}
	for _, tt := range tests {
		t.Run(tt.flag, func(t *testing.T) {
			byFlag := parse(t, []string{"--" + tt.flag + "=" + tt.text}, nil, "")
			byEnv := parse(t, nil, []string{envName(tt.flag) + "=" + tt.text}, "")
			byFile := parse(t, nil, nil, tt.file+"\n")
			for way, r := range map[string]result{"flag": byFlag, "env": byEnv, "file": byFile} {
				if r.code != -1 {
					t.Fatalf("%s: exit %d: %s", way, r.code, r.stderr)
				}
				if got := tt.field(r.c); !reflect.DeepEqual(got, tt.want) {
					t.Errorf("%s: got %v, want %v", way, got, tt.want)
				}
			}
			if def := tt.field(parse(t, nil, nil, "").c); reflect.DeepEqual(def, tt.want) {
				t.Errorf("the default is %v as well, so the test shows nothing", def)
			}
			if len(byEnv.logged("recognized and used environment variable")) != 1 || len(byEnv.logged("unrecognized environment variable")) != 0 {
				t.Errorf("env: not logged as used, and nothing else: %s", byEnv.stderr)
			}
			// A file has precedence over both others, alone or together.
			over := parse(t, []string{"--" + tt.flag + "=" + tt.text}, []string{envName(tt.flag) + "=" + tt.text}, "wal-dir: /elsewhere\nlog-level: debug\n")
			if over.code != -1 || over.c.Member.LogDir != "/elsewhere" || over.c.Logging.Level != "debug" {
				t.Errorf("file does not win: exit %d, %s", over.code, over.stderr)
			} else if tt.flag != "wal-dir" && tt.flag != "log-level" && reflect.DeepEqual(tt.field(over.c), tt.want) {
				t.Errorf("flag or variable was read beside a file")
			}
			both := parse(t, []string{"--" + tt.flag + "=" + tt.text}, []string{envName(tt.flag) + "=" + tt.text}, "")
			if both.code != 1 || !strings.Contains(both.stderr, `"level":"fatal"`) ||
				len(both.logged("conflicting environment variable is shadowed by corresponding command-line flag (either unset environment variable or disable flag))")) != 1 {
				t.Errorf("flag and env: exit %d, %s", both.code, both.stderr)
			}
		})
	}
}

// TestOutcomes compares exit codes and texts with those of etcd 3.7.3.
func TestOutcomes(t *testing.T) {
	const rejected = "failed to verify flags"
	const v2v3 = "--enable-v2 with --experimental-enable-v2v3=/v2: the v2 API is not served from keys of the v3 API; " +
		`without --experimental-enable-v2v3 it is served from its own keys, and without --enable-v2 what etcd 3.5 wrote can be read with "etcdctl get --prefix /v2"`
	tests := []struct {
		args string
		env  string
		file string
		code int
		msg  string // message of a log line, or text on stderr when err is empty
		err  string // its error field
	}{
		{args: "-nope", code: 2, msg: "flag provided but not defined: -nope"},
		{args: "--election-timeout=abc", code: 2, msg: `invalid value "abc" for flag -election-timeout: parse error`},
		{args: "--max-concurrent-streams x", code: 2, msg: `invalid value "x" for flag -max-concurrent-streams: strconv.ParseUint: parsing "x": invalid syntax`},
		{args: "--initial-cluster-state foo", code: 2, msg: `invalid value "foo" for flag -initial-cluster-state: invalid value`},
		{args: "--listen-peer-urls tcp://1.2.3.4:5", code: 2, msg: `URL scheme must be http, https, unix, or unixs: tcp://1.2.3.4:5`},
		{args: "--listen-peer-urls http://1.2.3.4", code: 2, msg: `URL address does not have the form "host:port": http://1.2.3.4`},
		{args: "--listen-peer-urls http://1.2.3.4:5/p", code: 2, msg: `URL must not contain a path: http://1.2.3.4:5/p`},
		{args: "--cors x", code: 2, msg: `invalid value "x" for flag -cors: URL scheme must be http, https, unix, or unixs: x`},
		{args: "--log-level foo", code: 2, msg: `unrecognized level: "foo"`},
		{args: "--feature-gates X=true", code: 2, msg: "unrecognized feature gate: X"},
		{args: "--feature-gates AllAlpha", code: 2, msg: "missing bool value for AllAlpha"},
		{args: "--feature-gates AllAlpha=abc", code: 2, msg: `invalid value of AllAlpha=abc, err: strconv.ParseBool: parsing "abc": invalid syntax`},
		{args: "--experimental-enable-lease-checkpoint=abc", code: 2, msg: `invalid boolean value "abc" for -experimental-enable-lease-checkpoint: parse error`},

		{args: "foo", code: 1, msg: rejected, err: `"foo" is not a valid flag`},
		{args: "--strict-reconfig-check false", code: 1, msg: rejected, err: `"false" is not a valid flag`},
		{env: "ETCD_ELECTION_TIMEOUT=abc", code: 1, msg: rejected, err: `invalid value "abc" for ETCD_ELECTION_TIMEOUT: parse error`},
		{env: "ETCD_PRE_VOTE=maybe", code: 1, msg: rejected, err: `invalid value "maybe" for ETCD_PRE_VOTE: parse error`},
		{args: "--heartbeat-interval 0", code: 1, msg: rejected, err: "--heartbeat-interval must be >0 (set to 0ms)"},
		{args: "--election-timeout 0", code: 1, msg: rejected, err: "--election-timeout must be >0 (set to 0ms)"},
		{args: "--election-timeout 499", code: 1, msg: rejected, err: "--election-timeout[499ms] should be at least as 5 times as --heartbeat-interval[100ms]"},
		{args: "--election-timeout 50001", code: 1, msg: rejected, err: "--election-timeout[50001ms] is too long, and should be set less than 50000ms"},
		{args: "--enable-v2 --v2-deprecation=write-only", code: 1, msg: rejected, err: "--enable-v2 and --v2-deprecation=write-only are mutually exclusive"},
		{args: "--enable-v2 --v2-deprecation=gone", code: 1, msg: rejected, err: "--enable-v2 and --v2-deprecation=gone are mutually exclusive"},
		{file: "enable-v2: true\nv2-deprecation: write-only-drop-data", code: 1, msg: rejected, err: "--enable-v2 and --v2-deprecation=write-only-drop-data are mutually exclusive"},
		{args: "--enable-v2 --v2-deprecation=not-yet", code: -1},
		{args: "--enable-v2", code: -1},
		{args: "--enable-v2 --experimental-enable-v2v3=/v2", code: 1, msg: rejected, err: v2v3},
		{env: "ETCD_EXPERIMENTAL_ENABLE_V2V3=/v2", args: "--enable-v2", code: 1, msg: rejected, err: v2v3},
		{file: "enable-v2: true\nexperimental-enable-v2v3: /v2", code: 1, msg: rejected, err: v2v3},
		{args: "--enable-v2 --experimental-enable-v2v3=", code: -1, msg: "--experimental-enable-v2v3 is deprecated in 3.5 and will be decommissioned in 3.6."},
		{args: "--experimental-enable-v2v3=/v2", code: -1, msg: `"accepted without effect: this version of Quorate does not act on it","flag":"--experimental-enable-v2v3"`},
		{file: "enable-v2: true\nexperimental-enable-v2v3: ''", code: -1},
		{args: "--v2-deprecation=gone", code: -1},
		{args: "--v2-deprecation=never", code: 2, msg: `invalid value "never"`},
		{args: "--election-timeout 50000", code: -1},
		{args: "--election-timeout 500", code: -1},
		{args: "--heartbeat-interval 18446744073709551615", code: 1, msg: rejected, err: "--election-timeout[1000ms] should be at least as 5 times as --heartbeat-interval[18446744073709551615ms]"},
		{args: "--listen-peer-urls http://foo:2380", code: 1, msg: rejected, err: "expected IP in URL for binding (http://foo:2380)"},
		{args: "--listen-metrics-urls http://:2380", code: 1, msg: rejected, err: "expected IP in URL for binding (http://:2380)"},
		{args: "--listen-client-urls http://127.0.0.1:1", code: 1, msg: rejected, err: "--advertise-client-urls is required when --listen-client-urls is set explicitly"},
		{args: "--listen-client-urls http://127.0.0.1:1", code: 1, msg: "advertise client URLs are not set", err: "--advertise-client-urls is required when --listen-client-urls is set explicitly"},
		{args: "--initial-advertise-peer-urls http://:2380", code: 1, msg: rejected, err: `--initial-advertise-peer-urls "http://:2380" must be "host:port" (unexpected empty host (http://:2380))`},
		{args: "--advertise-client-urls http://:2379", code: 1, msg: rejected, err: `--advertise-client-urls "http://:2379" must be in the format "host:port", "unix:/path/to/socket" or "unixs:/path/to/socket" (unexpected empty host (http://:2379))`},
		{args: "--listen-client-urls http://127.0.0.1:1 --listen-client-http-urls http://127.0.0.1:1 --advertise-client-urls http://a:1", code: 1,
			msg: "failed to start etcd", err: "cannot bind both --listen-client-urls and --listen-client-http-urls on the same url http://127.0.0.1:1"},
		{args: "--logger capnslog", code: -1},
		{args: "--logger foo", code: 1, msg: rejected, err: `unknown logger option "foo"`},
		{args: "--log-outputs default,stdout", code: 1, msg: rejected, err: `multi logoutput for "default" is not supported yet`},
		{args: "--log-format x", code: 1, msg: rejected, err: "unknown log format: x, supported values json, console"},
		{args: "--auto-compaction-mode foo", code: 1, msg: rejected, err: `unknown auto-compaction-mode "foo"`},
		{args: "--auto-compaction-mode=", code: 1, msg: rejected, err: "undefined auto-compaction-mode"},
		{args: "--auto-compaction-retention abc", code: 1, msg: "failed to start etcd", err: `error parsing CompactionRetention: time: invalid duration "abc"`},
		{args: "--auto-compaction-retention=-5m", code: 1, msg: "failed to start etcd", err: "--auto-compaction-retention must not be negative (set to -5m)"},
		{args: "--compact-hash-check-time 0s", code: 1, msg: rejected, err: "--compact-hash-check-time must be >0 (set to 0s)"},
		{args: "--feature-gates LeaseCheckpointPersist=true", code: 1, msg: rejected, err: "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint"},
		{args: "--feature-gates LeaseCheckpoint=false --experimental-enable-lease-checkpoint", code: 1, msg: rejected,
			err: "cannot specify both flags: --experimental-enable-lease-checkpoint=true and --feature-gates=LeaseCheckpoint=false at the same time, please just use --feature-gates=LeaseCheckpoint=false"},
		{args: "--experimental-compaction-batch-limit=1 --compaction-batch-limit=2", code: 1, msg: rejected,
			err: "cannot set --experimental-compaction-batch-limit and --compaction-batch-limit at the same time, please use --compaction-batch-limit only"},
		{args: "--tls-min-version TLS1.1", code: 1, msg: rejected, err: `unexpected TLS version "TLS1.1" (must be one of: TLS1.2, TLS1.3): --tls-min-version`},
		{args: "--tls-min-version TLS1.3 --tls-max-version TLS1.2", code: 1, msg: rejected, err: "min version (TLS1.3) is greater than max version (TLS1.2): --tls-min-version and --tls-max-version"},
		{args: "--cipher-suites foo", code: 1, msg: "failed to start etcd", err: `unexpected TLS cipher suite "foo": --cipher-suites`},
		{args: "--cipher-suites TLS_AES_128_GCM_SHA265", code: 1, msg: "failed to start etcd",
			err: `unexpected TLS cipher suite "TLS_AES_128_GCM_SHA265"; is "TLS_AES_128_GCM_SHA256" meant?: --cipher-suites`},
		{args: "--tls-max-version TLS1.4", code: 1, msg: rejected, err: `unexpected TLS version "TLS1.4" (must be one of: TLS1.2, TLS1.3): --tls-max-version`},
		{args: "--enable-log-rotation", code: 1, msg: rejected, err: "--log-outputs requires a single file path when --log-rotate-config-json is defined"},
		{args: "--log-outputs x --enable-log-rotation --log-rotation-config-json {", code: 1, msg: rejected, err: "improperly formatted log rotation config: unexpected end of JSON input"},
		{args: "--discovery-fallback proxy --discovery http://h/t --listen-client-urls http://127.0.0.1:1", code: -1},
		{args: "--proxy maybe", code: 2, msg: `invalid value "maybe" for flag -proxy: `},
		{args: "--discovery-fallback proxy", code: -1, msg: "--discovery-fallback=proxy changes nothing without --discovery"},
		{file: "discovery-fallback: proxy", code: -1, msg: "--discovery-fallback=proxy changes nothing without --discovery"},
		{args: "--discovery-endpoints a --discovery-srv b", code: 1, msg: rejected, err: `multiple discovery or bootstrap flags are set. Choose one of "initial-cluster", "discovery-endpoints" or "discovery-srv"`},
		{args: "--discovery-token a", code: 1, msg: rejected, err: "both --discovery-token and --discovery-endpoints must be set"},

		{args: "--auth-token simple", code: -1},
		{args: "--listen-client-urls https://127.0.0.1:1 --advertise-client-urls https://a:1", code: 1, msg: "failed to start etcd",
			err: "TLS key/cert (--cert-file, --key-file) must be provided for client url https://127.0.0.1:1 with HTTPS scheme, or --auto-tls"},
		{args: "--listen-client-urls unixs:///s --advertise-client-urls https://a:1", code: 1, msg: "failed to start etcd",
			err: "TLS key/cert (--cert-file, --key-file) must be provided for client url unixs:///s with HTTPS scheme, or --auto-tls"},
		{args: "--listen-client-urls https://127.0.0.1:1 --advertise-client-urls https://a:1 --auto-tls", code: -1},
		{args: "--listen-client-urls https://127.0.0.1:1 --advertise-client-urls https://a:1 --cert-file /c", code: -1},
		{args: "--listen-client-http-urls https://127.0.0.1:2379 --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://a:1 --auto-tls", code: 1, msg: "failed to start etcd",
			err: "cannot bind both --listen-client-urls and --listen-client-http-urls on the same url https://127.0.0.1:2379"},
		{args: "--cipher-suites TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305,TLS_RSA_WITH_RC4_128_SHA", code: -1},
		{args: "--tls-min-version TLS1.3 --cipher-suites TLS_RSA_WITH_RC4_128_SHA", code: 1, msg: rejected, err: "cipher suites cannot be configured when only TLS1.3 is enabled: leave out --cipher-suites, or lower --tls-min-version"},
		{args: "--tls-min-version= --tls-max-version=TLS1.2", code: -1},
		{args: "--listen-metrics-urls https://127.0.0.1:1", code: 1, msg: "failed to start etcd", err: "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url, or --auto-tls: --listen-metrics-urls=https://127.0.0.1:1"},

		// The file.
		{args: "--config-file /does/not/exist", code: 1, msg: rejected, err: "open /does/not/exist: no such file or directory"},
		{env: "ETCD_CONFIG_FILE=/does/not/exist", code: 1, msg: rejected, err: "open /does/not/exist: no such file or directory"},
		{file: "listen-peer-urls: foo", code: 1, msg: "unexpected error setting up listen-peer-urls: URL scheme must be http, https, unix, or unixs: foo"},
		{file: "advertise-client-urls: foo", code: 1, msg: "unexpected error setting up advertise-peer-urls: URL scheme must be http, https, unix, or unixs: foo"},
		{file: "listen-peer-urls: [a]", code: 1, msg: rejected, err: "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal array into Go struct field configYAML.configJSON.listen-peer-urls of type string"},
		{file: "grpc-keepalive-min-time: 5s", code: 1, msg: rejected, err: "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal string into Go struct field configYAML.Config.grpc-keepalive-min-time of type time.Duration"},
		{file: "client-transport-security: {cert-file: [1]}", code: 1, msg: rejected, err: "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal array into Go struct field securityConfig.configJSON.client-transport-security.cert-file of type string"},
		{file: "client-transport-security: 3", code: 1, msg: rejected, err: "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal number into Go struct field configYAML.configJSON.client-transport-security of type embed.securityConfig"},
		{file: "discovery-config: {client: {endpoints: 3}}", code: 1, msg: rejected, err: "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal number into Go struct field ConfigSpec.Config.discovery-config.client.endpoints of type []string"},
		{file: "discovery-config: {client: {secure: {cert: [1]}}}", code: 1, msg: rejected, err: "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal array into Go struct field SecureConfig.Config.discovery-config.client.secure.cert of type string"},
		{file: "discovery-config: {client: {auth: {username: [1]}}}", code: 1, msg: rejected, err: "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal array into Go struct field AuthConfig.Config.discovery-config.client.auth.username of type string"},
		{file: "socket-options: {reuse-port: 3}", code: 1, msg: rejected, err: "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal number into Go struct field SocketOpts.Config.socket-options.reuse-port of type bool"},
		{file: "socket-options: 3", code: 1, msg: rejected, err: "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal number into Go struct field configYAML.Config.socket-options of type transport.SocketOpts"},
		{file: "name: 17", code: 1, msg: rejected, err: "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal number into Go struct field configYAML.Config.name of type string"},
		{file: "heartbeat-interval: -1", code: 1, msg: rejected, err: "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal number -1 into Go struct field configYAML.Config.heartbeat-interval of type uint"},
		{file: "max-concurrent-streams: -1", code: 1, msg: rejected, err: "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal number -1 into Go struct field configYAML.Config.max-concurrent-streams of type uint32"},
		{file: "experimental-max-learners: x", code: 1, msg: rejected, err: "error unmarshaling experimental-max-learners: json: cannot unmarshal string into Go struct field Config.max-learners of type int"},
		{file: "name: null\nlog-outputs: null\nclient-transport-security: null", code: -1},
		{file: "discovery-fallback: foo", code: 1, msg: rejected, err: `unexpected discovery-fallback "foo"`},
		{file: "proxy: foo", code: 1, msg: rejected, err: `unexpected proxy "foo"`},
		{file: "proxy: ''\ndiscovery-fallback: ''", code: -1},
		{file: "initial-cluster-state: foo", code: 1, msg: rejected, err: `unexpected clusterState "foo"`},
		{file: "feature-gates: X=true", code: 1, msg: rejected, err: "unrecognized feature gate: X"},
		{file: "listen-client-url: http://127.0.0.1:1", code: -1, msg: `"unknown key in the configuration file","key":"listen-client-url","did-you-mean":"listen-client-urls"`},
		{file: "client-transport-security:\n  cert-fil: x", code: -1, msg: `"key":"client-transport-security.cert-fil","did-you-mean":"client-transport-security.cert-file"`},
		{file: "no-such-key: 1", code: -1, msg: `"unknown key in the configuration file","key":"no-such-key"`},
		{file: "no-such-key: 1", code: -1, msg: "loaded server configuration, other configuration command line flags and environment variables will be ignored if provided"},
		{file: `{"name": "m1", "log-outputs": ["stderr"]}`, code: -1},
		{file: "listen-client-urls: http://127.0.0.1:1", code: -1}, // no requirement to advertise in a file
		{file: "name: m1", args: "--nope", code: 2, msg: "flag provided but not defined: -nope"},
		{file: "name: m1", env: "ETCD_ELECTION_TIMEOUT=abc", code: -1},

		// Warnings.
		{env: "ETCD_PORT=tcp://1.2.3.4:5", code: -1, msg: "unrecognized environment variable"},
		{env: "ETCD_NAME=", code: -1, msg: "unrecognized environment variable"},
		{env: "ETCD_VERSION=1", code: -1, msg: "cannot set special environment variable"},
		{args: "-vv --cluster-active-size=3", code: -1, msg: `flag "-vv" is no longer supported - ignoring.`},
		{args: "--max-snapshots 3", code: -1, msg: "--max-snapshots is deprecated in 3.6 and will be decommissioned in 3.8."},
		{args: "--experimental-corrupt-check-time=1h", code: -1, msg: "--experimental-corrupt-check-time is deprecated in v3.6 and will be decommissioned in v3.7. Use '--corrupt-check-time' instead."},
		{args: "--raft-read-timeout 1s", code: -1, msg: "raft-read-timeout increased to minimum value: 5s"},
		{args: "--name m1", code: -1, msg: "'data-dir' was empty; using default"},
		{code: -1, msg: "Running http and grpc server on single port. This is not recommended for production."},
		{code: -1, msg: "it isn't recommended to use default name, please set a value for --name. Note that etcd might run into issue when multiple members have the same default name"},
		{args: "--feature-gates LeaseCheckpoint=true", code: -1, msg: "Detected that checkpointing is enabled without persistence. Consider enabling feature gate LeaseCheckpointPersist"},
	}
	for _, tt := range tests {
		t.Run(strings.Join([]string{tt.env, tt.args, tt.file}, " "), func(t *testing.T) {
			t.Chdir(t.TempDir())
			var environ []string
			if tt.env != "" {
				environ = []string{tt.env}
			}
			r := parse(t, strings.Fields(tt.args), environ, tt.file)
			if r.code != tt.code {
				t.Fatalf("exit %d, want %d; stderr: %s", r.code, tt.code, r.stderr)
			}
			if tt.err == "" {
				if !strings.Contains(strings.ReplaceAll(r.stderr, `\"`, `"`), tt.msg) {
					t.Errorf("stderr has no %q: %s", tt.msg, r.stderr)
				}
				return
			}
			lines := r.logged(tt.msg)
			if len(lines) != 1 {
				t.Fatalf("want one line %q: %s", tt.msg, r.stderr)
			}
			if got := lines[0]["error"]; got != tt.err {
				t.Errorf("error %q\nwant  %q", got, tt.err)
			}
		})
	}
}

func TestInertFlagsAreNamed(t *testing.T) {
	r := parse(t, []string{
		"--backend-bbolt-freelist-type=array", "--max-wals=6", "--feature-gates=FastLeaseKeepAlive=false,LeaseCheckpoint=true",
		"--max-learners=2", "--strict-reconfig-check=false",
	}, nil, "")
	if r.code != -1 {
		t.Fatalf("exit %d: %s", r.code, r.stderr)
	}
	want := []string{"backend-bbolt-freelist-type", "feature-gates=FastLeaseKeepAlive"}
	if got := r.c.Inert(); !slices.Equal(got, want) {
		t.Errorf("Inert() = %q, want %q", got, want)
	}
	var warned []string
	for _, l := range r.logged("accepted without effect: this version of Quorate does not act on it") {
		warned = append(warned, strings.TrimPrefix(l["flag"].(string), "--"))
	}
	if !slices.Equal(warned, want) {
		t.Errorf("warned about %q, want %q", warned, want)
	}
	file := parse(t, nil, nil, "max-wals: 6\nbackend-bbolt-freelist-type: array\n")
	if got, want := file.c.Inert(), []string{"backend-bbolt-freelist-type"}; !slices.Equal(got, want) {
		t.Errorf("file: Inert() = %q, want %q", got, want)
	}
}

func TestHelpAndVersion(t *testing.T) {
	help := parse(t, []string{"--help"}, nil, "")
	if help.code != 0 {
		t.Errorf("--help exits with %d", help.code)
	}
	if !strings.HasPrefix(help.stderr, "Usage:\n") || strings.Contains(help.stdout, "Usage:") {
		t.Errorf("usage belongs to stderr and flags to stdout: %q", help.stderr)
	}
	at := 0
	for _, group := range []string{"Member", "Clustering", "Security", "Auth", "Profiling and Monitoring", "Logging", "Distributed tracing", "Features", "Unsafe feature"} {
		i := strings.Index(help.stdout[at:], "\n"+group+":\n")
		if i < 0 {
			t.Fatalf("group %s is missing or out of order", group)
		}
		at += i
	}
	for _, o := range options {
		if n := strings.Count(help.stdout, "\n  --"+o.name+" '"); n != 1 {
			t.Errorf("--%s stands %d times in the help", o.name, n)
		}
	}
	for _, want := range []string{"--name 'default'\n", "--data-dir '${name}.etcd'\n", "--election-timeout '1000'\n", "--max-request-bytes '1572864'\n", "--quota-backend-bytes '0'\n"} {
		if !strings.Contains(help.stdout, want) {
			t.Errorf("help has no %q", want)
		}
	}

	version := parse(t, []string{"--version"}, nil, "")
	lines := strings.Split(version.stdout, "\n")
	if version.code != 0 || len(lines) != 7 {
		t.Fatalf("--version: exit %d, %q", version.code, version.stdout)
	}
	if strings.Fields(lines[0])[2] != "3.7.3" || lines[0] != "etcd Version: 3.7.3" {
		t.Errorf("first line %q", lines[0])
	}
	for i, prefix := range []string{"etcd Version: ", "Git SHA: ", "Go Version: go1.", "Go OS/Arch: ", "Quorate Version: ", "Commit Date: "} {
		if !strings.HasPrefix(lines[i], prefix) {
			t.Errorf("line %d is %q, want %q...", i+1, lines[i], prefix)
		}
	}
	if r := parse(t, []string{"--version", "foo"}, nil, ""); r.code != 1 {
		t.Errorf("--version foo exits with %d", r.code)
	}
}

// TestEveryFileKey checks that every option with a key in the file has a key of its own,
// with the flag's name.
func TestEveryFileKey(t *testing.T) {
	nested := map[string]string{
		"socket-reuse-port": "", "socket-reuse-address": "", "raft-read-timeout": "", "raft-write-timeout": "",
	}
	known := map[string]bool{}
	var collect func(rt reflect.Type)
	collect = func(rt reflect.Type) {
		for i := range rt.NumField() {
			f := rt.Field(i)
			if f.Anonymous {
				collect(f.Type)
				continue
			}
			if key := f.Tag.Get("json"); key != "" && key != "-" {
				if known[key] {
					t.Errorf("key %s stands twice", key)
				}
				known[key] = true
			}
		}
	}
	collect(keysOf(Default(), new(textKeys)).Type())
	for _, o := range options {
		_, isNested := nested[o.name]
		isNested = isNested || (o.group == groupSecurity && !known[o.name]) || strings.HasPrefix(o.name, "discovery-") && !known[o.name]
		if !isNested && !known[o.name] {
			t.Errorf("option %s has no key in the file", o.name)
		}
	}
	fs := newFlagSet(Default())
	for key := range known {
		switch key {
		case "client-transport-security", "peer-transport-security", "socket-options", "discovery-config":
			continue
		}
		if fs.Lookup(key) == nil {
			t.Errorf("key %s is no flag", key)
		}
	}
}

func TestComputedDefaults(t *testing.T) {
	tests := []struct {
		name                  string
		args                  []string
		file                  string
		dataDir, peer, client string
		cluster               string
	}{
		{name: "nothing", dataDir: "default.etcd", peer: "http://localhost:2380", client: "http://localhost:2379", cluster: "default=http://localhost:2380"},
		{name: "name", args: []string{"--name", "m1"}, dataDir: "m1.etcd", peer: "http://localhost:2380", client: "http://localhost:2379", cluster: "m1=http://localhost:2380"},
		{name: "name and URLs", args: []string{"--name", "m1", "--initial-advertise-peer-urls", "http://b:1,http://a:1"},
			dataDir: "m1.etcd", peer: "http://a:1,http://b:1", client: "http://localhost:2379", cluster: "m1=http://a:1,m1=http://b:1"},
		{name: "URLs without a name", args: []string{"--initial-advertise-peer-urls", "http://a:1"},
			dataDir: "default.etcd", peer: "http://a:1", client: "http://localhost:2379", cluster: "default=http://localhost:2380"},
		{name: "every interface", args: []string{"--name", "m1", "--listen-peer-urls", "http://0.0.0.0:12380"},
			dataDir: "m1.etcd", peer: "http://10.1.2.3:12380", client: "http://localhost:2379", cluster: "m1=http://10.1.2.3:12380"},
		{name: "every interface, file", file: "name: m1\nlisten-client-urls: http://0.0.0.0:12379\n",
			dataDir: "m1.etcd", peer: "http://localhost:2380", client: "http://10.1.2.3:12379", cluster: "m1=http://localhost:2380"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := parse(t, tt.args, nil, tt.file)
			if r.code != -1 {
				t.Fatalf("exit %d: %s", r.code, r.stderr)
			}
			got := []string{r.c.Member.DataDir, strings.Join(URLStrings(r.c.AdvertisePeerURLs), ","), strings.Join(URLStrings(r.c.AdvertiseClientURLs), ","), r.c.InitialCluster}
			if want := []string{tt.dataDir, tt.peer, tt.client, tt.cluster}; !slices.Equal(got, want) {
				t.Errorf("got  %q\nwant %q", got, want)
			}
		})
	}
}

func TestCompactionRetention(t *testing.T) {
	for _, tt := range []struct {
		mode, text string
		want       time.Duration
	}{
		{CompactionPeriodic, "", 0},
		{CompactionPeriodic, "2", 2 * time.Hour},
		{CompactionPeriodic, "90m", 90 * time.Minute},
		{CompactionRevision, "1000", 1000},
		{CompactionRevision, "1us", 1000},
	} {
		c := Default()
		c.AutoCompactionMode, c.AutoCompactionRetention = tt.mode, tt.text
		if got, err := c.CompactionRetention(); err != nil || got != tt.want {
			t.Errorf("%s %q: got %v, %v, want %v", tt.mode, tt.text, got, err, tt.want)
		}
	}
}

func TestGates(t *testing.T) {
	var g Gates
	if err := g.Set("AllAlpha=true, LeaseCheckpoint=false,,FastLeaseKeepAlive=false"); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{
		LeaseCheckpoint: false, LeaseCheckpointPersist: true, "FastLeaseKeepAlive": false, "TxnModeWriteWithSharedBuffer": true, "NoSuchGate": false,
	} {
		if got := g.Enabled(name); got != want {
			t.Errorf("Enabled(%s) = %t, want %t", name, got, want)
		}
	}
	if err := g.Set("LeaseCheckpoint=true,Nope=true"); err == nil || g.Enabled(LeaseCheckpoint) {
		t.Errorf("a bad text changed the gates: %v", err)
	}
	if got, want := g.String(), "AllAlpha=true,FastLeaseKeepAlive=false,LeaseCheckpoint=false"; got != want {
		t.Errorf("String() = %s, want %s", got, want)
	}
	if !slices.IsSortedFunc(g.List(), func(a, b httpapi.Feature) int { return strings.Compare(a.Name, b.Name) }) {
		t.Errorf("List() is not sorted")
	}
}

func TestUnsupportedArch(t *testing.T) {
	for _, tt := range []struct {
		environ []string
		code    int
	}{
		{nil, 1},
		{[]string{"ETCD_UNSUPPORTED_ARCH=riscv64"}, 0},
		{[]string{"ETCD_UNSUPPORTED_ARCH=386"}, 1},
	} {
		var stdout, stderr bytes.Buffer
		p := &parser{args: []string{"etcd", "--version"}, environ: tt.environ, stdout: &stdout, stderr: &stderr, goarch: "riscv64"}
		if _, exit := p.run(); exit == nil || exit.Code != tt.code {
			t.Errorf("%q: got %v, want code %d: %s", tt.environ, exit, tt.code, stderr.String())
		}
	}
}

func TestFileTooLarge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "big")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(maxFileBytes + 1); err != nil {
		t.Fatal(err)
	}
	if _, err := readFile(path); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("got %v", err)
	}
}

func FuzzFile(f *testing.F) {
	for _, seed := range []string{
		"name: m1\ninitial-cluster: m1=http://a:1\n", "{\"name\": \"x\"}", "feature-gates: LeaseCheckpoint=true\nexperimental-max-learners: 2",
		"listen-peer-urls: http://1.2.3.4:5,unix://a/b", "experimental-peer-skip-client-san-verification: 1", "a: &a [*a]", "log-outputs: [x]\ncors: '*'",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := decodeFile(data)
		if err != nil {
			return
		}
		if len(c.ListenPeerURLs) == 0 || len(c.ListenClientURLs) == 0 || c.ClusterState == "" {
			t.Errorf("decoded into an incomplete configuration: %q", data)
		}
		c.Inert()
		(validator{c}).start()
	})
}

// TestCerts checks the TLS options that result from the command line and from the file.
func TestCerts(t *testing.T) {
	fromFlags := parse(t, strings.Fields("--cert-file c --key-file k --client-cert-file cc --client-key-file ck --trusted-ca-file ca --client-cert-auth "+
		"--client-crl-file crl --client-cert-allowed-hostname a,b --peer-cert-file pc --peer-key-file pk --peer-client-cert-file pcc --peer-client-key-file pck "+
		"--peer-trusted-ca-file pca --peer-client-cert-auth --peer-crl-file pcrl --peer-cert-allowed-cn x,z --peer-skip-client-san-verification "+
		"--cipher-suites TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305 --tls-max-version TLS1.2"), nil, "")
	fromFile := parse(t, nil, nil, `
client-transport-security: {cert-file: c, key-file: k, client-cert-file: cc, client-key-file: ck, trusted-ca-file: ca, client-cert-auth: true, allowed-hostname: [a, b]}
peer-transport-security: {cert-file: pc, key-file: pk, client-cert-file: pcc, client-key-file: pck, trusted-ca-file: pca, client-cert-auth: true, allowed-cn: [x, z], skip-client-san-verification: true}
cipher-suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305]
tls-max-version: TLS1.2
`)
	suites := []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256}
	for i, r := range []result{fromFlags, fromFile} {
		c := r.c
		if c == nil {
			t.Fatal(r.stderr)
		}
		client := certs.Options{Files: certs.Files{CertFile: "c", KeyFile: "k", ClientCertFile: "cc", ClientKeyFile: "ck", TrustedCAFile: "ca", ClientCertAuth: true,
			AllowedHostnames: []string{"a", "b"}}, CipherSuites: suites, MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12, Logger: c.Log()}
		peer := certs.Options{Files: certs.Files{CertFile: "pc", KeyFile: "pk", ClientCertFile: "pcc", ClientKeyFile: "pck", TrustedCAFile: "pca", ClientCertAuth: true,
			AllowedCNs: []string{"x", "z"}, SkipClientSANVerify: true}, Flags: certs.FlagNames{Prefix: "peer-"},
			CipherSuites: suites, MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12, Logger: c.Log()}
		if i == 0 { // the file has no key for them
			client.CRLFile, peer.CRLFile = "crl", "pcrl"
		}
		if got := c.Protocols.Options(c.ClientTLS, "", c.Log()); !reflect.DeepEqual(got, client) {
			t.Errorf("clients: got\n%+v, want\n%+v", got, client)
		}
		if got := c.Protocols.Options(c.PeerTLS, "peer-", c.Log()); !reflect.DeepEqual(got, peer) {
			t.Errorf("members: got\n%+v, want\n%+v", got, peer)
		}
	}
}

//go:embed testdata/classic.txt
var classicText string

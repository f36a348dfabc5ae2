// Package config turns flags, environment and configuration file into one Config.
//
// In: the command line, the environment, and the file that either of them names. Out: a
// Config, resolved and validated once and composed of the options of the packages that act
// on them, or the exit code of the process. Always true: names, defaults, precedence,
// messages and exit codes are those of etcd 3.7, so an unchanged unit file, static pod or
// script starts the member and parses its errors as before. A setting without effect in
// this server is never ignored silently: a warning at start names it.
package config

import (
	"net/url"
	"time"

	"go.uber.org/zap"

	"quorate/internal/apply"
	"quorate/internal/auth"
	"quorate/internal/certs"
	"quorate/internal/discovery"
	"quorate/internal/h2"
	"quorate/internal/httpapi"
	"quorate/internal/logging"
	"quorate/internal/membership"
	"quorate/internal/proxy/httpproxy"
	"quorate/internal/rpc"
	"quorate/internal/server"
	"quorate/internal/tracing"
	"quorate/internal/transport"
)

// Values of --initial-cluster-state.
const (
	StateNew      = "new"      // bootstrap a cluster
	StateExisting = "existing" // join one
)

// DefaultName is the name of a member without --name.
const DefaultName = "default"

// Values of --metrics.
const (
	MetricsBasic     = "basic"
	MetricsExtensive = "extensive" // adds the gRPC latency histograms
)

const (
	defaultPeerURL   = "http://localhost:2380"
	defaultClientURL = "http://localhost:2379"

	// DefaultQuotaBytes is the quota when --quota-backend-bytes is 0.
	DefaultQuotaBytes = int64(2 << 30)

	defaultSnapshotCount          = 10000
	defaultSnapshotCatchUpEntries = 5000
)

// Config is one member's configuration. It does not change once Parse has returned it.
//
// A flag that one package takes as it is sets a field of that package's options, under
// Member, Calls, Pages and so on. A flag that needs a decision or another unit first is a
// field of Config itself, and handDown converts it.
type Config struct {
	Member   server.Config
	Calls    rpc.Options
	Pages    httpapi.Options
	Logging  logging.Options
	LogFlags logging.Flags

	EnableTracing bool
	Tracing       tracing.Options

	TickMs       uint // milliseconds, also the raft tick
	ElectionMs   uint // milliseconds
	MaxSnapFiles uint // 0 is unlimited
	MaxWALFiles  uint // 0 is unlimited

	ListenPeerURLs       []url.URL
	ListenClientURLs     []url.URL
	ListenClientHTTPURLs []url.URL // if set, HTTP is served on these alone, and ListenClientURLs serve gRPC alone
	ListenMetricsURLs    []url.URL
	ReusePort            bool
	ReuseAddress         bool
	EnableGRPCGateway    bool
	MemoryMlock          bool
	EnablePprof          bool   // log level debug does the same
	Metrics              string // MetricsExtensive; anything else is basic

	QuotaBackendBytes          int64 // as given: 0 is the default, negative is unlimited; see Quota
	BackendBatchInterval       time.Duration
	BackendFreelistType        string
	AutoCompactionMode         string
	AutoCompactionRetention    string // see CompactionRetention
	BootstrapDefragThresholdMB uint
	FeatureGates               Gates

	// Clustering.
	AdvertisePeerURLs   []url.URL
	AdvertiseClientURLs []url.URL
	InitialCluster      string    // see InitialMembers
	ClusterState        string    // StateNew or StateExisting
	Join                []url.URL // client URLs of a running cluster that this member adds itself to
	Discovery           discovery.Config
	SRV                 discovery.SRV
	V2Deprecation       string // ignored, as in etcd

	// Security.
	ClientTLS              certs.Files
	PeerTLS                certs.Files
	Protocols              certs.Protocols
	SelfSignedCertValidity uint // years
	BcryptCost             uint
	AuthTokenTTL           uint // seconds

	// Flags of etcd 3.4 and 3.5.
	V2Discovery discovery.V2
	EnableV2    bool
	V2V3Prefix  string // --experimental-enable-v2v3
	Proxy       string // ProxyOff, ProxyReadOnly or ProxyOn
	ProxyTimes  httpproxy.Times

	// Timeouts and intervals of the proxy, in milliseconds. For the last three, 0 is no
	// limit.
	ProxyFailureWaitMs     uint
	ProxyRefreshIntervalMs uint
	ProxyDialTimeoutMs     uint
	ProxyWriteTimeoutMs    uint
	ProxyReadTimeoutMs     uint

	configFile   string
	printVersion bool
	explicit     map[string]bool // names of the flags and file keys that were set
	oldGates     map[string]bool // boolean flags that became gates, as given
	notes        []note          // lines to log once the logger exists
	lg           *zap.Logger
	closeLog     func()
}

// Default returns the configuration without any flag, variable or file.
func Default() *Config {
	return &Config{
		Member: server.Config{
			Name: DefaultName, SnapshotCount: defaultSnapshotCount, CatchUpEntries: defaultSnapshotCatchUpEntries, StrictReconfig: true,
			Bootstrap:  server.Bootstrap{InitialToken: "etcd-cluster"},
			Timing:     server.Timing{InitialTickAdvance: true, PreVote: true},
			Membership: membership.Options{MaxLearners: 1},
			Peers:      transport.Config{ReadTimeout: minRaftTimeout, WriteTimeout: minRaftTimeout},
			Upkeep:     server.UpkeepOptions{DowngradeCheck: 5 * time.Second},
			Checks:     server.IntegrityOptions{CompactionsInterval: time.Minute, Digests: time.Second, Scrub: 7 * 24 * time.Hour},
			State:      apply.Options{WarnApply: 100 * time.Millisecond},
			Tokens:     auth.TokenOptions{Spec: "simple"},
		},
		Calls: rpc.Options{
			MaxTxnOps: 128, MaxRequestBytes: 3 << 19, // 1.5 MiB
			MaxConcurrentStreams: 1<<32 - 1, WarnUnaryDuration: 300 * time.Millisecond,
			Keepalive: h2.Keepalive{MinTime: 5 * time.Second, Time: 2 * time.Hour, Timeout: 20 * time.Second},
		},
		Pages:                   httpapi.Options{CORS: []string{"*"}, HostWhitelist: []string{"*"}},
		Logging:                 logging.Options{Level: "info", Format: "json", Outputs: []string{"default"}},
		Tracing:                 tracing.Options{Address: "localhost:4317", ServiceName: "etcd"},
		TickMs:                  100,
		ElectionMs:              1000,
		MaxSnapFiles:            5,
		MaxWALFiles:             5,
		ListenPeerURLs:          mustURLs(defaultPeerURL),
		ListenClientURLs:        mustURLs(defaultClientURL),
		EnableGRPCGateway:       true,
		AdvertisePeerURLs:       mustURLs(defaultPeerURL),
		AdvertiseClientURLs:     mustURLs(defaultClientURL),
		InitialCluster:          DefaultName + "=" + defaultPeerURL,
		ClusterState:            StateNew,
		V2Discovery:             discovery.V2{Fallback: discovery.FallbackExit},
		Proxy:                   ProxyOff,
		ProxyTimes:              httpproxy.DefaultTimes(),
		Discovery:               discovery.Default(),
		AutoCompactionMode:      CompactionPeriodic,
		AutoCompactionRetention: "0",
		SelfSignedCertValidity:  1,
		Protocols:               certs.Protocols{MinVersion: "TLS1.2"},
		BcryptCost:              10,
		AuthTokenTTL:            300,
		LogFlags:                logging.DefaultFlags(),
		Metrics:                 MetricsBasic,
		explicit:                map[string]bool{},
	}
}

// Log returns the logger that the logging flags ask for.
func (c *Config) Log() *zap.Logger { return c.lg }

// Close closes the logger's files. Call it after the last line.
func (c *Config) Close() {
	if c.closeLog != nil {
		c.closeLog()
	}
}

// IsNewCluster reports whether the member bootstraps a cluster, as opposed to joining one.
func (c *Config) IsNewCluster() bool { return c.ClusterState == StateNew }

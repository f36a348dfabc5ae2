// Package config turns flags, environment and configuration file into one
// Config.
//
// In: the command line, the environment, and the file that one of them names.
// Out: a Config that is resolved and validated once, or the exit code of the
// process. Always true: names, defaults, precedence, messages and exit codes
// are etcd 3.7's, so an unchanged unit file, static pod or script starts the
// member and reads its errors as before. A setting that this server does not
// act on is never swallowed: a warning names it at the start.
package config

import (
	"net"
	"net/url"
	"time"

	"quorate/internal/datadir"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"
)

// Values of --initial-cluster-state.
const (
	StateNew      = "new"      // bootstrap a cluster
	StateExisting = "existing" // join one
)

// DefaultName is the name of a member that was not given one.
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

// Config is one member's configuration. The json tags are the keys of the
// configuration file. A Config is not changed once Parse has returned it.
type Config struct {
	// Member.
	Name    string `json:"name"`
	DataDir string `json:"data-dir"` // never empty after Parse
	WALDir  string `json:"wal-dir"`  // "" keeps the log in DataDir; see LogDir

	TickMs                     uint `json:"heartbeat-interval"` // milliseconds, also the raft tick
	ElectionMs                 uint `json:"election-timeout"`   // milliseconds
	InitialElectionTickAdvance bool `json:"initial-election-tick-advance"`
	PreVote                    bool `json:"pre-vote"`

	SnapshotCount          uint64 `json:"snapshot-count"`           // applied entries between snapshots
	SnapshotCatchUpEntries uint64 `json:"snapshot-catchup-entries"` // entries kept behind a snapshot
	MaxSnapFiles           uint   `json:"max-snapshots"`            // 0 is unlimited
	MaxWALFiles            uint   `json:"max-wals"`                 // 0 is unlimited

	ListenPeerURLs       []url.URL `json:"-"`
	ListenClientURLs     []url.URL `json:"-"`
	ListenClientHTTPURLs []url.URL `json:"-"` // when set, HTTP is served here only, and gRPC alone on ListenClientURLs
	ListenMetricsURLs    []url.URL `json:"-"`
	ReusePort            bool      `json:"-"`
	ReuseAddress         bool      `json:"-"`

	QuotaBackendBytes    int64         `json:"quota-backend-bytes"` // as given: 0 is the default, negative is none; see Quota
	BackendBatchInterval time.Duration `json:"backend-batch-interval"`
	BackendBatchLimit    int           `json:"backend-batch-limit"`
	BackendFreelistType  string        `json:"backend-bbolt-freelist-type"`
	MaxTxnOps            uint          `json:"max-txn-ops"`
	MaxRequestBytes      uint          `json:"max-request-bytes"` // of one proposal
	MaxConcurrentStreams uint32        `json:"max-concurrent-streams"`
	MaxLearners          int           `json:"max-learners"`
	MemoryMlock          bool          `json:"memory-mlock"`
	RaftReadTimeout      time.Duration `json:"-"`
	RaftWriteTimeout     time.Duration `json:"-"`

	GRPCKeepAliveMinTime  time.Duration `json:"grpc-keepalive-min-time"`
	GRPCKeepAliveInterval time.Duration `json:"grpc-keepalive-interval"` // 0 disables pings
	GRPCKeepAliveTimeout  time.Duration `json:"grpc-keepalive-timeout"`
	EnableGRPCGateway     bool          `json:"enable-grpc-gateway"`

	// Clustering.
	AdvertisePeerURLs   []url.URL `json:"-"`
	AdvertiseClientURLs []url.URL `json:"-"`
	InitialCluster      string    `json:"initial-cluster"`       // see InitialMembers
	ClusterState        string    `json:"initial-cluster-state"` // StateNew or StateExisting
	InitialClusterToken string    `json:"initial-cluster-token"`
	Join                []url.URL `json:"-"` // client URLs of a running cluster to add this member to
	StrictReconfigCheck bool      `json:"strict-reconfig-check"`
	Discovery           Discovery `json:"discovery-config"`
	DiscoverySRV        string    `json:"discovery-srv"`
	DiscoverySRVName    string    `json:"discovery-srv-name"`
	DiscoveryFallback   string    `json:"discovery-fallback"` // exit or proxy
	V2Deprecation       string    `json:"v2-deprecation"`     // ignored, as in etcd

	// Compaction, watch, corruption checks.
	AutoCompactionMode          string        `json:"auto-compaction-mode"`
	AutoCompactionRetention     string        `json:"auto-compaction-retention"` // see CompactionRetention
	CompactionBatchLimit        int           `json:"compaction-batch-limit"`    // 0 is the default, 1000
	CompactionSleepInterval     time.Duration `json:"compaction-sleep-interval"` // 0 is the default, 10ms
	WatchProgressNotifyInterval time.Duration `json:"watch-progress-notify-interval"`
	CorruptCheckTime            time.Duration `json:"corrupt-check-time"`
	CompactHashCheckTime        time.Duration `json:"compact-hash-check-time"`
	DowngradeCheckTime          time.Duration `json:"downgrade-check-time"`
	BootstrapDefragThresholdMB  uint          `json:"bootstrap-defrag-threshold-megabytes"`
	FeatureGates                Gates         `json:"-"`

	// Security.
	ClientTLS              TLS      `json:"client-transport-security"`
	PeerTLS                TLS      `json:"peer-transport-security"`
	SelfSignedCertValidity uint     `json:"self-signed-cert-validity"` // years
	CipherSuites           []string `json:"cipher-suites"`
	TLSMinVersion          string   `json:"tls-min-version"`
	TLSMaxVersion          string   `json:"tls-max-version"`
	CORS                   []string `json:"-"` // allowed origins; {"*"} or empty allows all
	HostWhitelist          []string `json:"-"` // allowed Host values of plain HTTP; {"*"} or empty allows all
	AuthToken              string   `json:"auth-token"`
	BcryptCost             uint     `json:"bcrypt-cost"`
	AuthTokenTTL           uint     `json:"auth-token-ttl"` // seconds

	// Logging, monitoring.
	Logger                      string        `json:"logger"`
	LogLevel                    string        `json:"log-level"`
	LogFormat                   string        `json:"log-format"`
	LogOutputs                  []string      `json:"log-outputs"`
	LogPackageLevels            string        `json:"log-package-levels"`
	Debug                       bool          `json:"debug"` // LogLevel debug, by an older name
	EnableLogRotation           bool          `json:"enable-log-rotation"`
	LogRotationConfigJSON       string        `json:"log-rotation-config-json"`
	WarningApplyDuration        time.Duration `json:"warning-apply-duration"`
	WarningUnaryRequestDuration time.Duration `json:"warning-unary-request-duration"`
	EnablePprof                 bool          `json:"enable-pprof"`
	Metrics                     string        `json:"metrics"` // MetricsExtensive, or anything else for basic
	Tracing                     bool          `json:"enable-distributed-tracing"`
	TracingAddress              string        `json:"distributed-tracing-address"`
	TracingServiceName          string        `json:"distributed-tracing-service-name"`
	TracingInstanceID           string        `json:"distributed-tracing-instance-id"`
	TracingSamplingRate         int           `json:"distributed-tracing-sampling-rate"` // per million

	// Of etcd 3.4 and 3.5.
	V2Discovery      string `json:"discovery"`
	V2DiscoveryProxy string `json:"discovery-proxy"`
	EnableV2         bool   `json:"enable-v2"`
	Proxy            string `json:"proxy"` // ProxyOff, ProxyReadOnly or ProxyOn

	// Of the proxy, in milliseconds. 0 is no limit for the last three.
	ProxyFailureWaitMs     uint `json:"proxy-failure-wait"`
	ProxyRefreshIntervalMs uint `json:"proxy-refresh-interval"`
	ProxyDialTimeoutMs     uint `json:"proxy-dial-timeout"`
	ProxyWriteTimeoutMs    uint `json:"proxy-write-timeout"`
	ProxyReadTimeoutMs     uint `json:"proxy-read-timeout"`

	// Unsafe.
	ForceNewCluster bool `json:"force-new-cluster"`
	UnsafeNoFsync   bool `json:"unsafe-no-fsync"`

	configFile   string
	printVersion bool
	explicit     map[string]bool // names of flags and file keys that were given
	oldGates     map[string]bool // boolean flags that became gates, as given
	notes        []note          // lines to log once there is a logger
	lg           *zap.Logger
	closeLog     func()
}

// TLS is the security of one kind of listener, peers' or clients'.
type TLS struct {
	CertFile            string   `json:"cert-file"`
	KeyFile             string   `json:"key-file"`
	ClientCertFile      string   `json:"client-cert-file"`
	ClientKeyFile       string   `json:"client-key-file"`
	ClientCertAuth      bool     `json:"client-cert-auth"`
	TrustedCAFile       string   `json:"trusted-ca-file"`
	AutoTLS             bool     `json:"auto-tls"`
	AllowedCNs          []string `json:"allowed-cn"`
	AllowedHostnames    []string `json:"allowed-hostname"`
	SkipClientSANVerify bool     `json:"skip-client-san-verification"`
	CRLFile             string   `json:"-"`
}

// Discovery says which cluster keeps the register that members find each other
// by.
type Discovery struct {
	Token  string          `json:"token"`
	Client DiscoveryClient `json:"client"`
}

// DiscoveryClient is how to reach that cluster.
type DiscoveryClient struct {
	Endpoints        []string        `json:"endpoints"`
	RequestTimeout   time.Duration   `json:"request-timeout"`
	DialTimeout      time.Duration   `json:"dial-timeout"`
	KeepAliveTime    time.Duration   `json:"keepalive-time"`
	KeepAliveTimeout time.Duration   `json:"keepalive-timeout"`
	Secure           DiscoverySecure `json:"secure"`
	Auth             DiscoveryAuth   `json:"auth"`
}

// DiscoverySecure is the transport security towards that cluster.
type DiscoverySecure struct {
	Cert               string `json:"cert"`
	Key                string `json:"key"`
	CACert             string `json:"cacert"`
	ServerName         string `json:"server-name"`
	InsecureTransport  bool   `json:"insecure-transport"`
	InsecureSkipVerify bool   `json:"insecure-skip-tls-verify"`
}

// DiscoveryAuth is the identity towards that cluster.
type DiscoveryAuth struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// Default returns the configuration of a member that was given nothing.
func Default() *Config {
	return &Config{
		Name:                       DefaultName,
		TickMs:                     100,
		ElectionMs:                 1000,
		InitialElectionTickAdvance: true,
		PreVote:                    true,
		SnapshotCount:              defaultSnapshotCount,
		SnapshotCatchUpEntries:     defaultSnapshotCatchUpEntries,
		MaxSnapFiles:               5,
		MaxWALFiles:                5,
		ListenPeerURLs:             mustURLs(defaultPeerURL),
		ListenClientURLs:           mustURLs(defaultClientURL),
		MaxTxnOps:                  128,
		MaxRequestBytes:            3 << 19, // 1.5 MiB
		MaxConcurrentStreams:       1<<32 - 1,
		MaxLearners:                1,
		RaftReadTimeout:            minRaftTimeout,
		RaftWriteTimeout:           minRaftTimeout,
		GRPCKeepAliveMinTime:       5 * time.Second,
		GRPCKeepAliveInterval:      2 * time.Hour,
		GRPCKeepAliveTimeout:       20 * time.Second,
		EnableGRPCGateway:          true,
		AdvertisePeerURLs:          mustURLs(defaultPeerURL),
		AdvertiseClientURLs:        mustURLs(defaultClientURL),
		InitialCluster:             DefaultName + "=" + defaultPeerURL,
		ClusterState:               StateNew,
		InitialClusterToken:        "etcd-cluster",
		StrictReconfigCheck:        true,
		DiscoveryFallback:          "exit",
		Proxy:                      ProxyOff,
		ProxyFailureWaitMs:         5000,
		ProxyRefreshIntervalMs:     30000,
		ProxyDialTimeoutMs:         1000,
		ProxyWriteTimeoutMs:        5000,
		Discovery: Discovery{Client: DiscoveryClient{
			DialTimeout:      2 * time.Second,
			RequestTimeout:   5 * time.Second,
			KeepAliveTime:    2 * time.Second,
			KeepAliveTimeout: 6 * time.Second,
			Secure:           DiscoverySecure{InsecureTransport: true},
		}},
		AutoCompactionMode:          CompactionPeriodic,
		AutoCompactionRetention:     "0",
		CompactHashCheckTime:        time.Minute,
		DowngradeCheckTime:          5 * time.Second,
		SelfSignedCertValidity:      1,
		TLSMinVersion:               "TLS1.2",
		CORS:                        []string{"*"},
		HostWhitelist:               []string{"*"},
		AuthToken:                   "simple",
		BcryptCost:                  10,
		AuthTokenTTL:                300,
		Logger:                      "zap",
		LogLevel:                    "info",
		LogFormat:                   "json",
		LogOutputs:                  []string{"default"},
		LogRotationConfigJSON:       `{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}`,
		WarningApplyDuration:        100 * time.Millisecond,
		WarningUnaryRequestDuration: 300 * time.Millisecond,
		Metrics:                     MetricsBasic,
		TracingAddress:              "localhost:4317",
		TracingServiceName:          "etcd",
		explicit:                    map[string]bool{},
	}
}

// Log is the logger that the logging flags ask for.
func (c *Config) Log() *zap.Logger { return c.lg }

// Close releases the files of the logger, after the last line.
func (c *Config) Close() {
	if c.closeLog != nil {
		c.closeLog()
	}
}

// ElectionTicks is the election timeout in raft ticks.
func (c *Config) ElectionTicks() int { return int(c.ElectionMs / c.TickMs) }

// Tick is the time of one raft tick.
func (c *Config) Tick() time.Duration { return time.Duration(c.TickMs) * time.Millisecond }

// ElectionTimeout is a whole number of ticks, at most what was asked for.
func (c *Config) ElectionTimeout() time.Duration {
	return time.Duration(c.ElectionTicks()) * c.Tick()
}

// RequestTimeout bounds one request: five seconds for queues and disk, and two
// election timeouts in case a leader has to be found.
func (c *Config) RequestTimeout() time.Duration {
	return 5*time.Second + 2*c.ElectionTimeout()
}

// Layout names the files of the member.
func (c *Config) Layout() datadir.Layout {
	return datadir.Layout{FS: vfs.Default, DataDir: c.DataDir, WALDir: c.WALDir}
}

// minFlush keeps the store's tables from becoming too small to be worth their files.
const minFlush = 5 * time.Second

// FlushInterval is how often the store is to write to disk what it holds in
// memory; 0 leaves that to the bound of its memory. Nothing is lost either way:
// the raft log has it.
func (c *Config) FlushInterval() time.Duration {
	if c.BackendBatchInterval <= 0 {
		return 0
	}
	return max(c.BackendBatchInterval, minFlush)
}

// LocalIP is the first address among the advertised peer URLs that a connection
// can come from, nil if they are names or unspecified.
func (c *Config) LocalIP() net.IP {
	for i := range c.AdvertisePeerURLs {
		if ip := net.ParseIP(c.AdvertisePeerURLs[i].Hostname()); ip != nil && !ip.IsUnspecified() {
			return ip
		}
	}
	return nil
}

// Quota returns the effective quota in bytes; limited is false when there is
// none.
func (c *Config) Quota() (bytes int64, limited bool) {
	switch {
	case c.QuotaBackendBytes < 0:
		return c.QuotaBackendBytes, false
	case c.QuotaBackendBytes == 0:
		return DefaultQuotaBytes, true
	}
	return c.QuotaBackendBytes, true
}

// IsNewCluster tells bootstrapping a cluster from joining one.
func (c *Config) IsNewCluster() bool { return c.ClusterState == StateNew }

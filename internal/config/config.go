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

// Config is one member's configuration. It is not changed once Parse has returned it.
type Config struct {
	// Member.
	Name    string
	DataDir string // never empty after Parse
	WALDir  string // "" keeps the log in DataDir; see LogDir

	TickMs                     uint // milliseconds, also the raft tick
	ElectionMs                 uint // milliseconds
	InitialElectionTickAdvance bool
	PreVote                    bool

	SnapshotCount          uint64 // applied entries between snapshots
	SnapshotCatchUpEntries uint64 // entries kept behind a snapshot
	MaxSnapFiles           uint   // 0 is unlimited
	MaxWALFiles            uint   // 0 is unlimited

	ListenPeerURLs       []url.URL
	ListenClientURLs     []url.URL
	ListenClientHTTPURLs []url.URL // when set, HTTP is served here only, and gRPC alone on ListenClientURLs
	ListenMetricsURLs    []url.URL
	ReusePort            bool
	ReuseAddress         bool

	QuotaBackendBytes    int64 // as given: 0 is the default, negative is none; see Quota
	BackendBatchInterval time.Duration
	BackendBatchLimit    int
	BackendFreelistType  string
	MaxTxnOps            uint
	MaxRequestBytes      uint // of one proposal
	MaxConcurrentStreams uint32
	MaxLearners          int
	MemoryMlock          bool
	RaftReadTimeout      time.Duration
	RaftWriteTimeout     time.Duration

	GRPCKeepAliveMinTime  time.Duration
	GRPCKeepAliveInterval time.Duration // 0 disables pings
	GRPCKeepAliveTimeout  time.Duration
	EnableGRPCGateway     bool

	// Clustering.
	AdvertisePeerURLs   []url.URL
	AdvertiseClientURLs []url.URL
	InitialCluster      string // see InitialMembers
	ClusterState        string // StateNew or StateExisting
	InitialClusterToken string
	Join                []url.URL // client URLs of a running cluster to add this member to
	StrictReconfigCheck bool
	Discovery           Discovery
	DiscoverySRV        string
	DiscoverySRVName    string
	DiscoveryFallback   string // exit or proxy
	V2Deprecation       string // ignored, as in etcd

	// Compaction, watch, corruption checks.
	AutoCompactionMode          string
	AutoCompactionRetention     string        // see CompactionRetention
	CompactionBatchLimit        int           // 0 is the default, 1000
	CompactionSleepInterval     time.Duration // 0 is the default, 10ms
	WatchProgressNotifyInterval time.Duration
	CorruptCheckTime            time.Duration
	CompactHashCheckTime        time.Duration
	DowngradeCheckTime          time.Duration
	BootstrapDefragThresholdMB  uint
	FeatureGates                Gates

	// Security.
	ClientTLS              TLS
	PeerTLS                TLS
	SelfSignedCertValidity uint // years
	CipherSuites           []string
	TLSMinVersion          string
	TLSMaxVersion          string
	CORS                   []string // allowed origins; {"*"} or empty allows all
	HostWhitelist          []string // allowed Host values of plain HTTP; {"*"} or empty allows all
	AuthToken              string
	BcryptCost             uint
	AuthTokenTTL           uint // seconds

	// Logging, monitoring.
	Logger                      string
	LogLevel                    string
	LogFormat                   string
	LogOutputs                  []string
	LogPackageLevels            string
	Debug                       bool // LogLevel debug, by an older name
	EnableLogRotation           bool
	LogRotationConfigJSON       string
	WarningApplyDuration        time.Duration
	WarningUnaryRequestDuration time.Duration
	EnablePprof                 bool
	Metrics                     string // MetricsExtensive, or anything else for basic
	Tracing                     bool
	TracingAddress              string
	TracingServiceName          string
	TracingInstanceID           string
	TracingSamplingRate         int // per million

	// Of etcd 3.4 and 3.5.
	V2Discovery      string
	V2DiscoveryProxy string
	EnableV2         bool
	Proxy            string // ProxyOff, ProxyReadOnly or ProxyOn

	// Of the proxy, in milliseconds. 0 is no limit for the last three.
	ProxyFailureWaitMs     uint
	ProxyRefreshIntervalMs uint
	ProxyDialTimeoutMs     uint
	ProxyWriteTimeoutMs    uint
	ProxyReadTimeoutMs     uint

	// Unsafe.
	ForceNewCluster bool
	UnsafeNoFsync   bool

	configFile   string
	printVersion bool
	explicit     map[string]bool // names of flags and file keys that were given
	oldGates     map[string]bool // boolean flags that became gates, as given
	notes        []note          // lines to log once there is a logger
	lg           *zap.Logger
	closeLog     func()
}

// TLS is the security of one kind of listener, peers' or clients'. The json tags of this
// and of the types below are the keys of their sections of the file.
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

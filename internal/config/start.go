package config

import (
	"runtime"
	"strings"

	"go.uber.org/zap"

	"quorate/internal/build"
)

// LogStart logs the effective configuration.
func (c *Config) LogStart(initialized bool) {
	quota, _ := c.Quota()
	retention, _ := c.CompactionRetention()
	localAddress := ""
	if ip := c.Member.Peers.LocalIP; ip != nil {
		localAddress = ip.String()
	}
	cluster := c.InitialCluster
	if initialized {
		cluster = "" // not validated
	}
	c.lg.Info("starting an etcd server",
		zap.String("etcd-version", build.EtcdVersion),
		zap.String("quorate-version", build.Version),
		zap.String("git-sha", build.Commit()),
		zap.String("go-version", runtime.Version()),
		zap.String("go-os", runtime.GOOS),
		zap.String("go-arch", runtime.GOARCH),
		zap.Int("max-cpu-set", runtime.GOMAXPROCS(0)),
		zap.Int("max-cpu-available", runtime.NumCPU()),
		zap.Bool("member-initialized", initialized),
		zap.String("name", c.Member.Name),
		zap.String("data-dir", c.Member.DataDir),
		zap.String("wal-dir", c.Member.LogDir),
		zap.String("wal-dir-dedicated", c.Member.LogDir),
		zap.String("member-dir", c.Layout().Member()),
		zap.Bool("force-new-cluster", c.Member.ForceNew),
		zap.String("heartbeat-interval", c.Member.Tick.String()),
		zap.String("election-timeout", c.Member.ElectionTimeout().String()),
		zap.Bool("initial-election-tick-advance", c.Member.InitialTickAdvance),
		zap.Uint64("snapshot-count", c.Member.SnapshotCount),
		zap.Uint("max-wals", c.MaxWALFiles),
		zap.Uint("max-snapshots", c.MaxSnapFiles),
		zap.Uint64("snapshot-catchup-entries", c.Member.CatchUpEntries),
		zap.Strings("initial-advertise-peer-urls", URLStrings(c.AdvertisePeerURLs)),
		zap.Strings("listen-peer-urls", URLStrings(c.ListenPeerURLs)),
		zap.Strings("advertise-client-urls", URLStrings(c.AdvertiseClientURLs)),
		zap.Strings("listen-client-urls", URLStrings(c.ListenClientURLs)),
		zap.Strings("listen-metrics-urls", URLStrings(c.ListenMetricsURLs)),
		zap.Strings("cors", c.Pages.CORS),
		zap.Strings("host-whitelist", c.Pages.HostWhitelist),
		zap.String("initial-cluster", cluster),
		zap.String("initial-cluster-state", c.ClusterState),
		zap.String("initial-cluster-token", c.Member.InitialToken),
		zap.Int64("quota-backend-bytes", quota),
		zap.Uint("max-request-bytes", c.Calls.MaxRequestBytes),
		zap.Uint32("max-concurrent-streams", c.Calls.MaxConcurrentStreams),
		zap.Bool("pre-vote", c.Member.PreVote),
		zap.String("feature-gates", c.FeatureGates.String()),
		zap.String("corrupt-check-time-interval", c.Member.Checks.Interval.String()),
		zap.Duration("compact-check-time-interval", c.Member.Checks.CompactionsInterval),
		zap.String("auto-compaction-mode", c.AutoCompactionMode),
		zap.Duration("auto-compaction-retention", retention),
		zap.String("auto-compaction-interval", retention.String()),
		zap.String("discovery-token", c.Discovery.Token),
		zap.Bool("initial-corrupt-check", c.FeatureGates.Enabled(InitialCorruptCheck)),
		zap.String("local-address", localAddress),
		zap.String("v2-deprecation", c.V2Deprecation),
		zap.String("discovery-dial-timeout", c.Discovery.Client.DialTimeout.String()),
		zap.String("discovery-request-timeout", c.Discovery.Client.RequestTimeout.String()),
		zap.String("discovery-keepalive-time", c.Discovery.Client.KeepAliveTime.String()),
		zap.String("discovery-keepalive-timeout", c.Discovery.Client.KeepAliveTimeout.String()),
		zap.Bool("discovery-insecure-transport", c.Discovery.Client.Secure.InsecureTransport),
		zap.Bool("discovery-insecure-skip-tls-verify", c.Discovery.Client.Secure.InsecureSkipVerify),
		zap.String("discovery-cert", c.Discovery.Client.Secure.Cert),
		zap.String("discovery-key", c.Discovery.Client.Secure.Key),
		zap.String("discovery-cacert", c.Discovery.Client.Secure.CACert),
		zap.String("discovery-user", c.Discovery.Client.Auth.Username),
		zap.String("discovery-endpoints", strings.Join(c.Discovery.Client.Endpoints, ",")),
		zap.String("downgrade-check-interval", c.Member.Upkeep.DowngradeCheck.String()),
		zap.Int("max-learners", c.Member.Membership.MaxLearners),
	)
}

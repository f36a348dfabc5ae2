package config

import (
	"runtime"
	"strings"

	"go.uber.org/zap"

	"quorate/internal/build"
	"quorate/internal/httpapi"
)

// LogStart writes the line that says what the member runs with.
func (c *Config) LogStart(initialized bool) {
	quota, _ := c.Quota()
	retention, _ := c.CompactionRetention()
	cluster := c.InitialCluster
	if initialized {
		cluster = "" // it is not looked at
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
		zap.String("name", c.Name),
		zap.String("data-dir", c.DataDir),
		zap.String("wal-dir", c.WALDir),
		zap.String("wal-dir-dedicated", c.WALDir),
		zap.String("member-dir", c.Layout().Member()),
		zap.Bool("force-new-cluster", c.ForceNewCluster),
		zap.String("heartbeat-interval", c.Tick().String()),
		zap.String("election-timeout", c.ElectionTimeout().String()),
		zap.Bool("initial-election-tick-advance", c.InitialElectionTickAdvance),
		zap.Uint64("snapshot-count", c.SnapshotCount),
		zap.Uint("max-wals", c.MaxWALFiles),
		zap.Uint("max-snapshots", c.MaxSnapFiles),
		zap.Uint64("snapshot-catchup-entries", c.SnapshotCatchUpEntries),
		zap.Strings("initial-advertise-peer-urls", URLStrings(c.AdvertisePeerURLs)),
		zap.Strings("listen-peer-urls", URLStrings(c.ListenPeerURLs)),
		zap.Strings("advertise-client-urls", URLStrings(c.AdvertiseClientURLs)),
		zap.Strings("listen-client-urls", URLStrings(c.ListenClientURLs)),
		zap.Strings("listen-metrics-urls", URLStrings(c.ListenMetricsURLs)),
		zap.Strings("cors", c.CORS),
		zap.Strings("host-whitelist", c.HostWhitelist),
		zap.String("initial-cluster", cluster),
		zap.String("initial-cluster-state", c.ClusterState),
		zap.String("initial-cluster-token", c.InitialClusterToken),
		zap.Int64("quota-backend-bytes", quota),
		zap.Uint("max-request-bytes", c.MaxRequestBytes),
		zap.Uint32("max-concurrent-streams", c.MaxConcurrentStreams),
		zap.Bool("pre-vote", c.PreVote),
		zap.String("feature-gates", c.FeatureGates.String()),
		zap.String("corrupt-check-time-interval", c.CorruptCheckTime.String()),
		zap.Duration("compact-check-time-interval", c.CompactHashCheckTime),
		zap.String("auto-compaction-mode", c.AutoCompactionMode),
		zap.Duration("auto-compaction-retention", retention),
		zap.String("auto-compaction-interval", retention.String()),
		zap.String("discovery-token", c.Discovery.Token),
		zap.Bool("initial-corrupt-check", c.FeatureGates.Enabled(InitialCorruptCheck)),
		zap.String("local-address", c.localAddress()),
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
		zap.String("downgrade-check-interval", c.DowngradeCheckTime.String()),
		zap.Int("max-learners", c.MaxLearners),
	)
}

// Pages are the options of the handlers for clients. Log level debug opens profiles and
// traces as etcd's does.
func (c *Config) Pages() httpapi.Options {
	debug := c.LogLevel == "debug"
	return httpapi.Options{
		Logger: c.lg, RequestTimeout: c.RequestTimeout(), EnablePprof: c.EnablePprof || debug, EnableTrace: debug,
		CORS: c.CORS, HostWhitelist: c.HostWhitelist,
	}
}

// localAddress is what connections to other members come from, if that was asked for.
func (c *Config) localAddress() string {
	if !c.FeatureGates.Enabled(SetMemberLocalAddr) {
		return ""
	}
	if ip := c.LocalIP(); ip != nil {
		return ip.String()
	}
	return ""
}

package config

import (
	"net"
	"path/filepath"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/certs"
	"quorate/internal/datadir"
	"quorate/internal/proxy/httpproxy"
)

// handDown converts the flags that other packages want in another form, and sets the
// options of these packages.
func (c *Config) handDown() {
	m := &c.Member
	m.PeerURLs, m.ClientURLs = URLStrings(c.AdvertisePeerURLs), URLStrings(c.AdvertiseClientURLs)
	m.Existing = !c.IsNewCluster()
	m.Tick, m.ElectionTicks = milliseconds(c.TickMs), int(c.ElectionMs/c.TickMs) // rounded down to a whole number of ticks
	m.MaxRequestBytes = int(c.Calls.MaxRequestBytes)
	m.BcryptCost, m.Tokens.TTL, m.ClientCertAuth = int(c.BcryptCost), time.Duration(c.AuthTokenTTL)*time.Second, c.ClientTLS.ClientCertAuth
	m.Lease.Checkpoints, m.State.PersistCheckpoints = c.FeatureGates.Enabled(LeaseCheckpoint), c.FeatureGates.Enabled(LeaseCheckpointPersist)
	m.PriorityRequests, m.Checks.Compactions = c.FeatureGates.Enabled(PriorityRequest), c.FeatureGates.Enabled(CompactHashCheck)
	m.State.WarnApply = max(m.State.WarnApply, 1)
	m.Upkeep.DefragThreshold = int64(c.BootstrapDefragThresholdMB) << 20
	if c.BackendBatchInterval > 0 {
		m.Upkeep.FlushInterval = max(c.BackendBatchInterval, minFlush)
	}
	if keep, _ := c.CompactionRetention(); c.AutoCompactionMode == CompactionPeriodic { // already validated
		m.Upkeep.AutoCompaction.Period = keep
	} else {
		m.Upkeep.AutoCompaction.Revisions = int64(keep)
	}
	quota, limited := c.Quota()
	if m.QuotaReported = quota; limited {
		m.State.Quota = quota
	}
	m.Peers.Stats = c.EnableV2
	if c.FeatureGates.Enabled(SetMemberLocalAddr) {
		m.Peers.LocalIP = c.localIP()
	}
	m.Logger, c.V2Discovery.Logger, c.SRV.Logger = c.lg, c.lg, c.lg

	c.Calls.ElectionTimeout, c.Calls.Extensive, c.Calls.Logger = m.ElectionTimeout(), c.Metrics == MetricsExtensive, c.lg
	c.Calls.NotServingOnDefrag = c.FeatureGates.Enabled(NotServingOnDefrag)

	// Log level debug opens profiles and traces, as in etcd.
	c.Pages.EnableTrace = c.Logging.Level == "debug"
	c.Pages.EnablePprof = c.EnablePprof || c.Pages.EnableTrace
	c.Pages.RequestTimeout, c.Pages.Logger = m.RequestTimeout(), c.lg
}

// minFlush is the shortest flush interval, so that the store's tables do not become too
// small to be worth their files. Waiting loses nothing: the raft log has the writes.
const minFlush = 5 * time.Second

func milliseconds(n uint) time.Duration { return time.Duration(n) * time.Millisecond }

// localIP returns the first advertised peer address that outgoing connections can be bound
// to, nil if the advertised URLs have host names or unspecified addresses only.
func (c *Config) localIP() net.IP {
	for i := range c.AdvertisePeerURLs {
		if ip := net.ParseIP(c.AdvertisePeerURLs[i].Hostname()); ip != nil && !ip.IsUnspecified() {
			return ip
		}
	}
	return nil
}

// Quota returns the effective quota in bytes; limited is false if there is no quota.
func (c *Config) Quota() (bytes int64, limited bool) {
	switch {
	case c.QuotaBackendBytes < 0:
		return c.QuotaBackendBytes, false
	case c.QuotaBackendBytes == 0:
		return DefaultQuotaBytes, true
	}
	return c.QuotaBackendBytes, true
}

// Layout returns the paths of the member's files.
func (c *Config) Layout() datadir.Layout {
	return datadir.Layout{FS: vfs.Default, DataDir: c.Member.DataDir, WALDir: c.Member.LogDir}
}

// HTTPProxy returns the options of a proxy and of its connections to the members.
func (c *Config) HTTPProxy() (httpproxy.Options, httpproxy.TransportOptions) {
	o, to := c.ProxyTimes.Options()
	o.Dir, o.Logger = c.ProxyDir(), c.lg
	return o, to
}

// Security returns the certificates of the member and what uses them.
func (c *Config) Security() certs.MemberOptions {
	return certs.MemberOptions{
		Peer: c.PeerTLS, Client: c.ClientTLS, Protocols: c.Protocols,
		PeerURLs: c.ListenPeerURLs, ClientURLs: slices.Concat(c.ListenClientURLs, c.ListenClientHTTPURLs), Metrics: c.ListenMetricsURLs,
		Generated: filepath.Join(c.Member.DataDir, "fixtures"), Validity: c.SelfSignedCertValidity, Logger: c.lg,
	}
}

package config

import (
	"flag"
	"fmt"
	"strconv"
	"time"

	"quorate/internal/discovery"
)

// state says whether an option has an effect in this server.
type state int

const (
	effective state = iota
	inert           // accepted and validated; a warning at start says that it has no effect
)

// Groups of options, in the order of --help.
const (
	groupMember     = "Member"
	groupClustering = "Clustering"
	groupSecurity   = "Security"
	groupAuth       = "Auth"
	groupMonitoring = "Profiling and Monitoring"
	groupLogging    = "Logging"
	groupTracing    = "Distributed tracing"
	groupFeatures   = "Features"
	groupLegacy     = "Of etcd 3.4 and 3.5"
	groupUnsafe     = "Unsafe feature"
)

var groups = []string{
	groupMember, groupClustering, groupSecurity, groupAuth, groupMonitoring,
	groupLogging, groupTracing, groupFeatures, groupLegacy, groupUnsafe,
}

// option is one flag. Its environment variable, its line in --help and its key in the file
// are derived from it.
type option struct {
	name  string
	group string
	state state
	help  string
	shown string              // default shown in --help, where it is not the plain value
	noKey bool                // the file has no key for it
	field func(c *Config) any // *bool, *int, ..., or a flag.Value over the field
}

// options returns every flag of etcd 3.7, and --join, in the order of --help.
var options = []option{
	{name: "name", group: groupMember, help: "Name of this member; at bootstrap it must be one of the names in --initial-cluster.",
		field: func(c *Config) any { return &c.Member.Name }},
	{name: "data-dir", group: groupMember, shown: "${name}.etcd", help: "Directory that holds everything this member stores.",
		field: func(c *Config) any { return &c.Member.DataDir }},
	{name: "wal-dir", group: groupMember, help: "Directory of the raft log; a fast disk of its own keeps writes fast. Empty keeps the log in the data directory.",
		field: func(c *Config) any { return &c.Member.LogDir }},
	{name: "snapshot-count", group: groupMember, help: "Applied entries between two raft snapshots; older log entries are dropped then.",
		field: func(c *Config) any { return &c.Member.SnapshotCount }},
	{name: "heartbeat-interval", group: groupMember, help: "Milliseconds between heartbeats of the leader; about the round trip between members.",
		field: func(c *Config) any { return &c.TickMs }},
	{name: "election-timeout", group: groupMember, help: "Milliseconds without a heartbeat until a follower starts an election; at least 5 heartbeats, better 10.",
		field: func(c *Config) any { return &c.ElectionMs }},
	{name: "initial-election-tick-advance", group: groupMember, help: "Skip most of the first election timeout after a start, for a leader sooner.",
		field: func(c *Config) any { return &c.Member.InitialTickAdvance }},
	{name: "listen-peer-urls", group: groupMember, help: "URLs to listen on for other members. Hosts are addresses, not names.",
		field: func(c *Config) any { return urlsValue{&c.ListenPeerURLs} }},
	{name: "listen-client-urls", group: groupMember, help: "URLs to listen on for clients: gRPC, and HTTP unless --listen-client-http-urls is given.",
		field: func(c *Config) any { return urlsValue{&c.ListenClientURLs} }},
	{name: "listen-client-http-urls", group: groupMember, help: "URLs for HTTP alone; --listen-client-urls then serves gRPC alone.",
		field: func(c *Config) any { return urlsValue{&c.ListenClientHTTPURLs} }},
	{name: "max-snapshots", group: groupMember, help: "Snapshot files to keep at most, 0 for all. They are removed as soon as nothing needs them, so the bound always holds. Deprecated.",
		field: func(c *Config) any { return &c.MaxSnapFiles }},
	{name: "max-wals", group: groupMember, help: "Old log files to keep at most, 0 for all. They are removed as soon as no member needs them, so the bound always holds.",
		field: func(c *Config) any { return &c.MaxWALFiles }},
	{name: "memory-mlock", group: groupMember, help: "Lock the memory of the process, so that it is never swapped out.",
		field: func(c *Config) any { return &c.MemoryMlock }},
	{name: "quota-backend-bytes", group: groupMember, help: "Bytes the store may take before writes are refused with a NOSPACE alarm. 0 is 2 GiB, negative is no limit.",
		field: func(c *Config) any { return &c.QuotaBackendBytes }},
	{name: "backend-bbolt-freelist-type", group: groupMember, state: inert, help: "Free list of the bbolt file: array or map.",
		field: func(c *Config) any { return &c.BackendFreelistType }},
	{name: "backend-batch-interval", group: groupMember, help: "Longest time until the store flushes its memory to disk; less than 5s counts as 5s. 0 flushes when that memory is full. Writes are durable through the raft log.",
		field: func(c *Config) any { return &c.BackendBatchInterval }},
	{name: "backend-batch-limit", group: groupMember, help: "Most log entries in one batch of the store. 0 takes all that wait.",
		field: func(c *Config) any { return &c.Member.ApplyBatch }},
	{name: "max-txn-ops", group: groupMember, help: "Most operations in each branch of a transaction.",
		field: func(c *Config) any { return &c.Calls.MaxTxnOps }},
	{name: "max-request-bytes", group: groupMember, help: "Largest request that is accepted, in bytes.",
		field: func(c *Config) any { return &c.Calls.MaxRequestBytes }},
	{name: "max-concurrent-streams", group: groupMember, shown: "4294967295", help: "Most concurrent streams of one client connection.",
		field: func(c *Config) any { return uint32Value{&c.Calls.MaxConcurrentStreams} }},
	{name: "grpc-keepalive-min-time", group: groupMember, help: "Clients that ping more often than this are disconnected.",
		field: func(c *Config) any { return &c.Calls.Keepalive.MinTime }},
	{name: "grpc-keepalive-interval", group: groupMember, help: "Idle time after which the server pings a client; 0 turns that off.",
		field: func(c *Config) any { return &c.Calls.Keepalive.Time }},
	{name: "grpc-keepalive-timeout", group: groupMember, help: "Time to wait for the answer to such a ping before closing the connection.",
		field: func(c *Config) any { return &c.Calls.Keepalive.Timeout }},
	{name: "socket-reuse-port", noKey: true, group: groupMember, help: "Set SO_REUSEPORT on every listener.",
		field: func(c *Config) any { return &c.ReusePort }},
	{name: "socket-reuse-address", noKey: true, group: groupMember, help: "Set SO_REUSEADDR on every listener.",
		field: func(c *Config) any { return &c.ReuseAddress }},
	{name: "enable-grpc-gateway", group: groupMember, help: "Serve the JSON gateway under /v3/.",
		field: func(c *Config) any { return &c.EnableGRPCGateway }},
	{name: "raft-read-timeout", noKey: true, group: groupMember, help: "Time without a byte after which a connection between members is dropped; at least 5s.",
		field: func(c *Config) any { return &c.Member.Peers.ReadTimeout }},
	{name: "raft-write-timeout", noKey: true, group: groupMember, help: "Time in which another member must take bytes before the connection is dropped; at least 5s.",
		field: func(c *Config) any { return &c.Member.Peers.WriteTimeout }},
	{name: "feature-gates", group: groupMember, help: "Feature gates, Name=true or Name=false, separated by commas:",
		field: func(c *Config) any { return &c.FeatureGates }},

	{name: "initial-advertise-peer-urls", group: groupClustering, help: "Peer URLs of this member as the other members should dial them.",
		field: func(c *Config) any { return urlsValue{&c.AdvertisePeerURLs} }},
	{name: "initial-cluster", group: groupClustering, help: "All members at bootstrap: name=peerURL,name=peerURL. The default is this member alone.",
		field: func(c *Config) any { return &c.InitialCluster }},
	{name: "initial-cluster-state", group: groupClustering, help: "'new' to bootstrap a cluster, 'existing' to join one. Ignored once the member has data.",
		field: func(c *Config) any { return enumValue{&c.ClusterState, []string{StateNew, StateExisting}} }},
	{name: "initial-cluster-token", group: groupClustering, help: "Text that distinguishes clusters bootstrapped from the same URLs.",
		field: func(c *Config) any { return &c.Member.InitialToken }},
	{name: "join", group: groupClustering, help: "Client URL of a member of a running cluster: this member adds itself, catches up and then votes. Needs no other flag of this group.",
		field: func(c *Config) any { return urlsValue{&c.Join} }},
	{name: "advertise-client-urls", group: groupClustering, help: "Client URLs of this member as clients should dial them; must be given when --listen-client-urls is.",
		field: func(c *Config) any { return urlsValue{&c.AdvertiseClientURLs} }},
	{name: "discovery-endpoints", noKey: true, group: groupClustering, help: "v3 discovery: endpoints of the cluster that holds the register of members.",
		field: func(c *Config) any { return setValue{&c.Discovery.Client.Endpoints} }},
	{name: "discovery-token", noKey: true, group: groupClustering, help: "v3 discovery: token of the cluster to bootstrap.",
		field: func(c *Config) any { return &c.Discovery.Token }},
	{name: "discovery-dial-timeout", noKey: true, group: groupClustering, help: "v3 discovery: time to connect.",
		field: func(c *Config) any { return &c.Discovery.Client.DialTimeout }},
	{name: "discovery-request-timeout", noKey: true, group: groupClustering, help: "v3 discovery: time for one request.",
		field: func(c *Config) any { return &c.Discovery.Client.RequestTimeout }},
	{name: "discovery-keepalive-time", noKey: true, group: groupClustering, help: "v3 discovery: time between pings.",
		field: func(c *Config) any { return &c.Discovery.Client.KeepAliveTime }},
	{name: "discovery-keepalive-timeout", noKey: true, group: groupClustering, help: "v3 discovery: time to wait for the answer to a ping.",
		field: func(c *Config) any { return &c.Discovery.Client.KeepAliveTimeout }},
	{name: "discovery-insecure-transport", noKey: true, group: groupClustering, help: "v3 discovery: connect without TLS.",
		field: func(c *Config) any { return &c.Discovery.Client.Secure.InsecureTransport }},
	{name: "discovery-insecure-skip-tls-verify", noKey: true, group: groupClustering, help: "v3 discovery: do not verify the server's certificate. For tests only.",
		field: func(c *Config) any { return &c.Discovery.Client.Secure.InsecureSkipVerify }},
	{name: "discovery-cert", noKey: true, group: groupClustering, help: "v3 discovery: file with the client certificate.",
		field: func(c *Config) any { return &c.Discovery.Client.Secure.Cert }},
	{name: "discovery-key", noKey: true, group: groupClustering, help: "v3 discovery: file with its key.",
		field: func(c *Config) any { return &c.Discovery.Client.Secure.Key }},
	{name: "discovery-cacert", noKey: true, group: groupClustering, help: "v3 discovery: file with the certificates that servers are verified against.",
		field: func(c *Config) any { return &c.Discovery.Client.Secure.CACert }},
	{name: "discovery-user", noKey: true, group: groupClustering, help: "v3 discovery: user name, or name:password.",
		field: func(c *Config) any { return &c.Discovery.Client.Auth.Username }},
	{name: "discovery-password", noKey: true, group: groupClustering, help: "v3 discovery: password, when --discovery-user has none.",
		field: func(c *Config) any { return &c.Discovery.Client.Auth.Password }},
	{name: "discovery-fallback", group: groupClustering, help: "What to do when the cluster of --discovery is full: exit, or proxy, which is as if --proxy=on had been given.",
		field: func(c *Config) any {
			return enumValue{&c.V2Discovery.Fallback, []string{discovery.FallbackExit, discovery.FallbackProxy}}
		}},
	{name: "discovery-srv", group: groupClustering, help: "DNS domain whose SRV records name the members.",
		field: func(c *Config) any { return &c.SRV.Domain }},
	{name: "discovery-srv-name", group: groupClustering, help: "Suffix of the name of these records.",
		field: func(c *Config) any { return &c.SRV.Suffix }},
	{name: "strict-reconfig-check", group: groupClustering, help: "Refuse member changes that would cost the quorum.",
		field: func(c *Config) any { return &c.Member.StrictReconfig }},
	{name: "pre-vote", group: groupClustering, help: "Ask before an election whether it could be won, so that a member that comes back does not depose a leader.",
		field: func(c *Config) any { return &c.Member.PreVote }},
	{name: "auto-compaction-retention", group: groupClustering, help: "How much history to keep when compacting automatically; 0 turns that off.",
		field: func(c *Config) any { return &c.AutoCompactionRetention }},
	{name: "auto-compaction-mode", group: groupClustering, help: "What the retention counts: 'periodic' time, in hours without a unit, or 'revision' revisions.",
		field: func(c *Config) any { return &c.AutoCompactionMode }},
	{name: "v2-deprecation", group: groupClustering, help: "Without effect, as in etcd since 3.6; with --enable-v2 nothing but not-yet is allowed, as in 3.5. Deprecated.",
		field: func(c *Config) any {
			return enumsValue{&c.V2Deprecation, []string{"not-yet", "write-only", "write-only-skip-check", "write-only-drop-data", "gone"}}
		}},

	{name: "cert-file", noKey: true, group: groupSecurity, help: "Certificate for clients' connections.",
		field: func(c *Config) any { return &c.ClientTLS.CertFile }},
	{name: "key-file", noKey: true, group: groupSecurity, help: "Its key.",
		field: func(c *Config) any { return &c.ClientTLS.KeyFile }},
	{name: "client-cert-file", noKey: true, group: groupSecurity, help: "Certificate that the server itself uses as a client.",
		field: func(c *Config) any { return &c.ClientTLS.ClientCertFile }},
	{name: "client-key-file", noKey: true, group: groupSecurity, help: "Its key.",
		field: func(c *Config) any { return &c.ClientTLS.ClientKeyFile }},
	{name: "client-cert-auth", noKey: true, group: groupSecurity, help: "Require certificates of clients.",
		field: func(c *Config) any { return &c.ClientTLS.ClientCertAuth }},
	{name: "client-crl-file", noKey: true, group: groupSecurity, help: "Revoked client certificates.",
		field: func(c *Config) any { return &c.ClientTLS.CRLFile }},
	{name: "client-cert-allowed-hostname", noKey: true, group: groupSecurity, help: "Names of which a client certificate must carry one.",
		field: func(c *Config) any { return listValue{&c.ClientTLS.AllowedHostnames} }},
	{name: "trusted-ca-file", noKey: true, group: groupSecurity, help: "Certificates that clients are verified against.",
		field: func(c *Config) any { return &c.ClientTLS.TrustedCAFile }},
	{name: "auto-tls", noKey: true, group: groupSecurity, help: "Generate a certificate for clients' connections.",
		field: func(c *Config) any { return &c.ClientTLS.AutoTLS }},
	{name: "peer-cert-file", noKey: true, group: groupSecurity, help: "Certificate for connections between members.",
		field: func(c *Config) any { return &c.PeerTLS.CertFile }},
	{name: "peer-key-file", noKey: true, group: groupSecurity, help: "Its key.",
		field: func(c *Config) any { return &c.PeerTLS.KeyFile }},
	{name: "peer-client-cert-auth", noKey: true, group: groupSecurity, help: "Require certificates of other members.",
		field: func(c *Config) any { return &c.PeerTLS.ClientCertAuth }},
	{name: "peer-client-cert-file", noKey: true, group: groupSecurity, help: "Certificate for outgoing connections to members.",
		field: func(c *Config) any { return &c.PeerTLS.ClientCertFile }},
	{name: "peer-client-key-file", noKey: true, group: groupSecurity, help: "Its key.",
		field: func(c *Config) any { return &c.PeerTLS.ClientKeyFile }},
	{name: "peer-trusted-ca-file", noKey: true, group: groupSecurity, help: "Certificates that members are verified against.",
		field: func(c *Config) any { return &c.PeerTLS.TrustedCAFile }},
	{name: "peer-cert-allowed-cn", noKey: true, group: groupSecurity, help: "Common names of which a member's certificate must have one.",
		field: func(c *Config) any { return listValue{&c.PeerTLS.AllowedCNs} }},
	{name: "peer-cert-allowed-hostname", noKey: true, group: groupSecurity, help: "Names of which a member's certificate must carry one.",
		field: func(c *Config) any { return listValue{&c.PeerTLS.AllowedHostnames} }},
	{name: "peer-auto-tls", noKey: true, group: groupSecurity, help: "Generate a certificate for connections between members.",
		field: func(c *Config) any { return &c.PeerTLS.AutoTLS }},
	{name: "self-signed-cert-validity", group: groupSecurity, help: "Years that a generated certificate is valid.",
		field: func(c *Config) any { return &c.SelfSignedCertValidity }},
	{name: "peer-crl-file", noKey: true, group: groupSecurity, help: "Revoked member certificates.",
		field: func(c *Config) any { return &c.PeerTLS.CRLFile }},
	{name: "peer-skip-client-san-verification", noKey: true, group: groupSecurity, help: "Do not compare the address of a member with its certificate.",
		field: func(c *Config) any { return &c.PeerTLS.SkipClientSANVerify }},
	{name: "cipher-suites", group: groupSecurity, help: "TLS cipher suites by their Go names, separated by commas; empty is Go's choice.",
		field: func(c *Config) any { return listValue{&c.Protocols.CipherSuites} }},
	{name: "cors", group: groupSecurity, help: "Web origins that may call the HTTP side; '*' allows all.",
		field: func(c *Config) any { return originsValue{&c.Pages.CORS} }},
	{name: "host-whitelist", group: groupSecurity, help: "Host names that plain HTTP requests may address; '*' allows all.",
		field: func(c *Config) any { return setValue{&c.Pages.HostWhitelist} }},
	{name: "tls-min-version", group: groupSecurity, help: "Lowest TLS version: TLS1.2 or TLS1.3.",
		field: func(c *Config) any { return &c.Protocols.MinVersion }},
	{name: "tls-max-version", group: groupSecurity, help: "Highest TLS version: TLS1.2 or TLS1.3; empty is Go's choice.",
		field: func(c *Config) any { return &c.Protocols.MaxVersion }},

	{name: "auth-token", group: groupAuth, help: "Kind of tokens and their options: 'simple' or 'jwt,...'.",
		field: func(c *Config) any { return &c.Member.Tokens.Spec }},
	{name: "bcrypt-cost", group: groupAuth, help: "Cost of hashing passwords, 4 to 31.",
		field: func(c *Config) any { return &c.BcryptCost }},
	{name: "auth-token-ttl", group: groupAuth, help: "Seconds that an unused token stays valid.",
		field: func(c *Config) any { return &c.AuthTokenTTL }},

	{name: "enable-pprof", group: groupMonitoring, help: "Serve profiles under /debug/pprof/ on the client URLs.",
		field: func(c *Config) any { return &c.EnablePprof }},
	{name: "metrics", group: groupMonitoring, help: "'extensive' adds histograms of the latency of every gRPC method.",
		field: func(c *Config) any { return &c.Metrics }},
	{name: "listen-metrics-urls", group: groupMonitoring, help: "More URLs for /metrics, /health, /livez and /readyz alone.",
		field: func(c *Config) any { return urlsValue{&c.ListenMetricsURLs} }},

	{name: "logger", group: groupLogging, help: "Only 'zap'.",
		field: func(c *Config) any { return &c.LogFlags.Logger }},
	{name: "log-outputs", group: groupLogging, help: "default, stderr, stdout, systemd/journal or files, separated by commas.",
		field: func(c *Config) any { return setValue{&c.Logging.Outputs} }},
	{name: "log-level", group: groupLogging, help: "debug, info, warn, error, panic or fatal. debug also opens profiling on the client URLs.",
		field: func(c *Config) any { return &c.Logging.Level }},
	{name: "log-format", group: groupLogging, help: "json or console.",
		field: func(c *Config) any { return &c.Logging.Format }},
	{name: "enable-log-rotation", group: groupLogging, help: "Rotate the one file in --log-outputs.",
		field: func(c *Config) any { return &c.LogFlags.Rotate }},
	{name: "log-rotation-config-json", group: groupLogging, help: "When to rotate: maxsize in MB, maxage in days, maxbackups in files, localtime, compress.",
		field: func(c *Config) any { return &c.LogFlags.Rotation }},
	{name: "warning-unary-request-duration", group: groupLogging, help: "Requests that take longer than this are logged.",
		field: func(c *Config) any { return &c.Calls.WarnUnaryDuration }},

	{name: "enable-distributed-tracing", group: groupTracing, help: "Send traces of requests to an OpenTelemetry collector.",
		field: func(c *Config) any { return &c.EnableTracing }},
	{name: "distributed-tracing-address", group: groupTracing, help: "Address of the collector.",
		field: func(c *Config) any { return &c.Tracing.Address }},
	{name: "distributed-tracing-service-name", group: groupTracing, help: "Name of the service, the same for all members.",
		field: func(c *Config) any { return &c.Tracing.ServiceName }},
	{name: "distributed-tracing-instance-id", group: groupTracing, help: "Name of this member in traces.",
		field: func(c *Config) any { return &c.Tracing.InstanceID }},
	{name: "distributed-tracing-sampling-rate", group: groupTracing, help: "Traces to keep out of a million.",
		field: func(c *Config) any { return &c.Tracing.SamplingRate }},

	{name: "corrupt-check-time", group: groupFeatures, help: "Time between two comparisons of the members' data; 0 turns them off.",
		field: func(c *Config) any { return &c.Member.Checks.Interval }},
	{name: "compact-hash-check-time", group: groupFeatures, help: "Time between two comparisons of hashes taken at compactions.",
		field: func(c *Config) any { return &c.Member.Checks.CompactionsInterval }},
	{name: "digest-check-time", group: groupFeatures, help: "Time between two comparisons of the members' writes for the same log entries; 0 turns them off.",
		field: func(c *Config) any { return &c.Member.Checks.Digests }},
	{name: "scrub-interval", group: groupFeatures, help: "Time between two scrubs, which read all files of the member slowly and report damage; 0 turns them off.",
		field: func(c *Config) any { return &c.Member.Checks.Scrub }},
	{name: "compaction-batch-limit", group: groupFeatures, shown: "1000", help: "Revisions that one step of a compaction deletes.",
		field: func(c *Config) any { return &c.Member.State.MVCC.CompactionBatch }},
	{name: "compaction-sleep-interval", group: groupFeatures, shown: "10ms", help: "Pause between two such steps.",
		field: func(c *Config) any { return &c.Member.State.MVCC.CompactionPause }},
	{name: "watch-progress-notify-interval", group: groupFeatures, shown: "10m0s", help: "Time between progress notices to watchers that asked for them.",
		field: func(c *Config) any { return &c.Member.Watch.ProgressInterval }},
	{name: "warning-apply-duration", group: groupFeatures, help: "Entries that take longer than this to apply are logged.",
		field: func(c *Config) any { return &c.Member.State.WarnApply }},
	{name: "bootstrap-defrag-threshold-megabytes", group: groupFeatures, help: "Compact the store at the start, in the background, if that is expected to free this many megabytes; 0 never does.",
		field: func(c *Config) any { return &c.BootstrapDefragThresholdMB }},
	{name: "max-learners", group: groupFeatures, help: "Most learners in the cluster; the same on all members.",
		field: func(c *Config) any { return &c.Member.Membership.MaxLearners }},
	{name: "downgrade-check-time", group: groupFeatures, help: "How often the leader checks whether all members run the target release of a downgrade; 0 turns that off.",
		field: func(c *Config) any { return &c.Member.Upkeep.DowngradeCheck }},
	{name: "snapshot-catchup-entries", group: groupFeatures, help: "Log entries retained after a snapshot, so that a slow member does not need the whole snapshot.",
		field: func(c *Config) any { return &c.Member.CatchUpEntries }},

	{name: "debug", group: groupLegacy, help: "The same as --log-level=debug.",
		field: func(c *Config) any { return &c.LogFlags.Debug }},
	{name: "log-package-levels", group: groupLegacy, help: "Log levels by package: etcdserver=DEBUG,raft=ERROR,*=INFO.",
		field: func(c *Config) any { return &c.LogFlags.PackageLevels }},
	{name: "discovery", group: groupLegacy, help: "URL of a v2 discovery service, through which the founders of a cluster find each other. --discovery-token and --discovery-endpoints are its successors.",
		field: func(c *Config) any { return &c.V2Discovery.URL }},
	{name: "discovery-proxy", group: groupLegacy, help: "HTTP proxy on the way to that service.",
		field: func(c *Config) any { return &c.V2Discovery.Proxy }},
	{name: "enable-v2", group: groupLegacy, help: "Serve the v2 API on client URLs, as etcd 3.5 does. Its keys are separate from those of the v3 API. Deprecated.",
		field: func(c *Config) any { return &c.EnableV2 }},
	{name: "experimental-enable-v2v3", group: groupLegacy, state: inert, help: "In etcd 3.5, the prefix in the v3 store under which --enable-v2 keeps its keys. Refused with --enable-v2, which keeps them apart.",
		field: func(c *Config) any { return &c.V2V3Prefix }},
	{name: "proxy", group: groupLegacy, help: "on or readonly: do not run a member but forward HTTP requests to the members of --initial-cluster; off: run a member.",
		field: func(c *Config) any { return enumValue{&c.Proxy, []string{ProxyOff, ProxyReadOnly, ProxyOn}} }},
	{name: "proxy-failure-wait", group: groupLegacy, help: "Time (in ms) for which the proxy skips a member that it could not reach.",
		field: func(c *Config) any { return &c.ProxyTimes.FailureWait }},
	{name: "proxy-refresh-interval", group: groupLegacy, help: "Time (in ms) between two requests of the proxy for the member list.",
		field: func(c *Config) any { return &c.ProxyTimes.Refresh }},
	{name: "proxy-dial-timeout", group: groupLegacy, help: "Time (in ms) for the proxy to connect to a member; 0 for no limit.",
		field: func(c *Config) any { return &c.ProxyTimes.Dial }},
	{name: "proxy-write-timeout", group: groupLegacy, help: "Time (in ms) for the proxy to write to a member; 0 for no limit.",
		field: func(c *Config) any { return &c.ProxyTimes.Write }},
	{name: "proxy-read-timeout", group: groupLegacy, help: "Time (in ms) for the proxy to read from a member; 0 for no limit, as watches need it.",
		field: func(c *Config) any { return &c.ProxyTimes.Read }},

	{name: "force-new-cluster", group: groupUnsafe, help: "Start from local data as the only member of the cluster.",
		field: func(c *Config) any { return &c.Member.ForceNew }},
	{name: "unsafe-no-fsync", group: groupUnsafe, help: "Do not sync the log to disk. A crash loses data.",
		field: func(c *Config) any { return &c.Member.Log.NoSync }},
}

// alias is the former, experimental name of an option.
type alias struct {
	old, new string
	fileKey  string // key in the file, when it is not old
}

var aliases = []alias{
	{old: "log-output", new: "log-outputs"},
	{old: "experimental-bootstrap-defrag-threshold-megabytes", new: "bootstrap-defrag-threshold-megabytes"},
	{old: "experimental-compact-hash-check-time", new: "compact-hash-check-time"},
	{old: "experimental-compaction-batch-limit", new: "compaction-batch-limit"},
	{old: "experimental-compaction-sleep-interval", new: "compaction-sleep-interval"},
	{old: "experimental-corrupt-check-time", new: "corrupt-check-time"},
	{old: "experimental-distributed-tracing-address", new: "distributed-tracing-address"},
	{old: "experimental-distributed-tracing-instance-id", new: "distributed-tracing-instance-id"},
	{old: "experimental-distributed-tracing-sampling-rate", new: "distributed-tracing-sampling-rate"},
	{old: "experimental-distributed-tracing-service-name", new: "distributed-tracing-service-name"},
	{old: "experimental-downgrade-check-time", new: "downgrade-check-time"},
	{old: "experimental-enable-distributed-tracing", new: "enable-distributed-tracing"},
	{old: "experimental-max-learners", new: "max-learners"},
	{old: "experimental-memory-mlock", new: "memory-mlock"},
	{old: "experimental-peer-skip-client-san-verification", new: "peer-skip-client-san-verification"},
	{old: "experimental-snapshot-catchup-entries", new: "snapshot-catchup-entries", fileKey: "experimental-snapshot-catch-up-entries"},
	{old: "experimental-warning-apply-duration", new: "warning-apply-duration"},
	{old: "experimental-warning-unary-request-duration", new: "warning-unary-request-duration"},
	{old: "experimental-watch-progress-notify-interval", new: "watch-progress-notify-interval"},
}

// gateAlias is a boolean flag that became a feature gate.
type gateAlias struct{ old, gate string }

var gateAliases = []gateAlias{
	{"experimental-compact-hash-check-enabled", "CompactHashCheck"},
	{"experimental-enable-lease-checkpoint", LeaseCheckpoint},
	{"experimental-enable-lease-checkpoint-persist", LeaseCheckpointPersist},
	{"experimental-initial-corrupt-check", "InitialCorruptCheck"},
	{"experimental-stop-grpc-service-on-defrag", "StopGRPCServiceOnDefrag"},
	{"experimental-txn-mode-write-with-shared-buffer", "TxnModeWriteWithSharedBuffer"},
}

// ignoredNames are accepted on the command line and ignored, by etcd too.
var ignoredNames = []string{
	"cluster-active-size", "cluster-remove-delay", "cluster-sync-interval", "config", "force",
	"max-result-buffer", "max-retry-attempts", "peer-heartbeat-interval", "peer-election-timeout",
	"retry-interval", "snapshot", "v", "vv", "test.coverprofile", "test.outputdir",
}

// deprecatedNames still work, with a warning.
var deprecatedNames = map[string]string{
	"experimental-enable-v2v3": "--experimental-enable-v2v3 is deprecated in 3.5 and will be decommissioned in 3.6.",

	"max-snapshots":  "--max-snapshots is deprecated in 3.6 and will be decommissioned in 3.8.",
	"v2-deprecation": "--v2-deprecation is deprecated and scheduled for removal in v3.8. The default value is enforced, ignoring user input.",
}

// newFlagSet returns a flag set over the fields of c, whose values become the defaults.
func newFlagSet(c *Config) *flag.FlagSet {
	fs := flag.NewFlagSet("etcd", flag.ContinueOnError)
	for _, o := range options {
		addFlag(fs, o.name, o.help, o.field(c))
	}
	for _, a := range aliases {
		target := fs.Lookup(a.new).Value
		fs.Var(aliasValue{target}, a.old, "")
	}
	for _, a := range gateAliases {
		fs.Var(gateValue{c, a.old}, a.old, "")
	}
	for _, name := range ignoredNames {
		fs.Var(ignoredValue{c, name}, name, "")
	}
	fs.StringVar(&c.configFile, "config-file", "", "")
	fs.BoolVar(&c.printVersion, "version", false, "")
	return fs
}

func addFlag(fs *flag.FlagSet, name, help string, field any) {
	switch p := field.(type) {
	case *bool:
		fs.BoolVar(p, name, *p, help)
	case *int:
		fs.IntVar(p, name, *p, help)
	case *int64:
		fs.Int64Var(p, name, *p, help)
	case *uint:
		fs.UintVar(p, name, *p, help)
	case *uint64:
		fs.Uint64Var(p, name, *p, help)
	case *string:
		fs.StringVar(p, name, *p, help)
	case *time.Duration:
		fs.DurationVar(p, name, *p, help)
	case flag.Value:
		fs.Var(p, name, help)
	default:
		panic(fmt.Sprintf("config: option %s has a field of type %T", name, field))
	}
}

// aliasValue passes values set under the former name on to the option.
type aliasValue struct{ target flag.Value }

func (v aliasValue) Set(s string) error { return v.target.Set(s) }
func (v aliasValue) String() string     { return "" }

func (v aliasValue) IsBoolFlag() bool {
	b, ok := v.target.(interface{ IsBoolFlag() bool })
	return ok && b.IsBoolFlag()
}

// gateValue holds the value of a former boolean flag until it is known that the gate was
// not set as well.
type gateValue struct {
	c   *Config
	old string
}

func (gateValue) IsBoolFlag() bool { return true }
func (gateValue) String() string   { return "" }

func (v gateValue) Set(s string) error {
	on, err := strconv.ParseBool(s)
	if err != nil {
		return errParse
	}
	if v.c.oldGates == nil {
		v.c.oldGates = map[string]bool{}
	}
	v.c.oldGates[v.old] = on
	return nil
}

// textOf formats the value of an option for --help and for comparisons.
func textOf(o option, c *Config) string {
	switch p := o.field(c).(type) {
	case *bool:
		return strconv.FormatBool(*p)
	case *int:
		return strconv.Itoa(*p)
	case *int64:
		return strconv.FormatInt(*p, 10)
	case *uint:
		return strconv.FormatUint(uint64(*p), 10)
	case *uint64:
		return strconv.FormatUint(*p, 10)
	case *string:
		return *p
	case *time.Duration:
		return p.String()
	case flag.Value:
		return p.String()
	default:
		panic(fmt.Sprintf("config: option %s has a field of type %T", o.name, p))
	}
}

package config

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"quorate/internal/logging"
)

const (
	// maxElectionMs is the longest election timeout: a lost leader must not go unnoticed
	// for longer than a minute.
	maxElectionMs = 50000

	// minRaftTimeout must exceed the interval of heartbeats on an idle stream.
	minRaftTimeout = 5 * time.Second
)

// Values of --auto-compaction-mode.
const (
	CompactionPeriodic = "periodic"
	CompactionRevision = "revision"
)

// Validation errors that other packages or tests compare with.
var (
	ErrAdvertiseClientURLs = errors.New("--advertise-client-urls is required when --listen-client-urls is set explicitly")
	ErrConflictBootstrap   = errors.New(`multiple discovery or bootstrap flags are set. Choose one of "initial-cluster", "discovery-endpoints" or "discovery-srv"`)

	// errParse is the flag package's text for an invalid number.
	errParse = errors.New("parse error")
)

// validator checks a configuration.
type validator struct{ *Config }

// validate checks the settings in etcd's order, so that of several mistakes the same one is
// reported. Warnings go to the logger.
func (c validator) validate() error {
	checks := []func() error{
		c.urls, c.bootstrap, c.times, c.compaction, c.tracing,
		c.gates, c.name, c.Protocols.CheckVersions, c.v2,
	}
	for _, check := range checks {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// v2 rejects --enable-v2 with a --v2-deprecation stage that excludes it, or with another
// place for its keys: clients would see a key space without what they have written. An unset
// --v2-deprecation is ignored: its default is that of etcd 3.7.
func (c validator) v2() error {
	if c.EnableV2 && c.explicit["v2-deprecation"] && c.V2Deprecation != "" && c.V2Deprecation != "not-yet" {
		return fmt.Errorf("--enable-v2 and --v2-deprecation=%s are mutually exclusive", c.V2Deprecation)
	}
	if c.EnableV2 && c.V2V3Prefix != "" {
		return fmt.Errorf("--enable-v2 with --experimental-enable-v2v3=%[1]s: the v2 API is not served from keys of the v3 API; "+
			"without --experimental-enable-v2v3 it is served from its own keys, and without --enable-v2 what etcd 3.5 wrote can be read with \"etcdctl get --prefix %[1]s\"", c.V2V3Prefix)
	}
	return nil
}

// openLog builds the logger for all later lines.
func (c *Config) openLog(stdout, stderr io.Writer) error {
	o := &c.Logging
	o.Stdout, o.Stderr = stdout, stderr
	warnings, err := c.LogFlags.Apply(o)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		c.warn(w)
	}
	lg, closeLog, err := logging.New(*o)
	if err != nil {
		return err
	}
	c.lg, c.closeLog = lg, closeLog
	return nil
}

func (c validator) urls() error {
	if err := checkBind(c.ListenPeerURLs); err != nil {
		return err
	}
	if err := checkBind(c.ListenClientURLs); err != nil {
		return err
	}
	if err := checkBind(c.ListenClientHTTPURLs); err != nil {
		return err
	}
	if len(c.ListenClientHTTPURLs) == 0 {
		c.lg.Warn("Running http and grpc server on single port. This is not recommended for production.")
	}
	if err := checkBind(c.ListenMetricsURLs); err != nil {
		return err
	}
	if err := checkHost(c.AdvertisePeerURLs); err != nil {
		return fmt.Errorf(`--initial-advertise-peer-urls %q must be "host:port" (%w)`, strings.Join(URLStrings(c.AdvertisePeerURLs), ","), err)
	}
	if err := checkHost(c.AdvertiseClientURLs); err != nil {
		return fmt.Errorf(`--advertise-client-urls %q must be in the format "host:port", "unix:/path/to/socket" or "unixs:/path/to/socket" (%w)`, strings.Join(URLStrings(c.AdvertiseClientURLs), ","), err)
	}
	return nil
}

func (c validator) bootstrap() error {
	if c.ClusterState != StateNew && c.ClusterState != StateExisting {
		return fmt.Errorf("unexpected clusterState %q", c.ClusterState)
	}
	if !slices.Contains([]string{"", "exit", "proxy"}, c.V2Discovery.Fallback) {
		return fmt.Errorf("unexpected discovery-fallback %q", c.V2Discovery.Fallback)
	}
	if !slices.Contains([]string{ProxyOff, ProxyReadOnly, ProxyOn}, c.Proxy) {
		return fmt.Errorf("unexpected proxy %q", c.Proxy)
	}
	ways := 0
	if c.V2Discovery.Proxy != "" && (c.Discovery.Token != "" || len(c.Discovery.Client.Endpoints) > 0) {
		return errors.New("both v2 discovery settings (discovery, discovery-proxy) and v3 discovery settings (discovery-token, discovery-endpoints) are set")
	}
	for _, given := range []bool{c.InitialCluster != "", c.V2Discovery.URL != "", c.SRV.Domain != "", len(c.Discovery.Client.Endpoints) > 0} {
		if given {
			ways++
		}
	}
	if ways > 1 {
		return ErrConflictBootstrap
	}
	if (c.Discovery.Token != "") != (len(c.Discovery.Client.Endpoints) > 0) {
		return errors.New("both --discovery-token and --discovery-endpoints must be set")
	}
	for _, ep := range c.Discovery.Client.Endpoints {
		if strings.TrimSpace(ep) == "" {
			return errors.New("--discovery-endpoints must not contain empty endpoints")
		}
	}
	return nil
}

func (c validator) times() error {
	if c.TickMs == 0 {
		return fmt.Errorf("--heartbeat-interval must be >0 (set to %dms)", c.TickMs)
	}
	if c.ElectionMs == 0 {
		return fmt.Errorf("--election-timeout must be >0 (set to %dms)", c.ElectionMs)
	}
	if c.ElectionMs/5 < c.TickMs {
		return fmt.Errorf("--election-timeout[%vms] should be at least as 5 times as --heartbeat-interval[%vms]", c.ElectionMs, c.TickMs)
	}
	if c.ElectionMs > maxElectionMs {
		return fmt.Errorf("--election-timeout[%vms] is too long, and should be set less than %vms", c.ElectionMs, maxElectionMs)
	}
	if len(c.ListenClientURLs) > 0 && len(c.AdvertiseClientURLs) == 0 && c.Proxy == ProxyOff && !c.FallsBackToProxy() {
		return ErrAdvertiseClientURLs
	}
	return nil
}

func (c validator) compaction() error {
	switch c.AutoCompactionMode {
	case CompactionPeriodic, CompactionRevision:
	case "":
		return errors.New("undefined auto-compaction-mode")
	default:
		return fmt.Errorf("unknown auto-compaction-mode %q", c.AutoCompactionMode)
	}
	return nil
}

// maxSamplingRate samples every trace.
const maxSamplingRate = 1_000_000

func (c validator) tracing() error {
	switch {
	case !c.EnableTracing:
	case c.Tracing.SamplingRate < 0:
		return fmt.Errorf("distributed tracing configurition is not valid: (tracing sampling rate must be positive)")
	case c.Tracing.SamplingRate > maxSamplingRate:
		return fmt.Errorf("distributed tracing configurition is not valid: (tracing sampling rate must be less than %d)", maxSamplingRate)
	}
	return nil
}

func (c validator) gates() error {
	checkpoint, persist := c.FeatureGates.Enabled(LeaseCheckpoint), c.FeatureGates.Enabled(LeaseCheckpointPersist)
	if checkpoint && !persist {
		c.lg.Warn("Detected that checkpointing is enabled without persistence. Consider enabling feature gate LeaseCheckpointPersist")
	}
	if persist && !checkpoint {
		return errors.New("enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint")
	}
	if c.Member.Checks.CompactionsInterval <= 0 {
		return fmt.Errorf("--compact-hash-check-time must be >0 (set to %v)", c.Member.Checks.CompactionsInterval)
	}
	return nil
}

func (c validator) name() error {
	if c.Member.Name == DefaultName {
		c.lg.Warn("it isn't recommended to use default name, please set a value for --name. Note that etcd might run into issue when multiple members have the same default name",
			zap.String("name", c.Member.Name))
	}
	return nil
}

// start finds the mistakes that etcd reports as a failure to start: URLs that cannot
// be bound, and an invalid retention.
func (c validator) start() error {
	if err := c.security(); err != nil {
		return err
	}
	_, err := c.CompactionRetention()
	return err
}

// CompactionRetention returns what automatic compaction retains: a duration in periodic
// mode (hours if the text is a plain number), or a number of revisions, as that many
// nanoseconds. Zero turns automatic compaction off.
func (c *Config) CompactionRetention() (time.Duration, error) {
	text := c.AutoCompactionRetention
	if text == "" {
		text = "0"
	}
	n, err := strconv.Atoi(text)
	if err == nil && n >= 0 {
		if c.AutoCompactionMode == CompactionPeriodic {
			return time.Duration(n) * time.Hour, nil
		}
		return time.Duration(n), nil
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("error parsing CompactionRetention: %w", err)
	}
	if d < 0 {
		return 0, fmt.Errorf("--auto-compaction-retention must not be negative (set to %s)", text)
	}
	return d, nil
}

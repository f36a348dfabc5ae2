package grpcproxy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/client/pkg/v3/tlsutil"

	"quorate/internal/certs"
	"quorate/internal/discovery"
)

// Config configures a proxy process: its behaviour, its listeners, and its connections to
// the members.
type Config struct {
	Proxy Options

	Listen, Metrics string // addresses; without Metrics its pages are on Listen alone
	DataDir         string // of a generated certificate
	Pprof, Debug    bool

	Listener       certs.Options // files of the listeners; openTLS adds versions and cipher suites
	AutoTLS        bool
	Validity       uint // validity of a generated certificate, in years
	Suites         []string
	MinTLS, MaxTLS string

	MinPing, Ping, PingTimeout time.Duration // of clients' connections
	MaxStreams                 uint32

	Endpoints                []string
	Discovery                discovery.Clients // if Domain is empty, Endpoints are used
	Members                  certs.Options     // files for the connections to members
	MaxSend, MaxReceive      int               // bytes of a message
	DialPing, DialPingExpiry time.Duration     // of connections to members
	PingWithoutStream        bool
}

// AddFlags adds the flags of `etcd grpc-proxy start` to f, with their defaults.
func (c *Config) AddFlags(f *pflag.FlagSet) {
	o := &c.Proxy
	f.StringVar(&c.Listen, "listen-addr", "127.0.0.1:23790", "listen address")
	f.StringVar(&c.Discovery.Domain, "discovery-srv", "", "domain name to query for SRV records describing cluster endpoints")
	f.StringVar(&c.Discovery.Suffix, "discovery-srv-name", "", "service name to query when using DNS discovery")
	f.StringVar(&c.Metrics, "metrics-addr", "", "listen for endpoint /metrics requests on an additional interface")
	f.BoolVar(&c.Discovery.Insecure, "insecure-discovery", false, "accept insecure SRV records")
	f.StringSliceVar(&c.Endpoints, "endpoints", []string{"127.0.0.1:2379"}, "comma separated etcd cluster endpoints")
	f.DurationVar(&o.SyncInterval, "endpoints-auto-sync-interval", 0, "etcd endpoints auto sync interval (disabled by default)")
	f.DurationVar(&c.DialPing, "dial-keepalive-time", 0, "keepalive time for client(grpc-proxy) connections (default 0, disable).")
	f.DurationVar(&c.DialPingExpiry, "dial-keepalive-timeout", 20*time.Second, "keepalive timeout for client(grpc-proxy) connections (default 20s).")
	f.BoolVar(&c.PingWithoutStream, "permit-without-stream", false, "Enable client(grpc-proxy) to send keepalive pings even with no active RPCs.")
	f.StringVar(&o.AdvertiseClientURL, "advertise-client-url", "127.0.0.1:23790", "advertise address to register (must be reachable by client)")
	f.StringVar(&o.ResolverPrefix, "resolver-prefix", "", "prefix to use for registering proxy (must be shared with other grpc-proxy members)")
	f.IntVar(&o.ResolverTTL, "resolver-ttl", 0, "specify TTL, in seconds, when registering proxy endpoints")
	f.StringVar(&o.Namespace, "namespace", "", "string to prefix to all keys for namespacing requests")
	f.BoolVar(&c.Pprof, "enable-pprof", false, `Enable runtime profiling data via HTTP server. Address is at client URL + "/debug/pprof/"`)
	f.StringVar(&c.DataDir, "data-dir", "default.proxy", "Data directory for persistent data")
	f.IntVar(&c.MaxSend, "max-send-bytes", 1536<<10, "message send limits in bytes (default value is 1.5 MiB)")
	f.IntVar(&c.MaxReceive, "max-recv-bytes", math.MaxInt32, "message receive limits in bytes (default value is math.MaxInt32)")
	f.DurationVar(&c.MinPing, "grpc-keepalive-min-time", 5*time.Second, "Minimum interval duration that a client should wait before pinging proxy.")
	f.DurationVar(&c.Ping, "grpc-keepalive-interval", 2*time.Hour, "Frequency duration of server-to-client ping to check if a connection is alive (0 to disable).")
	f.DurationVar(&c.PingTimeout, "grpc-keepalive-timeout", 20*time.Second, "Additional duration of wait before closing a non-responsive connection (0 to disable).")
	f.StringVar(&c.Members.CertFile, "cert", "", "identify secure connections with etcd servers using this TLS certificate file")
	f.StringVar(&c.Members.KeyFile, "key", "", "identify secure connections with etcd servers using this TLS key file")
	f.StringVar(&c.Members.TrustedCAFile, "cacert", "", "verify certificates of TLS-enabled secure etcd servers using this CA bundle")
	f.BoolVar(&c.Members.SkipServerVerify, "insecure-skip-tls-verify", false, "skip authentication of etcd server TLS certificates (CAUTION: this option should be enabled only for testing purposes)")
	f.StringVar(&c.Listener.CertFile, "cert-file", "", "identify secure connections to the proxy using this TLS certificate file")
	f.StringVar(&c.Listener.KeyFile, "key-file", "", "identify secure connections to the proxy using this TLS key file")
	f.StringVar(&c.Listener.TrustedCAFile, "trusted-ca-file", "", "verify certificates of TLS-enabled secure proxy using this CA bundle")
	f.StringSliceVar(&c.Suites, "listen-cipher-suites", nil, "Comma-separated list of supported TLS cipher suites between client/proxy (empty will be auto-populated by Go).")
	f.BoolVar(&c.AutoTLS, "auto-tls", false, "proxy TLS using generated certificates")
	f.StringVar(&c.Listener.CRLFile, "client-crl-file", "", "proxy client certificate revocation list file.")
	f.UintVar(&c.Validity, "self-signed-cert-validity", 1, "The validity period of the proxy certificates, unit is year")
	f.StringVar(&c.MinTLS, "tls-min-version", "TLS1.2", "Minimum TLS version supported by grpc proxy. Possible values: TLS1.2, TLS1.3.")
	f.StringVar(&c.MaxTLS, "tls-max-version", "", "Maximum TLS version supported by grpc proxy. Possible values: TLS1.2, TLS1.3 (empty defers to Go).")
	f.BoolVar(&o.Ordering, "experimental-serializable-ordering", false, "Ensure serializable reads have monotonically increasing store revisions across endpoints.")
	f.StringVar(&o.LeasingPrefix, "experimental-leasing-prefix", "", "leasing metadata prefix for disconnected linearized reads.")
	f.BoolVar(&o.LogCalls, "experimental-enable-grpc-logging", false, "logging all grpc requests and responses")
	f.BoolVar(&c.Debug, "debug", false, "Enable debug-level logging for grpc-proxy.")
	f.Uint32Var(&c.MaxStreams, "max-concurrent-streams", math.MaxUint32, "Maximum concurrent streams that each client can open at a time.")
}

// proxyStreams is the default number of concurrent calls on a connection.
const proxyStreams = 32_768

// Settle completes c with the flags parsed from f, and rejects flags that contradict each
// other, in etcd's order.
func (c *Config) Settle(f *pflag.FlagSet) error {
	if !f.Changed("max-concurrent-streams") {
		c.MaxStreams = proxyStreams
	}
	c.Discovery.TrustedCAFile = c.Members.TrustedCAFile
	c.Discovery.Flags, c.Members.Flags = certs.FlagNames{Client: true}, certs.FlagNames{Client: true}
	switch o := c.Proxy; {
	case o.ResolverPrefix != "" && o.ResolverTTL < 1:
		return fmt.Errorf("invalid resolver-ttl %d", o.ResolverTTL)
	case o.ResolverPrefix == "" && o.ResolverTTL > 0:
		return fmt.Errorf("invalid resolver-prefix %q", o.ResolverPrefix)
	case o.ResolverPrefix != "" && o.AdvertiseClientURL == "":
		return fmt.Errorf("invalid advertise-client-url %q", o.AdvertiseClientURL)
	case c.AutoTLS && c.Validity == 0:
		return certs.ErrNoValidity
	}
	low, err := tlsutil.GetTLSVersion(c.MinTLS)
	if err != nil {
		return fmt.Errorf("tls-min-version is invalid: %w", err)
	}
	high, err := tlsutil.GetTLSVersion(c.MaxTLS)
	switch {
	case err != nil:
		return fmt.Errorf("tls-max-version is invalid: %w", err)
	case high != 0 && low > high:
		return fmt.Errorf("min version (%s) is greater than max version (%s): --tls-min-version and --tls-max-version", c.MinTLS, c.MaxTLS)
	case low == tls.VersionTLS13 && len(c.Suites) > 0:
		return errors.New("cipher suites cannot be configured when only TLS1.3 is enabled: leave out --listen-cipher-suites, or lower --tls-min-version")
	}
	c.Listener.MinVersion, c.Listener.MaxVersion = low, high
	return nil
}

package tcprelay

import (
	"errors"
	"net"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/zap"

	"quorate/internal/discovery"
)

// Config holds the flags of `etcd gateway start`.
type Config struct {
	Listen     string
	Endpoints  []string
	Discovery  discovery.Clients // if Domain is empty, Endpoints are used
	RetryDelay time.Duration
}

// AddFlags adds the flags to f, with their defaults.
func (c *Config) AddFlags(f *pflag.FlagSet) {
	f.StringVar(&c.Listen, "listen-addr", "127.0.0.1:23790", "listen address")
	f.StringVar(&c.Discovery.Domain, "discovery-srv", "", "DNS domain used to bootstrap initial cluster")
	f.StringVar(&c.Discovery.Suffix, "discovery-srv-name", "", "service name to query when using DNS discovery")
	f.BoolVar(&c.Discovery.Insecure, "insecure-discovery", false, "accept insecure SRV records")
	f.StringVar(&c.Discovery.TrustedCAFile, "trusted-ca-file", "", "path to the client server TLS CA file for verifying the discovered endpoints when discovery-srv is provided.")
	f.StringSliceVar(&c.Endpoints, "endpoints", []string{"127.0.0.1:2379"}, "comma separated etcd cluster endpoints")
	f.DurationVar(&c.RetryDelay, "retry-delay", time.Minute, "duration of delay before retrying failed endpoints")
}

// Discover looks the members up in DNS if a domain is given. Finding no usable member is
// not an error: --endpoints are used then.
func (c *Config) Discover(lg *zap.Logger) ([]net.SRV, error) {
	if c.Discovery.Domain == "" {
		return nil, nil
	}
	_, found, err := c.Discovery.Find(lg)
	if err == nil && len(found) == 0 {
		lg.Warn("no discovered endpoint can be used; using --endpoints", zap.String("srv-server", c.Discovery.Domain), zap.Strings("endpoints", c.Endpoints))
	}
	return found, err
}

// Check validates the flags, and returns the endpoints of the relay: the discovered ones,
// or those of the flag.
func (c *Config) Check(found []net.SRV) (endpoints []net.SRV, err error) {
	if endpoints = found; len(endpoints) == 0 {
		if endpoints, err = ParseEndpoints(c.Endpoints); err != nil {
			return nil, err
		}
	}
	if err := SystemResolver.Check(c.Listen, endpoints); err != nil {
		return nil, err
	}
	if c.RetryDelay < 0 {
		return nil, errors.New("--retry-delay must not be negative")
	}
	return endpoints, nil
}

// reservedFiles are kept for everything but forwarded connections: the listener, name
// servers, probes, and one more connection to reject.
const reservedFiles = 64

// MaxConns returns how many connections, of two files each, a process with a limit of files
// open files can forward; 0 files means that the limit is unknown.
func MaxConns(files uint64) int {
	if files == 0 {
		return DefaultMaxConns
	}
	return int(min(max(int64(min(files, 1<<40))-reservedFiles, 2)/2, DefaultMaxConns))
}

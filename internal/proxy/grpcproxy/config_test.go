package grpcproxy

import (
	"crypto/tls"
	"io"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func parsed(t *testing.T, args string) (*Config, error) {
	t.Helper()
	var c Config
	f := pflag.NewFlagSet("start", pflag.ContinueOnError)
	f.SetOutput(io.Discard)
	c.AddFlags(f)
	if err := f.Parse(strings.Fields(args)); err != nil {
		t.Fatal(err)
	}
	return &c, c.Settle(f)
}

// Contradictory flags are rejected with etcd's texts.
func TestSettleRefuses(t *testing.T) {
	for _, tc := range []struct{ args, want string }{
		{"--resolver-prefix=p", "invalid resolver-ttl 0"},
		{"--resolver-ttl=1", `invalid resolver-prefix ""`},
		{"--resolver-prefix=p --resolver-ttl=1 --advertise-client-url=", `invalid advertise-client-url ""`},
		{"--auto-tls --self-signed-cert-validity=0", "selfSignedCertValidity"},
		{"--tls-min-version=TLS9", "tls-min-version is invalid: "},
		{"--tls-max-version=TLS9", "tls-max-version is invalid: "},
		{"--tls-min-version=TLS1.3 --tls-max-version=TLS1.2", "min version (TLS1.3) is greater than max version (TLS1.2)"},
		{"--tls-min-version=TLS1.3 --listen-cipher-suites=x", "cipher suites cannot be configured when only TLS1.3 is enabled"},
		{"--resolver-prefix=p --resolver-ttl=1", ""},
	} {
		_, err := parsed(t, tc.args)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", tc.args, err, tc.want)
		}
	}
}

func TestSettle(t *testing.T) {
	c, err := parsed(t, "--tls-min-version=TLS1.3 --cacert=ca")
	if err != nil {
		t.Fatal(err)
	}
	if c.MaxStreams != proxyStreams || c.Listener.MinVersion != tls.VersionTLS13 || c.Discovery.TrustedCAFile != "ca" {
		t.Errorf("%+v", c)
	}
	if c, err = parsed(t, "--max-concurrent-streams=4294967295"); err != nil || c.MaxStreams != 1<<32-1 {
		t.Errorf("a bound that is given is replaced: %d, %v", c.MaxStreams, err)
	}
}

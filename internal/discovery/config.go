package discovery

import (
	"crypto/tls"
	"time"

	"go.uber.org/zap"

	"quorate/internal/certs"
)

// Config says which cluster keeps the register through which founders find each other. The
// json tags are the keys of the section discovery-config in a configuration file.
type Config struct {
	Token  string `json:"token"`
	Client Client `json:"client"`
}

// Client is how to connect to that cluster.
type Client struct {
	Endpoints        []string      `json:"endpoints"`
	RequestTimeout   time.Duration `json:"request-timeout"`
	DialTimeout      time.Duration `json:"dial-timeout"`
	KeepAliveTime    time.Duration `json:"keepalive-time"`
	KeepAliveTimeout time.Duration `json:"keepalive-timeout"`
	Secure           Secure        `json:"secure"`
	Auth             Auth          `json:"auth"`
}

// Secure is the transport security of these connections.
type Secure struct {
	Cert               string `json:"cert"`
	Key                string `json:"key"`
	CACert             string `json:"cacert"`
	ServerName         string `json:"server-name"`
	InsecureTransport  bool   `json:"insecure-transport"`
	InsecureSkipVerify bool   `json:"insecure-skip-tls-verify"`
}

// Auth is the user for these connections.
type Auth struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// Default returns a Config without endpoints.
func Default() Config {
	return Config{Client: Client{
		DialTimeout:      2 * time.Second,
		RequestTimeout:   5 * time.Second,
		KeepAliveTime:    2 * time.Second,
		KeepAliveTimeout: 6 * time.Second,
		Secure:           Secure{InsecureTransport: true},
	}}
}

// Register reads the certificates and returns the register.
func (c Config) Register(lg *zap.Logger) (Register, error) {
	tls, err := c.Client.Secure.tls(lg)
	d := c.Client
	return Register{
		Token: c.Token, Endpoints: d.Endpoints, DialTimeout: d.DialTimeout, RequestTimeout: d.RequestTimeout,
		KeepAliveTime: d.KeepAliveTime, KeepAliveTimeout: d.KeepAliveTimeout, TLS: tls,
		Username: d.Auth.Username, Password: d.Auth.Password, Logger: lg,
	}, err
}

// tls returns nil for plain text.
func (s Secure) tls(lg *zap.Logger) (*tls.Config, error) {
	if s.InsecureTransport && s.Cert == "" && s.Key == "" && s.CACert == "" && !s.InsecureSkipVerify {
		return nil, nil
	}
	store, err := certs.Open(certs.Options{Files: certs.Files{CertFile: s.Cert, KeyFile: s.Key, TrustedCAFile: s.CACert}, ServerName: s.ServerName,
		SkipServerVerify: s.InsecureSkipVerify, Flags: certs.FlagNames{Prefix: "discovery-", Client: true}, Logger: lg})
	if err != nil {
		return nil, err
	}
	return store.Client(), nil
}

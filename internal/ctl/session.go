package ctl

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc/grpclog"

	"go.etcd.io/etcd/client/pkg/v3/srv"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// session is a command after it has read its flags and environment: how to reach the
// cluster and how to print.
type session struct {
	app  *app
	spec clientv3.ConfigSpec
	out  printer
	// timeoutGiven: the user set --command-timeout, so it also applies to commands that
	// have no limit by default.
	timeoutGiven bool
	// clientLog is the minimum level of the log lines of a client that are shown.
	clientLog zap.AtomicLevel
}

// session reads the environment and validates the global flags. It opens no connection.
// Variables in own are the command's, see flagsFromEnv.
func (a *app) session(cmd *cobra.Command, own ...string) (*session, error) {
	fs := cmd.InheritedFlags()
	if err := a.flagsFromEnv(fs, own...); err != nil {
		return nil, err
	}
	if a.global.debug {
		grpclog.SetLoggerV2(grpclog.NewLoggerV2WithVerbosity(a.Stderr, a.Stderr, a.Stderr, 4))
		a.printSettings(fs)
	}

	g := &a.global
	endpoints, err := a.endpoints()
	if err != nil {
		return nil, err
	}
	for _, f := range []struct{ name, value string }{{"cert", g.cert}, {"key", g.key}, {"cacert", g.cacert}} {
		if f.value == "" && cmd.Flags().Changed(f.name) {
			return nil, badArgs("empty string is passed to --%s option", f.name)
		}
	}
	secure := &clientv3.SecureConfig{
		Cert: g.cert, Key: g.key, Cacert: g.cacert,
		InsecureTransport:  g.insecureTransport,
		InsecureSkipVerify: g.insecureSkipVerify,
	}
	if !g.insecureDiscovery {
		secure.ServerName = g.discoverySRV
	}
	auth, err := a.credentials()
	if err != nil {
		return nil, err
	}
	out := newPrinter(g.format, printerOptions{stdout: a.Stdout, stderr: a.Stderr, hex: g.hex})
	if out == nil {
		return nil, fail(exitBadFeature, errors.New("unsupported output format"))
	}
	return &session{
		app: a,
		out: out,
		spec: clientv3.ConfigSpec{
			Endpoints:          endpoints,
			DialTimeout:        g.dialTimeout,
			KeepAliveTime:      g.keepAliveTime,
			KeepAliveTimeout:   g.keepAliveTimeout,
			MaxCallSendMsgSize: g.maxRequestBytes,
			MaxCallRecvMsgSize: g.maxRecvBytes,
			Secure:             secure,
			Auth:               auth,
		},
		timeoutGiven: cmd.Flags().Changed("command-timeout"),
		clientLog:    zap.NewAtomicLevelAt(clientv3.ClientLogLevel()),
	}, nil
}

// endpoints returns the endpoints from the SRV records if a domain is given, else those of
// the flag.
func (a *app) endpoints() ([]string, error) {
	g := &a.global
	var eps []string
	if g.discoverySRV != "" {
		found, err := srv.GetClient("etcd-client", g.discoverySRV, g.discoverySRVName)
		if err != nil {
			return nil, err
		}
		for _, ep := range found.Endpoints {
			if !g.insecureDiscovery && strings.HasPrefix(ep, "http://") {
				fmt.Fprintf(a.Stderr, "ignoring discovered insecure endpoint %q\n", ep)
				continue
			}
			eps = append(eps, ep)
		}
	}
	if len(eps) > 0 {
		return eps, nil
	}
	for _, ep := range g.endpoints {
		eps = append(eps, strings.TrimSpace(ep))
	}
	return eps, nil
}

// credentials is the user to authenticate as; nil is anonymous.
func (a *app) credentials() (*clientv3.AuthConfig, error) {
	g := &a.global
	if g.token != "" {
		return &clientv3.AuthConfig{Token: g.token}, nil
	}
	return a.authConfig(g.user, g.password, "Password: ")
}

// authConfig parses a user, name[:password], and a password that may be separate. It
// prompts if neither contains the password.
func (a *app) authConfig(user, password, prompt string) (*clientv3.AuthConfig, error) {
	switch {
	case user == "":
		return nil, nil
	case password != "":
		return &clientv3.AuthConfig{Username: user, Password: password}, nil
	}
	name, password, ok := strings.Cut(user, ":")
	if !ok {
		var err error
		if password, err = a.askPassword(prompt); err != nil {
			return nil, err
		}
	}
	return &clientv3.AuthConfig{Username: name, Password: password}, nil
}

// config returns the client configuration for the given endpoints, by default the
// session's.
func (s *session) config(endpoints ...string) (*clientv3.Config, error) {
	spec := s.spec
	if len(endpoints) > 0 {
		spec.Endpoints = endpoints
	}
	cfg, err := clientv3.NewClientConfig(&spec, s.app.lg)
	if err != nil {
		return nil, fail(exitBadArgs, err)
	}
	cfg.Logger = newLogger(s.app.Stderr, s.clientLog).Named("etcd-client")
	return cfg, nil
}

// client connects to the given endpoints, by default the session's.
func (s *session) client(endpoints ...string) (*clientv3.Client, error) {
	cfg, err := s.config(endpoints...)
	if err != nil {
		return nil, err
	}
	c, err := clientv3.New(*cfg)
	if err != nil {
		return nil, s.rpcError(exitBadConnection, err, cfg.Endpoints...)
	}
	return c, nil
}

// closeQuietly closes a client with requests in flight, without the log lines about them.
func (s *session) closeQuietly(c *clientv3.Client) {
	s.clientLog.SetLevel(zapcore.FatalLevel)
	_ = c.Close() // requests in flight are not needed any more
}

// timeout returns the context of one request.
func (s *session) timeout() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), s.app.global.commandTimeout)
}

// rpcError returns the error of a request to the endpoints (by default the session's) as
// that of the command. If there was no answer, further lines explain why.
func (s *session) rpcError(code int, err error, endpoints ...string) error {
	if len(endpoints) == 0 {
		endpoints = s.spec.Endpoints
	}
	return &exitErr{code: code, err: err, notes: s.diagnose(err, endpoints)}
}

// call opens a session and a client and makes one request with them.
func (a *app) call(cmd *cobra.Command, f func(ctx context.Context, s *session, c *clientv3.Client) error) error {
	s, err := a.session(cmd)
	if err != nil {
		return err
	}
	c, err := s.client()
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := s.timeout()
	defer cancel()
	return f(ctx, s, c)
}

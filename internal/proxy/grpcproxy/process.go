package grpcproxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/tlsutil"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"quorate/internal/certs"
	"quorate/internal/clock"
	"quorate/internal/descriptors"
	"quorate/internal/httpapi"
	"quorate/internal/listen"
	"quorate/internal/rpc"
)

const (
	// dialLimit bounds dialling one endpoint.
	dialLimit = 5 * time.Second
	// drainTimeout is how long calls in progress may take during a shutdown.
	drainTimeout = 3 * time.Second
	// proxyHeaders bounds the headers of a call, proxyRequest a request unless larger
	// requests may be sent to members.
	proxyHeaders = 256 << 10
	proxyRequest = 4 << 20
)

// Process is a proxy with its sockets. It is not safe for concurrent use.
type Process struct {
	cfg    Config
	lg     *zap.Logger
	broken chan error

	secure  *certs.Store // of the listeners; nil: without TLS
	sockets []net.Listener
	mux     *listen.Mux
	metrics net.Listener // nil: not served

	upstream *tls.Config      // to members; nil: without TLS
	self     *clientv3.Client // nil: no address is advertised
	proxy    *Proxy
	grpc     *grpc.Server
	https    []*http.Server
	pages    http.Handler
}

// Open opens the sockets, then the connection to the cluster. It reports to status what it
// waits for.
func Open(ctx context.Context, cfg Config, lg *zap.Logger, status func(string)) (_ *Process, err error) {
	cfg.Proxy.Logger, cfg.Listener.Logger, cfg.Members.Logger = lg, lg, lg
	p := &Process{cfg: cfg, lg: lg, broken: make(chan error, 8)}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	if err := p.openTLS(); err != nil {
		return nil, err
	}
	maxConns, err := descriptors.ForProxy(descriptors.Limit())
	if err != nil {
		return nil, err
	}
	l, err := listen.TCP(ctx, "listen-addr", cfg.Listen)
	if err != nil {
		return nil, err
	}
	l = listen.Limit(l, listen.NewPlaces(maxConns))
	p.sockets = append(p.sockets, l)
	p.mux = listen.NewMux(l, p.accepts("h2", "http/1.1"))
	lg.Info("listening for gRPC proxy client requests", zap.String("address", cfg.Listen))
	if err := p.openMetrics(ctx, maxConns); err != nil {
		return nil, err
	}
	status("connecting to the cluster")
	client, err := p.dial()
	if err != nil {
		return nil, err
	}
	if p.proxy, err = New(ctx, client, cfg.Proxy); err != nil {
		return nil, err
	}
	if cfg.Proxy.AdvertiseClientURL != "" {
		if err := p.dialSelf(); err != nil {
			return nil, err
		}
	}
	pages := Pages{Members: &http.Client{Transport: &http.Transport{TLSClientConfig: p.upstream}}, Scheme: "http",
		Self: p.self, Pprof: cfg.Pprof, Logger: lg}
	if p.upstream != nil {
		pages.Scheme = "https"
	}
	p.pages = p.proxy.Handler(pages)
	if cfg.Pprof {
		lg.Info("gRPC proxy enabled pprof", zap.String("path", "/debug/pprof"))
	}
	return p, nil
}

// openTLS reads the certificates of the listeners, or generates one.
func (p *Process) openTLS() error {
	o := p.cfg.Listener
	given := o.CertFile != "" || o.KeyFile != "" || o.TrustedCAFile != ""
	if !given && !p.cfg.AutoTLS {
		return nil
	}
	if !given {
		var err error
		dir := filepath.Join(p.cfg.DataDir, "fixtures", "proxy")
		if o.CertFile, o.KeyFile, err = certs.SelfSigned(dir, []string{p.cfg.Listen}, p.cfg.Validity, p.lg); err != nil {
			return err
		}
		o.SkipServerVerify = true
	}
	var err error
	if len(p.cfg.Suites) > 0 {
		if o.CipherSuites, err = tlsutil.GetCipherSuites(p.cfg.Suites); err != nil {
			return fmt.Errorf("%w: --listen-cipher-suites", err)
		}
	}
	if p.secure, err = certs.Open(o); err != nil {
		return err
	}
	if !p.secure.CanListen() {
		return certs.CannotListen(p.cfg.Listen, "--trusted-ca-file asks for TLS", o.Flags)
	}
	p.lg.Info("gRPC proxy server TLS", zap.String("cert-file", o.CertFile), zap.String("key-file", o.KeyFile),
		zap.String("trusted-ca-file", o.TrustedCAFile), zap.String("client-crl-file", o.CRLFile))
	return nil
}

func (p *Process) accepts(protocols ...string) listen.Accepts {
	if p.secure == nil {
		return listen.Accepts{Plain: true}
	}
	return listen.Accepts{TLS: &listen.TLS{Config: p.secure.Server(protocols...),
		Refused: listen.LogRefused(p.lg, "rejected connection on client endpoint")}}
}

func (p *Process) openMetrics(ctx context.Context, maxConns int) error {
	if p.cfg.Metrics == "" {
		return nil
	}
	u, err := url.Parse(p.cfg.Metrics)
	if err != nil {
		return fmt.Errorf("cannot parse %q", p.cfg.Metrics)
	}
	l, err := listen.Listen(ctx, *u, listen.Options{Flag: "metrics-addr", Secure: p.secure != nil, Places: listen.NewPlaces(maxConns)})
	if err != nil {
		return err
	}
	p.sockets = append(p.sockets, l)
	if u.Scheme == "https" || u.Scheme == "unixs" {
		l = listen.NewListener(l, p.accepts("http/1.1"))
	}
	p.metrics = l
	p.lg.Info("gRPC proxy listening for metrics", zap.String("address", u.String()))
	return nil
}

// dial creates the client of the cluster. It does not wait for a member.
func (p *Process) dial() (*clientv3.Client, error) {
	c := p.cfg
	endpoints := c.Endpoints
	if c.Discovery.Domain != "" {
		found, _, err := c.Discovery.Find(p.lg)
		if err != nil {
			return nil, err
		}
		if len(found) > 0 {
			endpoints = found
		} else {
			p.lg.Warn("no discovered endpoint can be used; using --endpoints", zap.String("srv-server", c.Discovery.Domain), zap.Strings("endpoints", endpoints))
		}
	}
	// An empty --endpoints is a list of one empty endpoint.
	if endpoints = slices.DeleteFunc(slices.Clone(endpoints), func(e string) bool { return e == "" }); len(endpoints) == 0 {
		return nil, clientv3.ErrNoAvailableEndpoints
	}
	if m := c.Members; m.CertFile != "" || m.KeyFile != "" || m.TrustedCAFile != "" || m.SkipServerVerify {
		store, err := certs.Open(m)
		if err != nil {
			return nil, err
		}
		if m.CertFile != "" {
			if err := checkNameless(m.CertFile, m.KeyFile); err != nil {
				return nil, err
			}
		}
		if m.SkipServerVerify {
			p.lg.Warn("--insecure-skip-tls-verify was given, this grpc proxy process skips authentication of etcd server TLS certificates. This option should be enabled only for testing purposes.")
		}
		p.upstream = store.Client()
		p.lg.Info("gRPC proxy client TLS", zap.String("cert", m.CertFile), zap.String("key", m.KeyFile), zap.String("cacert", m.TrustedCAFile))
	}
	return clientv3.New(clientv3.Config{
		Endpoints: endpoints, DialTimeout: dialLimit, TLS: p.upstream,
		DialKeepAliveTime: max(c.DialPing, 0), DialKeepAliveTimeout: max(c.DialPingExpiry, 0), PermitWithoutStream: c.PingWithoutStream,
		MaxCallSendMsgSize: max(c.MaxSend, 0), MaxCallRecvMsgSize: max(c.MaxReceive, 0),
		DialOptions: DialOptions(c.MaxSend, c.MaxReceive), Logger: p.lg.Named("client"),
	})
}

// checkNameless rejects a certificate with a common name: members would take all clients of
// the proxy for the user of that name.
func checkNameless(certFile, keyFile string) error {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return fmt.Errorf("--cert=%s --key=%s: %w", certFile, keyFile, err)
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return fmt.Errorf("--cert=%s: %w", certFile, err)
	}
	if cn := leaf.Subject.CommonName; cn != "" {
		return fmt.Errorf("cert has non empty Common Name (%s): %s: --cert: members would take every client of the proxy for that user; use a certificate without a common name", cn, certFile)
	}
	return nil
}

// dialSelf creates the client that checks whether clients can reach the proxy.
func (p *Process) dialSelf() error {
	cfg := clientv3.Config{Endpoints: []string{p.cfg.Proxy.AdvertiseClientURL}, DialTimeout: dialLimit, Logger: p.lg.Named("client")}
	if p.secure != nil {
		cfg.TLS = p.secure.Client()
	}
	var err error
	if p.self, err = clientv3.New(cfg); err == nil {
		p.lg.Info("create proxy client", zap.String("grpcProxyAdvertiseClientURL", p.cfg.Proxy.AdvertiseClientURL))
	}
	return err
}

// Serve starts serving clients.
func (p *Process) Serve() {
	c := p.cfg
	o := append(p.proxy.ServerOptions(), grpc.Creds(rpc.ListenerCredentials()), grpc.MaxConcurrentStreams(c.MaxStreams),
		grpc.MaxHeaderListSize(proxyHeaders), grpc.MaxRecvMsgSize(max(proxyRequest, c.MaxSend)))
	if c.MinPing > 0 {
		o = append(o, grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: c.MinPing}))
	}
	if c.Ping > 0 || c.PingTimeout > 0 {
		o = append(o, grpc.KeepaliveParams(keepalive.ServerParameters{Time: c.Ping, Timeout: c.PingTimeout}))
	}
	p.grpc = grpc.NewServer(o...)
	p.proxy.Register(p.grpc)
	go p.report(p.grpc.Serve, p.mux.GRPC())
	s := httpapi.NewServer(p.pages)
	if p.secure != nil {
		s = httpapi.NewTLSServer(p.pages, p.grpc, p.secure.Server("h2", "http/1.1"), c.MaxStreams)
	}
	p.https = append(p.https, s)
	go p.report(s.Serve, p.mux.HTTP())
	go p.report(func(net.Listener) error { return p.mux.Serve() }, nil)
	if p.metrics != nil {
		p.lg.Info("gRPC proxy server metrics URL serving")
		s := httpapi.NewServer(p.pages)
		p.https = append(p.https, s)
		go p.report(s.Serve, p.metrics)
	}
	p.lg.Info("started gRPC proxy", zap.String("address", c.Listen))
}

// Broken returns the channel of errors that ended a listener.
func (p *Process) Broken() <-chan error { return p.broken }

func (p *Process) report(serve func(net.Listener) error, l net.Listener) {
	err := serve(l)
	if err == nil || errors.Is(err, http.ErrServerClosed) || errors.Is(err, grpc.ErrServerStopped) || errors.Is(err, net.ErrClosed) {
		return
	}
	select {
	case p.broken <- err:
	default: // one reason to stop is enough
	}
}

// Close ends the calls, then stops everything else. It may be called more than once.
func (p *Process) Close() {
	if p.proxy != nil && p.grpc != nil {
		p.proxy.End()
		drained := make(chan struct{})
		go func() {
			p.grpc.GracefulStop()
			close(drained)
		}()
		select {
		case <-drained:
		case <-clock.After(drainTimeout):
			p.grpc.Stop()
		}
	}
	for _, s := range p.https {
		s.Close()
	}
	if p.mux != nil {
		p.mux.Close()
	}
	for _, l := range p.sockets {
		l.Close()
	}
	if p.self != nil {
		p.self.Close()
		p.self = nil
	}
	if p.proxy != nil {
		p.proxy.Close()
		p.lg.Info("stop listening gRPC proxy client requests", zap.String("address", p.cfg.Listen))
		p.proxy = nil
	}
}

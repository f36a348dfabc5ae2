package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/client/pkg/v3/tlsutil"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"quorate/internal/certs"
	"quorate/internal/discovery"
	"quorate/internal/httpapi"
	"quorate/internal/listen"
	"quorate/internal/logging"
	"quorate/internal/proxy/grpcproxy"
	"quorate/internal/rpc"
)

// proxyFlags are those of `etcd grpc-proxy start`.
type proxyFlags struct {
	listen, metrics, dataDir string
	advertise                string
	resolverPrefix           string
	resolverTTL              int
	namespace, leasing       string
	ordering, logCalls       bool
	pprof, debug             bool

	endpoints            []string
	sync                 time.Duration
	domain, suffix       string
	insecureDiscovery    bool
	maxSend, maxReceive  int
	dialTime, dialLimit  time.Duration
	pingWithoutStream    bool
	cert, key, ca        string
	skipVerify           bool
	certFile, keyFile    string
	trustedCA, crl       string
	autoTLS              bool
	validity             uint
	suites               []string
	minTLS, maxTLS       string
	minPing, ping, limit time.Duration
	maxStreams           uint32
	maxStreamsGiven      bool
}

func grpcProxyCommand() *cobra.Command {
	proxy := &cobra.Command{Use: "grpc-proxy <subcommand>", Short: "grpc-proxy related command"}
	var p proxyFlags
	start := &cobra.Command{Use: "start", Short: "start the grpc proxy"}
	start.RunE = program(func() int {
		p.maxStreamsGiven = start.Flags().Changed("max-concurrent-streams")
		return p.run()
	})
	f := start.Flags()
	f.StringVar(&p.listen, "listen-addr", "127.0.0.1:23790", "listen address")
	f.StringVar(&p.domain, "discovery-srv", "", "domain name to query for SRV records describing cluster endpoints")
	f.StringVar(&p.suffix, "discovery-srv-name", "", "service name to query when using DNS discovery")
	f.StringVar(&p.metrics, "metrics-addr", "", "listen for endpoint /metrics requests on an additional interface")
	f.BoolVar(&p.insecureDiscovery, "insecure-discovery", false, "accept insecure SRV records")
	f.StringSliceVar(&p.endpoints, "endpoints", []string{"127.0.0.1:2379"}, "comma separated etcd cluster endpoints")
	f.DurationVar(&p.sync, "endpoints-auto-sync-interval", 0, "etcd endpoints auto sync interval (disabled by default)")
	f.DurationVar(&p.dialTime, "dial-keepalive-time", 0, "keepalive time for client(grpc-proxy) connections (default 0, disable).")
	f.DurationVar(&p.dialLimit, "dial-keepalive-timeout", 20*time.Second, "keepalive timeout for client(grpc-proxy) connections (default 20s).")
	f.BoolVar(&p.pingWithoutStream, "permit-without-stream", false, "Enable client(grpc-proxy) to send keepalive pings even with no active RPCs.")
	f.StringVar(&p.advertise, "advertise-client-url", "127.0.0.1:23790", "advertise address to register (must be reachable by client)")
	f.StringVar(&p.resolverPrefix, "resolver-prefix", "", "prefix to use for registering proxy (must be shared with other grpc-proxy members)")
	f.IntVar(&p.resolverTTL, "resolver-ttl", 0, "specify TTL, in seconds, when registering proxy endpoints")
	f.StringVar(&p.namespace, "namespace", "", "string to prefix to all keys for namespacing requests")
	f.BoolVar(&p.pprof, "enable-pprof", false, `Enable runtime profiling data via HTTP server. Address is at client URL + "/debug/pprof/"`)
	f.StringVar(&p.dataDir, "data-dir", "default.proxy", "Data directory for persistent data")
	f.IntVar(&p.maxSend, "max-send-bytes", 1536<<10, "message send limits in bytes (default value is 1.5 MiB)")
	f.IntVar(&p.maxReceive, "max-recv-bytes", math.MaxInt32, "message receive limits in bytes (default value is math.MaxInt32)")
	f.DurationVar(&p.minPing, "grpc-keepalive-min-time", 5*time.Second, "Minimum interval duration that a client should wait before pinging proxy.")
	f.DurationVar(&p.ping, "grpc-keepalive-interval", 2*time.Hour, "Frequency duration of server-to-client ping to check if a connection is alive (0 to disable).")
	f.DurationVar(&p.limit, "grpc-keepalive-timeout", 20*time.Second, "Additional duration of wait before closing a non-responsive connection (0 to disable).")
	f.StringVar(&p.cert, "cert", "", "identify secure connections with etcd servers using this TLS certificate file")
	f.StringVar(&p.key, "key", "", "identify secure connections with etcd servers using this TLS key file")
	f.StringVar(&p.ca, "cacert", "", "verify certificates of TLS-enabled secure etcd servers using this CA bundle")
	f.BoolVar(&p.skipVerify, "insecure-skip-tls-verify", false, "skip authentication of etcd server TLS certificates (CAUTION: this option should be enabled only for testing purposes)")
	f.StringVar(&p.certFile, "cert-file", "", "identify secure connections to the proxy using this TLS certificate file")
	f.StringVar(&p.keyFile, "key-file", "", "identify secure connections to the proxy using this TLS key file")
	f.StringVar(&p.trustedCA, "trusted-ca-file", "", "verify certificates of TLS-enabled secure proxy using this CA bundle")
	f.StringSliceVar(&p.suites, "listen-cipher-suites", nil, "Comma-separated list of supported TLS cipher suites between client/proxy (empty will be auto-populated by Go).")
	f.BoolVar(&p.autoTLS, "auto-tls", false, "proxy TLS using generated certificates")
	f.StringVar(&p.crl, "client-crl-file", "", "proxy client certificate revocation list file.")
	f.UintVar(&p.validity, "self-signed-cert-validity", 1, "The validity period of the proxy certificates, unit is year")
	f.StringVar(&p.minTLS, "tls-min-version", "TLS1.2", "Minimum TLS version supported by grpc proxy. Possible values: TLS1.2, TLS1.3.")
	f.StringVar(&p.maxTLS, "tls-max-version", "", "Maximum TLS version supported by grpc proxy. Possible values: TLS1.2, TLS1.3 (empty defers to Go).")
	f.BoolVar(&p.ordering, "experimental-serializable-ordering", false, "Ensure serializable reads have monotonically increasing store revisions across endpoints.")
	f.StringVar(&p.leasing, "experimental-leasing-prefix", "", "leasing metadata prefix for disconnected linearized reads.")
	f.BoolVar(&p.logCalls, "experimental-enable-grpc-logging", false, "logging all grpc requests and responses")
	f.BoolVar(&p.debug, "debug", false, "Enable debug-level logging for grpc-proxy.")
	f.Uint32Var(&p.maxStreams, "max-concurrent-streams", math.MaxUint32, "Maximum concurrent streams that each client can open at a time.")
	proxy.AddCommand(start)
	return proxy
}

// check finds flags that do not go together, in etcd's order.
func (p *proxyFlags) check() error {
	switch {
	case p.resolverPrefix != "" && p.resolverTTL < 1:
		return fmt.Errorf("invalid resolver-ttl %d", p.resolverTTL)
	case p.resolverPrefix == "" && p.resolverTTL > 0:
		return fmt.Errorf("invalid resolver-prefix %q", p.resolverPrefix)
	case p.resolverPrefix != "" && p.advertise == "":
		return fmt.Errorf("invalid advertise-client-url %q", p.advertise)
	case p.autoTLS && p.validity == 0:
		return certs.ErrNoValidity
	}
	low, err := tlsutil.GetTLSVersion(p.minTLS)
	if err != nil {
		return fmt.Errorf("tls-min-version is invalid: %w", err)
	}
	high, err := tlsutil.GetTLSVersion(p.maxTLS)
	switch {
	case err != nil:
		return fmt.Errorf("tls-max-version is invalid: %w", err)
	case high != 0 && low > high:
		return fmt.Errorf("min version (%s) is greater than max version (%s): --tls-min-version and --tls-max-version", p.minTLS, p.maxTLS)
	case low == tls.VersionTLS13 && len(p.suites) > 0:
		return errors.New("cipher suites cannot be configured when only TLS1.3 is enabled: leave out --listen-cipher-suites, or lower --tls-min-version")
	}
	return nil
}

// run serves until a signal and returns the exit code.
func (p *proxyFlags) run() int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := p.check(); err != nil {
		return fail(err)
	}
	level := "info"
	if p.debug {
		level = "debug"
	}
	lg, closeLog, err := logging.New(logging.Options{Level: level})
	if err != nil {
		return fail(err)
	}
	defer closeLog()
	logging.SetGlobal(lg, p.debug)

	starting := listen.BeginStart()
	defer starting.End()
	r := &runningProxy{flags: p, lg: lg, broken: make(chan error, 8)}
	defer r.close()
	if err := r.open(starting); err != nil {
		return fail(err)
	}
	// Until here a signal ends the process at once: waiting for a cluster can be
	// broken off anywhere.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	r.serve()
	lg.Info("started gRPC proxy", zap.String("address", p.listen))
	starting.Ready(lg)
	select {
	case err := <-r.broken:
		return fail(err)
	case s := <-signals:
		lg.Info("received signal; shutting down", zap.String("signal", s.String()))
		go func() {
			// A second signal does not wait for a graceful end.
			<-signals
			os.Exit(1)
		}()
		r.close()
		return end(s)
	}
}

// runningProxy is a proxy with its sockets.
type runningProxy struct {
	flags  *proxyFlags
	lg     *zap.Logger
	broken chan error

	secure  *certs.Store // of the listeners; nil: without TLS
	sockets []net.Listener
	mux     *listen.Mux
	metrics net.Listener // nil: none

	upstream *tls.Config      // to members; nil: without TLS
	self     *clientv3.Client // nil: no address is advertised
	proxy    *grpcproxy.Proxy
	grpc     *grpc.Server
	https    []*http.Server
	pages    http.Handler
}

// open opens the sockets, then the way to the cluster.
func (r *runningProxy) open(starting *listen.Starting) error {
	p := r.flags
	if err := r.openTLS(); err != nil {
		return err
	}
	maxConns, err := listen.MaxConns(httpapi.FileLimit())
	if err != nil {
		return err
	}
	l, err := listen.TCP(context.Background(), "listen-addr", p.listen)
	if err != nil {
		return err
	}
	l = netutil.LimitListener(l, maxConns)
	r.sockets = append(r.sockets, l)
	r.mux = listen.NewMux(l, r.accepts("h2", "http/1.1"))
	r.lg.Info("listening for gRPC proxy client requests", zap.String("address", p.listen))
	if err := r.openMetrics(maxConns); err != nil {
		return err
	}
	starting.Status("connecting to the cluster")
	client, err := r.dial()
	if err != nil {
		return err
	}
	r.proxy, err = grpcproxy.New(context.Background(), client, grpcproxy.Options{
		AdvertiseClientURL: p.advertise, ResolverPrefix: p.resolverPrefix, ResolverTTL: p.resolverTTL,
		Namespace: p.namespace, LeasingPrefix: p.leasing, Ordering: p.ordering, LogCalls: p.logCalls, SyncInterval: p.sync, Logger: r.lg,
	})
	if err != nil {
		return err
	}
	if p.advertise != "" {
		if err := r.dialSelf(); err != nil {
			return err
		}
	}
	pages := grpcproxy.Pages{Members: &http.Client{Transport: &http.Transport{TLSClientConfig: r.upstream}}, Scheme: "http",
		Self: r.self, Pprof: p.pprof, Logger: r.lg}
	if r.upstream != nil {
		pages.Scheme = "https"
	}
	r.pages = r.proxy.Handler(pages)
	if p.pprof {
		r.lg.Info("gRPC proxy enabled pprof", zap.String("path", "/debug/pprof"))
	}
	return nil
}

// openTLS reads the certificates of the listeners, or generates one.
func (r *runningProxy) openTLS() error {
	p := r.flags
	o := certs.Options{CertFile: p.certFile, KeyFile: p.keyFile, TrustedCAFile: p.trustedCA, CRLFile: p.crl, Logger: r.lg}
	given := p.certFile != "" || p.keyFile != "" || p.trustedCA != ""
	if !given && !p.autoTLS {
		return nil
	}
	if !given {
		var err error
		dir := filepath.Join(p.dataDir, "fixtures", "proxy")
		if o.CertFile, o.KeyFile, err = certs.SelfSigned(dir, []string{p.listen}, p.validity, r.lg); err != nil {
			return err
		}
		o.SkipServerVerify = true
	}
	var err error
	if len(p.suites) > 0 {
		if o.CipherSuites, err = tlsutil.GetCipherSuites(p.suites); err != nil {
			return fmt.Errorf("%w: --listen-cipher-suites", err)
		}
	}
	o.MinVersion, _ = tlsutil.GetTLSVersion(p.minTLS) // both were checked
	o.MaxVersion, _ = tlsutil.GetTLSVersion(p.maxTLS)
	if r.secure, err = certs.Open(o); err != nil {
		return err
	}
	if !r.secure.CanListen() {
		return certs.CannotListen(p.listen, "--trusted-ca-file asks for TLS", o.Flags)
	}
	r.lg.Info("gRPC proxy server TLS", zap.String("cert-file", o.CertFile), zap.String("key-file", o.KeyFile),
		zap.String("trusted-ca-file", o.TrustedCAFile), zap.String("client-crl-file", o.CRLFile))
	return nil
}

func (r *runningProxy) accepts(protocols ...string) listen.Accepts {
	if r.secure == nil {
		return listen.Accepts{Plain: true}
	}
	return listen.Accepts{TLS: &listen.TLS{Config: r.secure.Server(protocols...),
		Refused: logRefused(r.lg, "rejected connection on client endpoint")}}
}

func (r *runningProxy) openMetrics(maxConns int) error {
	p := r.flags
	if p.metrics == "" {
		return nil
	}
	u, err := url.Parse(p.metrics)
	if err != nil {
		return fmt.Errorf("cannot parse %q", p.metrics)
	}
	l, err := listen.Listen(context.Background(), *u, listen.Options{Flag: "metrics-addr", Secure: r.secure != nil, MaxConns: maxConns})
	if err != nil {
		return err
	}
	r.sockets = append(r.sockets, l)
	if u.Scheme == "https" || u.Scheme == "unixs" {
		l = listen.NewListener(l, r.accepts("http/1.1"))
	}
	r.metrics = l
	r.lg.Info("gRPC proxy listening for metrics", zap.String("address", u.String()))
	return nil
}

// dialLimit bounds the dialling of one endpoint.
const dialLimit = 5 * time.Second

// dial makes the client of the cluster. It does not wait for a member.
func (r *runningProxy) dial() (*clientv3.Client, error) {
	p := r.flags
	endpoints := p.endpoints
	if p.domain != "" {
		found, _, err := discovery.Clients{Domain: p.domain, Suffix: p.suffix, Insecure: p.insecureDiscovery, TrustedCAFile: p.ca, Flags: certs.FlagNames{Client: true}}.Find(r.lg)
		if err != nil {
			return nil, err
		}
		if len(found) > 0 {
			endpoints = found
		} else {
			r.lg.Warn("no discovered endpoint can be used; using --endpoints", zap.String("srv-server", p.domain), zap.Strings("endpoints", endpoints))
		}
	}
	// An empty --endpoints is a list of one empty endpoint.
	if endpoints = slices.DeleteFunc(slices.Clone(endpoints), func(e string) bool { return e == "" }); len(endpoints) == 0 {
		return nil, clientv3.ErrNoAvailableEndpoints
	}
	if p.cert != "" || p.key != "" || p.ca != "" || p.skipVerify {
		store, err := certs.Open(certs.Options{CertFile: p.cert, KeyFile: p.key, TrustedCAFile: p.ca, SkipServerVerify: p.skipVerify, Flags: certs.FlagNames{Client: true}, Logger: r.lg})
		if err != nil {
			return nil, err
		}
		if p.cert != "" {
			if err := checkNameless(p.cert, p.key); err != nil {
				return nil, err
			}
		}
		if p.skipVerify {
			r.lg.Warn("--insecure-skip-tls-verify was given, this grpc proxy process skips authentication of etcd server TLS certificates. This option should be enabled only for testing purposes.")
		}
		r.upstream = store.Client()
		r.lg.Info("gRPC proxy client TLS", zap.String("cert", p.cert), zap.String("key", p.key), zap.String("cacert", p.ca))
	}
	return clientv3.New(clientv3.Config{
		Endpoints: endpoints, DialTimeout: dialLimit, TLS: r.upstream,
		DialKeepAliveTime: max(p.dialTime, 0), DialKeepAliveTimeout: max(p.dialLimit, 0), PermitWithoutStream: p.pingWithoutStream,
		MaxCallSendMsgSize: max(p.maxSend, 0), MaxCallRecvMsgSize: max(p.maxReceive, 0),
		DialOptions: grpcproxy.DialOptions(p.maxSend, p.maxReceive), Logger: r.lg.Named("client"),
	})
}

// checkNameless refuses a certificate with a common name: members would take all
// clients of the proxy for the user of that name.
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

// dialSelf makes the client that sees whether clients reach the proxy.
func (r *runningProxy) dialSelf() error {
	cfg := clientv3.Config{Endpoints: []string{r.flags.advertise}, DialTimeout: dialLimit, Logger: r.lg.Named("client")}
	if r.secure != nil {
		cfg.TLS = r.secure.Client()
	}
	var err error
	if r.self, err = clientv3.New(cfg); err == nil {
		r.lg.Info("create proxy client", zap.String("grpcProxyAdvertiseClientURL", r.flags.advertise))
	}
	return err
}

const (
	// proxyStreams is how many calls a connection may have in progress unless the
	// flag says otherwise.
	proxyStreams = 32_768
	// proxyHeaders bounds the headers of a call, proxyRequest a request unless
	// members are sent larger ones.
	proxyHeaders = 256 << 10
	proxyRequest = 4 << 20
)

func (r *runningProxy) serve() {
	p := r.flags
	streams := p.maxStreams
	if !p.maxStreamsGiven {
		streams = proxyStreams
	}
	o := append(r.proxy.ServerOptions(), grpc.Creds(rpc.ListenerCredentials()), grpc.MaxConcurrentStreams(streams),
		grpc.MaxHeaderListSize(proxyHeaders), grpc.MaxRecvMsgSize(max(proxyRequest, p.maxSend)))
	if p.minPing > 0 {
		o = append(o, grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: p.minPing}))
	}
	if p.ping > 0 || p.limit > 0 {
		o = append(o, grpc.KeepaliveParams(keepalive.ServerParameters{Time: p.ping, Timeout: p.limit}))
	}
	r.grpc = grpc.NewServer(o...)
	r.proxy.Register(r.grpc)
	go r.report(r.grpc.Serve, r.mux.GRPC())
	s := httpapi.NewServer(r.pages)
	if r.secure != nil {
		s = mixedHTTP(r.pages, r.grpc, r.secure.Server("h2", "http/1.1"), streams)
	}
	r.https = append(r.https, s)
	go r.report(s.Serve, r.mux.HTTP())
	go r.report(func(net.Listener) error { return r.mux.Serve() }, nil)
	if r.metrics != nil {
		r.lg.Info("gRPC proxy server metrics URL serving")
		s := httpapi.NewServer(r.pages)
		r.https = append(r.https, s)
		go r.report(s.Serve, r.metrics)
	}
}

func (r *runningProxy) report(serve func(net.Listener) error, l net.Listener) {
	err := serve(l)
	if err == nil || errors.Is(err, http.ErrServerClosed) || errors.Is(err, grpc.ErrServerStopped) || errors.Is(err, net.ErrClosed) {
		return
	}
	select {
	case r.broken <- err:
	default: // one reason to stop is enough
	}
}

// close ends the calls, then everything else. It may be called again.
func (r *runningProxy) close() {
	if r.proxy != nil && r.grpc != nil {
		r.proxy.End()
		drained := make(chan struct{})
		go func() {
			r.grpc.GracefulStop()
			close(drained)
		}()
		select {
		case <-drained:
		case <-time.After(drainTimeout):
			r.grpc.Stop()
		}
	}
	for _, s := range r.https {
		s.Close()
	}
	if r.mux != nil {
		r.mux.Close()
	}
	for _, l := range r.sockets {
		l.Close()
	}
	if r.self != nil {
		r.self.Close()
		r.self = nil
	}
	if r.proxy != nil {
		r.proxy.Close()
		r.lg.Info("stop listening gRPC proxy client requests", zap.String("address", r.flags.listen))
		r.proxy = nil
	}
}

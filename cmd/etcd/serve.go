package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/dustin/go-humanize"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"

	"quorate/internal/build"
	"quorate/internal/config"
	"quorate/internal/datadir"
	"quorate/internal/httpapi"
	"quorate/internal/join"
	"quorate/internal/listen"
	"quorate/internal/membership"
	"quorate/internal/rpc"
	"quorate/internal/server"
	"quorate/internal/tracing"
)

// process is a member with its listeners and servers.
type process struct {
	cfg    *config.Config
	lg     *zap.Logger
	member *server.Member
	edge   *edge
	// the configuration that the member was opened with
	memberConfig server.Config

	security      security
	peer, metrics []net.Listener
	client        []*clientPort

	muxes []*listen.Mux
	https []*http.Server
	grpc  *rpc.Server

	gateway *rpc.Local // nil without a gateway

	tracing *tracing.Provider // nil: no tracing

	broken chan error
}

// start opens the listeners, prepares the member and has it take part in the cluster.
// Clients are served later, by serveClients.
func start(ctx context.Context, cfg *config.Config, starting *listen.Starting) (_ *process, err error) {
	p := &process{cfg: cfg, lg: cfg.Log(), broken: make(chan error, 16)}
	defer func() {
		if err != nil {
			p.closeListeners()
		}
	}()
	initialized, err := p.initialized()
	if err != nil {
		return nil, err
	}
	if !initialized {
		starting.Status("looking up the addresses of the initial cluster")
	}
	sc, err := memberConfig(ctx, cfg, initialized)
	if err != nil {
		return nil, err
	}
	if p.security, err = openSecurity(cfg); err != nil {
		return nil, err
	}
	if err := p.openTracing(ctx, cfg); err != nil {
		return nil, err
	}
	sc.Peers.TLS = p.security.DialPeers()
	if err := p.listen(ctx); err != nil {
		return nil, err
	}
	cfg.LogStart(initialized)
	if cfg.Member.Log.NoSync {
		p.lg.Warn("--unsafe-no-fsync: writes are acknowledged before they are on disk; a crash of the machine loses them, and may leave this member with less than it told the others; never use it for data that matters",
			zap.String("data-dir", cfg.Member.DataDir))
	}
	sc.Working = starting.Status
	if cfg.Joining() && !initialized {
		starting.Status("asking the cluster to add this member")
		sc.Initial, err = join.Enter(ctx, join.Options{
			Endpoints: config.URLStrings(cfg.Join), TLS: p.security.DialClients(), Name: cfg.Member.Name, PeerURLs: sc.PeerURLs, Logger: p.lg,
		})
		if err != nil {
			return nil, err
		}
	}
	if cfg.Discovers() && !initialized {
		starting.Status("waiting for the founders of the cluster")
		if err := discover(ctx, cfg, &sc); err != nil {
			return nil, err
		}
	}
	p.tellAdvice(initialized)
	p.memberConfig = sc
	if p.member, err = server.Open(ctx, sc); err != nil {
		return nil, err
	}
	if initialized && cfg.FeatureGates.Enabled(config.InitialCorruptCheck) {
		starting.Status("comparing the data with those of the other members")
		if err := p.member.Integrity.CheckInitial(ctx); err != nil {
			p.lg.Error("checkInitialHashKV failed", zap.Error(err))
			p.member.Stop()
			return nil, err
		}
	}
	p.lg.Info("starting etcd server", zap.Stringer("local-member-id", p.member.MemberID()), zap.String("local-server-version", build.EtcdVersion),
		zap.Stringer("cluster-id", p.member.ClusterID()), zap.String("cluster-version", clusterVersion(p.member)))
	p.tellQuota()
	p.edge = &edge{Member: p.member}
	httpapi.SetInfo(p.member.MemberID(), cfg.FeatureGates.List())
	p.servePeers()
	p.member.Start()
	p.serveMetrics()
	p.lg.Info("now serving peer/client/metrics", zap.Stringer("local-member-id", p.member.MemberID()),
		zap.Strings("initial-advertise-peer-urls", config.URLStrings(cfg.AdvertisePeerURLs)), zap.Strings("listen-peer-urls", config.URLStrings(cfg.ListenPeerURLs)),
		zap.Strings("advertise-client-urls", config.URLStrings(cfg.AdvertiseClientURLs)), zap.Strings("listen-client-urls", config.URLStrings(cfg.ListenClientURLs)),
		zap.Strings("listen-metrics-urls", config.URLStrings(cfg.ListenMetricsURLs)))
	if cfg.Joining() {
		go p.becomeVoter(ctx)
	}
	return p, nil
}

// initialized reports whether the member has applied its first entries, so that its log
// identifies it, and logs that.
func (p *process) initialized() (bool, error) {
	wal := p.cfg.Layout().WAL()
	begun, err := datadir.HasLog(vfs.Default, wal)
	if err != nil {
		return false, err
	}
	if begun && p.cfg.Discovers() && datadir.NeverRan(wal) {
		begun = false // it stopped before its first entries, and its own log does not identify it yet
	}
	if begun {
		p.lg.Info("server has already been initialized", zap.String("data-dir", p.cfg.Member.DataDir), zap.String("dir-type", "member"))
	} else {
		p.lg.Info("Initialize and start etcd server", zap.String("data-dir", p.cfg.Member.DataDir), zap.String("dir-type", "empty"))
	}
	return begun, nil
}

// clusterVersion formats a version for the log; it may not be decided yet.
func clusterVersion(m *server.Member) string {
	if v := m.Cluster().Version(); v.Decided() {
		return fmt.Sprintf("%d.%d", v.Major, v.Minor)
	}
	return "to_be_decided"
}

// joinPatience is how long the other members may take to learn of a newly added one.
const joinPatience = 5 * time.Second

// memberConfig returns the configuration that the member is opened with. For a member
// without data it validates the cluster to found or to join.
func memberConfig(ctx context.Context, cfg *config.Config, initialized bool) (server.Config, error) {
	sc := cfg.Member
	sc.ForceNew = sc.ForceNew && initialized
	if initialized {
		sc.Initial, _ = membership.ParseInitialCluster(cfg.InitialCluster) // only for comparison; it has no effect
		return sc, nil
	}
	sc.JoinPatience = joinPatience
	if cfg.Joining() || cfg.Discovers() {
		return sc, nil // start asks the others once the sockets are open
	}
	var err error
	sc.Initial, err = cfg.InitialMembers(ctx)
	return sc, err
}

// discover finds the other founders for a member without data. A member can register only
// once, so everything that can be checked is checked before.
func discover(ctx context.Context, cfg *config.Config, sc *server.Config) error {
	var err error
	switch {
	case cfg.SRV.Domain != "":
		cfg.InitialCluster, err = cfg.SRV.Founders(cfg.Member.Name, cfg.AdvertisePeerURLs)
	case len(cfg.Discovery.Client.Endpoints) > 0:
		sc.InitialToken = cfg.Discovery.Token
		cfg.InitialCluster, err = register(ctx, cfg)
	case cfg.V2Discovery.URL != "":
		sc.InitialToken = cfg.V2Discovery.URL
		cfg.InitialCluster, err = registerV2(ctx, cfg)
	}
	if err != nil {
		return &discoveryError{err}
	}
	sc.Initial, err = cfg.InitialMembers(ctx)
	return err
}

// register registers this member with v3 discovery and returns the initial cluster.
func register(ctx context.Context, cfg *config.Config) (string, error) {
	if !cfg.IsNewCluster() {
		return "", errors.New("discovery URL should not be set when joining existing initial cluster")
	}
	r, err := cfg.Discovery.Register(cfg.Log())
	if err != nil {
		return "", err
	}
	cfg.Log().Info("Bootstrapping cluster using v3 discovery.")
	self := cfg.Self()
	cluster, err := r.Join(ctx, membership.ComputeMemberID(config.URLStrings(cfg.AdvertisePeerURLs), cfg.Discovery.Token, nil), self)
	if err != nil {
		return "", fmt.Errorf("failed to join discovery cluster (%w)", err)
	}
	return cluster, nil
}

// registerV2 does the same with v2 discovery.
func registerV2(ctx context.Context, cfg *config.Config) (string, error) {
	if !cfg.IsNewCluster() {
		return "", errors.New("discovery URL should not be set when joining existing initial cluster")
	}
	cluster, err := cfg.V2Discovery.Join(ctx,
		membership.ComputeMemberID(config.URLStrings(cfg.AdvertisePeerURLs), cfg.V2Discovery.URL, nil),
		cfg.Self())
	if err != nil {
		return "", fmt.Errorf("failed to join discovery cluster (%w)", err)
	}
	return cluster, nil
}

// becomeVoter has a member that joined as a learner promoted once it has caught up.
func (p *process) becomeVoter(ctx context.Context) {
	select {
	case <-p.member.Ready():
	case <-p.member.Failed():
		return
	}
	if err := join.Promote(ctx, learner{p.member}, p.lg); err != nil && ctx.Err() == nil && !errors.Is(err, rpctypes.ErrGRPCStopped) {
		p.lg.Error("this member stays a learner", zap.Error(err))
	}
}

// serveClients starts serving clients once the member can answer.
func (p *process) serveClients() {
	cfg := p.cfg
	o := cfg.Calls
	p.trace(&o)
	p.grpc = rpc.NewServer(o, services(p.member))
	ho := cfg.Pages
	if cfg.EnableGRPCGateway {
		p.serveGateway(&ho)
	}
	if cfg.EnableV2 {
		p.serveV2(&ho)
	}
	handler := httpapi.NewClientHandler(p.edge, ho)
	for _, d := range p.client {
		p.serve(d, handler)
	}
}

// tellAdvice warns about flags that have no effect, or that etcd advises against.
func (p *process) tellAdvice(initialized bool) {
	cfg := p.cfg
	if cfg.Discovers() && initialized {
		p.lg.Warn("discovery token is ignored since cluster already initialized; valid logs are found", zap.String("wal-dir", cfg.Layout().WAL()))
	}
	if cfg.Calls.MaxRequestBytes > recommendedRequestBytes {
		p.lg.Warn("exceeded recommended request limit", zap.Uint("max-request-bytes", uint(cfg.Calls.MaxRequestBytes)), zap.String("max-request-size", humanize.Bytes(uint64(cfg.Calls.MaxRequestBytes))),
			zap.Int("recommended-request-bytes", recommendedRequestBytes), zap.String("recommended-request-size", humanize.Bytes(recommendedRequestBytes)))
	}
}

func (p *process) tellQuota() {
	quota, limited := p.cfg.Quota()
	what := []zap.Field{zap.String("quota-name", "v3-applier"), zap.Int64("quota-size-bytes", quota)}
	switch {
	case !limited:
		p.lg.Info("disabled backend quota", what...)
	case p.cfg.QuotaBackendBytes == 0:
		p.lg.Info("enabled backend quota with default value", append(what, zap.String("quota-size", humanize.Bytes(uint64(quota))))...)
	default:
		p.lg.Info("enabled backend quota", append(what, zap.String("quota-size", humanize.Bytes(uint64(quota))))...)
	}
}

// recommendedRequestBytes is etcd's recommended limit for --max-request-bytes.
const recommendedRequestBytes = 10 * 1024 * 1024

// drainTimeout is how long calls in progress may take during a shutdown.
const drainTimeout = 3 * time.Second

// stop stops the member first, which transfers leadership and ends the waiting calls, then
// the servers.
func (p *process) stop() {
	what := []zap.Field{zap.String("name", p.cfg.Member.Name), zap.String("data-dir", p.cfg.Member.DataDir),
		zap.Strings("advertise-peer-urls", config.URLStrings(p.cfg.AdvertisePeerURLs)),
		zap.Strings("advertise-client-urls", config.URLStrings(p.cfg.AdvertiseClientURLs))}
	p.lg.Info("closing etcd server", what...)
	defer p.lg.Info("closed etcd server", what...)
	p.member.HandOver()
	defer p.closeTracing()
	defer p.closeGateway()
	if p.grpc != nil {
		drained := make(chan struct{})
		go func() {
			p.grpc.GracefulStop()
			close(drained)
		}()
		p.grpc.EndStreams()
		p.member.Hub().Close()
		if p.member.Leader() == 0 {
			p.member.GiveUp() // nothing will answer calls that wait
		}
		select {
		case <-drained:
		case <-time.After(drainTimeout):
			p.grpc.Stop()
		}
	}
	for _, l := range p.peer {
		p.lg.Info("stopping serving peer traffic", zap.String("address", l.Addr().String()))
		defer p.lg.Info("stopped serving peer traffic", zap.String("address", l.Addr().String()))
	}
	p.member.Stop()
	for _, m := range p.muxes {
		m.Close()
	}
	for _, s := range p.https {
		s.Close()
	}
	p.closeListeners()
}

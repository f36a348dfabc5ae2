package rpc

import (
	"context"
	"math"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/stats"

	"quorate/internal/h2"
)

// Options configures a Server.
type Options struct {
	// MaxRequestBytes limits a request; a gRPC message may be 512 KiB larger.
	MaxRequestBytes uint
	// MaxTxnOps limits each list of operations in a transaction.
	MaxTxnOps uint
	// MaxConcurrentStreams limits the concurrent calls of one connection; 0 means no
	// limit, and the maximum, which is etcd's default, means 32,768.
	MaxConcurrentStreams uint32
	Keepalive            h2.Keepalive
	// ElectionTimeout: a stream that requires a leader ends after three of these without
	// one. 0 means one second.
	ElectionTimeout time.Duration
	// WarnUnaryDuration is the duration from which a unary call is logged; 0 means never.
	WarnUnaryDuration time.Duration
	// Extensive adds histograms of call durations.
	Extensive bool
	// NotServingOnDefrag makes the health service report NOT_SERVING during
	// defragmentation.
	NotServingOnDefrag bool
	// Logger receives log lines; nil disables logging.
	Logger *zap.Logger
	// Tracer creates a span for each request; nil disables tracing.
	Tracer trace.Tracer
	// Stats is notified of each call, for tracing; nil disables it.
	Stats stats.Handler
}

const messageOverhead = 512 << 10

// defaultStreams limits the calls of one connection unless a number is configured. Each
// takes about 10 KB; a client that opens more waits until some have ended.
const defaultStreams = 32 << 10

// maxHeaderBytes limits the headers of a call. Tokens take a few hundred bytes; gRPC's own
// limit of 16 MiB per stream would only serve an attacker.
const maxHeaderBytes = 256 << 10

// healthSwitch sets the status of the health service.
type healthSwitch struct {
	*health.Server
	lg *zap.Logger
}

// everything is the only service name that the health service knows: the whole server.
const everything = ""

func (h healthSwitch) set(serving bool) {
	s := healthpb.HealthCheckResponse_NOT_SERVING
	if serving {
		s = healthpb.HealthCheckResponse_SERVING
	}
	h.lg.Info("grpc service status changed", zap.String("service", everything), zap.String("status", s.String()))
	h.SetServingStatus(everything, s)
}

// Server is the gRPC server of one member.
type Server struct {
	*h2.Server
	// Health reports SERVING from the start. After its Shutdown it reports NOT_SERVING
	// permanently.
	Health *health.Server

	endStreams context.CancelCauseFunc
}

// EndStreams ends, now and from now on, the calls that could last forever, because the
// member is stopping: keepalives, watches, waits for a lock, observers of an election. Calls
// that end by themselves, such as a snapshot download, are left to a graceful stop.
func (s *Server) EndStreams() { s.endStreams(rpctypes.ErrGRPCStopped) }

// NewServer returns a server that serves b. The caller must give it listeners and stop it.
func NewServer(o Options, b Backend) *Server {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.WarnUnaryDuration == 0 {
		o.WarnUnaryDuration = math.MaxInt64
	}
	if o.ElectionTimeout <= 0 {
		o.ElectionTimeout = time.Second
	}
	if o.Tracer != nil {
		b = traced(b, o.Tracer)
	}
	stopping, endStreams := context.WithCancelCause(context.Background())
	e := &edge{
		stopping:       stopping,
		b:              b,
		o:              o,
		identity:       identity{b.Member, b.Member.ClusterID(), b.Member.MemberID()},
		reporter:       reporter{o.Logger, o.Stats, o.WarnUnaryDuration, o.Logger.Core().Enabled(zap.DebugLevel)},
		methods:        make(map[string]*methodSeries),
		late:           make(map[string]*methodSeries),
		unaryVersions:  newClientVersions("unary"),
		streamVersions: newClientVersions("stream"),
		leaders:        &leaderWatch{leader: b.Member.Leader, every: o.ElectionTimeout, streams: make(map[*cutter]struct{})},
		health:         healthSwitch{health.NewServer(), o.Logger},
	}
	s := h2.New(e.serverOptions())
	e.registerServices(s)
	e.health.set(true)
	return &Server{Server: s, Health: e.health.Server, endStreams: endStreams}
}

// registerServices adds all services to the server. The metrics of locks and elections are
// created by their first call, as in etcd.
func (e *edge) registerServices(s *h2.Server) {
	kv := &kvServer{e.identity, e.b.KV, int(e.o.MaxTxnOps)}
	leases := &leaseServer{e.identity, e.reporter, e.b.Leases}
	watches := &watchServer{e.identity, e.reporter, e.b.Watches}
	maintenance := &maintenanceServer{identity: e.identity, maintenance: e.b.Maintenance, access: e.b.Access, lg: e.lg}
	if e.o.NotServingOnDefrag {
		maintenance.health = &e.health
	}
	inside := inner{kv, leases, e.b.Watches, e.stopping}
	now := []service{kv.describe(e), watches.describe(e), leases.describe(e), (&clusterServer{e.identity, e.b.Members}).describe(e),
		maintenance.describe(e), e.authDesc(), e.generated(&healthpb.Health_ServiceDesc, e.health)}
	for _, x := range now {
		e.seriesFor(x)
		e.register(s, x)
	}
	late := []service{(&lockServer{inside}).describe(e), (&electionServer{inside}).describe(e)}
	for _, x := range late {
		e.register(s, x)
	}
	e.lg.Debug("gRPC services registered", zap.Int("services", len(now)+len(late)))
}

// streamWorkers is the number of goroutines that wait for calls, with stacks that have
// already grown; calls beyond that run on new goroutines. Growing the stack was a fifth of
// the cost of a call.
const streamWorkers = 128

func (e *edge) serverOptions() h2.Options {
	o := &e.o
	if o.MaxConcurrentStreams == math.MaxUint32 {
		o.MaxConcurrentStreams = defaultStreams
	}
	return h2.Options{
		MaxMessage: int(o.MaxRequestBytes) + messageOverhead,
		MaxStreams: o.MaxConcurrentStreams,
		MaxHeaders: maxHeaderBytes,
		// Zero durations mean gRPC's defaults.
		Keepalive: o.Keepalive,
		Workers:   streamWorkers,
	}
}

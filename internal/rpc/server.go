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

// Options of a Server.
type Options struct {
	// MaxRequestBytes bounds a request; messages may be 512 KiB longer.
	MaxRequestBytes uint
	// MaxTxnOps bounds each list of a transaction.
	MaxTxnOps uint
	// MaxConcurrentStreams bounds the calls in progress on one connection; 0
	// means no bound, and the greatest value, which is etcd's default, 32,768.
	MaxConcurrentStreams uint32
	Keepalive            h2.Keepalive
	// ElectionTimeout is what three of make a stream end that asks for a leader;
	// 0 means a second.
	ElectionTimeout time.Duration
	// WarnUnaryDuration is from where on a unary call is logged; 0 means never.
	WarnUnaryDuration time.Duration
	// Extensive adds histograms of the time that calls take.
	Extensive bool
	// NotServingOnDefrag makes the health service say so during defragmentation.
	NotServingOnDefrag bool
	// Logger; nil means none.
	Logger *zap.Logger
	// Tracer makes a span for each request; nil means none.
	Tracer trace.Tracer
	// Stats is told of each call, for tracing; nil means nobody.
	Stats stats.Handler

	debug bool // log every request
}

const messageOverhead = 512 << 10

// defaultStreams bounds the calls of one connection unless a number was asked for.
// Each takes some 10 KB, and a client that opens more waits until some have ended.
const defaultStreams = 32 << 10

// maxHeaderBytes bounds the headers of a call. Tokens take some hundred bytes;
// gRPC's own bound of 16 MiB a stream is for an attacker to use.
const maxHeaderBytes = 256 << 10

// healthSwitch turns the health service on and off.
type healthSwitch struct {
	*health.Server
	lg *zap.Logger
}

// everything is the one service that the health service knows: all of them.
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
	// Health answers SERVING from the start. Its Shutdown makes it say
	// NOT_SERVING for good.
	Health *health.Server

	endStreams context.CancelCauseFunc
}

// EndStreams ends the calls that could last for ever, now and from now on, as the
// member stops: keepalives, watches, those who wait for a lock or follow an
// election. What comes to an end by itself, such as the sending of a snapshot, is
// left to a graceful stop.
func (s *Server) EndStreams() { s.endStreams(rpctypes.ErrGRPCStopped) }

// NewServer makes a server that answers from b. The caller serves listeners
// with it and stops it.
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
	o.debug = o.Logger.Core().Enabled(zap.DebugLevel)
	stopping, endStreams := context.WithCancelCause(context.Background())
	e := &edge{
		stopping:       stopping,
		b:              b,
		o:              o,
		lg:             o.Logger,
		clusterID:      b.Member.ClusterID(),
		memberID:       b.Member.MemberID(),
		methods:        make(map[string]*methodSeries),
		late:           make(map[string]*methodSeries),
		unaryVersions:  newClientVersions("unary"),
		streamVersions: newClientVersions("stream"),
		leaders:        &leaderWatch{leader: b.Member.Leader, every: o.ElectionTimeout, streams: make(map[*cutter]struct{})},
		health:         healthSwitch{health.NewServer(), o.Logger},
	}
	s := h2.New(e.serverOptions())
	e.registerAll(s, []service{e.kvDesc(), e.watchDesc(), e.leaseDesc(), e.clusterDesc(), e.maintenanceDesc(), e.authDesc(),
		e.generated(&healthpb.Health_ServiceDesc, e.health)}, []service{e.lockDesc(), e.electionDesc()})
	e.health.set(true)
	return &Server{Server: s, Health: e.health.Server, endStreams: endStreams}
}

// streamWorkers is the number of goroutines that wait for calls, with stacks
// that have grown already; more calls than that get fresh goroutines. Growing
// the stack was a fifth of what a call costs.
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
		// A time that is 0 is gRPC's own.
		Keepalive: o.Keepalive,
		Workers:   streamWorkers,
	}
}

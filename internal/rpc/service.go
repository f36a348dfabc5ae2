package rpc

import (
	"context"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"quorate/internal/clock"
	"quorate/internal/crash"
	"quorate/internal/h2"
	"quorate/internal/metrics"
	"quorate/internal/watch"
)

// service describes an API service and its methods.
type service struct {
	name    string
	methods []method
}

// method describes one method: unary, with both messages encoded, or a stream.
type method struct {
	name                   string
	unary                  func(ctx context.Context, req []byte) (h2.Reply, error)
	stream                 func(s *stream) error
	fromClient, fromServer bool // which sides of a stream send any number of messages
}

func (m method) info() grpc.MethodInfo {
	return grpc.MethodInfo{Name: m.name, IsClientStream: m.fromClient, IsServerStream: m.fromServer}
}

// register adds the methods of a service to the server.
func (e *edge) register(s *h2.Server, of service) {
	for _, m := range of.methods {
		full := "/" + of.name + "/" + m.name
		if m.unary != nil {
			call := e.observed(full, m.unary)
			s.HandleUnary(full, func(s *h2.Stream, req []byte) (h2.Reply, error) { return call(s.Context(), req) })
			continue
		}
		s.HandleStream(full, func(s *h2.Stream) error { return e.runStream(full, m, s) })
	}
}

// seriesFor creates the metrics of a service's methods ahead of the first call.
func (e *edge) seriesFor(of service) {
	for _, m := range of.methods {
		if full := "/" + of.name + "/" + m.name; e.methods[full] == nil {
			e.methods[full] = newMethodSeries(of.name, m.info(), e.o.Extensive)
		}
	}
}

// generated returns the service for a description generated for gRPC's server. Its calls
// are admitted and counted like all others.
func (e *edge) generated(d *grpc.ServiceDesc, impl any) service {
	out := service{name: d.ServiceName}
	for _, m := range d.Methods {
		out.methods = append(out.methods, method{name: m.MethodName, unary: func(ctx context.Context, req []byte) (h2.Reply, error) {
			resp, err := m.Handler(impl, ctx, func(v any) error { return decodeRequest(req, v) },
				func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
					return e.carryOut(ctx, "/"+d.ServiceName+"/"+m.MethodName, req, next)
				})
			if err != nil {
				return h2.Reply{}, err
			}
			return reply(resp)
		}})
	}
	for _, m := range d.Streams {
		out.methods = append(out.methods, method{name: m.StreamName, fromClient: m.ClientStreams, fromServer: m.ServerStreams,
			stream: func(s *stream) error { return m.Handler(impl, s) }})
	}
	return out
}

// carryOut executes a unary call of a generated service: it admits, counts, times and logs
// it.
func (e *edge) carryOut(ctx context.Context, full string, req any, call grpc.UnaryHandler) (resp any, err error) {
	defer crash.Guard()
	series := e.seriesOf(full, false, false)
	start := clock.Now()
	series.started.Inc()
	series.received.Inc()
	if _, err = e.admit(ctx, e.unaryVersions, learnerMayServe(req)); err == nil {
		resp, err = call(ctx, req)
	}
	series.sent.Inc()
	e.wasCarriedOut(ctx, full, series, start, clock.Since(start), req, resp)
	if err != nil {
		resp, err = nil, toStatus(err)
	}
	series.done(err)
	return resp, err
}

// wasCarriedOut records the duration of a unary call, and logs the call if it was slow.
func (o reporter) wasCarriedOut(ctx context.Context, full string, series *methodSeries, start time.Time, took time.Duration, req, resp any) {
	if series.seconds != nil {
		series.seconds.Observe(took.Seconds())
	}
	if took > o.warnAfter || o.debug {
		o.logRequest(ctx, full, start, took, req, resp)
	}
}

// runStream executes a streaming call.
func (e *edge) runStream(full string, m method, hs *h2.Stream) (err error) {
	defer crash.Guard()
	s := &stream{h2: hs, ctx: hs.Context(), series: e.seriesOf(full, m.fromClient, m.fromServer), once: !m.fromClient}
	if e.stats != nil {
		s.ctx = e.beginStats(s.ctx, full, m.fromClient, m.fromServer)
		s.stats = e.stats
		defer func(start time.Time) { e.endStats(s.ctx, start, err) }(clock.Now())
	}
	start := clock.Now()
	s.series.started.Inc()
	needLeader, err := e.admit(s.ctx, e.streamVersions, full == fullSnapshot)
	if err == nil {
		err = e.endure(s, needLeader, full == fullSnapshot || full == rangeStream, m.stream)
	}
	if err != nil {
		err = toStatus(err)
	}
	s.series.done(err)
	if s.series.seconds != nil {
		s.series.seconds.Observe(clock.Since(start).Seconds())
	}
	return err
}

// endure runs a stream until it ends, its leader is lost, or the server stops. ends means
// that the stream ends by itself, so stopping does not interrupt it.
func (e *edge) endure(s *stream, needLeader, ends bool, run func(*stream) error) error {
	if ends && !needLeader {
		return run(s)
	}
	stopping := e.stopping
	if ends {
		stopping = context.Background()
	}
	ctx, cut, done := until(stopping, s.ctx)
	defer done()
	s.ctx = ctx
	if needLeader {
		defer e.leaders.add(cut)()
	}
	err := run(s)
	if stopping.Err() != nil {
		return context.Cause(stopping) // regardless of the error that the service returns
	}
	return err
}

// stream is one streaming call: it decodes and counts messages, and can be cancelled by the
// server. Every attempt counts as a message, even one that fails or that sees the end of
// the stream: this is what the ecosystem's interceptor does, here and for unary calls.
type stream struct {
	h2     *h2.Stream
	ctx    context.Context
	series *methodSeries
	once   bool // the client sends exactly one message
	ended  bool // and has sent it
	stats  stats.Handler
}

var _ grpc.ServerStream = (*stream)(nil) // for generated services

// Context returns the context of the call, which may be done before the client's is.
func (s *stream) Context() context.Context { return s.ctx }

// SetHeader, SendHeader and SetTrailer implement grpc.ServerStream.
func (s *stream) SetHeader(md metadata.MD) error  { return s.h2.SetHeader(md) }
func (s *stream) SendHeader(md metadata.MD) error { return s.h2.SendHeader(md) }
func (s *stream) SetTrailer(md metadata.MD)       { s.h2.SetTrailer(md) }

// SendMsg sends a message. It blocks on flow control.
func (s *stream) SendMsg(m any) error { return s.send(m, false) }

// send is SendMsg; with more set, another message follows at once and both may share a
// write.
func (s *stream) send(m any, more bool) error {
	s.series.sent.Inc()
	b, err := encode(m)
	if err != nil {
		return err
	}
	if s.stats != nil {
		s.stats.HandleRPC(s.ctx, &stats.OutPayload{Payload: m, Length: b.Len(), SentTime: clock.Now()})
	}
	return s.h2.Send(b, more)
}

// sendWatch sends the responses of b. Small ones, which can be very frequent, are encoded
// directly into the connection's write buffer.
func (s *stream) sendWatch(b *watch.Batch, more bool) error {
	for i, n := 0, len(b.Responses); i < n; {
		end := i
		for s.stats == nil && end < n && b.Most(end) <= smallResponse {
			end++
		}
		if end == i {
			if err := s.send(&watchReply{header: b.Header(), res: b.Responses[i]}, more || i+1 < n); err != nil {
				return err
			}
			i++
			continue
		}
		s.series.sent.Add(float64(end - i))
		before := b.Encoded
		if err := s.h2.SendRun(b, i, end, more || end < n); err != nil {
			return err
		}
		metrics.NetworkClientGRPCSentBytesTotal.Add(float64(b.Encoded - before))
		i = end
	}
	return nil
}

// smallResponse is the size up to which copying a response is cheaper than sending its
// parts from where they are stored.
const smallResponse = 4 << 10

// RecvMsg decodes the client's next message into m; io.EOF after the last.
func (s *stream) RecvMsg(m any) error {
	err := s.recv(m)
	s.series.received.Inc()
	return err
}

func (s *stream) recv(m any) error {
	var b []byte
	var err error
	switch {
	case !s.once:
		b, err = s.h2.Recv()
	case s.ended:
		return io.EOF
	default:
		s.ended = true
		b, err = s.h2.RecvOnly()
	}
	if err != nil {
		return err
	}
	if err := decode(b, m); err != nil {
		return status.Errorf(codes.Internal, "grpc: failed to unmarshal the received message: %v", err)
	}
	if s.stats != nil {
		s.stats.HandleRPC(s.ctx, &stats.InPayload{Payload: m, Length: len(b), RecvTime: clock.Now()})
	}
	return nil
}

// fullSnapshot is the only stream that a learner serves. It and rangeStream are the streams
// that end by themselves.
const (
	fullSnapshot = "/" + maintenanceService + "/Snapshot"
	rangeStream  = "/" + kvService + "/RangeStream"
)

// observed wraps a unary call to notify Options.Stats; without that it returns call itself.
func (o reporter) observed(full string, call func(context.Context, []byte) (h2.Reply, error)) func(context.Context, []byte) (h2.Reply, error) {
	if o.stats == nil {
		return call
	}
	return func(ctx context.Context, req []byte) (resp h2.Reply, err error) {
		ctx = o.beginStats(ctx, full, false, false)
		start := clock.Now()
		o.stats.HandleRPC(ctx, &stats.InPayload{Length: len(req), RecvTime: start})
		resp, err = call(ctx, req)
		if err == nil {
			o.stats.HandleRPC(ctx, &stats.OutPayload{Length: resp.Len(), SentTime: clock.Now()})
		}
		o.endStats(ctx, start, err)
		return resp, err
	}
}

func (o reporter) beginStats(ctx context.Context, full string, fromClient, fromServer bool) context.Context {
	ctx = o.stats.TagRPC(ctx, &stats.RPCTagInfo{FullMethodName: full})
	md, _ := metadata.FromIncomingContext(ctx)
	o.stats.HandleRPC(ctx, &stats.InHeader{FullMethod: full, Header: md})
	o.stats.HandleRPC(ctx, &stats.Begin{BeginTime: clock.Now(), IsClientStream: fromClient, IsServerStream: fromServer})
	return ctx
}

func (o reporter) endStats(ctx context.Context, start time.Time, err error) {
	o.stats.HandleRPC(ctx, &stats.End{BeginTime: start, EndTime: clock.Now(), Error: err})
}

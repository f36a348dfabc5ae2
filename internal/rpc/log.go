package rpc

import (
	"context"
	"errors"
	"strings"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"quorate/internal/metrics"
)

// logRequest logs a slow unary call, or any at debug level, with etcd's field names. Values
// are omitted.
func (o reporter) logRequest(ctx context.Context, method string, start time.Time, took time.Duration, req, resp any) {
	level := zap.DebugLevel
	if !o.debug {
		level = zap.WarnLevel
	}
	remote := "No remote client info."
	if p, ok := peer.FromContext(ctx); ok {
		remote = p.Addr.String()
	}
	s := requestStats{reqCount: -1, respCount: -1, reqSize: -1, respSize: -1}
	s.of(req, resp)
	o.lg.Log(level, "request stats",
		zap.Time("start time", start),
		zap.Duration("time spent", took),
		zap.String("remote", remote),
		zap.String("response type", method),
		zap.Int64("request count", s.reqCount),
		zap.Int("request size", s.reqSize),
		zap.Int64("response count", s.respCount),
		zap.Int("response size", s.respSize),
		zap.String("request content", s.content),
	)
}

type requestStats struct {
	reqCount, respCount int64
	reqSize, respSize   int
	content             string
}

func (s *requestStats) of(req, resp any) {
	switch q := req.(type) {
	case *rangeCall:
		s.reqCount, s.reqSize, s.content = 0, proto.Size(&q.req), q.req.String()
		if r, ok := resp.(*rangeReply); ok && r != nil {
			s.respCount, s.respSize = r.about()
		}
	case *putCall:
		s.reqCount, s.reqSize, s.content = 1, len(q.raw), pb.NewLoggablePutRequest(&q.req).String()
		if r, ok := resp.(*pb.PutResponse); ok && r != nil {
			s.respCount, s.respSize = 0, proto.Size(r)
		}
	case *deleteCall:
		s.reqCount, s.reqSize, s.content = 0, len(q.raw), q.req.String()
		if r, ok := resp.(*pb.DeleteRangeResponse); ok && r != nil {
			s.respCount, s.respSize = r.Deleted, proto.Size(r)
		}
	case *txnCall:
		s.content = pb.NewLoggableTxnRequest(&q.req).String()
		if r, ok := resp.(*pb.TxnResponse); ok && r != nil {
			ops := q.req.Failure
			if r.Succeeded {
				ops = q.req.Success
			}
			s.reqCount, s.reqSize = int64(len(ops)), 0
			for _, op := range ops {
				s.reqSize += proto.Size(op)
			}
			s.respCount, s.respSize = 0, proto.Size(r)
		}
	}
}

// streamFailed logs and counts a failed stream, unless the client has ended it.
func (o reporter) streamFailed(s *stream, direction, api string, err error) {
	if s.Context().Err() != nil || clientGone(err) {
		o.lg.Debug("stream ended by its client", zap.String("api", api), zap.String("while", direction), zap.Error(err))
		return
	}
	o.lg.Warn("stream failed", zap.String("api", api), zap.String("while", direction), zap.Error(err))
	metrics.NetworkServerStreamFailuresTotal.WithLabelValues(direction, api).Inc()
}

func clientGone(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	st, ok := status.FromError(err)
	if !ok {
		return false
	}
	switch msg := st.Message(); st.Code() {
	case codes.Canceled, codes.DeadlineExceeded:
		return true
	case codes.Unavailable:
		return msg == "client disconnected" ||
			strings.HasPrefix(msg, "stream error: ") && strings.HasSuffix(msg, "; CANCEL")
	}
	return false
}

package rpc

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"quorate/internal/lease"
	"quorate/internal/mvcc"
	"quorate/internal/watch"
)

// The wrappers below create a span for each request, with etcd's names. They are not used
// without tracing.
type (
	tracedKV struct {
		KV
		tracer trace.Tracer
	}
	tracedLeases struct {
		Leases
		tracer trace.Tracer
	}
	tracedWatches struct {
		Watches
		tracer trace.Tracer
	}
)

// traced wraps the services of b.
func traced(b Backend, t trace.Tracer) Backend {
	b.KV, b.Leases, b.Watches = tracedKV{b.KV, t}, tracedLeases{b.Leases, t}, tracedWatches{b.Watches, t}
	return b
}

// within executes a request within a span.
func within[R any](ctx context.Context, t trace.Tracer, name string, f func(context.Context) (R, error), attrs ...attribute.KeyValue) (R, error) {
	ctx, span := t.Start(ctx, name, trace.WithAttributes(attrs...))
	defer span.End()
	return f(ctx)
}

// recorded is within for requests whose errors are recorded in the span.
func recorded[R any](ctx context.Context, t trace.Tracer, name string, f func(context.Context) (R, error), attrs ...attribute.KeyValue) (R, error) {
	return within(ctx, t, name, func(ctx context.Context) (R, error) {
		r, err := f(ctx)
		if err != nil {
			trace.SpanFromContext(ctx).RecordError(err)
		}
		return r, err
	}, attrs...)
}

func (t tracedKV) Range(ctx context.Context, r *pb.RangeRequest) (*mvcc.RangeResult, error) {
	return within(ctx, t.tracer, "range", func(ctx context.Context) (*mvcc.RangeResult, error) { return t.KV.Range(ctx, r) },
		append(ofRange(r), attribute.Bool("keys_only", r.KeysOnly))...)
}

func ofRange(r *pb.RangeRequest) []attribute.KeyValue {
	return []attribute.KeyValue{
		attribute.String("range_begin", string(r.Key)), attribute.String("range_end", string(r.RangeEnd)),
		attribute.Int64("rev", r.Revision), attribute.Int64("limit", r.Limit), attribute.Bool("count_only", r.CountOnly),
	}
}

func (t tracedKV) List(ctx context.Context, r *pb.RangeRequest) (mvcc.Reading, error) {
	return within(ctx, t.tracer, "range", func(ctx context.Context) (mvcc.Reading, error) { return t.KV.List(ctx, r) },
		append(ofRange(r), attribute.Bool("keys_only", r.KeysOnly))...)
}

// RangeStream creates a span that ends when the list is closed.
func (t tracedKV) RangeStream(ctx context.Context, r *pb.RangeRequest) (mvcc.Reading, error) {
	ctx, span := t.tracer.Start(ctx, "range_streaming", trace.WithAttributes(ofRange(r)...))
	l, err := t.KV.RangeStream(ctx, r)
	if err != nil {
		span.End()
		return nil, err
	}
	return tracedList{l, span}, nil
}

// tracedList ends the span when it is closed.
type tracedList struct {
	mvcc.Reading
	span trace.Span
}

func (l tracedList) Close() {
	l.Reading.Close()
	l.span.End()
}

func (t tracedKV) Put(ctx context.Context, r *pb.PutRequest, raw []byte) (*pb.PutResponse, error) {
	return recorded(ctx, t.tracer, "put", func(ctx context.Context) (*pb.PutResponse, error) { return t.KV.Put(ctx, r, raw) },
		attribute.String("key", string(r.Key)))
}

func (t tracedKV) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest, raw []byte) (*pb.DeleteRangeResponse, error) {
	return recorded(ctx, t.tracer, "delete_range", func(ctx context.Context) (*pb.DeleteRangeResponse, error) { return t.KV.DeleteRange(ctx, r, raw) },
		attribute.String("range_begin", string(r.Key)), attribute.String("range_end", string(r.RangeEnd)))
}

func (t tracedKV) Txn(ctx context.Context, r *pb.TxnRequest, raw []byte) (*pb.TxnResponse, error) {
	key, kind, lease := firstOp(r.Success)
	return recorded(ctx, t.tracer, "txn", func(ctx context.Context) (*pb.TxnResponse, error) { return t.KV.Txn(ctx, r, raw) },
		attribute.String("compare_first_key", firstCompared(r.Compare)),
		attribute.String("success_first_key", key), attribute.String("success_first_type", kind), attribute.Int64("success_first_lease", lease),
		attribute.Int("compare_len", len(r.Compare)), attribute.Int("success_len", len(r.Success)), attribute.Int("failure_len", len(r.Failure)),
		attribute.Bool("read_only", onlyRanges(r.Success) && onlyRanges(r.Failure)))
}

// firstCompared returns the first key that a transaction compares.
func firstCompared(cs []*pb.Compare) string {
	for _, c := range cs {
		if len(c.Key) > 0 {
			return string(c.Key)
		}
	}
	return ""
}

// firstOp returns the first key among the operations, the kind of the first operation, and
// the lease of the first put, or -1.
func firstOp(ops []*pb.RequestOp) (key, kind string, lease int64) {
	lease = -1
	put := false
	for _, op := range ops {
		var k []byte
		var is string
		switch r := op.Request.(type) {
		case *pb.RequestOp_RequestPut:
			k, is = r.RequestPut.GetKey(), "put"
			if !put {
				put, lease = true, r.RequestPut.GetLease()
			}
		case *pb.RequestOp_RequestRange:
			k, is = r.RequestRange.GetKey(), "range"
		case *pb.RequestOp_RequestDeleteRange:
			k, is = r.RequestDeleteRange.GetKey(), "delete_range"
		case *pb.RequestOp_RequestTxn:
			is = "txn"
		}
		if key == "" {
			key = string(k)
		}
		if kind == "" {
			kind = is
		}
	}
	return key, kind, lease
}

func onlyRanges(ops []*pb.RequestOp) bool {
	for _, op := range ops {
		if _, ok := op.Request.(*pb.RequestOp_RequestRange); !ok {
			return false
		}
	}
	return true
}

func (t tracedKV) Compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	return within(ctx, t.tracer, "compact", func(ctx context.Context) (*pb.CompactionResponse, error) { return t.KV.Compact(ctx, r) },
		attribute.Bool("is_physical", r.Physical), attribute.Int64("rev", r.Revision))
}

func (t tracedLeases) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	return recorded(ctx, t.tracer, "lease_grant", func(ctx context.Context) (*pb.LeaseGrantResponse, error) {
		resp, err := t.Leases.LeaseGrant(ctx, r)
		if err == nil {
			trace.SpanFromContext(ctx).SetAttributes(attribute.Int64("id", resp.ID)) // possibly chosen by the server
		}
		return resp, err
	}, attribute.Int64("id", r.ID), attribute.Int64("ttl", r.TTL))
}

func (t tracedLeases) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	return recorded(ctx, t.tracer, "lease_revoke", func(ctx context.Context) (*pb.LeaseRevokeResponse, error) { return t.Leases.LeaseRevoke(ctx, r) },
		attribute.Int64("id", r.ID))
}

func (t tracedLeases) LeaseRenew(ctx context.Context, id lease.ID) (int64, error) {
	return within(ctx, t.tracer, "lease_renew", func(ctx context.Context) (int64, error) { return t.Leases.LeaseRenew(ctx, id) },
		attribute.Int64("id", int64(id)))
}

// RenewAtOnce leaves every renewal to LeaseRenew, which records it.
func (t tracedLeases) RenewAtOnce(lease.ID) (ttl int64, ok bool) { return 0, false }

func (t tracedWatches) CreateWatch(ctx context.Context, ws *watch.Stream, r *pb.WatchCreateRequest) error {
	// The span covers only the creation; events that follow have none.
	ctx, span := t.tracer.Start(ctx, "watch", trace.WithAttributes(
		attribute.String("key", string(r.Key)), attribute.String("range_end", string(r.RangeEnd)), attribute.Int64("start_rev", r.StartRevision),
		attribute.Bool("progress_notify", r.ProgressNotify), attribute.Bool("prev_kv", r.PrevKv), attribute.Bool("fragment", r.Fragment)))
	defer span.End()
	return t.Watches.CreateWatch(ctx, ws, r)
}

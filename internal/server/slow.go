package server

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/protobuf/proto"

	"quorate/internal/apply"
	"quorate/internal/metrics"
	"quorate/internal/mvcc"
	"quorate/internal/proposal"
)

// slowLog logs slow and rejected requests.
type slowLog struct {
	cfg      *Config
	lg       *zap.Logger
	fewLines *zap.Logger // lg for lines that clients cause
}

// traceThreshold is the duration from which the steps of a request are logged. The times are
// those that the metrics need in any case, so a fast request pays for one comparison.
const traceThreshold = 100 * time.Millisecond

// step is a part of a request and its end.
type step struct {
	what string
	end  time.Time
}

// traceDetail formats names and values in etcd's notation.
func traceDetail(kv ...any) string {
	var b strings.Builder
	b.WriteByte('{')
	for i := 0; i+1 < len(kv); i += 2 {
		fmt.Fprintf(&b, "%v:%v; ", kv[i], kv[i+1])
	}
	b.WriteByte('}')
	return b.String()
}

// logTrace logs how a request's time was spent, with etcd's names. It leaves out steps that
// took less than their share of the threshold.
func (t *slowLog) logTrace(operation, detail string, start, end time.Time, steps ...step) {
	least := traceThreshold / time.Duration(len(steps)+1)
	shown := make([]string, 0, len(steps))
	last := start
	for _, s := range steps {
		if d := s.end.Sub(last); d > least {
			shown = append(shown, fmt.Sprintf("'%s'  (duration: %v)", s.what, d))
		}
		last = s.end
	}
	t.lg.Info("trace",
		zap.Int32("trace_id", rand.Int32()), zap.String("operation", operation), zap.String("detail", detail),
		zap.Duration("duration", end.Sub(start)), zap.Time("start", start), zap.Time("end", end),
		zap.Strings("steps", shown), zap.Int("step_count", len(shown)))
}

// stepAgreement is the wait of a linearizable read.
const stepAgreement = "agreement among raft nodes before linearized reading"

func (t *slowLog) isSlow(took time.Duration) bool {
	return t.cfg.State.WarnApply > 0 && took > t.cfg.State.WarnApply
}

// tookTooLong logs a request, or a part of one, that was slow.
func (t *slowLog) tookTooLong(took time.Duration, prefix string, request fmt.Stringer, response string, err error) {
	metrics.ServerSlowApplyTotal.Inc()
	t.lg.Warn("apply request took too long", zap.Duration("took", took), zap.Duration("expected-duration", t.cfg.State.WarnApply),
		zap.String("prefix", prefix), zap.String("request", request.String()), zap.String("response", response), zap.Error(err))
}

// rangeTook is called when a range completes; began is its start, read the end of its
// barrier. res is nil on error.
func (t *slowLog) rangeTook(r *pb.RangeRequest, res *mvcc.Listed, err error, began, read, end time.Time) {
	took := end.Sub(began)
	if t.isSlow(took) {
		response := ""
		if res != nil {
			response = fmt.Sprintf("range_response_count:%d size:%d", res.Keys, res.Bytes)
		}
		t.tookTooLong(took, "read-only range ", r, response, err)
	}
	if took <= traceThreshold {
		return
	}
	detail := []any{"range_begin", string(r.Key), "range_end", string(r.RangeEnd)}
	if res != nil {
		detail = append(detail, "response_count", res.Keys, "response_revision", res.Revision)
	}
	t.logTrace("range", traceDetail(detail...), began, end, step{stepAgreement, read}, step{"range keys", end})
}

// readTxnTook is rangeTook for a read-only transaction. Its barrier does not count as
// slow, but it is a step.
func (t *slowLog) readTxnTook(r *pb.TxnRequest, resp *pb.TxnResponse, err error, began, read, end time.Time) {
	if took := end.Sub(read); t.isSlow(took) {
		response := ""
		if resp != nil {
			var counts []string
			for _, op := range resp.Responses {
				if rr := op.GetResponseRange(); rr != nil {
					counts = append(counts, fmt.Sprintf("range_response_count:%d", len(rr.Kvs)))
				}
			}
			response = fmt.Sprintf("responses:<%s> size:%d", strings.Join(counts, " "), proto.Size(resp))
		}
		t.tookTooLong(took, "read-only txn ", pb.NewLoggableTxnRequest(r), response, err)
	}
	if end.Sub(began) > traceThreshold {
		t.logTrace("transaction", traceDetail("read_only", true), began, end, step{stepAgreement, read}, step{"range keys", end})
	}
}

// proposalTook is called when a request that went through the log completes.
func (t *slowLog) proposalTook(p *proposal.Pending, res proposal.Result, end time.Time) {
	if end.Sub(p.Start) <= traceThreshold || res.Err != nil || res.Began.IsZero() {
		return
	}
	var operation, detail string
	switch r := p.Req; {
	case r.Put != nil:
		operation, detail = "put", traceDetail("key", string(r.Put.Key), "req_size", proto.Size(r.Put), "response_revision", revisionOf(res))
	case r.Txn != nil:
		operation, detail = "transaction", traceDetail("read_only", false, "response_revision", revisionOf(res))
	case r.DeleteRange != nil:
		operation, detail = "delete_range", traceDetail("key", string(r.DeleteRange.Key), "range_end", string(r.DeleteRange.RangeEnd), "response_revision", revisionOf(res))
	case r.Compaction != nil:
		operation, detail = "compact", traceDetail("revision", r.Compaction.Revision, "response_revision", revisionOf(res))
	default:
		return
	}
	t.logTrace(operation, detail, p.Start, end, step{"process raft request", res.Began}, step{"apply", end})
}

func responseSize(resp any) string {
	if r, ok := resp.(proto.Message); ok && r != nil {
		return fmt.Sprintf("size:%d", proto.Size(r))
	}
	return ""
}

func revisionOf(res proposal.Result) int64 {
	if r, ok := res.Resp.(interface{ GetHeader() *pb.ResponseHeader }); ok {
		return r.GetHeader().GetRevision()
	}
	return 0
}

// limited returns a logger for lines that clients can cause at any rate: of equal lines it
// writes 20 per second, and then one in a hundred.
func limited(lg *zap.Logger) *zap.Logger {
	return lg.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core {
		return zapcore.NewSamplerWithOptions(c, time.Second, 20, 100)
	}))
}

// applyTook is called at the end of a batch. Rejected and slow requests are logged one by
// one. If something else took the time of the batch, such as its commit, that is logged with
// the first request of the batch.
func (t *slowLog) applyTook(ents []apply.Entry, out apply.Outcome, took time.Duration) {
	for _, f := range out.Failed {
		t.fewLines.Warn("failed to apply request", zap.Duration("took", f.Took),
			zap.Stringer("request", &pb.InternalRaftStringer{Request: f.Req}), zap.String("response", responseSize(f.Resp)), zap.Error(f.Err))
	}
	if !t.isSlow(took) {
		return
	}
	for _, s := range out.Slow {
		t.tookTooLong(s.Took, "", &pb.InternalRaftStringer{Request: s.Req}, responseSize(s.Resp), s.Err)
	}
	if len(out.Slow) > 0 {
		return
	}
	first, n := (*pb.InternalRaftRequest)(nil), 0
	for _, e := range ents {
		if e.GetType() != raftpb.EntryNormal || len(e.Data) == 0 {
			continue // not a request
		}
		if n++; first == nil {
			first = e.Req
		}
	}
	if n == 0 {
		return
	}
	if first == nil {
		first = &pb.InternalRaftRequest{} // its decoded form was dropped
	}
	prefix := ""
	if n > 1 {
		prefix = fmt.Sprintf("batch of %d entries ", n)
	}
	t.tookTooLong(took, prefix, &pb.InternalRaftStringer{Request: first}, "", nil)
}

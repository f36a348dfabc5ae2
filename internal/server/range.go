package server

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"quorate/internal/apply"
	"quorate/internal/auth"
	"quorate/internal/metrics"
	"quorate/internal/mvcc"
	"quorate/internal/replica"
)

// barrier waits until a read here sees every write that was acknowledged before
// it began.
func (m *Member) barrier(ctx context.Context) error {
	select {
	case <-m.stop:
		return rpctypes.ErrGRPCStopped
	default:
	}
	round, first := m.reads.Join()
	if first {
		m.event(func(in *replica.Input) { in.ReadWanted = true })
	}
	select {
	case <-round.Done():
		if err := round.Err(); err != nil {
			if first && !errors.Is(err, errReadTimeout) { // a round counts once; late ones count as slow
				metrics.ServerReadIndexesFailedTotal.Inc()
			}
			return err
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-m.failed: // what the round waits for may never be applied here
		return rpctypes.ErrGRPCStopped
	}
}

// Barrier returns when a read here would see everything acknowledged before.
func (m *Member) Barrier(ctx context.Context) error { return m.barrier(ctx) }

// Range reads keys: behind a barrier, or from what is applied here if the
// request is serializable.
func (m *Member) Range(ctx context.Context, r *pb.RangeRequest) (*mvcc.RangeResult, error) {
	began := time.Now()
	start := began
	if !r.Serializable {
		if err := m.barrier(ctx); err != nil {
			observeRequest(requestRange, false, time.Since(began))
			return nil, err
		}
		start = time.Now()
	}
	who, err := m.mayRange(ctx, r)
	if err != nil {
		observeRequest(requestRange, false, time.Since(began))
		return nil, err
	}
	v := m.kv().View()
	res, err := v.Range(r)
	v.Close()
	end := time.Now()
	observeRange(err == nil, end.Sub(start))
	if changed := m.unchanged(who); changed != nil {
		res, err = nil, changed
	}
	took := end.Sub(began)
	observeRequest(requestRange, err == nil, took)
	if took > traceThreshold || m.isSlow(took) {
		m.rangeTook(r, res, err, began, start, end)
	}
	return res, err
}

// mayRange returns whose range it is, if that user may read the keys.
func (m *Member) mayRange(ctx context.Context, r *pb.RangeRequest) (auth.Info, error) {
	who, st, err := m.permit(ctx)
	if err == nil {
		err = st.CanRead(who, r.Key, r.RangeEnd)
	}
	return who, err
}

var rangeObservers = [2]interface{ Observe(float64) }{
	metrics.ServerRangeDurationSeconds.WithLabelValues("false"),
	metrics.ServerRangeDurationSeconds.WithLabelValues("true"),
}

func observeRange(ok bool, d time.Duration) { rangeObservers[boolIndex(ok)].Observe(d.Seconds()) }

func boolIndex(ok bool) int {
	if ok {
		return 1
	}
	return 0
}

// Kinds of requests in etcd_server_request_duration_seconds beside those of
// [command.Op].
const (
	requestRange   = "Range"
	requestReadTxn = "ReadonlyTxn"
)

// requestObservers holds the two series (failed, succeeded) of each kind of
// request, looked up when the first of the kind has ended.
var requestObservers sync.Map // string → *[2]prometheus.Observer

func observeRequest(kind string, ok bool, d time.Duration) {
	o, found := requestObservers.Load(kind)
	if !found {
		o, _ = requestObservers.LoadOrStore(kind, &[2]prometheus.Observer{
			metrics.ServerRequestDurationSeconds.WithLabelValues(kind, "false"),
			metrics.ServerRequestDurationSeconds.WithLabelValues(kind, "true"),
		})
	}
	o.(*[2]prometheus.Observer)[boolIndex(ok)].Observe(d.Seconds())
}

// RangeStream reads keys of one revision and hands them out in pieces, so the
// answer is never in memory as a whole. The first piece holds ten keys; later
// ones grow and shrink to stay below the request limit.
func (m *Member) RangeStream(ctx context.Context, r *pb.RangeRequest, emit func(kvs [][]byte) error) (revision, count int64, more bool, err error) {
	if !r.Serializable {
		if err := m.barrier(ctx); err != nil {
			return 0, 0, false, err
		}
	}
	who, err := m.mayRange(ctx, r)
	if err != nil {
		return 0, 0, false, err
	}
	v := m.kv().View()
	defer v.Close()
	// Each piece is one range in the series; sending it is not part of it.
	start, pieces := time.Now(), 0
	count, more, err = v.RangeStream(r, m.cfg.MaxRequestBytes, func(kvs [][]byte) error {
		observeRange(true, time.Since(start))
		pieces++
		if err := ctx.Err(); err != nil {
			return err
		}
		err := emit(kvs)
		start = time.Now()
		return err
	})
	if pieces == 0 {
		observeRange(err == nil, time.Since(start))
	}
	if err == nil {
		err = m.unchanged(who)
	}
	return v.Rev(), count, more, err
}

func (m *Member) readTxn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	began := time.Now()
	if !serializable(r) {
		if err := m.barrier(ctx); err != nil {
			return nil, err
		}
	}
	start := time.Now() // the barrier is not part of it, as in etcd
	who, st, err := m.permit(ctx)
	if err == nil {
		err = apply.CheckTxn(st, who, m.lessor, r)
	}
	if err != nil {
		return nil, err
	}
	v := m.kv().View()
	defer v.Close()
	resp, err := apply.ReadTxn(v, r)
	end := time.Now()
	observeRequest(requestReadTxn, err == nil, end.Sub(start))
	if end.Sub(began) > traceThreshold || m.isSlow(end.Sub(start)) {
		m.readTxnTook(r, resp, err, began, start, end)
	}
	if changed := m.unchanged(who); changed != nil {
		return nil, changed
	}
	return resp, err
}

// serializable reports whether every range allows a local read; a transaction
// without operations does.
func serializable(r *pb.TxnRequest) bool {
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			if !op.GetRequestRange().GetSerializable() {
				return false
			}
		}
	}
	return true
}

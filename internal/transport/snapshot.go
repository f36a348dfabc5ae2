package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/clock"
	"quorate/internal/crash"
	"quorate/internal/ids"
	"quorate/internal/metrics"
)

const (
	// snapshotStall cancels a transfer whose body makes no progress. There is no
	// limit while the receiver installs the snapshot, which may take minutes.
	snapshotStall = time.Minute
	// snapshotAnswer is the timeout for the response's body after its header.
	snapshotAnswer = 5 * time.Second
)

var errStalled = errors.New("transport: snapshot transfer has stalled")

// SendSnapshot sends m, a MsgSnap, and the database read from body to m's
// receiver, and closes body. It does not block; the outcome is reported to
// Host.ReportSnapshot, even if the receiver is not a peer.
func (t *Transport) SendSnapshot(m *raftpb.Message, body io.ReadCloser) {
	if p := t.table.Load().peers[ids.Member(m.GetTo())]; p != nil && p.sendSnapshot(m, body) {
		return
	}
	body.Close()
	t.lg.Warn("cannot send a snapshot to an unknown member", zap.Stringer("peer-id", ids.Member(m.GetTo())))
	t.reports.snapshot(ids.Member(m.GetTo()), false)
}

// sendSnapshot starts the transfer; it returns false if the peer is
// stopped.
func (p *peer) sendSnapshot(m *raftpb.Message, body io.ReadCloser) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return false
	}
	p.wg.Go(crash.Guarded(func() { p.transferSnapshot(m, body) }))
	return true
}

func (p *peer) transferSnapshot(m *raftpb.Message, body io.ReadCloser) {
	inflight := metrics.NetworkSnapshotSendInflightsTotal.WithLabelValues(p.name)
	inflight.Inc()
	defer inflight.Dec()
	start := clock.Now()
	lg := p.lg.With(zap.Uint64("snapshot-index", m.GetSnapshot().GetMetadata().GetIndex()))
	lg.Info("sending database snapshot")
	n, err := p.postSnapshot(m, body)
	if err != nil {
		lg.Warn("failed to send database snapshot", zap.Int64("bytes", n), zap.Error(err))
		if p.ctx.Err() == nil {
			p.status.deactivate("post snapshot", err)
		}
		metrics.NetworkSnapshotSendFailures.WithLabelValues(p.name).Inc()
		p.dropped(m)
		return
	}
	lg.Info("sent database snapshot", zap.Int64("bytes", n), zap.String("size", humanize.Bytes(uint64(n))), zap.Duration("took", clock.Since(start)))
	p.status.activate()
	p.sentBytes.Add(float64(n))
	metrics.NetworkSnapshotSendSuccess.WithLabelValues(p.name).Inc()
	metrics.NetworkSnapshotSendTotalDurationSeconds.WithLabelValues(p.name).Observe(clock.Since(start).Seconds())
	p.t.reports.snapshot(p.id, true)
}

// postSnapshot sends the snapshot and returns how many bytes of envelope
// and database were sent.
func (p *peer) postSnapshot(m *raftpb.Message, body io.ReadCloser) (int64, error) {
	defer body.Close()
	envelope, err := appendPrefixed(nil, m)
	if err != nil {
		return 0, err
	}
	if len(envelope)-8 > maxEnvelopeBytes {
		return 0, fmt.Errorf("%w: snapshot envelope of %d bytes", errFrameTooLarge, len(envelope)-8)
	}
	u, err := p.urls.pick()
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancelCause(p.ctx)
	defer cancel(nil)
	moving := &movingReader{r: io.MultiReader(bytes.NewReader(envelope), body)}
	moving.watch = clock.AfterFunc(snapshotStall, func() { cancel(errStalled) })
	defer moving.watch.Stop()
	answered := func(*http.Response) {
		moving.watch.Stop()
		timer := clock.AfterFunc(snapshotAnswer, func() { cancel(context.DeadlineExceeded) })
		context.AfterFunc(ctx, func() { timer.Stop() })
	}
	// The content has an unknown length and is sent in chunks: pass an
	// io.Reader, not a type from which net/http could derive a length.
	req, err := p.t.self.PostSnapshot(ctx, u, struct{ io.Reader }{moving})
	if err == nil {
		err = p.post(req, answered)
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = fmt.Errorf("%w: %w", cause, err)
		}
		p.urls.failed(u)
	}
	return moving.n.Load(), err
}

// movingReader counts the bytes read and resets its watch on every read, so
// that it only fires when reading stalls.
type movingReader struct {
	r     io.Reader
	n     atomic.Int64
	watch *clock.Alarm
}

func (r *movingReader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	r.n.Add(int64(n))
	if err != nil {
		r.watch.Stop()
	} else {
		r.watch.Reset(snapshotStall)
	}
	return n, err
}

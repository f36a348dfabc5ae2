package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dustin/go-humanize"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"quorate/internal/apply"
	"quorate/internal/command"
	"quorate/internal/crash"
	"quorate/internal/engine"
	"quorate/internal/metrics"
	"quorate/internal/proposal"
)

// Put writes one key and returns once that is applied here.
func (m *Member) Put(ctx context.Context, r *pb.PutRequest, raw []byte) (*pb.PutResponse, error) {
	return write[pb.PutResponse](ctx, m, command.Put, &pb.InternalRaftRequest{Put: r}, raw, r)
}

// DeleteRange deletes the keys of a range.
func (m *Member) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest, raw []byte) (*pb.DeleteRangeResponse, error) {
	return write[pb.DeleteRangeResponse](ctx, m, command.DeleteRange, &pb.InternalRaftRequest{DeleteRange: r}, raw, r)
}

// Txn runs a transaction; one that only reads does not go through the log.
func (m *Member) Txn(ctx context.Context, r *pb.TxnRequest, raw []byte) (*pb.TxnResponse, error) {
	if readOnly(r) {
		return m.readTxn(ctx, r)
	}
	if err := m.checkReads(ctx, r); err != nil {
		return nil, err
	}
	return write[pb.TxnResponse](ctx, m, command.Txn, &pb.InternalRaftRequest{Txn: r}, raw, r)
}

// Compact forgets the history below a revision. With Physical it returns after
// the records are deleted.
func (m *Member) Compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	res, err := m.propose(ctx, &pb.InternalRaftRequest{Compaction: r})
	if err != nil {
		return nil, err
	}
	if r.Physical && res.Done != nil {
		if err := m.awaitCompaction(ctx, res.Done); err != nil {
			return nil, err
		}
	}
	return res.Resp.(*pb.CompactionResponse), nil
}

// awaitCompaction waits until the records of a compaction are deleted for good.
func (m *Member) awaitCompaction(ctx context.Context, done <-chan error) error {
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		return ctx.Err()
	case <-m.stop:
	}
	switch {
	case m.rootCtx.Err() != nil:
		return rpctypes.ErrGRPCStopped
	case errors.Is(err, engine.ErrClosed):
		return nil // a received snapshot has replaced the store, and the records went with it
	case err != nil:
		return fmt.Errorf("compact: %w", err)
	}
	err = m.flush(ctx, m.mach().Engine())
	switch {
	case m.rootCtx.Err() != nil:
		return rpctypes.ErrGRPCStopped
	case err != nil && !ended(err) && !errors.Is(err, engine.ErrClosed):
		return fmt.Errorf("flush compaction: %w", err)
	}
	return ctx.Err()
}

// flush makes durable what is committed to the engine. On a full disk it waits for
// room, but neither longer than ctx nor into the end of the member.
func (m *Member) flush(ctx context.Context, eng engine.Engine) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(m.rootCtx, cancel)()
	return eng.Flush(ctx)
}

// write proposes a client request whose encoded form is raw; if that is missing
// it is made.
func write[R any](ctx context.Context, m *Member, k command.Kind, req *pb.InternalRaftRequest, raw []byte, msg proto.Message) (*R, error) {
	if raw == nil {
		var err error
		if raw, err = proto.Marshal(msg); err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
	}
	id := m.ids.Next()
	who, err := m.caller(ctx)
	if err != nil {
		return nil, err
	}
	req.Header = &pb.RequestHeader{ID: id, Username: who.User, AuthRevision: who.Rev}
	res, err := m.submit(ctx, &proposal.Pending{ID: id, Req: req, Data: command.Encode(req.Header, k, raw)})
	if err != nil {
		return nil, err
	}
	return any(res.Resp).(*R), nil
}

// propose numbers, encodes and submits any other request, in the name of the
// caller.
func (m *Member) propose(ctx context.Context, req *pb.InternalRaftRequest) (proposal.Result, error) {
	return m.proposeAs(ctx, req, false)
}

// proposeAgain is propose for a request that may as well be applied twice. It is given to raft
// again while nobody answers: a member that joins loses what it has said first, on a connection
// that is made anew, or with an entry that reaches it inside a snapshot.
func (m *Member) proposeAgain(ctx context.Context, req *pb.InternalRaftRequest) (proposal.Result, error) {
	return m.proposeAs(ctx, req, true)
}

func (m *Member) proposeAs(ctx context.Context, req *pb.InternalRaftRequest, repeat bool) (proposal.Result, error) {
	req.Header = &pb.RequestHeader{ID: m.ids.Next()}
	if req.Authenticate == nil {
		who, err := m.caller(ctx)
		if err != nil {
			return proposal.Result{}, err
		}
		req.Header.Username, req.Header.AuthRevision = who.User, who.Rev
	}
	data, err := command.EncodeRequest(req)
	if err != nil {
		return proposal.Result{}, err
	}
	return m.submit(ctx, &proposal.Pending{ID: req.Header.ID, Req: req, Data: data, Repeat: repeat})
}

// submit admits a request, hands it to the core and waits for its outcome.
func (m *Member) submit(ctx context.Context, p *proposal.Pending) (res proposal.Result, err error) {
	if err := m.admit(p); err != nil {
		return proposal.Result{}, err
	}
	if err := m.props.Admit(p, m.cfg.Clock.Now(), m.cfg.requestTimeout()); errors.Is(err, proposal.ErrTooMany) {
		return proposal.Result{}, ErrTooManyRequests
	} else if err != nil {
		return proposal.Result{}, err
	}
	m.proposed(p)
	if p.Req != nil {
		// What was proposed counts as a success there, whatever came of it.
		defer func() {
			end := m.cfg.Clock.Now()
			observeRequest(command.Op(p.Req), true, end.Sub(p.Start))
			if end.Sub(p.Start) > traceThreshold {
				m.proposalTook(p, res, end)
			}
		}()
	}
	var again <-chan time.Time
	if p.Repeat {
		// A leader of etcd that has yet to apply the membership change before this one makes
		// an empty entry of it, and one of ours may refuse it; nobody here hears of that.
		t := time.NewTicker(repeatAfter)
		defer t.Stop()
		again = t.C
	}
	refused := false
	for {
		select {
		case res = <-p.Done():
			return res, res.Err
		case <-ctx.Done():
			m.props.Forget(p.ID)
			metrics.ServerProposalsFailedTotal.Inc()
			return proposal.Result{}, ctx.Err()
		case <-again:
			if p.Allowed == nil {
				m.proposed(p)
				continue
			}
			// What was allowed once may not be any more: others have made changes. An earlier
			// copy that is on its way has the time until the next turn.
			err := p.Allowed()
			if err != nil && refused {
				m.props.Forget(p.ID)
				metrics.ServerProposalsFailedTotal.Inc()
				return proposal.Result{}, err
			}
			if refused = err != nil; !refused {
				m.proposed(p)
			}
		}
	}
}

// repeatAfter is how long a request that may be repeated goes unanswered before it
// is proposed again.
const repeatAfter = 500 * time.Millisecond

// admit refuses what must not enter the log.
func (m *Member) admit(p *proposal.Pending) error {
	select {
	case <-m.stop:
		return rpctypes.ErrGRPCStopped
	case <-m.failed:
		return rpctypes.ErrGRPCStopped
	default:
	}
	if p.V2 != nil {
		if len(p.Data) > maxV2Request {
			return rpctypes.ErrGRPCRequestTooLarge
		}
		if (m.diskFull.Load() || m.storeFull.Load()) && p.V2.Method != v2Sync {
			return rpctypes.ErrGRPCNoSpace
		}
	} else if len(p.Data) > m.cfg.MaxRequestBytes {
		return rpctypes.ErrGRPCRequestTooLarge
	}
	gap := uint64(maxApplyGap)
	if m.cfg.PriorityRequests && p.Req != nil && p.Req.LeaseRevoke != nil {
		gap *= 2
	}
	if m.commit.Load() > m.mach().Applied()+gap {
		return ErrTooManyRequests
	}
	if p.Req == nil {
		return nil
	}
	cost := apply.Cost(p.Req)
	if cost == 0 {
		return nil
	}
	if m.diskFull.Load() || m.storeFull.Load() {
		return rpctypes.ErrGRPCNoSpace
	}
	if m.mach().OverQuota(cost) {
		m.raiseNoSpace()
		return rpctypes.ErrGRPCNoSpace
	}
	return nil
}

// raiseNoSpace proposes, once at a time, the alarm that this member's store has
// reached its quota.
func (m *Member) raiseNoSpace() {
	for _, a := range m.mach().Alarms() {
		if a.MemberID == m.id && a.Alarm == pb.AlarmType_NOSPACE {
			return
		}
	}
	if !m.alarmRaised.CompareAndSwap(false, true) {
		return
	}
	m.background(func() {
		defer m.alarmRaised.Store(false)
		_, err := m.propose(m.rootCtx, &pb.InternalRaftRequest{Alarm: &pb.AlarmRequest{
			MemberID: m.id, Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE}})
		if err != nil {
			m.lg.Warn("failed to raise the NOSPACE alarm; the next write tries again", zap.Error(err))
			return
		}
		m.lg.Warn("message exceeded backend quota; raising alarm", m.localID(), zap.Int64("quota-size-bytes", m.cfg.Quota),
			zap.String("quota-size", humanize.Bytes(uint64(m.cfg.Quota))), zap.String("way-out", "compact, defragment, then disarm the alarm"))
	})
}

// background runs f beside the requests and lets Stop wait for it. It is for
// work that ends when rootCtx does. It reports false, and does not run f, once the
// member stops.
func (m *Member) background(f func()) bool {
	m.bgMu.Lock()
	defer m.bgMu.Unlock()
	if m.rootCtx.Err() != nil {
		return false
	}
	m.wg.Add(1)
	go crash.Guarded(func() { defer m.wg.Done(); f() })()
	return true
}

// readOnly reports whether a transaction can be answered without the log: it
// holds only ranges. A nested transaction counts as a write, as in etcd.
func readOnly(r *pb.TxnRequest) bool {
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			if _, ok := op.Request.(*pb.RequestOp_RequestRange); !ok {
				return false
			}
		}
	}
	return true
}

// ended reports whether err says that a request was given up, not refused.
func ended(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

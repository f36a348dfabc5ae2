package server

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"quorate/internal/apply"
	"quorate/internal/command"
	"quorate/internal/metrics"
	"quorate/internal/proposal"
)

// proposer brings requests into the log and waits for what comes of them.
type proposer struct {
	cfg       *Config
	lg        *zap.Logger
	life      *life
	raftState *raftState
	stored    *stored
	disks     *disks
	Access    *Access
	driver    *driver
	slow      *slowLog

	ids         *proposal.IDs
	props       *proposal.Table
	alarmRaised atomic.Bool // a NOSPACE alarm is being proposed
}

// write proposes a client request whose encoded form is raw; if that is missing
// it is made.
func write[R any](ctx context.Context, p *proposer, k command.Kind, req *pb.InternalRaftRequest, raw []byte, msg proto.Message) (*R, error) {
	if raw == nil {
		var err error
		if raw, err = proto.Marshal(msg); err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
	}
	id := p.ids.Next()
	who, err := p.Access.caller(ctx)
	if err != nil {
		return nil, err
	}
	req.Header = &pb.RequestHeader{ID: id, Username: who.User, AuthRevision: who.Rev}
	res, err := p.submit(ctx, &proposal.Pending{ID: id, Req: req, Data: command.Encode(req.Header, k, raw)})
	if err != nil {
		return nil, err
	}
	return any(res.Resp).(*R), nil
}

// propose numbers, encodes and submits any other request, in the name of the
// caller.
func (p *proposer) propose(ctx context.Context, req *pb.InternalRaftRequest) (proposal.Result, error) {
	return p.proposeAs(ctx, req, false)
}

// proposeAgain is propose for a request that may as well be applied twice. It is given to raft
// again while nobody answers: a member that joins loses what it has said first, on a connection
// that is made anew, or with an entry that reaches it inside a snapshot.
func (p *proposer) proposeAgain(ctx context.Context, req *pb.InternalRaftRequest) (proposal.Result, error) {
	return p.proposeAs(ctx, req, true)
}

func (p *proposer) proposeAs(ctx context.Context, req *pb.InternalRaftRequest, repeat bool) (proposal.Result, error) {
	req.Header = &pb.RequestHeader{ID: p.ids.Next()}
	if req.Authenticate == nil {
		who, err := p.Access.caller(ctx)
		if err != nil {
			return proposal.Result{}, err
		}
		req.Header.Username, req.Header.AuthRevision = who.User, who.Rev
	}
	data, err := command.EncodeRequest(req)
	if err != nil {
		return proposal.Result{}, err
	}
	return p.submit(ctx, &proposal.Pending{ID: req.Header.ID, Req: req, Data: data, Repeat: repeat})
}

// submit admits a request, hands it to the core and waits for its outcome.
func (m *proposer) submit(ctx context.Context, p *proposal.Pending) (res proposal.Result, err error) {
	if err := m.admit(p); err != nil {
		return proposal.Result{}, err
	}
	if err := m.props.Admit(p, m.cfg.Clock.Now(), m.cfg.requestTimeout()); errors.Is(err, proposal.ErrTooMany) {
		return proposal.Result{}, ErrTooManyRequests
	} else if err != nil {
		return proposal.Result{}, err
	}
	m.driver.proposed(p)
	if p.Req != nil {
		// What was proposed counts as a success there, whatever came of it.
		defer func() {
			end := m.cfg.Clock.Now()
			observeRequest(command.Op(p.Req), true, end.Sub(p.Start))
			if end.Sub(p.Start) > traceThreshold {
				m.slow.proposalTook(p, res, end)
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
				m.driver.proposed(p)
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
				m.driver.proposed(p)
			}
		}
	}
}

// repeatAfter is how long a request that may be repeated goes unanswered before it
// is proposed again.
const repeatAfter = 500 * time.Millisecond

// admit refuses what must not enter the log.
func (m *proposer) admit(p *proposal.Pending) error {
	select {
	case <-m.life.stop:
		return rpctypes.ErrGRPCStopped
	case <-m.life.failed:
		return rpctypes.ErrGRPCStopped
	default:
	}
	if p.V2 != nil {
		if len(p.Data) > maxV2Request {
			return rpctypes.ErrGRPCRequestTooLarge
		}
		if (m.disks.diskFull.Load() || m.disks.storeFull.Load()) && p.V2.Method != v2Sync {
			return rpctypes.ErrGRPCNoSpace
		}
	} else if len(p.Data) > m.cfg.MaxRequestBytes {
		return rpctypes.ErrGRPCRequestTooLarge
	}
	gap := uint64(maxApplyGap)
	if m.cfg.PriorityRequests && p.Req != nil && p.Req.LeaseRevoke != nil {
		gap *= 2
	}
	if m.raftState.commit.Load() > m.stored.mach().Applied()+gap {
		return ErrTooManyRequests
	}
	if p.Req == nil {
		return nil
	}
	cost := apply.Cost(p.Req)
	if cost == 0 {
		return nil
	}
	if m.disks.diskFull.Load() || m.disks.storeFull.Load() {
		return rpctypes.ErrGRPCNoSpace
	}
	if m.stored.mach().OverQuota(cost) {
		m.raiseNoSpace()
		return rpctypes.ErrGRPCNoSpace
	}
	return nil
}

// raiseNoSpace proposes, once at a time, the alarm that this member's store has
// reached its quota.
func (p *proposer) raiseNoSpace() {
	for _, a := range p.stored.mach().Alarms() {
		if a.MemberID == p.raftState.id && a.Alarm == pb.AlarmType_NOSPACE {
			return
		}
	}
	if !p.alarmRaised.CompareAndSwap(false, true) {
		return
	}
	p.life.background(func() {
		defer p.alarmRaised.Store(false)
		_, err := p.propose(p.life.rootCtx, &pb.InternalRaftRequest{Alarm: &pb.AlarmRequest{
			MemberID: p.raftState.id, Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE}})
		if err != nil {
			p.lg.Warn("failed to raise the NOSPACE alarm; the next write tries again", zap.Error(err))
			return
		}
		p.lg.Warn("message exceeded backend quota; raising alarm", p.raftState.localID(), zap.Int64("quota-size-bytes", p.cfg.Quota),
			zap.String("quota-size", humanize.Bytes(uint64(p.cfg.Quota))), zap.Error(errNoSpace), zap.String("way-out", "compact, defragment, then disarm the alarm"))
	})
}

// errNoSpace is etcd's reason in the log.
var errNoSpace = errors.New("etcdserver: no space")

// ended reports whether err says that a request was given up, not refused.
func ended(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

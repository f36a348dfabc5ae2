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
	"quorate/internal/clock"
	"quorate/internal/command"
	"quorate/internal/ids"
	"quorate/internal/metrics"
	"quorate/internal/proposal"
)

// proposer proposes requests and waits for their outcome.
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

// write proposes a client request whose encoded form is raw; if raw is nil, write encodes
// the request.
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

// propose numbers, encodes and submits any other request, on behalf of the caller.
func (s *proposer) propose(ctx context.Context, req *pb.InternalRaftRequest) (proposal.Result, error) {
	return s.proposeAs(ctx, req, 0, false)
}

// proposeAgain is propose for an idempotent request. It proposes the request again while
// there is no answer: a joining member's first requests can be lost, on a connection that
// is replaced, or with an entry that reaches it inside a snapshot.
func (s *proposer) proposeAgain(ctx context.Context, req *pb.InternalRaftRequest) (proposal.Result, error) {
	return s.proposeAs(ctx, req, 0, true)
}

// proposeIn is propose for what this member has decided as the leader of a term. It fails
// with proposal.ErrNotLeading if the member does not lead in that term any more.
func (s *proposer) proposeIn(ctx context.Context, term ids.Term, req *pb.InternalRaftRequest) (proposal.Result, error) {
	return s.proposeAs(ctx, req, term, false)
}

func (s *proposer) proposeAs(ctx context.Context, req *pb.InternalRaftRequest, term ids.Term, repeat bool) (proposal.Result, error) {
	p, err := s.pendingOf(ctx, req, term)
	if err != nil {
		return proposal.Result{}, err
	}
	p.Repeat = repeat
	return s.submit(ctx, p)
}

// pendingOf numbers and encodes a request, on behalf of the caller.
func (s *proposer) pendingOf(ctx context.Context, req *pb.InternalRaftRequest, term ids.Term) (*proposal.Pending, error) {
	req.Header = &pb.RequestHeader{ID: s.ids.Next()}
	if req.Authenticate == nil {
		who, err := s.Access.caller(ctx)
		if err != nil {
			return nil, err
		}
		req.Header.Username, req.Header.AuthRevision = who.User, who.Rev
	}
	data, err := command.EncodeRequest(req)
	if err != nil {
		return nil, err
	}
	return &proposal.Pending{ID: req.Header.ID, Req: req, Data: data, Term: term}, nil
}

// submit admits a request, passes it to the core and waits for its outcome.
func (s *proposer) submit(ctx context.Context, p *proposal.Pending) (proposal.Result, error) {
	if err := s.hand(p); err != nil {
		return proposal.Result{}, err
	}
	return s.await(ctx, p)
}

// hand admits a request and passes it to the core. The log gets requests in the order of the
// calls, those that it gets.
func (s *proposer) hand(p *proposal.Pending) error {
	if err := s.admit(p); err != nil {
		return err
	}
	if err := s.props.Admit(p, s.cfg.Clock.Now(), s.cfg.requestTimeout()); errors.Is(err, proposal.ErrTooMany) {
		return ErrTooManyRequests
	} else if err != nil {
		return err
	}
	s.driver.proposed(p)
	return nil
}

// await waits for the outcome of a request that the core has.
func (s *proposer) await(ctx context.Context, p *proposal.Pending) (res proposal.Result, err error) {
	if p.Req != nil {
		// In that metric, every proposed request counts as a success, whatever its outcome.
		defer func() {
			end := s.cfg.Clock.Now()
			observeRequest(command.Op(p.Req), true, end.Sub(p.Start))
			if end.Sub(p.Start) > traceThreshold {
				s.slow.proposalTook(p, res, end)
			}
		}()
	}
	var again <-chan time.Time
	if p.Repeat {
		// A leader of etcd that has yet to apply the previous membership change replaces this
		// one with an empty entry, and a leader of Quorate may reject it; neither is reported
		// to this member.
		t := clock.NewTicker(s.cfg.Clock, repeatAfter)
		defer t.Stop()
		again = t.C
	}
	refused := false
	for {
		select {
		case res = <-p.Done():
			return res, res.Err
		case <-ctx.Done():
			s.props.Forget(p.ID)
			metrics.ServerProposalsFailedTotal.Inc()
			return proposal.Result{}, ctx.Err()
		case <-again:
			if p.Allowed == nil {
				s.driver.proposed(p)
				continue
			}
			// What was allowed once may not be any more: other changes may have been applied. An
			// earlier copy that is in flight has the time until the next turn.
			err := p.Allowed()
			if err != nil && refused {
				s.props.Forget(p.ID)
				metrics.ServerProposalsFailedTotal.Inc()
				return proposal.Result{}, err
			}
			if refused = err != nil; !refused {
				s.driver.proposed(p)
			}
		}
	}
}

// repeatAfter is how long a repeatable request goes unanswered before it is proposed again.
const repeatAfter = 500 * time.Millisecond

// admit rejects what must not enter the log.
func (s *proposer) admit(p *proposal.Pending) error {
	select {
	case <-s.life.stop:
		return rpctypes.ErrGRPCStopped
	case <-s.life.failed:
		return rpctypes.ErrGRPCStopped
	default:
	}
	if p.Foreign != nil {
		if len(p.Data) > p.Foreign.MaxBytes() {
			return rpctypes.ErrGRPCRequestTooLarge
		}
		if (s.disks.diskFull.Load() || s.disks.storeFull.Load()) && !p.Foreign.Frees() {
			return rpctypes.ErrGRPCNoSpace
		}
	} else if len(p.Data) > s.cfg.MaxRequestBytes {
		return rpctypes.ErrGRPCRequestTooLarge
	}
	gap := ids.Index(maxApplyGap)
	if s.cfg.PriorityRequests && p.Req != nil && p.Req.LeaseRevoke != nil {
		gap *= 2
	}
	if ids.Index(s.raftState.commit.Load()) > s.stored.mach().Applied()+gap {
		return ErrTooManyRequests
	}
	if p.Req == nil {
		return nil
	}
	cost := apply.Cost(p.Req)
	if cost == 0 {
		return nil
	}
	if s.disks.diskFull.Load() || s.disks.storeFull.Load() {
		return rpctypes.ErrGRPCNoSpace
	}
	if s.stored.mach().OverQuota(cost) {
		s.raiseNoSpace()
		return rpctypes.ErrGRPCNoSpace
	}
	return nil
}

// raiseNoSpace proposes the alarm that this member's store has reached its quota, once at
// a time.
func (s *proposer) raiseNoSpace() {
	for _, a := range s.stored.mach().Alarms() {
		if ids.Member(a.MemberID) == s.raftState.id && a.Alarm == pb.AlarmType_NOSPACE {
			return
		}
	}
	if !s.alarmRaised.CompareAndSwap(false, true) {
		return
	}
	s.life.background(func() {
		defer s.alarmRaised.Store(false)
		_, err := s.propose(s.life.rootCtx, &pb.InternalRaftRequest{Alarm: &pb.AlarmRequest{
			MemberID: uint64(s.raftState.id), Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE}})
		if err != nil {
			s.lg.Warn("failed to raise the NOSPACE alarm; the next write tries again", zap.Error(err))
			return
		}
		s.lg.Warn("message exceeded backend quota; raising alarm", s.raftState.localID(), zap.Int64("quota-size-bytes", s.cfg.State.Quota),
			zap.String("quota-size", humanize.Bytes(uint64(s.cfg.State.Quota))), zap.Error(errNoSpace), zap.String("way-out", "compact, defragment, then disarm the alarm"))
	})
}

// errNoSpace is etcd's error in the log line.
var errNoSpace = errors.New("etcdserver: no space")

// ended reports whether err means that a request was abandoned, not rejected.
func ended(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

package server

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"quorate/internal/ids"
	"quorate/internal/metrics"
	"quorate/internal/readindex"
	"quorate/internal/replica"
)

// reader makes reads wait until they see every write acknowledged before they began.
type reader struct {
	cfg       *Config
	life      *life
	raftState *raftState
	stored    *stored
	driver    *driver

	reads *readindex.Batcher
	alone *solo
}

// barrier waits until a read here sees every write that was acknowledged before it
// began.
func (r *reader) barrier(ctx context.Context) error {
	select {
	case <-r.life.stop:
		return rpctypes.ErrGRPCStopped
	case <-r.life.failed:
		return rpctypes.ErrGRPCStopped
	default:
	}
	if r.alone.proved() {
		return nil
	}
	err := r.round(ctx)
	if err == nil {
		r.alone.prove(ctx, r.driver.raftStatus, r.round)
	}
	return err
}

// round waits for a round of the core.
func (r *reader) round(ctx context.Context) error {
	round, first := r.reads.Join()
	if first {
		r.driver.event(func(in *replica.Input) { in.ReadWanted = true })
	}
	select {
	case <-round.Done():
		if err := round.Err(); err != nil {
			if first && !errors.Is(err, errReadTimeout) { // count a round once; late ones count as slow
				metrics.ServerReadIndexesFailedTotal.Inc()
			}
			return err
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-r.life.failed: // what the round waits for may never be applied here
		return rpctypes.ErrGRPCStopped
	}
}

// sureToLead confirms leadership with a quorum if this member's ticks have stalled for
// so long that another member may lead by now.
func (r *reader) sureToLead(ctx context.Context) error {
	if !r.stalled() {
		return nil
	}
	return r.barrier(ctx)
}

// stalled reports whether the ticks have stalled for that long.
func (r *reader) stalled() bool {
	last := time.Unix(0, r.raftState.lastTick.Load())
	return r.cfg.Clock.Now().Sub(last) >= 3*r.cfg.Tick
}

func (r *reader) waitApplied(ctx context.Context) error {
	for target := ids.Index(r.raftState.commit.Load()); r.stored.mach().Applied() < target; {
		if err := r.life.pause(ctx, applyPoll); err != nil {
			return err
		}
	}
	return nil
}

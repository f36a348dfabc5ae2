package server

import (
	"context"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/internal/auth"
	"quorate/internal/mvcc"
)

// list is an answer to a range request that is read while it is sent. The measured times do
// not include sending.
type list struct {
	*mvcc.List
	k        *KV
	ctx      context.Context
	req      *pb.RangeRequest
	who      auth.Info
	messages bool // each message counts as a range of its own in the metrics

	began, read, ready time.Time // start of the request, of the read, and of sending
	begun              bool
	err                error
}

// openList opens a list.
func openList(l *list, f func(*mvcc.Store) (*mvcc.List, error)) (mvcc.Reading, error) {
	if err := l.open(f); err != nil {
		return nil, err
	}
	return l, nil
}

// open reads the start of the list. If it fails, the list must not be used or closed.
func (l *list) open(f func(*mvcc.Store) (*mvcc.List, error)) error {
	k, now := l.k, l.k.cfg.Clock.Now
	l.began = now()
	l.read = l.began
	if !l.req.Serializable {
		if err := k.replica.barrier(l.ctx); err != nil {
			l.refused()
			return err
		}
		l.read = now()
	}
	var err error
	if l.who, err = k.Access.mayRange(l.ctx, l.req); err != nil {
		l.refused()
		return err
	}
	if l.List, err = f(k.replica.kv()); err == nil {
		// The state to read is fixed: later changes do not affect this read.
		if err = k.Access.unchanged(l.who); err != nil {
			l.List.Close()
		}
	}
	l.ready = now()
	if err != nil {
		l.note(nil, err, l.ready)
	}
	return err
}

// refused records a request of which nothing was read.
func (l *list) refused() {
	if !l.messages {
		observeRequest(requestRange, false, l.k.cfg.Clock.Now().Sub(l.began))
	}
}

// Next reads the next elements.
func (l *list) Next() (elems []byte, last bool, err error) {
	if err := l.ctx.Err(); err != nil {
		return nil, false, err
	}
	before := l.Took()
	elems, last, err = l.List.Next()
	if l.messages {
		took := l.Took() - before
		if !l.begun {
			took += l.ready.Sub(l.read)
		}
		observeRange(err == nil, took)
		if err == nil {
			err = l.k.Access.unchanged(l.who)
		}
	}
	l.begun, l.err = true, err
	return elems, last, err
}

// Close ends the list and records its metrics.
func (l *list) Close() {
	l.List.Close()
	if !l.messages {
		l.note(&l.Listed, l.err, l.ready.Add(l.Took()))
	}
}

// note records the metrics of a read.
func (l *list) note(got *mvcc.Listed, err error, end time.Time) {
	observeRange(err == nil, end.Sub(l.read))
	if l.messages {
		return
	}
	took := end.Sub(l.began)
	observeRequest(requestRange, err == nil, took)
	if took > traceThreshold || l.k.slow.isSlow(took) {
		l.k.slow.rangeTook(l.req, got, err, l.began, l.read, end)
	}
}

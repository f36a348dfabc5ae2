package server

import (
	"context"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/internal/auth"
	"quorate/internal/mvcc"
)

// list is an answer to a range request that is read while it is sent. Sending it is
// no part of the times that are measured.
type list struct {
	*mvcc.List
	k        *KV
	ctx      context.Context
	req      *pb.RangeRequest
	who      auth.Info
	messages bool // each is a range of its own in the series

	began, read, ready time.Time // the request, reading, and sending
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

// open reads the beginning of the list, which must not be used or closed if that
// fails.
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
		// The state to be read is chosen: what changes from now on concerns others.
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

// refused notes a request of which nothing was read.
func (l *list) refused() {
	if !l.messages {
		observeRequest(requestRange, false, l.k.cfg.Clock.Now().Sub(l.began))
	}
}

// Next reads on.
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

// Close ends the list and notes what it has taken.
func (l *list) Close() {
	l.List.Close()
	if !l.messages {
		l.note(&l.Listed, l.err, l.ready.Add(l.Took()))
	}
}

// note notes what reading has taken.
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

package transport

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/clock"
	"quorate/internal/crash"
	"quorate/internal/transport/peerapi"
)

// pipelineTimeout cancels a POST to a peer that accepts the request but
// does not answer, so that it cannot block the workers forever.
const pipelineTimeout = 30 * time.Second

// pipeline sends messages one by one with POST /raft, while there is no stream.
// Workers run only while there are messages to send.
type pipeline struct {
	p *peer

	mu      sync.Mutex
	msgs    []*raftpb.Message // at most pipelineQueue
	workers int               // at most pipelineWorkers
	closed  bool
}

// push returns false if the queue is full or the peer is stopped.
func (pl *pipeline) push(m *raftpb.Message) bool {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	if pl.closed || len(pl.msgs) >= pipelineQueue {
		return false
	}
	pl.msgs = append(pl.msgs, m)
	if pl.workers < pipelineWorkers {
		pl.workers++
		pl.p.wg.Go(crash.Guarded(pl.work))
	}
	return true
}

func (pl *pipeline) close() {
	pl.mu.Lock()
	left := pl.msgs
	pl.closed, pl.msgs = true, nil
	pl.mu.Unlock()
	for _, m := range left {
		pl.p.unsent(m)
	}
}

// pop returns the next message. If there is none, it decrements the number of
// workers and returns nil.
func (pl *pipeline) pop() *raftpb.Message {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	if len(pl.msgs) == 0 {
		pl.workers--
		return nil
	}
	m := pl.msgs[0]
	pl.msgs[0] = nil
	pl.msgs = pl.msgs[1:]
	return m
}

func (pl *pipeline) work() {
	for m := pl.pop(); m != nil; m = pl.pop() {
		pl.post(m)
	}
}

func (pl *pipeline) post(m *raftpb.Message) {
	p := pl.p
	began := clock.Now()
	body, err := appendMessage(nil, m)
	if err == nil {
		err = p.postMessage(body)
	}
	if err != nil {
		p.sendings.failed(1)
		if p.ctx.Err() == nil {
			p.status.deactivate("post message", err)
		}
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			p.unsent(m)
		} else {
			p.dropped(m)
		}
		return
	}
	p.status.activate()
	p.sendings.succeeded(1, clock.Since(began))
	p.sentBytes.Add(float64(len(body)))
	if m.GetType() == raftpb.MsgSnap {
		p.t.reports.snapshot(p.id, true)
	}
}

// postMessage sends one message to the peer's current URL.
func (p *peer) postMessage(body []byte) error {
	u, err := p.urls.pick()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(p.ctx, pipelineTimeout)
	defer cancel()
	req, err := p.t.self.PostMessage(ctx, u, bytes.NewReader(body))
	if err == nil {
		err = p.post(req, nil)
	}
	if err != nil {
		p.urls.failed(u)
	}
	return err
}

// post sends one request and checks the response. onAnswer, unless nil, is
// called when the response's header has arrived.
func (p *peer) post(req *http.Request, onAnswer func(*http.Response)) error {
	resp, err := p.t.requests.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if onAnswer != nil {
		onAnswer(resp)
	}
	err = peerapi.PostAnswer(resp)
	switch {
	case err == nil:
	case errors.Is(err, peerapi.ErrRemoved):
		p.t.cfg.Host.SelfRemoved(err)
	default:
		p.lg.Debug("peer refused a request", zap.Stringer("url", req.URL), zap.Error(err))
	}
	return err
}

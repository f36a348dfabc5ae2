package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/clock"
	"quorate/internal/crash"
)

// pipelineTimeout ends a POST to a peer that takes the request and does not
// answer, so that it cannot hold the workers for good.
const pipelineTimeout = 30 * time.Second

// pipeline sends messages one by one with POST /raft, while there is no stream.
// Workers exist as long as there is something to send.
type pipeline struct {
	p *peer

	mu      sync.Mutex
	msgs    []*raftpb.Message // at most pipelineQueue
	workers int               // at most pipelineWorkers
	closed  bool
}

// push reports false if the queue is full or the peer is stopped.
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

// pop returns the next message, or nil after taking the worker off the count.
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
		err = p.post(pathRaft, "application/protobuf", body)
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

// post sends one request to the peer's current URL.
func (p *peer) post(path, contentType string, body []byte) error {
	u, err := p.urls.pick()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(p.ctx, pipelineTimeout)
	defer cancel()
	err = p.postURL(ctx, u+path, contentType, bytes.NewReader(body), nil)
	if err != nil {
		p.urls.failed(u)
	}
	return err
}

// postURL sends one request and checks the answer. onAnswer, if any, is called
// when the answer's header has come.
func (p *peer) postURL(ctx context.Context, url, contentType string, body io.Reader, onAnswer func(*http.Response)) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, body)
	if err != nil {
		return fmt.Errorf("post to %s: %w", url, err)
	}
	p.t.setHeaders(req.Header)
	req.Header.Set("Content-Type", contentType)
	resp, err := p.t.requests.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if onAnswer != nil {
		onAnswer(resp)
	}
	switch resp.StatusCode {
	case http.StatusNoContent:
		return nil
	case http.StatusForbidden:
		p.t.cfg.Host.SelfRemoved(ErrRemoved)
		return ErrRemoved
	}
	err = statusError(resp)
	p.lg.Debug("peer refused a request", zap.String("url", url), zap.Error(err))
	return err
}

package transport

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/crash"
	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/metrics"
	"quorate/internal/transport/peerapi"
)

// streamLabel is the name of a stream in log messages.
func streamLabel(k peerapi.Stream) string {
	if k == peerapi.StreamMsgApp {
		return "stream MsgApp v2"
	}
	return "stream Message"
}

func newEncoder(k peerapi.Stream) encoder {
	if k == peerapi.StreamMsgApp {
		return &appEncoder{}
	}
	return plainEncoder{}
}

// peer is another member. A peer of the membership has streams in both
// directions; a remote has only requests.
type peer struct {
	t      *Transport
	id     ids.Member
	name   string // the id as text
	lg     *zap.Logger
	status *status
	urls   urlPicker
	// version is the release that the peer last reported, nil before the first
	// report.
	version atomic.Pointer[membership.Version]

	ctx    context.Context // canceled by stop
	cancel context.CancelFunc
	wg     sync.WaitGroup

	// links are the streams that the peer has opened to this member, by kind;
	// nil while there is none.
	links [2]atomic.Pointer[link]
	// mu serializes attach and stop.
	mu      sync.Mutex
	stopped bool

	pipeline pipeline
	sendings sendings

	sentBytes, sentFailures, receivedBytes, receivedFailures prometheus.Counter
}

// startPeer starts the goroutines of a peer; streams is false for a remote.
func (t *Transport) startPeer(id ids.Member, urls []string, streams bool) *peer {
	name := id.String()
	p := &peer{
		t: t, id: id, name: name,
		lg:               t.lg.With(zap.String("remote-peer-id", name)),
		status:           newStatus(t.lg, t.cfg.ID, id, t.cfg.Name),
		sentBytes:        metrics.NetworkPeerSentBytesTotal.WithLabelValues(name),
		sentFailures:     metrics.NetworkPeerSentFailuresTotal.WithLabelValues(name),
		receivedBytes:    metrics.NetworkPeerReceivedBytesTotal.WithLabelValues(name),
		receivedFailures: metrics.NetworkPeerReceivedFailuresTotal.WithLabelValues(name),
	}
	t.lg.Info("starting remote peer", zap.String("remote-peer-id", name))
	p.pipeline.p = p
	p.ctx, p.cancel = context.WithCancel(t.ctx)
	p.setURLs(urls)
	if streams {
		p.wg.Go(crash.Guarded(func() { p.readStream(peerapi.StreamMsgApp) }))
		p.wg.Go(crash.Guarded(func() { p.readStream(peerapi.StreamMessage) }))
		p.wg.Go(func() { p.probe("ROUND_TRIPPER_RAFT_MESSAGE", t.streams) })
		p.wg.Go(func() { p.probe("ROUND_TRIPPER_SNAPSHOT", t.requests) })
	}
	t.lg.Info("started remote peer", zap.String("remote-peer-id", name))
	return p
}

func (p *peer) setURLs(urls []string) {
	if err := p.urls.set(urls); err != nil {
		p.lg.Warn("peer has unusable URLs", zap.Strings("urls", urls), zap.Error(err))
	}
}

// send queues m on a stream, or on the pipeline if there is none.
func (p *peer) send(m *raftpb.Message) {
	first := peerapi.StreamMessage
	switch m.GetType() {
	case raftpb.MsgSnap:
		// Never on a stream: it may be large and would delay other messages.
		p.sendByPost(m)
		return
	case raftpb.MsgApp:
		first = peerapi.StreamMsgApp
	}
	for k := first; k <= peerapi.StreamMessage; k++ {
		l := p.links[k].Load()
		if l == nil {
			continue
		}
		switch l.q.push(m) {
		case pushed:
			return
		case pushFull:
			p.unsent(m)
			return
		}
	}
	p.sendByPost(m)
}

func (p *peer) sendByPost(m *raftpb.Message) {
	if !p.pipeline.push(m) {
		p.unsent(m)
	}
}

// unsent records a message of which nothing was or will be sent.
func (p *peer) unsent(m *raftpb.Message) {
	p.dropped(m)
	if m.GetType() == raftpb.MsgProp {
		p.t.reports.proposal(m)
	}
}

// dropped records a message that the peer has not received, or may not have
// received.
func (p *peer) dropped(m *raftpb.Message) {
	p.sentFailures.Inc()
	p.t.reports.drop(p.id, 1)
	if m.GetType() == raftpb.MsgSnap {
		p.t.reports.snapshot(p.id, false)
	}
}

// called is the log field with the name of the peer, if it is known.
func (p *peer) called() zap.Field { return nameField(p.t.cfg.Name, p.id) }

func nameField(name func(id ids.Member) string, id ids.Member) zap.Field {
	if name == nil {
		return zap.Skip()
	}
	if n := name(id); n != "" {
		return zap.String("remote-peer-name", n)
	}
	return zap.Skip()
}

func (p *peer) isStopped() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stopped
}

// attach makes l the stream of its kind to the peer and closes the previous
// one. It returns false if the peer is stopped.
func (p *peer) attach(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return false
	}
	if old := p.links[l.kind].Swap(l); old != nil {
		old.close()
	}
	p.wg.Go(crash.Guarded(l.run))
	return true
}

// stop closes the connections and waits for the goroutines.
func (p *peer) stop() {
	p.t.lg.Info("stopping remote peer", zap.String("remote-peer-id", p.name))
	defer p.t.lg.Info("stopped remote peer", zap.String("remote-peer-id", p.name))
	p.mu.Lock()
	p.stopped = true
	p.mu.Unlock()
	for k := range p.links {
		if l := p.links[k].Load(); l != nil {
			l.last.Store(true)
			l.close()
		}
	}
	p.pipeline.close()
	p.cancel()
	p.wg.Wait()
	p.status.forget()
}

// intake passes the messages of one stream to the Host. Those that arrived together are
// one step of the raft loop: what they have to write shares a sync, and what they cause to be
// sent a message.
type intake struct {
	p      *peer
	queued bool
	urgent bool // there are others than proposals
}

func (in *intake) add(m *raftpb.Message) {
	if err := in.p.t.deliver(m); err != nil {
		in.p.receivedFailures.Inc()
		in.p.t.warn(in.p.lg, "failed to process Raft message", zap.Stringer("message-type", m.GetType()), zap.Error(err))
		return
	}
	in.queued, in.urgent = true, in.urgent || m.GetType() != raftpb.MsgProp
}

func (in *intake) step() {
	if in.queued {
		in.p.t.cfg.Host.Step(!in.urgent)
		in.queued, in.urgent = false, false
	}
}

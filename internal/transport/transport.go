package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"quorate/internal/crash"
	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/transport/peerapi"
)

// Host is the member that uses a Transport. Its methods are called
// concurrently and must not wait for a method of the Transport.
type Host interface {
	// Process queues a peer's message for the raft loop; a call of Step follows. It must
	// return soon: until then, nothing more is read from that peer. If it returns an error,
	// the message is dropped; raft will resend it. The message is decoded and addressed to
	// this member, but not validated.
	Process(m *raftpb.Message) error
	// Step passes on what Process has queued: several messages that arrived together.
	// proposals means that they are all proposals, which need not be passed on at once.
	Step(proposals bool)
	// ReportUnreachable reports that messages to a peer were dropped.
	ReportUnreachable(id ids.Member)
	// Returned returns a proposal of which nothing has left this member, and
	// nothing will: the Host may propose it again without duplicating it.
	Returned(m *raftpb.Message)
	// ReportSnapshot reports whether a snapshot was sent to a peer.
	ReportSnapshot(id ids.Member, ok bool)
	// IsRemoved reports whether the member was removed from the cluster.
	IsRemoved(id ids.Member) bool
	// ReceiveSnapshot stores the database read from body durably, and then passes m, a MsgSnap, to the
	// raft loop; an error of the second step, or about m itself, wraps ErrSnapshotNotProcessed. Reading a
	// truncated body fails. ctx is canceled when the transport stops.
	ReceiveSnapshot(ctx context.Context, m *raftpb.Message, body io.Reader) error
	// SelfRemoved reports that, according to a peer, this member was removed
	// from the cluster. The member should stop, but not wait for Stop in the
	// call.
	SelfRemoved(err error)
}

// ErrSnapshotNotProcessed marks an error of ReceiveSnapshot after the database
// was stored.
var ErrSnapshotNotProcessed = errors.New("failed to process raft message")

// Config configures a Transport.
type Config struct {
	ID          ids.Member
	ClusterID   ids.Cluster
	PeerURLs    []string // of this member, sent to peers
	Host        Host
	Logger      *zap.Logger                // nil disables logging
	Name        func(id ids.Member) string // name of a member, "" if unknown; may be nil
	DialTimeout time.Duration              // of a connection; 0 means 2 s
	LocalIP     net.IP                     // local address of connections to peers; nil lets the system choose
	// ReadTimeout and WriteTimeout are how long a stream may be silent, or accept
	// no bytes, before it is closed; values below 5 s, which the protocol needs,
	// mean 5 s.
	ReadTimeout, WriteTimeout time.Duration
	TLS                       TLSSource // for connections to https peers; nil means Go's default
	Version                   string    // of this server, such as 3.7.3
	Stats                     bool      // count messages with entries, see Stats
}

// Protocol constants, which must be equal on all members, and bounds.
const (
	readTimeout     = 5 * time.Second // a stream that is silent for longer is closed
	writeTimeout    = 5 * time.Second
	heartbeatPeriod = readTimeout / 3
	dialRetry       = 100 * time.Millisecond // interval between dials of one stream
	probePeriod     = readTimeout - time.Second
	streamQueue     = 4096 // messages waiting for one stream
	proposalQueue   = 4096 // proposals to return
	pipelineQueue   = 64   // messages waiting for POST
	pipelineWorkers = 4
	// maxRemotes bounds the members that are known only from their own
	// requests.
	maxRemotes = 128
)

// Transport connects one member to its peers. It is safe for concurrent use.
type Transport struct {
	cfg      Config
	self     peerapi.Sender
	lg       *zap.Logger
	reports  *reporter
	noise    *rate.Limiter // limits warnings that others can cause at any rate
	streams  *http.Client  // for GET of streams: a deadline on each read and write
	requests *http.Client  // for POST, with connection reuse
	stats    Stats

	ctx    context.Context // canceled by Stop
	cancel context.CancelFunc
	wg     sync.WaitGroup // every goroutine of the transport and its peers

	mu    sync.Mutex // serializes changes of table, and Stop
	table atomic.Pointer[peerTable]
}

// peerTable is immutable: Send reads it without a lock.
type peerTable struct {
	peers   map[ids.Member]*peer // the other members
	remotes map[ids.Member]*peer // members that are not known from the log (yet)
	stopped bool
}

func (pt *peerTable) clone() *peerTable {
	return &peerTable{peers: maps.Clone(pt.peers), remotes: maps.Clone(pt.remotes), stopped: pt.stopped}
}

// New returns a running Transport without peers. It fails if the version does
// not parse or the configuration is incomplete.
func New(cfg Config) (*Transport, error) {
	v, err := membership.ParseVersion(cfg.Version)
	if err != nil {
		return nil, fmt.Errorf("start transport: %w", err)
	}
	if cfg.Host == nil {
		return nil, errors.New("start transport: no host")
	}
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	if cfg.DialTimeout == 0 {
		cfg.DialTimeout = 2 * time.Second
	}
	cfg.ReadTimeout, cfg.WriteTimeout = max(cfg.ReadTimeout, readTimeout), max(cfg.WriteTimeout, writeTimeout)
	t := &Transport{
		cfg: cfg, self: peerapi.Sender{ID: cfg.ID, Cluster: cfg.ClusterID, Version: v, PeerURLs: cfg.PeerURLs},
		lg:       cfg.Logger.With(zap.Stringer("local-member-id", cfg.ID)),
		streams:  newStreamClient(cfg.TLS, dialer(cfg.DialTimeout, cfg.LocalIP), cfg.ReadTimeout, cfg.WriteTimeout),
		requests: newRequestClient(cfg.TLS, dialer(cfg.DialTimeout, cfg.LocalIP)),
	}
	t.noise = rate.NewLimiter(1, 20)
	t.reports = newReporter(t.lg, cfg.Host)
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.table.Store(&peerTable{peers: map[ids.Member]*peer{}, remotes: map[ids.Member]*peer{}})
	t.wg.Go(crash.Guarded(func() { t.reports.run(t.ctx.Done()) }))
	return t, nil
}

// Send queues messages for their receivers. It never blocks: a message whose
// queue is full is dropped, and its receiver reported as unreachable; a dropped
// proposal is returned to the Host. Messages to 0 and to unknown members are
// dropped silently. The caller must not modify the messages afterwards.
func (t *Transport) Send(msgs []*raftpb.Message) {
	table := t.table.Load()
	for _, m := range msgs {
		to := ids.Member(m.GetTo())
		if to == 0 {
			continue
		}
		p := table.peers[to]
		if p == nil {
			p = table.remotes[to]
		}
		if p == nil {
			t.lg.Debug("dropped a message to an unknown member",
				zap.Stringer("peer-id", to), zap.Stringer("type", m.GetType()))
			continue
		}
		t.count(&t.stats.Sent, m)
		p.send(m)
	}
}

// AddPeer starts communication with a member of the cluster. It does
// nothing for a known peer or this member itself.
func (t *Transport) AddPeer(id ids.Member, urls []string) {
	t.change(func(table *peerTable) (gone *peer) {
		if table.peers[id] != nil || id == t.cfg.ID {
			return nil
		}
		gone = table.remotes[id]
		delete(table.remotes, id)
		table.peers[id] = t.startPeer(id, urls, true)
		t.lg.Info("added remote peer", zap.Stringer("remote-peer-id", id), zap.Strings("remote-peer-urls", urls))
		return gone
	})
}

// AddRemote makes a member that is not a peer yet reachable by POST: one that a
// joining member knows from /members only, or one that has sent a request. At
// most 128 remotes are added; further ones are ignored.
func (t *Transport) AddRemote(id ids.Member, urls []string) {
	if table := t.table.Load(); table.peers[id] != nil || table.remotes[id] != nil {
		return // fast path of every POST
	}
	t.change(func(table *peerTable) *peer {
		if table.peers[id] != nil || table.remotes[id] != nil || id == t.cfg.ID || id == 0 || len(table.remotes) >= maxRemotes {
			return nil
		}
		table.remotes[id] = t.startPeer(id, urls, false)
		t.lg.Info("added new remote peer", zap.Stringer("remote-peer-id", id), zap.Strings("remote-peer-urls", urls))
		return nil
	})
}

// Version returns the release of a peer; known is false until the peer has
// reported it.
func (t *Transport) Version(id ids.Member) (v membership.Version, known bool) {
	if p := t.table.Load().peers[id]; p != nil {
		if v := p.version.Load(); v != nil {
			return *v, true
		}
	}
	return membership.Version{}, false
}

// UpdatePeer replaces the URLs of a peer.
func (t *Transport) UpdatePeer(id ids.Member, urls []string) {
	p := t.table.Load().peers[id]
	if p == nil {
		return
	}
	p.setURLs(urls)
	t.lg.Info("updated remote peer", zap.Stringer("updated-remote-peer-id", id), zap.Strings("updated-remote-peer-urls", urls))
}

// RemovePeer stops communication with a member. Nothing is sent to it after
// RemovePeer returns; a message that is being received may still reach the
// Host.
func (t *Transport) RemovePeer(id ids.Member) {
	t.change(func(table *peerTable) *peer {
		p := table.peers[id]
		delete(table.peers, id)
		if p == nil {
			p = table.remotes[id]
			delete(table.remotes, id)
		}
		if p != nil {
			t.lg.Info("removed remote peer", zap.Stringer("removed-remote-peer-id", id))
		}
		return p
	})
}

// change replaces the table by a copy modified by fn, and stops the peer that
// fn removed from it.
func (t *Transport) change(fn func(*peerTable) *peer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	table := t.table.Load().clone()
	if table.stopped {
		return
	}
	gone := fn(table)
	t.table.Store(table)
	if gone != nil {
		// Stop it on another goroutine: the Host may be waiting for the caller
		// while it processes a message of this peer.
		t.wg.Go(gone.stop)
	}
}

// ActiveSince returns since when a peer has been reachable without
// interruption, the zero time if it is not reachable or not a peer.
func (t *Transport) ActiveSince(id ids.Member) time.Time {
	p := t.table.Load().peers[id]
	if p == nil {
		return time.Time{}
	}
	return p.status.activeSince()
}

// ActivePeers returns how many peers are reachable.
func (t *Transport) ActivePeers() int {
	n := 0
	for _, p := range t.table.Load().peers {
		if !p.status.activeSince().IsZero() {
			n++
		}
	}
	return n
}

// Stop closes every connection, waits for the goroutines, and makes Send drop
// all messages. The Host's methods must not block forever meanwhile.
func (t *Transport) Stop() {
	t.mu.Lock()
	table := t.table.Load()
	t.table.Store(&peerTable{stopped: true})
	t.mu.Unlock()
	t.cancel()
	for _, ps := range []map[ids.Member]*peer{table.peers, table.remotes} {
		for _, p := range ps {
			p.stop()
		}
	}
	t.wg.Wait()
	t.streams.CloseIdleConnections()
	t.requests.CloseIdleConnections()
}

// warn logs an error of another member, rate limited to one line a second on
// average.
func (t *Transport) warn(lg *zap.Logger, text string, fields ...zap.Field) {
	if t.noise.Allow() {
		lg.Warn(text, fields...)
	}
}

// deliver validates sender and receiver of a message and passes it to the
// Host.
func (t *Transport) deliver(m *raftpb.Message) error {
	to, from := ids.Member(m.GetTo()), ids.Member(m.GetFrom())
	if to != t.cfg.ID {
		t.warn(t.lg, "rejected Raft message to mismatch member", zap.Stringer("mismatch-member-id", to))
		return fmt.Errorf("transport: message to member %s", to)
	}
	if t.cfg.Host.IsRemoved(from) {
		t.warn(t.lg, "rejected Raft message from removed member", zap.Stringer("removed-member-id", from))
		return fmt.Errorf("transport: message from removed member %s", from)
	}
	t.count(&t.stats.Received, m)
	return t.cfg.Host.Process(m)
}

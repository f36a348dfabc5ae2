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
	"quorate/internal/membership"
	"quorate/internal/transport/peerapi"
)

// Host is the member behind a Transport. Its methods are called from many
// goroutines and must not wait for a method of the Transport.
type Host interface {
	// Process hands a message of a peer to the raft loop. It must return soon:
	// while it does not, nothing more is read from that peer. A message that
	// cannot be taken is dropped with an error; raft will send it again. The message is
	// decoded and for this member; what it says may make no sense at all.
	Process(m *raftpb.Message) error
	// ReportUnreachable says that messages to a peer were dropped.
	ReportUnreachable(id uint64)
	// Returned gives back a proposal of which nothing has left this member, and
	// nothing will: it may be proposed again without being proposed twice.
	Returned(m *raftpb.Message)
	// ReportSnapshot says how sending a snapshot to a peer ended.
	ReportSnapshot(id uint64, ok bool)
	// IsRemoved reports whether the member was removed from the cluster.
	IsRemoved(id uint64) bool
	// ReceiveSnapshot stores the database that body streams, durably, and then
	// hands m, a MsgSnap, to the raft loop; an error of that second step wraps
	// ErrSnapshotNotProcessed, as does one about m itself. A body that was cut off fails to read. ctx ends
	// when the transport stops.
	ReceiveSnapshot(ctx context.Context, m *raftpb.Message, body io.Reader) error
	// SelfRemoved says that a peer answered that this member was removed from
	// the cluster. The member should stop, but not wait for Stop in the call.
	SelfRemoved(err error)
}

// ErrSnapshotNotProcessed marks an error of ReceiveSnapshot after the database
// was stored.
var ErrSnapshotNotProcessed = errors.New("failed to process raft message")

// Config is what a Transport needs to know.
type Config struct {
	ID, ClusterID uint64
	PeerURLs      []string // of this member, told to others
	Host          Host
	Logger        *zap.Logger            // nil logs nothing
	Name          func(id uint64) string // what a member is called, "" if not known; nil knows none
	DialTimeout   time.Duration          // of a connection; 0 is 2 s
	LocalIP       net.IP                 // address that connections to peers come from; nil lets the system choose
	// ReadTimeout and WriteTimeout are how long a stream may be silent, or take no
	// bytes, before it is dropped; below 5 s, which the protocol needs, means 5 s.
	ReadTimeout, WriteTimeout time.Duration
	TLS                       TLSSource // for connections to https peers; nil is Go's default
	Version                   string    // of this server, as in 3.7.3
	Stats                     bool      // count messages with entries, see Stats
}

// Protocol constants, equal on all members, and bounds.
const (
	readTimeout     = 5 * time.Second // a stream that is silent longer is dropped
	writeTimeout    = 5 * time.Second
	heartbeatPeriod = readTimeout / 3
	dialRetry       = 100 * time.Millisecond // between two dials of one stream
	probePeriod     = readTimeout - time.Second
	streamQueue     = 4096 // messages waiting for one stream
	proposalQueue   = 4096 // received proposals of one peer
	pipelineQueue   = 64   // messages waiting for POST
	pipelineWorkers = 4
	// maxRemotes bounds the senders that are known from their own word only.
	maxRemotes = 128
)

// Transport is the network of one member. All methods may be called from any
// goroutine.
type Transport struct {
	cfg      Config
	self     peerapi.Sender
	lg       *zap.Logger
	reports  *reporter
	noise    *rate.Limiter // of warnings that others can cause as often as they like
	streams  *http.Client  // for GET of streams: 5 s limit on each read and write
	requests *http.Client  // for POST, connections are kept
	stats    Stats

	ctx    context.Context // ends with Stop
	cancel context.CancelFunc
	wg     sync.WaitGroup // every goroutine of the transport and its peers

	mu    sync.Mutex // serialises changes of table, and Stop
	table atomic.Pointer[peerTable]
}

// peerTable is immutable: Send reads it without a lock.
type peerTable struct {
	peers   map[uint64]*peer // the other members
	remotes map[uint64]*peer // members that are not (yet) known from the log
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
		lg:       cfg.Logger.With(zap.String("local-member-id", membership.FormatID(cfg.ID))),
		streams:  newStreamClient(cfg.TLS, dialer(cfg.DialTimeout, cfg.LocalIP), cfg.ReadTimeout, cfg.WriteTimeout),
		requests: newRequestClient(cfg.TLS, dialer(cfg.DialTimeout, cfg.LocalIP)),
	}
	t.noise = rate.NewLimiter(1, 20)
	t.reports = newReporter(t.lg, cfg.Host)
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.table.Store(&peerTable{peers: map[uint64]*peer{}, remotes: map[uint64]*peer{}})
	t.wg.Go(crash.Guarded(func() { t.reports.run(t.ctx.Done()) }))
	return t, nil
}

// Send queues messages for their receivers. It never blocks: a message whose
// queue is full is dropped, and its receiver reported as unreachable; a dropped
// proposal goes back to the Host. Messages
// to 0 and to nobody we know are dropped silently. The messages must not be
// changed afterwards.
func (t *Transport) Send(msgs []*raftpb.Message) {
	table := t.table.Load()
	for _, m := range msgs {
		to := m.GetTo()
		if to == 0 {
			continue
		}
		p := table.peers[to]
		if p == nil {
			p = table.remotes[to]
		}
		if p == nil {
			t.lg.Debug("dropped a message to an unknown member",
				zap.String("peer-id", membership.FormatID(to)), zap.Stringer("type", m.GetType()))
			continue
		}
		t.count(&t.stats.Sent, m)
		p.send(m)
	}
}

// AddPeer starts to talk to a member of the cluster. It does nothing for a
// known peer and for this member itself.
func (t *Transport) AddPeer(id uint64, urls []string) {
	t.change(func(table *peerTable) (gone *peer) {
		if table.peers[id] != nil || id == t.cfg.ID {
			return nil
		}
		gone = table.remotes[id]
		delete(table.remotes, id)
		table.peers[id] = t.startPeer(id, urls, true)
		t.lg.Info("added remote peer", zap.String("remote-peer-id", membership.FormatID(id)), zap.Strings("remote-peer-urls", urls))
		return gone
	})
}

// AddRemote makes a member reachable by POST that is not a peer yet: one that a
// joining member knows from /members only, or one that has contacted us. Beyond
// 128 remotes, further ones are ignored.
func (t *Transport) AddRemote(id uint64, urls []string) {
	if table := t.table.Load(); table.peers[id] != nil || table.remotes[id] != nil {
		return // on the path of every POST
	}
	t.change(func(table *peerTable) *peer {
		if table.peers[id] != nil || table.remotes[id] != nil || id == t.cfg.ID || id == 0 || len(table.remotes) >= maxRemotes {
			return nil
		}
		table.remotes[id] = t.startPeer(id, urls, false)
		t.lg.Info("added new remote peer", zap.String("remote-peer-id", membership.FormatID(id)), zap.Strings("remote-peer-urls", urls))
		return nil
	})
}

// Version returns the release of a peer; known is false as long as it has not
// told it.
func (t *Transport) Version(id uint64) (v membership.Version, known bool) {
	if p := t.table.Load().peers[id]; p != nil {
		if v := p.version.Load(); v != nil {
			return *v, true
		}
	}
	return membership.Version{}, false
}

// UpdatePeer gives a peer new URLs.
func (t *Transport) UpdatePeer(id uint64, urls []string) {
	p := t.table.Load().peers[id]
	if p == nil {
		return
	}
	p.setURLs(urls)
	t.lg.Info("updated remote peer", zap.String("updated-remote-peer-id", membership.FormatID(id)), zap.Strings("updated-remote-peer-urls", urls))
}

// RemovePeer stops talking to a member. Nothing is sent to it from now on; a
// message that is just being received may still reach the Host.
func (t *Transport) RemovePeer(id uint64) {
	t.change(func(table *peerTable) *peer {
		p := table.peers[id]
		delete(table.peers, id)
		if p == nil {
			p = table.remotes[id]
			delete(table.remotes, id)
		}
		if p != nil {
			t.lg.Info("removed remote peer", zap.String("removed-remote-peer-id", membership.FormatID(id)))
		}
		return p
	})
}

// change replaces the table by what fn makes of a copy, and stops the peer that
// fn took out of it.
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
		// Not here: the caller may be what the Host waits for while it takes a
		// message of this peer.
		t.wg.Go(gone.stop)
	}
}

// ActiveSince returns since when a peer has been reachable without a break,
// zero if it is not reachable or not a peer.
func (t *Transport) ActiveSince(id uint64) time.Time {
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
// everything. The Host must still return from its methods.
func (t *Transport) Stop() {
	t.mu.Lock()
	table := t.table.Load()
	t.table.Store(&peerTable{stopped: true})
	t.mu.Unlock()
	t.cancel()
	for _, ps := range []map[uint64]*peer{table.peers, table.remotes} {
		for _, p := range ps {
			p.stop()
		}
	}
	t.wg.Wait()
	t.streams.CloseIdleConnections()
	t.requests.CloseIdleConnections()
}

// warn logs what another member did wrong, but no more than one line a second
// in the long run.
func (t *Transport) warn(lg *zap.Logger, text string, fields ...zap.Field) {
	if t.noise.Allow() {
		lg.Warn(text, fields...)
	}
}

// deliver gives a received message to the Host.
func (t *Transport) deliver(m *raftpb.Message) error {
	if m.GetTo() != t.cfg.ID {
		t.warn(t.lg, "rejected Raft message to mismatch member", zap.String("mismatch-member-id", membership.FormatID(m.GetTo())))
		return fmt.Errorf("transport: message to member %s", membership.FormatID(m.GetTo()))
	}
	if t.cfg.Host.IsRemoved(m.GetFrom()) {
		t.warn(t.lg, "rejected Raft message from removed member", zap.String("removed-member-id", membership.FormatID(m.GetFrom())))
		return fmt.Errorf("transport: message from removed member %s", membership.FormatID(m.GetFrom()))
	}
	t.count(&t.stats.Received, m)
	return t.cfg.Host.Process(m)
}

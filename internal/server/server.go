// Package server is one member: it wires consensus, log, state machine, watch
// and transport together and offers what the client edge calls.
//
// In: requests from rpc, messages from peers, time. Out: answers, messages,
// watch events. Always true: an acknowledged write is durable on a quorum and
// applied here; a linearizable read sees every write acknowledged before it; no
// stage waits for another except through a bounded queue, and each takes all
// that waits at once.
//
// Entry points are put.go, range.go, lease.go, auth.go, maintenance.go and cluster.go;
// run.go has every goroutine and drives the core of package replica.
package server

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"

	"quorate/internal/apply"
	"quorate/internal/auth"
	"quorate/internal/clock"
	"quorate/internal/datadir"
	"quorate/internal/lease"
	"quorate/internal/membership"
	"quorate/internal/mvcc"
	"quorate/internal/proposal"
	"quorate/internal/raftlog"
	"quorate/internal/raftnode"
	"quorate/internal/readindex"
	"quorate/internal/replica"
	"quorate/internal/transport"
	"quorate/internal/watch"
)

// Version is the level of etcd that the member speaks.
const Version = "3.7.3"

// storageVersion is the newest level of stored data that this server knows.
const storageVersion = "3.7.0"

// Limits on requests in flight. At the limit a request is refused with
// ErrTooManyRequests before it costs anything.
const (
	maxPending      = 20000
	maxPendingBytes = 128 << 20
	// maxApplyGap is how far apply may fall behind the commit index before new
	// proposals are refused, as in etcd.
	maxApplyGap = 5000
)

// ErrTooManyRequests reaches the client as code Unknown, as etcd sends it.
var ErrTooManyRequests = errors.New("etcdserver: too many requests")

// Config is one member's configuration, complete and valid.
type Config struct {
	Name         string
	DataDir      string // member/ is created in it
	LogDir       string // raft log; empty for DataDir/member/wal
	PeerURLs     []string
	ClientURLs   []string
	Initial      []membership.InitialMember
	InitialToken string
	ForceNew     bool // make a cluster of a member that has data and nobody else
	Existing     bool // join a running cluster instead of founding one
	// JoinPatience is how long a member that joins goes on asking when the cluster
	// does not list it yet. Zero asks once.
	JoinPatience time.Duration
	// ApplyBatch is the greatest number of log entries in one batch of the engine;
	// 0 is no limit but their size.
	ApplyBatch int
	// FlushInterval is how often the engine writes what it holds in memory to disk,
	// so that a restart has no more to replay; 0 leaves that to its memory's bound.
	FlushInterval time.Duration
	// DefragThreshold is how many bytes a compaction of the store at the start must
	// promise to free for it to begin; 0 is never.
	DefragThreshold int64
	// VersionInterval is how often a leader compares the members' versions; 0 is 4 s.
	VersionInterval time.Duration
	// LocalIP is the address that connections to peers come from, if it matters.
	LocalIP net.IP
	// PriorityRequests lets the revocation of leases pass the bound on entries that
	// wait to be applied, up to twice as many.
	PriorityRequests bool
	// PeerReadTimeout and PeerWriteTimeout are those of transport.Config.
	PeerReadTimeout, PeerWriteTimeout time.Duration
	Tick                              time.Duration
	ElectionTicks                     int
	InitialTickAdvance                bool
	PreVote                           bool
	SnapshotCount                     uint64 // applied entries between truncations of the log
	CatchUpEntries                    uint64 // entries kept for slow followers
	MaxRequestBytes                   int
	Quota                             int64 // bytes; 0 or less: none
	QuotaReported                     int64 // what Status and metrics show
	MaxLearners                       int
	StrictReconfig                    bool
	AuthToken                         string        // "simple", or "jwt" and options; as --auth-token
	AuthTokenTTL                      time.Duration // of simple tokens; 0: etcd's default
	BcryptCost                        int           // of new passwords
	ClientCertAuth                    bool          // the certificate of a client names its user
	LeaseCheckpoints                  bool
	PersistCheckpoints                bool
	CheckpointInterval                time.Duration
	WatchProgress                     time.Duration
	CompactionBatch                   int
	CompactionSleep                   time.Duration
	AutoCompaction                    AutoCompaction
	WarnApply                         time.Duration
	Stats                             bool                // count messages for SelfStats
	PeerTLS                           transport.TLSSource // for https peers; nil is Go's default
	UnsafeNoFsync                     bool
	// CorruptCheckTime is the time between two comparisons of the members' data
	// by the leader, 0 for none; CompactHashCheckTime that between two comparisons
	// of the hashes taken at compactions, 0 for none.
	CorruptCheckTime, CompactHashCheckTime time.Duration
	// Working, unless nil, hears what a start is doing that may take long.
	Working func(status string)
	FS      vfs.FS // nil: the machine's
	Clock   clock.Clock
	Logger  *zap.Logger
}

func (c *Config) electionTimeout() time.Duration { return c.Tick * time.Duration(c.ElectionTicks) }

// requestTimeout is how long a write or a read barrier may take.
func (c *Config) requestTimeout() time.Duration { return 5*time.Second + 2*c.electionTimeout() }

// stallLimit is how long a request waits on a member whose log write hangs: at
// most two election timeouts, as whoever waits is looked at once a tick.
func (c *Config) stallLimit() time.Duration { return 2*c.electionTimeout() - 2*c.Tick }

func (c *Config) memberDir() string { return filepath.Join(c.DataDir, "member") }
func (c *Config) snapDir() string   { return filepath.Join(c.memberDir(), "snap") }

func (c *Config) logDir() string {
	if c.LogDir != "" {
		return c.LogDir
	}
	return filepath.Join(c.memberDir(), "wal")
}

// Member is one running member.
type Member struct {
	cfg       Config
	lg        *zap.Logger
	unreached fading // members that did not tell their version; of the goroutine that asks
	// fewLines is lg for what clients cause.
	fewLines   *zap.Logger
	id         uint64
	cluster    *membership.Cluster
	log        *raftlog.Log
	lessor     *lease.Lessor
	auth       *auth.Store
	passwords  *passwords
	v2Peers    *v2Peers
	machine    atomic.Pointer[apply.Machine] // replaced as a whole when a snapshot is installed
	hub        *watch.Hub
	tr         *transport.Transport
	peers      *transport.Client // questions to peers outside the streams
	core       *replica.Core
	events     []watch.Event // scratch of the apply goroutine
	storeInUse atomic.Pointer[string]
	taken      *datadir.Takeover // of a start on a directory of etcd, else nil
	// noteApplied, of tests, sees every entry as it is about to be applied.
	noteApplied func(*apply.Entry)
	props       *proposal.Table
	reads       *readindex.Batcher
	ids         *proposal.IDs

	in      *replica.Inbox
	coreMu  sync.Mutex  // whoever holds it drives core; taken by drive and Stop alone
	halted  bool        // guarded by coreMu: the core is not driven any more
	wanted  uint64      // guarded by coreMu: applied index for which a truncation was last asked for
	logBusy atomic.Bool // a log write is under way
	logMu   sync.Mutex  // one at a time replaces or truncates the log
	logq    *queue[raftnode.Append]
	applyq  *queue[replica.Work]

	// What readers may know without asking the core.
	term, lead, commit atomic.Uint64
	acked              atomic.Uint64 // index up to which raft knows that entries are applied
	led                atomic.Pointer[leadership]
	leadLost           atomic.Int64 // unix nanoseconds of the last loss of a leader
	lastTick           atomic.Int64
	built              atomic.Bool                   // there is something to give up
	diskFull           atomic.Bool                   // the log finds no room
	logSince           atomic.Int64                  // when the log write under way began, as time since opened; 0 without one
	stalled            atomic.Pointer[string]        // what was said about the log write that hangs
	storeFull          atomic.Bool                   // the store finds no room; soon apply would have to wait
	leaderChange       atomic.Pointer[chan struct{}] // closed and replaced at each change of leader

	alarmRaised atomic.Bool // a NOSPACE alarm is being proposed
	// compactionChecked is the newest compaction whose hash was the same on all
	// members; of watchCompactHashes alone.
	compactionChecked int64
	snapshots         atomic.Int64
	received          atomic.Uint64 // snapshots whose transfer to this member has begun
	truncate          chan struct{} // capacity 1
	decide            chan struct{} // capacity 1: a new leader should decide the cluster version
	mark              atomic.Uint64 // index up to which the log is truncated

	readyc   chan struct{}
	stop     chan struct{} // closed first: refuse new work
	halt     chan struct{} // closed when ticks, log and apply may end
	failOnce sync.Once
	failed   chan struct{}
	failing  atomic.Bool // a disk fails, and the member will
	failErr  error
	stopOnce sync.Once
	// Of the ticker alone: the log write that it saw last, and how often.
	watched      int64
	watchedTicks int
	opened       time.Time      // where logSince counts from
	bgMu         sync.Mutex     // orders background against Stop
	wg           sync.WaitGroup // background goroutines that end with stop
	loopWG       sync.WaitGroup // ticker, log and apply
	rootCtx      context.Context
	cancel       context.CancelFunc
}

// Ready closes when the member has a leader and has told the cluster its name:
// from then on it serves clients.
func (m *Member) Ready() <-chan struct{} { return m.readyc }

// Failed closes when the member cannot go on; Err tells why.
func (m *Member) Failed() <-chan struct{} { return m.failed }

// Err returns the reason after Failed has closed.
func (m *Member) Err() error {
	select {
	case <-m.failed:
		return m.failErr
	default:
		return nil
	}
}

func (m *Member) fail(err error) {
	m.failOnce.Do(func() {
		m.failErr = err
		defer close(m.failed)
		m.GiveUp()
		if errors.Is(err, ErrRemoved) { // as it was told to, which is no error of anybody
			m.lg.Warn("server error", zap.String("local-member-id", membership.FormatID(m.id)), zap.Error(err))
			m.lg.Warn("data-dir used by this member must be removed", zap.String("data-dir", m.cfg.DataDir))
			return
		}
		m.lg.Error("member cannot go on", zap.String("local-member-id", membership.FormatID(m.id)), zap.Error(err))
	})
}

// GiveUp ends what waits for the log or for a quorum, now and from now on: this
// member will not hear of either again, and its clients should turn to another.
func (m *Member) GiveUp() {
	if !m.built.Load() {
		return // nobody waits yet; build does it
	}
	m.props.Close(errStopped)
	m.reads.Close(errStopped)
}

// ClusterID returns the cluster's id.
func (m *Member) ClusterID() uint64 { return m.cluster.ID() }

// MemberID returns the member's id.
func (m *Member) MemberID() uint64 { return m.id }

// Term returns the current raft term.
func (m *Member) Term() uint64 { return m.term.Load() }

// Rev returns the revision that readers see.
func (m *Member) Rev() int64 { return m.kv().PublishedRev() }

// Leader returns the id of the leader, 0 if none is known.
func (m *Member) Leader() uint64 { return m.lead.Load() }

// NoRoom reports whether all writes are refused because a disk is full.
func (m *Member) NoRoom() bool { return m.diskFull.Load() || m.storeFull.Load() }

// IsLearner reports whether this member does not vote.
func (m *Member) IsLearner() bool { return m.cluster.IsLocalLearner() }

// Capable reports whether the cluster has decided its version.
func (m *Member) Capable() bool { return m.cluster.Version().Decided() }

// Hub returns the watch hub.
func (m *Member) Hub() *watch.Hub { return m.hub }

// Cluster returns the membership.
func (m *Member) Cluster() *membership.Cluster { return m.cluster }

func (m *Member) isLeader() bool { return m.lead.Load() == m.id }

func (m *Member) mach() *apply.Machine { return m.machine.Load() }
func (m *Member) kv() *mvcc.Store      { return m.mach().KV() }

// storeDir returns the directory of the store in use.
func (m *Member) storeDir() string { return *m.storeInUse.Load() }

// timeoutError tells a client as well as the member knows why a request that
// began at start got no answer in time.
func (m *Member) timeoutError(start time.Time) error {
	lost := time.Unix(0, m.leadLost.Load())
	if d := 2 * m.cfg.electionTimeout(); lost.After(start.Add(-d)) && !lost.After(start.Add(m.cfg.requestTimeout())) {
		return rpctypes.ErrGRPCTimeoutDueToLeaderFail
	}
	if lead := m.lead.Load(); lead != 0 && lead != m.id && m.tr.ActiveSince(lead).IsZero() {
		return rpctypes.ErrGRPCTimeoutDueToConnectionLost
	}
	return rpctypes.ErrGRPCTimeout
}

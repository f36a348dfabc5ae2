package server

import (
	"context"
	"net"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"

	"quorate/internal/clock"
	"quorate/internal/datadir"
	"quorate/internal/membership"
	"quorate/internal/transport"
)

// LeaveFor writes etcd's files of a release into the directory of a member that has
// been stopped, beside its store. Working hears how far that has come.
func (c *Config) LeaveFor(ctx context.Context, target membership.Version, working func(status string)) error {
	l := c.layout()
	if l.FS == nil {
		l.FS = vfs.Default
	}
	return datadir.LeaveBeside(ctx, l, target, datadir.Options{Version: membership.Own, Logger: c.Logger, Working: working})
}

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
	// DowngradeCheck is how often a leader looks whether a downgrade is complete; 0 is never.
	DowngradeCheck time.Duration
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

func (c *Config) logDir() string { return c.layout().WAL() }

func (c *Config) layout() datadir.Layout {
	return datadir.Layout{FS: c.FS, DataDir: c.DataDir, WALDir: c.LogDir}
}

// working tells what a start is doing.
func (c *Config) working(status string) {
	if c.Working != nil {
		c.Working(status)
	}
}

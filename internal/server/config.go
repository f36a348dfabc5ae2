package server

import (
	"context"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"

	"quorate/internal/apply"
	"quorate/internal/auth"
	"quorate/internal/clock"
	"quorate/internal/datadir"
	"quorate/internal/lease"
	"quorate/internal/membership"
	"quorate/internal/raftlog"
	"quorate/internal/transport"
	"quorate/internal/watch"
)

// LeaveFor writes etcd's files of a release into the directory of a stopped member,
// next to its store. It reports its progress to Working.
func (c *Config) LeaveFor(ctx context.Context, target membership.Version, working func(status string)) error {
	l := c.layout()
	if l.FS == nil {
		l.FS = vfs.Default
	}
	return datadir.LeaveBeside(ctx, l, target, datadir.Options{Version: membership.Own, Logger: c.Logger, Working: working})
}

// Config is one member's configuration, complete and valid. The options of the packages
// below are passed on unchanged; the server adds ids, logger, clock and the like.
type Config struct {
	Name       string
	DataDir    string // member/ is created in it
	LogDir     string // raft log; empty for DataDir/member/wal
	PeerURLs   []string
	ClientURLs []string
	Bootstrap
	Timing

	SnapshotCount  uint64 // applied entries between truncations of the log
	CatchUpEntries uint64 // entries retained for slow followers
	// ApplyBatch is the maximum number of log entries in one batch of the engine; 0
	// means that only their size is bounded.
	ApplyBatch      int
	MaxRequestBytes int
	QuotaReported   int64 // shown by Status and metrics; State.Quota is the effective one
	// PriorityRequests allows lease revokes to exceed the bound on committed entries
	// that are not applied yet, up to twice as many.
	PriorityRequests bool
	StrictReconfig   bool
	BcryptCost       int  // for new passwords
	ClientCertAuth   bool // the client's certificate names its user

	Upkeep UpkeepOptions
	Checks IntegrityOptions

	Log        raftlog.Options // its CatchUpEntries is the one above
	State      apply.Options
	Lease      lease.Options
	Membership membership.Options
	Watch      watch.Options
	Peers      transport.Config
	Tokens     auth.TokenOptions

	// Working, unless nil, receives the status of steps of a start that may take long.
	Working func(status string)
	FS      vfs.FS // nil means the operating system's
	Clock   clock.Clock
	Logger  *zap.Logger
}

// Bootstrap says how a member without data starts.
type Bootstrap struct {
	Initial      []membership.InitialMember
	InitialToken string
	ForceNew     bool // make a new cluster of a member that has data, alone
	Existing     bool // join a running cluster instead of founding one
	// JoinPatience is how long a joining member keeps asking while the cluster does not
	// list it yet; 0 asks once.
	JoinPatience time.Duration
}

// Timing determines how fast members notice that a leader is gone.
type Timing struct {
	Tick               time.Duration
	ElectionTicks      int
	InitialTickAdvance bool
	PreVote            bool
}

// ElectionTimeout returns how long a follower waits for a leader, a whole number of ticks.
func (t Timing) ElectionTimeout() time.Duration { return t.Tick * time.Duration(t.ElectionTicks) }

// RequestTimeout bounds one write or read barrier: five seconds for queues and disk, and
// two election timeouts in case there is no leader.
func (t Timing) RequestTimeout() time.Duration { return 5*time.Second + 2*t.ElectionTimeout() }

func (c *Config) electionTimeout() time.Duration { return c.ElectionTimeout() }

func (c *Config) requestTimeout() time.Duration { return c.RequestTimeout() }

// stallLimit is how long a request waits on a member whose log write hangs: at most two
// election timeouts, as waiting requests are checked once per tick.
func (c *Config) stallLimit() time.Duration { return 2*c.electionTimeout() - 2*c.Tick }

func (c *Config) logDir() string { return c.layout().WAL() }

func (c *Config) layout() datadir.Layout {
	return datadir.Layout{FS: c.FS, DataDir: c.DataDir, WALDir: c.LogDir}
}

// working reports the status of a start.
func (c *Config) working(status string) {
	if c.Working != nil {
		c.Working(status)
	}
}

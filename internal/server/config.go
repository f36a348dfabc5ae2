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

// LeaveFor writes etcd's files of a release into the directory of a member that has
// been stopped, beside its store. Working hears how far that has come.
func (c *Config) LeaveFor(ctx context.Context, target membership.Version, working func(status string)) error {
	l := c.layout()
	if l.FS == nil {
		l.FS = vfs.Default
	}
	return datadir.LeaveBeside(ctx, l, target, datadir.Options{Version: membership.Own, Logger: c.Logger, Working: working})
}

// Config is one member's configuration, complete and valid. The options of the packages
// below are handed down as they are; what a package is told beside them, such as ids,
// logger and clock, the server fills in.
type Config struct {
	Name       string
	DataDir    string // member/ is created in it
	LogDir     string // raft log; empty for DataDir/member/wal
	PeerURLs   []string
	ClientURLs []string
	Bootstrap
	Timing

	SnapshotCount  uint64 // applied entries between truncations of the log
	CatchUpEntries uint64 // entries kept for slow followers
	// ApplyBatch is the greatest number of log entries in one batch of the engine;
	// 0 is no limit but their size.
	ApplyBatch      int
	MaxRequestBytes int
	QuotaReported   int64 // what Status and metrics show; State.Quota is what counts
	// PriorityRequests lets the revocation of leases pass the bound on entries that
	// wait to be applied, up to twice as many.
	PriorityRequests bool
	StrictReconfig   bool
	BcryptCost       int  // of new passwords
	ClientCertAuth   bool // the certificate of a client names its user

	Upkeep UpkeepOptions
	Checks IntegrityOptions

	Log        raftlog.Options // CatchUpEntries is the one above
	State      apply.Options
	Lease      lease.Options
	Membership membership.Options
	Watch      watch.Options
	Peers      transport.Config
	Tokens     auth.TokenOptions

	// Working, unless nil, hears what a start is doing that may take long.
	Working func(status string)
	FS      vfs.FS // nil: the machine's
	Clock   clock.Clock
	Logger  *zap.Logger
}

// Bootstrap says how a member without data begins.
type Bootstrap struct {
	Initial      []membership.InitialMember
	InitialToken string
	ForceNew     bool // make a cluster of a member that has data and nobody else
	Existing     bool // join a running cluster instead of founding one
	// JoinPatience is how long a member that joins goes on asking when the cluster
	// does not list it yet. Zero asks once.
	JoinPatience time.Duration
}

// Timing is how fast members notice that a leader is gone.
type Timing struct {
	Tick               time.Duration
	ElectionTicks      int
	InitialTickAdvance bool
	PreVote            bool
}

// ElectionTimeout is how long a follower waits for a leader, a whole number of ticks.
func (t Timing) ElectionTimeout() time.Duration { return t.Tick * time.Duration(t.ElectionTicks) }

// RequestTimeout bounds one write or read barrier: five seconds for queues and disk, and
// two election timeouts in case a leader has to be found.
func (t Timing) RequestTimeout() time.Duration { return 5*time.Second + 2*t.ElectionTimeout() }

func (c *Config) electionTimeout() time.Duration { return c.ElectionTimeout() }

func (c *Config) requestTimeout() time.Duration { return c.RequestTimeout() }

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

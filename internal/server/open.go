package server

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/auth"
	"quorate/internal/clock"
	"quorate/internal/datadir"
	"quorate/internal/descriptors"
	"quorate/internal/durable"
	"quorate/internal/membership"
	"quorate/internal/password"
	"quorate/internal/proposal"
	"quorate/internal/raftlog"
	"quorate/internal/readindex"
	"quorate/internal/task"
	"quorate/internal/transport"
	"quorate/internal/transport/peerapi"
)

// removalDelay is how long a removed member keeps running to acknowledge its removal.
const removalDelay = time.Second

// Open prepares a member: it restarts from its data directory, founds a cluster or joins
// one. All checks precede the first change on disk. The member is idle until Start.
func Open(ctx context.Context, cfg Config) (_ *Member, err error) {
	if cfg.FS == nil {
		cfg.FS = vfs.Default
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.Real{}
	}
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	o := opening{Member: newMember(&cfg)}
	if err := o.openAuth(); err != nil {
		return nil, err
	}
	o.peers = peerapi.NewClient(transport.RequestClient(cfg.Peers.TLS, time.Second+cfg.electionTimeout()))
	defer func() {
		if err != nil {
			o.replica.tasks.Cancel()
			o.abandonTakeOver(err)
		}
	}()
	cfg.working("reading the raft log")
	var id identity
	err = datadir.Await(ctx, o.replica.layout(), o.lg, cfg.Working, func() (err error) {
		if id, err = o.openLog(ctx); err != nil {
			o.abandonTakeOver(err)
			o.taken = nil
		}
		return err
	})
	if err != nil {
		return nil, withWayOut(err)
	}
	defer func() {
		if err != nil {
			o.log.Close()
		}
	}()
	if err := o.openStore(ctx, id); err != nil {
		return nil, withWayOut(err)
	}
	o.replica.home().RemoveRemains(o.replica.storeDir())
	if err := o.replica.home().Layout.Guard(); err != nil {
		o.lg.Warn("cannot protect the data directory from etcd being started on it by mistake", zap.String("data-dir", cfg.DataDir), zap.Error(err))
	}
	o.warnOtherName()
	if cfg.ForceNew {
		err = o.forceNewCluster()
	}
	if err == nil {
		err = o.build(id)
	}
	if err != nil {
		o.replica.mach().Close()
		o.replica.mach().Engine().Close()
		return nil, err
	}
	return o.Member, nil
}

// opening is a member while Open runs.
type opening struct {
	*Member
	taken *datadir.Takeover // set when starting on a data directory of etcd
}

// newMember creates the parts that exist from the start: a disk may fail before everything
// is built, and waiting callers must be notified then.
func newMember(cfg *Config) *Member {
	m := &Member{cfg: cfg, lg: cfg.Logger, slow: &slowLog{cfg: cfg, lg: cfg.Logger, fewLines: limited(cfg.Logger)}}
	state := &raftState{cfg: cfg}
	l := &life{lg: cfg.Logger, clock: cfg.Clock, dataDir: cfg.DataDir, raftState: state,
		stop: make(chan struct{}), failed: make(chan struct{}), tasks: task.NewGroup(cfg.Clock), loops: task.NewGroup(cfg.Clock)}
	l.rootCtx, l.halt = l.tasks.Context(), l.loops.Context().Done()
	m.disks = &disks{cfg: cfg, lg: cfg.Logger, life: l, raftState: state, handOver: func() { m.leaving.HandOver() }}
	store := &stored{cfg: cfg, fs: cfg.FS, lg: cfg.Logger, life: l, raftState: state, disks: m.disks}
	cfg.FS = descriptors.Waiting(cfg.FS, l.halt, cfg.Logger)
	l.waits = func(status string) {
		if store.machine.Load() == nil { // later, StartStatus reports it
			cfg.working(status)
		}
	}
	p := &proposer{cfg: cfg, lg: cfg.Logger, life: l, raftState: state, stored: store, disks: m.disks, slow: m.slow,
		props: proposal.NewTable(maxPending, maxPendingBytes)}
	r := &reader{cfg: cfg, life: l, raftState: state, stored: store, reads: readindex.New(func() uint64 { return p.ids.Next() }, 0)}
	m.replica = &localReplica{life: l, raftState: state, stored: store, proposer: p, reader: r}
	l.giveUp = m.replica.giveUp
	return m
}

// openLog opens the log of a member that has one. Otherwise it determines the identity of
// the member and creates the log.
func (o *opening) openLog(ctx context.Context) (identity, error) {
	cfg := o.cfg
	opts := cfg.Log
	opts.CatchUpEntries, opts.Logger = cfg.CatchUpEntries, o.lg
	if err := o.takeOver(ctx); err != nil {
		return identity{}, err
	}
	store, err := o.currentStore()
	if err != nil {
		return identity{}, err
	}
	_, err = cfg.FS.Stat(store)
	hasStore := err == nil
	hasLog, err := datadir.HasLog(cfg.FS, cfg.logDir())
	if err != nil {
		return identity{}, err
	}
	if hasLog {
		if err := o.replica.patiently(ctx, "repair of the raft log", cfg.logDir(), func() (err error) {
			o.log, err = raftlog.Open(cfg.FS, cfg.logDir(), opts)
			return err
		}); err != nil {
			return identity{}, fmt.Errorf("open raft log: %w", err)
		}
		id, err := o.resume(ctx, store, hasStore)
		if err != nil {
			o.log.Close()
			return id, err
		}
		o.lg.Info("restarting local member", zap.Stringer("cluster-id", id.cluster), zap.Stringer("local-member-id", id.id),
			zap.Uint64("commit-index", o.log.HardState().GetCommit()))
		return id, nil
	}
	if hasStore {
		return identity{}, fmt.Errorf("the store in %s has no raft log in %s: check --wal-dir and --data-dir", store, cfg.logDir())
	}
	id, err := o.identify(ctx)
	if err != nil {
		return identity{}, err
	}
	if err := o.replica.patiently(ctx, "the raft log", cfg.logDir(), func() error {
		err := durable.MkdirAll(cfg.FS, filepath.Dir(cfg.logDir()))
		if err == nil {
			o.log, err = raftlog.Create(cfg.FS, cfg.logDir(), raftlog.Metadata{NodeID: id.id, ClusterID: id.cluster}, opts)
		}
		return err
	}); err != nil {
		return identity{}, fmt.Errorf("create raft log: %w", err)
	}
	if err = o.makeHome(ctx, id); err == nil {
		err = o.writeFirst(ctx, id)
	}
	if err != nil {
		o.log.Close()
		return id, err
	}
	o.lg.Info("starting local member", zap.Stringer("local-member-id", id.id), zap.Stringer("cluster-id", id.cluster))
	return id, nil
}

// resume checks that the log and the data directory belong to the same member before
// anything changes, and completes a first start that was interrupted.
func (o *opening) resume(ctx context.Context, store string, hasStore bool) (identity, error) {
	cfg := o.cfg
	md := o.log.Metadata()
	id := identity{id: md.NodeID, cluster: md.ClusterID}
	if err := o.replica.layout().CheckOwner(id.id, id.cluster); err != nil {
		return identity{}, err
	}
	first, err := o.log.FirstIndex()
	if err != nil {
		return identity{}, err
	}
	if !hasStore && first > 1 {
		return identity{}, fmt.Errorf("there is no store in %s, and the raft log in %s begins at entry %d: earlier entries are missing; check --data-dir and --wal-dir. "+
			"If the store is lost, %s", store, cfg.logDir(), first, wayOut)
	}
	o.warnOtherCluster(md)
	if err := o.makeHome(ctx, id); err != nil {
		return identity{}, err
	}
	hs, _, err := o.log.InitialState()
	if err != nil {
		return identity{}, fmt.Errorf("read hard state: %w", err)
	}
	if hs.GetTerm() > 0 {
		return id, nil
	}
	// The process exited between the creation of the log and its first entries, so this
	// member has never run. A founder without these entries never would.
	fresh, err := o.identify(ctx)
	if err != nil || fresh.id != id.id || fresh.cluster != id.cluster {
		o.lg.Warn("the raft log is empty and the flags --initial-* do not describe its member: a founder needs them as at its first start",
			zap.String("wal-dir", cfg.logDir()), zap.Stringer("member-id", id.id), zap.Error(err))
		return id, nil
	}
	return fresh, o.writeFirst(ctx, fresh)
}

// makeHome creates the directories of the member and records its ids in them.
func (o *opening) makeHome(ctx context.Context, id identity) error {
	return o.replica.patiently(ctx, "the data directory", o.cfg.DataDir, func() error {
		if err := durable.MkdirAll(o.cfg.FS, o.cfg.DataDir, o.replica.layout().Member(), o.replica.layout().Snap()); err != nil {
			return err
		}
		return o.replica.layout().WriteOwner(id.id, id.cluster)
	})
}

// writeFirst writes the first entries of a founder's log.
func (o *opening) writeFirst(ctx context.Context, id identity) error {
	if len(id.entries) == 0 {
		return nil
	}
	hs := &raftpb.HardState{Term: new(uint64(1)), Vote: new(uint64(0)), Commit: new(uint64(len(id.entries)))}
	if err := o.replica.patiently(ctx, "the raft log", o.cfg.logDir(), func() error { return o.log.Append(hs, id.entries, true) }); err != nil {
		return fmt.Errorf("write the first entries: %w", err)
	}
	return nil
}

// openAuth evaluates the configuration of tokens and passwords.
func (o *opening) openAuth() error {
	cfg := o.cfg
	if cfg.Tokens.Spec == "simple" {
		o.lg.Warn("simple token is not cryptographically signed")
	}
	tokens, err := auth.NewTokens(cfg.Tokens, os.ReadFile, o.lg)
	if err != nil {
		o.lg.Warn("failed to create token provider", zap.Error(err))
		return err
	}
	o.auth = auth.NewStore(tokens)
	o.replica.auth = o.auth
	if !password.ValidCost(cfg.BcryptCost) {
		o.lg.Warn("use default bcrypt cost instead of the invalid given cost", zap.Int("min-cost", password.MinCost),
			zap.Int("max-cost", password.MaxCost), zap.Int("default-cost", password.DefaultCost), zap.Int("given-cost", cfg.BcryptCost))
	}
	return nil
}

// takeOver starts to take over the store of etcd, if the data directory contains one. The
// new store is used from here on; etcd's is unchanged until finishTakeOver, after the log
// and the store have been opened and match.
func (o *opening) takeOver(ctx context.Context) (err error) {
	o.taken, err = datadir.Begin(ctx, o.replica.layout(), datadir.Options{Version: membership.Own, Logger: o.lg, Working: o.cfg.Working})
	return err
}

func (o *opening) finishTakeOver(cs *raftpb.ConfState) error {
	if o.taken == nil {
		return nil
	}
	if err := o.replica.home().BeginLog(o.taken.Index, cs); err != nil {
		return fmt.Errorf("start the raft log at the index of etcd's store: %w", err)
	}
	if err := o.taken.Finish(); err != nil {
		return err
	}
	o.taken = nil
	return nil
}

// abandonTakeOver undoes a take-over after an error during start.
func (o *opening) abandonTakeOver(because error) {
	if o.taken == nil {
		return
	}
	if err := o.taken.Abandon(because); err != nil {
		o.lg.Warn("failed to remove the files of an aborted take-over of etcd's store", zap.String("path", o.taken.Dir), zap.Error(err))
	}
}

// currentStore returns the directory of the store in use.
func (o *opening) currentStore() (string, error) {
	if o.taken != nil {
		return o.taken.Dir, nil
	}
	return o.replica.layout().Store()
}

package server

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/apply"
	"quorate/internal/clock"
	"quorate/internal/crash"
	"quorate/internal/datadir"
	"quorate/internal/durable"
	"quorate/internal/engine"
	"quorate/internal/engine/pebble"
	"quorate/internal/lease"
	"quorate/internal/membership"
	"quorate/internal/metrics"
	"quorate/internal/mvcc"
	"quorate/internal/proposal"
	"quorate/internal/raftlog"
	"quorate/internal/raftnode"
	"quorate/internal/readindex"
	"quorate/internal/replica"
	"quorate/internal/transport"
	"quorate/internal/watch"
)

// ownVersion is Version, parsed.
var ownVersion = func() membership.Version {
	v, err := membership.ParseVersion(Version)
	if err != nil {
		panic(err)
	}
	return v
}()

// How long other members may take to answer a member that starts.
const (
	foundTimeout   = time.Second
	joinTimeout    = 10 * time.Second
	resolveTimeout = 30 * time.Second
	joinPause      = 500 * time.Millisecond
)

// removalDelay is how long a removed member stays to acknowledge its removal.
const removalDelay = time.Second

// identity is what a member is called, and where that came from.
type identity struct {
	id, cluster uint64
	remotes     []membership.Member // of a running cluster that is being joined
	entries     []*raftpb.Entry     // first entries of a new cluster
}

// Open prepares a member: it restarts from its data directory, founds a cluster
// or joins one. All checks come before the first change on disk. The member does
// nothing before Start.
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
	m := &Member{cfg: cfg, lg: cfg.Logger, fewLines: limited(cfg.Logger), failed: make(chan struct{})}
	// There from the start: a disk may fail before all is built, and fail ends them.
	m.props = proposal.NewTable(maxPending, maxPendingBytes)
	m.reads = readindex.New(func() uint64 { return m.ids.Next() }, 0)
	m.rootCtx, m.cancel = context.WithCancel(context.Background())
	if err := m.openAuth(); err != nil {
		return nil, err
	}
	m.peers = transport.NewClient(cfg.PeerTLS, time.Second+cfg.electionTimeout())
	defer func() {
		if err != nil {
			m.cancel()
			m.abandonTakeOver(err)
		}
	}()
	m.working("reading the raft log")
	var id identity
	err = datadir.Await(ctx, m.layout(), m.lg, m.cfg.Working, func() (err error) {
		if id, err = m.openLog(ctx); err != nil {
			m.abandonTakeOver(err)
			m.taken = nil
		}
		return err
	})
	if err != nil {
		return nil, withWayOut(err)
	}
	defer func() {
		if err != nil {
			m.log.Close()
		}
	}()
	if err := m.openStore(ctx, id); err != nil {
		return nil, withWayOut(err)
	}
	m.home().RemoveRemains(m.storeDir())
	m.warnOtherName()
	if cfg.ForceNew {
		err = m.forceNewCluster()
	}
	if err == nil {
		err = m.build(id)
	}
	if err != nil {
		m.mach().Close()
		m.mach().Engine().Close()
		return nil, err
	}
	return m, nil
}

// openLog opens the log of a member that has one, or decides who the member is
// and makes it one.
func (m *Member) openLog(ctx context.Context) (identity, error) {
	cfg := &m.cfg
	opts := raftlog.Options{CatchUpEntries: cfg.CatchUpEntries, NoSync: cfg.UnsafeNoFsync, Logger: m.lg}
	if err := m.takeOver(ctx); err != nil {
		return identity{}, err
	}
	store, err := m.currentStore()
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
		if err := m.patiently(ctx, "repair of the raft log", cfg.logDir(), func() (err error) {
			m.log, err = raftlog.Open(cfg.FS, cfg.logDir(), opts)
			return err
		}); err != nil {
			return identity{}, fmt.Errorf("open raft log: %w", err)
		}
		id, err := m.resume(ctx, store, hasStore)
		if err != nil {
			m.log.Close()
			return id, err
		}
		m.lg.Info("restarting local member", zap.String("cluster-id", membership.FormatID(id.cluster)), zap.String("local-member-id", membership.FormatID(id.id)),
			zap.Uint64("commit-index", m.log.HardState().GetCommit()))
		return id, nil
	}
	if hasStore {
		return identity{}, fmt.Errorf("the store in %s has no raft log in %s: check --wal-dir and --data-dir", store, cfg.logDir())
	}
	id, err := m.identify(ctx)
	if err != nil {
		return identity{}, err
	}
	if err := m.patiently(ctx, "the raft log", cfg.logDir(), func() error {
		err := durable.MkdirAll(cfg.FS, filepath.Dir(cfg.logDir()))
		if err == nil {
			m.log, err = raftlog.Create(cfg.FS, cfg.logDir(), raftlog.Metadata{NodeID: id.id, ClusterID: id.cluster}, opts)
		}
		return err
	}); err != nil {
		return identity{}, fmt.Errorf("create raft log: %w", err)
	}
	if err = m.makeHome(ctx, id); err == nil {
		err = m.writeFirst(ctx, id)
	}
	if err != nil {
		m.log.Close()
		return id, err
	}
	m.lg.Info("starting local member", zap.String("local-member-id", membership.FormatID(id.id)), zap.String("cluster-id", membership.FormatID(id.cluster)))
	return id, nil
}

// resume checks that the log and the data directory are of one member before
// anything changes, and finishes a first start that came to no end.
func (m *Member) resume(ctx context.Context, store string, hasStore bool) (identity, error) {
	cfg := &m.cfg
	md := m.log.Metadata()
	id := identity{id: md.NodeID, cluster: md.ClusterID}
	if err := m.checkOwnerFile(id); err != nil {
		return identity{}, err
	}
	first, err := m.log.FirstIndex()
	if err != nil {
		return identity{}, err
	}
	if !hasStore && first > 1 {
		return identity{}, fmt.Errorf("there is no store in %s, and the raft log in %s begins at entry %d: what was before it is missing; check --data-dir and --wal-dir. "+
			"If the store is lost, %s", store, cfg.logDir(), first, wayOut)
	}
	m.warnOtherCluster(md)
	if err := m.makeHome(ctx, id); err != nil {
		return identity{}, err
	}
	hs, _, err := m.log.InitialState()
	if err != nil {
		return identity{}, fmt.Errorf("read hard state: %w", err)
	}
	if hs.GetTerm() > 0 {
		return id, nil
	}
	// The process ended between the creation of the log and its first entries, so
	// this member has never run. A founder without these entries never would.
	fresh, err := m.identify(ctx)
	if err != nil || fresh.id != id.id || fresh.cluster != id.cluster {
		m.lg.Warn("the raft log is empty and the flags --initial-* do not describe its member: a founder needs them as at its first start",
			zap.String("wal-dir", cfg.logDir()), zap.String("member-id", membership.FormatID(id.id)), zap.Error(err))
		return id, nil
	}
	return fresh, m.writeFirst(ctx, fresh)
}

// makeHome makes the directories of the member and notes in them whose they are.
func (m *Member) makeHome(ctx context.Context, id identity) error {
	return m.patiently(ctx, "the data directory", m.cfg.DataDir, func() error {
		if err := durable.MkdirAll(m.cfg.FS, m.cfg.DataDir, m.cfg.memberDir(), m.cfg.snapDir()); err != nil {
			return err
		}
		return m.writeOwnerFile(id)
	})
}

// writeFirst writes the entries with which every founder begins.
func (m *Member) writeFirst(ctx context.Context, id identity) error {
	if len(id.entries) == 0 {
		return nil
	}
	hs := &raftpb.HardState{Term: new(uint64(1)), Vote: new(uint64(0)), Commit: new(uint64(len(id.entries)))}
	if err := m.patiently(ctx, "the raft log", m.cfg.logDir(), func() error { return m.log.Append(hs, id.entries, true) }); err != nil {
		return fmt.Errorf("write the first entries: %w", err)
	}
	return nil
}

// warnOtherCluster tells when the flags describe another cluster than the one
// that the directory belongs to. Membership may have changed since, so it is no
// error; etcd ignores the flags likewise once there is a log.
func (m *Member) warnOtherCluster(md raftlog.Metadata) {
	if m.cfg.Existing || len(m.cfg.Initial) == 0 {
		return
	}
	_, cluster, err := membership.Founders(m.cfg.Initial, m.cfg.InitialToken)
	if err == nil && cluster != md.ClusterID {
		m.lg.Warn("--initial-cluster and --initial-cluster-token are ignored: the data directory belongs to a member already",
			zap.String("data-dir", m.cfg.DataDir), zap.String("member-id", membership.FormatID(md.NodeID)),
			zap.String("cluster-id", membership.FormatID(md.ClusterID)), zap.String("cluster-id-of-the-flags", membership.FormatID(cluster)))
	}
}

// warnOtherName tells when the data directory is that of a member with another
// name, as when --data-dir was mixed up: the cluster will know it by the new one.
func (m *Member) warnOtherName() {
	x, ok := m.cluster.Member(m.id)
	if ok && x.Name != "" && x.Name != m.cfg.Name {
		m.lg.Warn("the data directory is that of a member with another name, which gets the name of --name; check --data-dir and --name",
			zap.String("data-dir", m.cfg.DataDir), zap.String("member-id", membership.FormatID(m.id)), zap.String("name-in-the-directory", x.Name), zap.String("name", m.cfg.Name))
	}
}

// identify decides who a member without a log is.
func (m *Member) identify(ctx context.Context) (identity, error) {
	if err := membership.CheckInitial(m.cfg.Initial, m.cfg.Name); err != nil {
		return identity{}, err
	}
	if m.cfg.Existing {
		return m.join(ctx)
	}
	return m.found(ctx)
}

// found computes the identity of a founder. A founder whose cluster is running
// already has lost its data and must not vote again.
func (m *Member) found(ctx context.Context) (identity, error) {
	founders, cluster, err := membership.Founders(m.cfg.Initial, m.cfg.InitialToken)
	if err != nil {
		return identity{}, err
	}
	id := identity{cluster: cluster}
	for _, f := range founders {
		if f.Name == m.cfg.Name {
			id.id = f.ID
		}
	}
	if id.entries, err = membership.BootstrapEntries(founders); err != nil {
		return identity{}, err
	}
	if remotes := membership.RemotePeerURLs(m.cfg.Initial, m.cfg.Name); len(remotes) > 0 {
		if running, _, err := m.peers.Members(ctx, remotes, foundTimeout); err == nil {
			for _, x := range running {
				if x.ID == id.id && len(x.ClientURLs) > 0 {
					return identity{}, fmt.Errorf("member %s has already been bootstrapped: there is no data of it in %s, and its cluster knows it. "+
						"Start it with the --data-dir and --wal-dir that it had; if they are lost, remove the member ('etcdctl member remove %[1]s'), "+
						"add it again ('etcdctl member add') and start it with --initial-cluster-state=existing and an empty --data-dir",
						membership.FormatID(id.id), m.cfg.DataDir)
				}
			}
		}
	}
	return id, nil
}

// join asks the running cluster who this member is. A member that was added a
// moment ago may be asking one that has not heard of it yet, so with JoinPatience
// it asks again.
func (m *Member) join(ctx context.Context) (identity, error) {
	m.working("asking the cluster who this member is")
	deadline := m.cfg.Clock.Now().Add(m.cfg.JoinPatience)
	for {
		id, listed, err := m.joinOnce(ctx)
		if err == nil || listed || !m.cfg.Clock.Now().Before(deadline) {
			return id, err
		}
		m.lg.Info("the cluster does not list this member yet; asking again", zap.Error(err))
		if m.pause(ctx, joinPause) != nil {
			return identity{}, err
		}
	}
}

// joinOnce asks once; listed is false when the member that answered knows other
// members than these.
func (m *Member) joinOnce(ctx context.Context) (_ identity, listed bool, _ error) {
	urls := membership.RemotePeerURLs(m.cfg.Initial, m.cfg.Name)
	running, cluster, err := m.peers.Members(ctx, urls, joinTimeout)
	if err != nil {
		return identity{}, true, fmt.Errorf("cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs (%s)",
			strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	resolving, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	same := func(a, b []string) (bool, error) { return transport.SameURLs(resolving, m.lg, a, b) }
	matched, err := membership.MatchExisting(m.cfg.Initial, running, same)
	if err != nil {
		err = fmt.Errorf("error validating peerURLs %s: %w", membership.Describe(cluster, running), err)
		if text := membership.ExplainMismatch(m.cfg.Initial, running, same); text != "" {
			err = fmt.Errorf("%w (%s)", err, text)
		}
		return identity{}, false, err
	}
	id := identity{cluster: cluster}
	for _, x := range matched {
		if x.Name == m.cfg.Name {
			id.id = x.ID
		} else {
			id.remotes = append(id.remotes, x)
		}
	}
	if id.id == 0 {
		return identity{}, true, fmt.Errorf("couldn't find local name %q in the running cluster", m.cfg.Name)
	}
	var versions []string
	for _, r := range id.remotes {
		if v, err := m.peers.Version(ctx, r.PeerURLs, joinTimeout); err == nil {
			versions = append(versions, v.Cluster)
		}
	}
	downgrading, err := m.peers.DowngradeEnabled(ctx, urls, joinTimeout)
	if err != nil {
		downgrading = false // a member of an old release does not know the question
	}
	if err := membership.CheckJoin(versions, ownVersion, downgrading); err != nil {
		return id, true, err
	}
	return id, true, m.checkLearners(running)
}

func (m *Member) checkLearners(ms []membership.Member) error {
	if err := membership.CheckLearners(ms, m.cfg.MaxLearners); err != nil {
		return fmt.Errorf("%w: there are more than --max-learners=%d: give this member a --max-learners as high as that of the others, or promote or remove learners first",
			err, m.cfg.MaxLearners)
	}
	return nil
}

// openStore opens the engine and the state machine and checks that they and the
// log belong together.
func (m *Member) openStore(ctx context.Context, id identity) error {
	cfg := &m.cfg
	dir, err := m.currentStore()
	if err != nil {
		return err
	}
	m.working("opening the store and its index")
	start := time.Now()
	eng, err := m.openEngine(dir)
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	m.lg.Info("opened backend db", zap.String("path", dir), zap.Duration("took", time.Since(start)))
	if err := m.patiently(ctx, "the raft log", cfg.logDir(), func() error { return m.homeOf(id).CheckTogether(eng) }); err != nil {
		eng.Close()
		return err
	}
	m.id = id.id
	m.cluster = membership.New(membership.Options{LocalID: id.id, ClusterID: id.cluster, ServerVersion: ownVersion,
		MaxLearners: cfg.MaxLearners, Logger: m.lg})
	minTTL := (3*int64(cfg.ElectionTicks)/2*cfg.Tick.Nanoseconds() + int64(time.Second) - 1) / int64(time.Second)
	m.lessor = lease.New(minTTL, lease.Options{Checkpoints: cfg.LeaseCheckpoints, CheckpointInterval: cfg.CheckpointInterval})
	mach, err := m.openMachine(eng, dir)
	if err != nil {
		eng.Close()
		return err
	}
	if err := m.patiently(ctx, "taking over the directory of etcd", cfg.DataDir, func() error { return m.finishTakeOver(mach.ConfState()) }); err != nil {
		mach.Close()
		eng.Close()
		return err
	}
	m.machine.Store(mach)
	m.storeInUse.Store(&dir)
	return nil
}

func (m *Member) openMachine(eng engine.Engine, dir string) (*apply.Machine, error) {
	cfg := &m.cfg
	mach, err := apply.Open(eng, apply.Options{
		Cluster: m.cluster, Lessor: m.lessor, Auth: m.auth, Quota: cfg.Quota, PersistCheckpoints: cfg.PersistCheckpoints,
		Now: cfg.Clock.Now, WarnApply: cfg.WarnApply, Logger: m.lg,
		MVCC: mvcc.Options{CompactionBatch: cfg.CompactionBatch, CompactionPause: cfg.CompactionSleep, Logger: m.lg},
	})
	if err != nil {
		return nil, fmt.Errorf("load store %s: %w", dir, err)
	}
	err = m.cluster.CheckVersion(m.cluster.Version())
	if err == nil {
		err = m.checkLearners(m.cluster.Members())
	}
	if err != nil {
		mach.Close()
		return nil, err
	}
	return mach, nil
}

func (m *Member) openEngine(dir string) (engine.Engine, error) {
	return pebble.Open(dir, pebble.Options{FS: m.cfg.FS, Logger: m.lg, GiveUp: m.rootCtx.Done(), OnFailure: func(err error) { m.storeFailed(dir, err) }, OnSpace: func(full bool) {
		m.storeFull.Store(full)
		if full {
			metrics.DiskFull.WithLabelValues(metrics.FullStore).Set(1)
			m.lg.Error("no room for the store: writes are refused until there is; free space on its disk", zap.String("dir", dir))
		} else {
			metrics.DiskFull.WithLabelValues(metrics.FullStore).Set(0)
			m.lg.Info("the store has room again; writes are accepted", zap.String("dir", dir))
		}
	}})
}

// build makes everything above the store.
func (m *Member) build(id identity) error {
	cfg := &m.cfg
	mach := m.mach()
	applied := mach.Applied()
	m.mark.Store(m.log.Mark().Index)
	m.ids = proposal.NewIDs(id.id, cfg.Clock.Now())
	m.reads.Applied(applied)
	m.in = &replica.Inbox{}
	m.logq, m.applyq = newQueue[raftnode.Append](), newQueue[replica.Work]()
	m.truncate, m.decide = make(chan struct{}, 1), make(chan struct{}, 1)
	m.readyc, m.stop, m.halt = make(chan struct{}), make(chan struct{}), make(chan struct{})
	first := make(chan struct{})
	m.leaderChange.Store(&first)
	m.passwords = newPasswords(cfg.BcryptCost, m.stop)
	m.v2Peers = newV2Peers()
	m.opened = cfg.Clock.Now()
	m.lastTick.Store(m.opened.UnixNano())
	node, err := raftnode.New(raftnode.Config{
		ID: id.id, ElectionTicks: cfg.ElectionTicks, HeartbeatTicks: 1, PreVote: cfg.PreVote,
		Storage: raftnode.NewStorage(m.log, mach.ConfState(), applied, m.raftSnapshot),
		Applied: applied, Logger: raftnode.NewLogger(m.lg),
	})
	if err != nil {
		return err
	}
	m.core = replica.NewCore(replica.CoreConfig{Node: node, Gate: m.mayChange, Proposals: m.props, Reads: m.reads, ReadRetry: readRetry,
		ReadLimit: cfg.requestTimeout(), ErrTimeout: errReadTimeout, ErrLost: rpctypes.ErrGRPCTimeoutDueToLeaderFail, ErrChanged: errLeaderChanged,
		StallAfter: cfg.electionTimeout(), StallLimit: cfg.stallLimit(), HandOver: cfg.electionTimeout()})
	m.commit.Store(node.State().Commit)
	m.acked.Store(node.State().Applied)
	m.wanted = node.State().Applied
	m.term.Store(node.State().Term)
	m.hub = watch.NewHub(history{mach.KV()}, cfg.Clock, watch.Options{
		FragmentBytes: cfg.MaxRequestBytes + 512<<10,
		// More than a fragment, so that clients which ask for fragments see them
		// where etcd would send them.
		BatchBytes: cfg.MaxRequestBytes + 1<<20, ProgressInterval: cfg.WatchProgress,
		Jitter:  rand.Int64N,
		OnError: func(err error) { m.lg.Warn("a watch cannot read the history", zap.Error(err)) },
	})
	m.tr, err = transport.New(transport.Config{
		ID: id.id, ClusterID: id.cluster, PeerURLs: cfg.PeerURLs, Host: host{m}, Logger: m.lg,
		DialTimeout: time.Second + cfg.electionTimeout(), TLS: cfg.PeerTLS, Version: Version,
		Name:    func(id uint64) string { x, _ := m.cluster.Member(id); return x.Name },
		LocalIP: cfg.LocalIP, ReadTimeout: cfg.PeerReadTimeout, WriteTimeout: cfg.PeerWriteTimeout, Stats: cfg.Stats,
	})
	if err != nil {
		return err
	}
	// Peers from the start: a joining member is told who they are before the log tells it, and
	// would refuse their streams until then.
	for _, r := range id.remotes {
		m.tr.AddPeer(r.ID, r.PeerURLs)
	}
	for _, x := range m.cluster.Members() {
		if x.ID != id.id {
			m.tr.AddPeer(x.ID, x.PeerURLs)
		}
	}
	metrics.ServerID.WithLabelValues(membership.FormatID(id.id)).Set(1)
	metrics.ServerQuotaBackendBytes.Set(float64(cfg.QuotaReported))
	metrics.ServerIsLearner.Set(boolGauge(m.cluster.IsLocalLearner()))
	if m.built.Store(true); m.failing.Load() {
		m.GiveUp() // the store has failed meanwhile
	}
	return nil
}

// Start begins to take part in the cluster. Peers must be able to reach the
// member by then.
func (m *Member) Start() {
	m.loopWG.Add(3)
	go m.writeLog()
	go m.applyAll()
	go m.ticker()
	m.background(func() { m.hub.Run(m.rootCtx) })
	m.background(m.expireLeases)
	m.background(m.expireV2)
	m.background(m.truncateLog)
	m.background(m.watchSize)
	m.background(m.flushStore)
	m.background(m.defragmentAtStart)
	m.background(m.watchVersions)
	m.background(m.announce)
	m.background(m.advanceTicks)
	if m.cfg.AutoCompaction != (AutoCompaction{}) {
		m.background(m.autoCompact)
	}
	if m.cfg.CorruptCheckTime > 0 {
		m.background(m.watchHashes)
	}
	if m.cfg.CompactHashCheckTime > 0 {
		m.background(m.watchCompactHashes)
	}
}

// advanceTicks lets a member that starts elect or follow without waiting for a
// whole election timeout.
func (m *Member) advanceTicks() {
	n := m.cfg.ElectionTicks
	if m.cfg.ForceNew {
		// The others go as the first thing that is applied.
		for voters := m.cluster.VoterIDs(); len(voters) != 1 || voters[0] != m.id; voters = m.cluster.VoterIDs() {
			if m.pause(m.rootCtx, applyPoll) != nil {
				return
			}
		}
	}
	if voters := m.cluster.VoterIDs(); len(voters) == 1 && voters[0] == m.id || len(voters) == 0 && len(m.cfg.Initial) == 1 && !m.cfg.Existing {
		m.electSelf()
		return
	}
	if !m.cfg.InitialTickAdvance || n <= 2 {
		return
	}
	for deadline := m.cfg.Clock.Now().Add(5 * time.Second); m.cfg.Clock.Now().Before(deadline); {
		if m.pause(m.rootCtx, 50*time.Millisecond) != nil {
			return
		}
		if m.tr.ActivePeers() > 1 {
			m.lg.Info("initialized peer connections; fast-forwarding election ticks", m.localID(), zap.Int("forward-ticks", n-2),
				zap.Duration("forward-duration", time.Duration(n-2)*m.cfg.Tick), zap.Int("election-ticks", n),
				zap.Duration("election-timeout", m.cfg.electionTimeout()), zap.Int("active-remote-members", m.tr.ActivePeers()))
			m.event(func(in *replica.Input) { in.Ticks += n - 2 })
			return
		}
	}
}

// electSelf makes the only voter leader. It has nobody to ask and nothing to wait
// for but its own first entries.
func (m *Member) electSelf() {
	for m.Leader() == 0 {
		if voters := m.cluster.VoterIDs(); len(voters) > 1 {
			return
		} else if len(voters) == 1 && voters[0] == m.id {
			m.event(func(in *replica.Input) { in.Campaign = true })
		}
		if m.pause(m.rootCtx, applyPoll) != nil {
			return
		}
	}
}

// Stop ends the member: leadership is handed over, new work is refused, what is
// in flight gets an error, and what is applied is flushed.
func (m *Member) Stop() {
	m.stopOnce.Do(func() {
		m.HandOver()
		close(m.stop)
		m.cancel()
		m.bgMu.Lock() // from here on background starts nothing
		m.bgMu.Unlock()
		m.tr.Stop()
		m.peers.Close()
		m.coreMu.Lock()
		m.halted = true
		m.coreMu.Unlock()
		close(m.halt)
		m.loopWG.Wait()
		m.props.Close(errStopped)
		m.reads.Close(errStopped)
		m.hub.Close()
		m.mach().V2().Close()
		m.wg.Wait()
		m.mach().Close()
		if m.Err() == nil {
			if err := m.lastFlush(); err != nil {
				m.lg.Warn("failed to flush the store; the log will be replayed at the next start", zap.Error(err))
			}
		}
		for what, c := range map[string]func() error{"store": m.mach().Engine().Close, "raft log": m.log.Close} {
			if err := c(); err != nil && !errors.Is(err, os.ErrClosed) {
				m.lg.Warn("failed to close", zap.String("what", what), zap.Error(err))
			}
		}
	})
}

// lastFlush flushes the store, unless it finds no room: then a flush would wait
// for some until the engine is closed.
func (m *Member) lastFlush() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	flushed := make(chan error, 1)
	go crash.Guarded(func() { flushed <- m.mach().Engine().Flush(ctx) })()
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for !m.storeFull.Load() {
		select {
		case err := <-flushed:
			return err
		case <-poll.C:
		}
	}
	return raftlog.ErrNoSpace
}

package server

import (
	"math/rand/v2"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"

	"quorate/internal/apply"
	"quorate/internal/build"
	"quorate/internal/ids"
	"quorate/internal/legacy/v2member"
	"quorate/internal/metrics"
	"quorate/internal/password"
	"quorate/internal/proposal"
	"quorate/internal/raftnode"
	"quorate/internal/replica"
	"quorate/internal/transport"
	"quorate/internal/watch"
)

// build creates everything above the store.
func (o *opening) build(id identity) error {
	cfg, mach := o.cfg, o.replica.mach()
	o.replica.ids = proposal.NewIDs(id.id, cfg.Clock.Now())
	o.replica.reads.Applied(mach.Applied())
	o.passwords = password.New(password.Options{Cost: cfg.BcryptCost, Stop: o.replica.stop, Busy: ErrTooManyRequests, Stopped: rpctypes.ErrGRPCStopped})
	watches := cfg.Watch
	watches.FragmentBytes = cfg.MaxRequestBytes + 512<<10
	// More than a fragment, so that clients that ask for fragments get them where
	// etcd would send them.
	watches.BatchBytes = cfg.MaxRequestBytes + 1<<20
	watches.Jitter = rand.Int64N
	watches.OnError = func(err error) { o.lg.Warn("a watch cannot read the history", zap.Error(err)) }
	o.hub = watch.NewHub(apply.History{KV: mach.KV()}, cfg.Clock, watches)
	// The transport needs these: one of them is its host.
	o.driver, o.installer = &driver{in: &replica.Inbox{}}, &installer{exchanged: make(chan error, 1)}
	if err := o.buildTransport(id); err != nil {
		return err
	}
	o.buildServices()
	o.buildDriver()
	if err := o.buildCore(mach); err != nil {
		return err
	}
	o.addPeers(id) // which may deliver messages from here on
	metrics.ServerID.WithLabelValues(id.id.String()).Set(1)
	metrics.ServerQuotaBackendBytes.Set(float64(cfg.QuotaReported))
	metrics.ServerIsLearner.Set(boolGauge(o.cluster.IsLocalLearner()))
	return nil
}

func (o *opening) buildTransport(id identity) (err error) {
	cfg := o.cfg
	peers := cfg.Peers
	peers.ID, peers.ClusterID, peers.PeerURLs, peers.Version, peers.Logger = id.id, id.cluster, cfg.PeerURLs, build.EtcdVersion, o.lg
	peers.Host = host{replica: o.replica, cluster: o.cluster, driver: o.driver, installer: o.installer}
	peers.Name = func(id ids.Member) string { x, _ := o.cluster.Member(id); return x.Name }
	peers.DialTimeout = time.Second + cfg.electionTimeout()
	o.tr, err = transport.New(peers)
	return err
}

// addPeers connects to all members from the start. A joining member would reject their
// streams until the log told it who they are.
func (o *opening) addPeers(id identity) {
	for _, r := range id.remotes {
		o.tr.AddPeer(r.ID, r.PeerURLs)
	}
	for _, x := range o.cluster.Members() {
		if x.ID != id.id {
			o.tr.AddPeer(x.ID, x.PeerURLs)
		}
	}
}

// buildServices creates the services that the gRPC and HTTP servers call, bottom up.
func (o *opening) buildServices() {
	cfg, lg, r := o.cfg, o.lg, o.replica
	leaders := &leaders{replica: r, cluster: o.cluster}
	o.Access = &Access{cfg: cfg, lg: lg, life: r.life, stored: r.stored, auth: o.auth, lessor: o.lessor}
	o.Accounts = &Accounts{cfg: cfg, lg: lg, replica: r, auth: o.auth, passwords: o.passwords}
	o.Watches = &Watches{Access: o.Access, auth: o.auth, hub: o.hub}
	o.KV = &KV{cfg: cfg, replica: r, Access: o.Access, cluster: o.cluster, lessor: o.lessor, slow: o.slow}
	o.Leases = &Leases{cfg: cfg, lg: lg, replica: r, Access: o.Access, leaders: leaders, peers: o.peers, auth: o.auth, lessor: o.lessor,
		revoking: make(chan struct{}, expiryWorkers)}
	o.Versions = &Versions{cfg: cfg, lg: lg, replica: r, cluster: o.cluster, peers: o.peers, decide: make(chan struct{}, 1)}
	o.Members = &Members{cfg: cfg, lg: lg, replica: r, Access: o.Access, cluster: o.cluster, leaders: leaders, peers: o.peers, tr: o.tr,
		driver: o.driver, slow: o.slow, Versions: o.Versions, readyc: make(chan struct{})}
	o.Integrity = &Integrity{cfg: cfg, lg: lg, replica: r, cluster: o.cluster, peers: o.peers}
	o.Digests = &Digests{cfg: cfg, lg: lg, replica: r, cluster: o.cluster, peers: o.peers, Integrity: o.Integrity}
	o.V2 = v2member.New(v2Host{replica: r, peers: o.peers, tr: o.tr},
		v2member.Options{Cluster: o.cluster, RequestTimeout: cfg.requestTimeout(), Clock: cfg.Clock, Logger: lg})
	o.V2Passwords = &V2Passwords{passwords: o.passwords}
	o.Stats = &Stats{cfg: cfg, replica: r, tr: o.tr}
	o.sender = &sender{cfg: cfg, lg: lg, replica: r, tr: o.tr, driver: o.driver, installer: o.installer, digests: o.Digests}
	o.upkeep = &upkeep{cfg: cfg, lg: lg, replica: r, auth: o.auth, KV: o.KV}
	o.scrubber = &scrubber{cfg: cfg, lg: lg, replica: r}
	o.Maintenance = &Maintenance{scrubber: o.scrubber, cfg: cfg, lg: lg, replica: r, cluster: o.cluster, driver: o.driver, sender: o.sender, upkeep: o.upkeep, Versions: o.Versions, Digests: o.Digests}
	o.upkeep.Maintenance = o.Maintenance
}

// buildDriver creates the parts that carry out the steps of the core.
func (o *opening) buildDriver() {
	cfg, lg, r := o.cfg, o.lg, o.replica
	o.logw = &logWriter{cfg: cfg, lg: lg, replica: r, disks: o.disks, driver: o.driver, installer: o.installer, sender: o.sender,
		truncate: make(chan struct{}, 1)}
	o.applier = &applier{cfg: cfg, replica: r, cluster: o.cluster, tr: o.tr, disks: o.disks, slow: o.slow,
		watches: o.Watches, versions: o.Versions}
	o.leaving = &leaving{cfg: cfg, lg: lg, replica: r, cluster: o.cluster, tr: o.tr, driver: o.driver}
	o.election = &election{cfg: cfg, lg: lg, replica: r, cluster: o.cluster, tr: o.tr, driver: o.driver}
	d, i := o.driver, o.installer
	d.slow = o.slow
	d.cfg, d.lg, d.replica, d.cluster, d.tr, d.logw, d.sender = cfg, lg, r, o.cluster, o.tr, o.logw, o.sender
	i.cfg, i.lg, i.replica, i.cluster, i.tr, i.driver, i.logw = cfg, lg, r, o.cluster, o.tr, d, o.logw
	r.raftState.tr, r.proposer.Access, r.proposer.driver, r.reader.driver = o.tr, o.Access, d, d
	r.reader.alone = &solo{cluster: o.cluster, state: r.raftState}
}

// buildCore creates the core and its pipeline, idle, and the state known about them.
func (o *opening) buildCore(mach *apply.Machine) error {
	cfg, r, applied := o.cfg, o.replica, mach.Applied()
	node, err := raftnode.New(raftnode.Config{
		ID: r.id, ElectionTicks: cfg.ElectionTicks, HeartbeatTicks: 1, PreVote: cfg.PreVote,
		Storage: raftnode.NewStorage(o.log, mach.ConfState(), applied, o.sender.raftSnapshot),
		Applied: applied, Logger: raftnode.NewLogger(o.lg),
	})
	if err != nil {
		return err
	}
	o.buildPipeline(replica.NewCore(replica.CoreConfig{Node: node, Gate: o.Members.gate, Proposals: r.props, Reads: r.reads, ReadRetry: readRetry,
		ReadLimit: cfg.requestTimeout(), ErrTimeout: errReadTimeout, ErrLost: rpctypes.ErrGRPCTimeoutDueToLeaderFail, ErrChanged: errLeaderChanged,
		StallAfter: cfg.electionTimeout(), StallLimit: cfg.stallLimit(), HandOver: cfg.electionTimeout()}))
	st := node.State()
	r.commit.Store(uint64(st.Commit))
	r.acked.Store(uint64(st.Applied))
	r.term.Store(uint64(st.Term))
	first := make(chan struct{})
	r.leaderChange.Store(&first)
	r.opened = cfg.Clock.Now()
	r.lastTick.Store(r.opened.UnixNano())
	return nil
}

// buildPipeline connects the pipeline with the rest of the member.
func (o *opening) buildPipeline(core *replica.Core) {
	cfg, r := o.cfg, o.replica
	pipe := replica.NewPipeline(replica.Parts{
		Core: core, Self: r.id, Proposals: r.props, Reads: r.reads, Hub: o.hub, Lessor: o.lessor, Extend: cfg.electionTimeout(),
		Mark: o.log.Mark().Index, TruncateEvery: cfg.SnapshotCount, Keep: cfg.CatchUpEntries, MaxRunBytes: maxApplyBytes,
	}, &replica.Env{
		Core: o.driver.event, Send: o.driver.send, Follow: o.driver.follow,
		WriteTo: o.log, Home: func() replica.Home { return r.home() }, TruncationDue: o.logw.truncationDue,
		Exchange: o.installer.exchange, Exchanged: func(err error) { o.installer.exchanged <- err },
		Now: cfg.Clock.Now, Apply: o.applier.apply, Applied: o.slow.applyTook,
		AuthChanged: o.Watches.recheckWatches, MemberChanged: o.applier.memberChanged, Reconfigured: o.applier.reconfigured,
		TermBegun: o.applier.termBegun, NoSpace: r.raiseNoSpace,
	})
	o.driver.pipe, o.logw.work, o.applier.work = pipe, pipe.Log, pipe.Apply
}

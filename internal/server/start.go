package server

import (
	"fmt"
	"time"

	"go.uber.org/zap"

	"quorate/internal/replica"
)

// Start begins to take part in the cluster. Peers must be able to reach the
// member by then.
func (m *Member) Start() {
	m.replica.loopWG.Add(3)
	go m.logw.writeLog()
	go m.applier.applyAll()
	go m.driver.ticker()
	m.replica.background(func() { m.hub.Run(m.replica.rootCtx) })
	m.replica.background(m.Leases.expireLeases)
	m.replica.background(m.V2.expireV2)
	m.replica.background(m.logw.truncateLog)
	m.replica.background(m.upkeep.watchSize)
	m.replica.background(m.upkeep.flushStore)
	m.replica.background(m.upkeep.defragmentAtStart)
	m.replica.background(m.Versions.watchVersions)
	m.replica.background(m.Members.announce)
	m.replica.background(m.advanceTicks)
	if m.cfg.AutoCompaction != (AutoCompaction{}) {
		m.replica.background(m.upkeep.autoCompact)
	}
	if m.cfg.CorruptCheckTime > 0 {
		m.replica.background(m.Integrity.watchHashes)
	}
	if m.cfg.CompactHashCheckTime > 0 {
		m.replica.background(m.Integrity.watchCompactHashes)
	}
}

// advanceTicks lets a member that starts elect or follow without waiting for a
// whole election timeout.
func (m *Member) advanceTicks() {
	n := m.cfg.ElectionTicks
	if m.cfg.ForceNew {
		// The others go as the first thing that is applied.
		for voters := m.cluster.VoterIDs(); len(voters) != 1 || voters[0] != m.replica.id; voters = m.cluster.VoterIDs() {
			if m.replica.pause(m.replica.rootCtx, applyPoll) != nil {
				return
			}
		}
	}
	if voters := m.cluster.VoterIDs(); len(voters) == 1 && voters[0] == m.replica.id || len(voters) == 0 && len(m.cfg.Initial) == 1 && !m.cfg.Existing {
		m.electSelf()
		return
	}
	if !m.cfg.InitialTickAdvance || n <= 2 {
		return
	}
	for deadline := m.cfg.Clock.Now().Add(5 * time.Second); m.cfg.Clock.Now().Before(deadline); {
		if m.replica.pause(m.replica.rootCtx, 50*time.Millisecond) != nil {
			return
		}
		if m.tr.ActivePeers() > 1 {
			m.lg.Info("initialized peer connections; fast-forwarding election ticks", m.replica.localID(), zap.Int("forward-ticks", n-2),
				zap.Duration("forward-duration", time.Duration(n-2)*m.cfg.Tick), zap.Int("election-ticks", n),
				zap.Duration("election-timeout", m.cfg.electionTimeout()), zap.Int("active-remote-members", m.tr.ActivePeers()))
			m.driver.event(func(in *replica.Input) { in.Ticks += n - 2 })
			return
		}
	}
}

// electSelf makes the only voter leader. It has nobody to ask and nothing to wait
// for but its own first entries.
func (m *Member) electSelf() {
	for m.replica.Leader() == 0 {
		if voters := m.cluster.VoterIDs(); len(voters) > 1 {
			return
		} else if len(voters) == 1 && voters[0] == m.replica.id {
			m.driver.event(func(in *replica.Input) { in.Campaign = true })
		}
		if m.replica.pause(m.replica.rootCtx, applyPoll) != nil {
			return
		}
	}
}

// StartStatus tells what a member waits for that has been started and is not ready.
func (m *Member) StartStatus() string {
	applied, commit := m.replica.mach().Applied(), m.replica.commit.Load()
	switch {
	case m.disks.NoRoom():
		return "waiting for room on the disk of " + m.cfg.DataDir
	case applied < commit && m.installer.received.Load() > 0 && m.replica.Leader() != 0:
		return fmt.Sprintf("getting the state of the cluster: entry %d of %d is applied", applied, commit)
	case applied < commit:
		return fmt.Sprintf("replaying the raft log: entry %d of %d is applied", applied, commit)
	case m.replica.Leader() == 0:
		return "waiting for a leader, which needs a quorum of members"
	}
	return "telling the cluster the name of this member"
}

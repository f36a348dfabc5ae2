package server

import (
	"fmt"
	"time"

	"go.uber.org/zap"

	"quorate/internal/autocompact"
	"quorate/internal/ids"
	"quorate/internal/lease"
	"quorate/internal/legacy/v2member"
	"quorate/internal/task"
)

// Start makes the member take part in the cluster. Peers must be able to reach it by then.
func (m *Member) Start() {
	m.replica.loops.Start(
		task.Task{Name: "raft log", Run: m.logw.writeLog},
		task.Task{Name: "apply", Run: m.applier.applyAll},
		task.Task{Name: "raft ticks", Every: m.cfg.Tick, Run: m.driver.tick},
	)
	m.replica.tasks.Start(m.background()...)
}

// background returns the tasks of a member besides serving requests.
func (m *Member) background() []task.Task {
	leads := m.replica.isLeader
	tasks := []task.Task{
		{Name: "watches", Run: m.hub.Run},
		{Name: "expired leases", Every: lease.ExpiryInterval, When: m.lessor.IsPrimary, Run: m.Leases.expireLeases},
		{Name: "expired keys of the v2 API", Every: v2member.ExpireInterval, When: leads, Run: m.V2.Expire},
		{Name: "truncation of the raft log", Trigger: m.logw.truncate, Run: m.logw.truncateLog},
		{Name: "size of the store", Every: time.Second, AtOnce: true, Run: m.upkeep.watchSize},
		{Name: "version of the cluster", Every: versionInterval, Trigger: m.Versions.decide, When: leads, Run: m.Versions.decideVersion},
		{Name: "name of the member", Run: m.Members.announce},
		{Name: "first election", Run: m.election.advanceTicks},
	}
	if every := m.cfg.Upkeep.DowngradeCheck; every > 0 {
		tasks = append(tasks, task.Task{Name: "end of a downgrade", Every: every, When: leads, Run: m.Versions.checkDowngrade})
	}
	if every := m.cfg.Upkeep.FlushInterval; every > 0 {
		tasks = append(tasks, task.Task{Name: "flush of the store", Every: every, Run: m.upkeep.flushStore})
	}
	if m.cfg.Upkeep.DefragThreshold > 0 {
		tasks = append(tasks, task.Task{Name: "defragmentation at the start", Run: m.upkeep.defragmentAtStart})
	}
	if m.cfg.Upkeep.AutoCompaction != (autocompact.Retention{}) {
		tasks = append(tasks, m.upkeep.autoCompaction())
	}
	if every := m.cfg.Checks.Interval; every > 0 {
		m.lg.Info("enabled corruption checking", m.replica.localID(), zap.Duration("interval", every))
		tasks = append(tasks, task.Task{Name: "comparison of the members", Every: every, When: leads, Run: m.Integrity.watchHashes})
	}
	if m.cfg.Checks.Scrub > 0 {
		tasks = append(tasks, task.Task{Name: "scrub", Every: m.scrubber.look(), Run: m.scrubber.run})
	}
	if every := m.cfg.Checks.Digests; every > 0 {
		tasks = append(tasks, task.Task{Name: "comparison of digests", Every: every, Run: m.Digests.compare})
	}
	if every := m.cfg.Checks.CompactionsInterval; every > 0 && m.cfg.Checks.Compactions {
		tasks = append(tasks, task.Task{Name: "comparison of compactions", Every: every, When: leads, Run: m.Integrity.checkCompactHashes})
	}
	return tasks
}

// StartStatus describes what a started member waits for that is not ready.
func (m *Member) StartStatus() string {
	applied, commit := m.replica.mach().Applied(), ids.Index(m.replica.commit.Load())
	noRoom := m.disks.NoRoom()
	switch {
	case noRoom != "" && m.disks.scarce.Load():
		return "waiting for file descriptors"
	case noRoom != "":
		return "waiting for room on the disk of " + m.cfg.DataDir
	case applied < commit && m.installer.received.Load() > 0 && m.replica.Leader() != 0:
		return fmt.Sprintf("getting the state of the cluster: entry %d of %d is applied", applied, commit)
	case applied < commit:
		return fmt.Sprintf("replaying the raft log: entry %d of %d is applied", applied, commit)
	case m.replica.Leader() == 0:
		return "waiting for a leader, which needs a quorum of members"
	}
	return "publishing this member's name to the cluster"
}

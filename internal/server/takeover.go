package server

import (
	"context"
	"fmt"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"quorate/internal/datadir"
)

func (c *Config) layout() datadir.Layout {
	return datadir.Layout{FS: c.FS, DataDir: c.DataDir, WALDir: c.LogDir}
}

func (m *Member) layout() datadir.Layout { return m.cfg.layout() }

// takeOver begins to take over the store of etcd, if that is what the data
// directory holds. The new store is used from here on; etcd's stays as it is until
// finishTakeOver, when the log and the store have been opened and fit.
func (m *Member) takeOver(ctx context.Context) (err error) {
	m.taken, err = datadir.Begin(ctx, m.layout(), datadir.Options{Version: ownVersion, Logger: m.lg, Working: m.cfg.Working})
	return err
}

// working tells what a start is doing.
func (m *Member) working(status string) {
	if m.cfg.Working != nil {
		m.cfg.Working(status)
	}
}

// StartStatus tells what a member waits for that has been started and is not ready.
func (m *Member) StartStatus() string {
	applied, commit := m.mach().Applied(), m.commit.Load()
	switch {
	case m.diskFull.Load() || m.storeFull.Load():
		return "waiting for room on the disk of " + m.cfg.DataDir
	case applied < commit && m.received.Load() > 0 && m.Leader() != 0:
		return fmt.Sprintf("getting the state of the cluster: entry %d of %d is applied", applied, commit)
	case applied < commit:
		return fmt.Sprintf("replaying the raft log: entry %d of %d is applied", applied, commit)
	case m.Leader() == 0:
		return "waiting for a leader, which needs a quorum of members"
	}
	return "telling the cluster the name of this member"
}

func (m *Member) finishTakeOver(cs *raftpb.ConfState) error {
	if m.taken == nil {
		return nil
	}
	if err := m.home().BeginLog(m.taken.Index, cs); err != nil {
		return fmt.Errorf("let the raft log begin where the store of etcd was taken over: %w", err)
	}
	if err := m.taken.Finish(); err != nil {
		return err
	}
	m.taken = nil
	return nil
}

// abandonTakeOver undoes a take-over because of an error of the start.
func (m *Member) abandonTakeOver(because error) {
	if m.taken == nil {
		return
	}
	if err := m.taken.Abandon(because); err != nil {
		m.lg.Warn("failed to remove what a take-over of etcd's store has left", zap.String("path", m.taken.Dir), zap.Error(err))
	}
}

func (m *Member) home() datadir.Home { return m.homeOf(identity{id: m.id, cluster: m.cluster.ID()}) }

func (m *Member) homeOf(id identity) datadir.Home {
	return datadir.Home{Layout: m.layout(), Log: m.log, Member: id.id, Cluster: id.cluster, OpenEngine: m.openEngine, Logger: m.lg}
}

// currentStore returns the directory of the store in use.
func (m *Member) currentStore() (string, error) {
	if m.taken != nil {
		return m.taken.Dir, nil
	}
	return m.layout().Store()
}

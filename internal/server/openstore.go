package server

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"quorate/internal/lease"
	"quorate/internal/membership"
)

// openStore opens the engine and the state machine and checks that they and the log belong
// together.
func (o *opening) openStore(ctx context.Context, id identity) error {
	cfg := o.cfg
	dir, err := o.currentStore()
	if err != nil {
		return err
	}
	o.replica.id = id.id // a disk that fails from here on logs the member id
	cfg.working("opening the store and its index")
	start := o.cfg.Clock.Now()
	eng, err := o.replica.openEngine(dir)
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	o.lg.Info("opened backend db", zap.String("path", dir), zap.Duration("took", o.cfg.Clock.Now().Sub(start)))
	if err := o.replica.patiently(ctx, "the raft log", cfg.logDir(), func() error { return o.replica.homeOf(id, o.log).CheckTogether(eng) }); err != nil {
		eng.Close()
		return err
	}
	members := cfg.Membership
	members.LocalID, members.ClusterID, members.ServerVersion, members.Logger = id.id, id.cluster, membership.Own, o.lg
	o.cluster = membership.New(members)
	minTTL := (3*int64(cfg.ElectionTicks)/2*cfg.Tick.Nanoseconds() + int64(time.Second) - 1) / int64(time.Second)
	o.lessor = lease.New(minTTL, cfg.Lease)
	o.replica.cluster, o.replica.lessor, o.replica.log = o.cluster, o.lessor, o.log
	mach, err := o.replica.openMachine(eng, dir)
	if err != nil {
		eng.Close()
		return err
	}
	if err := o.replica.patiently(ctx, "taking over the directory of etcd", cfg.DataDir, func() error { return o.finishTakeOver(mach.ConfState()) }); err != nil {
		mach.Close()
		eng.Close()
		return err
	}
	o.replica.machine.Store(mach)
	o.replica.storeInUse.Store(&dir)
	return nil
}

package grpcproxy

import (
	"context"
	"errors"
	"slices"
	"time"

	"quorate/internal/clock"

	"go.uber.org/zap"
)

// syncTimeout bounds one request for the member list.
const syncTimeout = 5 * time.Second

// followMembers uses the members of the cluster as endpoints, and requests the list
// periodically. It logs every change of the endpoints.
func (p *Proxy) followMembers() {
	tick := clock.NewTicker(clock.System, p.o.SyncInterval)
	defer tick.Stop()
	var used []string
	for {
		select {
		case <-tick.C:
		case <-p.ctx.Done():
			return
		}
		ctx, cancel := context.WithTimeout(p.ctx, syncTimeout)
		err := p.client.Sync(ctx)
		cancel()
		if err != nil {
			if !errors.Is(err, context.Canceled) {
				p.lg.Info("Auto sync endpoints failed.", zap.Error(err))
			}
			continue
		}
		now := slices.Sorted(slices.Values(p.client.Endpoints()))
		if !slices.Equal(now, used) {
			p.lg.Info("using the members of the cluster as endpoints", zap.Strings("endpoints", now))
			used = now
		}
	}
}

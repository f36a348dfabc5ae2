package ctl

import (
	"context"
	"os"
	"os/signal"
)

// UntilSignal returns a context that is cancelled when the process receives one of the
// signals. Until stop is called, they have no other effect.
func (p Process) UntilSignal(sigs ...os.Signal) (ctx context.Context, stop context.CancelFunc) {
	notify := p.Notify
	if notify == nil {
		notify = signal.Notify
	}
	ctx, stop = context.WithCancel(context.Background())
	got := make(chan os.Signal, 1)
	notify(got, sigs...)
	go func() {
		defer signal.Stop(got)
		select {
		case <-got:
			stop()
		case <-ctx.Done():
		}
	}()
	return ctx, stop
}

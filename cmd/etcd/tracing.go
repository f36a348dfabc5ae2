package main

import (
	"context"
	"time"

	"go.uber.org/zap"

	"quorate/internal/config"
	"quorate/internal/rpc"
	"quorate/internal/tracing"
)

// flushTimeout bounds sending the last spans during a shutdown.
const flushTimeout = 3 * time.Second

// openTracing sets up tracing if it was asked for; p.tracing stays nil if not.
func (p *process) openTracing(ctx context.Context, cfg *config.Config) error {
	if !cfg.EnableTracing {
		return nil
	}
	var err error
	p.tracing, err = tracing.Open(ctx, cfg.Tracing)
	if err == nil {
		p.lg.Info("distributed tracing setup enabled", zap.String("address", cfg.Tracing.Address), zap.String("service-name", cfg.Tracing.ServiceName),
			zap.String("service-instance-id", cfg.Tracing.InstanceID), zap.Int("sampling-rate", cfg.Tracing.SamplingRate))
	}
	return err
}

// trace adds requests to traces.
func (p *process) trace(o *rpc.Options) {
	if p.tracing != nil {
		o.Tracer = p.tracing.Tracer()
		o.Stats = p.tracing.Calls()
	}
}

func (p *process) closeTracing() {
	if p.tracing == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	if err := p.tracing.Close(ctx); err != nil {
		p.lg.Warn("failed to send the last traces", zap.String("address", p.cfg.Tracing.Address), zap.Error(err))
	}
}

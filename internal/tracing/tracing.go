// Package tracing sends what happens to requests to an OpenTelemetry collector.
//
// In: the address of a collector and how many traces to keep. Out: a provider of
// tracers and the options that put gRPC calls into its traces. Always true: a
// collector that is slow or away costs traces and never requests; spans wait in
// a bounded queue, and what does not fit is dropped.
package tracing

import (
	"context"
	"fmt"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/stats"
)

// scope names the spans' instrumentation, as dashboards know it.
const scope = "go.etcd.io/etcd"

// perMillion is the sampling rate that keeps every trace.
const perMillion = 1_000_000

// Options of a Provider.
type Options struct {
	Address     string // host:port of the collector, OTLP over gRPC without TLS
	ServiceName string // the same for all members
	InstanceID  string // of this member; may be empty
	// SamplingRate is how many traces to keep out of a million, of those that
	// begin here. A caller's trace is kept if the caller keeps it.
	SamplingRate int
}

// Provider makes spans and sends them.
type Provider struct{ sdk *sdk.TracerProvider }

// Open makes a provider. It connects in the background.
func Open(ctx context.Context, o Options) (*Provider, error) {
	exporter, err := otlptracegrpc.New(ctx, otlptracegrpc.WithInsecure(), otlptracegrpc.WithEndpoint(o.Address))
	if err != nil {
		return nil, fmt.Errorf("set up tracing to --distributed-tracing-address=%s: %w", o.Address, err)
	}
	attrs := []attribute.KeyValue{attribute.String("service.name", o.ServiceName)}
	if o.InstanceID != "" {
		attrs = append(attrs, attribute.String("service.instance.id", o.InstanceID))
	}
	sampler := sdk.NeverSample()
	if o.SamplingRate > 0 {
		sampler = sdk.TraceIDRatioBased(float64(o.SamplingRate) / perMillion)
	}
	return &Provider{sdk.NewTracerProvider(
		sdk.WithBatcher(exporter),
		sdk.WithResource(resource.NewSchemaless(attrs...)),
		sdk.WithSampler(sdk.ParentBased(sampler)),
	)}, nil
}

// Tracer makes the spans of requests.
func (p *Provider) Tracer() trace.Tracer { return p.sdk.Tracer(scope) }

// Calls gives each gRPC call that it is told of a span, within the caller's trace
// if it has sent one.
func (p *Provider) Calls() stats.Handler {
	return otelgrpc.NewServerHandler(
		otelgrpc.WithPropagators(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})),
		otelgrpc.WithTracerProvider(p.sdk),
	)
}

// Close sends what waits, until ctx is done.
func (p *Provider) Close(ctx context.Context) error { return p.sdk.Shutdown(ctx) }

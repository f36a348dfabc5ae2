// Package tracing sends traces of requests to an OpenTelemetry collector.
//
// In: the address of a collector and a sampling rate. Out: a tracer provider and a
// stats handler that adds gRPC calls to its traces. Always true: a slow or unreachable
// collector costs traces, never requests; spans wait in a bounded queue and are dropped when
// it is full.
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

// scope is the name of the instrumentation, as dashboards know it.
const scope = "go.etcd.io/etcd"

// perMillion is the sampling rate that keeps every trace.
const perMillion = 1_000_000

// Options configures a Provider.
type Options struct {
	Address     string // host:port of the collector; OTLP over gRPC without TLS
	ServiceName string // the same for all members
	InstanceID  string // of this member; may be empty
	// SamplingRate is the number of traces to keep per million, of those that start here. A
	// trace that a caller has started is kept if the caller keeps it.
	SamplingRate int
}

// Provider creates spans and exports them.
type Provider struct{ sdk *sdk.TracerProvider }

// Open returns a provider. It connects to the collector in the background.
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

// Tracer returns the tracer for request spans.
func (p *Provider) Tracer() trace.Tracer { return p.sdk.Tracer(scope) }

// Calls returns a stats handler that creates a span for each gRPC call, as part of the
// caller's trace if the call has one.
func (p *Provider) Calls() stats.Handler {
	return otelgrpc.NewServerHandler(
		otelgrpc.WithPropagators(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})),
		otelgrpc.WithTracerProvider(p.sdk),
	)
}

// Close exports the pending spans, until ctx is done.
func (p *Provider) Close(ctx context.Context) error { return p.sdk.Shutdown(ctx) }

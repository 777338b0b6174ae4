// Package autoexport stands in for OpenTelemetry's, of which distribution uses one function: it exports nothing. The original
// brings gRPC and every exporter, half of what the registry takes to build.
package autoexport

import (
	"context"

	"go.opentelemetry.io/otel/sdk/trace"
)

// NewSpanExporter gives an exporter that does nothing.
func NewSpanExporter(context.Context) (trace.SpanExporter, error) { return none{}, nil }

type none struct{}

func (none) ExportSpans(context.Context, []trace.ReadOnlySpan) error { return nil }

func (none) Shutdown(context.Context) error { return nil }

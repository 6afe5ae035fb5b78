package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/pilox/vault"
)

// TracesConfig says where spans go.
type TracesConfig struct {
	// URL is a collector's, with the path; https, or http on loopback. Required.
	URL string
	// Client sends them. It follows no redirect. Required.
	Client *http.Client
	// Sample is the share of calls that are followed, 0 to 1. Zero: none.
	Sample float64
	// Log is the origin of the ledger, Version the daemon's.
	Log, Version string
	// Logger is told what could not be sent. Required.
	Logger *slog.Logger
}

// Bounds of what waits to be sent. Spans that find no room are dropped: nothing
// waits for a collector.
const (
	maxSpans   = 2048 // some KB each
	spanBatch  = 512  //
	spanPeriod = 2 * time.Second
	spanTime   = 10 * time.Second
	maxReply   = 64 << 10
)

// Traces follow calls: one span for each, with a child for each stage. It is safe
// for concurrent use.
type Traces struct {
	provider *sdk.TracerProvider
	tracer   trace.Tracer
}

// NewTraces starts to send spans. It connects to nobody yet.
func NewTraces(ctx context.Context, c TracesConfig) (*Traces, error) {
	exporter, err := otlptrace.New(ctx, otlptracehttp.NewClient(
		otlptracehttp.WithEndpointURL(c.URL), otlptracehttp.WithHTTPClient(c.Client), otlptracehttp.WithHeaders(map[string]string{}),
		otlptracehttp.WithMaxResponseSize(maxReply), otlptracehttp.WithTimeout(spanTime),
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{Enabled: true, InitialInterval: time.Second, MaxInterval: spanTime, MaxElapsedTime: 3 * spanTime}),
	))
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	// The SDK tells what it could not send to one handler for the whole process.
	// Its errors hold what the collector answered, which may quote a token.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(error) {
		c.Logger.WarnContext(ctx, "traces not delivered", "to", c.URL)
	}))
	t := &Traces{provider: sdk.NewTracerProvider(
		sdk.WithBatcher(exporter, sdk.WithMaxQueueSize(maxSpans), sdk.WithMaxExportBatchSize(spanBatch), sdk.WithBatchTimeout(spanPeriod), sdk.WithExportTimeout(4*spanTime)),
		sdk.WithSampler(sdk.TraceIDRatioBased(c.Sample)),
		sdk.WithResource(resource.NewSchemaless(
			attribute.String("service.name", "pvault"), attribute.String("service.version", c.Version), attribute.String("service.namespace", c.Log),
		)),
		sdk.WithRawSpanLimits(sdk.SpanLimits{AttributeValueLengthLimit: 256, AttributeCountLimit: 32, EventCountLimit: 32, LinkCountLimit: 1, AttributePerEventCountLimit: 8, AttributePerLinkCountLimit: 1}),
	)}
	t.tracer = t.provider.Tracer("github.com/pilox/vault")
	return t, nil
}

// Close sends what waits, for as long as ctx allows.
func (t *Traces) Close(ctx context.Context) error { return t.provider.Shutdown(ctx) }

// followed is the state of a call that is followed. One goroutine at a time has it:
// the stages of a call come one after another.
type followed struct {
	span  trace.Span
	stage trace.Span // nil before the first
}

type followedKey struct{}

// Start begins the span of a call, if it is sampled. It is the root of its trace: a
// caller's word about traces is not taken.
func (t *Traces) Start(ctx context.Context, call *vault.Call) context.Context {
	ctx, span := t.tracer.Start(ctx, "call", trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(time.Now()))
	if !span.IsRecording() {
		return ctx
	}
	span.SetAttributes(attribute.String("vault.kind", string(call.Kind)), attribute.String("vault.edge", edge(call.Edge)))
	return context.WithValue(ctx, followedKey{}, &followed{span: span})
}

// edges are those that calls come by. What an edge calls itself is ours, so others
// would be a mistake.
var edges = []string{"mcp", "cli", "egress", "authzen", "ext_authz"}

func edge(s string) string {
	if slices.Contains(edges, s) {
		return s
	}
	return "other"
}

// Stage ends the span of the stage before and begins that of this one.
func (t *Traces) Stage(ctx context.Context, name string) {
	f, _ := ctx.Value(followedKey{}).(*followed)
	if f == nil {
		return
	}
	if f.stage != nil {
		f.stage.End()
	}
	_, f.stage = t.tracer.Start(trace.ContextWithSpan(ctx, f.span), name)
}

// End ends the span of a call with how it ended.
func (t *Traces) End(ctx context.Context, facts *vault.Facts, err error) {
	f, _ := ctx.Value(followedKey{}).(*followed)
	if f == nil {
		return
	}
	if f.stage != nil {
		f.stage.End()
	}
	verdict := "allow"
	if d, ok := errors.AsType[*vault.Denial](err); ok {
		verdict = d.Verdict
		f.span.SetAttributes(attribute.String("vault.reason", string(d.Reason.Code)))
		f.span.SetStatus(codes.Error, string(d.Reason.Code))
		if d.Event != nil {
			f.span.SetAttributes(attribute.Int64("vault.idx", int64(*d.Event)))
		}
	}
	f.span.SetAttributes(attribute.String("vault.verdict", verdict), attribute.String("vault.run", string(facts.Call.Task)))
	// The names are the catalogue's. Those of other kinds say whom or where.
	if facts.Call.Kind == vault.KindTool && facts.Tool.Server != "" {
		f.span.SetAttributes(attribute.String("vault.server", facts.Tool.Server), attribute.String("gen_ai.tool.name", facts.Tool.Name))
	}
	f.span.End()
}

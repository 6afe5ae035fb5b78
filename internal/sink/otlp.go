package sink

import (
	"context"
	"fmt"
	"strconv"
	"time"

	collector "go.opentelemetry.io/proto/slim/otlp/collector/logs/v1"
	common "go.opentelemetry.io/proto/slim/otlp/common/v1"
	logs "go.opentelemetry.io/proto/slim/otlp/logs/v1"
	resource "go.opentelemetry.io/proto/slim/otlp/resource/v1"
	"google.golang.org/protobuf/proto"

	"github.com/pilox/vault"
)

// scopeName names who made the log records.
const scopeName = "github.com/pilox/vault"

// An otlpTarget posts events as OpenTelemetry log records (OTLP 1, HTTP, binary
// protobuf).
type otlpTarget struct {
	post         *post
	log, version string
	refused      func(ctx context.Context, n uint64, why string)
}

func (t *otlpTarget) send(ctx context.Context, batch []View) error {
	now := uint64(time.Now().UnixNano())
	records := make([]*logs.LogRecord, len(batch))
	for i := range batch {
		records[i] = logRecord(&batch[i], now)
	}
	body, err := proto.Marshal(&collector.ExportLogsServiceRequest{ResourceLogs: []*logs.ResourceLogs{{
		Resource: &resource.Resource{Attributes: []*common.KeyValue{
			text("service.name", "pvault"), text("service.version", t.version), text("service.namespace", t.log),
		}},
		ScopeLogs: []*logs.ScopeLogs{{Scope: &common.InstrumentationScope{Name: scopeName, Version: t.version}, LogRecords: records}},
	}}})
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	answer, err := t.post.send(ctx, "application/x-protobuf", body)
	if err != nil {
		return err
	}
	// The protocol forbids to send again what the receiver says it dropped, so all
	// that is left is to say so too.
	var res collector.ExportLogsServiceResponse
	if err := proto.Unmarshal(answer, &res); err != nil {
		return fmt.Errorf("the answer is not the protocol: %w", err)
	}
	if n := res.GetPartialSuccess().GetRejectedLogRecords(); n > 0 {
		t.refused(ctx, min(uint64(n), uint64(len(batch))), strconv.QuoteToGraphic(cut(res.GetPartialSuccess().GetErrorMessage())))
	}
	return nil
}

// logRecord is an event as a log record: the body is the exact leaf.
func logRecord(v *View, now uint64) *logs.LogRecord {
	l := v.Leaf
	severity, name := logs.SeverityNumber_SEVERITY_NUMBER_INFO, "INFO"
	if l.Verdict != vault.Allow {
		severity, name = logs.SeverityNumber_SEVERITY_NUMBER_WARN, "WARN"
	}
	r := &logs.LogRecord{
		TimeUnixNano: uint64(l.Time.UnixNano()), ObservedTimeUnixNano: now,
		SeverityNumber: severity, SeverityText: name,
		EventName: "dev.pilox.vault." + eventType(l),
		Body:      &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: string(v.Raw)}},
		Attributes: []*common.KeyValue{
			text("vault.log", l.Log), number("vault.idx", int64(l.Index)), text("vault.leaf_hash", v.Hash.String()),
			text("vault.class", string(l.Class)), text("vault.phase", string(l.Phase)), text("vault.verdict", l.Verdict.String()),
		},
	}
	for _, a := range [][2]string{
		{"vault.run", string(l.Run)},
		{"vault.reason", string(l.Reason)},
		{"vault.kind", string(l.Kind)},
		{"gen_ai.tool.name", l.Tool},
		{"gen_ai.tool.call.id", l.Call},
	} {
		if a[1] != "" {
			r.Attributes = append(r.Attributes, text(a[0], a[1]))
		}
	}
	for _, f := range v.Fields {
		r.Attributes = append(r.Attributes, text("vault.field."+f.Name, f.Value))
	}
	return r
}

func text(key, value string) *common.KeyValue {
	return &common.KeyValue{Key: key, Value: &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: value}}}
}

func number(key string, value int64) *common.KeyValue {
	return &common.KeyValue{Key: key, Value: &common.AnyValue{Value: &common.AnyValue_IntValue{IntValue: value}}}
}

// cut bounds what a receiver says for a log line.
func cut(s string) string { return s[:min(len(s), maxError)] }

package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	spans "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/vaulttest"
)

const canary = "canary-4711"

// follow has a call with the canary everywhere pass a few stages.
func follow(t *testing.T, tr *Traces, kind vault.Kind, err error) {
	t.Helper()
	args, aerr := vault.ParseArgs([]byte(`{"to":"` + canary + `"}`))
	if aerr != nil {
		t.Fatal(aerr)
	}
	f := &vault.Facts{
		Call: &vault.Call{
			ID: canary, Tenant: canary, Agent: canary, Principal: canary, Kind: kind, Server: canary, Edge: canary, Args: args,
			Target: vault.Target{Name: canary},
		},
		Grant: &vault.Grant{Purpose: canary, Inputs: canary}, Tool: &vault.Tool{Server: "files", Name: "read"},
	}
	if kind != vault.KindTool {
		f.Tool = &vault.Tool{Server: canary, Name: canary}
	}
	ctx := tr.Start(t.Context(), f.Call)
	for _, stage := range []string{"verify", "decide", "run"} {
		tr.Stage(ctx, stage)
	}
	f.Call.Task = "t-1"
	tr.End(ctx, f, err)
}

func denial() error {
	idx := uint64(7)
	d := vault.NewDenial(vault.CodeScan, "/"+canary, fmt.Errorf("because of %s", canary))
	d.Reason.Detail, d.Event = canary, &idx
	return d
}

func newTraces(t *testing.T, url string, sample float64) *Traces {
	t.Helper()
	tr, err := NewTraces(t.Context(), TracesConfig{URL: url, Client: http.DefaultClient, Sample: sample, Log: "vault.test/1", Version: "1.2.3", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// TestTraces: a call is one span of a trace of its own, with a child for each stage,
// and neither holds what a call says of values, people and places.
func TestTraces(t *testing.T) {
	var mu sync.Mutex
	var got []*spans.Span
	var raw bytes.Buffer
	w := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		var req collector.ExportTraceServiceRequest
		if err != nil || proto.Unmarshal(b, &req) != nil || r.URL.Path != "/v1/traces" {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		raw.Write(b)
		for _, rs := range req.GetResourceSpans() {
			for _, sc := range rs.GetScopeSpans() {
				got = append(got, sc.GetSpans()...)
			}
		}
	}))
	defer w.Close()
	tr := newTraces(t, w.URL+"/v1/traces", 1)
	follow(t, tr, vault.KindTool, nil)
	follow(t, tr, vault.KindEgress, denial())
	if err := tr.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	roots, children := map[string]*spans.Span{}, map[string][]string{}
	for _, s := range got {
		if len(s.GetParentSpanId()) == 0 {
			roots[string(s.GetSpanId())] = s
		} else {
			children[string(s.GetParentSpanId())] = append(children[string(s.GetParentSpanId())], s.GetName())
		}
		if s.GetEndTimeUnixNano() < s.GetStartTimeUnixNano() || s.GetStartTimeUnixNano() == 0 {
			t.Errorf("span %s ends before it begins", s.GetName())
		}
	}
	if len(roots) != 2 {
		t.Fatalf("%d calls, want 2", len(roots))
	}
	var verdicts []string
	traces := map[string]bool{}
	for id, s := range roots {
		traces[string(s.GetTraceId())] = true
		if stages := children[id]; !slices.Equal(stages, []string{"verify", "decide", "run"}) {
			t.Errorf("stages %v", stages)
		}
		attr := map[string]string{}
		for _, a := range s.GetAttributes() {
			attr[a.GetKey()] = a.GetValue().GetStringValue()
		}
		verdicts = append(verdicts, attr["vault.kind"]+" "+attr["vault.verdict"]+" "+attr["vault.reason"]+" "+attr["gen_ai.tool.name"]+" "+attr["vault.edge"]+" "+attr["vault.run"])
	}
	slices.Sort(verdicts)
	if want := []string{"egress deny scan.content  other t-1", "tool allow  read other t-1"}; !slices.Equal(verdicts, want) || len(traces) != 2 {
		t.Errorf("%q in %d traces, want %q", verdicts, len(traces), want)
	}
	if strings.Contains(raw.String(), canary) {
		t.Error("a span says what a call says")
	}
}

// TestTracesHoldUpNobody: a collector that is down or does not answer costs a call
// nothing but room for its spans, which is bounded.
func TestTracesHoldUpNobody(t *testing.T) {
	gone := make(chan struct{})
	stuck := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-gone }))
	defer stuck.Close()
	defer close(gone)
	for name, url := range map[string]string{"down": "http://127.0.0.1:1/v1/traces", "stuck": stuck.URL + "/v1/traces"} {
		tr := newTraces(t, url, 1)
		began := time.Now()
		for range 5 * maxSpans {
			follow(t, tr, vault.KindTool, nil)
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("%s: %d calls took %v", name, 5*maxSpans, took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		_ = tr.Close(ctx) // it says that the time was too short, if it was
		cancel()
	}
}

// TestUnsampledCallsCostNothing: a call that is not followed takes no room.
func TestUnsampledCallsCostNothing(t *testing.T) {
	tr := newTraces(t, "http://127.0.0.1:1/v1/traces", 0)
	defer tr.Close(t.Context())
	ctx := tr.Start(t.Context(), &vault.Call{})
	if ctx.Value(followedKey{}) != nil {
		t.Fatal("followed")
	}
	if n := testing.AllocsPerRun(100, func() { tr.Stage(ctx, "run") }); n > 0 {
		t.Errorf("%v allocations a stage", n)
	}
	tr.End(ctx, &vault.Facts{Call: new(vault.Call), Tool: new(vault.Tool)}, nil)
}

// TestTracesCollector sends spans to an OpenTelemetry collector.
func TestTracesCollector(t *testing.T) {
	c := vaulttest.NewCollector(t)
	end := c.Start(t)
	tr := newTraces(t, c.URL+"/v1/traces", 1)
	for range 10 {
		follow(t, tr, vault.KindTool, denial())
	}
	if err := tr.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	end()
	b, err := os.ReadFile(c.File)
	if err != nil {
		t.Fatal(err)
	}
	n := map[string]int{}
	for line := range bytes.Lines(b) {
		var req struct {
			ResourceSpans []struct {
				ScopeSpans []struct {
					Spans []struct{ Name string }
				}
			}
		}
		if err := json.Unmarshal(line, &req); err != nil {
			t.Fatal(err)
		}
		for _, rs := range req.ResourceSpans {
			for _, sc := range rs.ScopeSpans {
				for _, s := range sc.Spans {
					n[s.Name]++
				}
			}
		}
	}
	if n["call"] != 10 || n["decide"] != 10 || len(n) != 4 {
		t.Errorf("spans %v", n)
	}
}

// BenchmarkTrace is what a call pays for being followed, with six stages.
func BenchmarkTrace(b *testing.B) {
	w := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer w.Close()
	for _, sample := range []float64{0, 1} {
		b.Run(fmt.Sprint("sample=", sample), func(b *testing.B) {
			tr, err := NewTraces(b.Context(), TracesConfig{URL: w.URL + "/v1/traces", Client: http.DefaultClient, Sample: sample, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				b.Fatal(err)
			}
			f := &vault.Facts{Call: &vault.Call{Kind: vault.KindTool}, Tool: &vault.Tool{Server: "files", Name: "read"}}
			b.ReportAllocs()
			for b.Loop() {
				ctx := tr.Start(b.Context(), f.Call)
				for _, s := range []string{"verify", "resolve", "check", "decide", "admit", "run"} {
					tr.Stage(ctx, s)
				}
				tr.End(ctx, f, nil)
			}
			_ = tr.Close(b.Context())
		})
	}
}

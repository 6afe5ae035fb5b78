// Package telemetry counts what the daemon does and follows single calls: metrics
// for Prometheus and traces for OpenTelemetry.
//
// It owns the names and units of what is told. It does not own who may read it (the
// daemon authenticates) or what happens to calls. Start with [NewMetrics].
//
// It promises: no payload, argument, principal, agent, host or path is in a metric
// or a trace; every label has a bounded set of values; counting is a few atomic
// additions on the path of a call.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/expfmt"

	"github.com/pilox/vault"
)

// A State is what is read when somebody asks for the metrics.
type State struct {
	Version string

	Events   uint64 // in the ledger
	Queue    uint64 // placed and not on disk
	LedgerUp bool   // it takes events

	Anchors []Lag
	Sinks   []Lag

	Pending int            // questions that people can answer
	Servers map[string]int // registered servers by state: ready, unpinned, broken

	Rules *Rules // nil without any
}

// A Lag is how far somebody outside is behind the ledger.
type Lag struct {
	Name    string // from the configuration
	Events  uint64
	Failing bool   // the last attempt failed
	Dropped uint64 // events that it took and said it dropped
}

// Rules says how the operator's rules fare.
type Rules struct {
	Evaluated, Shadowed, Mismatches uint64
	Age                             time.Duration // since those in force were loaded
	Failed                          bool          // the last reload did
}

// Metrics are the daemon's metrics. It is safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry
	read     func(context.Context) State

	calls     *bounded
	tools     *bounded
	denials   *bounded
	strangers *bounded
	took      prometheus.Histogram
	commit    prometheus.Histogram
	batch     prometheus.Histogram
}

// Bounds of the label values. What comes after them is counted as other.
const (
	maxCodes = 128  // the catalogue of reasons has some sixty
	maxTools = 4096 // tools of all registered servers, by verdict
	maxCalls = 256  // kinds by verdict
)

// NewMetrics returns metrics that read the rest of what they tell with read.
func NewMetrics(read func(context.Context) State) *Metrics {
	m := &Metrics{registry: prometheus.NewPedanticRegistry(), read: read}
	counter := func(limit int, name, help string, labels ...string) *bounded {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		m.registry.MustRegister(v)
		return &bounded{vec: v, limit: limit, made: map[[3]string]prometheus.Counter{}, labels: len(labels)}
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
		m.registry.MustRegister(h)
		return h
	}
	m.calls = counter(maxCalls, "pvault_calls_total", "Calls that have ended, by kind and verdict: allow, deny, pending, withheld or error.", "kind", "verdict")
	m.tools = counter(maxTools, "pvault_tool_calls_total", "Calls of registered tools that have ended, by verdict.", "server", "tool", "verdict")
	m.denials = counter(maxCodes, "pvault_denials_total", "Calls that did not go through, by the code of the reason.", "code")
	m.strangers = counter(maxCodes, "pvault_strangers_total", "Requests refused before they were calls, by the code of the reason.", "code")
	m.took = histogram("pvault_call_seconds", "Time from the arrival of a call to its end, with what it waited for people and servers.",
		[]float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60})
	m.commit = histogram("pvault_ledger_commit_seconds", "Time of one durable write of the ledger.",
		[]float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5})
	m.batch = histogram("pvault_ledger_batch_events", "Events in one durable write of the ledger.",
		[]float64{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096})
	m.registry.MustRegister(state{m}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Call counts a call that has ended.
func (m *Metrics) Call(f *vault.Facts, err error, took time.Duration) {
	verdict := "allow"
	if d, ok := errors.AsType[*vault.Denial](err); ok {
		verdict = d.Verdict
		m.denials.add(string(d.Reason.Code), "", "")
	}
	m.calls.add(string(f.Call.Kind), verdict, "")
	// The names are the catalogue's. Those of other kinds say whom or where.
	if f.Call.Kind == vault.KindTool && f.Tool.Server != "" {
		m.tools.add(f.Tool.Server, f.Tool.Name, verdict)
	}
	m.took.Observe(took.Seconds())
}

// Stranger counts a request that was refused before it was a call.
func (m *Metrics) Stranger(code vault.Code) { m.strangers.add(string(code), "", "") }

// Committed counts a batch of the ledger.
func (m *Metrics) Committed(events int, took time.Duration) {
	m.batch.Observe(float64(events))
	m.commit.Observe(took.Seconds())
}

// Write writes all metrics in the text format of Prometheus.
func (m *Metrics) Write(w io.Writer) error {
	families, err := m.registry.Gather()
	if err != nil {
		return fmt.Errorf("gather metrics: %w", err)
	}
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(w, f); err != nil {
			return err
		}
	}
	return nil
}

// A Sample is one number. Of a histogram there are two, its count and its sum.
type Sample struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
	Value  float64           `json:"value"`
}

// Samples returns all metrics.
func (m *Metrics) Samples() ([]Sample, error) {
	families, err := m.registry.Gather()
	if err != nil {
		return nil, fmt.Errorf("gather metrics: %w", err)
	}
	var out []Sample
	for _, f := range families {
		for _, x := range f.GetMetric() {
			var labels map[string]string
			for _, l := range x.GetLabel() {
				if labels == nil {
					labels = map[string]string{}
				}
				labels[l.GetName()] = l.GetValue()
			}
			switch {
			case x.GetCounter() != nil:
				out = append(out, Sample{f.GetName(), labels, x.GetCounter().GetValue()})
			case x.GetGauge() != nil:
				out = append(out, Sample{f.GetName(), labels, x.GetGauge().GetValue()})
			case x.GetHistogram() != nil:
				h := x.GetHistogram()
				out = append(out, Sample{f.GetName() + "_count", labels, float64(h.GetSampleCount())}, Sample{f.GetName() + "_sum", labels, h.GetSampleSum()})
			case x.GetSummary() != nil:
				h := x.GetSummary()
				out = append(out, Sample{f.GetName() + "_count", labels, float64(h.GetSampleCount())}, Sample{f.GetName() + "_sum", labels, h.GetSampleSum()})
			}
		}
	}
	return out, nil
}

// Handler serves the metrics to a scraper, one at a time. It does not authenticate.
func (m *Metrics) Handler(log *slog.Logger) http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn), ErrorHandling: promhttp.HTTPErrorOnError, MaxRequestsInFlight: 2, Timeout: 10 * time.Second,
	})
}

// bounded is a counter with labels, of which it makes a limited number.
type bounded struct {
	vec    *prometheus.CounterVec
	limit  int
	labels int

	mu   sync.RWMutex // guards made
	made map[[3]string]prometheus.Counter
}

// add counts one. Labels that it does not have are empty.
func (b *bounded) add(first, second, third string) {
	key := [3]string{label(first), label(second), label(third)}
	b.mu.RLock()
	c := b.made[key]
	b.mu.RUnlock()
	if c == nil {
		c = b.make(key)
	}
	c.Inc()
}

// maxLabel bounds a value, in bytes.
const maxLabel = 128

// label makes any text a value that a label can have. The library panics over
// others, and what is counted has happened.
func label(s string) string {
	if len(s) > maxLabel {
		s = s[:maxLabel]
	}
	return strings.ToValidUTF8(s, "\ufffd")
}

func (b *bounded) make(key [3]string) prometheus.Counter {
	b.mu.Lock()
	defer b.mu.Unlock()
	if c := b.made[key]; c != nil {
		return c
	}
	if len(b.made) >= b.limit {
		return b.vec.WithLabelValues([]string{"other", "other", "other"}[:b.labels]...)
	}
	c := b.vec.WithLabelValues(key[:b.labels]...)
	b.made[key] = c
	return c
}

package telemetry

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// readTime bounds how long the daemon may look for its state.
const readTime = 5 * time.Second

// state collects what is read at the moment.
type state struct{ m *Metrics }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// What is told of the state.
var (
	descInfo       = desc("pvault_info", "Always 1.", "version")
	descEvents     = desc("pvault_ledger_events", "Events in the ledger.")
	descQueue      = desc("pvault_ledger_queue_events", "Events that have their place and are not on disk yet.")
	descUp         = desc("pvault_ledger_up", "1 while the ledger takes events; at 0 nothing runs.")
	descAnchorLag  = desc("pvault_anchor_lag_events", "Events that a witness or log has not vouched for.", "target")
	descAnchorFail = desc("pvault_anchor_failing", "1 if the last attempt failed.", "target")
	descSinkLag    = desc("pvault_sink_lag_events", "Events that a sink has not delivered.", "sink")
	descSinkFail   = desc("pvault_sink_failing", "1 if the last attempt failed.", "sink")
	descSinkDrop   = desc("pvault_sink_dropped_events_total", "Events that the receiver took and said it dropped.", "sink")
	descPending    = desc("pvault_approvals_pending", "Questions that people can answer.")
	descServers    = desc("pvault_servers", "Registered servers by state; ready ones can be called.", "state")
	descEvaluated  = desc("pvault_policy_answers_total", "Answers of the operator's rules that counted.")
	descShadowed   = desc("pvault_policy_shadow_answers_total", "Answers of rules in mode shadow.")
	descMismatch   = desc("pvault_policy_shadow_mismatches_total", "Answers of rules in mode shadow that would have been stricter.")
	descAge        = desc("pvault_policy_age_seconds", "Time since the rules in force were loaded.")
	descReload     = desc("pvault_policy_reload_failing", "1 if the last reload failed.")
)

// Describe lists what Collect tells.
func (s state) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descInfo, descEvents, descQueue, descUp, descAnchorLag, descAnchorFail, descSinkLag, descSinkFail, descSinkDrop,
		descPending, descServers, descEvaluated, descShadowed, descMismatch, descAge, descReload,
	} {
		out <- d
	}
}

// Collect reads the state and tells it.
func (s state) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), readTime) //nolint:forbidigo // the interface gives none
	defer cancel()
	st := s.m.read(ctx)
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(descInfo, 1, st.Version)
	gauge(descEvents, float64(st.Events))
	gauge(descQueue, float64(st.Queue))
	gauge(descUp, truth(st.LedgerUp))
	for _, a := range st.Anchors {
		gauge(descAnchorLag, float64(a.Events), a.Name)
		gauge(descAnchorFail, truth(a.Failing), a.Name)
	}
	for _, k := range st.Sinks {
		gauge(descSinkLag, float64(k.Events), k.Name)
		gauge(descSinkFail, truth(k.Failing), k.Name)
		counter(descSinkDrop, k.Dropped, k.Name)
	}
	gauge(descPending, float64(st.Pending))
	for name, n := range st.Servers {
		gauge(descServers, float64(n), name)
	}
	if r := st.Rules; r != nil {
		counter(descEvaluated, r.Evaluated)
		counter(descShadowed, r.Shadowed)
		counter(descMismatch, r.Mismatches)
		gauge(descAge, r.Age.Seconds())
		gauge(descReload, truth(r.Failed))
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

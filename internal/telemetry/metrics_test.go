package telemetry

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pilox/vault"
)

func empty(context.Context) State { return State{} }

func text(t *testing.T, m *Metrics) string {
	t.Helper()
	var b strings.Builder
	if err := m.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func wantLines(t *testing.T, got string, want ...string) {
	t.Helper()
	for _, line := range want {
		if !strings.Contains("\n"+got, "\n"+line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
}

func TestMetrics(t *testing.T) {
	m := NewMetrics(func(context.Context) State {
		return State{
			Version: "1.2.3", Events: 100, Queue: 3, LedgerUp: true, Pending: 2, Servers: map[string]int{"ready": 4},
			Anchors: []Lag{{Name: "rekor", Events: 7, Failing: true}}, Sinks: []Lag{{Name: "siem", Events: 9, Dropped: 1}},
			Rules: &Rules{Evaluated: 5, Shadowed: 4, Mismatches: 3, Age: time.Minute, Failed: true},
		}
	})
	f := &vault.Facts{Call: &vault.Call{Kind: vault.KindTool}, Tool: &vault.Tool{Server: "files", Name: "read"}}
	m.Call(f, nil, time.Millisecond)
	m.Call(f, vault.NewDenial(vault.CodeCapabilityTarget, "", nil), time.Millisecond)
	m.Stranger(vault.CodeProof)
	m.Committed(8, 2*time.Millisecond)
	wantLines(t, text(t, m),
		`pvault_calls_total{kind="tool",verdict="allow"} 1`, `pvault_calls_total{kind="tool",verdict="deny"} 1`,
		`pvault_tool_calls_total{server="files",tool="read",verdict="deny"} 1`, `pvault_denials_total{code="capability.target"} 1`,
		`pvault_strangers_total{code="proof"} 1`, `pvault_call_seconds_count 2`, `pvault_ledger_batch_events_sum 8`, `pvault_ledger_commit_seconds_count 1`,
		`pvault_info{version="1.2.3"} 1`, `pvault_ledger_events 100`, `pvault_ledger_queue_events 3`, `pvault_ledger_up 1`,
		`pvault_anchor_lag_events{target="rekor"} 7`, `pvault_anchor_failing{target="rekor"} 1`, `pvault_sink_lag_events{sink="siem"} 9`,
		`pvault_sink_failing{sink="siem"} 0`, `pvault_sink_dropped_events_total{sink="siem"} 1`, `pvault_approvals_pending 2`, `pvault_servers{state="ready"} 4`,
		`pvault_policy_shadow_mismatches_total 3`, `pvault_policy_age_seconds 60`, `pvault_policy_reload_failing 1`)
	list, err := m.Samples()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]float64{}
	for _, s := range list {
		found[s.Name+s.Labels["code"]] = s.Value
	}
	if found["pvault_denials_totalcapability.target"] != 1 || found["pvault_ledger_batch_events_sum"] != 8 || found["pvault_ledger_events"] != 100 {
		t.Errorf("samples %v", list)
	}
}

// TestMetricsAreBounded: no agent, server or rule can make series without end, also
// not from many sides at once.
func TestMetricsAreBounded(t *testing.T) {
	m := NewMetrics(empty)
	var wg sync.WaitGroup
	const each = 2 * maxTools
	for range 4 {
		wg.Go(func() {
			for i := range each {
				f := &vault.Facts{Call: &vault.Call{Kind: vault.Kind(fmt.Sprint("k", i))}, Tool: &vault.Tool{Server: "s", Name: fmt.Sprint("t", i)}}
				m.Call(f, vault.NewDenial(vault.Code(fmt.Sprint("code.", i)), "", nil), 0)
				f.Call.Kind = vault.KindTool
				m.Call(f, nil, 0)
				m.Stranger(vault.Code(fmt.Sprint("code.", i)))
			}
		})
	}
	wg.Wait()
	series, sum := map[string]int{}, map[string]float64{}
	list, err := m.Samples()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		series[s.Name]++
		sum[s.Name] += s.Value
	}
	for name, most := range map[string]int{"pvault_calls_total": maxCalls, "pvault_tool_calls_total": maxTools, "pvault_denials_total": maxCodes, "pvault_strangers_total": maxCodes} {
		if series[name] > most+1 {
			t.Errorf("%s has %d series, want at most %d and other", name, series[name], most)
		}
	}
	if sum["pvault_calls_total"] != 4*2*each || sum["pvault_denials_total"] != 4*each || sum["pvault_tool_calls_total"] != 4*each {
		t.Errorf("something was not counted: %v", sum)
	}
}

// TestOddNames: whatever a server calls its tools can be counted.
func TestOddNames(t *testing.T) {
	m := NewMetrics(empty)
	for _, name := range []string{"\xff\x00", "a\nb\"}", strings.Repeat("é", 1000)} {
		m.Call(&vault.Facts{Call: &vault.Call{Kind: vault.KindTool}, Tool: &vault.Tool{Server: name, Name: name}}, vault.NewDenial(vault.Code(name), "", nil), 0)
	}
	if n := strings.Count(text(t, m), "\npvault_tool_calls_total{"); n != 3 {
		t.Errorf("%d series", n)
	}
}

// TestMetricsSayNoSecret: what a call says of values, people and places is in no
// metric.
func TestMetricsSayNoSecret(t *testing.T) {
	args, err := vault.ParseArgs([]byte(`{"to":"` + canary + `"}`))
	if err != nil {
		t.Fatal(err)
	}
	m := NewMetrics(empty)
	for _, kind := range []vault.Kind{vault.KindTool, vault.KindEgress, vault.KindResource, vault.KindFile, vault.KindExec, vault.KindAgent} {
		f := &vault.Facts{
			Call: &vault.Call{
				ID: canary, Task: canary, Tenant: canary, Agent: canary, Principal: canary, Kind: kind, Server: canary, Edge: canary, Args: args,
				Target: vault.Target{Name: canary},
			},
			Grant: &vault.Grant{Purpose: canary, Inputs: canary}, Tool: new(vault.Tool),
		}
		if kind != vault.KindTool {
			f.Tool = &vault.Tool{Server: canary, Name: canary} // whom or where
		}
		m.Call(f, nil, 0)
		d := vault.NewDenial(vault.CodeScan, "/"+canary, nil)
		d.Reason.Detail = canary
		m.Call(f, d, 0)
	}
	if s := text(t, m); strings.Contains(s, canary) || !strings.Contains(s, `kind="egress"`) {
		t.Errorf("%s", s)
	}
}

// BenchmarkCall is what a call pays for being counted.
func BenchmarkCall(b *testing.B) {
	m := NewMetrics(empty)
	f := &vault.Facts{Call: &vault.Call{Kind: vault.KindTool}, Tool: &vault.Tool{Server: "files", Name: "read"}}
	b.ReportAllocs()
	for b.Loop() {
		m.Call(f, nil, time.Millisecond)
	}
}

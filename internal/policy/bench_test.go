package policy_test

import (
	"encoding/json"
	"os"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/policy"
)

// eight is the policy of the benchmarks: eight rules, a set of data.
func eight(t testing.TB) *policy.Policy {
	t.Helper()
	p, err := policy.New(t.Context(), policy.Config{
		Bundles: []policy.Bundle{{Name: "eight", Dir: "testdata/eight", Unsigned: true}},
		Hooks:   []policy.Hook{{At: policy.AtToolCall, Match: policy.Match{Tool: []string{"pay.*", "mail.*"}}, Query: "data.vault.toolcall.decision", Deadline: time.Minute}}, // a busy host is no reason
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestEight(t *testing.T) {
	p := eight(t)
	for _, tt := range []struct {
		name  string
		facts *vault.Facts
		want  vault.Verdict
		rule  string
	}{
		{"an ordinary mail passes", facts("mail", "send", `{"to":["a@example.com"],"subject":"s","body":"b"}`), vault.Allow, ""},
		{"an unusual domain asks", facts("mail", "send", `{"to":["a@example.org"]}`), vault.Ask, "domain"},
		{"a large amount asks", facts("pay", "transfer", `{"amount":501,"to":[]}`), vault.Ask, "large"},
		{"a destructive tool is refused", facts("pay", "drop_table", `{}`), vault.Deny, "destructive"},
		{"an unmatched server is left alone", facts("files", "drop_table", `{}`), vault.Allow, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if d := p.Decide(t.Context(), tt.facts); d.Verdict != tt.want || tt.rule != "" && d.Reason().Path != tt.rule {
				t.Errorf("got %+v", d)
			}
		})
	}
}

const benchArgs = `{"to":["a@example.com"],"subject":"Invoice 4711","body":"Dear customer, please find attached the reminder."}`

func BenchmarkDecide(b *testing.B) {
	p, f := eight(b), facts("mail", "send", benchArgs)
	b.ReportAllocs()
	for b.Loop() {
		if p.Decide(b.Context(), f).Verdict != vault.Allow {
			b.Fatal("not allowed")
		}
	}
}

func BenchmarkDecideNoHookMatches(b *testing.B) {
	p, f := eight(b), facts("files", "read", benchArgs)
	b.ReportAllocs()
	for b.Loop() {
		p.Decide(b.Context(), f)
	}
}

// BenchmarkOPAAlone is the baseline: the same rules and the same input as a Go
// map, evaluated the way OPA's documentation shows.
func BenchmarkOPAAlone(b *testing.B) {
	p := eight(b)
	raw, err := p.Input(facts("mail", "send", benchArgs))
	if err != nil {
		b.Fatal(err)
	}
	var in, data map[string]any
	if err := json.Unmarshal(raw, &in); err != nil {
		b.Fatal(err)
	}
	text, err := os.ReadFile("testdata/eight/data.json")
	if err != nil {
		b.Fatal(err)
	}
	if err := json.Unmarshal(text, &data); err != nil {
		b.Fatal(err)
	}
	module, err := os.ReadFile("testdata/eight/toolcall.rego")
	if err != nil {
		b.Fatal(err)
	}
	q, err := rego.New(rego.Query("data.vault.toolcall.decision"), rego.Module("m.rego", string(module)), rego.Store(inmem.NewFromObject(data))).PrepareForEval(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		rs, err := q.Eval(b.Context(), rego.EvalInput(in))
		if err != nil || len(rs) != 1 {
			b.Fatal(rs, err)
		}
	}
}

// FuzzDecide turns any JSON into an answer: none but a well-formed one allows,
// and none panics.
func FuzzDecide(f *testing.F) {
	for _, s := range []string{`true`, `{"effect":"allow"}`, `{"effect":"ask","approval":{"group":"g"}}`, `{"effect":"allow","obligations":[{"type":"transform","args":{"a":[1]}}]}`, `{"effect":"deny","reasons":[{"rule":"r"}]}`} {
		f.Add(s)
	}
	p := module(f, `decision := json.unmarshal(input.call.args.answer)`)
	f.Fuzz(func(t *testing.T, answer string) {
		args, err := vault.ParseArgs(append(vault.AppendQuoted([]byte(`{"answer":`), answer), '}'))
		if err != nil {
			t.Skip()
		}
		fa := facts("pay", "transfer", `{}`)
		fa.Call.Args = args
		d := p.Decide(t.Context(), fa)
		if d.Verdict != vault.Allow {
			if len(d.Reasons) == 0 {
				t.Errorf("%s: %v without a reason", answer, d.Verdict)
			}
			return
		}
		var doc any
		if err := json.Unmarshal([]byte(answer), &doc); err != nil {
			t.Fatalf("%q allows and is not JSON", answer)
		}
		if m, ok := doc.(map[string]any); doc != true && (!ok || m["effect"] != "allow") {
			t.Errorf("%s allows", answer)
		}
	})
}

package policy_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/policy"
)

// logEvent is an event with something to hide in each part.
func logEvent() *policy.LogEvent {
	return &policy.LogEvent{
		Labels: map[string]string{"id": "vault.internal/x"}, DecisionID: "c-1", Path: "p/decision",
		Input: map[string]any{"call": map[string]any{"args": map[string]any{
			"card": "4111", "a b": "s1", "c/d": "s2", "list": []any{"zero", "one", "two"}, "rows": []any{[]any{"r0", "r1"}, map[string]any{"k": "v"}},
		}}},
		Result: map[string]any{"effect": "deny", "reasons": []any{map[string]any{"code": "policy_denied", "msg": "4111 is not yours"}}},
		Error:  &policy.LogError{Code: "policy_error", Message: "no number: 4111"}, Timestamp: time.Date(2026, 11, 28, 8, 0, 0, 0, time.UTC),
		Vault: policy.LogVault{Phase: vault.PhaseRefused, Agent: "spiffe://x/agent/clerk", Tool: "pay.transfer", Effect: "deny", Hash: vault.Digest{1}, Seq: 7},
	}
}

// logged returns what is logged of an event under the rules of package system.log.
func logged(t testing.TB, rules string, e *policy.LogEvent) (line map[string]any, bare bool) {
	t.Helper()
	p, err := policy.New(t.Context(), policy.Config{Bundles: []policy.Bundle{bundle(t, map[string]string{"log.rego": "package system.log\n\n" + rules})}})
	if err != nil {
		t.Fatal(err)
	}
	raw, bare, err := p.Log(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	if raw == nil {
		return nil, bare
	}
	if err := json.Unmarshal(raw, &line); err != nil {
		t.Fatal(err)
	}
	return line, bare
}

// at returns what is at a path of a document, as JSON; "absent" if there is nothing.
func at(doc any, path ...string) string {
	for _, p := range path {
		switch v := doc.(type) {
		case map[string]any:
			child, ok := v[p]
			if !ok {
				return "absent"
			}
			doc = child
		case []any:
			var i int
			if _, err := fmt.Sscan(p, &i); err != nil || i >= len(v) {
				return "absent"
			}
			doc = v[i]
		default:
			return "absent"
		}
	}
	b, err := json.Marshal(doc)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// TestMasks reads as the specification of masks: OPA's, and where ours hides more.
func TestMasks(t *testing.T) {
	args := []string{"input", "call", "args"}
	for _, tt := range []struct {
		name, rules string
		path        []string
		want        string
		erased      string
		masked      string
	}{
		{"no rule leaves it alone", `other := 1`, append(args, "card"), `"4111"`, "absent", "absent"},
		{"a path is removed", `mask contains "/input/call/args/card"`, append(args, "card"), "absent", `["/input/call/args/card"]`, "absent"},
		{"so is one that says so", `mask contains {"op": "remove", "path": "/input/call/args/card"}`, append(args, "card"), "absent", `["/input/call/args/card"]`, "absent"},
		{"an array of masks", `mask := ["/input/call/args/card"]`, append(args, "card"), "absent", `["/input/call/args/card"]`, "absent"},
		{"a value is replaced", `mask contains {"op": "upsert", "path": "/input/call/args/card", "value": "x"}`, append(args, "card"), `"x"`, "absent", `["/input/call/args/card"]`},
		{"with null", `mask contains {"op": "upsert", "path": "/input/call/args/card", "value": null}`, append(args, "card"), `null`, "absent", `["/input/call/args/card"]`},
		{"or is new", `mask contains {"op": "upsert", "path": "/input/new/x", "value": 1}`, []string{"input", "new", "x"}, `1`, "absent", `["/input/new/x"]`},
		{"the whole input", `mask contains "/input"`, []string{"input"}, "absent", `["/input"]`, "absent"},
		{"another in the place of the whole input", `mask contains {"op": "upsert", "path": "/input", "value": {}}`, []string{"input"}, "{}", "absent", `["/input"]`},
		{"the result", `mask contains "/result/reasons"`, []string{"result", "reasons"}, "absent", `["/result/reasons"]`, "absent"},
		{"the error", `mask contains "/error/message"`, []string{"error"}, `{"code":"policy_error"}`, `["/error/message"]`, "absent"},
		{"who it was", `mask contains "/vault/agent"`, []string{"vault", "agent"}, "absent", `["/vault/agent"]`, "absent"},
		{"what is not there", `mask contains "/input/nothing"`, []string{"input", "call", "args", "card"}, `"4111"`, "absent", "absent"},
		{"below a text", `mask contains {"op": "upsert", "path": "/input/call/args/card/x", "value": 1}`, append(args, "card"), `"4111"`, "absent", "absent"},
		{"what OPA may have and this has not", `mask contains "/nd_builtin_cache"`, append(args, "card"), `"4111"`, "absent", "absent"},
		{"an element", `mask contains "/input/call/args/list/1"`, append(args, "list"), `["zero","two"]`, `["/input/call/args/list/1"]`, "absent"},
		{"two elements are the two that are meant", `mask := ["/input/call/args/list/0", "/input/call/args/list/1"]`, append(args, "list"), `["two"]`, `["/input/call/args/list/0","/input/call/args/list/1"]`, "absent"},
		{"an element of an element", `mask := ["/input/call/args/rows/0/0", "/input/call/args/rows/1/k"]`, append(args, "rows"), `[["r1"],{}]`, `["/input/call/args/rows/0/0","/input/call/args/rows/1/k"]`, "absent"},
		{"an element that is replaced", `mask contains {"op": "upsert", "path": "/input/call/args/list/1", "value": "x"}`, append(args, "list"), `["zero","x","two"]`, "absent", `["/input/call/args/list/1"]`},
		{"an element far beyond the end", `mask contains {"op": "upsert", "path": "/input/call/args/list/999999999", "value": "x"}`, append(args, "list"), `["zero","one","two"]`, "absent", "absent"},
		{"a name with a space", `mask contains "/input/call/args/a b"`, append(args, "a b"), "absent", `["/input/call/args/a%20b"]`, "absent"},
		{"a name with a slash", `mask contains "/input/call/args/c%2Fd"`, append(args, "c/d"), "absent", `["/input/call/args/c%252Fd"]`, "absent"},
		{"by what the event says", `mask contains "/input/call/args/card" if input.result.effect == "deny"`, append(args, "card"), "absent", `["/input/call/args/card"]`, "absent"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			line, bare := logged(t, tt.rules, logEvent())
			if bare {
				t.Fatalf("it failed: %v", line["error"])
			}
			if got := at(line, tt.path...); got != tt.want {
				t.Errorf("there is %s, want %s", got, tt.want)
			}
			if e, m := at(line, "erased"), at(line, "masked"); e != tt.erased || m != tt.masked {
				t.Errorf("erased %s, masked %s", e, m)
			}
			if at(line, "vault", "seq") != "7" || at(line, "vault", "hash") == "absent" {
				t.Errorf("the event lost its place: %v", line["vault"])
			}
		})
	}
}

// A rule about the log that cannot be evaluated hides all it could have hidden.
func TestFailedMasksHideEverything(t *testing.T) {
	for _, tt := range []struct{ name, rules, code string }{
		{"a built-in that fails", `mask contains "/input/x" if to_number(input.input.call.args.card) + to_number("4111 x") > 0`, policy.LogMaskError},
		{"two answers", "mask := [\"/input\"] if input.decision_id\nmask := [] if input.decision_id", policy.LogMaskError},
		{"no list", `mask := {"op": "remove", "path": "/input"}`, policy.LogMaskError},
		{"a path that is none", `mask contains "input/call"`, policy.LogMaskError},
		{"a path of something else", `mask contains "/labels/id"`, policy.LogMaskError},
		{"a path of what ties it to the ledger", `mask contains "/vault/hash"`, policy.LogMaskError},
		{"an unknown op", `mask contains {"op": "hash", "path": "/input"}`, policy.LogMaskError},
		{"no op", `mask contains {"path": "/input"}`, policy.LogMaskError},
		{"no path", `mask contains {"op": "remove"}`, policy.LogMaskError},
		{"a number", `mask contains 1`, policy.LogMaskError},
		{"too many", `mask contains sprintf("/input/%d", [i]) if some i in numbers.range(1, 1001)`, policy.LogMaskError},
		{"one that never ends", `mask contains "/input" if count([1 | some x in numbers.range(1, 1000); some y in numbers.range(1, 1000); x == y]) > 0`, policy.LogMaskError},
		{"a drop that fails", `drop if to_number("4111 x") > 0`, policy.LogDropError},
		{"a drop that is no boolean", `drop := "yes"`, policy.LogDropError},
		{"a drop that is a set", `drop contains "pay.transfer"`, policy.LogDropError},
	} {
		t.Run(tt.name, func(t *testing.T) {
			line, bare := logged(t, tt.rules, logEvent())
			if !bare || at(line, "error", "code") != `"`+tt.code+`"` || !strings.Contains(at(line, "error", "message"), "data.system.log.") {
				t.Errorf("bare %t, error %s", bare, at(line, "error"))
			}
			if b := at(line); strings.Contains(b, "4111") || strings.Contains(b, "clerk") || strings.Contains(b, "transfer") || at(line, "input") != "absent" || at(line, "result") != "absent" {
				t.Errorf("in the clear: %s", b)
			}
			if at(line, "decision_id") != `"c-1"` || at(line, "vault", "effect") != `"deny"` || at(line, "vault", "seq") != "7" {
				t.Errorf("nobody can tell which event this was: %v", line)
			}
		})
	}
}

func TestDrop(t *testing.T) {
	for rules, dropped := range map[string]bool{
		`drop if input.vault.tool == "pay.transfer"`: true,
		`drop := false`: false,
		`drop if input.vault.tool == "mail.send"`:                            false,
		"drop if input.path == \"p/decision\"\nmask contains \"/labels/id\"": true, // the mask is not asked any more
	} {
		if line, bare := logged(t, rules, logEvent()); (line == nil) != dropped || bare {
			t.Errorf("%s: %v", rules, line)
		}
	}
}

// Rules about the log alone are a use of a bundle; other rules that nobody asks are not.
func TestLogRulesAreAsked(t *testing.T) {
	for text, ok := range map[string]bool{"package system.log\n\ndrop := false\n": true, "package p\n\ndecision := true\n": false} {
		_, err := policy.New(t.Context(), policy.Config{Bundles: []policy.Bundle{bundle(t, map[string]string{"x.rego": text})}})
		if (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
	}
	found, err := policy.Lint(t.Context(), policy.Config{Bundles: []policy.Bundle{bundle(t, map[string]string{"x.rego": "package system.log\n\nmask contains \"/input\" if secret\n\nsecret if input.input.call.args.pin\n"})}})
	if err != nil || len(found) > 0 {
		t.Errorf("lint: %v, %v", found, err)
	}
	// Data can say it too, and a reload changes it.
	b := bundle(t, map[string]string{"x.rego": "package p\n\ndecision := true\n", "system/log/data.json": `{"mask": ["/input"]}`})
	p, err := policy.New(t.Context(), policy.Config{Bundles: []policy.Bundle{b}, Hooks: []policy.Hook{hook()}})
	if err != nil {
		t.Fatal(err)
	}
	if line, _, err := p.Log(t.Context(), logEvent()); err != nil || strings.Contains(string(line), `"input":`) {
		t.Errorf("%s, %v", line, err)
	}
}

// What rules see is in the log as far as a record tells it, and a digest of arguments
// that could be guessed is not.
func TestRecordedInput(t *testing.T) {
	p := module(t, "decision := true")
	f := facts("pay", "transfer", `{"pin":"1234"}`)
	doc, err := p.Recorded(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), f.Call.Args.Digest().String()) || !strings.Contains(string(b), `"pin":"1234"`) {
		t.Errorf("%s", b)
	}
	if got := p.PathOf(p.Revision(), f); got != "p/decision" {
		t.Errorf("path %q", got)
	}
	if got := p.PathOf(vault.Digest{1}, f) + p.PathOf(vault.Digest{}, f); got != "" {
		t.Errorf("the path of other rules: %q", got)
	}
}

// FuzzMasks: whatever the rules answer, an event keeps its place, and it is either
// whole, masked, or bare.
func FuzzMasks(f *testing.F) {
	f.Add(`["/input/call/args/card", {"op":"upsert","path":"/result/x/y","value":[1]}]`)
	f.Add(`["/input/list/0", "/input/list/1", "/input/%zz", "/input//"]`)
	f.Add(`{"op":"remove"}`)
	p, err := policy.New(f.Context(), policy.Config{Bundles: []policy.Bundle{bundle(f, map[string]string{"log.rego": "package system.log\n\nmask := json.unmarshal(input.input.masks)\n"})}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, masks string) {
		e := logEvent()
		e.Input = map[string]any{"masks": masks, "list": []any{"a", "b"}, "secret": "4111"}
		line, bare, err := p.Log(t.Context(), e)
		var doc map[string]any
		if err != nil || json.Unmarshal(line, &doc) != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if at(doc, "vault", "seq") != "7" || at(doc, "decision_id") != `"c-1"` {
			t.Errorf("%s: the event lost its place: %s", masks, line)
		}
		if bare && strings.Contains(string(line), "4111") {
			t.Errorf("%s: bare and in the clear: %s", masks, line)
		}
		if strings.Contains(masks, `"/input"`) && !bare && !strings.Contains(masks, "{") && at(doc, "input") != "absent" {
			t.Errorf("%s: the input is still there: %s", masks, line)
		}
	})
}

package policy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/policy"
)

// facts returns a complete call; args are its arguments.
func facts(server, tool, args string) *vault.Facts {
	return &vault.Facts{
		Call: &vault.Call{
			ID: "c-1", Kind: vault.KindTool, Server: server, Target: vault.Target{Server: vault.ServerID{1}, Name: tool},
			Args: vault.MustArgs(args), At: time.Date(2026, 11, 23, 18, 0, 0, 0, time.UTC),
		},
		Grant: &vault.Grant{
			Chain: vault.Digest{2}, Links: []vault.Digest{{3}, {4}}, Tenant: "acme", Task: "t-1", Agent: "spiffe://example.org/agent/acme/clerk/1",
			Principal: "user:clerk@example.com", Purpose: "pay the open invoices", Expires: time.Date(2026, 11, 23, 18, 30, 0, 0, time.UTC),
			Proof: vault.ProofSession, MayRead: []string{"finance"}, MaySendTo: []string{"example.com"},
			Debits: []vault.Debit{{Counter: "ab/calls", Amount: 1, Limit: 50, Unit: "calls"}},
		},
		Tool: &vault.Tool{
			Server: server, Name: tool, Definition: vault.Digest{5}, Risk: vault.RiskMedium, Source: vault.FromOrganisation,
			Roles: map[string]vault.Role{"/to": vault.RoleRecipient, "/amount": vault.RoleAmount},
		},
		Scope:   vault.Label{Integrity: vault.FromOrganisation, Readers: vault.Only("finance"), Sources: []vault.Source{{Kind: vault.KindTool, Server: "files", Name: "read"}}},
		Origins: []vault.Origin{{Path: "/to", Found: []string{"task"}, Trusted: true}},
		Calls:   3,
		Grade:   vault.GradeB,
	}
}

// bundle writes files into a fresh directory.
func bundle(t testing.TB, files map[string]string) policy.Bundle {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return policy.Bundle{Name: "main", Dir: dir, Unsigned: true}
}

func hook() policy.Hook { return policy.Hook{At: policy.AtToolCall, Query: "data.p.decision"} }

// module makes a policy of one module with package p.
func module(t testing.TB, text string, hooks ...policy.Hook) *policy.Policy {
	t.Helper()
	if len(hooks) == 0 {
		hooks = []policy.Hook{hook()}
	}
	p, err := policy.New(t.Context(), policy.Config{
		Bundles: []policy.Bundle{bundle(t, map[string]string{"p.rego": "package p\n" + text})},
		Hooks:   hooks,
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestDecide(t *testing.T) {
	const answer = "decision := "
	for _, tt := range []struct {
		name, text string
		verdict    vault.Verdict
		code       vault.Code
	}{
		{"true allows", answer + `true`, vault.Allow, ""},
		{"false denies", answer + `false`, vault.Deny, vault.CodePolicyDenied},
		{"effect allow allows", answer + `{"effect": "allow"}`, vault.Allow, ""},
		{"null members count as absent", answer + `{"effect": "allow", "reasons": null, "obligations": null, "approval": null, "labels": null}`, vault.Allow, ""},
		{"effect deny denies", answer + `{"effect": "deny"}`, vault.Deny, vault.CodePolicyDenied},
		{"effect ask asks its group", answer + `{"effect": "ask", "approval": {"group": "finance", "min": 1, "scope": "once"}}`, vault.Ask, vault.CodePolicyAsks},
		{"a rule that does not hold is undefined, not denied", `decision := true if input.call.tool == "other"`, vault.Deny, vault.CodePolicyUndefined},
		{"two different answers are an error", "decision := true if input.version == 1\ndecision := false if input.version == 1", vault.Deny, vault.CodePolicyError},
		{"a built-in that fails is an error", answer + `{"effect": "allow", "x": to_number("none")}`, vault.Deny, vault.CodePolicyError},
		{"a number is no decision", answer + `1`, vault.Deny, vault.CodePolicyError},
		{"a string is no decision", answer + `"allow"`, vault.Deny, vault.CodePolicyError},
		{"an array is no decision", answer + `["allow"]`, vault.Deny, vault.CodePolicyError},
		{"an empty object is no decision", answer + `{}`, vault.Deny, vault.CodePolicyError},
		{"an unknown effect is an error", answer + `{"effect": "permit"}`, vault.Deny, vault.CodePolicyError},
		{"an effect of the wrong type is an error", answer + `{"effect": true}`, vault.Deny, vault.CodePolicyError},
		{"an unknown member is an error", answer + `{"effect": "allow", "obligation": []}`, vault.Deny, vault.CodePolicyError},
		{"reasons of the wrong type are an error", answer + `{"effect": "deny", "reasons": "no"}`, vault.Deny, vault.CodePolicyError},
		{"a rule name that could carry a message is an error", answer + `{"effect": "deny", "reasons": [{"rule": "the limit is 500"}]}`, vault.Deny, vault.CodePolicyError},
		{"an ask without a group is an error", answer + `{"effect": "ask"}`, vault.Deny, vault.CodePolicyError},
		{"an ask of two people of one group cannot be kept", answer + `{"effect": "ask", "approval": {"group": "finance", "min": 2}}`, vault.Deny, vault.CodePolicyError},
		{"an ask for later calls cannot be kept", answer + `{"effect": "ask", "approval": {"group": "finance", "scope": "task"}}`, vault.Deny, vault.CodePolicyError},
		{"an ask with a life of its own cannot be kept", answer + `{"effect": "ask", "approval": {"group": "finance", "ttl": "5m"}}`, vault.Deny, vault.CodePolicyError},
		{"a group without an ask is an error", answer + `{"effect": "allow", "approval": {"group": "finance"}}`, vault.Deny, vault.CodePolicyError},
		{"an unknown obligation denies", answer + `{"effect": "allow", "obligations": [{"type": "rate"}]}`, vault.Deny, vault.CodePolicyError},
		{"an obligation with a stray member denies", answer + `{"effect": "allow", "obligations": [{"type": "notify", "to": "ops", "path": "/a"}]}`, vault.Deny, vault.CodePolicyError},
		{"an obligation without its member denies", answer + `{"effect": "allow", "obligations": [{"type": "redact"}]}`, vault.Deny, vault.CodePolicyError},
		{"a redaction of the whole result denies", answer + `{"effect": "allow", "obligations": [{"type": "redact", "path": ""}]}`, vault.Deny, vault.CodePolicyError},
		{"two transforms deny", answer + `{"effect": "allow", "obligations": [{"type": "transform", "args": {"a": 1}}, {"type": "transform", "args": {"a": 2}}]}`, vault.Deny, vault.CodePolicyError},
		{"a transform that no caller could send denies", answer + `{"effect": "allow", "obligations": [{"type": "transform", "args": {"a": 9007199254740993}}]}`, vault.Deny, vault.CodePolicyError},
		{"a label that says nothing denies", answer + `{"effect": "allow", "labels": [{}]}`, vault.Deny, vault.CodePolicyError},
		{"a label with an unknown integrity denies", answer + `{"effect": "allow", "labels": [{"integrity": "best"}]}`, vault.Deny, vault.CodePolicyError},
		{"a partial set is no decision", `decision contains "allow" if input.version == 1`, vault.Deny, vault.CodePolicyError},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := module(t, tt.text).Decide(t.Context(), facts("pay", "transfer", `{"amount":5}`))
			if d.Verdict != tt.verdict || tt.verdict != vault.Allow && d.Reason().Code != tt.code {
				t.Errorf("got %v %v, want %v %v", d.Verdict, d.Reasons, tt.verdict, tt.code)
			}
			if d.Verdict == vault.Deny && len(d.Obligations)+len(d.Groups) > 0 {
				t.Errorf("a denial carries obligations %v or groups %v", d.Obligations, d.Groups)
			}
		})
	}
}

func TestObligations(t *testing.T) {
	p := module(t, `decision := {
		"effect": "ask",
		"approval": {"group": "finance"},
		"reasons": {{"code": "b", "msg": "second", "rule": "r.2"}, {"code": "a", "msg": "first", "rule": "r.1"}},
		"obligations": [
			{"type": "transform", "args": object.union(input.call.args, {"cc": ["\u202ex", 1.5, null, true]})},
			{"type": "redact", "path": "/content/0/text"},
			{"type": "notify", "to": "security"},
			{"type": "label", "label": {"readers": ["finance"]}},
		],
		"labels": [{"integrity": "web"}],
	}`)
	d := p.Decide(t.Context(), facts("pay", "transfer", `{"amount":0.1,"to":"<a&b>"}`))
	if d.Verdict != vault.Ask || strings.Join(d.Groups, ",") != "finance" || len(d.Obligations) != 5 {
		t.Fatalf("got %+v", d)
	}
	if len(d.Reasons) != 2 || d.Reasons[0] != (vault.Reason{Code: vault.CodePolicyAsks, Path: "r.1", Detail: "a: first"}) {
		t.Errorf("reasons = %+v, want them sorted, code and message as detail", d.Reasons)
	}
	if got, want := d.Obligations[0].Args.String(), "{\"amount\":0.1,\"cc\":[\"\u202ex\",1.5,null,true],\"to\":\"<a&b>\"}"; got != want {
		t.Errorf("transform:\n got %s\nwant %s", got, want)
	}
	if o := d.Obligations[1]; o.Type != vault.ObligeRedact || o.Path != "/content/0/text" {
		t.Errorf("redact = %+v", o)
	}
	if o := d.Obligations[2]; o.Type != vault.ObligeNotify || o.Text != "security" {
		t.Errorf("notify = %+v", o)
	}
	if l := d.Obligations[3].Label; l.Integrity != vault.FromUser || l.Readers.String() != "[finance]" {
		t.Errorf("label leaves out integrity: got %+v, want it unchanged by a join", l)
	}
	if l := d.Obligations[4].Label; l.Integrity != vault.FromWeb || !l.Readers.IsPublic() {
		t.Errorf("short label = %+v", l)
	}
}

func TestHooksUnite(t *testing.T) {
	const text = `
yes := true
no := false
ask_a := {"effect": "ask", "approval": {"group": "a"}}
ask_b := {"effect": "ask", "approval": {"group": "b"}}
one := {"effect": "allow", "obligations": [{"type": "transform", "args": {"x": 1}}]}
same := {"effect": "allow", "obligations": [{"type": "transform", "args": {"x": 1.0}}]}
two := {"effect": "allow", "obligations": [{"type": "transform", "args": {"x": 2}}]}
`
	for _, tt := range []struct {
		name, rules string
		want        vault.Verdict
		groups      string
		code        vault.Code
		obligations int
	}{
		{"one no among yeses denies", "yes no yes", vault.Deny, "", vault.CodePolicyDenied, 0},
		{"a no outranks an ask", "ask_a no", vault.Deny, "", vault.CodePolicyDenied, 0},
		{"an ask outranks a yes", "yes ask_a", vault.Ask, "a", vault.CodePolicyAsks, 0},
		{"two asks ask both groups", "ask_b ask_a", vault.Ask, "a b", vault.CodePolicyAsks, 0},
		{"a transform survives a yes", "one yes", vault.Allow, "", "", 1},
		{"the same transform twice is one", "one same", vault.Allow, "", "", 1},
		{"two transforms contradict", "one two", vault.Deny, "", vault.CodePolicyError, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var hooks []policy.Hook
			for r := range strings.FieldsSeq(tt.rules) {
				hooks = append(hooks, policy.Hook{At: policy.AtToolCall, Query: "data.p." + r})
			}
			d := module(t, text, hooks...).Decide(t.Context(), facts("pay", "transfer", `{}`))
			if d.Verdict != tt.want || strings.Join(d.Groups, " ") != tt.groups || len(d.Obligations) != tt.obligations {
				t.Errorf("got %+v", d)
			}
			if tt.code != "" && d.Reason().Code != tt.code {
				t.Errorf("code = %s, want %s", d.Reason().Code, tt.code)
			}
		})
	}
}

func TestMatch(t *testing.T) {
	for _, tt := range []struct {
		name  string
		match policy.Match
		asked bool
	}{
		{"an empty match is every call", policy.Match{}, true},
		{"a whole name", policy.Match{Tool: []string{"pay.transfer"}}, true},
		{"a star stands for a run", policy.Match{Tool: []string{"mail.*", "pay.*"}}, true},
		{"a star in the middle", policy.Match{Tool: []string{"p*r.*er", "p*y.t*r"}}, true},
		{"a prefix is no match", policy.Match{Tool: []string{"pay.trans"}}, false},
		{"a suffix is no match", policy.Match{Tool: []string{"transfer"}}, false},
		{"case counts", policy.Match{Tool: []string{"Pay.*"}}, false},
		{"medium is at least low", policy.Match{Risk: ">=low"}, true},
		{"medium is at least medium", policy.Match{Risk: "medium"}, true},
		{"medium is not high", policy.Match{Risk: ">=high"}, false},
		{"another kind", policy.Match{Kinds: []vault.Kind{vault.KindEgress}}, false},
		{"one of the kinds", policy.Match{Kinds: []vault.Kind{vault.KindEgress, vault.KindTool}}, true},
		{"every part must hold", policy.Match{Tool: []string{"pay.*"}, Risk: "high"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := module(t, "decision := false", policy.Hook{At: policy.AtToolCall, Query: "data.p.decision", Match: tt.match})
			d := p.Decide(t.Context(), facts("pay", "transfer", `{}`))
			if asked := d.Verdict == vault.Deny; asked != tt.asked {
				t.Errorf("asked = %v, want %v", asked, tt.asked)
			}
		})
	}
}

func TestNoPolicyLeavesTheCapabilityAlone(t *testing.T) {
	p, err := policy.New(t.Context(), policy.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if d := p.Decide(t.Context(), facts("pay", "transfer", `{}`)); d.Verdict != vault.Allow {
		t.Errorf("got %+v, want allow", d)
	}
	if !p.Revision().IsZero() {
		t.Error("a policy without hooks has a revision")
	}
}

func TestExpensiveRulesAreStopped(t *testing.T) {
	const endless = `decision := true if {
	some i in numbers.range(1, 100000)
	some j in numbers.range(1, 100000)
	i * j == -1
}`
	t.Run("by work", func(t *testing.T) {
		h := hook()
		h.Steps, h.Deadline = 5000, time.Hour
		d := module(t, endless, h).Decide(t.Context(), facts("pay", "transfer", `{}`))
		if d.Verdict != vault.Deny || d.Reason().Code != vault.CodePolicyError || !strings.Contains(d.Reason().Detail, "steps") {
			t.Errorf("got %+v", d)
		}
	})
	t.Run("by the clock", func(t *testing.T) {
		h := hook()
		h.Steps, h.Deadline = 1<<40, 10*time.Millisecond
		d := module(t, endless, h).Decide(t.Context(), facts("pay", "transfer", `{}`))
		if d.Verdict != vault.Deny || d.Reason().Code != vault.CodePolicyError || !strings.Contains(d.Reason().Detail, "deadline") {
			t.Errorf("got %+v", d)
		}
	})
	t.Run("by the caller", func(t *testing.T) {
		h := hook()
		h.Steps, h.Deadline = 1<<40, time.Hour
		ctx, cancel := context.WithCancel(t.Context())
		p := module(t, endless, h)
		time.AfterFunc(10*time.Millisecond, cancel)
		if d := p.Decide(ctx, facts("pay", "transfer", `{}`)); d.Verdict != vault.Deny || d.Reason().Code != vault.CodePolicyError {
			t.Errorf("got %+v", d)
		}
	})
}

func TestIncompleteFactsDeny(t *testing.T) {
	f := facts("pay", "transfer", `{}`)
	f.Grant = nil
	if d := module(t, "decision := true").Decide(t.Context(), f); d.Verdict != vault.Deny || d.Reason().Code != vault.CodePolicyError {
		t.Errorf("got %+v", d)
	}
}

func TestShadowCountsAndDoesNotDecide(t *testing.T) {
	h := hook()
	h.Mode = policy.Shadow
	off := hook()
	off.Mode = policy.Off
	p := module(t, "decision := false", h, off)
	if d := p.Decide(t.Context(), facts("pay", "transfer", `{}`)); d.Verdict != vault.Allow {
		t.Errorf("got %+v, want allow", d)
	}
	if s := p.Status(); s.Mismatches != 1 || s.Shadowed != 1 || s.Evaluated != 0 {
		t.Errorf("status = %+v", s)
	}
}

func TestNewRefuses(t *testing.T) {
	good := map[string]string{"p.rego": "package p\ndecision := true"}
	hooks := func(h policy.Hook) []policy.Hook { return []policy.Hook{h} }
	with := func(change func(*policy.Hook)) []policy.Hook { h := hook(); change(&h); return hooks(h) }
	for _, tt := range []struct {
		name  string
		files map[string]string
		hooks []policy.Hook
		want  []string // what the error names
	}{
		{"a syntax error", map[string]string{"p.rego": "package p\n\ndecision := {"}, hooks(hook()), []string{"main/p.rego:3", "fix the file"}},
		{"an unused variable (strict)", map[string]string{"p.rego": "package p\ndecision := true if { x := 1 }"}, hooks(hook()), []string{"main/p.rego:2", "unused"}},
		{"http.send", map[string]string{"p.rego": "package p\ndecision := http.send({\"url\": \"http://127.0.0.1\", \"method\": \"get\"})"}, hooks(hook()), []string{"main/p.rego:2", "http.send", "pure"}},
		{"the clock", map[string]string{"p.rego": "package p\ndecision := time.now_ns() > 0"}, hooks(hook()), []string{"time.now_ns", "input.time"}},
		{"the environment", map[string]string{"p.rego": "package p\ndecision := opa.runtime().env.HOME == \"\""}, hooks(hook()), []string{"opa.runtime"}},
		{"randomness", map[string]string{"p.rego": "package p\ndecision := rand.intn(\"a\", 2) == 1"}, hooks(hook()), []string{"rand.intn"}},
		{"a resolver", map[string]string{"p.rego": "package p\ndecision := count(net.lookup_ip_addr(input.call.args.h)) > 0"}, hooks(hook()), []string{"net.lookup_ip_addr"}},
		{"an undefined path", good, with(func(h *policy.Hook) { h.Query = "data.p.decisoin" }), []string{"hook 1", "data.p.decisoin", "no bundle defines"}},
		{"a package for a query", good, with(func(h *policy.Hook) { h.Query = "data.p" }), []string{"want a rule"}},
		{"an expression for a query", good, with(func(h *policy.Hook) { h.Query = "true" }), []string{"want a rule"}},
		{"on_error allow", good, with(func(h *policy.Hook) { h.OnError = "allow" }), []string{"on_error", "denies"}},
		{"an unknown mode", good, with(func(h *policy.Hook) { h.Mode = "monitor" }), []string{"mode"}},
		{"an unknown place", good, with(func(h *policy.Hook) { h.At = "tool.calls" }), []string{"at", "tool.call"}},
		{"an unknown risk", good, with(func(h *policy.Hook) { h.Match.Risk = ">=severe" }), []string{"match.risk"}},
		{"a pattern nobody reads the same way", good, with(func(h *policy.Hook) { h.Match.Tool = []string{"pay.{a,b}"} }), []string{"match.tool"}},
		{"a negative budget", good, with(func(h *policy.Hook) { h.Steps = -1 }), []string{"budget"}},
		{"bundles that nobody asks", good, nil, []string{"no hook"}},
		{"a signature file", map[string]string{"p.rego": good["p.rego"], ".signatures.json": "{}"}, hooks(hook()), []string{"signed"}},
		{"a delta bundle", map[string]string{"p.rego": good["p.rego"], "patch.json": "{}"}, hooks(hook()), []string{"delta"}},
		{"compiled rules that would be left out", map[string]string{"p.rego": good["p.rego"], "policy.wasm": "x"}, hooks(hook()), []string{"policy.wasm", "sources"}},
		{"a shift that no budget stops", map[string]string{"p.rego": "package p\ndecision := bits.lsh(1, input.call.args.n) > 0"}, hooks(hook()), []string{"main/p.rego:2", "bits.lsh", "no budget"}},
		{"paths that no budget stops", map[string]string{"p.rego": "package p\ndecision := count(graph.reachable_paths(input.call.args.g, {1})) > 0"}, hooks(hook()), []string{"graph.reachable_paths", "no budget"}},
		{"a product that no budget stops", map[string]string{"p.rego": "package p\ndecision := product(input.call.args.n) > 0"}, hooks(hook()), []string{"product", "no budget"}},
		{"a patch that no budget stops", map[string]string{"p.rego": "package p\ndecision := json.patch({}, input.call.args.p) != {}"}, hooks(hook()), []string{"json.patch", "no budget"}},
		{"data that would be left out", map[string]string{"p.rego": good["p.rego"], "data.yaml": "a: 1"}, hooks(hook()), []string{"data.yaml", "convert"}},
		{"broken data", map[string]string{"p.rego": good["p.rego"], "a/data.json": "{\n\"x\": \n}"}, hooks(hook()), []string{"main/a/data.json", "line 3"}},
		{"data twice", map[string]string{"p.rego": good["p.rego"], "data.json": `{"a":{"b":1}}`, "a/data.json": `{"b":2}`}, hooks(hook()), []string{"data.a.b", "twice"}},
		{"data under a rule", map[string]string{"p.rego": good["p.rego"], "data.json": `{"p":{"decision":true}}`}, hooks(hook()), []string{"p.rego"}},
		{"no rules at all", map[string]string{"README": "hello"}, hooks(hook()), []string{"no *.rego"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := policy.New(t.Context(), policy.Config{Bundles: []policy.Bundle{bundle(t, tt.files)}, Hooks: tt.hooks})
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error does not name %q: %v", want, err)
				}
			}
		})
	}
	for _, tt := range []struct {
		name   string
		change func(*policy.Bundle)
		want   string
	}{
		{"a directory that nobody vouches for", func(b *policy.Bundle) { b.Unsigned = false }, "unsigned: true"},
		{"a signature that is demanded and not", func(b *policy.Bundle) { b.Key = &policy.Key{} }, "contradict"},
		{"no directory", func(b *policy.Bundle) { b.Dir = "" }, "dir"},
		{"a directory that is not there", func(b *policy.Bundle) { b.Dir += "x" }, "no such file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := bundle(t, good)
			tt.change(&b)
			_, err := policy.New(t.Context(), policy.Config{Bundles: []policy.Bundle{b}, Hooks: hooks(hook())})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("err = %v, want it to name %q", err, tt.want)
			}
		})
	}
	t.Run("hooks without rules", func(t *testing.T) {
		if _, err := policy.New(t.Context(), policy.Config{Hooks: hooks(hook())}); err == nil {
			t.Error("accepted")
		}
	})
}

func TestReloadKeepsTheLastGood(t *testing.T) {
	b := bundle(t, map[string]string{"p.rego": "package p\ndecision := false", "p_test.rego": "package p_test\nnonsense("})
	now := time.Unix(0, 0)
	p, err := policy.New(t.Context(), policy.Config{Bundles: []policy.Bundle{b}, Hooks: []policy.Hook{hook()}, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	first := p.Revision()
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(b.Dir, "p.rego"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	verdict := func() vault.Verdict { return p.Decide(t.Context(), facts("pay", "transfer", `{}`)).Verdict }

	write("package p\ndecision := tru")
	now = now.Add(time.Minute)
	if err := p.Reload(t.Context()); err == nil {
		t.Fatal("a broken bundle was reported as loaded")
	}
	if s := p.Status(); s.Err == nil || s.Age != time.Minute || p.Revision() != first || verdict() != vault.Deny {
		t.Errorf("after a failed reload: %+v, verdict %v", s, verdict())
	}
	write("package p\ndecision := true")
	if err := p.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := p.Status(); s.Err != nil || s.Age != 0 || p.Revision() == first || verdict() != vault.Allow {
		t.Errorf("after a good reload: %+v, verdict %v", s, verdict())
	}
}

func TestRevisionCoversTheWiring(t *testing.T) {
	b := bundle(t, map[string]string{"p.rego": "package p\ndecision := true"})
	seen := map[vault.Digest]string{}
	for name, change := range map[string]func(*policy.Hook){
		"plain":  func(*policy.Hook) {},
		"match":  func(h *policy.Hook) { h.Match.Tool = []string{"a.*"} },
		"risk":   func(h *policy.Hook) { h.Match.Risk = "high" },
		"shadow": func(h *policy.Hook) { h.Mode = policy.Shadow },
		"steps":  func(h *policy.Hook) { h.Steps = 7 },
	} {
		h := hook()
		change(&h)
		p, err := policy.New(t.Context(), policy.Config{Bundles: []policy.Bundle{b}, Hooks: []policy.Hook{h}})
		if err != nil {
			t.Fatal(err)
		}
		if other, ok := seen[p.Revision()]; ok {
			t.Errorf("%s and %s have one revision", name, other)
		}
		seen[p.Revision()] = name
	}
}

func schema(t testing.TB, text []byte) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("mem:///s.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("mem:///s.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Every field of the input is present or null, with much and with little known.
func TestInputSchema(t *testing.T) {
	s := schema(t, policy.InputSchema)
	p, err := policy.New(t.Context(), policy.Config{})
	if err != nil {
		t.Fatal(err)
	}
	bare := &vault.Facts{Call: &vault.Call{Kind: vault.KindEgress}, Grant: &vault.Grant{}, Tool: &vault.Tool{}}
	for name, f := range map[string]*vault.Facts{"full": facts("pay", "transfer", `{"a":[1,{"b":null}],"c":1.5e-7,"d":"x"}`), "bare": bare} {
		raw, err := p.Input(f)
		if err != nil {
			t.Fatal(err)
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Validate(doc); err != nil {
			t.Errorf("%s: %v\n%s", name, err, raw)
		}
		if bytes.Contains(raw, []byte(`"a":[1,{"b":null}]`)) != (name == "full") {
			t.Errorf("%s: arguments are not what was sent: %s", name, raw)
		}
	}
}

// What the schema of decisions refuses, the parser refuses, and the other way
// round.
func TestDecisionSchema(t *testing.T) {
	s := schema(t, policy.DecisionSchema)
	for _, doc := range []string{
		`true`, `false`, `1`, `"allow"`, `[]`, `{}`, `{"effect":"allow"}`, `{"effect":"Allow"}`, `{"effect":"ask"}`,
		`{"effect":"ask","approval":{"group":"g"}}`, `{"effect":"ask","approval":{"group":"g","min":1}}`, `{"effect":"ask","approval":{"group":"g","min":2}}`,
		`{"effect":"ask","approval":{}}`, `{"effect":"ask","approval":null}`, `{"effect":"deny","approval":{"group":"g"}}`, `{"effect":"deny","approval":null}`,
		`{"effect":"deny","reasons":[{"code":"c","msg":"m","rule":"r"}]}`, `{"effect":"deny","reasons":[{"rule":"r r"}]}`, `{"effect":"deny","reasons":[{"why":"r"}]}`,
		`{"effect":"allow","obligations":[{"type":"redact","path":"/a~1b"}]}`, `{"effect":"allow","obligations":[{"type":"redact","path":"/a~2"}]}`,
		`{"effect":"allow","obligations":[{"type":"redact","path":"a"}]}`, `{"effect":"allow","obligations":[{"type":"notify","to":"x"}]}`,
		`{"effect":"allow","obligations":[{"type":"notify"}]}`, `{"effect":"allow","obligations":[{"type":"label","label":{"integrity":"web"}}]}`,
		`{"effect":"allow","obligations":[{"type":"label","label":{}}]}`, `{"effect":"allow","labels":[{"readers":"public"}]}`, `{"effect":"allow","labels":[{"readers":["a"]}]}`,
		`{"effect":"allow","labels":[{"readers":[""]}]}`, `{"effect":"allow","obligations":[{"type":"transform","args":{}}]}`, `{"effect":"allow","obligations":[{"type":"transform","args":[]}]}`,
		`{"effect":"allow","extra":1}`, `{"effect":null}`,
	} {
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(doc))
		if err != nil {
			t.Fatal(err)
		}
		bySchema := s.Validate(v) == nil
		d := module(t, "decision := "+doc).Decide(t.Context(), facts("pay", "transfer", `{}`))
		byParser := d.Reason().Code != vault.CodePolicyError || d.Verdict != vault.Deny
		if bySchema != byParser {
			t.Errorf("%s: schema says %v, parser says %v (%v)", doc, bySchema, byParser, d.Reasons)
		}
	}
}

// A section that no rule names is not built; one that a rule can reach is.
func TestRulesSeeWhatTheyName(t *testing.T) {
	for name, text := range map[string]string{
		"a field":                    `decision := input.env.sandbox_grade == "B"`,
		"an index":                   `decision := input["env"]["sandbox_grade"] == "B"`,
		"a variable":                 `decision := true if { some k; input[k].sandbox_grade == "B" }`,
		"the whole":                  `decision := true if { x := input; x.env.sandbox_grade == "B" }`,
		"a function of the whole":    "f(x) := x.env.sandbox_grade\ndecision := f(input) == \"B\"",
		"walk":                       `decision := true if { some path; walk(input, [path, "B"]) }`,
		"an import":                  "import input.env as e\ndecision := e.sandbox_grade == \"B\"",
		"a section by a variable":    `decision := true if { some k; input.env[k] == "B" }`,
		"a whole section":            `decision := true if { e := input.env; e.sandbox_grade == "B" }`,
		"a section and a field":      `decision := true if { input.env.gateway == null; e := input.env; e.sandbox_grade == "B" }`,
		"a nested reference":         `decision := {"B": true}[input.env.sandbox_grade]`,
		"a reference in a reference": `decision := data.grades[input.env.sandbox_grade]`,
		"object.get":                 `decision := object.get(input, ["env", "sandbox_grade"], "") == "B"`,
		"a comprehension":            `decision := count([1 | input.env.sandbox_grade == "B"]) == 1`,
		"with":                       "g := input.env.sandbox_grade\ndecision := true if { g == \"B\" with input as input }",
		"every":                      `decision := true if { every s in [input.env] { s.sandbox_grade == "B" } }`,
	} {
		t.Run(name, func(t *testing.T) {
			p, err := policy.New(t.Context(), policy.Config{
				Bundles: []policy.Bundle{bundle(t, map[string]string{"p.rego": "package p\n" + text, "data.json": `{"grades":{"B":true}}`})},
				Hooks:   []policy.Hook{hook()},
			})
			if err != nil {
				t.Fatal(err)
			}
			if d := p.Decide(t.Context(), facts("pay", "transfer", `{}`)); d.Verdict != vault.Allow {
				t.Errorf("got %+v", d)
			}
		})
	}
}

func TestExamples(t *testing.T) {
	at := func(f *vault.Facts, when string) *vault.Facts {
		f.Call.At, _ = time.Parse(time.RFC3339, when)
		return f
	}
	web := func(f *vault.Facts) *vault.Facts { f.Scope.Integrity = vault.FromWeb; return f }
	for _, tt := range []struct {
		name, dir, query string
		facts            *vault.Facts
		want             vault.Verdict
		rule             string
	}{
		{"a small payment passes", "payments", "data.payments.decision", facts("pay", "transfer", `{"to":"DE02120300000000202051","amount":99.5,"currency":"EUR"}`), vault.Allow, ""},
		{"a large payment asks", "payments", "data.payments.decision", facts("pay", "transfer", `{"to":"DE02120300000000202051","amount":101,"currency":"EUR"}`), vault.Ask, "payments.large"},
		{"a blocked account is never paid", "payments", "data.payments.decision", facts("pay", "transfer", `{"to":"DE89370400440532013000","amount":1,"currency":"EUR"}`), vault.Deny, "payments.blocked"},
		{"another currency fits no rule", "payments", "data.payments.decision", facts("pay", "transfer", `{"to":"DE02120300000000202051","amount":1,"currency":"USD"}`), vault.Deny, "payments.default"},
		{"a negative amount fits no rule", "payments", "data.payments.decision", facts("pay", "transfer", `{"to":"DE02120300000000202051","amount":-1,"currency":"EUR"}`), vault.Deny, "payments.default"},
		{"a write in the freeze is refused", "freeze", "data.freeze.decision", at(facts("db", "execute", `{"sql":"DROP TABLE x"}`), "2026-12-24T12:00:00Z"), vault.Deny, "freeze.window"},
		{"a write after the freeze passes", "freeze", "data.freeze.decision", at(facts("db", "execute", `{"sql":"DROP TABLE x"}`), "2027-01-03T00:00:00Z"), vault.Allow, ""},
		{"mail inside passes", "outbound", "data.outbound.decision", facts("mail", "send", `{"to":"Lead@Example.com"}`), vault.Allow, ""},
		{"mail outside asks", "outbound", "data.outbound.decision", facts("mail", "send", `{"to":"bob@partner.example"}`), vault.Ask, "outbound.outside"},
		{"mail outside after the web is refused", "outbound", "data.outbound.decision", web(facts("mail", "send", `{"to":"bob@partner.example"}`)), vault.Deny, "outbound.web"},
		{"mail to nobody is refused", "outbound", "data.outbound.decision", facts("mail", "send", `{}`), vault.Deny, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := policy.New(t.Context(), policy.Config{
				Bundles: []policy.Bundle{{Name: tt.dir, Dir: filepath.Join("..", "..", "examples", "policy", tt.dir), Unsigned: true}},
				Hooks:   []policy.Hook{{At: policy.AtToolCall, Query: tt.query}},
			})
			if err != nil {
				t.Fatal(err)
			}
			d := p.Decide(t.Context(), tt.facts)
			if d.Verdict != tt.want || tt.rule != "" && d.Reason().Path != tt.rule || d.Reason().Code == vault.CodePolicyError {
				t.Errorf("got %+v", d)
			}
		})
	}
}

func TestSchemasAreJSON(t *testing.T) {
	if !json.Valid(policy.InputSchema) || !json.Valid(policy.DecisionSchema) {
		t.Error("a schema is not JSON")
	}
}

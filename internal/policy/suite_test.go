package policy_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pilox/vault/internal/policy"
)

func TestSuite(t *testing.T) {
	b := bundle(t, map[string]string{
		"p.rego":      "package p\n\ndefault decision := false\n\ndecision if {\n\tinput.call.args.amount < data.limit\n}\n\nother if {\n\tinput.call.tool == \"x\"\n}\n",
		"data.json":   `{"limit": 5}`,
		"p_test.rego": "package p_test\n\nimport data.p\n\ntest_small if p.decision with input as {\"call\": {\"args\": {\"amount\": 4}}}\n\ntest_large if p.decision with input as {\"call\": {\"args\": {\"amount\": 6}}}\n\ntodo_test_later if false\n",
	})
	s, err := policy.Test(t.Context(), b.Dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range s.Tests {
		got = append(got, strings.TrimPrefix(r.Name, "data.p_test."))
		if r.Pass != (r.Name == "data.p_test.test_small") {
			t.Errorf("%+v", r)
		}
	}
	if !slices.Equal(got, []string{"test_large", "test_small", "todo_test_later"}) || s.Failed != 1 {
		t.Errorf("ran %v, %d failed", got, s.Failed)
	}
	if s.Coverage <= 0 || s.Coverage >= 100 || len(s.Missed) == 0 {
		t.Errorf("coverage %v, missed %v", s.Coverage, s.Missed)
	}
	if _, err := policy.Test(t.Context(), bundle(t, map[string]string{"p.rego": "package p\nx := 1\n"}).Dir); err == nil {
		t.Error("a bundle without tests has passed")
	}
}

// TestLint reads as the specification of what deserves a second look.
func TestLint(t *testing.T) {
	const clean = "default decision := false\ndecision if input.call.tool == \"read\"\n"
	for _, tt := range []struct{ name, text, want string }{
		{"nothing", clean, ""},
		{"a member of the input that does not exist", "default decision := false\ndecision if input.call.name == \"read\"\n", "unknown-input"},
		{"a section that does not exist", "default decision := false\ndecision if input.tool.name == \"read\"\n", "unknown-input"},
		{"no default", "decision if input.call.tool == \"read\"\n", "no-default"},
		{"a default that allows", "default decision := true\ndecision := false if input.call.tool == \"drop\"\n", "default-allows"},
		{"a rule that allows everything", "decision := {\"effect\": \"allow\"}\n", "always-allows"},
		{"a rule that nobody reaches", clean + "forgotten if input.call.tool == \"write\"\n", "unused"},
	} {
		b := bundle(t, map[string]string{"p.rego": "package p\n" + tt.text})
		found, err := policy.Lint(t.Context(), policy.Config{Bundles: []policy.Bundle{b}, Hooks: []policy.Hook{hook()}})
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		codes := []string{}
		for _, f := range found {
			codes = append(codes, f.Code)
		}
		if got := strings.Join(codes, " "); got != tt.want {
			t.Errorf("%s: got %v, want %s", tt.name, found, tt.want)
		}
	}
	h := hook()
	h.Mode = policy.Off
	found, err := policy.Lint(t.Context(), policy.Config{Bundles: []policy.Bundle{bundle(t, map[string]string{"p.rego": "package p\n" + clean})}, Hooks: []policy.Hook{hook(), h, {At: policy.AtToolCall, Engine: policy.CEL, Expr: "true"}}})
	if err != nil || len(found) != 3 {
		t.Errorf("hooks twice, off and true: %v, %v", found, err)
	}
}

// A CEL expression whose loops multiply is pointed out; one that a few dozen elements
// cannot stop is not.
func TestLintCost(t *testing.T) {
	for expr, want := range map[string]int{
		`input.call.args.to.all(x, x.endsWith("@example.com"))`:                                                0,
		`input.call.args.a.all(x, input.call.args.b.all(y, x != y))`:                                           0,
		`input.call.args.a.all(x, input.call.args.b.all(y, input.call.args.c.all(z, x != y && y != z)))`:       1,
		`input.call.args.a.map(x, input.call.args.b.map(y, input.call.args.c.map(z, x + y + z))).size() > 0.0`: 1,
	} {
		found, err := policy.Lint(t.Context(), policy.Config{Hooks: []policy.Hook{{At: policy.AtToolCall, Engine: policy.CEL, Expr: expr}}})
		if err != nil || len(found) != want || want > 0 && found[0].Code != "costly" {
			t.Errorf("%s: %v, %v", expr, found, err)
		}
	}
}

func TestTry(t *testing.T) {
	b := bundle(t, map[string]string{"p.rego": "package p\ndecision := {\"effect\": \"deny\"} if input.call.args.amount > 5\n"})
	cfg := policy.Config{Bundles: []policy.Bundle{b}}
	for input, want := range map[string]string{`{"call":{"args":{"amount":6}}}`: `{"effect":"deny"}`, `{"call":{"args":{"amount":5}}}`: ""} {
		got, err := policy.Try(t.Context(), cfg, "data.p.decision", []byte(input))
		if err != nil || string(got) != want {
			t.Errorf("%s: %s, %v", input, got, err)
		}
	}
	if _, err := policy.Try(t.Context(), cfg, "data.p.nothing", []byte(`{}`)); err == nil {
		t.Error("a query that no rule has")
	}
}

// The examples that people start from: each says how to wire it, loads, passes its
// own tests, and has no line that they do not reach.
func TestExamplesPassTheirTests(t *testing.T) {
	dirs, err := filepath.Glob("../../examples/policy/*")
	if err != nil || len(dirs) < 10 {
		t.Fatalf("%d examples, %v", len(dirs), err)
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			s, err := policy.Test(t.Context(), dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range s.Tests {
				if !r.Pass {
					t.Errorf("%+v", r)
				}
			}
			if len(s.Missed) > 0 {
				t.Errorf("no test reaches %v", s.Missed)
			}
		})
	}
}

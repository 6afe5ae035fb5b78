package policy_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/policy"
)

// TestCELHook reads as the specification of CEL hooks: an expression, and what the
// call of facts comes to.
func TestCELHook(t *testing.T) {
	for _, tt := range []struct {
		name, expr string
		verdict    vault.Verdict
		code       vault.Code
	}{
		{"true allows", `input.call.args.amount < 10`, vault.Allow, ""},
		{"false denies", `input.call.args.amount < 5`, vault.Deny, vault.CodePolicyDenied},
		{"a decision", `{"effect": "deny", "reasons": [{"code": "x", "msg": "no", "rule": "limit"}]}`, vault.Deny, vault.CodePolicyDenied},
		{"a decision that asks", `{"effect": input.call.args.amount > 1 ? "ask" : "allow", "approval": {"group": "finance"}}`, vault.Ask, vault.CodePolicyAsks},
		{"a member that is missing", `input.call.args.total < 5`, vault.Deny, vault.CodePolicyError},
		{"neither true nor a decision", `"allow"`, vault.Deny, vault.CodePolicyError},
		{"an unknown effect", `{"effect": "permit"}`, vault.Deny, vault.CodePolicyError},
		{"labels and history", `input.data.labels.integrity == "org" && input.history.calls == 3 && input.event == null`, vault.Allow, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := policy.New(t.Context(), policy.Config{Hooks: []policy.Hook{{At: policy.AtToolCall, Engine: policy.CEL, Expr: tt.expr}}})
			if err != nil {
				t.Fatal(err)
			}
			d := p.Decide(t.Context(), facts("pay", "transfer", `{"amount":5}`))
			if d.Verdict != tt.verdict || tt.verdict != vault.Allow && d.Reason().Code != tt.code {
				t.Errorf("got %v %v, want %v %v", d.Verdict, d.Reasons, tt.verdict, tt.code)
			}
		})
	}
}

// TestHTTPHook reads as the specification of an outside decision point: what it
// answers, and what that counts for.
func TestHTTPHook(t *testing.T) {
	reply := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	for _, tt := range []struct {
		name    string
		serve   http.HandlerFunc
		verdict vault.Verdict
		code    vault.Code
	}{
		{"true allows", reply(200, `{"decision": true}`), vault.Allow, ""},
		{"false denies", reply(200, `{"decision": false}`), vault.Deny, vault.CodePolicyDenied},
		{"false denies whatever the context says", reply(200, `{"decision": false, "context": {"vault": {"effect": "allow"}}}`), vault.Deny, vault.CodePolicyDenied},
		{"its context can be stricter", reply(200, `{"decision": true, "context": {"vault": {"effect": "ask", "approval": {"group": "finance"}}}}`), vault.Ask, vault.CodePolicyAsks},
		{"a context of its own says nothing", reply(200, `{"decision": true, "context": {"reason": "fine"}}`), vault.Allow, ""},
		{"no decision", reply(200, `{}`), vault.Deny, vault.CodePolicyError},
		{"a decision in text", reply(200, `{"decision": "true"}`), vault.Deny, vault.CodePolicyError},
		{"no JSON", reply(200, `yes`), vault.Deny, vault.CodePolicyError},
		{"an error", reply(500, `{"decision": true}`), vault.Deny, vault.CodePolicyError},
		{"an answer without end", reply(200, `{"decision": true, "context": "`+strings.Repeat("x", 1<<17)+`"}`), vault.Deny, vault.CodePolicyError},
		{"a redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}, vault.Deny, vault.CodePolicyError},
		{"silence", func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // else the server does not notice that the client left
			<-r.Context().Done()
		}, vault.Deny, vault.CodePolicyError},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv := httptest.NewServer(tt.serve)
			defer srv.Close()
			p, err := policy.New(t.Context(), policy.Config{Hooks: []policy.Hook{{At: policy.AtToolCall, Engine: policy.HTTP, URL: srv.URL, Deadline: 200 * time.Millisecond}}})
			if err != nil {
				t.Fatal(err)
			}
			d := p.Decide(t.Context(), facts("pay", "transfer", `{"amount":5}`))
			if d.Verdict != tt.verdict || tt.verdict != vault.Allow && d.Reason().Code != tt.code {
				t.Errorf("got %v %v, want %v %v", d.Verdict, d.Reasons, tt.verdict, tt.code)
			}
		})
	}
}

// What a decision point is asked has the members of the AuthZEN access evaluation.
func TestHTTPHookAsks(t *testing.T) {
	var got struct {
		Subject, Resource struct{ Type, ID string }
		Action            struct{ Name string }
		Context           struct {
			Vault struct {
				Call struct{ Args struct{ Amount int } }
			}
		}
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil || r.Method != http.MethodPost || r.Header.Get("X-Request-ID") != "c-1" {
			t.Errorf("%s %v: %v", r.Method, r.Header, err)
		}
		_, _ = io.WriteString(w, `{"decision": true}`)
	}))
	defer srv.Close()
	p, err := policy.New(t.Context(), policy.Config{Hooks: []policy.Hook{{At: policy.AtToolCall, Engine: policy.HTTP, URL: srv.URL}}})
	if err != nil {
		t.Fatal(err)
	}
	p.Decide(t.Context(), facts("pay", "transfer", `{"amount":5}`))
	if got.Subject.Type != "agent" || !strings.HasPrefix(got.Subject.ID, "spiffe://") || got.Action.Name != "tool" ||
		got.Resource.Type != "tool" || got.Resource.ID != "pay.transfer" || got.Context.Vault.Call.Args.Amount != 5 {
		t.Errorf("asked %+v", got)
	}
}

// A decision point that keeps failing is left alone for a moment, and denies.
func TestHTTPHookBreaker(t *testing.T) {
	var asked atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(http.StatusBadGateway)
	}))
	defer srv.Close()
	p, err := policy.New(t.Context(), policy.Config{Hooks: []policy.Hook{{At: policy.AtToolCall, Engine: policy.HTTP, URL: srv.URL}}})
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if d := p.Decide(t.Context(), facts("pay", "transfer", `{}`)); d.Verdict != vault.Deny || d.Reason().Code != vault.CodePolicyError {
			t.Fatalf("got %v %v", d.Verdict, d.Reasons)
		}
	}
	if n := asked.Load(); n != 5 {
		t.Errorf("asked %d times, want 5", n)
	}
}

func TestEnginesThatAreRefused(t *testing.T) {
	for name, h := range map[string]policy.Hook{
		"an expression that does not compile": {Engine: policy.CEL, Expr: "input."},
		"an expression for rego":              {Expr: "true"},
		"a query for cel":                     {Engine: policy.CEL, Query: "data.p.decision"},
		"two of them":                         {Engine: policy.CEL, Expr: "true", URL: "https://pdp.example/x"},
		"none":                                {Engine: policy.CEL},
		"plain HTTP to somewhere":             {Engine: policy.HTTP, URL: "http://pdp.example/x"},
		"a URL with a password":               {Engine: policy.HTTP, URL: "https://a:b@pdp.example/x"},
		"a file":                              {Engine: policy.HTTP, URL: "file:///etc/passwd"},
		"an engine nobody knows":              {Engine: "cedar", Expr: "true"},
		"rego without a bundle":               {Query: "data.p.decision"},
	} {
		h.At = policy.AtToolCall
		if _, err := policy.New(t.Context(), policy.Config{Hooks: []policy.Hook{h}}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestHookPoints asks at every place: the hook there and no other is asked, sees
// its place and its event, and what it cannot do is an error.
func TestHookPoints(t *testing.T) {
	for _, at := range []string{policy.AtToolResult, policy.AtAgentAdmit, policy.AtTokenMint, policy.AtTokenDelegate, policy.AtApprovalResolve, policy.AtEgressConnect, policy.AtSessionEnd} {
		p, err := policy.New(t.Context(), policy.Config{Hooks: []policy.Hook{
			{At: at, Engine: policy.CEL, Expr: `input.hook == "` + at + `" && input.event.n < 5`},
			{At: policy.AtToolCall, Engine: policy.CEL, Expr: `false`},
		}})
		if err != nil {
			t.Fatal(err)
		}
		f := facts("pay", "transfer", `{}`)
		for n, want := range map[int]vault.Verdict{4: vault.Allow, 5: vault.Deny} {
			if d := p.At(t.Context(), at, f, map[string]any{"n": n}); d.Verdict != want {
				t.Errorf("%s with %d: %v %v", at, n, d.Verdict, d.Reasons)
			}
		}
		if d := p.At(t.Context(), at, f, nil); d.Reason().Code != vault.CodePolicyError {
			t.Errorf("%s without an event: %v %v", at, d.Verdict, d.Reasons)
		}
		if !p.Hooked(at) || p.Hooked("elsewhere") {
			t.Errorf("%s: hooked is wrong", at)
		}
	}
	p, err := policy.New(t.Context(), policy.Config{Hooks: []policy.Hook{{At: policy.AtTokenMint, Engine: policy.CEL, Expr: `{"effect": "ask", "approval": {"group": "finance"}}`}}})
	if err != nil {
		t.Fatal(err)
	}
	if d := p.At(t.Context(), policy.AtTokenMint, facts("pay", "transfer", `{}`), nil); d.Verdict != vault.Deny || d.Reason().Code != vault.CodePolicyError {
		t.Errorf("an ask where nobody is asked: %v %v", d.Verdict, d.Reasons)
	}
}

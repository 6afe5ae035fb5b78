package daemon_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
)

// hooked starts a daemon with one CEL hook, which can go online.
func hooked(t *testing.T, in *internet, at, expr string) *rig {
	t.Helper()
	return startOnline(t, in, func(c *daemon.Config) {
		c.Policy.Hooks = []daemon.Hook{{At: at, Engine: "cel", Expr: expr}}
		c.Approvals.Wait, c.Approvals.Timeout = time.Millisecond, time.Minute
		c.Listen.Bearer = true
	})
}

// TestHookPointsAreWired lets the operator's rules refuse at every moment at which
// authority is given or used. Each moment is tried with a rule that refuses it and
// with one that cannot be evaluated, which refuses too; a rule that has nothing
// against it lets it through.
func TestHookPointsAreWired(t *testing.T) {
	if testing.Short() {
		t.Skip("starts many daemons")
	}
	up := newUpstream(t, "act")
	task := func(r *rig, more ...string) admin.Task {
		r.addURL("up", up.url)
		return r.mint(taskFor("meet a hook", 50, append([]string{"up.act: {args: any}"}, more...)...))
	}
	codeOf := func(err error) vault.Code {
		if err == nil {
			return ""
		}
		if d := vault.DenialOf(err); d.Reason.Code != vault.CodeInternal {
			return d.Reason.Code
		}
		return codeIn(err.Error())
	}
	for _, tt := range []struct {
		at    string
		expr  string // holds where nothing is wrong
		moves func(t *testing.T, r *rig, in *internet) vault.Code
	}{
		{"token.mint", `input.event.budgets.calls <= 50 && input.event.grants.exists(g, g.server == "up") && input.event.life_s == 1800`, func(t *testing.T, r *rig, in *internet) vault.Code {
			r.addURL("up", up.url)
			_, err := r.admin.MintTask(t.Context(), admin.TaskRequest{File: []byte(taskFor("meet a hook", 50, "up.act: {args: any}")), Bind: "peer"}, approverName, r.approver)
			return codeOf(err)
		}},
		{"agent.admit", `input.event.edge == "mcp" && input.agent.id.startsWith("spiffe://")`, func(t *testing.T, r *rig, in *internet) vault.Code {
			res, err := r.overSocket(task(r)).Post("http://vault/mcp", "application/json", strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			if err != nil {
				t.Fatal(err)
			}
			if res.StatusCode != http.StatusUnauthorized {
				return "" // past the door, where the body is found wanting
			}
			return codeIn(string(body))
		}},
		{"tool.result", `input.call.tool == "act" && input.event.size < 1000 && !input.event.is_error && has(input.event.result.content)`, func(t *testing.T, r *rig, in *internet) vault.Code {
			a := r.call(task(r), "up", "act", `{"id":"r"}`)
			if a.Denial != nil && (a.Denial.Reason.Code != vault.CodeResultWithheld || a.Denial.Executed != vault.ExecutedYes) {
				t.Errorf("denied with %+v", a.Denial)
			}
			if up.ran("r") == 0 {
				t.Error("the call did not run")
			}
			return outcomeCode(r)
		}},
		{"approval.resolve", `input.event.effect == "allow" && input.event.approver == "key:default"`, func(t *testing.T, r *rig, in *internet) vault.Code {
			r.addURL("up", up.url)
			a := r.mint(taskFor("meet a hook", 50, "up.act: {args: any, ask: default}"))
			r.call(a, "up", "act", `{"id":"a"}`)
			q := r.question()
			return codeOf(r.admin.Answer(t.Context(), q.ID, r.answerAs(approverName, q, true)))
		}},
		{"egress.connect", `input.event.host == "api.example.com" && input.event.port == 443 && input.call.kind == "egress"`, func(t *testing.T, r *rig, in *internet) vault.Code {
			a := r.mint(online("meet a hook", "", "{host: api.example.com, methods: [GET], path: /x}"))
			d := r.send(a, "e", "api.example.com", `{"method":"GET","path":"/x"}`).Denial
			if d == nil {
				return ""
			}
			if d.Executed != vault.ExecutedNo || len(in.took()) > 0 {
				t.Errorf("something was sent: %+v", d)
			}
			return d.Reason.Code
		}},
		{"token.delegate", `input.event.holder.startsWith("channel ")`, func(t *testing.T, r *rig, in *internet) vault.Code {
			err := r.admin.Run(timeout(t, 20*time.Second), admin.RunRequest{Token: task(r).Token, Argv: []string{"/nowhere"}}, func(admin.Frame) error { return nil })
			if c := codeOf(err); c == vault.CodePolicyDenied || c == vault.CodePolicyError {
				return c
			}
			return "" // it got as far as the program that is not there
		}},
	} {
		t.Run(tt.at, func(t *testing.T) {
			t.Parallel()
			for want, expr := range map[vault.Code]string{"": tt.expr, vault.CodePolicyDenied: "!(" + tt.expr + ")", vault.CodePolicyError: "input.event.nothing == 1"} {
				in := newInternet(t)
				r := hooked(t, in, tt.at, expr)
				if got := tt.moves(t, r, in); got != want {
					t.Errorf("%s: got %q, want %q", expr, got, want)
				}
			}
		})
	}
}

// codeIn returns the policy's code that a text names, else the text.
func codeIn(text string) vault.Code {
	for _, c := range []vault.Code{vault.CodePolicyDenied, vault.CodePolicyError} {
		if strings.Contains(text, string(c)) {
			return c
		}
	}
	return vault.Code(text)
}

// outcomeCode returns the policy's code in the note of the last outcome: what the
// operator sees of a withheld result.
func outcomeCode(r *rig) vault.Code {
	r.t.Helper()
	var note string
	eventually(r.t, "an outcome", func() bool {
		for _, rec := range r.records("") {
			if rec.Leaf.Class == string(vault.ClassCall) && vault.Phase(rec.Leaf.Phase).Closes() {
				note = rec.Fields["note"]
				return true
			}
		}
		return false
	})
	if note == "" {
		return ""
	}
	return codeIn(note)
}

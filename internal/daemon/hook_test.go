package daemon_test

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
	"github.com/pilox/vault/internal/policy"
)

// hooked starts a daemon with one hook, which can go online. Without an expression it
// is a rule in Rego that is undefined.
func hooked(t *testing.T, in *internet, at, expr string) *rig {
	t.Helper()
	hook, bundles := daemon.Hook{At: at, Engine: "cel", Expr: expr}, []daemon.Bundle(nil)
	if expr == "" {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "p.rego"), []byte("package p\n\ndecision := true if input.hook == \"nowhere\"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		hook, bundles = daemon.Hook{At: at, Query: "data.p.decision"}, []daemon.Bundle{{Dir: dir, Unsigned: true}}
	}
	return startOnline(t, in, func(c *daemon.Config) {
		c.Policy.Hooks, c.Policy.Bundles = []daemon.Hook{hook}, bundles
		c.Approvals.Wait, c.Approvals.Timeout = time.Millisecond, time.Minute
		c.Listen.Bearer = true
	})
}

// TestHookPointsAreWired lets the operator's rules refuse at every moment at which
// authority is given or used. Each moment is tried with a rule that refuses it, with
// one that cannot be evaluated and with one that says nothing, which refuse too, each
// with its own reason; a rule that has nothing against it lets it through. The end of
// a task cannot be refused: there the reason stands in its last record.
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
	var points []string
	for _, tt := range []struct {
		at    string
		expr  string // holds where nothing is wrong
		moves func(t *testing.T, r *rig, in *internet) vault.Code
	}{
		{"tool.call", `input.call.tool == "act" && input.event == null && input.call.args.id == "c"`, func(t *testing.T, r *rig, in *internet) vault.Code {
			a := r.call(task(r), "up", "act", `{"id":"c"}`)
			if a.Denial == nil {
				return ""
			}
			if a.Denial.Executed != vault.ExecutedNo {
				t.Errorf("denied with %+v", a.Denial)
			}
			return a.Denial.Reason.Code
		}},
		{"session.end", `input.event.why == "closed by the operator" && input.task.id.startsWith("t-") && input.call == null`, func(t *testing.T, r *rig, in *internet) vault.Code {
			a := task(r)
			if err := r.admin.CloseTask(t.Context(), a.ID); err != nil {
				t.Errorf("the end of a task was refused: %v", err)
			}
			wantDenied(t, r.call(a, "up", "act", `{"id":"after"}`), vault.CodeCapabilityRevoked, vault.ExecutedNo)
			var last record
			for _, rec := range r.records(a.ID) {
				if rec.Leaf.Class == string(vault.ClassTask) {
					last = rec
				}
			}
			code := vault.Code(last.Leaf.Reason)
			if last.Leaf.Phase != string(vault.PhaseClosed) || strings.Contains(last.Fields["by"], "objects") != (code != vault.CodeTaskClosed) {
				t.Errorf("the last record of the task is %+v", last)
			}
			if code == vault.CodeTaskClosed {
				return ""
			}
			return code
		}},
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
			if c := codeOf(err); strings.HasPrefix(string(c), "policy_") {
				return c
			}
			return "" // it got as far as the program that is not there
		}},
	} {
		points = append(points, tt.at)
		t.Run(tt.at, func(t *testing.T) {
			t.Parallel()
			for want, expr := range map[vault.Code]string{"": tt.expr, vault.CodePolicyDenied: "!(" + tt.expr + ")", vault.CodePolicyError: "input.task.nothing == 1", vault.CodePolicyUndefined: ""} {
				in := newInternet(t)
				r := hooked(t, in, tt.at, expr)
				if got := tt.moves(t, r, in); got != want {
					t.Errorf("%s: got %q, want %q", expr, got, want)
				}
				if want != "" {
					eventually(t, "the refusal is on record", func() bool {
						return slices.ContainsFunc(r.records(""), func(rec record) bool { return rec.Leaf.Reason == string(want) || codeIn(rec.Fields["note"]) == want })
					})
				}
			}
		})
	}
	wantEveryPoint(t, points)
}

// wantEveryPoint holds the points that were tried against those that a configuration
// can name.
func wantEveryPoint(t *testing.T, tried []string) {
	t.Helper()
	_, err := policy.New(t.Context(), policy.Config{Hooks: []policy.Hook{{At: "nowhere", Engine: policy.CEL, Expr: "true"}}})
	if err == nil {
		t.Fatal("a hook stands nowhere")
	}
	_, list, ok := strings.Cut(err.Error(), "hooks stand at ")
	known := strings.Split(list, ", ")
	slices.Sort(known)
	slices.Sort(tried)
	if !ok || !slices.Equal(known, tried) {
		t.Errorf("tried %v of %v", tried, known)
	}
}

// codeIn returns the policy's code that a text names, else the text.
func codeIn(text string) vault.Code {
	for _, c := range []vault.Code{vault.CodePolicyDenied, vault.CodePolicyError, vault.CodePolicyUndefined} {
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

package daemon_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
)

// A logLine is what the tests read of an event of the decision log.
type logLine struct {
	DecisionID string         `json:"decision_id"`
	Path       string         `json:"path"`
	Input      map[string]any `json:"input"`
	Result     struct {
		Effect  string
		Reasons []struct{ Code, Rule string }
	} `json:"result"`
	Erased []string  `json:"erased"`
	Time   time.Time `json:"timestamp"`
	Vault  struct {
		Run, Phase, Agent, Tool, Effect string
		ArgsDigest                      string `json:"args_digest"`
		ApprovalID                      string `json:"approval_id"`
		Hash                            string
		Seq                             uint64
	} `json:"vault"`
	raw string
}

// decisions returns the decision log, each event by its decision and phase, and how
// many were dropped.
func (r *rig) decisions(in admin.DecisionsRequest) (lines map[string]logLine, dropped int) {
	r.t.Helper()
	lines = map[string]logLine{}
	err := r.admin.Decisions(r.t.Context(), in, func(event json.RawMessage, left string) error {
		if left == admin.LeftDropped {
			dropped++
			return nil
		}
		l := logLine{raw: string(event)}
		if err := json.Unmarshal(event, &l); err != nil {
			return err
		}
		lines[l.DecisionID+" "+l.Vault.Phase] = l
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return lines, dropped
}

// TestDecisionLog reads the decision log of a few calls of different fates: each has
// its event, which says what the ledger says of it and nothing else.
func TestDecisionLog(t *testing.T) {
	in, dir := newInternet(t), t.TempDir()
	rules := `package p

default decision := {"effect": "allow"}

decision := {"effect": "deny", "reasons": [{"code": "no", "rule": "p.no"}]} if input.call.args.id == "no"

result := input.call.args.id != "withheld"
`
	mask := "package system.log\n\nmask contains \"/vault/tool\" if input.vault.tool == \"egress.api.example.com\"\n\ndrop if input.input.call.args.id == \"dropped\"\n"
	for name, text := range map[string]string{"p.rego": rules, "log.rego": mask} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := startOnline(t, in, func(c *daemon.Config) {
		c.Policy.Bundles = []daemon.Bundle{{Dir: dir, Unsigned: true}}
		c.Policy.Hooks = []daemon.Hook{{At: "tool.call", Query: "data.p.decision"}, {At: "tool.result", Query: "data.p.result", Kinds: []string{"tool"}}, {At: "token.mint", Engine: "cel", Expr: `input.task.purpose != "never"`}}
	})
	up := newUpstream(t, "act", "ask")
	r.addURL("up", up.url)
	task := r.mint(taskFor("leave decisions", 50, "up.act: {args: any}", "up.ask: {args: any, ask: default}"))
	before := time.Now()
	if _, err := r.admin.MintTask(t.Context(), admin.TaskRequest{File: []byte(taskFor("never", 1, "up.act: {args: any}")), Bind: "peer"}, approverName, r.approver); err == nil {
		t.Error("a task that the rules refuse was minted")
	}
	for _, id := range []string{"fine", "no", "withheld", "dropped"} {
		if _, err := r.admin.Call(t.Context(), admin.CallRequest{Token: task.Token, ID: "c-" + id, Kind: vault.KindTool, Server: "up", Name: "act", Args: []byte(`{"id":"` + id + `"}`)}); err != nil {
			t.Fatal(err)
		}
	}
	r.callAs(task, "c-asked", "up", "ask", `{"id":"asked"}`)
	q := r.question()
	if err := r.admin.Answer(t.Context(), q.ID, r.answerAs(approverName, q, true)); err != nil {
		t.Fatal(err)
	}
	wantAllowed(t, r.callAs(task, "c-asked", "up", "ask", `{"id":"asked"}`))
	other := r.mint(online("leave a decision too", "", "{host: api.example.com, methods: [GET], path: /x}"))
	r.send(other, "c-out", "api.example.com", `{"method":"GET","path":"/x"}`)

	lines, dropped := r.decisions(admin.DecisionsRequest{})
	for name, l := range lines {
		if l.Input["hook"] == "token.mint" {
			if l.Result.Effect != "deny" || len(l.Result.Reasons) != 1 || l.Result.Reasons[0].Code != "policy_denied" || l.Vault.Tool != "" {
				t.Errorf("a refusal beside a call: %s", l.raw)
			}
			delete(lines, name)
			dropped++
		}
	}
	if dropped != 2 || len(lines) != 7 {
		t.Errorf("%d events and %d dropped: %v", len(lines), dropped, lines)
	}
	for name, want := range map[string]struct{ effect, code, path, tool string }{
		"c-fine intent":     {"allow", "", "p/decision", "up.act"},
		"c-no refused":      {"deny", "policy_denied", "p/decision", "up.act"},
		"c-withheld intent": {"allow", "", "p/decision", "up.act"},
		"c-withheld done":   {"deny", "result.withheld", "", "act"},
		"c-asked asked":     {"ask", "approval.required", "p/decision", "up.ask"},
		"c-asked intent":    {"allow", "approval.required", "p/decision", "up.ask"},
		"c-out intent":      {"allow", "", "p/decision", ""},
	} {
		l, ok := lines[name]
		code := ""
		if len(l.Result.Reasons) > 0 {
			code = l.Result.Reasons[0].Code
		}
		if !ok || l.Result.Effect != want.effect || l.Vault.Effect != want.effect || code != want.code || l.Path != want.path || l.Vault.Tool != want.tool {
			t.Errorf("%s: %s", name, l.raw)
		}
		if (l.Input == nil) != strings.HasSuffix(name, " done") || l.Vault.Hash == "" || l.Time.Before(before) {
			t.Errorf("%s: input %v, place %+v", name, l.Input, l.Vault)
		}
	}
	if a, b := lines["c-asked asked"].Vault.ApprovalID, lines["c-asked intent"].Vault.ApprovalID; a != q.ID || b != q.ID {
		t.Errorf("question %s is %q and %q in the log", q.ID, a, b)
	}
	// A digest of the arguments is the ledger's salted commitment: the same arguments
	// have another one in each record.
	if a, b := lines["c-asked asked"].Vault.ArgsDigest, lines["c-asked intent"].Vault.ArgsDigest; a == "" || a == b {
		t.Errorf("the digest of the same arguments: %q and %q", a, b)
	}
	for name, l := range lines {
		if strings.Contains(l.raw, vault.MustArgs(`{"id":"fine"}`).Digest().String()) {
			t.Errorf("%s has a digest that can be guessed: %s", name, l.raw)
		}
	}

	for what, in := range map[string]admin.DecisionsRequest{
		"of one task": {Run: other.ID}, "from an index on": {From: lines["c-out intent"].Vault.Seq}, "since a moment": {Since: lines["c-out intent"].Time},
	} {
		if some, _ := r.decisions(in); len(some) != 1 || some["c-out intent"].raw != lines["c-out intent"].raw {
			t.Errorf("%s: %v", what, some)
		}
	}
	if some, _ := r.decisions(admin.DecisionsRequest{Since: time.Now().Add(time.Hour)}); len(some) != 0 {
		t.Errorf("of the future: %v", some)
	}

	// Who follows gets what comes.
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan string, 16)
	done := make(chan error, 1)
	go func() {
		done <- r.admin.Decisions(ctx, admin.DecisionsRequest{Follow: true, From: lines["c-out intent"].Vault.Seq + 1}, func(event json.RawMessage, _ string) error {
			got <- string(event)
			return nil
		})
	}()
	r.callAs(task, "c-late", "up", "act", `{"id":"no"}`)
	select {
	case e := <-got:
		if !strings.Contains(e, `"c-late"`) {
			t.Errorf("followed and got %s", e)
		}
	case <-timeout(t, 20*time.Second).Done():
		t.Error("followed and got nothing")
	}
	cancel()
	if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}

	// What was erased is not there, and said to be gone.
	erase(t, r, admin.EraseRequest{Index: lines["c-no refused"].Vault.Seq, Field: "args", Basis: "a test"})
	for _, id := range []vault.TaskID{task.ID, other.ID} {
		if err := r.admin.CloseTask(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	erase(t, r, admin.EraseRequest{Subject: "user:clerk@example.com", Basis: "a test"})
	after, _ := r.decisions(admin.DecisionsRequest{})
	for name, l := range after {
		if strings.Contains(l.raw, "example.com") || strings.Contains(l.raw, `"id":"no"`) || l.Input["agent"] != nil || l.Input["principal"] != nil {
			t.Errorf("%s: erased and in the log: %s", name, l.raw)
		}
		if l.Input["call"] != nil && len(l.Erased) == 0 {
			t.Errorf("%s: erased without a word: %s", name, l.raw)
		}
	}
	if after["c-fine intent"].Vault.Hash != lines["c-fine intent"].Vault.Hash {
		t.Error("an event lost its place")
	}
}

func erase(t *testing.T, r *rig, in admin.EraseRequest) {
	t.Helper()
	if _, err := r.admin.Erase(t.Context(), in, approverName, r.approver); err != nil {
		t.Fatalf("erase %+v: %v", in, err)
	}
}

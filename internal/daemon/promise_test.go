package daemon_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
	"github.com/pilox/vault/internal/keystore"
	"github.com/pilox/vault/internal/vaulttest"
)

// Each promise of the design has a test here, in its order, against the whole
// daemon. What a part promises in detail is tested where the part is.

// TestPromise01NothingByDefault: what was not granted for this task is not there.
// Configuration that cannot be had is in TestStartRefuses, a ledger that cannot be
// written in TestLedgerFull.
func TestPromise01NothingByDefault(t *testing.T) {
	t.Run("the zero value of what decides denies", func(t *testing.T) {
		if vault.Verdict(0) != vault.Deny || (vault.Decision{}).Verdict != vault.Deny {
			t.Error("a zero decision does not deny")
		}
		if g := vault.Grade(0); g != vault.GradeNone {
			t.Errorf("a zero grade is %v", g)
		}
		if l := (vault.Label{}); l.Integrity != vault.FromWeb || l.Readers.IsPublic() || len(l.Readers.Names()) != 0 {
			t.Errorf("a zero label is %+v", l)
		}
		if tool := (vault.Tool{}); tool.Risk != vault.RiskHigh || tool.ReadOnly || tool.Local {
			t.Errorf("a zero tool is %+v", tool)
		}
	})
	t.Run("without a grant nothing runs", func(t *testing.T) {
		r := startDaemon(t, nil)
		u := newUpstream(t, "act", "other")
		r.addURL("up", u.url)
		r.addURL("else", newUpstream(t, "act").url)
		task := r.mint(taskFor("use one tool", 5, "up.act: {args: {id: {exact: one}}}"))
		for _, tt := range []struct {
			name, server, tool, args string
			code                     vault.Code
		}{
			{"another tool of the server", "up", "other", `{"id":"one"}`, vault.CodeCapabilityTarget},
			{"the same tool of another server", "else", "act", `{"id":"one"}`, vault.CodeCapabilityTarget},
			{"another value", "up", "act", `{"id":"two"}`, vault.CodeCapabilityArgument},
			{"an argument more", "up", "act", `{"id":"one","text":"x"}`, vault.CodeCapabilityArgument},
			{"no argument", "up", "act", `{}`, vault.CodeCapabilityArgument},
			{"a server nobody registered", "nowhere", "act", `{}`, vault.CodeCapabilityTarget},
		} {
			t.Run(tt.name, func(t *testing.T) {
				wantDenied(t, r.call(task, tt.server, tt.tool, tt.args), tt.code, vault.ExecutedNo)
			})
		}
		if _, err := r.admin.Call(t.Context(), admin.CallRequest{Kind: vault.KindTool, Server: "up", Name: "act", Args: json.RawMessage(`{"id":"one"}`)}); err == nil {
			t.Error("a call without a capability got an answer")
		}
		if status, _ := r.post(t, http.Header{}, "c-1", "act", `{"id":"one"}`); status != http.StatusUnauthorized {
			t.Errorf("without a token: status %d", status)
		}
		if n := len(u.effects()); n != 0 {
			t.Errorf("%d calls ran", n)
		}
	})
	t.Run("a server in its jail sees nothing", func(t *testing.T) {
		t.Setenv("CANARY_SECRET", "canary-in-the-environment")
		r := startDaemon(t, nil)
		if r.status().Grade == vault.GradeNone.String() {
			vaulttest.Missing(t, "sandbox", "this host has no process jail")
		}
		r.hostileServer("probe")
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		home, err := os.UserHomeDir()
		if err != nil {
			t.Fatal(err)
		}
		secret := filepath.Join(r.dir, "secret.txt")
		if err := os.WriteFile(secret, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		task := r.mint(taskFor("look around", 5, "probe.probe: {args: any}"))
		args, err := json.Marshal(map[string]any{
			"paths":   []string{filepath.Join(r.conf.Data, "vault.db"), filepath.Join(r.conf.Data, "keys"), r.conf.Socket(), home, secret, "/etc/passwd", "/etc/shadow", "/root", "/home", "/var"},
			"address": l.Addr().String(),
		})
		if err != nil {
			t.Fatal(err)
		}
		a := r.call(task, "probe", "probe", string(args))
		wantAllowed(t, a)
		var result struct{ Content []struct{ Text string } }
		var seen struct {
			Env, Readable       []string
			Connected, Executed bool
		}
		if err := json.Unmarshal(a.Result, &result); err != nil || len(result.Content) != 1 {
			t.Fatalf("%s: %v", a.Result, err)
		}
		if err := json.Unmarshal([]byte(result.Content[0].Text), &seen); err != nil {
			t.Fatal(err)
		}
		if len(seen.Env)+len(seen.Readable) > 0 || seen.Connected || seen.Executed {
			t.Errorf("the server sees %+v", seen)
		}
	})
}

// TestPromise02EveryCallIsChecked: authority that was there a moment ago counts
// for nothing.
func TestPromise02EveryCallIsChecked(t *testing.T) {
	r := startDaemon(t, nil)
	u := newUpstream(t, "act")
	r.addURL("up", u.url)
	const rule = "up.act: {args: {id: {prefix: ok}}}"
	t.Run("constraints, call by call", func(t *testing.T) {
		task := r.mint(taskFor("constraints", 50, rule))
		for i := range 5 {
			wantAllowed(t, r.call(task, "up", "act", fmt.Sprintf(`{"id":"ok-%d"}`, i)))
			wantDenied(t, r.call(task, "up", "act", fmt.Sprintf(`{"id":"no-%d"}`, i)), vault.CodeCapabilityArgument, vault.ExecutedNo)
		}
	})
	t.Run("budgets, to the last call, also for calls at the same time", func(t *testing.T) {
		task := r.mint(taskFor("budgets", 10, rule))
		before := len(u.effects())
		var ran, refused atomic.Int32
		done := make(chan struct{})
		for range 25 {
			go func() {
				defer func() { done <- struct{}{} }()
				a, err := r.admin.Call(t.Context(), admin.CallRequest{Token: task.Token, Kind: vault.KindTool, Server: "up", Name: "act", Args: json.RawMessage(`{"id":"ok"}`)})
				switch {
				case err != nil:
					t.Error(err)
				case a.Denial == nil:
					ran.Add(1)
				case a.Denial.Reason.Code == vault.CodeCapabilityBudget:
					refused.Add(1)
				default:
					t.Error(a.Denial)
				}
			}()
		}
		for range 25 {
			<-done
		}
		if ran.Load() != 10 || refused.Load() != 15 || len(u.effects())-before != 10 {
			t.Errorf("%d ran, %d were refused, %d had an effect", ran.Load(), refused.Load(), len(u.effects())-before)
		}
	})
	t.Run("expiry", func(t *testing.T) {
		task := r.mint(strings.Replace(taskFor("expiry", 5, rule), "30m", "1s", 1))
		wantAllowed(t, r.call(task, "up", "act", `{"id":"ok"}`))
		time.Sleep(time.Until(task.Expires) + 10*time.Millisecond)
		wantDenied(t, r.call(task, "up", "act", `{"id":"ok"}`), vault.CodeCapabilityExpired, vault.ExecutedNo)
	})
	t.Run("revocation, from the next call on and for those in flight", func(t *testing.T) {
		for _, what := range []string{"task", "agent", "all"} {
			// What revokes everything ends what came before, not what comes after.
			task := r.mint(taskFor("revoke "+what, 50, rule))
			wantAllowed(t, r.call(task, "up", "act", `{"id":"ok"}`))
			arrived, gone := make(chan struct{}), make(chan struct{})
			u.onCall(func(_ http.ResponseWriter, r *http.Request, _ effect) {
				close(arrived)
				<-r.Context().Done()
				close(gone)
			})
			answer := make(chan admin.CallAnswer)
			go func() { answer <- r.callAs(task, "c-flight", "up", "act", `{"id":"ok-flight"}`) }()
			<-arrived
			id := map[string]string{"task": string(task.ID), "agent": string(task.Agent), "all": ""}[what]
			if _, err := r.admin.Revoke(t.Context(), admin.RevokeRequest{What: what, ID: id, Why: "test"}); err != nil {
				t.Fatal(err)
			}
			wantDenied(t, r.callAs(task, "c-next", "up", "act", `{"id":"ok"}`), vault.CodeCapabilityRevoked, vault.ExecutedNo)
			wantDenied(t, <-answer, vault.CodeCapabilityRevoked, vault.ExecutedUnknown)
			<-gone
			u.onCall(nil)
			r.wantPhases(task, "c-flight", vault.PhaseIntent, vault.PhaseCancelled)
			// A restart does not bring authority back.
			if what == "all" {
				r.stop()
				r.start()
				wantDenied(t, r.call(task, "up", "act", `{"id":"ok"}`), vault.CodeCapabilityRevoked, vault.ExecutedNo)
			}
		}
	})
	r.wantSound()
}

// policyOf writes a bundle and returns its configuration.
func policyOf(t *testing.T, rego string) daemon.Policy {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "p.rego"), []byte("package p\n\n"+rego+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return daemon.Policy{Bundles: []daemon.Bundle{{Dir: dir, Unsigned: true}}, Hooks: []daemon.Hook{{At: "tool.call", Query: "data.p.decision"}}}
}

// TestPromise03StagesOnlyTighten: no stage lets through what an earlier one
// refused or asked about, and a policy that denies, is undefined or fails denies
// for three different reasons.
func TestPromise03StagesOnlyTighten(t *testing.T) {
	for _, tt := range []struct {
		name, rego, rule string
		code             vault.Code // "" allows
	}{
		{"both allow", `decision := {"effect": "allow"}`, "{args: any}", ""},
		{"the policy denies what the capability allows", `decision := {"effect": "deny"}`, "{args: any}", vault.CodePolicyDenied},
		{"the policy is undefined", `decision := {"effect": "allow"} if input.call.args.id == "other"`, "{args: any}", vault.CodePolicyUndefined},
		{"the policy fails", `decision := {"effect": "allow", "x": to_number("none")}`, "{args: any}", vault.CodePolicyError},
		{"the policy answers nonsense", `decision := {"effect": "perhaps"}`, "{args: any}", vault.CodePolicyError},
		{"the policy allows what the capability does not", `decision := {"effect": "allow"}`, "{args: {id: {exact: other}}}", vault.CodeCapabilityArgument},
		{"the policy allows what the task asks about", `decision := {"effect": "allow"}`, "{args: any, ask: leads}", vault.CodeApprovalRequired},
		{"the policy asks about what the capability allows", `decision := {"effect": "ask", "approval": {"group": "leads", "min": 1, "scope": "once"}}`, "{args: any}", vault.CodeApprovalRequired},
		{"the policy denies what the task asks about", `decision := {"effect": "deny"}`, "{args: any, ask: leads}", vault.CodePolicyDenied},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := startDaemon(t, func(c *daemon.Config) {
				c.Policy = policyOf(t, tt.rego)
				c.Approvals.Wait = time.Millisecond
				c.Approvals.Groups = map[string][]string{"leads": {"key:" + approverName}}
			})
			u := newUpstream(t, "act")
			r.addURL("up", u.url)
			task := r.mint(taskFor(tt.name, 5, "up.act: "+tt.rule))
			a := r.call(task, "up", "act", `{"id":"x"}`)
			if tt.code == "" {
				wantAllowed(t, a)
				return
			}
			wantDenied(t, a, tt.code, vault.ExecutedNo)
			if n := len(u.effects()); n != 0 {
				t.Errorf("%d calls ran", n)
			}
		})
	}
}

// TestPromise04EvidenceBeforeEffect: when a call reaches its target the intent can
// already be read from the ledger, and however it ends, that is on record too.
// TestKill shows the same for a daemon that is killed.
func TestPromise04EvidenceBeforeEffect(t *testing.T) {
	r := startDaemon(t, func(c *daemon.Config) { c.Limits.Call = time.Second })
	u := newUpstream(t, "act")
	r.addURL("up", u.url)
	task := r.mint(taskFor("leave evidence", 50, "up.act: {args: any}"))
	var before atomic.Int32
	look := func(id string) {
		for call, phases := range r.phases(task.ID, vault.KindTool) {
			if call == id && slices.Equal(phases, []string{string(vault.PhaseIntent)}) {
				before.Add(1)
			}
		}
	}
	hangUp, cancel := context.WithCancel(t.Context())
	for _, tt := range []struct {
		id   string
		ctx  context.Context
		do   func(w http.ResponseWriter, r *http.Request, c effect)
		last vault.Phase
	}{
		{"c-done", t.Context(), func(w http.ResponseWriter, _ *http.Request, c effect) { replyText(w, c, "done") }, vault.PhaseDone},
		{"c-crash", t.Context(), func(http.ResponseWriter, *http.Request, effect) { panic(http.ErrAbortHandler) }, vault.PhaseFailed},
		{"c-hang", t.Context(), func(_ http.ResponseWriter, r *http.Request, _ effect) { <-r.Context().Done() }, vault.PhaseFailed},
		{"c-tool-error", t.Context(), func(w http.ResponseWriter, _ *http.Request, c effect) {
			reply(w, c.rpc, `{"resultType":"complete","isError":true,"content":[]}`)
		}, vault.PhaseFailed},
		{"c-hang-up", hangUp, func(_ http.ResponseWriter, r *http.Request, _ effect) { cancel(); <-r.Context().Done() }, vault.PhaseCancelled},
	} {
		u.onCall(func(w http.ResponseWriter, r *http.Request, c effect) {
			look(tt.id)
			tt.do(w, r, c)
		})
		_, err := r.admin.Call(tt.ctx, admin.CallRequest{Token: task.Token, ID: tt.id, Kind: vault.KindTool, Server: "up", Name: "act", Args: json.RawMessage(`{}`)})
		if err != nil && tt.ctx.Err() == nil {
			t.Fatal(err)
		}
		r.wantPhases(task, tt.id, vault.PhaseIntent, tt.last)
	}
	if n := before.Load(); n != 5 {
		t.Errorf("%d of 5 calls found their intent in the ledger when they arrived", n)
	}
	// A refusal is an event too, and the refused caller learns which.
	d := r.callAs(task, "c-refused", "up", "act", `{"nonsense":1}`).Denial
	if d == nil || d.Event == nil {
		t.Fatalf("denial %+v", d)
	}
	if rec := r.records("")[*d.Event]; rec.Leaf.Call != "c-refused" || rec.Leaf.Phase != string(vault.PhaseRefused) || rec.Leaf.Reason != string(d.Reason.Code) {
		t.Errorf("event %d is %+v", *d.Event, rec.Leaf)
	}
	r.wantSound()
}

// approvals starts a daemon whose task asks group leads, answered by approvers.
func approvals(t *testing.T, wait, life time.Duration, approvers ...string) *rig {
	t.Helper()
	return startDaemon(t, func(c *daemon.Config) {
		c.Approvals = daemon.Approvals{Wait: wait, Timeout: life, Groups: map[string][]string{"leads": {}}}
		for _, name := range approvers {
			c.Approvals.Groups["leads"] = append(c.Approvals.Groups["leads"], "key:"+name)
			if name != approverName {
				if _, err := daemon.CreateApprover(filepath.Join(c.Data, "approvers"), name, nil); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// question returns the one open question.
func (r *rig) question() admin.Approval {
	r.t.Helper()
	list, err := r.admin.Approvals(r.t.Context())
	if err != nil || len(list) != 1 {
		r.t.Fatalf("open questions: %+v, %v", list, err)
	}
	return list[0]
}

// answerAs signs an answer with a key of the rig's daemon.
func (r *rig) answerAs(name string, q admin.Approval, allow bool) []byte {
	r.t.Helper()
	key, err := daemon.OpenApprover(filepath.Join(r.conf.Data, "approvers"), name, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	defer key.Close()
	answer, err := key.Answer(q.Question, r.status().ApprovalKey, allow)
	if err != nil {
		r.t.Fatal(err)
	}
	return answer
}

// TestPromise05ApprovedIsWhatRuns: a person's yes is worth one call with exactly
// the bytes that were shown, and only a person who is not the requester can give
// it.
func TestPromise05ApprovedIsWhatRuns(t *testing.T) {
	const args = `{"id":"pay","n":250,"to":"DE02120300000000202051"}`
	file := taskFor("pay one invoice", 50, "up.act: {args: any, ask: leads}")
	start := func(t *testing.T, wait, life time.Duration, approvers ...string) (*rig, *upstream, admin.Task) {
		t.Helper()
		r := approvals(t, wait, life, approvers...)
		u := newUpstream(t, "act")
		r.addURL("up", u.url)
		return r, u, r.mint(file)
	}
	pending := func(t *testing.T, a admin.CallAnswer) {
		t.Helper()
		wantDenied(t, a, vault.CodeApprovalRequired, vault.ExecutedNo)
		if a.Denial != nil && (a.Denial.Verdict != "pending" || a.Denial.Retry != vault.RetrySameCallID) {
			t.Errorf("denial %+v", a.Denial)
		}
	}
	t.Run("what was shown runs, once", func(t *testing.T) {
		r, u, task := start(t, time.Millisecond, time.Minute, approverName)
		pending(t, r.callAs(task, "c-1", "up", "act", args))
		q := r.question()
		for _, part := range []string{"pay one invoice", "up", "act", "DE02120300000000202051", "250", string(task.Agent)} {
			if !strings.Contains(q.Text, part) {
				t.Errorf("the question does not show %q:\n%s", part, q.Text)
			}
		}
		answer := r.answerAs(approverName, q, true)
		if err := r.admin.Answer(t.Context(), q.ID, answer); err != nil {
			t.Fatal(err)
		}
		// Other bytes under the same call id are another question.
		pending(t, r.callAs(task, "c-1", "up", "act", strings.Replace(args, "250", "2500", 1)))
		if n := len(u.effects()); n != 0 {
			t.Fatalf("%d calls ran before the approved one", n)
		}
		wantAllowed(t, r.callAs(task, "c-1", "up", "act", args))
		if got := u.effects(); len(got) != 1 || got[0].args != args {
			t.Errorf("what ran is %+v", got)
		}
		// Single use: neither another call nor the same answer again.
		pending(t, r.callAs(task, "c-2", "up", "act", args))
		if err := r.admin.Answer(t.Context(), q.ID, answer); err == nil {
			t.Error("an answer was taken twice")
		}
		pending(t, r.callAs(task, "c-2", "up", "act", args))
		// Nor after a restart.
		r.stop()
		r.start()
		pending(t, r.callAs(task, "c-3", "up", "act", args))
		if err := r.admin.Answer(t.Context(), q.ID, answer); err == nil {
			t.Error("an answer was taken again after a restart")
		}
		pending(t, r.callAs(task, "c-3", "up", "act", args))
		if n := len(u.effects()); n != 1 {
			t.Errorf("%d calls ran on one approval", n)
		}
		r.wantSound()
	})
	t.Run("an answer for one question does not answer another", func(t *testing.T) {
		r, u, task := start(t, time.Millisecond, time.Minute, approverName)
		pending(t, r.callAs(task, "c-1", "up", "act", args))
		first := r.question()
		pending(t, r.callAs(task, "c-2", "up", "act", `{"id":"steal"}`))
		list, err := r.admin.Approvals(t.Context())
		if err != nil || len(list) != 2 {
			t.Fatalf("%+v, %v", list, err)
		}
		other := list[slices.IndexFunc(list, func(a admin.Approval) bool { return a.ID != first.ID })]
		_ = r.admin.Answer(t.Context(), other.ID, r.answerAs(approverName, first, true)) // whatever it says, nothing may run
		pending(t, r.callAs(task, "c-2", "up", "act", `{"id":"steal"}`))
		if u.ran("steal") != 0 {
			t.Error("it ran")
		}
	})
	t.Run("a no is a no", func(t *testing.T) {
		r, u, task := start(t, time.Millisecond, time.Minute, approverName)
		pending(t, r.callAs(task, "c-1", "up", "act", args))
		if err := r.admin.Answer(t.Context(), r.question().ID, r.answerAs(approverName, r.question(), false)); err != nil {
			t.Fatal(err)
		}
		wantDenied(t, r.callAs(task, "c-1", "up", "act", args), vault.CodeApprovalDenied, vault.ExecutedNo)
		if n := len(u.effects()); n != 0 {
			t.Errorf("%d calls ran", n)
		}
	})
	t.Run("silence is a no", func(t *testing.T) {
		r, u, task := start(t, 10*time.Second, time.Second, approverName)
		wantDenied(t, r.callAs(task, "c-1", "up", "act", args), vault.CodeApprovalTimeout, vault.ExecutedNo)
		if n := len(u.effects()); n != 0 {
			t.Errorf("%d calls ran", n)
		}
	})
	t.Run("a tool that changed is not the one that was approved", func(t *testing.T) {
		r, u, task := start(t, time.Millisecond, time.Minute, approverName)
		pending(t, r.callAs(task, "c-1", "up", "act", args))
		if err := r.admin.Answer(t.Context(), r.question().ID, r.answerAs(approverName, r.question(), true)); err != nil {
			t.Fatal(err)
		}
		u.redefine(`{"type":"object","properties":{"id":{"type":"string"},"n":{"type":"number"},"to":{"type":"string"},"note":{"type":"string"}}}`)
		if _, err := r.admin.ReviewServer(t.Context(), "up", "", nil); err != nil {
			t.Fatal(err)
		}
		wantDenied(t, r.callAs(task, "c-1", "up", "act", args), vault.CodeToolQuarantined, vault.ExecutedNo)
		if _, err := r.admin.ReviewServer(t.Context(), "up", approverName, r.approver); err != nil {
			t.Fatal(err)
		}
		pending(t, r.callAs(task, "c-1", "up", "act", args)) // the yes was for the other definition
		if n := len(u.effects()); n != 0 {
			t.Errorf("%d calls ran", n)
		}
	})
	t.Run("what changed while the call waited is looked at again at dispatch", func(t *testing.T) {
		r, u, task := start(t, 20*time.Second, time.Minute, approverName)
		answer := make(chan admin.CallAnswer, 1)
		go func() { answer <- r.callAs(task, "c-1", "up", "act", args) }()
		eventually(t, "the question is open", func() bool { return r.status().OpenAsks == 1 })
		q := r.question()
		u.redefine(`{"type":"object","properties":{"id":{"type":"string"},"n":{"type":"number"},"to":{"type":"string"},"note":{"type":"string"}}}`)
		if _, err := r.admin.ReviewServer(t.Context(), "up", approverName, r.approver); err != nil {
			t.Fatal(err)
		}
		if err := r.admin.Answer(t.Context(), q.ID, r.answerAs(approverName, q, true)); err != nil {
			t.Fatal(err)
		}
		if a := <-answer; a.Denial == nil || a.Denial.Executed != vault.ExecutedNo || len(u.effects()) != 0 {
			t.Errorf("it ran with a definition that nobody approved: %+v", a)
		}
	})
	t.Run("a policy that changed has to be asked about again", func(t *testing.T) {
		r, u, task := start(t, time.Millisecond, time.Minute, approverName)
		pending(t, r.callAs(task, "c-1", "up", "act", args))
		if err := r.admin.Answer(t.Context(), r.question().ID, r.answerAs(approverName, r.question(), true)); err != nil {
			t.Fatal(err)
		}
		r.stop()
		r.conf.Policy = policyOf(t, `decision := {"effect": "allow"}`)
		r.start()
		pending(t, r.callAs(task, "c-1", "up", "act", args))
		if n := len(u.effects()); n != 0 {
			t.Errorf("%d calls ran", n)
		}
	})
	t.Run("the requester cannot approve", func(t *testing.T) {
		r := approvals(t, time.Millisecond, time.Minute, approverName, "deputy")
		u := newUpstream(t, "act")
		server := r.addURL("up", u.url)
		keys, err := keystore.Approvers{Dir: filepath.Join(r.conf.Data, "approvers")}.List()
		if err != nil {
			t.Fatal(err)
		}
		own := keys[slices.IndexFunc(keys, func(a keystore.Approver) bool { return a.Name == approverName })]
		task := r.mintBound(file, "key:"+base64.RawURLEncoding.EncodeToString(own.Public))
		h := holder{key: signer{r.approver, own.Public}}
		s := h.open(t, r, task.Token)
		try := func() string {
			_, body := r.post(t, s.sign(t, server.ID, "c-1", "act", args), "c-1", "act", args)
			return body
		}
		if body := try(); !strings.Contains(body, string(vault.CodeApprovalRequired)) {
			t.Fatalf("%s", body)
		}
		q := r.question()
		if err := r.admin.Answer(t.Context(), q.ID, r.answerAs(approverName, q, true)); err == nil {
			t.Error("the requester approved its own call")
		}
		if body := try(); !strings.Contains(body, string(vault.CodeApprovalRequired)) || len(u.effects()) != 0 {
			t.Errorf("%s", body)
		}
		if err := r.admin.Answer(t.Context(), q.ID, r.answerAs("deputy", q, true)); err != nil {
			t.Fatal(err)
		}
		if body := try(); strings.Contains(body, vault.DenialKey) || len(u.effects()) != 1 {
			t.Errorf("%s", body)
		}
	})
	t.Run("where nobody can answer nothing waits", func(t *testing.T) {
		r, u, task := start(t, time.Minute, time.Hour, approverName)
		r.stop()
		if err := os.Rename(filepath.Join(r.conf.Data, "approvers"), filepath.Join(r.dir, "away")); err != nil {
			t.Fatal(err)
		}
		r.conf.Approvals.Groups = nil
		r.start()
		wantDenied(t, r.callAs(task, "c-1", "up", "act", args), vault.CodeApprovalNobody, vault.ExecutedNo)
		if n := len(u.effects()); n != 0 {
			t.Errorf("%d calls ran", n)
		}
	})
}

// TestPromise06VerificationNeedsNoTrust: a bundle and a key that was pinned before
// are enough, with no daemon running, and each doubt has an answer of its own. The
// exit codes of the command are in cmd/pvault.
func TestPromise06VerificationNeedsNoTrust(t *testing.T) {
	r := startDaemon(t, nil)
	other := startDaemon(t, nil)
	u := newUpstream(t, "act")
	r.addURL("up", u.url)
	task := r.mint(taskFor("be verified", 50, "up.act: {args: any}"))
	wantAllowed(t, r.callAs(task, "c-1", "up", "act", `{"id":"one"}`))
	r.wantPhases(task, "c-1", vault.PhaseIntent, vault.PhaseDone)
	export := func(run vault.TaskID) []byte {
		b, err := r.admin.Export(t.Context(), admin.ExportRequest{Run: run, Disclose: true})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	early, open := export(""), export(task.ID)
	if err := r.admin.CloseTask(t.Context(), task.ID); err != nil {
		t.Fatal(err)
	}
	late, closed := export(""), export(task.ID)
	key, foreign := r.status().LedgerKey, other.status().LedgerKey
	r.stop() // from here on there is nobody to ask
	flipped := bytes.Clone(closed)
	flipped[bytes.Index(flipped, []byte(`"call_id":"c-1"`))+12] ^= 1

	exits := map[int]string{}
	for _, tt := range []struct {
		name   string
		bundle []byte
		o      evidence.Options
		want   evidence.Problem
	}{
		{"intact, complete, under the pinned key", closed, evidence.Options{Keys: []string{key}, Run: task.ID}, evidence.ProblemNone},
		{"one bit flipped", flipped, evidence.Options{Keys: []string{key}}, evidence.ProblemAltered},
		{"the key of another ledger", closed, evidence.Options{Keys: []string{foreign}}, evidence.ProblemWrongKey},
		{"no key of one's own", closed, evidence.Options{}, evidence.ProblemUnpinned},
		{"a run that is still open", open, evidence.Options{Keys: []string{key}}, evidence.ProblemIncomplete},
		{"another run than the one asked for", closed, evidence.Options{Keys: []string{key}, Run: "t-other"}, evidence.ProblemOtherRun},
		{"older than what the verifier holds", early, evidence.Options{Keys: []string{key}, Since: fileOf(t, late, "checkpoint")}, evidence.ProblemRollback},
	} {
		report, err := evidence.VerifyBytes(tt.bundle, tt.o)
		if err != nil || report.Problem != tt.want {
			t.Errorf("%s: %s, %v", tt.name, report.Problem, err)
		}
		if before, ok := exits[report.Exit]; ok {
			t.Errorf("%q and %q have the same exit code %d", tt.name, before, report.Exit)
		}
		exits[report.Exit] = tt.name
	}
}

// TestPromise07SecretsStayOut: no key, no token and no secret of the host is in a
// log line, an event, an answer, an error or a bundle, and what an agent sent is
// nowhere on the disk in the clear. What a jail sees is in
// TestPromise01NothingByDefault.
func TestPromise07SecretsStayOut(t *testing.T) {
	const argument, output, env = "canary-argument-7f3a", "canary-result-91bc", "canary-environment-55d0"
	t.Setenv("CANARY_SECRET", env)
	r := startDaemon(t, func(c *daemon.Config) { c.Listen.Bearer = true; c.Limits.Call = time.Second })
	u := newUpstream(t, "act")
	r.addURL("up", u.url)
	peer := r.mint(taskFor("keep secrets", 50, "up.act: {args: any}"))
	bound := r.mintBound(taskFor("keep secrets of a bearer", 50, "up.act: {args: any}"), "bearer")

	var said bytes.Buffer // all that anybody outside was told
	say := func(v any) {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		said.Write(b)
	}
	u.onCall(func(w http.ResponseWriter, _ *http.Request, c effect) { replyText(w, c, output) })
	answer := r.call(peer, "up", "act", `{"id":"`+argument+`"}`)
	wantAllowed(t, answer)
	say(r.call(peer, "up", "act", `{"id":7,"text":"`+argument+`"}`))
	u.onCall(func(w http.ResponseWriter, _ *http.Request, _ effect) {
		http.Error(w, "down", http.StatusInternalServerError)
	})
	say(r.call(peer, "up", "act", `{"id":"`+argument+`"}`))
	u.onCall(nil)
	for _, token := range []string{bound.Token, flipLast(bound.Token), peer.Token, "vc1.AAAA"} {
		_, body := r.post(t, http.Header{"Authorization": {"Bearer " + token}}, "c-secret", "act", `{"id":"x"}`)
		said.WriteString(body)
	}
	say(r.status())
	said.WriteString(r.daemon.Banner().String())
	bundle, err := r.admin.Export(t.Context(), admin.ExportRequest{Disclose: true})
	if err != nil {
		t.Fatal(err)
	}
	events, err := json.Marshal(r.records(""))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(events, []byte(argument)) || !bytes.Contains(events, []byte(output)) {
		t.Error("the disclosed events lack what was sent, so this shows nothing")
	}
	r.stop() // so that everything is on the disk

	secrets := map[string][]byte{"the environment": []byte(env), "a capability": []byte(bound.Token), "another capability": []byte(peer.Token)}
	for _, dir := range []string{"keys", "approvers"} {
		walk(t, filepath.Join(r.conf.Data, dir), func(path string, b []byte) {
			if !strings.HasSuffix(path, ".pub") {
				for _, line := range bytes.Split(b, []byte("\n")) {
					if len(line) >= 40 && !bytes.HasPrefix(line, []byte("-----")) && !bytes.Contains(line, []byte("public")) {
						secrets[filepath.Base(path)] = line
					}
				}
			}
		})
	}
	if len(secrets) < 8 {
		t.Errorf("only %d secrets were found to look for", len(secrets))
	}
	logs := []byte(r.logs.String())
	for what, secret := range secrets {
		for where, text := range map[string][]byte{"a log line": logs, "an answer": said.Bytes(), "an event": events, "a bundle": bundle} {
			if bytes.Contains(text, secret) {
				t.Errorf("%s is in %s", what, where)
			}
		}
	}
	for _, canary := range []string{argument, output} {
		if bytes.Contains(logs, []byte(canary)) || bytes.Contains(said.Bytes(), []byte(canary)) {
			t.Errorf("%s is in a log line or in a denial", canary)
		}
		walk(t, r.conf.Data, func(path string, b []byte) {
			if bytes.Contains(b, []byte(canary)) {
				t.Errorf("%s is in the clear in %s", canary, path)
			}
		})
	}
}

// walk calls f with every file below dir.
func walk(t *testing.T, dir string, f func(path string, b []byte)) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err == nil {
			f(path, b)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestPromise08UntrustedStaysUntrusted: what came from outside carries its label
// through other tools and through a restart, until a person says otherwise.
func TestPromise08UntrustedStaysUntrusted(t *testing.T) {
	r := startDaemon(t, func(c *daemon.Config) { c.Approvals.Wait = time.Millisecond })
	web, files, mail := newUpstream(t, "fetch"), newUpstream(t, "read"), newUpstream(t, "send")
	r.addServer("web", daemon.Registration{Source: web.url, Loopback: true, Integrity: "web", Holds: "public"})
	r.addServer("files", daemon.Registration{
		Source: files.url, Loopback: true, Integrity: "org", Holds: "private[finance]",
		Tools: []byte(`{"read":{"read_only":true,"roles":{"/path":"selector"}}}`),
	})
	r.addServer("mail", daemon.Registration{
		Source: mail.url, Loopback: true, Integrity: "org", Holds: "public",
		Tools: []byte(`{"send":{"roles":{"/to":"recipient","/text":"content"}}}`),
	})
	file := taskFor("read and write mail", 50, "web.fetch: {args: any}", "files.read: {args: any}", "mail.send: {args: any}") + "labels: {may_read: [finance]}\n"
	const evil = `{"to":"mallory@evil.example","text":"the invoices"}`

	clean := r.mint(strings.Replace(file, "read and write", "only write", 1))
	wantAllowed(t, r.call(clean, "mail", "send", evil)) // nothing was seen, so nothing can leak

	task := r.mint(file)
	wantAllowed(t, r.call(task, "web", "fetch", `{"path":"https://news.example/"}`))
	wantAllowed(t, r.call(task, "files", "read", `{"path":"/srv/invoices/1"}`)) // a trusted source does not wash it
	for _, when := range []string{"at once", "after a restart"} {
		wantDenied(t, r.call(task, "mail", "send", evil), vault.CodeApprovalRequired, vault.ExecutedNo)
		asked := false
		for _, rec := range r.records(task.ID) {
			asked = asked || rec.Leaf.Phase == string(vault.PhaseAsked) && rec.Leaf.Reason == string(vault.CodeFlowDeadlyThree)
		}
		if !asked {
			t.Errorf("%s: no person was asked about the deadly three", when)
		}
		r.stop()
		r.start()
	}
	if n := len(mail.effects()); n != 1 {
		t.Errorf("%d mails went out, want the clean one", n)
	}
	// Another instance has seen nothing.
	wantAllowed(t, r.call(clean, "mail", "send", evil))
}

// TestPromise09GuardGuardsItself: whoever talks to the daemon is authenticated, no
// web page can talk to it, and everything it takes in is bounded. Every route of
// the loopback listener is in TestRoutesAuthenticate.
func TestPromise09GuardGuardsItself(t *testing.T) {
	r := startDaemon(t, func(c *daemon.Config) { c.Limits.InFlight = 2; c.Listen.Bearer = true })
	u := newUpstream(t, "act")
	r.addURL("up", u.url)
	task := r.mint(taskFor("be bounded", 1000, "up.act: {args: any}"))
	bound := r.mintBound(taskFor("be bounded with a bearer", 50, "up.act: {args: any}"), "bearer")

	t.Run("the socket is this user's and no web page's", func(t *testing.T) {
		for path, want := range map[string]os.FileMode{r.conf.Socket(): 0o600, r.conf.Data: 0o700} {
			info, err := os.Stat(path)
			if err != nil || info.Mode().Perm() != want {
				t.Errorf("%s: %v, %v", path, info.Mode(), err)
			}
		}
		for name, change := range map[string]func(*http.Request){
			"another host": func(q *http.Request) { q.Host = "localhost" },
			"an origin":    func(q *http.Request) { q.Header.Set("Origin", "http://localhost") },
		} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://vault/v1/status", nil)
			if err != nil {
				t.Fatal(err)
			}
			change(req)
			res, err := r.admin.HTTP.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			if res.StatusCode != http.StatusForbidden {
				t.Errorf("%s: %s", name, res.Status)
			}
		}
	})
	t.Run("what peer credentials do not allow needs an approver", func(t *testing.T) {
		for _, route := range []string{"POST /v1/tasks/mint", "POST /v1/servers", "POST /v1/servers/up/review", "DELETE /v1/servers/up"} {
			method, path, _ := strings.Cut(route, " ")
			req, err := http.NewRequestWithContext(t.Context(), method, "http://vault"+path, strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			res, err := r.admin.HTTP.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			if res.StatusCode != http.StatusForbidden {
				t.Errorf("%s without a signature: %s", route, res.Status)
			}
		}
	})
	t.Run("sizes", func(t *testing.T) {
		auth := http.Header{"Authorization": {"Bearer " + bound.Token}}
		if status, _ := r.post(t, auth, "c-1", "act", `{"text":"`+strings.Repeat("x", 8<<20)+`"}`); status != http.StatusRequestEntityTooLarge {
			t.Errorf("8 MiB of arguments: status %d", status)
		}
		auth.Set("X-Padding", strings.Repeat("x", 256<<10))
		if status, _ := r.post(t, auth, "c-1", "act", `{}`); status != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("256 KiB of headers: status %d", status)
		}
	})
	t.Run("calls at once", func(t *testing.T) {
		release, arrived, done := make(chan struct{}), make(chan struct{}, 2), make(chan struct{}, 2)
		u.onCall(func(w http.ResponseWriter, _ *http.Request, c effect) {
			arrived <- struct{}{}
			<-release
			replyText(w, c, "done")
		})
		for range 2 {
			go func() {
				wantAllowed(t, r.call(task, "up", "act", `{}`))
				done <- struct{}{}
			}()
		}
		<-arrived
		<-arrived
		wantDenied(t, r.call(task, "up", "act", `{}`), vault.CodeBusy, vault.ExecutedNo)
		close(release)
		<-done
		<-done
		u.onCall(nil)
	})
	t.Run("refusals on record", func(t *testing.T) {
		before := r.status().Ledger
		const loop = 400
		for range loop {
			wantDenied(t, r.call(task, "up", "act", `{"id":7}`), vault.CodeArgsSchema, vault.ExecutedNo)
		}
		if n := r.status().Ledger - before; n < 50 || n > 250 {
			t.Errorf("%d refusals made %d events", loop, n)
		}
	})
	r.wantSound()
}

// cryptographyOf lists the packages that may use each sort of primitive. All of
// them come from the standard library or from published implementations; what is
// put together from them is held to published vectors: TestCOSEExample and
// TestEd25519Malleability in capability, TestPublishedVector in internal/approval,
// the RFC 6962 and signed note tests in evidence.
var cryptographyOf = map[string][]string{
	"crypto/aes":    {"internal/ledger"},
	"crypto/cipher": {"internal/ledger", "evidence"},
	"crypto/ecdh":   {"capability"},
	// evidence verifies Rekor entries, anchor signs them with a key that keystore made;
	// oauth holds keys of issuers to their kind.
	"crypto/ecdsa":    {"capability", "evidence", "internal/anchor", "internal/keystore", "internal/oauth"},
	"crypto/elliptic": {"capability", "evidence", "internal/keystore"},
	"crypto/hkdf":     {"capability"},
	"crypto/hmac":     {"capability", "evidence", "internal/oauth"}, // oauth makes nonces that it need not keep
	// aat verifies Ed25519 under the name that the JOSE library does not know yet.
	"crypto/ed25519":               {"capability", "cmd/pvault", "evidence", "internal/aat", "internal/admin", "internal/approval", "internal/daemon", "internal/keystore", "internal/ledger", "internal/oauth"},
	"crypto/rsa":                   {"internal/oauth", "evidence"}, // the type of an issuer's or authority's key; go-jose and crypto/x509 verify
	"filippo.io/age":               {"internal/keystore"},
	"golang.org/x/mod/sumdb/note":  {"evidence"},
	"golang.org/x/mod/sumdb/tlog":  {"evidence", "internal/ledger", "internal/tiles"},
	"golang.org/x/crypto/argon2":   {},
	"golang.org/x/crypto/blake2b":  {},
	"golang.org/x/crypto/nacl/box": {},
}

// plainCrypto is used anywhere: hashes, comparison, randomness, parsing of keys.
var plainCrypto = []string{"crypto", "crypto/rand", "crypto/sha256", "crypto/subtle", "crypto/x509", "crypto/x509/pkix", "crypto/tls"}

// TestPromise10NoOwnCryptography: primitives are imported by the packages that are
// reviewed for it and by no other, weak ones by none, and nothing that has to be
// unpredictable comes from math/rand.
func TestPromise10NoOwnCryptography(t *testing.T) {
	root := filepath.Join("..", "..")
	used := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && slices.Contains([]string{"testdata", ".git", "node_modules", "tools", "judges", "vaulttest"}, d.Name()) {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		pkg := filepath.ToSlash(rel)
		for _, spec := range f.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			used[imp] = true
			cryptographic := strings.HasPrefix(imp, "crypto/") || strings.HasPrefix(imp, "golang.org/x/crypto/") || strings.HasPrefix(imp, "filippo.io/") || strings.Contains(imp, "/sumdb/")
			switch {
			case imp == "math/rand" || imp == "math/rand/v2":
				t.Errorf("%s imports %s: what can be guessed has no place here", path, imp)
			case !cryptographic || slices.Contains(plainCrypto, imp):
			case !slices.Contains(cryptographyOf[imp], pkg):
				t.Errorf("%s imports %s: only %v may", path, imp, cryptographyOf[imp])
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, imp := range []string{"crypto/ed25519", "crypto/hmac", "golang.org/x/mod/sumdb/note", "filippo.io/age"} {
		if !used[imp] {
			t.Errorf("nobody imports %s: was it replaced by code of our own?", imp)
		}
	}
}

// fileOf returns one file of a bundle.
func fileOf(t *testing.T, bundle []byte, name string) []byte {
	t.Helper()
	b, err := fs.ReadFile(openZip(t, bundle), name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

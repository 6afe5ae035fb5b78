// Package vaulttest holds fakes and fixtures for tests. Only _test files import it.
//
// Start with [Stages], which plays every stage of the gateway and can be told
// what each of them answers and which of them fails.
package vaulttest

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/pilox/vault"
)

// ErrInjected is the failure that Stages injects.
var ErrInjected = errors.New("injected failure")

// Stages is every stage of a gateway in one fake. The zero Stages verifies every
// call and denies it in policy. It is safe for concurrent use.
type Stages struct {
	Grant     vault.Grant    // what Verify returns; Task is set if empty
	OnFlow    vault.Decision // zero means allow: set Deny by a reason
	OnPolicy  vault.Decision
	OnScan    vault.Decision // zero means allow
	OnResult  vault.Decision // of the scanner; zero means allow
	OnReturn  vault.Decision // of the policy's hook at tool.result; zero means allow
	OnApprove error          // nil approves
	Sandbox   vault.Grade
	Result    string // the runner's result object; "" means {"content":[]}
	IsError   bool
	Frames    int  // notifications before the result
	Ask       bool // the runner sends one server request

	Fail      string        // stage that fails: verify resolve grade … intent outcome
	Landed    bool          // a failing record is in the ledger all the same
	Panic     string        // stage that panics
	Block     chan struct{} // if set, Run waits for it or for ctx
	OnRun     func()        // called inside Run
	Changed   bool          // the definition has changed when Admit looks again
	RevokeNow chan struct{} // closed to revoke calls in flight
	Expired   bool          // Recheck refuses

	mu     sync.Mutex
	ran    []string
	events []vault.Event
	spent  []string
}

func (s *Stages) step(name string) error {
	s.mu.Lock()
	s.ran = append(s.ran, name)
	s.mu.Unlock()
	if s.Panic == name {
		panic("injected")
	}
	if s.Fail == name {
		return ErrInjected
	}
	return nil
}

// Ran returns the stages that ran, in order.
func (s *Stages) Ran() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.ran, " ")
}

// Events returns what was recorded.
func (s *Stages) Events() []vault.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]vault.Event(nil), s.events...)
}

// Spent returns the approvals that were burnt.
func (s *Stages) Spent() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.spent...)
}

// Verify plays capability.
func (s *Stages) Verify(context.Context, *vault.Call) (vault.Grant, error) {
	if err := s.step("verify"); err != nil {
		return vault.Grant{}, vault.NewDenial(vault.CodeProof, "", err)
	}
	g := s.Grant
	if g.Task == "" {
		g.Task, g.Agent, g.Proof = "t-1", "spiffe://test/agent/a/b/c", vault.ProofSession
	}
	return g, nil
}

// Reverify plays capability after a transform.
func (s *Stages) Reverify(_ context.Context, _ *vault.Call, g *vault.Grant) (vault.Grant, error) {
	if err := s.step("reverify"); err != nil {
		return vault.Grant{}, vault.NewDenial(vault.CodeCapabilityArgument, "", err)
	}
	return *g, nil
}

// Recheck plays capability at Admit.
func (s *Stages) Recheck(context.Context, *vault.Grant) error {
	if err := s.step("recheck"); err != nil || s.Expired {
		return vault.NewDenial(vault.CodeCapabilityExpired, "", err)
	}
	return nil
}

// Reach plays flow: a call reaches the recipient in /to and the host in /host.
func (s *Stages) Reach(f *vault.Facts) (recipients, hosts []string) {
	if to, ok := f.Call.Args.At("/to").Str(); ok {
		recipients = append(recipients, to)
	}
	if host, ok := f.Call.Args.At("/host").Str(); ok {
		hosts = append(hosts, host)
	}
	return recipients, hosts
}

// Revoked plays capability's watch.
func (s *Stages) Revoked(*vault.Grant) <-chan struct{} { return s.RevokeNow }

// Catalogue returns the catalogue half of s: it has a Recheck of its own.
func (s *Stages) Catalogue() Catalogue { return Catalogue{s} }

// Catalogue plays tool.
type Catalogue struct{ s *Stages }

// Resolve knows every tool.
func (c Catalogue) Resolve(_ context.Context, call *vault.Call, _ *vault.Grant) (vault.Tool, error) {
	if err := c.s.step("resolve"); err != nil {
		return vault.Tool{}, vault.NewDenial(vault.CodeToolUnknown, "", err)
	}
	return vault.Tool{Server: "fake", ID: call.Target.Server, Name: call.Target.Name}, nil
}

// Recheck reports a change if Changed says so.
func (c Catalogue) Recheck(context.Context, *vault.Tool) error {
	if c.s.Changed {
		return vault.NewDenial(vault.CodeToolQuarantined, "", nil)
	}
	return nil
}

// CheckResult accepts every result.
func (c Catalogue) CheckResult(context.Context, *vault.Call, *vault.Tool, []byte) error {
	if c.s.Fail == "schema" {
		return vault.NewDenial(vault.CodeResultSchema, "", ErrInjected)
	}
	return nil
}

// Check plays flow.
func (s *Stages) Check(context.Context, *vault.Facts) vault.Decision {
	if err := s.step("flow"); err != nil {
		return vault.Decision{}
	}
	return orAllow(s.OnFlow)
}

// Label plays flow on results.
func (s *Stages) Label(_ context.Context, f *vault.Facts, _ []byte) vault.Label {
	_ = s.step("label")
	return f.Tool.Label(f.Call.Kind)
}

// Taint plays flow for lost outcomes.
func (s *Stages) Taint(vault.AgentID, vault.Label) { _ = s.step("taint") }

// Decide plays policy.
func (s *Stages) Decide(context.Context, *vault.Facts) vault.Decision {
	if err := s.step("policy"); err != nil {
		return vault.Denied(vault.CodePolicyError, "", err.Error())
	}
	return s.OnPolicy
}

// DecideResult plays the policy's hook at tool.result. It is no step: most calls have none.
func (s *Stages) DecideResult(context.Context, *vault.Facts, []byte, bool) vault.Decision {
	return orAllow(s.OnReturn)
}

// Revision plays policy.
func (s *Stages) Revision() vault.Digest { return vault.Digest{1} }

// ScanArgs plays guard.
func (s *Stages) ScanArgs(context.Context, *vault.Facts) vault.Decision {
	if err := s.step("scan"); err != nil {
		return vault.Denied(vault.CodeScanError, "", err.Error())
	}
	return orAllow(s.OnScan)
}

// ScanResult plays guard.
func (s *Stages) ScanResult(_ context.Context, _ *vault.Facts, raw []byte) ([]byte, vault.Decision) {
	if err := s.step("rescan"); err != nil {
		return nil, vault.Denied(vault.CodeScanError, "", err.Error())
	}
	return raw, orAllow(s.OnResult)
}

func orAllow(d vault.Decision) vault.Decision {
	if d.Verdict == vault.Deny && len(d.Reasons) == 0 {
		return vault.Allowed()
	}
	return d
}

// Question plays approval.
func (s *Stages) Question(context.Context, *vault.Facts, vault.Decision, vault.Digest) (vault.Question, error) {
	if err := s.step("question"); err != nil {
		return vault.Question{}, vault.NewDenial(vault.CodeApprovalNobody, "", err)
	}
	return vault.Question{ID: "q1"}, nil
}

// Show plays approval.
func (s *Stages) Show(context.Context, vault.Question) error { return s.step("show") }

// Answer plays the person.
func (s *Stages) Answer(context.Context, vault.Question, time.Duration) (vault.Approval, error) {
	if err := s.step("answer"); err != nil {
		return vault.Approval{}, err
	}
	return vault.Approval{ID: "q1"}, s.OnApprove
}

// Approver returns the approval half of s: it has a Recheck of its own.
func (s *Stages) Approver() Approver { return Approver{s} }

// Approver plays approval.
type Approver struct{ *Stages }

// Recheck plays approval at dispatch.
func (a Approver) Recheck(context.Context, vault.Approval, *vault.Facts, vault.Decision, vault.Digest) error {
	if err := a.step("reapprove"); err != nil {
		return vault.NewDenial(vault.CodeApprovalInvalid, "", err)
	}
	return nil
}

// Spend notes that the approval is burnt.
func (a Approver) Spend(_ context.Context, p vault.Approval) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.spent = append(a.spent, p.ID)
}

// Grade plays the sandbox.
func (s *Stages) Grade(context.Context, *vault.Facts) (vault.Grade, bool, error) {
	if s.Fail == "grade" {
		return 0, false, vault.NewDenial(vault.CodeSandboxMissing, "", ErrInjected)
	}
	return s.Sandbox, false, nil
}

// Run plays the upstream.
func (s *Stages) Run(ctx context.Context, _ *vault.Facts, out vault.Stream) (vault.Result, error) {
	for range s.Frames {
		if err := out.Notify(ctx, "notifications/progress", json.RawMessage(`{}`)); err != nil {
			return vault.Result{}, err
		}
	}
	if s.Ask {
		if _, err := out.Request(ctx, "sampling/createMessage", json.RawMessage(`{}`)); err != nil {
			return vault.Result{}, err
		}
	}
	err := s.step("run")
	if s.OnRun != nil {
		s.OnRun()
	}
	if s.Block != nil {
		select {
		case <-s.Block:
		case <-ctx.Done():
			d := vault.NewDenial(vault.CodeUpstreamFailed, "", ctx.Err())
			d.Executed = vault.ExecutedUnknown
			return vault.Result{}, d
		}
	}
	if err != nil {
		return vault.Result{}, err
	}
	raw := s.Result
	if raw == "" {
		raw = `{"content":[]}`
	}
	return vault.Result{Raw: json.RawMessage(raw), IsError: s.IsError}, nil
}

// Commit plays the ledger.
func (s *Stages) Commit(ctx context.Context, e *vault.Event) (vault.Receipt, error) {
	return s.Sequence(ctx, e)
}

// Sequence plays the ledger for outcomes.
func (s *Stages) Sequence(_ context.Context, e *vault.Event) (vault.Receipt, error) {
	fail := s.step(string(e.Phase))
	s.mu.Lock()
	defer s.mu.Unlock()
	if fail != nil && !s.Landed {
		return vault.Receipt{}, fail
	}
	s.events = append(s.events, *e)
	return vault.Receipt{Index: uint64(len(s.events) - 1)}, fail
}

// A Sink is a caller's side that remembers what reached it.
type Sink struct {
	mu     sync.Mutex
	Frames []string
}

// Notify remembers the method.
func (s *Sink) Notify(_ context.Context, method string, _ json.RawMessage) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Frames = append(s.Frames, method)
	return nil
}

// Request answers with an empty object.
func (s *Sink) Request(_ context.Context, method string, _ json.RawMessage) (json.RawMessage, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Frames = append(s.Frames, method)
	return json.RawMessage(`{}`), nil
}

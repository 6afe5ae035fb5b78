package gateway_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/gateway"
	"github.com/pilox/vault/internal/vaulttest"
)

func newGateway(s *vaulttest.Stages) *gateway.Gateway {
	return &gateway.Gateway{
		Verifier: s, Catalogue: s.Catalogue(), Flow: s, Policy: s, Scanner: s,
		Approver: s.Approver(), Runner: s, Recorder: s,
		Tasks: new(gateway.Tasks), Log: slog.New(slog.DiscardHandler),
	}
}

func call(id string) *vault.Call {
	return &vault.Call{ID: id, Kind: vault.KindTool, Target: vault.Target{Name: "echo"}, Args: vault.MustArgs(`{"a":1}`), Edge: "test"}
}

const (
	decided  = "verify resolve flow policy scan "
	asked    = decided + "question asked show answer "
	admitted = "recheck intent "
)

// TestHandle reads as the specification of the flow: which stages run, and in
// which order, for each way a call can go.
func TestHandle(t *testing.T) {
	allow := vault.Allowed()
	deny := vault.Denied(vault.CodePolicyDenied, "", "")
	ask := vault.Asked("lead", vault.CodePolicyAsks, "", "")
	for _, tt := range []struct {
		name string
		s    *vaulttest.Stages
		want string // the stages that ran
		code vault.Code
	}{
		{"allowed", &vaulttest.Stages{OnPolicy: allow}, decided + admitted + "run rescan label done", ""},
		{"frames are scanned, labelled and on record before they leave", &vaulttest.Stages{OnPolicy: allow, Frames: 2}, decided + admitted + "rescan label released rescan label run rescan label done", ""},
		{"a server request is a call of its own", &vaulttest.Stages{OnPolicy: allow, Ask: true}, decided + admitted + "reverify resolve flow policy scan " + admitted + "label released rescan label done run rescan label done", ""},
		{"approved", &vaulttest.Stages{OnPolicy: ask}, asked + "recheck reapprove intent run rescan label done", ""},
		{"asked by the capability", &vaulttest.Stages{OnPolicy: allow, Grant: vault.Grant{Task: "t-1", Ask: []string{"finance"}}}, asked + "recheck reapprove intent run rescan label done", ""},
		{"asked by flow, allowed by policy", &vaulttest.Stages{OnPolicy: allow, OnFlow: ask}, asked + "recheck reapprove intent run rescan label done", ""},
		{"the tool reports an error", &vaulttest.Stages{OnPolicy: allow, IsError: true}, decided + admitted + "run rescan label failed", ""},

		{"not verified: counted, not recorded", &vaulttest.Stages{OnPolicy: allow, Fail: "verify"}, "verify", vault.CodeProof},
		{"unknown tool", &vaulttest.Stages{OnPolicy: allow, Fail: "resolve"}, "verify resolve refused", vault.CodeToolUnknown},
		{"grade too low", &vaulttest.Stages{OnPolicy: allow, Grant: vault.Grant{Task: "t-1", MinGrade: vault.GradeB}, Sandbox: vault.GradeC}, "verify resolve refused", vault.CodeSandboxGrade},
		{"no sandbox", &vaulttest.Stages{OnPolicy: allow, Fail: "grade"}, "verify resolve refused", vault.CodeSandboxMissing},
		{"flow fails without a word", &vaulttest.Stages{OnPolicy: allow, Fail: "flow"}, "verify resolve flow refused", vault.CodeInternal},
		{"refused by policy", &vaulttest.Stages{OnPolicy: deny}, "verify resolve flow policy refused", vault.CodePolicyDenied},
		{"policy says nothing", &vaulttest.Stages{}, "verify resolve flow policy refused", vault.CodeInternal},
		{"policy fails", &vaulttest.Stages{OnPolicy: allow, Fail: "policy"}, "verify resolve flow policy refused", vault.CodePolicyError},
		{"refused by scan though flow asks", &vaulttest.Stages{OnPolicy: allow, OnFlow: ask, OnScan: vault.Denied(vault.CodeScan, "", "")}, decided + "refused", vault.CodeScan},
		{"scan fails", &vaulttest.Stages{OnPolicy: allow, Fail: "scan"}, decided + "refused", vault.CodeScanError},
		{"a stage panics", &vaulttest.Stages{OnPolicy: allow, Panic: "policy"}, "verify resolve flow policy refused", vault.CodeInternal},
		{"nobody to ask", &vaulttest.Stages{OnPolicy: ask, Fail: "question"}, decided + "question refused", vault.CodeApprovalNobody},
		{"the question cannot be recorded: it is not shown", &vaulttest.Stages{OnPolicy: ask, Fail: "asked"}, decided + "question asked refused", vault.CodeLedger},
		{"refused by a person", &vaulttest.Stages{OnPolicy: ask, OnApprove: vault.NewDenial(vault.CodeApprovalDenied, "", nil)}, asked + "refused", vault.CodeApprovalDenied},
		{"the approval does not hold at dispatch", &vaulttest.Stages{OnPolicy: ask, Fail: "reapprove"}, asked + "recheck reapprove refused", vault.CodeApprovalInvalid},
		{"expired meanwhile", &vaulttest.Stages{OnPolicy: allow, Expired: true}, decided + "recheck refused", vault.CodeCapabilityExpired},
		{"definition changed meanwhile", &vaulttest.Stages{OnPolicy: allow, Changed: true}, decided + "recheck refused", vault.CodeToolQuarantined},
		{"intent not durable: nothing runs", &vaulttest.Stages{OnPolicy: allow, Fail: "intent"}, decided + admitted + "refused", vault.CodeLedger},
		{"intent failed and is there all the same: nothing runs", &vaulttest.Stages{OnPolicy: allow, Fail: "intent", Landed: true}, decided + admitted + "refused", vault.CodeLedger},
		{"upstream fails: what it can carry taints", &vaulttest.Stages{OnPolicy: allow, Fail: "run"}, decided + admitted + "run taint failed", vault.CodeInternal},
		{"upstream panics", &vaulttest.Stages{OnPolicy: allow, Panic: "run"}, decided + admitted + "run taint failed", vault.CodeInternal},
		{"result does not match its schema", &vaulttest.Stages{OnPolicy: allow, Fail: "schema"}, decided + admitted + "run done", vault.CodeResultSchema},
		{"result withheld", &vaulttest.Stages{OnPolicy: allow, OnResult: vault.Denied(vault.CodeScan, "", "")}, decided + admitted + "run rescan done", vault.CodeResultWithheld},
		{"outcome not recorded: the result stays here", &vaulttest.Stages{OnPolicy: allow, Fail: "done"}, decided + admitted + "run rescan label done", vault.CodeLedger},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := tt.s
			out := new(vaulttest.Sink)
			res, err := newGateway(s).Handle(t.Context(), call("1"), out)
			if got := s.Ran(); got != tt.want {
				t.Errorf("stages:\n got %s\nwant %s", got, tt.want)
			}
			if (err == nil) != (tt.code == "") {
				t.Fatalf("err = %v, want code %q", err, tt.code)
			}
			checkInvariants(t, s, res, err)
			if err != nil {
				d, ok := errors.AsType[*vault.Denial](err)
				if !ok || d.Reason.Code != tt.code {
					t.Errorf("err = %v, want code %s", err, tt.code)
				}
			}
		})
	}
}

// checkInvariants holds whatever happened: no effect without an intent before
// it, no open intent unless the ledger failed, no result beside an error.
func checkInvariants(t *testing.T, s *vaulttest.Stages, res vault.Result, err error) {
	t.Helper()
	open, intents := 0, 0
	for _, e := range s.Events() {
		switch {
		case e.Phase == vault.PhaseIntent:
			intents++
			open++
			if e.Verdict != vault.Allow {
				t.Errorf("intent with verdict %v", e.Verdict)
			}
		case e.Phase.Closes():
			open--
		case e.Phase == vault.PhaseRefused && e.Verdict != vault.Deny:
			t.Errorf("refusal with verdict %v", e.Verdict)
		}
	}
	ran := strings.Contains(s.Ran(), "run")
	if ran && intents == 0 {
		t.Error("it ran without an intent")
	}
	if open != 0 && s.Fail != "done" && s.Fail != "intent" {
		t.Errorf("%d intents left open", open)
	}
	if err != nil && res.Raw != nil {
		t.Error("a result beside an error")
	}
	if d := vault.DenialOf(err); d != nil {
		if ran && d.Executed == vault.ExecutedNo && s.Fail == "run" {
			t.Error("a failed run claims that nothing happened")
		}
		if !ran && d.Executed != vault.ExecutedNo {
			t.Errorf("executed = %s, and nothing ran", d.Executed)
		}
	}
}

// A caller that hangs up stops its tool and still leaves a complete record.
func TestHangUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &vaulttest.Stages{OnPolicy: vault.Allowed(), Block: make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		s.OnRun = cancel
		_, err := newGateway(s).Handle(ctx, call("1"), nil)
		if d := vault.DenialOf(err); d.Reason.Code != vault.CodeCancelled || d.Executed != vault.ExecutedUnknown {
			t.Errorf("denial = %+v", d)
		}
		if got, want := s.Ran(), decided+admitted+"run taint cancelled"; got != want {
			t.Errorf("stages:\n got %s\nwant %s", got, want)
		}
	})
}

// A revocation ends calls in flight; their results are recorded and not delivered.
func TestRevokedInFlight(t *testing.T) {
	t.Run("while it runs", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &vaulttest.Stages{OnPolicy: vault.Allowed(), Block: make(chan struct{}), RevokeNow: make(chan struct{})}
			s.OnRun = func() { close(s.RevokeNow) }
			_, err := newGateway(s).Handle(t.Context(), call("1"), nil)
			if d := vault.DenialOf(err); d.Reason.Code != vault.CodeCapabilityRevoked || d.Executed != vault.ExecutedUnknown {
				t.Errorf("denial = %+v", d)
			}
		})
	})
	t.Run("while the result is on its way", func(t *testing.T) {
		s := &vaulttest.Stages{OnPolicy: vault.Allowed(), RevokeNow: make(chan struct{})}
		s.OnRun = func() { close(s.RevokeNow) }
		res, err := newGateway(s).Handle(t.Context(), call("1"), nil)
		d := vault.DenialOf(err)
		if d == nil || d.Reason.Code != vault.CodeCapabilityRevoked || d.Executed == vault.ExecutedNo || res.Raw != nil {
			t.Errorf("result %s, denial = %+v", res.Raw, d)
		}
		if !strings.Contains(s.Ran(), "done") && !strings.Contains(s.Ran(), "cancelled") {
			t.Errorf("no outcome: %s", s.Ran())
		}
	})
}

// A call id has one effect, however often and whenever it arrives.
func TestCallID(t *testing.T) {
	t.Run("closed: the same outcome", func(t *testing.T) {
		s := &vaulttest.Stages{OnPolicy: vault.Allowed(), Result: `{"n":1}`}
		g := newGateway(s)
		first, err := g.Handle(t.Context(), call("1"), nil)
		again, err2 := g.Handle(t.Context(), call("1"), nil)
		if err != nil || err2 != nil || string(again.Raw) != string(first.Raw) || again.Event != first.Event {
			t.Errorf("%s, %v; again %s, %v", first.Raw, err, again.Raw, err2)
		}
		if n := strings.Count(s.Ran(), "run"); n != 1 {
			t.Errorf("ran %d times", n)
		}
	})
	t.Run("in flight: joined", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &vaulttest.Stages{OnPolicy: vault.Allowed(), Block: make(chan struct{})}
			g := newGateway(s)
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					if _, err := g.Handle(t.Context(), call("1"), nil); err != nil {
						t.Error(err)
					}
				})
			}
			synctest.Wait()
			close(s.Block)
			wg.Wait()
			if n := strings.Count(s.Ran(), "run"); n != 1 {
				t.Errorf("ran %d times", n)
			}
		})
	})
	t.Run("other arguments: refused", func(t *testing.T) {
		s := &vaulttest.Stages{OnPolicy: vault.Allowed()}
		g := newGateway(s)
		_, err := g.Handle(t.Context(), call("1"), nil)
		c := call("1")
		c.Args = vault.MustArgs(`{"a":2}`)
		_, err2 := g.Handle(t.Context(), c, nil)
		if err != nil || vault.DenialOf(err2).Reason.Code != vault.CodeCallArgsDiffer {
			t.Errorf("%v, %v", err, err2)
		}
	})
	t.Run("unknown outcome: refused, not run again", func(t *testing.T) {
		s := &vaulttest.Stages{OnPolicy: vault.Allowed(), Fail: "done"}
		g := newGateway(s)
		_, _ = g.Handle(t.Context(), call("1"), nil)
		_, err := g.Handle(t.Context(), call("1"), nil)
		if d := vault.DenialOf(err); d.Reason.Code != vault.CodeCallUnknown || d.Executed != vault.ExecutedUnknown {
			t.Errorf("denial = %+v", d)
		}
		if n := strings.Count(s.Ran(), "run"); n != 1 {
			t.Errorf("ran %d times", n)
		}
	})
	t.Run("refused before: tried again", func(t *testing.T) {
		s := &vaulttest.Stages{OnPolicy: vault.Asked("lead", vault.CodePolicyAsks, "", ""), OnApprove: vault.NewDenial(vault.CodeApprovalRequired, "", nil)}
		g := newGateway(s)
		_, err := g.Handle(t.Context(), call("1"), nil)
		s.OnApprove = nil
		_, err2 := g.Handle(t.Context(), call("1"), nil)
		if err == nil || err2 != nil {
			t.Errorf("%v, %v", err, err2)
		}
	})
	t.Run("after a restart: closed without a result, open is unknown", func(t *testing.T) {
		s := &vaulttest.Stages{OnPolicy: vault.Allowed()}
		g := newGateway(s)
		g.Tasks.Restore(nil, nil, []gateway.Past{{Task: "t-1", ID: "1", Phase: vault.PhaseDone, Intent: 7}, {Task: "t-1", ID: "2", Phase: vault.PhaseUnknown}})
		_, err := g.Handle(t.Context(), call("1"), nil)
		if d := vault.DenialOf(err); d.Reason.Code != vault.CodeCallClosed || d.Executed != vault.ExecutedYes || *d.Event != 7 {
			t.Errorf("denial = %+v", d)
		}
		_, err = g.Handle(t.Context(), call("2"), nil)
		if d := vault.DenialOf(err); d.Reason.Code != vault.CodeCallUnknown {
			t.Errorf("denial = %+v", d)
		}
	})
	t.Run("results beyond the bound are dropped, the id is not", func(t *testing.T) {
		s := &vaulttest.Stages{OnPolicy: vault.Allowed(), Result: `{"x":"` + strings.Repeat("x", 600) + `"}`}
		g := newGateway(s)
		g.Tasks.MaxKept = 1000
		_, err := g.Handle(t.Context(), call("1"), nil)
		_, err2 := g.Handle(t.Context(), call("2"), nil)
		_, err3 := g.Handle(t.Context(), call("1"), nil)
		if err != nil || err2 != nil || vault.DenialOf(err3).Reason.Code != vault.CodeCallClosed {
			t.Errorf("%v, %v, %v", err, err2, err3)
		}
		other := call("1")
		other.Args = vault.MustArgs(`{"a":2}`)
		if _, err := g.Handle(t.Context(), other, nil); vault.DenialOf(err).Reason.Code != vault.CodeCallArgsDiffer {
			t.Errorf("the same id with other arguments: %v", err)
		}
		if n := strings.Count(s.Ran(), "rescan"); n != 2 {
			t.Errorf("ran %d times", n)
		}
	})
	t.Run("an unknown outcome stays unknown when its entry is dropped", func(t *testing.T) {
		s := &vaulttest.Stages{OnPolicy: vault.Allowed(), Fail: "done"}
		g := newGateway(s)
		g.Tasks.MaxKept = 1
		_, _ = g.Handle(t.Context(), call("1"), nil)
		_, err := g.Handle(t.Context(), call("1"), nil)
		if d := vault.DenialOf(err); d.Reason.Code != vault.CodeCallUnknown || d.Executed != vault.ExecutedUnknown {
			t.Errorf("denial = %+v", d)
		}
	})
}

// Budgets are taken once per effect, and given back only if nothing was sent.
func TestBudget(t *testing.T) {
	grant := func() vault.Grant {
		return vault.Grant{Task: "t-1", Agent: "a", Proof: vault.ProofSession, Debits: []vault.Debit{
			{Counter: "l/calls", Amount: 1, Limit: 10, Unit: "calls", Kept: true},
			{Counter: "l/sum", Amount: 9000, Limit: 10000, Unit: "EUR"},
		}}
	}
	for _, tt := range []struct {
		name       string
		s          *vaulttest.Stages
		calls, sum int64
	}{
		{"done keeps both", &vaulttest.Stages{}, 1, 9000},
		{"failed keeps both", &vaulttest.Stages{Fail: "run"}, 1, 9000},
		{"tool error keeps both", &vaulttest.Stages{IsError: true}, 1, 9000},
		{"withheld keeps both", &vaulttest.Stages{OnResult: vault.Denied(vault.CodeScan, "", "")}, 1, 9000},
		{"unknown keeps both", &vaulttest.Stages{Fail: "done"}, 1, 9000},
		{"refused takes nothing", &vaulttest.Stages{Expired: true}, 0, 0},
		{"no intent takes nothing", &vaulttest.Stages{Fail: "intent"}, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.s.Grant, tt.s.OnPolicy = grant(), vault.Allowed()
			g := newGateway(tt.s)
			_, _ = g.Handle(t.Context(), call("1"), nil)
			if c, s := g.Tasks.Spent("l/calls"), g.Tasks.Spent("l/sum"); c != tt.calls || s != tt.sum {
				t.Errorf("calls %d, sum %d; want %d, %d", c, s, tt.calls, tt.sum)
			}
		})
	}
	t.Run("64 at once: one transfer of 9,000 under 10,000", func(t *testing.T) {
		s := &vaulttest.Stages{Grant: grant(), OnPolicy: vault.Allowed()}
		g := newGateway(s)
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() { _, _ = g.Handle(t.Context(), call(string(rune('A'+i))), nil) })
		}
		wg.Wait()
		if n := g.Tasks.Spent("l/sum"); n != 9000 {
			t.Errorf("spent %d", n)
		}
		if n := strings.Count(s.Ran(), "run"); n != 1 {
			t.Errorf("ran %d times", n)
		}
	})
	t.Run("an approval is burnt with its intent and never twice", func(t *testing.T) {
		s := &vaulttest.Stages{OnPolicy: vault.Asked("lead", vault.CodePolicyAsks, "", "")}
		g := newGateway(s)
		_, err := g.Handle(t.Context(), call("1"), nil)
		_, err2 := g.Handle(t.Context(), call("2"), nil) // the fake answers with the same approval
		if err != nil || vault.DenialOf(err2).Reason.Code != vault.CodeApprovalInvalid {
			t.Errorf("%v, %v", err, err2)
		}
		if got := s.Spent(); len(got) != 1 {
			t.Errorf("spent %v", got)
		}
	})
}

// A transform starts again at Verify, once; a second one denies.
func TestTransform(t *testing.T) {
	d := vault.Allowed()
	d.Obligations = []vault.Obligation{{Type: vault.ObligeTransform, Args: vault.MustArgs(`{"a":2}`)}}
	s := &vaulttest.Stages{OnPolicy: vault.Allowed(), OnFlow: d}
	_, err := newGateway(s).Handle(t.Context(), call("1"), nil)
	if got, want := s.Ran(), decided+"reverify resolve flow policy scan refused"; got != want || vault.DenialOf(err).Reason.Code != vault.CodePolicyError {
		t.Errorf("stages:\n got %s\nwant %s; err %v", got, want, err)
	}
	two := vault.Allowed()
	two.Obligations = []vault.Obligation{{Type: vault.ObligeTransform, Args: vault.MustArgs(`{"a":3}`)}}
	s = &vaulttest.Stages{OnPolicy: two, OnFlow: d}
	if _, err := newGateway(s).Handle(t.Context(), call("1"), nil); vault.DenialOf(err).Reason.Code != vault.CodePolicyError {
		t.Errorf("conflicting transforms: %v", err)
	}
	odd := vault.Allowed()
	odd.Obligations = []vault.Obligation{{Type: "levitate"}}
	s = &vaulttest.Stages{OnPolicy: odd}
	if _, err := newGateway(s).Handle(t.Context(), call("1"), nil); vault.DenialOf(err).Reason.Code != vault.CodePolicyError {
		t.Errorf("unknown obligation: %v", err)
	}
}

// Redactions a stage asks for are applied to what leaves.
func TestRedact(t *testing.T) {
	d := vault.Allowed()
	d.Obligations = []vault.Obligation{{Type: vault.ObligeRedact, Path: "/content/0/text"}}
	s := &vaulttest.Stages{OnPolicy: d, Result: `{"content":[{"text":"<secret>","n":12345678901234567890}]}`}
	res, err := newGateway(s).Handle(t.Context(), call("1"), nil)
	if want := `{"content":[{"n":12345678901234567890,"text":"[redacted]"}]}`; err != nil || string(res.Raw) != want {
		t.Errorf("%s, %v; want %s", res.Raw, err, want)
	}
}

// An agent that is refused in a loop cannot fill the ledger, and what it did is
// still summed up.
func TestRefusalsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &vaulttest.Stages{OnPolicy: vault.Denied(vault.CodePolicyDenied, "", "")}
		g := newGateway(s)
		for range 1000 {
			c := call("")
			c.ID = vault.NewCallID()
			_, _ = g.Handle(t.Context(), c, nil)
		}
		if n := len(s.Events()); n != 100 {
			t.Errorf("%d refusals on record, want 100", n)
		}
	})
}

// Refusals before authentication are summed, one event a flush.
func TestStrangers(t *testing.T) {
	s := &vaulttest.Stages{OnPolicy: vault.Allowed(), Fail: "verify"}
	g := newGateway(s)
	for range 1000 {
		_, _ = g.Handle(t.Context(), call("x"), nil)
	}
	if err := g.FlushStrangers(t.Context()); err != nil {
		t.Fatal(err)
	}
	ev := s.Events()
	if len(ev) != 1 || ev[0].Class != vault.ClassAccess || !strings.Contains(string(ev[0].Fields[0].Value), `"test proof":1000`) {
		t.Errorf("events: %+v", ev)
	}
}

// committing notes what was to be on disk before the gateway went on.
type committing struct {
	*vaulttest.Stages
	waited []vault.Phase
}

func (c *committing) Commit(ctx context.Context, e *vault.Event) (vault.Receipt, error) {
	c.waited = append(c.waited, e.Phase)
	return c.Stages.Commit(ctx, e)
}

// TestOutcomeDurable: an outcome waits for the disk where the operator says so, and an
// intent always does.
func TestOutcomeDurable(t *testing.T) {
	for name, tt := range map[string]struct {
		durable func(*vault.Facts) bool
		want    []vault.Phase
	}{
		"nothing is said":  {nil, []vault.Phase{vault.PhaseIntent}},
		"not for this one": {func(*vault.Facts) bool { return false }, []vault.Phase{vault.PhaseIntent}},
		"for this one":     {func(f *vault.Facts) bool { return f.Tool.Risk.AtLeast(vault.RiskLow) }, []vault.Phase{vault.PhaseIntent, vault.PhaseDone}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &committing{Stages: &vaulttest.Stages{OnPolicy: vault.Allowed()}}
			g := newGateway(s.Stages)
			g.Recorder, g.OutcomeDurable = s, tt.durable
			if _, err := g.Handle(t.Context(), call("1"), new(vaulttest.Sink)); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(s.waited, tt.want) {
				t.Errorf("waited for %v, want %v", s.waited, tt.want)
			}
		})
	}
}

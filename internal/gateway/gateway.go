// Package gateway takes one call from request to recorded result.
//
// It owns the order of the stages, declares the interface of each, and keeps
// what belongs to no stage: the calls in flight and the budgets of a task. The
// stages themselves live in sibling packages that it does not import. Start with
// [Gateway.Handle], which reads top to bottom.
//
// It promises: every call passes every stage; a later stage makes a decision
// stricter and never looser; the intent of a call is durable before anything
// runs, and an outcome is recorded after, whatever happens in between; a stage
// that fails or panics denies.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/pilox/vault"
)

// A Gateway handles calls. All stages are required; it is safe for concurrent
// use if they are.
type Gateway struct {
	Verifier  Verifier
	Catalogue Catalogue
	Flow      Flow
	Policy    Policy
	Scanner   Scanner
	Approver  Approver
	Runner    Runner
	Recorder  Recorder

	Tasks *Tasks // required: calls in flight and budgets
	// Autonomy is the levels of tasks; the zero Autonomy has none.
	Autonomy Autonomy
	Log      *slog.Logger // required

	// ApprovalWait is how long a call waits for a person before it returns
	// pending. Zero means 25 seconds, below the timeouts of common clients.
	ApprovalWait time.Duration
	// CallTime is the longest that a call may run, for budgets of time: it is what a
	// call reserves. Zero means a minute.
	CallTime time.Duration
	// Meter counts calls. Nil: nobody does.
	Meter Meter
	// Tracer follows single calls. Nil: nobody does, and it costs nothing.
	Tracer Tracer
	// OutcomeDurable says which outcomes must be on disk before the answer
	// leaves. Nil means none: they are durable at most 20 ms later.
	OutcomeDurable func(*vault.Facts) bool
}

// Handle runs call through every stage, in order, and returns its result. Every
// error is a [*vault.Denial].
//
// A call id that is in flight joins the call in flight; one that is closed
// returns the same outcome; one whose outcome is not known, or that stands for
// other arguments or another caller, is refused.
func (g *Gateway) Handle(ctx context.Context, call *vault.Call, out vault.Stream) (vault.Result, error) {
	f := &vault.Facts{Call: call, Grant: new(vault.Grant), Tool: new(vault.Tool)}
	return g.take(ctx, f, func(ctx context.Context, s *stream) (vault.Result, error) {
		return g.Runner.Run(ctx, f, s)
	}, out)
}

// take verifies a call, runs it through the stages, and lets others watch.
func (g *Gateway) take(ctx context.Context, f *vault.Facts, run effect, out vault.Stream) (vault.Result, error) {
	began := time.Now()
	if g.Tracer != nil {
		ctx = g.Tracer.Start(ctx, f.Call)
	}
	res, err := g.verified(ctx, f, run, out)
	if g.Tracer != nil {
		g.Tracer.End(ctx, f, err)
	}
	if g.Meter != nil {
		g.Meter.Call(f, err, time.Since(began))
	}
	return res, err
}

func (g *Gateway) verified(ctx context.Context, f *vault.Facts, run effect, out vault.Stream) (vault.Result, error) {
	g.stage(ctx, StageVerify)
	err := guard("verify", func() (err error) {
		*f.Grant, err = g.Verifier.Verify(ctx, f.Call)
		return err
	})
	if err != nil {
		return vault.Result{}, g.refuse(ctx, f, vault.DenialOf(err))
	}
	adopt(f.Call, f.Grant)
	return g.once(ctx, f, run, out)
}

// stage tells who follows the call of ctx where it is.
func (g *Gateway) stage(ctx context.Context, s Stage) {
	if g.Tracer != nil {
		g.Tracer.Stage(ctx, s)
	}
}

// adopt fills in what the grant says about the caller. What the edge believed
// must agree: a mismatch leaves the grant's word.
func adopt(call *vault.Call, grant *vault.Grant) {
	call.Task, call.Tenant, call.Agent, call.Principal = grant.Task, grant.Tenant, grant.Agent, grant.Principal
}

// An effect is what a call does once it is admitted.
type effect func(ctx context.Context, s *stream) (vault.Result, error)

// once makes sure that a call id has one effect, however often it arrives.
func (g *Gateway) once(ctx context.Context, f *vault.Facts, run effect, out vault.Stream) (vault.Result, error) {
	e, mine, err := g.Tasks.begin(f.Call, f.Grant.Leaf, f.Outside)
	if err != nil {
		return vault.Result{}, g.refuse(ctx, f, vault.DenialOf(err))
	}
	if !mine {
		return e.wait(ctx)
	}
	f.Calls, f.Denies = g.Tasks.history(f.Call.Task)
	res, err := g.handle(ctx, f, e, run, out)
	g.Tasks.end(e, res, err)
	return res, err
}

// handle is the life of one call after it has been verified.
func (g *Gateway) handle(ctx context.Context, f *vault.Facts, e *entry, run effect, out vault.Stream) (vault.Result, error) {
	d, approvals, err := g.decide(ctx, f)
	if err != nil {
		return vault.Result{}, g.refuse(ctx, f, vault.DenialOf(err))
	}
	g.stage(ctx, StageAdmit)
	admitted, err := g.admit(ctx, f, e, d, approvals)
	if err != nil {
		return vault.Result{}, g.refuse(ctx, f, vault.DenialOf(err))
	}
	intent := admitted.receipt
	f.Lowered = lowered(d.decision.Obligations)
	// From here on the effect may happen, so every way out leaves an outcome.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	revoked := g.Verifier.Revoked(f.Grant)
	defer cancelOnRevoke(revoked, cancel)()
	limit, timed := timeLeft(admitted.debits)
	if timed {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeoutCause(ctx, limit, errTimeSpent)
		defer stop()
	}
	s := &stream{g: g, f: f, out: out, obligations: d.decision.Obligations, intent: intent, revoked: revoked}
	var res vault.Result
	began := time.Now()
	g.stage(ctx, StageRun)
	err = guard("run", func() (err error) {
		res, err = run(ctx, s)
		return err
	})
	s.close()
	admitted.ran = time.Since(began)
	if err != nil {
		return vault.Result{}, g.fail(ctx, f, e, admitted, err)
	}
	return g.release(ctx, f, e, s, admitted, res)
}

// A decided call has passed every stage that can refuse it.
type decided struct {
	decision vault.Decision
	policy   vault.Digest // revision that decided
}

// decide asks the stages in order: catalogue, flow, policy, content, and if any
// of them wants it, people. It returns only decisions that let the call through.
func (g *Gateway) decide(ctx context.Context, f *vault.Facts) (decided, []vault.Approval, error) {
	d, err := g.judge(ctx, f)
	if err != nil {
		return decided{}, nil, err
	}
	if args, ok, err := transformed(d.decision); err != nil {
		return decided{}, nil, err
	} else if ok {
		if d, err = g.again(ctx, f, args, d); err != nil {
			return decided{}, nil, err
		}
	}
	if d.decision.Verdict == vault.Deny {
		return decided{}, nil, denial(d.decision)
	}
	if d.decision.Verdict == vault.Allow {
		return d, nil, nil
	}
	g.stage(ctx, StageApprove)
	approval, err := g.approve(ctx, f, d)
	if err != nil {
		return decided{}, nil, err
	}
	return d, []vault.Approval{approval}, nil
}

// judge joins what the stages say about f. A stage that panics denies.
func (g *Gateway) judge(ctx context.Context, f *vault.Facts) (d decided, err error) {
	err = guard("judge", func() error {
		g.stage(ctx, StageResolve)
		if *f.Tool, err = g.Catalogue.Resolve(ctx, f.Call, f.Grant); err != nil {
			return err
		}
		if err := signed(f); err != nil {
			return err
		}
		if err := cleared(f, f.Tool.Holds); err != nil {
			return err
		}
		if err := g.grade(ctx, f); err != nil {
			return err
		}
		d.policy = g.Policy.Revision()
		v := vault.Allowed()
		for _, group := range f.Grant.Ask {
			v = v.Join(vault.Asked(group, vault.CodeApprovalRequired, "", "the task file demands it"))
		}
		v = v.Join(g.Autonomy.asks(f))
		g.stage(ctx, StageCheck)
		if v = v.Join(g.Flow.Check(ctx, f)); v.Verdict == vault.Deny {
			return denial(v)
		}
		g.stage(ctx, StageDecide)
		if v = v.Join(g.Policy.Decide(ctx, f)); v.Verdict == vault.Deny {
			return denial(v)
		}
		g.stage(ctx, StageScan)
		if v = v.Join(g.Scanner.ScanArgs(ctx, f)); v.Verdict == vault.Deny {
			return denial(v)
		}
		d.decision = v
		return nil
	})
	if err != nil {
		return decided{}, err
	}
	return d, knownObligations(d.decision, f.Outside)
}

// signed holds the proof of a call against the risk of its target, which only the
// catalogue knows: a capability can demand that risky calls carry a signature,
// which shows others who made the call.
func signed(f *vault.Facts) error {
	g := f.Grant
	if g.MustSign && f.Tool.Risk.AtLeast(g.SignAt) && g.Proof != vault.ProofSignature {
		return vault.NewDenial(vault.CodeProof, "", errors.New("the capability demands a signature for a call of this risk"))
	}
	return nil
}

// cleared holds who may read data against the clearance of the grant. Data of named
// compartments needs one of them; what is private without a name is the principal's,
// for whom every task works.
func cleared(f *vault.Facts, readers vault.Readers) error {
	if readers.ClearedFor(f.Grant.MayRead) {
		return nil
	}
	return vault.NewDenial(vault.CodeFlowClearance, "", nil)
}

// grade finds out what isolation the target has and holds it against the grant.
func (g *Gateway) grade(ctx context.Context, f *vault.Facts) error {
	if f.Outside {
		return nil
	}
	grade, remote, err := g.Runner.Grade(ctx, f)
	if err != nil {
		return err
	}
	f.Grade = grade
	if !remote && grade < f.Grant.MinGrade {
		return vault.NewDenial(vault.CodeSandboxGrade, "", nil)
	}
	return nil
}

// again judges a call whose arguments a stage has replaced, from Verify on. A
// second replacement denies: two stages that keep correcting each other would
// never end.
func (g *Gateway) again(ctx context.Context, f *vault.Facts, args vault.Args, first decided) (decided, error) {
	call := *f.Call
	call.Args = args
	f.Call = &call
	grant, err := g.Verifier.Reverify(ctx, f.Call, f.Grant)
	if err != nil {
		return decided{}, err
	}
	f.Grant = &grant
	d, err := g.judge(ctx, f)
	if err != nil {
		return decided{}, err
	}
	if _, ok, _ := transformed(d.decision); ok {
		return decided{}, vault.NewDenial(vault.CodePolicyError, "", errors.New("a second transform"))
	}
	first.decision.Obligations = withoutTransforms(first.decision.Obligations)
	d.decision = d.decision.Join(first.decision)
	return d, nil
}

// approve puts the call to people. The question is on record before it is shown.
func (g *Gateway) approve(ctx context.Context, f *vault.Facts, d decided) (vault.Approval, error) {
	q, err := g.Approver.Question(ctx, f, d.decision, d.policy)
	if err != nil {
		return vault.Approval{}, err
	}
	if !q.Shown {
		if err := g.recordAsked(ctx, f, d, q); err != nil {
			return vault.Approval{}, err
		}
		if err := g.Approver.Show(ctx, q); err != nil {
			return vault.Approval{}, err
		}
	}
	wait := g.ApprovalWait
	if wait == 0 {
		wait = 25 * time.Second
	}
	a, err := g.Approver.Answer(ctx, q, wait)
	if err != nil {
		return vault.Approval{}, err
	}
	return a, nil
}

// fail records that an admitted call did not come to a result and returns what
// the agent may know of it.
func (g *Gateway) fail(ctx context.Context, f *vault.Facts, e *entry, a admission, err error) error {
	d := vault.DenialOf(err)
	if d.Reason.Code == vault.CodeInternal {
		// A runner that cannot say what went wrong cannot say that nothing happened.
		d.Executed = vault.ExecutedUnknown
	}
	phase := vault.PhaseFailed
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errTimeSpent):
		d = &vault.Denial{Verdict: "error", Reason: vault.Reason{Code: vault.CodeCapabilityBudget}, Executed: d.Executed, Retry: vault.RetryNever, HowToAsk: vault.CodeCapabilityBudget.HowToAsk(), Err: err}
	case errors.Is(cause, errRevoked):
		phase = vault.PhaseCancelled
		d = revokedDenial(d)
	case ctx.Err() != nil:
		phase = vault.PhaseCancelled
		d = &vault.Denial{Verdict: "error", Reason: vault.Reason{Code: vault.CodeCancelled}, Executed: d.Executed, Retry: vault.RetryNever, HowToAsk: vault.CodeCancelled.HowToAsk(), Err: err}
	}
	if d.Verdict == "deny" {
		d.Verdict = "error"
	}
	refund := d.Executed == vault.ExecutedNo
	if d.Executed == vault.ExecutedUnknown || d.Reason.Path != "" {
		// The effect may have happened, or the denial points into what the server
		// sent: what the server can carry taints.
		g.Flow.Taint(f.Call.Agent, f.Tool.Label(f.Call.Kind))
	}
	o := outcome{phase: phase, reason: d.Reason, intent: a.receipt, refund: refund}
	if !refund {
		o.settled = g.Tasks.settle(a.debits, a.ran)
	}
	receipt, recErr := g.outcome(ctx, f, o)
	if recErr != nil {
		g.Log.ErrorContext(ctx, "outcome not recorded", "call", f.Call.ID, "err", recErr)
		d.Executed = vault.ExecutedUnknown
		g.Tasks.closes(e, vault.PhaseUnknown)
		return d
	}
	if refund {
		g.Tasks.refund(a.debits)
	}
	g.Tasks.closes(e, phase)
	d.Event = &receipt.Index
	d.DecisionID = f.Call.ID
	g.Log.InfoContext(ctx, "call failed", "call", f.Call.ID, "reason", string(d.Reason.Code), "executed", string(d.Executed), "err", d.Err)
	return d
}

// release checks, scans and labels a result, records the outcome, and hands the
// result out. The outcome has its place in the ledger before the last byte leaves.
func (g *Gateway) release(ctx context.Context, f *vault.Facts, e *entry, s *stream, a admission, res vault.Result) (vault.Result, error) {
	o := outcome{phase: vault.PhaseDone, intent: s.intent}
	executed := vault.ExecutedYes
	if f.Outside {
		executed = vault.ExecutedNo // unless the permit is handed out
		o.reason = vault.Reason{Code: vault.CodePermitted, Detail: "another gateway has the effect, and what became of it is not known here"}
	} else {
		o.settled = g.Tasks.settle(a.debits, a.ran)
	}
	if res.IsError {
		o.phase, o.reason = vault.PhaseFailed, vault.Reason{Code: vault.CodeToolError}
	}
	var denied *vault.Denial
	g.stage(ctx, StageRelease)
	err := guard("release", func() error {
		if f.Outside {
			return nil // the result is our own word
		}
		if !res.IsError && !res.Partial {
			if err := g.Catalogue.CheckResult(ctx, f.Call, f.Tool, res.Raw); err != nil {
				return err
			}
		}
		if d := g.Policy.DecideResult(ctx, f, res.Raw, res.IsError); d.Verdict != vault.Allow {
			return withheld(d.Reason())
		}
		raw, d := s.scan(ctx, res.Raw)
		if d.Verdict != vault.Allow {
			return withheld(d.Reason())
		}
		res.Raw, o.notes = raw, d.Reasons
		return nil
	})
	if err != nil {
		denied = vault.DenialOf(err)
		denied.Verdict, denied.Executed, denied.Retry = "withheld", executed, vault.RetryNever
		o.reason = denied.Reason
	}
	if s.dead() {
		// Results of revoked calls are recorded, not delivered.
		denied = revokedDenial(&vault.Denial{Executed: executed})
		o.reason = denied.Reason
	}
	switch {
	case denied == nil:
		res.Label = g.Flow.Label(ctx, f, res.Raw)
		if err := cleared(f, res.Label.Readers); err != nil { // others' data was written there
			denied = withheld(vault.Reason{Code: vault.CodeFlowClearance})
			denied.Verdict, denied.Executed, denied.Retry = "withheld", executed, vault.RetryNever
			o.reason = denied.Reason
			break
		}
		o.result = res.Raw // what is withheld may hold a secret, so it is not kept either
	case denied.Reason.Path != "":
		// A path into a result has names in it that the server chose.
		g.Flow.Taint(f.Call.Agent, f.Tool.Label(f.Call.Kind))
	}
	receipt, err := g.outcome(ctx, f, o)
	if err != nil {
		g.Tasks.closes(e, vault.PhaseUnknown)
		d := vault.NewDenial(vault.CodeLedger, "", fmt.Errorf("record outcome: %w", err))
		d.Verdict, d.Executed = "error", executed
		return vault.Result{}, d
	}
	g.Tasks.closes(e, o.phase)
	if denied != nil {
		denied.Event = &receipt.Index
		denied.DecisionID = f.Call.ID
		return vault.Result{}, denied
	}
	res.Event = receipt.Index
	return res, nil
}

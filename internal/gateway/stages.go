package gateway

import (
	"context"
	"time"

	"github.com/pilox/vault"
)

// A Verifier checks capability chains.
type Verifier interface {
	// Verify checks the chain, the proof of possession and the constraints of
	// call and returns what the chain allows for it. It only peeks: budgets do
	// not move. A sequence number is used up once its MAC has verified. Every
	// error is a *vault.Denial. call.Task, Tenant, Agent and Principal may be
	// empty before; the grant says them. When the chain is authentic and
	// possession was proven and the call is refused all the same (constraint,
	// expiry, revocation), the grant returned beside the error names task, agent,
	// principal, links and proof, so that the refusal is recorded in its run; else it is zero.
	Verify(ctx context.Context, call *vault.Call) (vault.Grant, error)
	// Reverify checks the constraints again for a call whose arguments a stage
	// transformed. The proof in g stands.
	Reverify(ctx context.Context, call *vault.Call, g *vault.Grant) (vault.Grant, error)
	// Recheck reports a *vault.Denial if g has expired or been revoked since.
	Recheck(ctx context.Context, g *vault.Grant) error
	// Revoked returns a channel that is closed when g is revoked, for calls in
	// flight.
	Revoked(g *vault.Grant) <-chan struct{}
}

// A Catalogue knows the registered servers and their pinned definitions.
type Catalogue interface {
	// Resolve returns what is known of the target, or a *vault.Denial: unknown,
	// quarantined, or arguments that do not match the schema.
	Resolve(ctx context.Context, call *vault.Call, g *vault.Grant) (vault.Tool, error)
	// Recheck reports a *vault.Denial unless t is still what is registered and
	// pinned. It is cheap: Admit calls it for every call.
	Recheck(ctx context.Context, t *vault.Tool) error
	// CheckResult holds a result against the tool's output schema, if it has
	// one. The error is a *vault.Denial with code result.schema.
	CheckResult(ctx context.Context, call *vault.Call, t *vault.Tool, raw []byte) error
}

// A Flow tracks what data an agent instance has seen and where values come from.
type Flow interface {
	// Check fills in f.Scope and f.Origins and decides.
	Check(ctx context.Context, f *vault.Facts) vault.Decision
	// Label returns the label of a result of this call and joins it to the agent
	// instance's scope before it returns. raw is what will be released; it is
	// remembered as a source of values.
	Label(ctx context.Context, f *vault.Facts, raw []byte) vault.Label
	// Reach says whom a call reaches, for budgets that count different recipients and
	// hosts. It errs on the side of more.
	Reach(f *vault.Facts) (recipients, hosts []string)
	// Taint joins the most a target can carry to the scope of an agent, for
	// intents whose outcome is not known.
	Taint(agent vault.AgentID, l vault.Label)
}

// A Policy is the operator's hooks.
type Policy interface {
	// Decide evaluates the hooks that match. No hook for the call allows; an
	// undefined or failed hook denies with a code of its own.
	Decide(ctx context.Context, f *vault.Facts) vault.Decision
	// DecideResult evaluates the hooks that look at what a call brought back. Anything
	// but allow withholds it.
	DecideResult(ctx context.Context, f *vault.Facts, raw []byte, isError bool) vault.Decision
	// Revision identifies everything that Decide depends on.
	Revision() vault.Digest
}

// A Scanner looks at content.
type Scanner interface {
	// ScanArgs decides about the arguments of a call.
	ScanArgs(ctx context.Context, f *vault.Facts) vault.Decision
	// ScanResult decides about a result or frame: Allow releases it after the
	// redactions in the obligations, anything else withholds it.
	ScanResult(ctx context.Context, f *vault.Facts, raw []byte) ([]byte, vault.Decision)
}

// An Approver puts questions to people.
type Approver interface {
	// Question renders and signs the question for exactly these facts and this
	// decision. The same facts give the same open question, or the one that was
	// answered and not yet spent; Shown says that it is not new. A *vault.Denial with
	// approval.nobody means that nobody could answer.
	Question(ctx context.Context, f *vault.Facts, d vault.Decision, policy vault.Digest) (vault.Question, error)
	// Show makes the question visible to approvers. The caller has recorded it.
	Show(ctx context.Context, q vault.Question) error
	// Answer waits for the answer up to wait. A *vault.Denial says pending
	// (approval.required), denied or timed out. The question outlives ctx.
	Answer(ctx context.Context, q vault.Question, wait time.Duration) (vault.Approval, error)
	// Recheck reports a *vault.Denial unless a is valid now for exactly these
	// facts, this decision and this policy revision, and unspent.
	Recheck(ctx context.Context, a vault.Approval, f *vault.Facts, d vault.Decision, policy vault.Digest) error
	// Spend burns a. It is called once, after the intent that spends it is durable.
	Spend(ctx context.Context, a vault.Approval)
}

// A Runner has the effect.
type Runner interface {
	// Grade says what isolation the target runs under, or a *vault.Denial if it
	// cannot run at all. Remote targets have GradeNone and remote true.
	Grade(ctx context.Context, f *vault.Facts) (g vault.Grade, remote bool, err error)
	// Run has the effect once. It never sends again after the first byte went
	// out. A failure before anything was sent is a *vault.Denial with
	// Executed no; other failures say yes or unknown. Frames go to out.
	Run(ctx context.Context, f *vault.Facts, out vault.Stream) (vault.Result, error)
}

// A Recorder appends to the ledger. Both methods keep going when ctx is
// cancelled; the order of calls is the order of events.
type Recorder interface {
	// Commit returns once e is durable. An error means that nothing may run; e
	// may or may not be in the ledger.
	Commit(ctx context.Context, e *vault.Event) (vault.Receipt, error)
	// Sequence returns once e has its place; it is durable with the next commit,
	// at most 20 ms later. An error means that it has no place.
	Sequence(ctx context.Context, e *vault.Event) (vault.Receipt, error)
}

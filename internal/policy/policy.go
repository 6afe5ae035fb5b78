// Package policy asks the operator's rules about a call, and about the other
// moments at which authority is given or used.
//
// It owns the hooks: which rules are wired to which calls, the document they
// see, the answer they may give and how the answers of several hooks are united.
// It does not own what a capability allows, the order of the stages or what
// happens with an obligation. It is the only importer of OPA and CEL. Start with
// [New] and [Policy.Decide]; [Policy.At] is for the hook points beside the call.
//
// A hook is a Rego rule of a bundle, a CEL expression, or an outside decision point
// that speaks AuthZEN. It promises: a hook that cannot be evaluated denies, and
// "denied", "undefined" and "error" are three different reasons. Rego and CEL are
// pure: they see the input document version 1 (input.v1.schema.json) and their own
// data, no network, no clock, no randomness, no environment. A decision is read by the letter of
// decision.v1.schema.json; what this package cannot enforce is refused, never
// ignored. A configured bundle that does not load stops the start, and a reload
// that fails keeps the last good one.
package policy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/pilox/vault"
)

// A Config says what rules there are and which calls they decide about. The zero
// Config has no rules: every call is left to its capability.
type Config struct {
	// Bundles have the rules. None is fine only without Hooks.
	Bundles []Bundle
	// Hooks wire rules to calls. Bundles without a hook are refused, unless they have
	// rules about the decision log: rules that are never asked are an oversight.
	Hooks []Hook
	// Gateway is what the rules see as input.env.gateway; empty is null.
	Gateway string
	// Now is the clock for Status; nil means time.Now. Rules never see it.
	Now func() time.Time
	// Log gets failed evaluations and shadow mismatches; nil discards.
	Log *slog.Logger
}

// A Bundle is *.rego files (version 1 of the language) and data.json files, in a
// directory or in an archive as opa build writes it.
type Bundle struct {
	Name string // for messages; empty means Dir or File
	Dir  string // one of Dir and File must be set
	File string // a tar file in gzip, of at most 16 MiB, packed and unpacked
	// Unsigned accepts the bundle as it stands. It has to be said: without it the
	// bundle needs a signature.
	Unsigned bool
	// Key must have signed the bundle: its .signatures.json lists every file that
	// counts. Nil is fine only with Unsigned.
	Key *Key

	ignoreSignature bool // a signature that stands there is not asked for
}

// OnTrial returns b without its signature, for rules that are tried and decide
// nothing.
func (b Bundle) OnTrial() Bundle {
	b.Unsigned, b.Key, b.ignoreSignature = true, nil, true
	return b
}

// A Mode says what a hook's answer counts for.
type Mode string

// The modes. The zero Mode enforces.
const (
	Enforce Mode = "enforce"
	Shadow  Mode = "shadow" // evaluate, log and count what would have changed
	Off     Mode = "off"    // compile at load and never evaluate
)

// The places where a hook can stand. Each has its event in the input.
const (
	AtToolCall        = "tool.call"        // before a call of any kind runs; no event
	AtToolResult      = "tool.result"      // before its result is released; event {is_error, size, result}
	AtAgentAdmit      = "agent.admit"      // an agent opens a session; event {edge, proof, links}
	AtTokenMint       = "token.mint"       // a capability is minted; event {approver, holder, life_s, depth, grants, budgets}
	AtTokenDelegate   = "token.delegate"   // the gateway attenuates one; event {holder, agent, why}
	AtApprovalResolve = "approval.resolve" // a person answers; event {approval_id, approver, effect}
	AtEgressConnect   = "egress.connect"   // a connection is opened; event {host, address, port}
	AtSessionEnd      = "session.end"      // a task is over; event {why}. The answer is recorded and changes nothing
)

var points = []string{AtToolCall, AtToolResult, AtAgentAdmit, AtTokenMint, AtTokenDelegate, AtApprovalResolve, AtEgressConnect, AtSessionEnd}

// An Engine says what evaluates a hook. The zero Engine is Rego.
type Engine string

// The engines.
const (
	Rego Engine = "rego"
	CEL  Engine = "cel"
	HTTP Engine = "http" // an AuthZEN decision point
)

// A Hook is one question to the rules. Its engine says which of Query, Expr and URL
// it has.
type Hook struct {
	At     string // one of the places above
	Match  Match  // zero matches every call
	Engine Engine // zero is Rego
	Query  string // Rego: a rule by its whole name: data.vault.toolcall.decision
	Expr   string // CEL: an expression over input, true or false or a decision
	URL    string // HTTP: the evaluation endpoint, https or loopback
	Mode   Mode   // zero enforces
	// OnError must be empty or "deny". It exists so that a configuration that
	// hopes for anything else is refused.
	OnError string
	// Deadline bounds one evaluation by the clock; zero means 250 ms. It is a
	// backstop: a tight wall clock denies good calls on a busy machine.
	Deadline time.Duration
	// Steps bounds one evaluation by work: expressions evaluated. Zero means
	// 200,000, some thousand times what an ordinary policy needs.
	Steps int
}

const (
	defaultDeadline = 250 * time.Millisecond
	defaultSteps    = 200_000
)

// A Policy is a set of compiled hooks. It is safe for concurrent use.
type Policy struct {
	cfg    Config
	reload sync.Mutex // one load at a time
	state  atomic.Pointer[state]

	client    *http.Client // of HTTP hooks
	evaluated atomic.Uint64
	shadowed  atomic.Uint64
	mismatch  atomic.Uint64
	status    atomic.Pointer[lastLoad]
}

type lastLoad struct {
	good time.Time // when the rules in use were loaded
	err  error     // of the last load, nil if it is the one in use
}

// New compiles the rules. The error of a bundle names file and line and says
// what to do; nothing starts with rules that do not load.
func New(ctx context.Context, cfg Config) (*Policy, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	p := &Policy{cfg: cfg, client: newClient()}
	s, err := load(ctx, &p.cfg, p.client)
	if err != nil {
		return nil, fmt.Errorf("load policy: %w", err)
	}
	p.state.Store(s)
	p.status.Store(&lastLoad{good: cfg.Now()})
	return p, nil
}

// Reload compiles the bundles again and puts them in use at once. On an
// error the rules that were in use stay in use, and Status says so.
func (p *Policy) Reload(ctx context.Context) error {
	p.reload.Lock()
	defer p.reload.Unlock()
	s, err := load(ctx, &p.cfg, p.client)
	if err != nil {
		err = fmt.Errorf("reload policy, the last good one stays in use: %w", err)
		p.status.Store(&lastLoad{good: p.status.Load().good, err: err})
		return err
	}
	p.state.Store(s)
	p.status.Store(&lastLoad{good: p.cfg.Now()})
	return nil
}

// A Status says which rules are in use and how they fare.
type Status struct {
	Revision   vault.Digest
	Age        time.Duration // since the rules in use were loaded
	Err        error         // of the last reload; nil if it succeeded
	Evaluated  uint64        // evaluations of enforcing hooks
	Shadowed   uint64        // evaluations of shadow hooks
	Mismatches uint64        // shadow answers that would have changed the verdict
}

// Status returns the state of the rules.
func (p *Policy) Status() Status {
	last := p.status.Load()
	return Status{
		Revision:   p.Revision(),
		Age:        p.cfg.Now().Sub(last.good),
		Err:        last.err,
		Evaluated:  p.evaluated.Load(),
		Shadowed:   p.shadowed.Load(),
		Mismatches: p.mismatch.Load(),
	}
}

// Revision identifies everything that Decide depends on: every file of every
// bundle and the wiring of the hooks. It is zero without either. A caller that
// binds a decision to a revision reads it before it asks for the decision.
func (p *Policy) Revision() vault.Digest { return p.state.Load().revision }

// Decide evaluates the hooks at tool.call that match and returns the strictest of
// their answers with the obligations of all. No hook for the call allows.
func (p *Policy) Decide(ctx context.Context, f *vault.Facts) vault.Decision {
	return p.At(ctx, AtToolCall, f, nil)
}

// Hooked reports whether any hook stands at the place, for callers to whom building
// the event is work.
func (p *Policy) Hooked(at string) bool {
	return slices.ContainsFunc(p.state.Load().hooks, func(h hook) bool { return h.at == at && h.mode != Off })
}

// At evaluates the hooks at a place. event is what happens there, as JSON can say
// it; nil is null. What the facts do not know is empty. An obligation is for
// tool.call only: elsewhere it is an error, because nobody would meet it.
func (p *Policy) At(ctx context.Context, at string, f *vault.Facts, event any) vault.Decision {
	s := p.state.Load()
	d := vault.Allowed()
	in := input{f: f, gateway: p.cfg.Gateway, at: at, event: event}
	shadow := false
	for i := range s.hooks {
		h := &s.hooks[i]
		switch {
		case h.at != at:
			continue
		case h.mode == Off || !h.match.matches(f):
			continue
		case h.mode == Shadow:
			shadow = true
			continue
		}
		p.evaluated.Add(1)
		d = unite(d, p.ask(ctx, h, &in))
	}
	if shadow {
		p.compare(ctx, s, &in, d)
	}
	if at != AtToolCall && d.Verdict != vault.Deny && (len(d.Obligations) > 0 || d.Verdict == vault.Ask) {
		return vault.Denied(vault.CodePolicyError, "", "a hook at "+at+" can allow or deny; only tool.call asks and obliges")
	}
	return d
}

// compare evaluates the shadow hooks and counts where they would have changed d.
func (p *Policy) compare(ctx context.Context, s *state, in *input, d vault.Decision) {
	for i := range s.hooks {
		h := &s.hooks[i]
		if h.at != in.at || h.mode != Shadow || !h.match.matches(in.f) {
			continue
		}
		p.shadowed.Add(1)
		would := p.ask(ctx, h, in)
		if would.Verdict >= d.Verdict {
			continue
		}
		p.mismatch.Add(1)
		p.cfg.Log.InfoContext(ctx, "shadow policy would be stricter", "hook", h.name,
			"call", in.f.Call.ID, "verdict", d.Verdict.String(), "would", would.Verdict.String(), "code", string(would.Reason().Code))
	}
}

// ask evaluates one hook. Whatever goes wrong denies.
func (p *Policy) ask(ctx context.Context, h *hook, in *input) vault.Decision {
	v, err := h.engine.eval(ctx, in)
	if err == nil && v == nil {
		return vault.Denied(vault.CodePolicyUndefined, "", h.name+" is undefined for this call")
	}
	var d vault.Decision
	if err == nil {
		d, err = parseDecision(v)
	}
	if err != nil {
		p.cfg.Log.WarnContext(ctx, "policy hook denies because it failed", "hook", h.name, "call", in.f.Call.ID, "err", err)
		return vault.Denied(vault.CodePolicyError, "", h.name+": "+err.Error())
	}
	return d
}

// unite joins the answers of two hooks. Two different transforms contradict each
// other, and nobody can say which one the operator meant.
func unite(a, b vault.Decision) vault.Decision {
	d := a.Join(b)
	if d.Verdict == vault.Deny {
		d.Groups, d.Obligations = nil, nil
		return d
	}
	var transform vault.Digest
	kept := d.Obligations[:0:0]
	for _, o := range d.Obligations {
		if o.Type == vault.ObligeTransform {
			switch transform {
			case vault.Digest{}:
				transform = o.Args.Digest()
			case o.Args.Digest():
				continue
			default:
				return vault.Denied(vault.CodePolicyError, "", "two hooks transform the arguments differently")
			}
		}
		kept = append(kept, o)
	}
	d.Obligations = kept
	return d
}

// A budget stops an evaluation. OPA asks Cancelled before every expression and
// inside its long built-ins, on the goroutine that evaluates; so counting the
// questions counts the work, and no clock is needed for it.
type budget struct {
	left    int
	stopped atomic.Bool // by the deadline or by the caller
}

var _ topdown.Cancel = (*budget)(nil)

func (b *budget) Cancel() { b.stopped.Store(true) }

func (b *budget) Cancelled() bool {
	b.left--
	return b.left < 0 || b.stopped.Load()
}

var (
	errSteps    = errors.New("evaluation took more steps than its budget: simplify the rule or raise budget.eval_steps")
	errDeadline = errors.New("evaluation took longer than its deadline: simplify the rule or raise budget.deadline")
)

// explain says why an evaluation under b was cut short.
func (b *budget) explain(ctx context.Context, err error) error {
	switch {
	case !topdown.IsCancel(err):
		return fmt.Errorf("evaluate: %w", err)
	case b.left < 0:
		return errSteps
	case ctx.Err() != nil:
		return fmt.Errorf("evaluate: %w", ctx.Err())
	}
	return errDeadline
}

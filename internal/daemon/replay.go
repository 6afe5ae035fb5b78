package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/policy"
)

// A Replay says what other rules would have decided about recorded calls.
type Replay struct {
	Revision string         `json:"revision"` // of the rules that were tried
	Calls    int            `json:"calls"`    // recorded calls that rules had decided about
	Skipped  int            `json:"skipped"`  // of them without a context, erased or refused before the rules were asked
	Changed  []ReplayChange `json:"changed"`
}

// A ReplayChange is a call about which the other rules say something else.
type ReplayChange struct {
	Event  uint64    `json:"event"`
	Time   time.Time `json:"time"`
	Call   string    `json:"call_id"`
	Agent  string    `json:"agent"`
	Target string    `json:"target"`
	Before string    `json:"before"` // allow, ask or deny, as the rules of then had it
	After  string    `json:"after"`
	Reason string    `json:"reason,omitempty"` // code of the new answer
	Rule   string    `json:"rule,omitempty"`
}

// maxReplayed bounds the calls that a replay remembers, to tell a call that asked
// from the same one that then ran.
const maxReplayed = 1 << 20

// A Replayer holds recorded events against other rules.
type Replayer struct {
	policy *policy.Policy
	out    Replay
	runs   map[string]run
	seen   map[string]bool
}

// A run is what the opening of a task says of its calls.
type run struct{ principal, purpose string }

// NewReplayer compiles the rules to try: the hooks of the configuration with the
// bundle at a path, signed or not.
func NewReplayer(ctx context.Context, hooks []Hook, bundle string) (*Replayer, error) {
	c, err := trialConfig(&Policy{Hooks: hooks}, bundle)
	if err != nil {
		return nil, err
	}
	for _, h := range c.Hooks {
		if h.Engine == policy.HTTP {
			return nil, errors.New("a replay asks no outside decision point: leave out its hook")
		}
	}
	p, err := policy.New(ctx, c)
	if err != nil {
		return nil, err
	}
	return &Replayer{policy: p, out: Replay{Revision: p.Revision().String()}, runs: map[string]run{}, seen: map[string]bool{}}, nil
}

// An event is what a replay reads of one, as the admin API writes it.
type replayed struct {
	Leaf struct {
		Index   uint64         `json:"idx"`
		Time    time.Time      `json:"ts"`
		Run     string         `json:"run"`
		Call    string         `json:"call_id"`
		Class   vault.Class    `json:"class"`
		Phase   vault.Phase    `json:"phase"`
		Reason  vault.Code     `json:"reason"`
		Policy  vault.Digest   `json:"policy"`
		Kind    vault.Kind     `json:"kind"`
		Server  vault.ServerID `json:"server"`
		Tool    string         `json:"tool"`
		Proof   string         `json:"proof"`
		Grade   vault.Grade    `json:"grade"`
		AnyArgs bool           `json:"any_args"`
		SameUID bool           `json:"same_uid"`
		Debits  []vault.Debit  `json:"debits"`
	} `json:"leaf"`
	Fields map[string]string `json:"fields"`
}

// Add tries the rules on one event with its fields disclosed, oldest first.
func (r *Replayer) Add(ctx context.Context, raw json.RawMessage) error {
	var e replayed
	if err := json.Unmarshal(raw, &e); err != nil {
		return fmt.Errorf("decode event: %w", err)
	}
	l := &e.Leaf
	switch {
	case l.Class == vault.ClassTask && l.Phase == vault.PhaseOpened:
		r.runs[l.Run] = run{e.Fields["principal"], e.Fields["purpose"]}
		return nil
	case l.Class == vault.ClassTask && l.Phase == vault.PhaseClosed:
		delete(r.runs, l.Run)
		return nil
	case l.Class != vault.ClassCall, l.Phase != vault.PhaseIntent && l.Phase != vault.PhaseAsked && l.Phase != vault.PhaseRefused, l.Policy.IsZero():
		return nil
	}
	key := l.Run + "/" + l.Call
	if r.seen[key] {
		return nil // it was looked at when it asked
	}
	if len(r.seen) < maxReplayed {
		r.seen[key] = true
	}
	r.out.Calls++
	before, ok := effectThen(&e)
	f, err := e.facts(r.runs[l.Run], true)
	if !ok || err != nil {
		r.out.Skipped++
		return nil //nolint:nilerr // what was erased cannot be tried, and is counted
	}
	d := r.policy.Decide(ctx, f)
	if d.Verdict == before {
		return nil
	}
	target := l.Tool
	if f.Call.Server != "" {
		target = f.Call.Server + "." + f.Call.Target.Name
	}
	change := ReplayChange{
		Event: l.Index, Time: l.Time, Call: l.Call, Agent: e.Fields["caller"], Target: target,
		Before: before.String(), After: d.Verdict.String(),
	}
	if d.Verdict != vault.Allow {
		change.Reason, change.Rule = string(d.Reason().Code), d.Reason().Path
	}
	r.out.Changed = append(r.out.Changed, change)
	return nil
}

// effectThen returns what the rules of then said: what an ask or a refusal names as
// theirs, and allow otherwise. A refusal of an earlier stage says nothing of them.
func effectThen(e *replayed) (v vault.Verdict, ok bool) {
	var note []struct {
		Code vault.Code `json:"code"`
	}
	_ = json.Unmarshal([]byte(e.Fields["note"]), &note) // no note is no reason of theirs
	asked := false
	for _, n := range note {
		asked = asked || n.Code == vault.CodePolicyAsks
	}
	switch l := &e.Leaf; {
	case l.Phase == vault.PhaseIntent, l.Phase == vault.PhaseAsked:
		if asked {
			return vault.Ask, true
		}
		return vault.Allow, true
	case strings.HasPrefix(string(l.Reason), "policy_"):
		return vault.Deny, true
	case strings.HasPrefix(string(l.Reason), "scan."), l.Reason == vault.CodeApprovalNobody:
		return vault.Allow, true // the rules came before it and had nothing against it
	}
	return vault.Deny, false
}

// facts makes what the rules saw out of a record and the opening of its run, with or
// without the context that a record has where there were rules.
func (e *replayed) facts(known run, context bool) (*vault.Facts, error) {
	l := &e.Leaf
	args, err := vault.ParseArgs([]byte(e.Fields["args"]))
	if err != nil {
		return nil, fmt.Errorf("arguments: %w", err)
	}
	name := l.Tool
	if t := e.Fields["target"]; t != "" {
		name = t
	}
	f := &vault.Facts{
		Call: &vault.Call{ID: l.Call, Kind: l.Kind, Target: vault.Target{Server: l.Server, Name: name}, Args: args, At: l.Time},
		Grant: &vault.Grant{
			Task: vault.TaskID(l.Run), Agent: vault.AgentID(e.Fields["caller"]), Principal: known.principal, Purpose: known.purpose,
			Proof: vault.ProofKind(l.Proof), AnyArgs: l.AnyArgs, SameUID: l.SameUID, Debits: l.Debits,
		},
		Tool:  &vault.Tool{ID: l.Server, Name: name},
		Grade: l.Grade,
	}
	if !context {
		return f, nil
	}
	return f, vault.ParseContext([]byte(e.Fields["context"]), f)
}

// Report returns what was found.
func (r *Replayer) Report() Replay { return r.out }

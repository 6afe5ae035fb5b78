package approval

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pilox/vault"
)

// Submit takes in an answer made by [Sign]. A yes is recorded before it counts; a
// no counts at once and is recorded then, so that it works when the ledger does
// not. The error wraps [ErrUnknown], [ErrClosed], [ErrNotApprover] or
// [ErrInvalid], or says that the ledger failed.
func (d *Desk) Submit(ctx context.Context, raw []byte) (Pending, error) {
	p, err := d.submit(ctx, slices.Clone(raw))
	if err != nil {
		return Pending{}, fmt.Errorf("submit answer: %w", err)
	}
	return p, nil
}

func (d *Desk) submit(ctx context.Context, raw []byte) (Pending, error) {
	a, err := d.codec.parseAnswer(raw)
	if err != nil {
		return Pending{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	event, q, err := d.take(a, raw, Effect(a.decision.Effect) == Deny)
	if err != nil {
		return Pending{}, err
	}
	if Effect(a.decision.Effect) == Allow && d.resolve != nil {
		if err := d.resolve(ctx, q, a.Approver); err != nil {
			return Pending{}, err
		}
	}
	if _, err := d.record.Commit(context.WithoutCancel(ctx), event); err != nil {
		return Pending{}, fmt.Errorf("record: %w", err)
	}
	now := d.begin()
	defer d.mu.Unlock()
	e := d.m.byID[a.Question]
	if Effect(a.decision.Effect) == Allow {
		// Somebody may have denied it, or time passed, while the disk was busy.
		if e, err = d.m.accept(d.au, now, a, raw); err != nil {
			return Pending{}, err
		}
		d.awake(a.Question)
	}
	if e == nil {
		return Pending{}, ErrUnknown
	}
	d.log.InfoContext(ctx, "question answered", "approval", a.Question, "approver", a.Approver, "effect", a.decision.Effect)
	return d.pendingOf(e, now), nil
}

// take checks a and returns the event that records it and the question that it
// answers. With apply it takes effect.
func (d *Desk) take(a *answer, raw []byte, apply bool) (*vault.Event, *Question, error) {
	now := d.begin()
	defer d.mu.Unlock()
	do := d.m.check
	if apply {
		do = func(au *authority, now time.Time, a *answer) (*entry, error) { return d.m.accept(au, now, a, raw) }
	}
	e, err := do(d.au, now, a)
	if err != nil {
		return nil, nil, err
	}
	if apply {
		d.awake(a.Question)
	}
	event, err := d.event(e, a, raw)
	return event, e.q, err
}

// event records who answered what. The question goes with it: with the answer's
// signature it can be verified by itself.
func (d *Desk) event(e *entry, a *answer, raw []byte) (*vault.Event, error) {
	ap := d.au.keys[a.Approver]
	who, err := json.Marshal(struct {
		ID          string       `json:"id"`
		Key         vault.Digest `json:"key"`
		Unprotected bool         `json:"unprotected"`
	}{ap.ID, Thumbprint(ap.Public), ap.Unprotected})
	if err != nil {
		return nil, err
	}
	reason := vault.Code("")
	if Effect(a.decision.Effect) == Deny {
		reason = vault.CodeApprovalDenied
	}
	return &vault.Event{
		Run: vault.TaskID(e.q.Task), Call: e.q.Call, Class: vault.ClassApproval, Phase: vault.PhaseNoted,
		Verdict: Effect(a.decision.Effect).verdict(), Reason: reason, Policy: e.q.Policy,
		Kind: vault.Kind(e.q.Kind), Target: vault.Target{Server: vault.ServerID(e.q.ServerID), Name: e.q.Tool},
		Proof: vault.ProofSignature, AnyArgs: e.q.AnyArgs, SameUID: e.q.SameUID,
		Fields: []vault.Field{{Name: "answer", Value: raw}, {Name: "approver", Value: who}, {Name: "question", Value: e.signed}},
	}, nil
}

// A Pending is a question as approvers see it.
type Pending struct {
	ID       string
	Signed   []byte    // the signed question: verify, render and answer this
	Question *Question // decoded from Signed; shared, not to be changed
	State    string    // open, allowed, denied, expired or spent
	Allowed  []string  // ids that have said yes so far
}

// Pending returns the shown questions that are open or allowed and not spent, the
// one that expires first leading.
func (d *Desk) Pending() []Pending {
	now := d.begin()
	defer d.mu.Unlock()
	var out []Pending
	for _, e := range d.m.byID {
		if st, _ := e.state(d.au, now); e.shown && (st == open || st == allowed) {
			out = append(out, d.pendingOf(e, now))
		}
	}
	slices.SortFunc(out, func(a, b Pending) int {
		if c := a.Question.Expires().Compare(b.Question.Expires()); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return out
}

// Get returns a shown question in whatever state, or [ErrUnknown].
func (d *Desk) Get(id string) (Pending, error) {
	now := d.begin()
	defer d.mu.Unlock()
	e := d.m.byID[id]
	if e == nil || !e.shown {
		return Pending{}, ErrUnknown
	}
	return d.pendingOf(e, now), nil
}

func (d *Desk) pendingOf(e *entry, now time.Time) Pending {
	st, _ := e.state(d.au, now)
	p := Pending{ID: e.q.ID, Signed: slices.Clone(e.signed), Question: e.q, State: st.String()}
	for _, v := range e.yes {
		p.Allowed = append(p.Allowed, v.Approver)
	}
	return p
}

// Package approval puts questions to people and holds their answers to them.
//
// It owns the question (what is asked, in signed bytes), the answer (an approver
// key's signature over exactly those bytes), the rules between them, and the text
// that a person reads. It does not decide when to ask, does not write the ledger
// and has no surface of its own: the command and the console show what [Render]
// returns and hand in what [Sign] made. Start with [New], then [Desk.Question] for
// the gateway's side and [Desk.Submit] for the approver's.
//
// It promises: what is rendered, what is signed and what is compared at dispatch
// are the same bytes; an approval is good for one call with the same binding
// (agent, authority, definition, arguments, label, policy revision, rules that
// asked) before the question expires, once; a no beats every yes; the requester
// cannot answer; nothing is shown before it is recorded, and no yes counts before
// it is; a question nobody can answer, or nobody answers in time, denies.
//
// The rules are a state machine without clock and I/O, in machine.go; [Desk] is the
// thin loop around it.
//
// Version 1 of the formats: a question is deterministic CBOR with integer keys in
// COSE_Sign1, an answer deterministic CBOR. Neither has digest scopes, narrowing
// or quorums.
package approval

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/pilox/vault"
)

// A Recorder makes events durable.
type Recorder interface {
	// Commit returns once e is durable, also if ctx is cancelled meanwhile.
	Commit(ctx context.Context, e *vault.Event) (vault.Receipt, error)
}

// A Config is what a [Desk] needs. Signer and Recorder are required.
type Config struct {
	Signer   crypto.Signer // Ed25519 key for questions and nothing else
	Recorder Recorder      // an answer is recorded before it counts

	// Approvers are the people who may answer. Without any, every question is
	// refused with approval.nobody.
	Approvers []Approver
	// Groups names, for each approval group, the ids of its members. Groups that
	// are not here have no members, except flow, policy and default, which every
	// approver answers for.
	Groups map[string][]string

	// Life is how long a question stands. Zero means ten minutes. It never
	// outlives the capability of the call.
	Life time.Duration
	// MaxOpen bounds the open questions. Zero means 1,024: more than people
	// can answer within ten minutes.
	MaxOpen int
	// MaxOpenPerAgent bounds those of one agent. Zero means 32.
	MaxOpenPerAgent int

	// Resolve may object to a yes before it is recorded and counts. A no is never
	// held up. Nil objects to nothing.
	Resolve func(ctx context.Context, q *Question, approver string) error

	Now    func() time.Time // nil means time.Now
	Logger *slog.Logger     // nil means silence
}

const (
	defaultLife     = 10 * time.Minute
	maxLife         = 24 * time.Hour // an answer to yesterday's question is no answer
	defaultOpen     = 1024
	defaultPerAgent = 32
	maxHeld         = 64 << 20 // bytes of questions held in memory
	maxApprovers    = 1024     // more call for an identity provider
)

// A Desk holds the open questions of a daemon. It is safe for concurrent use and
// starts no goroutine.
type Desk struct {
	codec   codec
	signer  crypto.Signer
	public  ed25519.PublicKey
	record  Recorder
	resolve func(context.Context, *Question, string) error // may be nil
	life    time.Duration
	now     func() time.Time
	log     *slog.Logger
	changed chan struct{}

	mu   sync.Mutex // guards what follows, and never held during I/O
	au   *authority
	m    *machine
	wake map[string]chan struct{} // closed and removed when a question changes
}

// New returns a desk without questions.
func New(c Config) (*Desk, error) {
	if c.Signer == nil || c.Recorder == nil {
		return nil, errors.New("approval: signer and recorder are required")
	}
	public, ok := c.Signer.Public().(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("approval: a signer with a %T, want Ed25519", c.Signer.Public())
	}
	if c.Life < 0 || c.Life > maxLife || c.MaxOpen < 0 || c.MaxOpenPerAgent < 0 {
		return nil, fmt.Errorf("approval: life must be within %v and bounds not negative", maxLife)
	}
	au, err := newAuthority(c.Approvers, c.Groups)
	if err != nil {
		return nil, err
	}
	d := &Desk{
		codec: newCodec(), signer: c.Signer, public: public, record: c.Recorder,
		resolve: c.Resolve, life: or(c.Life, defaultLife), now: c.Now, log: c.Logger,
		changed: make(chan struct{}, 1),
		au:      au,
		m:       newMachine(limits{or(c.MaxOpen, defaultOpen), or(c.MaxOpenPerAgent, defaultPerAgent), maxHeld}),
		wake:    make(map[string]chan struct{}),
	}
	if d.now == nil {
		d.now = time.Now
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	return d, nil
}

func or[T comparable](v, zero T) T {
	var none T
	if v == none {
		return zero
	}
	return v
}

func newAuthority(approvers []Approver, groups map[string][]string) (*authority, error) {
	if len(approvers) > maxApprovers {
		return nil, fmt.Errorf("approval: %d approvers, at most %d", len(approvers), maxApprovers)
	}
	au := &authority{keys: make(map[string]Approver), groups: make(map[string][]string)}
	keys := make(map[vault.Digest]string)
	for _, ap := range approvers {
		if ap.ID == "" || len(ap.Public) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("approval: approver %q without id or Ed25519 key", ap.ID)
		}
		if _, twice := au.keys[ap.ID]; twice {
			return nil, fmt.Errorf("approval: approver %s is listed twice", ap.ID)
		}
		// One key under two names would be two people to a group of two.
		if other, twice := keys[Thumbprint(ap.Public)]; twice {
			return nil, fmt.Errorf("approval: approvers %s and %s have the same key", ap.ID, other)
		}
		keys[Thumbprint(ap.Public)] = ap.ID
		ap.Public = slices.Clone(ap.Public)
		au.keys[ap.ID] = ap
	}
	au.order = slices.Sorted(maps.Keys(au.keys))
	for name, ids := range groups {
		if name == "" {
			return nil, errors.New("approval: a group without a name")
		}
		for _, id := range ids {
			if _, ok := au.keys[id]; !ok {
				return nil, fmt.Errorf("approval: group %s names %q, which is no approver", name, id)
			}
		}
		au.groups[name] = slices.Clone(ids)
	}
	return au, nil
}

// Reload replaces approvers and groups. Questions stay open; a yes of someone who
// is no longer a member no longer counts, a no still does.
func (d *Desk) Reload(approvers []Approver, groups map[string][]string) error {
	au, err := newAuthority(approvers, groups)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.au = au
	for id := range d.m.byID {
		d.awake(id)
	}
	return nil
}

// PublicKey is the key that questions are signed with.
func (d *Desk) PublicKey() ed25519.PublicKey { return slices.Clone(d.public) }

// Changed returns a channel that receives after questions or answers changed, for
// whoever keeps [Desk.Export]. Several changes may give one receipt.
func (d *Desk) Changed() <-chan struct{} { return d.changed }

// awake lets everybody who waits for id look again. The caller holds d.mu.
func (d *Desk) awake(id string) {
	if ch, ok := d.wake[id]; ok {
		close(ch)
		delete(d.wake, id)
	}
	select {
	case d.changed <- struct{}{}:
	default: // one receipt is waiting already
	}
}

// begin locks the machine and forgets what is over.
func (d *Desk) begin() (now time.Time) {
	now = d.now()
	d.mu.Lock()
	for _, id := range d.m.sweep(now) {
		if _, waits := d.wake[id]; waits {
			d.awake(id)
		}
	}
	return now
}

// Question returns the signed question for exactly these facts and this decision.
// While one with the same binding is open, or was denied and has not expired, it
// returns that one. Every error is a *vault.Denial.
func (d *Desk) Question(_ context.Context, f *vault.Facts, dec vault.Decision, policy vault.Digest) (vault.Question, error) {
	q, err := newQuestion(f, dec, policy)
	if err != nil {
		return vault.Question{}, vault.DenialOf(fmt.Errorf("ask: %w", err))
	}
	binding, err := d.codec.binding(q)
	if err != nil {
		return vault.Question{}, vault.DenialOf(fmt.Errorf("ask: %w", err))
	}
	now := d.begin()
	defer d.mu.Unlock()
	if e := d.m.find(now, binding); e != nil {
		return e.question(), nil
	}
	if !d.au.askable(q) {
		return vault.Question{}, vault.NewDenial(vault.CodeApprovalNobody, "", fmt.Errorf("ask: no approver for one of the groups %q", q.Groups))
	}
	end := now.Add(d.life)
	if f.Grant.Expires.Before(end) {
		end = f.Grant.Expires
	}
	q.ID, q.Call = vault.NewApprovalID(), f.Call.ID
	q.RequestedAt, q.ExpiresAt = now.Unix(), end.Unix()
	if q.ExpiresAt <= q.RequestedAt {
		return vault.Question{}, vault.NewDenial(vault.CodeCapabilityExpired, "", errors.New("ask: the capability ends before anybody could answer"))
	}
	// Signing under the lock keeps two equal calls from asking twice; it takes
	// 50 µs and a person takes longer.
	signed, err := d.codec.sign(q, d.signer)
	if err != nil {
		return vault.Question{}, vault.DenialOf(fmt.Errorf("ask: %w", err))
	}
	e := &entry{q: q, signed: signed, binding: binding}
	switch err := d.m.add(d.au, now, e); {
	case errors.Is(err, errBusy):
		out := vault.NewDenial(vault.CodeBusy, "", fmt.Errorf("ask: %w", err))
		out.Retry = vault.RetryAfter
		return vault.Question{}, out
	case err != nil:
		return vault.Question{}, vault.DenialOf(fmt.Errorf("ask: %w", err))
	}
	d.awake(q.ID)
	return e.question(), nil
}

func (e *entry) question() vault.Question {
	return vault.Question{ID: e.q.ID, Bytes: slices.Clone(e.signed), Expires: e.q.Expires(), Shown: e.shown}
}

// Show makes the question visible to approvers; until then nobody can answer it.
// The caller has recorded it.
func (d *Desk) Show(ctx context.Context, q vault.Question) error {
	d.begin()
	defer d.mu.Unlock()
	e := d.m.byID[q.ID]
	if e == nil {
		return vault.NewDenial(vault.CodeApprovalInvalid, "", fmt.Errorf("show: %w", ErrUnknown))
	}
	if !e.shown {
		e.shown = true
		d.awake(q.ID)
		d.log.InfoContext(ctx, "question for approvers", "approval", q.ID, "task", e.q.Task, "groups", e.q.Groups, "expires", e.q.Expires())
	}
	return nil
}

// Answer waits up to wait for the question to be decided. A *vault.Denial says
// that it is pending (wait is over, or ctx), denied, or timed out. The question
// stays open when the caller leaves.
func (d *Desk) Answer(ctx context.Context, q vault.Question, wait time.Duration) (vault.Approval, error) {
	var timer *time.Timer
	over := wait <= 0
	for {
		now := d.begin()
		st, a := d.stateOf(q.ID, now)
		var wake chan struct{}
		if st == open && !over {
			if wake = d.wake[q.ID]; wake == nil {
				wake = make(chan struct{})
				d.wake[q.ID] = wake
			}
		}
		d.mu.Unlock()
		switch {
		case st == allowed:
			return a, nil
		case st != open:
			return vault.Approval{}, refusal(st, q.ID)
		case over:
			return vault.Approval{}, pending(q.ID, context.Cause(ctx))
		}
		if timer == nil {
			timer = time.NewTimer(min(wait, q.Expires.Sub(now)))
			defer timer.Stop()
		}
		select {
		case <-wake:
		case <-timer.C:
			over = true
		case <-ctx.Done():
			over = true
		}
	}
}

// stateOf returns where question id stands. The caller holds d.mu.
func (d *Desk) stateOf(id string, now time.Time) (state, vault.Approval) {
	e := d.m.byID[id]
	if e == nil {
		return unknown, vault.Approval{}
	}
	return e.state(d.au, now)
}

func pending(id string, cause error) *vault.Denial {
	out := vault.NewDenial(vault.CodeApprovalRequired, "", cause)
	out.Verdict, out.Retry, out.ApprovalID = "pending", vault.RetrySameCallID, id
	return out
}

func refusal(st state, id string) *vault.Denial {
	code := vault.CodeApprovalInvalid
	switch st {
	case denied:
		code = vault.CodeApprovalDenied
	case expired:
		code = vault.CodeApprovalTimeout
	case unknown, open, allowed, spent:
	}
	out := vault.NewDenial(code, "", fmt.Errorf("approval %s is %s", id, st))
	out.ApprovalID = id
	return out
}

// Recheck reports a *vault.Denial unless a stands now, for a call with exactly
// this binding, and unspent. Signatures and group membership are checked again.
func (d *Desk) Recheck(_ context.Context, a vault.Approval, f *vault.Facts, dec vault.Decision, policy vault.Digest) error {
	q, err := newQuestion(f, dec, policy)
	if err != nil {
		return vault.DenialOf(fmt.Errorf("recheck approval: %w", err))
	}
	binding, err := d.codec.binding(q)
	if err != nil {
		return vault.DenialOf(fmt.Errorf("recheck approval: %w", err))
	}
	now := d.begin()
	defer d.mu.Unlock()
	st, standing := d.stateOf(a.ID, now)
	if st != allowed {
		return refusal(st, a.ID)
	}
	if !now.Before(standing.Expires) || !now.Before(a.Expires) {
		return refusal(expired, a.ID)
	}
	e := d.m.byID[a.ID]
	if e.binding != binding || e.q.ArgsDigest != f.Call.Args.Digest() || string(e.q.Args) != f.Call.Args.String() {
		out := vault.NewDenial(vault.CodeApprovalInvalid, "", fmt.Errorf("approval %s is for another call", a.ID))
		out.ApprovalID = a.ID
		return out
	}
	return nil
}

// Spend burns a.
func (d *Desk) Spend(ctx context.Context, a vault.Approval) {
	d.begin()
	defer d.mu.Unlock()
	d.m.spend(a.ID)
	d.awake(a.ID)
	d.log.InfoContext(ctx, "approval spent", "approval", a.ID)
}

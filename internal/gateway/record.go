package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/pilox/vault"
)

// event is what every record of a call says.
func event(f *vault.Facts, phase vault.Phase, policy vault.Digest) *vault.Event {
	return &vault.Event{
		Run:     f.Grant.Task,
		Call:    f.Call.ID,
		Class:   vault.ClassCall,
		Phase:   phase,
		Policy:  policy,
		Kind:    f.Call.Kind,
		Target:  f.Call.Target,
		Proof:   f.Grant.Proof,
		Grade:   f.Grade,
		AnyArgs: f.Grant.AnyArgs,
		SameUID: f.Grant.SameUID,
	}
}

func intentEvent(f *vault.Facts, d decided, debits []vault.Debit) *vault.Event {
	e := event(f, vault.PhaseIntent, d.policy)
	e.Verdict = vault.Allow
	e.Debits = debits
	e.Fields = append([]vault.Field{{Name: "args", Value: f.Call.Args.Bytes()}, {Name: "caller", Value: []byte(f.Call.Agent)}}, contextField(f)...)
	reasons := d.decision.Reasons
	for _, o := range d.decision.Obligations {
		if o.Type == vault.ObligeNotify {
			reasons = append(reasons[:len(reasons):len(reasons)], vault.Reason{Code: vault.CodePolicyNotify, Detail: "notify " + o.Text})
		}
	}
	if len(reasons) > 0 {
		e.Reason = reasons[0].Code
		e.Fields = append(e.Fields, vault.Field{Name: "note", Value: note(reasons)})
	}
	return e
}

// contextField is what was known beside the call. It is on record so that other
// rules can be tried on what happened, and so that who learns a task file from it
// knows what the agent had read.
func contextField(f *vault.Facts) []vault.Field {
	if f.Tool.Name == "" {
		return nil
	}
	b, err := f.Context()
	if err != nil {
		return nil // a record without it says less and is no less true
	}
	return []vault.Field{{Name: "context", Value: b}}
}

func releasedEvent(f *vault.Facts, intent vault.Receipt) *vault.Event {
	e := event(f, vault.PhaseReleased, vault.Digest{})
	e.Verdict = vault.Allow
	e.Intent, e.HasIntent = intent.Index, true
	return e
}

// recordAsked makes the question durable before anybody sees it.
func (g *Gateway) recordAsked(ctx context.Context, f *vault.Facts, d decided, q vault.Question) error {
	e := event(f, vault.PhaseAsked, d.policy)
	e.Verdict = vault.Ask
	e.Reason = d.decision.Reason().Code
	e.Fields = append([]vault.Field{
		{Name: "args", Value: f.Call.Args.Bytes()},
		{Name: "caller", Value: []byte(f.Call.Agent)},
		{Name: "note", Value: note(append([]vault.Reason{{Code: vault.CodeApprovalRequired, Detail: q.ID}}, d.decision.Reasons...))},
	}, contextField(f)...)
	if _, err := g.Recorder.Commit(ctx, e); err != nil {
		return vault.NewDenial(vault.CodeLedger, "", fmt.Errorf("record question: %w", err))
	}
	return nil
}

// An outcome is how an admitted call ended.
type outcome struct {
	phase  vault.Phase
	reason vault.Reason
	intent vault.Receipt
	refund bool
	result []byte
	// settled are the parts of the intent's debits that were not used.
	settled []vault.Debit
	notes   []vault.Reason // what was taken out of the result
}

// outcome records how a call ended, also when the caller has hung up.
func (g *Gateway) outcome(ctx context.Context, f *vault.Facts, o outcome) (vault.Receipt, error) {
	e := event(f, o.phase, vault.Digest{})
	e.Verdict = vault.Allow
	e.Reason = o.reason.Code
	e.Intent, e.HasIntent = o.intent.Index, true
	e.Refund = o.refund
	e.Debits = o.settled
	if o.result != nil {
		e.Fields = append(e.Fields, vault.Field{Name: "result", Value: o.result})
	}
	if o.reason.Code != "" {
		o.notes = append([]vault.Reason{o.reason}, o.notes...)
	}
	if len(o.notes) > 0 {
		e.Fields = append(e.Fields, vault.Field{Name: "note", Value: note(o.notes)})
	}
	record := g.Recorder.Sequence
	if g.OutcomeDurable != nil && g.OutcomeDurable(f) {
		record = g.Recorder.Commit
	}
	return g.late(context.WithoutCancel(ctx), e, record)
}

// late records what may come after the end of its run: then it is the daemon's,
// because a closed run is complete and takes no more.
func (g *Gateway) late(ctx context.Context, e *vault.Event, record func(context.Context, *vault.Event) (vault.Receipt, error)) (vault.Receipt, error) {
	receipt, err := record(ctx, e)
	if d := vault.DenialOf(err); d != nil && d.Reason.Code == vault.CodeTaskClosed {
		e.Run = ""
		receipt, err = record(ctx, e)
	}
	return receipt, err
}

// refuse records that a call did not run and returns d with its place in the
// ledger. What cannot be tied to a task is only counted: before authentication
// nobody may fill the ledger.
func (g *Gateway) refuse(ctx context.Context, f *vault.Facts, d *vault.Denial) error {
	d.DecisionID = f.Call.ID
	if d.Err != nil {
		g.Log.InfoContext(ctx, "call refused", "call", f.Call.ID, "reason", string(d.Reason.Code), "err", d.Err)
	}
	if f.Grant.Task == "" {
		g.Tasks.strangers.count(f.Call.Edge, d.Reason.Code)
		return d
	}
	if d.Verdict == "pending" {
		return d // the asked event stands for it
	}
	g.strike(ctx, f, d.Reason.Code)
	e := event(f, vault.PhaseRefused, g.Policy.Revision())
	e.Fields = append([]vault.Field{
		{Name: "args", Value: f.Call.Args.Bytes()},
		{Name: "caller", Value: []byte(f.Grant.Agent)}, // the call itself does not say it before it was verified
	}, contextField(f)...)
	g.recordRefusal(ctx, f.Grant.Agent, e, d)
	return d
}

// RefuseBeside records that the rules refused something beside a call, at one of
// their hook points, and gives d its place in the ledger. An empty run is for a task
// that is not open yet.
func (g *Gateway) RefuseBeside(ctx context.Context, at string, run vault.TaskID, f *vault.Facts, d *vault.Denial) {
	d.DecisionID = f.Call.ID
	e := event(f, vault.PhaseRefused, g.Policy.Revision())
	e.Class, e.Run, e.Target.Name = vault.ClassAccess, run, at
	g.recordRefusal(ctx, f.Grant.Agent, e, d)
}

// recordRefusal records a refusal unless its agent has had too many of them.
func (g *Gateway) recordRefusal(ctx context.Context, agent vault.AgentID, e *vault.Event, d *vault.Denial) {
	missed, ok := g.Tasks.refusals.allow(agent)
	if !ok {
		return
	}
	e.Reason = d.Reason.Code
	reasons := []vault.Reason{d.Reason}
	if missed > 0 {
		reasons = append(reasons, vault.Reason{Code: vault.CodeBusy, Detail: fmt.Sprintf("%d refusals before this one are not on record one by one", missed)})
	}
	e.Fields = append(e.Fields, vault.Field{Name: "note", Value: note(reasons)})
	receipt, err := g.late(context.WithoutCancel(ctx), e, g.Recorder.Commit)
	if err != nil {
		g.Log.ErrorContext(ctx, "refusal not recorded", "call", e.Call, "err", err)
		return
	}
	d.Event = &receipt.Index
}

// Refuse records that an edge refused something before it became a call, and
// returns the answer with its place in the ledger. A zero grant is a stranger's.
func (g *Gateway) Refuse(ctx context.Context, call *vault.Call, grant vault.Grant, d *vault.Denial) *vault.Denial {
	f := &vault.Facts{Call: call, Grant: &grant, Tool: new(vault.Tool)}
	if g.Meter != nil {
		g.Meter.Call(f, d, 0)
	}
	return vault.DenialOf(g.refuse(ctx, f, d))
}

// note is the text that stands in a record for people: codes, paths and details.
func note(reasons []vault.Reason) []byte {
	type line struct {
		Code   vault.Code `json:"code"`
		Path   string     `json:"path,omitempty"`
		Detail string     `json:"detail,omitempty"`
	}
	lines := make([]line, len(reasons))
	for i, r := range reasons {
		lines[i] = line(r)
	}
	b, err := json.Marshal(lines)
	if err != nil {
		return []byte(`[{"code":"internal"}]`)
	}
	return b
}

// refusals bounds how many refusals of one agent are recorded one by one, so that
// an agent that loops cannot crowd out outcomes and revocations. A bucket of 100
// that refills with 20 a second is above what a working agent causes.
type refusals struct {
	mu     sync.Mutex
	agents map[vault.AgentID]*bucket
	now    func() time.Time
}

type bucket struct {
	tokens float64
	last   time.Time
	missed int
}

const (
	refusalBurst = 100
	refusalRate  = 20   // a second
	maxBuckets   = 4096 // agents remembered at once
)

// allow reports whether a refusal may be recorded, and how many were not since
// the last one that was.
func (r *refusals) allow(agent vault.AgentID) (missed int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if r.now != nil {
		now = r.now()
	}
	b := r.agents[agent]
	if b == nil {
		if r.agents == nil || len(r.agents) >= maxBuckets {
			r.agents = make(map[vault.AgentID]*bucket)
		}
		b = &bucket{tokens: refusalBurst, last: now}
		r.agents[agent] = b
	}
	b.tokens = min(refusalBurst, b.tokens+now.Sub(b.last).Seconds()*refusalRate)
	b.last = now
	if b.tokens < 1 {
		b.missed++
		return 0, false
	}
	b.tokens--
	missed, b.missed = b.missed, 0
	return missed, true
}

// strangers counts what was refused before a task was known.
type strangers struct {
	mu     sync.Mutex
	counts map[string]int
}

const maxStrangers = 1024 // distinct sources and reasons between two flushes

func (s *strangers) count(source string, code vault.Code) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.counts == nil {
		s.counts = make(map[string]int)
	}
	key := source + " " + string(code)
	if _, ok := s.counts[key]; !ok && len(s.counts) >= maxStrangers {
		key = "other"
	}
	s.counts[key]++
}

// CountStranger counts a request that an edge refused before it was a call.
func (g *Gateway) CountStranger(source string, code vault.Code) {
	if g.Meter != nil {
		g.Meter.Stranger(code)
	}
	g.Tasks.strangers.count(source, code)
}

// FlushStrangers writes one event that sums the refusals before authentication
// since the last flush, if there were any. The daemon calls it every minute.
func (g *Gateway) FlushStrangers(ctx context.Context) error {
	s := &g.Tasks.strangers
	s.mu.Lock()
	counts := s.counts
	s.counts = nil
	s.mu.Unlock()
	if len(counts) == 0 {
		return nil
	}
	b, err := json.Marshal(counts)
	if err != nil {
		return fmt.Errorf("encode counts: %w", err)
	}
	_, err = g.Recorder.Commit(ctx, &vault.Event{Class: vault.ClassAccess, Phase: vault.PhaseNoted, Reason: vault.CodeProof, Fields: []vault.Field{{Name: "note", Value: b}}})
	if err != nil {
		return fmt.Errorf("record refusals before authentication: %w", err)
	}
	return nil
}

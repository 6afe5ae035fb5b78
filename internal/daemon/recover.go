package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
	"github.com/pilox/vault/internal/flow"
	"github.com/pilox/vault/internal/gateway"
	"github.com/pilox/vault/internal/ledger"
	"github.com/pilox/vault/internal/store"
)

// recover brings everything that is a cache of the ledger up to it: revocations,
// counters, call ids, labels. Calls that were in flight are closed as unknown.
func (d *Daemon) recover(ctx context.Context) error {
	if err := d.restoreLabels(ctx); err != nil {
		return err
	}
	if err := d.restoreQuestions(ctx); err != nil {
		return err
	}
	r := d.ledger.Recovered()
	for _, v := range r.Revocations {
		var what capability.Revocation
		if err := json.Unmarshal([]byte(v.What()), &what); err != nil {
			return fmt.Errorf("revocation %d cannot be read, and without it nothing may run: %w", v.Index, err)
		}
		if err := d.revoked.Add(what); err != nil {
			return fmt.Errorf("revocation %d: %w", v.Index, err)
		}
	}
	if err := d.recoverPending(ctx); err != nil {
		return err
	}
	for _, o := range r.Open {
		if err := d.closeUnknown(ctx, o); err != nil {
			return fmt.Errorf("close intent %d: %w", o.Index, err)
		}
	}
	past, reached, err := d.pastCalls(ctx, r)
	if err != nil {
		return err
	}
	d.gateway.Tasks.Restore(r.Counters, reached, past)
	return d.recoverTasks(ctx, r.Runs)
}

// closeUnknown closes an intent of a daemon that died, and joins the most its
// target can carry to the agent's label.
func (d *Daemon) closeUnknown(ctx context.Context, o ledger.OpenIntent) error {
	if err := d.commitLate(ctx, o.Unknown()); err != nil {
		return err
	}
	label := vault.Label{Sources: []vault.Source{{Kind: o.Kind, Name: o.Target.Name}}} // the worst
	if t, err := d.catalogue.ServerByID(o.Target.Server); err == nil {
		label = vault.Label{Integrity: t.Registration.Source.Integrity, Readers: t.Registration.Holds.Readers(), Sources: []vault.Source{{Kind: o.Kind, Server: t.Name, Name: o.Target.Name}}}
	}
	d.flow.Taint(vault.AgentID(o.Caller), label)
	return nil
}

// pastCalls returns the calls of the open runs. Labels are restored on the way:
// whatever an agent was given may still be in its memory. So are the recipients and
// hosts that were reached under a counter of different ones.
func (d *Daemon) pastCalls(ctx context.Context, r *ledger.Recovered) (past []gateway.Past, reached map[string][]string, err error) {
	reached = map[string][]string{}
	for _, run := range r.Runs {
		agent, err := d.agentOf(ctx, run)
		if err != nil {
			return nil, nil, err
		}
		at := map[string]int{}
		callers := map[string]vault.AgentID{} // by call in flight; a task has as many agents as it delegates to
		violations, lowered := 0, 0
		for rec, err := range d.ledger.Records(ctx, 0, d.ledger.Head().Size, run, true) {
			if err != nil {
				return nil, nil, fmt.Errorf("read run %s: %w", run, err)
			}
			switch {
			case rec.Class == vault.ClassTask && rec.Phase == vault.PhaseNoted && rec.Verdict == vault.Deny:
				lowered++ // a step down of the task's autonomy
			case rec.Class != vault.ClassCall:
			case rec.Phase == vault.PhaseRefused && gateway.Violates(vault.Code(rec.Reason)):
				violations++
			case rec.Phase == vault.PhaseIntent:
				at[rec.Call] = len(past)
				past = append(past, gateway.Past{Task: run, ID: rec.Call, Phase: vault.PhaseUnknown, Intent: rec.Index})
				callers[rec.Call] = callerOf(&rec, agent)
				d.reached(ctx, &rec, reached)
			case rec.Phase.Closes():
				if i, ok := at[rec.Call]; ok {
					past[i].Phase = rec.Phase
				}
				d.retaint(callers[rec.Call], &rec)
				delete(callers, rec.Call)
			}
		}
		// Refusals are recorded within a rate, the steps down always.
		violations = max(violations, lowered*d.gateway.Autonomy.Step())
		if err := d.restoreAutonomy(ctx, run, violations); err != nil {
			return nil, nil, err
		}
	}
	return past, reached, nil
}

// reached adds whom a past call reached to the counters that it moved.
func (d *Daemon) reached(ctx context.Context, intent *ledger.Record, into map[string][]string) {
	if !slices.ContainsFunc(intent.Debits, func(b vault.Debit) bool { return b.Unit == vault.UnitRecipients || b.Unit == vault.UnitHosts }) {
		return
	}
	call := &vault.Call{Kind: intent.Kind, Target: vault.Target{Server: intent.Server, Name: intent.Tool}}
	for _, f := range intent.Fields {
		switch f.Name {
		case "args":
			args, err := vault.ParseArgs(f.Value)
			if err != nil {
				return // what cannot be read counts as new when it is reached again
			}
			call.Args = args
		case "target":
			call.Target.Name = string(f.Value)
		}
	}
	tool, err := d.catalogue.Resolve(ctx, call, new(vault.Grant))
	if err != nil {
		tool = vault.Tool{}
	}
	recipients, hosts := d.flow.Reach(&vault.Facts{Call: call, Tool: &tool})
	for _, b := range intent.Debits {
		switch b.Unit {
		case vault.UnitRecipients:
			into[b.Counter] = append(into[b.Counter], recipients...)
		case vault.UnitHosts:
			into[b.Counter] = append(into[b.Counter], hosts...)
		}
	}
}

// callerOf returns who made the call of an intent: the first agent of the task if
// the record does not say so any more.
func callerOf(intent *ledger.Record, first vault.AgentID) vault.AgentID {
	for _, f := range intent.Fields {
		if f.Name == "caller" && len(f.Value) > 0 {
			return vault.AgentID(f.Value)
		}
	}
	return first
}

// retaint joins to an agent what a past call can have told it, and to the server
// what the agent can have written there. It is stricter than what was: the ledger
// does not say which resource.
func (d *Daemon) retaint(agent vault.AgentID, rec *ledger.Record) {
	if agent == "" {
		return
	}
	s, err := d.catalogue.ServerByID(rec.Server)
	if err != nil {
		d.flow.Taint(agent, vault.Label{Sources: []vault.Source{{Kind: rec.Kind}}})
		return
	}
	if !s.Registration.Tools[rec.Tool].ReadOnly && rec.Kind == vault.KindTool && len(s.Registration.Write) > 0 {
		d.flow.Import([]flow.Entry{{Server: s.Name, Label: d.flow.Scope(agent)}})
	}
	d.flow.Taint(agent, vault.Label{Integrity: s.Registration.Source.Integrity, Readers: s.Registration.Holds.Readers(), Sources: []vault.Source{{Kind: rec.Kind, Server: s.Name, Name: rec.Tool}}})
}

// agentOf returns the agent of a task, empty if the task is not known any more.
func (d *Daemon) agentOf(ctx context.Context, run vault.TaskID) (vault.AgentID, error) {
	tasks, err := d.rows.Tasks(ctx, "")
	if err != nil {
		return "", fmt.Errorf("list tasks: %w", err)
	}
	for _, row := range tasks {
		if row.ID == run {
			doc, err := decodeTask(row)
			return doc.Agent, err
		}
	}
	return "", nil
}

// recoverTasks revokes again what was closed, and closes runs whose task was
// closed, or whose opening got no further than the ledger.
func (d *Daemon) recoverTasks(ctx context.Context, runs []vault.TaskID) error {
	rows, err := d.rows.Tasks(ctx, "")
	if err != nil {
		return fmt.Errorf("list tasks: %w", err)
	}
	known := make(map[vault.TaskID]store.Task, len(rows))
	for _, row := range rows {
		known[row.ID] = row
		if row.State == store.TaskOpen {
			continue
		}
		doc, err := decodeTask(row)
		if err != nil {
			return err
		}
		if !doc.Expires.IsZero() && !time.Now().Before(doc.Expires) {
			continue // its capability is over by itself
		}
		if err := d.revoked.Add(capability.Revocation{Task: row.ID, At: time.Now()}); err != nil {
			return fmt.Errorf("revoke task %s: %w", row.ID, err)
		}
	}
	for _, run := range runs {
		row, ok := known[run]
		switch {
		case run == "" || ok && row.State == store.TaskOpen: // the daemon's own run stays open
			continue
		case !ok:
			row = store.Task{ID: run, Opened: time.Now(), Doc: []byte("{}")}
		}
		if err := d.closeTask(ctx, row, "closed when the daemon started"); err != nil {
			return err
		}
	}
	return d.expireTasks(ctx)
}

// recordStart says in the ledger who serves from now on and what this host enforces.
func (d *Daemon) recordStart(ctx context.Context) error {
	key, err := d.anchorKey()
	if err != nil {
		return err
	}
	leaving := map[string][]string{}
	for _, s := range d.conf.Sinks {
		leaving[s.Name+" ("+s.Kind+")"] = s.leaving()
	}
	note, err := json.Marshal(map[string]any{
		"sinks":   leaving, // each with the sensitive fields that leave by it
		"anchor":  key,     // announced under the ledger's key before it signs anything
		"version": Version,
		"sandbox": d.jail.Report(),
		"policy":  d.policy.Revision(),
		"bearer":  d.conf.Listen.Bearer,
		"keys":    d.keys.Describe(),
	})
	if err != nil {
		return fmt.Errorf("describe: %w", err)
	}
	_, err = d.ledger.Commit(ctx, &vault.Event{
		Class: vault.ClassDaemon, Phase: vault.PhaseOpened, Verdict: vault.Allow, Grade: d.jail.Grade(), Policy: d.policy.Revision(),
		Fields: []vault.Field{{Name: "note", Value: note}},
	})
	return err
}

// background starts what runs on timers.
func (d *Daemon) background() {
	d.keep()
	if d.anchors != nil {
		d.work.Go(func() { d.anchors.Run(d.ctx) })
	}
	if d.sinks != nil {
		d.work.Go(func() { d.sinks.Run(d.ctx) })
	}
	d.everyMinute("sum of refusals", d.gateway.FlushStrangers)
	d.everyMinute("expiry of tasks", d.expireTasks)
	d.everyMinute("expiry of sessions", func(context.Context) error { d.front.Expire(); return nil })
	d.everyMinute("listing of servers", func(ctx context.Context) error {
		for _, s := range d.catalogue.Servers() {
			// A stopped stdio server is not started just to ask it: it is listed
			// again when it starts, and its code cannot change.
			if s.Pinned && s.Registration.URL != "" {
				if err := d.observe(ctx, s); err != nil {
					d.log.WarnContext(ctx, "server not listed", "server", s.Name, "err", err)
				}
			}
		}
		return nil
	})
}

// everyMinute runs f once a minute until the daemon closes.
func (d *Daemon) everyMinute(what string, f func(context.Context) error) {
	d.work.Go(func() {
		t := time.NewTicker(time.Minute)
		defer t.Stop()
		for {
			select {
			case <-d.ctx.Done():
				return
			case <-t.C:
				if err := f(d.ctx); err != nil && d.ctx.Err() == nil {
					d.log.Error("background work failed", "what", what, "err", err)
				}
			}
		}
	})
}

package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
	"github.com/pilox/vault/internal/approval"
	"github.com/pilox/vault/internal/policy"
)

func (d *Daemon) openPolicy(ctx context.Context) error {
	c, err := policyConfig(&d.conf.Policy)
	if err != nil {
		return err
	}
	c.Log, c.Gateway = d.log, d.cluster
	d.policy, err = policy.New(ctx, c)
	return err
}

// policyConfig turns what vault.yaml says of policy into rules and hooks.
func policyConfig(conf *Policy) (policy.Config, error) {
	var c policy.Config
	for _, b := range conf.Bundles {
		out := policy.Bundle{Name: b.Name, Dir: b.Dir, File: b.File, Unsigned: b.Unsigned}
		if id := b.Signing.KeyID; id != "" {
			key := conf.Keys[id]
			pem, err := os.ReadFile(key.File)
			if err != nil {
				return policy.Config{}, fmt.Errorf("policy.keys.%s: %w", id, err)
			}
			out.Key = &policy.Key{ID: id, Algorithm: key.Algorithm, PEM: pem}
		}
		c.Bundles = append(c.Bundles, out)
	}
	for _, h := range conf.Hooks {
		m := policy.Match{Tool: h.Tools, Risk: h.Risk}
		for _, k := range h.Kinds {
			m.Kinds = append(m.Kinds, vault.Kind(k))
		}
		c.Hooks = append(c.Hooks, policy.Hook{
			At: h.At, Match: m, Engine: policy.Engine(h.Engine), Query: h.Query, Expr: h.Expr, URL: h.URL,
			Mode: policy.Mode(h.Mode), OnError: h.OnError, Deadline: h.Deadline, Steps: h.Steps,
		})
	}
	return c, nil
}

// Reload reads the policy bundles again. Rules that do not load leave those in use in
// force, and pvault status says so. What is in force from now on is on record.
func (d *Daemon) Reload(ctx context.Context) error {
	before := d.policy.Revision()
	if err := d.policy.Reload(ctx); err != nil {
		return fmt.Errorf("reload policy: %w", err)
	}
	if d.policy.Revision() == before {
		return nil
	}
	d.views.changed() // who was admitted is asked about again
	_, err := d.ledger.Commit(ctx, &vault.Event{
		Class: vault.ClassDaemon, Phase: vault.PhaseNoted, Verdict: vault.Allow, Policy: d.policy.Revision(),
		Fields: []vault.Field{{Name: "note", Value: []byte("policy reloaded")}},
	})
	return err
}

// hook asks the rules at a place beside the call and returns the denial, if any.
// A refusal is on record, in the run if there is one.
func (d *Daemon) hook(ctx context.Context, at string, run vault.TaskID, grant *vault.Grant, event any) error {
	if !d.policy.Hooked(at) {
		return nil
	}
	f := beside(grant)
	err := denied(d.policy.At(ctx, at, f, event))
	if err != nil {
		d.gateway.RefuseBeside(ctx, at, run, f, vault.DenialOf(err))
	}
	return err
}

// beside returns the facts of what happens beside a call: a grant as far as it is
// known, and no call.
func beside(grant *vault.Grant) *vault.Facts {
	return &vault.Facts{Call: &vault.Call{ID: vault.NewCallID(), At: time.Now()}, Grant: grant, Tool: new(vault.Tool)}
}

func denied(v vault.Decision) error {
	if v.Verdict == vault.Allow {
		return nil
	}
	r := v.Reason()
	out := vault.NewDenial(r.Code, r.Path, nil)
	if out.Reason.Detail = r.Detail; r.Detail != "" {
		out.Err = errors.New(r.Detail)
	}
	return out
}

// hookMint asks about a capability before it is signed into the world.
func (d *Daemon) hookMint(ctx context.Context, link *capability.Link, approver string) error {
	if !d.policy.Hooked(policy.AtTokenMint) {
		return nil
	}
	var grants []any
	for kind, targets := range link.Grants {
		for t, r := range targets {
			server := ""
			if s, err := d.catalogue.ServerByID(t.Server); err == nil {
				server = s.Name
			}
			grants = append(grants, map[string]any{"kind": string(kind), "server": server, "name": t.Name, "any": r.Any, "ask": r.Ask})
		}
	}
	budgets := map[string]any{}
	if b := link.Budgets; b != nil {
		for name, limit := range map[string]*int64{"calls": b.Calls, "bytes_out": b.BytesOut, "recipients": b.Recipients, "hosts": b.Hosts, "wall_ms": b.Wall} {
			if limit != nil {
				budgets[name] = *limit
			}
		}
	}
	depth := 0
	if link.Depth != nil {
		depth = *link.Depth
	}
	grant := &vault.Grant{
		Tenant: link.Tenant, Task: link.Task.ID, Agent: link.Agent, Principal: link.Principal, Purpose: link.Task.Purpose,
		Expires: link.Expires.Time(), MinGrade: link.MinGrade, MayRead: link.MayRead, MaySendTo: link.MaySendTo,
	}
	return d.hook(ctx, policy.AtTokenMint, "", grant, map[string]any{
		"approver": approver, "holder": link.Holder.String(), "life_s": int64(link.Expires.Time().Sub(link.NotBefore.Time()).Seconds()),
		"depth": depth, "grants": grants, "budgets": budgets,
	})
}

// hookAdmit asks about an agent that shows a capability for the first time since
// the catalogue or the rules changed.
func (d *Daemon) hookAdmit(ctx context.Context, edge string, grant *vault.Grant) error {
	return d.hook(ctx, policy.AtAgentAdmit, grant.Task, grant, map[string]any{"edge": edge, "proof": string(grant.Proof), "links": len(grant.Links)})
}

// hookDelegate asks about a link that the gateway is about to sign.
func (d *Daemon) hookDelegate(ctx context.Context, grant *vault.Grant, holder *capability.Holder, why string) error {
	return d.hook(ctx, policy.AtTokenDelegate, grant.Task, grant, map[string]any{"holder": holder.String(), "agent": string(grant.Agent), "why": why})
}

// hookResolve asks about a yes before it counts.
func (d *Daemon) hookResolve(ctx context.Context, q *approval.Question, approver string) error {
	grant := &vault.Grant{Tenant: vault.Tenant(q.Tenant), Task: vault.TaskID(q.Task), Agent: vault.AgentID(q.Agent), Principal: q.Principal, Purpose: q.Purpose, Chain: q.Chain, Proof: vault.ProofKind(q.Proof)}
	return d.hook(ctx, policy.AtApprovalResolve, grant.Task, grant, map[string]any{
		"approval_id": q.ID, "approver": approver, "effect": "allow", "kind": q.Kind, "server": q.Server, "tool": q.Tool, "risk": q.Risk,
	})
}

// hookConnect asks about a connection of an egress call. Its facts are the call's.
func (d *Daemon) hookConnect(ctx context.Context, f *vault.Facts, host string, to netip.AddrPort) error {
	if !d.policy.Hooked(policy.AtEgressConnect) {
		return nil
	}
	return denied(d.policy.At(ctx, policy.AtEgressConnect, f, map[string]any{"host": host, "address": to.Addr().String(), "port": int(to.Port())}))
}

// hookEnd tells the rules that a task is over and returns their objection, if any.
// Nothing can be refused any more, so it is for the record.
func (d *Daemon) hookEnd(ctx context.Context, grant *vault.Grant, why string) *vault.Denial {
	if !d.policy.Hooked(policy.AtSessionEnd) {
		return nil
	}
	objection := vault.DenialOf(denied(d.policy.At(ctx, policy.AtSessionEnd, beside(grant), map[string]any{"why": why})))
	if objection != nil {
		d.log.WarnContext(ctx, "the policy objects to the end of a task", "task", string(grant.Task), "err", objection)
	}
	return objection
}

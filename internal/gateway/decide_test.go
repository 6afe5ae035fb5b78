package gateway_test

import (
	"context"
	"testing"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/vaulttest"
)

// TestDecideOutside reads as the specification of calls whose effect another gateway
// has: a yes comes after a durable intent and leaves an outcome, and what only the
// other gateway could meet is no yes.
func TestDecideOutside(t *testing.T) {
	allow, deny := vault.Allowed(), vault.Denied(vault.CodePolicyDenied, "", "")
	obliged := func(o vault.Obligation) vault.Decision {
		d := vault.Allowed()
		d.Obligations = []vault.Obligation{o}
		return d
	}
	wrong := func(context.Context, *vault.Call) error { return vault.NewDenial(vault.CodeArgsSchema, "/path", nil) }
	label := vault.Label{Integrity: vault.FromWeb}
	for _, tt := range []struct {
		name  string
		s     *vaulttest.Stages
		check func(context.Context, *vault.Call) error
		want  string // the stages that ran
		code  vault.Code
		left  int64 // of a budget of 5 calls and of 90 s, in that order
		wall  int64
	}{
		{"allowed", &vaulttest.Stages{OnPolicy: allow}, nil, decided + admitted + "label done", "", 4, 30_000},
		{"approved", &vaulttest.Stages{OnPolicy: vault.Asked("lead", vault.CodePolicyAsks, "", "")}, nil, asked + "recheck reapprove intent label done", "", 4, 30_000},
		{"a label is joined here", &vaulttest.Stages{OnPolicy: obliged(vault.Obligation{Type: vault.ObligeLabel, Label: label})}, nil, decided + admitted + "label done", "", 4, 30_000},
		{"no sandbox is asked for", &vaulttest.Stages{OnPolicy: allow, Fail: "grade"}, nil, decided + admitted + "label done", "", 4, 30_000},

		{"refused", &vaulttest.Stages{OnPolicy: deny}, nil, "verify resolve flow policy refused", vault.CodePolicyDenied, 5, 90_000},
		{"other arguments than the gateway has", &vaulttest.Stages{OnPolicy: obliged(vault.Obligation{Type: vault.ObligeTransform, Args: vault.MustArgs(`{"a":2}`)})}, nil, decided + "refused", vault.CodePolicyError, 5, 90_000},
		{"a result that nobody here could redact", &vaulttest.Stages{OnPolicy: obliged(vault.Obligation{Type: vault.ObligeRedact, Path: "/a"})}, nil, decided + "refused", vault.CodePolicyError, 5, 90_000},
		{"the intent is not durable", &vaulttest.Stages{OnPolicy: allow, Fail: "intent"}, nil, decided + admitted + "refused", vault.CodeLedger, 5, 90_000},
		{"the request cannot be sent", &vaulttest.Stages{OnPolicy: allow}, wrong, decided + admitted + "taint failed", vault.CodeArgsSchema, 5, 90_000},
		{"rules about results object", &vaulttest.Stages{OnPolicy: allow, OnReturn: deny}, nil, decided + admitted + "failed", vault.CodePolicyDenied, 5, 90_000},
		{"the outcome has no place", &vaulttest.Stages{OnPolicy: allow, Fail: "done"}, nil, decided + admitted + "label done", vault.CodeLedger, 4, 30_000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.s.Grant = vault.Grant{Task: "t-1", Agent: "a", Debits: []vault.Debit{
				{Counter: "calls", Amount: 1, Limit: 5, Unit: "calls"}, {Counter: "wall", Limit: 90_000, Unit: vault.UnitWall},
			}}
			g := newGateway(tt.s)
			res, err := g.Decide(t.Context(), call("1"), tt.check)
			if got := tt.s.Ran(); got != tt.want {
				t.Errorf("stages:\n got %s\nwant %s", got, tt.want)
			}
			code := vault.Code("")
			if d := vault.DenialOf(err); d != nil {
				code = d.Reason.Code
			}
			if code != tt.code || (err == nil) != (string(res.Raw) == `{"decision":true}`) {
				t.Errorf("%s, %v: want %q", res.Raw, err, tt.code)
			}
			if calls, wall := 5-g.Tasks.Spent("calls"), 90_000-g.Tasks.Spent("wall"); calls != tt.left || wall != tt.wall {
				t.Errorf("left are %d calls and %d ms, want %d and %d", calls, wall, tt.left, tt.wall)
			}
			checkInvariants(t, tt.s, res, err)
			if err != nil {
				return
			}
			events := tt.s.Events()
			last, before := events[len(events)-1], events[len(events)-2]
			if last.Reason != vault.CodePermitted || !last.HasIntent || before.Phase != vault.PhaseIntent || len(before.Debits) < 2 {
				t.Errorf("on record as %+v after %+v", last, before)
			}
		})
	}
}

// TestPermitIsNoResult: one id stands for a call here or for a permit, not for both.
func TestPermitIsNoResult(t *testing.T) {
	for _, first := range []bool{true, false} {
		s := &vaulttest.Stages{OnPolicy: vault.Allowed()}
		g := newGateway(s)
		for i := range 2 {
			var err error
			if (i == 0) == first {
				_, err = g.Handle(t.Context(), call("1"), nil)
			} else {
				_, err = g.Decide(t.Context(), call("1"), nil)
			}
			if d := vault.DenialOf(err); (i == 0) != (d == nil) || d != nil && d.Reason.Code != vault.CodeCallArgsDiffer {
				t.Errorf("use %d: %v", i, err)
			}
		}
	}
}

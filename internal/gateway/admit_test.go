package gateway_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/gateway"
	"github.com/pilox/vault/internal/vaulttest"
)

// A momentScanner is the last stage that looks at a call, and does something then.
type momentScanner struct {
	*vaulttest.Stages
	then func()
}

func (s momentScanner) ScanArgs(ctx context.Context, f *vault.Facts) vault.Decision {
	d := s.Stages.ScanArgs(ctx, f)
	s.then()
	return d
}

// A momentApprover does something while a question waits.
type momentApprover struct {
	vaulttest.Approver
	then func()
}

func (a momentApprover) Answer(ctx context.Context, q vault.Question, wait time.Duration) (vault.Approval, error) {
	a.then()
	return a.Approver.Answer(ctx, q, wait)
}

// TestChangedOnTheWay: what was decided is held against the present before anything
// runs. The change comes when the last stage has looked, or while the question waits.
func TestChangedOnTheWay(t *testing.T) {
	lead, board := vault.Asked("lead", vault.CodePolicyAsks, "", ""), vault.Asked("board", vault.CodePolicyAsks, "", "")
	type scene struct {
		s      *vaulttest.Stages
		g      *gateway.Gateway
		hangUp func()
	}
	set := func(level string, violations int) func(scene) {
		return func(c scene) {
			if err := c.g.Autonomy.Set("t-1", level, violations); err != nil {
				t.Error(err)
			}
		}
	}
	for _, tt := range []struct {
		name   string
		policy vault.Decision
		level  string // before, none if empty
		change func(scene)
		code   vault.Code
	}{
		{"nothing changes", vault.Allowed(), "L2", func(scene) {}, ""},
		{"nothing changes, and a person says yes", lead, "L2", func(scene) {}, ""},
		{"the caller hangs up", vault.Allowed(), "", func(c scene) { c.hangUp() }, vault.CodeCancelled},
		{"the caller hangs up while the question waits", lead, "", func(c scene) { c.hangUp() }, vault.CodeCancelled},
		{"the capability is over", vault.Allowed(), "", func(c scene) { c.s.Expired = true }, vault.CodeCapabilityExpired},
		{"the capability is over while the question waits", lead, "", func(c scene) { c.s.Expired = true }, vault.CodeCapabilityExpired},
		{"the definition changes", vault.Allowed(), "", func(c scene) { c.s.Changed = true }, vault.CodeToolQuarantined},
		{"the definition changes while the question waits", lead, "", func(c scene) { c.s.Changed = true }, vault.CodeToolQuarantined},
		{"the approval ends while the question waits", lead, "", func(c scene) { c.s.Fail = "reapprove" }, vault.CodeApprovalInvalid},
		{"the level is lowered and asks", vault.Allowed(), "L2", set("L2", 3), vault.CodeBusy},
		{"the task gets a level that asks", vault.Allowed(), "", set("L0", 0), vault.CodeBusy},
		{"the level is lowered and asks who is asked anyway", lead, "L2", set("L2", 3), ""},
		{"the level is lowered and asks somebody else too", board, "L2", set("L2", 3), vault.CodeBusy},
		{"the budget is spent by another call", vault.Allowed(), "", func(c scene) {
			c.g.Tasks.Restore(map[string]int64{"l/calls": 10}, nil, nil)
		}, vault.CodeCapabilityBudget},
		{"the budget is spent while the question waits", lead, "", func(c scene) {
			c.g.Tasks.Restore(map[string]int64{"l/calls": 10}, nil, nil)
		}, vault.CodeCapabilityBudget},
		{"the approval is spent by another call", lead, "", func(c scene) {
			c.g.Tasks.Restore(map[string]int64{"approval/q1": 1}, nil, nil)
		}, vault.CodeApprovalInvalid},
		{"a part fails without a word", vault.Allowed(), "", func(c scene) { c.s.Panic = "recheck" }, vault.CodeInternal},
		{"a part fails without a word while the question waits", lead, "", func(c scene) { c.s.Panic = "reapprove" }, vault.CodeInternal},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &vaulttest.Stages{OnPolicy: tt.policy, Grant: vault.Grant{Task: "t-1", Agent: "a", Proof: vault.ProofSession, Debits: []vault.Debit{
				{Counter: "l/calls", Amount: 1, Limit: 10, Unit: "calls", Kept: true},
			}}}
			g := newGateway(s)
			g.Autonomy = gateway.Autonomy{Levels: levels()}
			ctx, hangUp := context.WithCancel(t.Context())
			defer hangUp()
			now := scene{s, g, hangUp}
			if tt.level != "" {
				set(tt.level, 0)(now)
			}
			if tt.policy.Verdict == vault.Ask {
				g.Approver = momentApprover{s.Approver(), func() { tt.change(now) }}
			} else {
				g.Scanner = momentScanner{s, func() { tt.change(now) }}
			}
			_, err := g.Handle(ctx, call("1"), nil)
			if codeOf(err) != tt.code {
				t.Errorf("err = %v, want %q", err, tt.code)
			}
			ran, spent := strings.Contains(s.Ran(), "intent"), len(s.Spent())
			if ok := tt.code == ""; ran != ok || spent > 0 && !ok {
				t.Errorf("stages: %s; %d approvals spent", s.Ran(), spent)
			}
			if d := vault.DenialOf(err); d != nil && d.Executed != vault.ExecutedNo {
				t.Errorf("denial %+v", d)
			}
			if n := g.Tasks.Spent("l/calls"); tt.code != "" && tt.code != vault.CodeCapabilityBudget && n != 0 {
				t.Errorf("%d calls were debited", n)
			}
		})
	}
}

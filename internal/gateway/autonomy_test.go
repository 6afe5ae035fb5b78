package gateway_test

import (
	"context"
	"testing"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/gateway"
	"github.com/pilox/vault/internal/vaulttest"
)

func levels() []gateway.Level {
	return []gateway.Level{
		{Name: "L0", Group: "lead", AskAt: vault.RiskLow},
		{Name: "L1", Group: "lead", AskAt: vault.RiskHigh},
		{Name: "L2", Group: "lead", Silent: true},
	}
}

// TestAutonomyIsLowered walks a task from the level that asks nothing to the one
// that asks always, by what its agent tries.
func TestAutonomyIsLowered(t *testing.T) {
	s := &vaulttest.Stages{OnPolicy: vault.Allowed()}
	g := newGateway(s)
	g.Autonomy = gateway.Autonomy{Levels: levels(), Strikes: 2}
	if err := g.Autonomy.Set("t-1", "L2", 0); err != nil {
		t.Fatal(err)
	}
	n := 0
	handle := func() error {
		n++
		_, err := g.Handle(context.Background(), call(string(rune('a'+n))), nil)
		return err
	}
	level := func(want string) {
		t.Helper()
		if l, ok := g.Autonomy.Level("t-1"); !ok || l.Name != want {
			t.Fatalf("level %s, want %s", l.Name, want)
		}
	}
	if err := handle(); err != nil {
		t.Fatal(err)
	}
	level("L2")

	s.OnPolicy = vault.Denied(vault.CodePolicyDenied, "", "")
	_ = handle()
	level("L2")
	s.OnPolicy = vault.Denied(vault.CodePolicyError, "", "") // a fault of ours is not the agent's
	_ = handle()
	level("L2")
	s.OnPolicy = vault.Denied(vault.CodePolicyDenied, "", "")
	_ = handle()
	level("L1")
	_, _ = handle(), handle()
	level("L0")
	_, _ = handle(), handle()
	level("L0") // there is nothing below it

	s.OnPolicy = vault.Allowed()
	s.OnApprove = vault.NewDenial(vault.CodeApprovalDenied, "", nil)
	if d := vault.DenialOf(handle()); d == nil || d.Reason.Code != vault.CodeApprovalDenied {
		t.Fatalf("at L0 a call got through without a person: %v", d)
	}
}

func TestAutonomyAsksByRisk(t *testing.T) {
	for _, tt := range []struct {
		level string
		asks  bool
	}{
		{"L0", true},
		{"L1", true}, // the fake's tool has the zero risk, which is high
		{"L2", false},
	} {
		s := &vaulttest.Stages{OnPolicy: vault.Allowed(), OnApprove: vault.NewDenial(vault.CodeApprovalDenied, "", nil)}
		g := newGateway(s)
		g.Autonomy = gateway.Autonomy{Levels: levels()}
		if err := g.Autonomy.Set("t-1", tt.level, 0); err != nil {
			t.Fatal(err)
		}
		_, err := g.Handle(context.Background(), call("a"), nil)
		if (err != nil) != tt.asks {
			t.Errorf("%s: asks %t, want %t (%v)", tt.level, err != nil, tt.asks, err)
		}
	}
}

func TestAutonomyIsRestoredFromViolations(t *testing.T) {
	a := gateway.Autonomy{Levels: levels()}
	if err := a.Set("t-1", "L2", 4); err != nil {
		t.Fatal(err)
	}
	if l, _ := a.Level("t-1"); l.Name != "L1" {
		t.Errorf("level %s after 4 violations of 3 a step, want L1", l.Name)
	}
	if err := a.Set("t-1", "L9", 0); err == nil {
		t.Error("a level that is not configured was set")
	}
}

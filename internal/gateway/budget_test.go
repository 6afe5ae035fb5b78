package gateway_test

import (
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/gateway"
	"github.com/pilox/vault/internal/vaulttest"
)

// budgeted is a gateway whose capability has one counter.
func budgeted(d vault.Debit) (*vaulttest.Stages, *gateway.Gateway) {
	s := &vaulttest.Stages{OnPolicy: vault.Allowed(), Grant: vault.Grant{Task: "t-1", Agent: "a", Proof: vault.ProofSession, Debits: []vault.Debit{d}}}
	return s, newGateway(s)
}

func callTo(id, args string) *vault.Call {
	c := call(id)
	c.Args = vault.MustArgs(args)
	return c
}

// TestDistinct reads as the specification of counters of different recipients and
// hosts: calls in order, and whether each one passes under a limit of two.
func TestDistinct(t *testing.T) {
	type step struct {
		args string
		ok   bool
	}
	for _, tt := range []struct {
		name  string
		unit  string
		steps []step
	}{
		{"the third recipient is one too many", vault.UnitRecipients, []step{{`{"to":"a"}`, true}, {`{"to":"b"}`, true}, {`{"to":"c"}`, false}}},
		{"the same recipient again costs nothing", vault.UnitRecipients, []step{{`{"to":"a"}`, true}, {`{"to":"b"}`, true}, {`{"to":"a"}`, true}, {`{"to":"b"}`, true}}},
		{"a call to nobody costs nothing", vault.UnitRecipients, []step{{`{"to":"a"}`, true}, {`{"to":"b"}`, true}, {`{}`, true}}},
		{"a refused recipient stays new", vault.UnitRecipients, []step{{`{"to":"a"}`, true}, {`{"to":"b"}`, true}, {`{"to":"c"}`, false}, {`{"to":"c"}`, false}}},
		{"hosts count apart from recipients", vault.UnitHosts, []step{{`{"to":"a"}`, true}, {`{"to":"b"}`, true}, {`{"to":"c"}`, true}, {`{"host":"x"}`, true}, {`{"host":"y"}`, true}, {`{"host":"z"}`, false}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, g := budgeted(vault.Debit{Counter: "l/n", Limit: 2, Unit: tt.unit})
			for i, st := range tt.steps {
				_, err := g.Handle(t.Context(), callTo(strconv.Itoa(i), st.args), nil)
				if code := codeOf(err); (code == "") != st.ok || !st.ok && code != vault.CodeCapabilityBudget {
					t.Errorf("step %d, %s: %v", i, st.args, err)
				}
			}
			if n := g.Tasks.Spent("l/n"); n > 2 {
				t.Errorf("%d counted under a limit of 2", n)
			}
		})
	}
}

// What the ledger says of earlier lives counts: how many, and who they were.
func TestDistinctAfterRestart(t *testing.T) {
	_, g := budgeted(vault.Debit{Counter: "l/n", Limit: 2, Unit: vault.UnitRecipients})
	g.Tasks.Restore(map[string]int64{"l/n": 2}, map[string][]string{"l/n": {"a"}}, nil)
	if _, err := g.Handle(t.Context(), callTo("1", `{"to":"a"}`), nil); err != nil {
		t.Errorf("a recipient from before: %v", err)
	}
	// b was reached too, and its record can no longer be read: it counts again.
	if _, err := g.Handle(t.Context(), callTo("2", `{"to":"b"}`), nil); codeOf(err) != vault.CodeCapabilityBudget {
		t.Errorf("a recipient that nobody remembers: %v", err)
	}
}

// TestWall reserves the longest a call may run, gives back what it did not use,
// and cuts it when its time is over.
func TestWall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, g := budgeted(vault.Debit{Counter: "l/ms", Limit: 10_000, Unit: vault.UnitWall})
		g.CallTime = 6 * time.Second
		s.OnRun = func() { time.Sleep(2 * time.Second) }
		if _, err := g.Handle(t.Context(), call("1"), nil); err != nil {
			t.Fatal(err)
		}
		if n := g.Tasks.Spent("l/ms"); n != 2000 {
			t.Errorf("spent %d ms, want 2000", n)
		}
		// One runs for as long as it likes: 6 s are reserved, so another gets what is
		// left, and a third nothing.
		s.OnRun = nil
		s.Block = make(chan struct{})
		var wg sync.WaitGroup
		var codes [2]vault.Code
		for i := range codes {
			wg.Go(func() {
				_, err := g.Handle(t.Context(), call("long "+strconv.Itoa(i)), nil)
				codes[i] = codeOf(err)
			})
		}
		synctest.Wait()
		if _, err := g.Handle(t.Context(), call("third"), nil); codeOf(err) != vault.CodeCapabilityBudget {
			t.Errorf("a call without time: %v", err)
		}
		wg.Wait()
		for _, c := range codes {
			if c != vault.CodeCapabilityBudget {
				t.Errorf("a call that outran its time: %q", c)
			}
		}
		if n := g.Tasks.Spent("l/ms"); n != 10_000 {
			t.Errorf("spent %d ms, want all of it", n)
		}
		checkSettled(t, s, "l/ms", 10_000)
	})
}

// checkSettled adds up what the records say of a counter, as recovery does.
func checkSettled(t *testing.T, s *vaulttest.Stages, counter string, want int64) {
	t.Helper()
	var sum int64
	for _, e := range s.Events() {
		for _, d := range e.Debits {
			if d.Counter == counter {
				sum += d.Amount
			}
		}
	}
	if sum != want {
		t.Errorf("the ledger says %d, want %d", sum, want)
	}
}

// Sixty-four sub-agents race for what is left of each kind of budget. None is ever
// overdrawn, and what the records say is what the counters say.
func TestBudgetsLinearise(t *testing.T) {
	const agents, rounds = 64, 20
	s := &vaulttest.Stages{OnPolicy: vault.Allowed(), Grant: vault.Grant{Task: "t-1", Agent: "a", Proof: vault.ProofSession, Debits: []vault.Debit{
		{Counter: "root/calls", Amount: 1, Limit: 500, Unit: "calls", Kept: true},
		{Counter: "root/sum", Amount: 90, Limit: 10_000, Unit: "EUR·10^-6"},
		{Counter: "root/recipients", Limit: 10, Unit: vault.UnitRecipients},
	}}}
	g := newGateway(s)
	var passed atomic.Int64
	var wg sync.WaitGroup
	for a := range agents {
		wg.Go(func() {
			for r := range rounds {
				_, err := g.Handle(t.Context(), callTo(fmt.Sprintf("%d-%d", a, r), fmt.Sprintf(`{"to":"r%d"}`, (a*7+r)%25)), nil)
				switch codeOf(err) {
				case "":
					passed.Add(1)
				case vault.CodeCapabilityBudget, vault.CodeBusy:
				default:
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := passed.Load(); n == 0 || n > 10_000/90 {
		t.Errorf("%d calls of 90 passed under a sum of 10,000", n)
	}
	for counter, limit := range map[string]int64{"root/calls": 500, "root/sum": 10_000, "root/recipients": 10} {
		n := g.Tasks.Spent(counter)
		if n > limit {
			t.Errorf("%s: %d of %d", counter, n, limit)
		}
		checkSettled(t, s, counter, n)
	}
}

// TestSignatureByRisk holds proofs against the risk that the catalogue knows.
func TestSignatureByRisk(t *testing.T) {
	for _, tt := range []struct {
		name  string
		must  bool
		at    vault.Risk
		proof vault.ProofKind
		ok    bool
	}{
		{"nothing is demanded", false, 0, vault.ProofBearer, true},
		{"a signature is demanded and there", true, vault.RiskHigh, vault.ProofSignature, true},
		{"a signature is demanded and a session is not one", true, vault.RiskHigh, vault.ProofSession, false},
		{"a demand from low risk on holds for high risk", true, vault.RiskLow, vault.ProofChannel, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &vaulttest.Stages{OnPolicy: vault.Allowed(), Grant: vault.Grant{Task: "t-1", Agent: "a", Proof: tt.proof, MustSign: tt.must, SignAt: tt.at}}
			g := newGateway(s)
			_, err := g.Handle(t.Context(), call("1"), nil)
			if (err == nil) != tt.ok || err != nil && codeOf(err) != vault.CodeProof {
				t.Error(err)
			}
		})
	}
}

func codeOf(err error) vault.Code {
	if err == nil {
		return ""
	}
	return vault.DenialOf(err).Reason.Code
}

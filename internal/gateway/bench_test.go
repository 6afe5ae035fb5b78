package gateway_test

import (
	"context"
	"log/slog"
	"strconv"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/gateway"
)

// idle is every stage, doing nothing: what is left is the gateway itself.
type idle struct{ grant vault.Grant }

func (s *idle) Verify(context.Context, *vault.Call) (vault.Grant, error) { return s.grant, nil }
func (s *idle) Reverify(context.Context, *vault.Call, *vault.Grant) (vault.Grant, error) {
	return s.grant, nil
}
func (s *idle) Recheck(context.Context, *vault.Grant) error { return nil }
func (s *idle) Revoked(*vault.Grant) <-chan struct{}        { return nil }

func (s *idle) Check(context.Context, *vault.Facts) vault.Decision { return vault.Allowed() }
func (s *idle) Reach(*vault.Facts) (recipients, hosts []string)    { return nil, nil }
func (s *idle) Taint(vault.AgentID, vault.Label)                   {}
func (s *idle) Label(context.Context, *vault.Facts, []byte) vault.Label {
	return vault.Clean()
}

func (s *idle) Decide(context.Context, *vault.Facts) vault.Decision { return vault.Allowed() }
func (s *idle) DecideResult(context.Context, *vault.Facts, []byte, bool) vault.Decision {
	return vault.Allowed()
}
func (s *idle) Revision() vault.Digest { return vault.Digest{1} }

func (s *idle) ScanArgs(context.Context, *vault.Facts) vault.Decision { return vault.Allowed() }
func (s *idle) ScanResult(_ context.Context, _ *vault.Facts, raw []byte) ([]byte, vault.Decision) {
	return raw, vault.Allowed()
}

func (s *idle) Grade(context.Context, *vault.Facts) (vault.Grade, bool, error) {
	return vault.GradeB, false, nil
}

func (s *idle) Run(context.Context, *vault.Facts, vault.Stream) (vault.Result, error) {
	return vault.Result{Raw: []byte(`{"content":[]}`)}, nil
}

func (s *idle) Commit(context.Context, *vault.Event) (vault.Receipt, error) {
	return vault.Receipt{}, nil
}

func (s *idle) Sequence(context.Context, *vault.Event) (vault.Receipt, error) {
	return vault.Receipt{}, nil
}

// nobody approves nothing; a call that is allowed never gets there.
type nobody struct{}

func (nobody) Question(context.Context, *vault.Facts, vault.Decision, vault.Digest) (vault.Question, error) {
	return vault.Question{}, vault.NewDenial(vault.CodeApprovalNobody, "", nil)
}
func (nobody) Show(context.Context, vault.Question) error { return nil }
func (nobody) Answer(context.Context, vault.Question, time.Duration) (vault.Approval, error) {
	return vault.Approval{}, vault.NewDenial(vault.CodeApprovalNobody, "", nil)
}

func (nobody) Recheck(context.Context, vault.Approval, *vault.Facts, vault.Decision, vault.Digest) error {
	return nil
}
func (nobody) Spend(context.Context, vault.Approval) {}

// shelf is a catalogue with one tool.
type shelf struct{}

func (shelf) Resolve(_ context.Context, call *vault.Call, _ *vault.Grant) (vault.Tool, error) {
	return vault.Tool{Server: "s", ID: call.Target.Server, Name: call.Target.Name}, nil
}
func (shelf) Recheck(context.Context, *vault.Tool) error                          { return nil }
func (shelf) CheckResult(context.Context, *vault.Call, *vault.Tool, []byte) error { return nil }

// BenchmarkHandle is the way of a call through all stages without their work. With
// ids of the client's own, closed calls are remembered.
func BenchmarkHandle(b *testing.B) {
	for _, generated := range []bool{true, false} {
		b.Run("generated="+strconv.FormatBool(generated), func(b *testing.B) {
			s := &idle{vault.Grant{Task: "t-1", Agent: "spiffe://test/agent/a/b/c", Proof: vault.ProofSession, Debits: []vault.Debit{{Counter: "l/calls", Amount: 1, Limit: 1 << 50, Unit: "calls", Kept: true}}}}
			g := &gateway.Gateway{
				Verifier: s, Catalogue: shelf{}, Flow: s, Policy: s, Scanner: s, Approver: nobody{}, Runner: s, Recorder: s,
				Tasks: new(gateway.Tasks), Log: slog.New(slog.DiscardHandler),
			}
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				c := call("c-" + strconv.Itoa(n))
				c.Generated = generated
				n++
				if _, err := g.Handle(b.Context(), c, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

package gateway

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/pilox/vault"
)

// admit is the last step before the effect. Under the task's lock it checks again
// everything that may have changed since it was decided, takes the debits and
// marks the approvals as spent; then it writes the intent and waits until that is
// durable.
//
// The intent carries the debits and the spent approvals, so the one record is the
// whole transaction: after a crash the counters and the spent approvals are
// rebuilt from intents, and neither can exist without the other. The lock is not
// held while the disk is: that would allow one durable write at a time per task.
func (g *Gateway) admit(ctx context.Context, f *vault.Facts, e *entry, d decided, approvals []vault.Approval) (admission, error) {
	debits := f.Grant.Debits
	for _, a := range approvals {
		debits = append(debits[:len(debits):len(debits)], vault.Debit{Counter: "approval/" + a.ID, Amount: 1, Limit: 1, Unit: "uses", Kept: true})
	}
	var reach Reach
	if needsReach(debits) {
		reach.Recipients, reach.Hosts = g.Flow.Reach(f)
	}
	err := g.Tasks.locked(f.Call.Task, func() (err error) {
		if err := g.recheck(ctx, f, d, approvals); err != nil {
			return err
		}
		debits, err = g.Tasks.debit(debits, reach, g.callTime())
		return err
	})
	if err != nil {
		return admission{}, err
	}
	receipt, err := g.Recorder.Commit(ctx, intentEvent(f, d, debits))
	if err != nil {
		// Nothing was dispatched, so everything is given back. Should the intent be
		// in the ledger after all, recovery closes it as unknown and keeps the debit.
		g.Tasks.giveBack(debits)
		out := vault.NewDenial(vault.CodeLedger, "", err)
		out.Retry = vault.RetryAfter
		return admission{}, out
	}
	for _, a := range approvals {
		g.Approver.Spend(ctx, a)
	}
	g.Tasks.admitted(e, receipt.Index)
	return admission{receipt: receipt, debits: debits}, nil
}

// callTime is what a call reserves of a budget of time.
func (g *Gateway) callTime() time.Duration {
	if g.CallTime == 0 {
		return time.Minute
	}
	return g.CallTime
}

// An admission is what the intent of a call says: where it stands and what it took.
type admission struct {
	receipt vault.Receipt
	debits  []vault.Debit
	ran     time.Duration // set once the effect is over
}

// recheck holds against the present what was decided in the past.
func (g *Gateway) recheck(ctx context.Context, f *vault.Facts, d decided, approvals []vault.Approval) error {
	return guard("recheck", func() error {
		if err := ctx.Err(); err != nil {
			return vault.NewDenial(vault.CodeCancelled, "", err)
		}
		if err := g.Verifier.Recheck(ctx, f.Grant); err != nil {
			return err
		}
		if err := g.Catalogue.Recheck(ctx, f.Tool); err != nil {
			return err
		}
		if d.policy != g.Policy.Revision() {
			// The policy changed while the call was on its way: it must allow too, and
			// ask for nothing, since nobody would do it any more.
			switch v := g.Policy.Decide(ctx, f); {
			case v.Verdict == vault.Deny:
				return denial(v)
			case v.Verdict == vault.Ask || len(v.Obligations) > 0:
				out := vault.NewDenial(vault.CodeBusy, "", errors.New("the policy changed and has to decide again"))
				out.Retry = vault.RetryAfter
				return out
			}
		}
		if level := g.Autonomy.asks(f); level.Verdict != vault.Allow {
			// The level may have been lowered while the call was on its way, and ask
			// somebody who has not been asked.
			if now := d.decision.Join(level); now.Verdict != d.decision.Verdict || !slices.Equal(now.Groups, d.decision.Groups) {
				out := vault.NewDenial(vault.CodeBusy, "", errors.New("the autonomy of the task was lowered and the call has to be decided again"))
				out.Retry = vault.RetryAfter
				return out
			}
		}
		for _, a := range approvals {
			if err := g.Approver.Recheck(ctx, a, f, d.decision, d.policy); err != nil {
				return err
			}
		}
		return nil
	})
}

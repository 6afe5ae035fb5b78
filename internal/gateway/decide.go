package gateway

import (
	"context"

	"github.com/pilox/vault"
)

// permit is the result of a call whose effect another gateway has.
var permit = vault.Result{Raw: []byte(`{"decision":true}`)}

// Decide takes a call through every stage like [Gateway.Handle] and leaves the
// effect to whoever asked, typically another gateway. The answer is given after the
// intent is durable and the budgets are debited, because from then on the effect can
// happen. What became of it nobody here knows, so the outcome on record says only
// that the permit was handed out, with reason call.permitted, and a budget of time
// keeps what was reserved for the call. check may be nil; it is asked last, and its
// error is a call that failed before anything was sent.
//
// What only whoever has the effect could meet is refused: other arguments, and a
// redaction of a result that nobody here sees. Rules about results are asked with a
// result that is null.
//
// A call id is used up by its permit: asking again with the same id gets the same
// answer and costs nothing.
func (g *Gateway) Decide(ctx context.Context, call *vault.Call, check func(context.Context, *vault.Call) error) (vault.Result, error) {
	f := &vault.Facts{Call: call, Grant: new(vault.Grant), Tool: new(vault.Tool), Outside: true}
	return g.take(ctx, f, func(ctx context.Context, _ *stream) (vault.Result, error) {
		if check != nil {
			if err := check(ctx, f.Call); err != nil {
				return vault.Result{}, err
			}
		}
		if d := g.Policy.DecideResult(ctx, f, nil, false); d.Verdict != vault.Allow {
			return vault.Result{}, denial(d)
		}
		return permit, nil
	}, nil)
}

package gateway

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/pilox/vault"
)

// errTimeSpent is the cause of a call that is cancelled because it has run for all
// the time that its capability leaves it.
var errTimeSpent = errors.New("the capability's budget of time is spent")

// errRevoked is the cause of a call that is cancelled because its authority is gone.
var errRevoked = errors.New("revoked while in flight")

// denial turns a decision that does not let a call through into the answer.
func denial(d vault.Decision) *vault.Denial {
	r := d.Reason()
	out := vault.NewDenial(r.Code, r.Path, nil)
	out.Reason.Detail = r.Detail
	return out
}

// withheld is the answer to a call whose effect happened and whose result stays here.
func withheld(r vault.Reason) *vault.Denial {
	d := vault.NewDenial(vault.CodeResultWithheld, r.Path, nil)
	d.Reason.Detail = fmt.Sprintf("%s %s", r.Code, r.Detail)
	return d
}

// revokedDenial is the answer to a call whose authority was revoked in flight.
func revokedDenial(d *vault.Denial) *vault.Denial {
	r := vault.NewDenial(vault.CodeCapabilityRevoked, "", d.Err)
	r.Executed = d.Executed
	return r
}

// transformed returns the arguments that the obligations of d put in place of
// the call's. Two different ones conflict.
func transformed(d vault.Decision) (args vault.Args, ok bool, err error) {
	for _, o := range d.Obligations {
		if o.Type != vault.ObligeTransform {
			continue
		}
		if o.Args.IsZero() || ok && o.Args.Digest() != args.Digest() {
			return vault.Args{}, false, vault.NewDenial(vault.CodePolicyError, "", errors.New("conflicting transforms"))
		}
		args, ok = o.Args, true
	}
	return args, ok, nil
}

// lowered joins the labels that stages want on the result.
func lowered(obligations []vault.Obligation) *vault.Label {
	var out *vault.Label
	for _, o := range obligations {
		if o.Type != vault.ObligeLabel {
			continue
		}
		l := o.Label
		if out != nil {
			l = out.Join(l)
		}
		out = &l
	}
	return out
}

func withoutTransforms(in []vault.Obligation) []vault.Obligation {
	var out []vault.Obligation
	for _, o := range in {
		if o.Type != vault.ObligeTransform {
			out = append(out, o)
		}
	}
	return out
}

// knownObligations refuses a decision with an obligation that nobody will meet.
// outside says that another gateway has the effect: it sends the arguments that it
// has and gets the result.
func knownObligations(d vault.Decision, outside bool) error {
	for _, o := range d.Obligations {
		switch o.Type {
		case vault.ObligeTransform, vault.ObligeRedact:
			if outside {
				return vault.NewDenial(vault.CodePolicyError, "", fmt.Errorf("obligation %q is for who has the effect, and that is another gateway", o.Type))
			}
		case vault.ObligeLabel, vault.ObligeNotify:
		default:
			return vault.NewDenial(vault.CodePolicyError, "", fmt.Errorf("unknown obligation %q", o.Type))
		}
	}
	return nil
}

// guard runs one step of a call and turns a panic into a denial, so that a bug in
// a stage refuses one call instead of ending the daemon or letting the call through.
func guard(step string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = vault.NewDenial(vault.CodeInternal, "", fmt.Errorf("%s panicked: %v\n%s", step, p, debug.Stack()))
		}
	}()
	return f()
}

// cancelOnRevoke cancels a call when its authority is revoked. The function it
// returns ends the watch and waits for it.
func cancelOnRevoke(revoked <-chan struct{}, cancel context.CancelCauseFunc) func() {
	if revoked == nil {
		return func() {}
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-revoked:
			cancel(errRevoked)
		case <-stop:
		}
	}()
	return func() {
		close(stop)
		<-done
	}
}

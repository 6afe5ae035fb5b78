package daemon

import (
	"context"
	"encoding/json"

	"github.com/pilox/vault"
)

// A runner hands a call to the part that has its effect.
type runner struct{ d *Daemon }

// Grade says what isolation the target of a call runs under.
func (r *runner) Grade(_ context.Context, f *vault.Facts) (vault.Grade, bool, error) {
	switch f.Call.Kind {
	case vault.KindTool, vault.KindResource, vault.KindPrompt, vault.KindServerRequest:
		if f.Tool.Installed {
			return r.d.jail.Grade(), false, nil
		}
		return vault.GradeNone, true, nil
	case vault.KindEgress:
		return vault.GradeNone, true, nil
	case vault.KindExec:
		return r.d.jail.Grade(), false, nil
	case vault.KindSecret, vault.KindFile, vault.KindModel, vault.KindAgent:
	}
	return vault.GradeNone, false, vault.NewDenial(vault.CodeCapabilityTarget, "", nil)
}

// Run has the effect of an admitted call.
func (r *runner) Run(ctx context.Context, f *vault.Facts, out vault.Stream) (vault.Result, error) {
	switch f.Call.Kind {
	case vault.KindTool, vault.KindResource, vault.KindPrompt:
		return r.d.upstreams.Run(ctx, f, out)
	case vault.KindEgress:
		return r.d.egress.Run(ctx, f, out)
	case vault.KindServerRequest, vault.KindExec, vault.KindSecret, vault.KindFile, vault.KindModel, vault.KindAgent:
	}
	return vault.Result{}, vault.NewDenial(vault.CodeCapabilityTarget, "", nil)
}

// deaf is the caller's side of a call that nobody listens to while it runs: a
// command line. Frames are dropped, requests of the server are refused.
type deaf struct{}

// Notify drops the frame.
func (deaf) Notify(context.Context, string, json.RawMessage) error { return nil }

// Request refuses: there is nobody to ask.
func (deaf) Request(context.Context, string, json.RawMessage) (json.RawMessage, error) {
	return nil, vault.NewDenial(vault.CodeCapabilityTarget, "", nil)
}

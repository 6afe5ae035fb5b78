package policy

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/open-policy-agent/opa/v1/rego"

	"github.com/pilox/vault"
)

// Yardstick returns a function that asks query about a call the way OPA's
// documentation shows: prepared once, with the same document as Go maps, and without
// our bounds. It is what a decision is measured beside and decides nothing.
func (p *Policy) Yardstick(ctx context.Context, query string, f *vault.Facts) (func(context.Context) error, error) {
	files, err := p.cfg.Bundles[0].read()
	if err != nil {
		return nil, err
	}
	r, err := compile(ctx, files)
	if err != nil {
		return nil, err
	}
	prepared, err := rego.New(rego.Query(query), rego.Compiler(r.compiler), rego.Store(r.store)).PrepareForEval(ctx)
	if err != nil {
		return nil, err
	}
	raw, err := p.Input(f)
	if err != nil {
		return nil, err
	}
	var doc map[string]any
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		rs, err := prepared.Eval(ctx, rego.EvalInput(doc))
		if err == nil && len(rs) != 1 {
			err = errors.New("the query is undefined")
		}
		return err
	}, nil
}

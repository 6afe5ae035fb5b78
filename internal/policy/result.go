package policy

import (
	"context"

	"github.com/pilox/vault"
)

// maxResult bounds the results that rules see. A larger one is null in the event,
// with its size beside it: a rule about content cannot pass over what it did not
// see.
const maxResult = 64 << 10

// DecideResult evaluates the hooks at tool.result. The event is {is_error, size, result}.
func (p *Policy) DecideResult(ctx context.Context, f *vault.Facts, raw []byte, isError bool) vault.Decision {
	if !p.Hooked(AtToolResult) {
		return vault.Allowed()
	}
	event := map[string]any{"is_error": isError, "size": len(raw), "result": nil}
	if len(raw) <= maxResult {
		if doc, err := vault.ParseValue(raw); err == nil {
			event["result"] = native(doc.Root())
		}
	}
	return p.At(ctx, AtToolResult, f, event)
}

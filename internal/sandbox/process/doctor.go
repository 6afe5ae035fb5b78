package process

import (
	"context"

	"github.com/pilox/vault/internal/sandbox"
)

// Diagnose returns what `pvault doctor` prints about isolation: the report of a
// fresh self-test, the backends this version lacks, and the host facts behind
// them. A self-test that leaks is in the report too, with grade none; the error
// says it aloud.
func Diagnose(ctx context.Context, cfg Config) (sandbox.Doctor, error) {
	rep, err := diagnose(ctx, cfg)
	return sandbox.Doctor{
		Backends: []Report{rep, sandbox.NotBuilt("wasm"), sandbox.NotBuilt("microvm")},
		Host:     sandbox.ProbeHost(),
	}, err
}

package daemon

import (
	"context"
	"os"

	"github.com/pilox/vault/internal/policy"
)

// What pvault policy does without a daemon.

// TestPolicy runs the tests of a bundle.
func TestPolicy(ctx context.Context, dir string) (policy.Suite, error) { return policy.Test(ctx, dir) }

// LintPolicy loads what the configuration wires and says what deserves a second
// look.
func LintPolicy(ctx context.Context, conf Policy) ([]policy.Finding, error) {
	c, err := policyConfig(&conf)
	if err != nil {
		return nil, err
	}
	return policy.Lint(ctx, c)
}

// EvalPolicy evaluates a query over an input document, with the bundles of the
// configuration or, if dir is not empty, with that one, signed or not.
func EvalPolicy(ctx context.Context, conf Policy, dir, query string, input []byte) ([]byte, error) {
	if dir != "" {
		return policy.Try(ctx, policy.Config{Bundles: []policy.Bundle{policy.Bundle{Dir: dir}.OnTrial()}}, query, input)
	}
	conf.Hooks = nil
	c, err := policyConfig(&conf)
	if err != nil {
		return nil, err
	}
	return policy.Try(ctx, c, query, input)
}

// SignPolicy signs a bundle with the private key in a PEM file.
func SignPolicy(dir, keyID, algorithm, keyFile string) ([]string, error) {
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, err
	}
	return policy.Sign(dir, keyID, algorithm, key)
}

// VerifyPolicy holds a bundle against the public key in a PEM file and returns how
// many files count.
func VerifyPolicy(dir, keyID, algorithm, keyFile string) (int, error) {
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return 0, err
	}
	return policy.Verify(dir, policy.Key{ID: keyID, Algorithm: algorithm, PEM: key})
}

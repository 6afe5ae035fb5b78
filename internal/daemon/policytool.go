package daemon

import (
	"context"
	"os"

	"github.com/pilox/vault/internal/policy"
)

// What pvault policy does without a daemon.

// TestPolicy runs the tests of a bundle.
func TestPolicy(ctx context.Context, at string) (policy.Suite, error) { return policy.Test(ctx, at) }

// LintPolicy loads what the configuration wires and says what deserves a second
// look. If bundle is not empty, it stands in for those of the configuration, signed
// or not.
func LintPolicy(ctx context.Context, conf Policy, bundle string) ([]policy.Finding, error) {
	c, err := trialConfig(&conf, bundle)
	if err != nil {
		return nil, err
	}
	return policy.Lint(ctx, c)
}

// trialConfig is policyConfig with another bundle in the place of the configured
// ones, if it is not empty.
func trialConfig(conf *Policy, bundle string) (policy.Config, error) {
	if bundle == "" {
		return policyConfig(conf)
	}
	c, err := policyConfig(&Policy{Hooks: conf.Hooks})
	c.Bundles = []policy.Bundle{policy.BundleAt(bundle).OnTrial()}
	return c, err
}

// EvalPolicy evaluates a query over an input document, with the bundles of the
// configuration or, if bundle is not empty, with that one, signed or not.
func EvalPolicy(ctx context.Context, conf Policy, bundle, query string, input []byte) ([]byte, error) {
	conf.Hooks = nil
	c, err := trialConfig(&conf, bundle)
	if err != nil {
		return nil, err
	}
	return policy.Try(ctx, c, query, input)
}

// SignPolicy signs a bundle with the private key in a PEM file.
func SignPolicy(bundle, keyID, algorithm, keyFile string) ([]string, error) {
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, err
	}
	return policy.Sign(bundle, keyID, algorithm, key)
}

// VerifyPolicy holds a bundle against the public key in a PEM file and returns how
// many files count.
func VerifyPolicy(bundle, keyID, algorithm, keyFile string) (int, error) {
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return 0, err
	}
	return policy.Verify(bundle, policy.Key{ID: keyID, Algorithm: algorithm, PEM: key})
}

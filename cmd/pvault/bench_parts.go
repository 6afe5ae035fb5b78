package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/pilox/vault/internal/daemon"
)

// policyArea measures a decision with one hook, beside OPA as its documentation shows it.
func (b *bench) policyArea(ctx context.Context) error {
	return b.inDir(func(dir string) error {
		b.progress("policy: one Rego hook")
		if err := os.WriteFile(filepath.Join(dir, "bench.rego"), []byte(benchRules), 0o600); err != nil {
			return err
		}
		decide, alone, err := daemon.PolicyProbe(ctx, dir)
		if err != nil {
			return err
		}
		opa := b.each(ctx, func() (step, error) { return alone, nil })
		b.add("policy.rego", b.each(ctx, func() (step, error) { return decide, nil }), unitTime, "OPA alone", opa, 45_000)
		return nil
	})
}

// flowArea measures a check of labels and provenance.
func (b *bench) flowArea(ctx context.Context) error {
	b.progress("flow: labels and provenance")
	check := daemon.FlowProbe()
	b.add("flow.check", b.each(ctx, func() (step, error) { return check, nil }), unitTime, "", 0, 0)
	return nil
}

// inDir runs f with a directory that is gone afterwards.
func (b *bench) inDir(f func(dir string) error) error {
	dir, err := os.MkdirTemp(b.dir, "pvault-bench-")
	if err != nil {
		return err
	}
	return errors.Join(f(dir), os.RemoveAll(dir))
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pilox/vault/evidence"
	"github.com/pilox/vault/internal/daemon"
)

// policyArea measures a decision with one hook.
func (b *bench) policyArea(ctx context.Context) error {
	return b.inDir(func(dir string) error {
		b.progress("policy: one Rego hook")
		if err := os.WriteFile(filepath.Join(dir, "bench.rego"), []byte(benchRules), 0o600); err != nil {
			return err
		}
		decide, err := daemon.PolicyProbe(ctx, dir)
		if err != nil {
			return err
		}
		b.add("policy.rego", b.each(ctx, func() (step, error) { return decide, nil }), unitTime, "", 0, 45_000)
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

// Sizes of the ledger area.
const (
	ledgerProducers = 64
	ledgerTime      = 3 * time.Second
	ledgerBare      = time.Second
)

// ledgerArea measures durable events and their verification.
func (b *bench) ledgerArea(ctx context.Context) error {
	return b.inDir(func(dir string) (err error) {
		b.progress(fmt.Sprintf("ledger: %d producers for %v", ledgerProducers, ledgerTime))
		yard, err := daemon.NewYardstick(ctx, dir)
		if err != nil {
			return err
		}
		bare := 0
		start := time.Now()
		for time.Since(start) < ledgerBare {
			if err := yard.Write(ctx, ledgerProducers); err != nil {
				return errors.Join(err, yard.Close())
			}
			bare += ledgerProducers
		}
		base := float64(bare) / time.Since(start).Seconds()
		if err := yard.Close(); err != nil {
			return err
		}
		l, err := daemon.NewLedgerProbe(ctx, dir)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, l.Close()) }()
		rate, late, err := commits(ctx, l)
		if err != nil {
			return err
		}
		b.add("ledger.sqlite64", rate, unitRate, "the bare store, rows in batches of 64", base, 25_000)
		b.add("ledger.sqlite64.p99", late, unitTime, "", 0, 10_000_000)
		b.progress("ledger: verify a bundle of it")
		return b.verification(ctx, l)
	})
}

// commits has producers that wait for durability, and returns the events a second
// and the 99th percentile of one.
func commits(ctx context.Context, l *daemon.LedgerProbe) (rate, late float64, err error) {
	var done atomic.Uint64
	all := make([]times, ledgerProducers)
	errs := make([]error, ledgerProducers)
	var wg sync.WaitGroup
	start := time.Now()
	for i := range ledgerProducers {
		wg.Go(func() {
			for time.Since(start) < ledgerTime {
				at := time.Now()
				if errs[i] = l.Commit(ctx, i); errs[i] != nil {
					return
				}
				all[i] = append(all[i], time.Since(at))
				done.Add(1)
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	var list times
	for _, t := range all {
		list = append(list, t...)
	}
	return float64(done.Load()) / took.Seconds(), list.percentile(99), errors.Join(errs...)
}

// verification verifies a bundle of the whole ledger on one core.
func (b *bench) verification(ctx context.Context, l *daemon.LedgerProbe) error {
	bundle, err := l.Bundle(ctx)
	if err != nil {
		return err
	}
	best, records := time.Duration(0), uint64(0)
	for range 5 {
		start := time.Now()
		r, err := evidence.VerifyBytes(bundle, evidence.Options{Keys: []string{l.VerifierKey()}})
		took := time.Since(start)
		if err != nil {
			return err
		}
		if !r.Intact {
			return fmt.Errorf("the bundle does not verify: %s", r.Detail)
		}
		records = r.Records
		if best == 0 || took < best {
			best = took
		}
	}
	leaf := make([]byte, 850)
	start := time.Now()
	for range records {
		evidence.HashLeaf(leaf)
	}
	hash := time.Since(start)
	b.add("ledger.verify", float64(records)/best.Seconds(), unitRate, "only hashing as many leaves", float64(records)/hash.Seconds(), 1_000_000)
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

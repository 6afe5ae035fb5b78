package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pilox/vault/evidence"
	"github.com/pilox/vault/internal/daemon"
)

// Sizes of the ledger area.
const (
	ledgerProducers = 64
	ledgerMany      = 1024
	ledgerTime      = 3 * time.Second
	ledgerBare      = time.Second
)

// errNoPostgres means that the host has no PostgreSQL to start.
var errNoPostgres = errors.New("no PostgreSQL under /usr/lib/postgresql, and --postgres names none")

// ledgerArea measures durable events and their verification.
func (b *bench) ledgerArea(ctx context.Context) error {
	return b.inDir(func(dir string) error {
		if err := b.ledgerSQLite(ctx, dir); err != nil {
			return err
		}
		at, stop := b.postgres, func() {}
		if at == "" {
			b.progress("ledger: start a PostgreSQL")
			var err error
			at, stop, err = startPostgres(ctx, b.dir)
			if errors.Is(err, errNoPostgres) {
				b.progress(err.Error())
				return b.ledgerWAL(ctx, dir, "", 0)
			}
			if err != nil {
				return err
			}
		}
		defer stop()
		return b.ledgerPostgres(ctx, dir, at)
	})
}

// ledgerSQLite measures the ledger on SQLite beside the bare store, and verifies a
// bundle of it.
func (b *bench) ledgerSQLite(ctx context.Context, dir string) (err error) {
	b.progress(fmt.Sprintf("ledger: %d producers for %v on SQLite", ledgerProducers, ledgerTime))
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
	l, err := daemon.NewLedgerProbe(ctx, daemon.ProbeConfig{Dir: dir})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	rate, late, err := commits(ctx, ledgerProducers, l.Commit)
	if err != nil {
		return err
	}
	b.add("ledger.sqlite64", rate, unitRate, "the bare store, rows in batches of 64", base, 25_000)
	b.add("ledger.sqlite64.p99", late, unitTime, "", 0, 10_000_000)
	b.progress("ledger: verify a bundle of it")
	return b.verification(ctx, l)
}

// ledgerPostgres measures the ledger on a PostgreSQL beside the chain that locks
// its head for each event.
func (b *bench) ledgerPostgres(ctx context.Context, dir, at string) error {
	b.progress(fmt.Sprintf("ledger: %d producers for %v on PostgreSQL, a naive chain", ledgerProducers, ledgerTime))
	naive, err := daemon.NewNaiveProbe(ctx, at)
	if err != nil {
		return err
	}
	base, late, err := commits(ctx, ledgerProducers, func(ctx context.Context, _ int) error { return naive.Commit(ctx) })
	if err = errors.Join(err, naive.Close()); err != nil {
		return err
	}
	const baseline = "a chain that locks its head for each event, 64 producers"
	b.add("ledger.pg64_naive", base, unitRate, "", 0, 0)
	b.add("ledger.pg64_naive.p99", late, unitTime, "", 0, 0)
	for _, m := range []struct {
		name      string
		producers int
		goal      float64
		late      float64
	}{
		{"ledger.pg64", ledgerProducers, 40_000, 5_000_000},
		{"ledger.pg1024", ledgerMany, 80_000, 30_000_000},
	} {
		b.progress(fmt.Sprintf("ledger: %d producers for %v on PostgreSQL", m.producers, ledgerTime))
		l, err := daemon.NewLedgerProbe(ctx, daemon.ProbeConfig{Dir: filepath.Join(dir, m.name), Store: at, Tenant: m.name})
		if err != nil {
			return err
		}
		rate, late, err := commits(ctx, m.producers, l.Commit)
		if err = errors.Join(err, l.Close()); err != nil {
			return err
		}
		b.add(m.name, rate, unitRate, baseline, base, m.goal)
		b.add(m.name+".p99", late, unitTime, "", 0, m.late)
	}
	return b.ledgerWAL(ctx, dir, at, base)
}

// ledgerWAL measures the ledger with a local log before the store.
func (b *bench) ledgerWAL(ctx context.Context, dir, at string, base float64) error {
	b.progress(fmt.Sprintf("ledger: %d producers for %v on a local log", ledgerProducers, ledgerTime))
	l, err := daemon.NewLedgerProbe(ctx, daemon.ProbeConfig{Dir: filepath.Join(dir, "wal"), Store: at, Tenant: "wal", WAL: true})
	if err != nil {
		return err
	}
	rate, late, err := commits(ctx, ledgerProducers, l.Commit)
	if err = errors.Join(err, l.Close()); err != nil {
		return err
	}
	baseline := ""
	if base > 0 {
		baseline = "a chain that locks its head for each event, 64 producers"
	}
	b.add("ledger.wal64", rate, unitRate, baseline, base, 90_000)
	b.add("ledger.wal64.p99", late, unitTime, "", 0, 2_000_000)
	return nil
}

// commits has producers that wait for durability, and returns the events a second
// and the 99th percentile of one.
func commits(ctx context.Context, producers int, commit func(context.Context, int) error) (rate, late float64, err error) {
	var done atomic.Uint64
	all := make([]times, producers)
	errs := make([]error, producers)
	var wg sync.WaitGroup
	start := time.Now()
	for i := range producers {
		wg.Go(func() {
			for time.Since(start) < ledgerTime {
				at := time.Now()
				if errs[i] = commit(ctx, i); errs[i] != nil {
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

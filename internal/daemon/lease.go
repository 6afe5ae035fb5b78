package daemon

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/store"
)

// A lease is the right to serve a tenant of which several daemons know. One
// serves and the others wait until it stops or dies, so that budgets, approvals
// and revocations have one owner. Wrong clocks and cut networks may leave two that
// believe they serve; the epoch of the ledger's head lets only one of them record
// an intent, and without a recorded intent nothing runs.
type lease struct {
	rows   *store.Tenant
	holder string
	until  atomic.Int64 // nanoseconds after began, on this process's own clock
	began  time.Time
}

// Times of a lease. A daemon that dies is replaced after leaseTime at most, and
// one that is cut off denies after as long, less what it took to ask.
const (
	leaseTime  = 15 * time.Second
	leaseEvery = 3 * time.Second
	leaseAsk   = 5 * time.Second // for one answer
)

var errNoLease = errors.New("this daemon could not confirm that it serves the tenant; another may have revoked what it would allow")

// StoreSQL returns what prepares a PostgreSQL for daemons, see [store.PostgresSQL].
func StoreSQL() string { return store.PostgresSQL() }

// openLease waits until this daemon may serve. SQLite has one daemon by its lock.
func (d *Daemon) openLease(ctx context.Context) error {
	l := &lease{rows: d.rows, holder: vault.NewCallID(), began: time.Now()}
	d.lease = l
	for waiting := false; ; waiting = true {
		err := l.renew(ctx)
		if err == nil {
			break
		}
		if !errors.Is(err, store.ErrHeld) {
			return err
		}
		if !waiting {
			d.log.InfoContext(ctx, "another daemon serves this tenant; waiting for its lease", "tenant", d.conf.Tenant)
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	loop, stop := context.WithCancel(d.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.keep(loop, d)
	}()
	d.onClose(func() error {
		stop()
		<-done
		ask, end := context.WithTimeout(context.WithoutCancel(ctx), leaseAsk)
		defer end()
		return l.rows.Release(ask, l.holder)
	})
	return nil
}

// keep renews the lease until ctx ends.
func (l *lease) keep(ctx context.Context, d *Daemon) {
	t := time.NewTicker(leaseEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if err := l.renew(ctx); err != nil && ctx.Err() == nil {
			d.log.ErrorContext(ctx, "lease not renewed", "err", err)
		}
	}
}

// renew asks for the lease. It counts from before the question, on the monotonic
// clock, so that it ends here before it ends at the server.
func (l *lease) renew(ctx context.Context) error {
	ctx, stop := context.WithTimeout(ctx, leaseAsk)
	defer stop()
	asked := time.Since(l.began)
	if err := l.rows.Lease(ctx, l.holder, leaseTime); err != nil {
		if errors.Is(err, store.ErrHeld) {
			l.until.Store(0)
		}
		return err
	}
	l.until.Store(int64(asked + leaseTime))
	return nil
}

// confirm returns nil while the lease runs.
func (l *lease) confirm() error {
	if int64(time.Since(l.began)) >= l.until.Load() {
		return errNoLease
	}
	return nil
}

package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
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
	length time.Duration
	owes   bool         // the local log holds what the database has not; set before the last closer
	until  atomic.Int64 // nanoseconds after began, on this process's own clock
	began  time.Time
}

// Times of a lease. A daemon that dies is replaced after leaseTime at most, and
// one that is cut off denies after as long, less what it took to ask.
const (
	leaseTime  = 15 * time.Second
	leaseEvery = 3 * time.Second
	leaseAsk   = 5 * time.Second // for one answer
	// leaseWAL is for a daemon with a local log. No other may go on without what is
	// in it, so its lease ends when the log is empty and it stops, or by hand.
	leaseWAL = 100 * 365 * 24 * time.Hour
)

var errNoLease = errors.New("this daemon could not confirm that it serves the tenant; another may have revoked what it would allow")

// StoreSQL returns what prepares a PostgreSQL for daemons, see [store.PostgresSQL].
func StoreSQL() string { return store.PostgresSQL() }

// openLease waits until this daemon may serve. SQLite has one daemon by its lock.
func (d *Daemon) openLease(ctx context.Context) error {
	for waiting := false; ; waiting = true {
		err := d.tryLease(ctx)
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
}

// tryLease is openLease without the wait: [store.ErrHeld] if another daemon serves.
func (d *Daemon) tryLease(ctx context.Context) error {
	l := &lease{rows: d.rows, holder: vault.NewCallID(), began: time.Now(), length: leaseTime}
	d.lease = l
	if !store.IsPostgres(d.conf.Store) {
		l.until.Store(math.MaxInt64)
		return nil
	}
	if d.conf.Ledger.WAL {
		l.length = leaseWAL
		var err error
		if l.holder, err = d.nameOfLog(l.holder); err != nil {
			return err
		}
	}
	if err := l.renew(ctx); err != nil {
		return err
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
		if l.owes {
			return nil
		}
		ask, end := context.WithTimeout(context.WithoutCancel(ctx), leaseAsk)
		defer end()
		return l.rows.Release(ask, l.holder)
	})
	return nil
}

// nameOfLog returns the name under which this data directory holds its lease,
// which outlives a crash; fresh is for a new one.
func (d *Daemon) nameOfLog(fresh string) (string, error) {
	path := d.path("ledger.wal.holder")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		b = []byte(fresh)
		err = os.WriteFile(path, b, 0o600)
	}
	if err != nil {
		return "", err
	}
	if len(b) == 0 || len(b) > 64 {
		return "", fmt.Errorf("%s is damaged: remove it if no other daemon serves this database", path)
	}
	return string(b), nil
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
	if err := l.rows.Lease(ctx, l.holder, l.length); err != nil {
		if errors.Is(err, store.ErrHeld) {
			l.until.Store(0)
		}
		return err
	}
	l.until.Store(int64(asked + l.length))
	return nil
}

// confirm returns nil while the lease runs.
func (l *lease) confirm() error {
	if int64(time.Since(l.began)) >= l.until.Load() {
		return errNoLease
	}
	return nil
}

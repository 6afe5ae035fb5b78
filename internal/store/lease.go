package store

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ErrHeld means that another daemon serves this tenant.
var ErrHeld = errors.New("another daemon has the lease")

// Lease takes or renews the right to serve a tenant for length. It is
// [ErrHeld] while another holder's lease runs. The server's clock alone counts, so
// that of a daemon may be wrong. The lease says who should serve; what stops one
// that serves all the same is the epoch of the head, see [Tenant.Append].
//
// SQLite gives it always: the lock of the file has decided already.
func (t *Tenant) Lease(ctx context.Context, holder string, length time.Duration) error {
	if _, ok := t.db.engine.(*server); !ok {
		return nil
	}
	n, err := t.exec(ctx, `INSERT INTO audit_lease(tenant, holder, ends) VALUES (?1, ?2, clock_timestamp() + ?3 * interval '1 microsecond')
		ON CONFLICT (tenant) DO UPDATE SET holder = excluded.holder, ends = excluded.ends
		WHERE audit_lease.holder = excluded.holder OR audit_lease.ends < clock_timestamp()`, t.id, holder, length.Microseconds())
	if err != nil {
		return fmt.Errorf("take lease: %w", err)
	}
	if n != 1 {
		return ErrHeld
	}
	return nil
}

// Release gives the lease of holder back, if it has it.
func (t *Tenant) Release(ctx context.Context, holder string) error {
	if _, ok := t.db.engine.(*server); !ok {
		return nil
	}
	if _, err := t.exec(ctx, `DELETE FROM audit_lease WHERE tenant = ? AND holder = ?`, t.id, holder); err != nil {
		return fmt.Errorf("give lease back: %w", err)
	}
	return nil
}

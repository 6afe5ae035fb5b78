//go:build unix

package daemon

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/pilox/vault/internal/store"
	"github.com/pilox/vault/internal/vaulttest"
)

// TestLeaseIsHandedOver has daemons on one database take turns.
func TestLeaseIsHandedOver(t *testing.T) {
	url := vaulttest.StartPostgres(t).URL(t, "vault")
	with := func() *Daemon {
		db, err := store.OpenPostgres(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = db.Close() })
		rows, err := db.Tenant(t.Context(), "acme")
		if err != nil {
			t.Fatal(err)
		}
		return &Daemon{rows: rows, conf: Config{Store: url}, log: slog.New(slog.DiscardHandler), ctx: t.Context()}
	}
	first, second := with(), with()
	if err := first.openLease(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := first.lease.confirm(); err != nil {
		t.Fatal(err)
	}
	short, stop := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer stop()
	if err := second.openLease(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("two serve at once: %v", err)
	}
	if err := second.lease.confirm(); !errors.Is(err, errNoLease) {
		t.Fatalf("one that waits allows: %v", err)
	}
	if err := first.closers[0](); err != nil {
		t.Fatal(err)
	}
	if err := second.openLease(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer second.closers[0]()
	if err := first.lease.renew(t.Context()); !errors.Is(err, store.ErrHeld) {
		t.Fatalf("taken back: %v", err)
	}
	if err := first.lease.confirm(); !errors.Is(err, errNoLease) {
		t.Fatalf("the first allows on: %v", err)
	}
}

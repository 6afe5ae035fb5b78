//go:build unix

package daemon_test

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/daemon"
	"github.com/pilox/vault/internal/store"
	"github.com/pilox/vault/internal/vaulttest"
)

// TestRecoverOnPostgres restores yesterday's dump of a database over today's
// checkpoint. A daemon that serves keeps the recovery off by its lease.
func TestRecoverOnPostgres(t *testing.T) {
	pg := vaulttest.StartPostgres(t)
	r := startDaemon(t, func(c *daemon.Config) { c.Store = pg.URL(t, "vault") })
	up := newUpstream(t, "act")
	r.addURL("up", up.url)
	file := taskFor("be there before and after", 50, "up.act: {args: any}")
	task := r.mint(file)
	if _, err := daemon.OpenRecovery(t.Context(), r.conf, slog.New(slog.DiscardHandler)); !errors.Is(err, store.ErrHeld) {
		t.Errorf("beside a daemon: %v", err)
	}
	r.stop()
	r.sound()
	pg.SQL(t, "postgres", "CREATE DATABASE dump TEMPLATE vault")
	r.start()
	wantAllowed(t, r.call(task, "up", "act", `{"id":"1"}`))
	r.stop()
	pg.SQL(t, "postgres", "DROP DATABASE vault WITH (FORCE)")
	pg.SQL(t, "postgres", "ALTER DATABASE dump RENAME TO vault")
	r.refuses("older than the last signed checkpoint")
	for i := range 2 { // the second time the recovered ledger has lost its checkpoint
		found, _ := r.recover(fmt.Sprint(i))
		if i == 0 && (found.Lost == 0 || found.Proven == 0 || found.Doubtful.Tasks != 1) {
			t.Errorf("found %+v", found)
		}
		r.sound()
		r.start()
		wantDenied(t, r.call(task, "up", "act", `{"id":"2"}`), vault.CodeCapabilityAudience, vault.ExecutedNo)
		r.addURL("up", up.url)
		task = r.mint(file)
		wantAllowed(t, r.call(task, "up", "act", `{"id":"3"}`))
		r.stop()
		if i == 0 {
			r.loseCheckpoint()
		}
	}
	r.start()
}

package daemon_test

import (
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
)

// A revocation that was made while the ledger could not be written counts after a
// restart too, and is then on record.
func TestRevocationWaitsBesideTheLedger(t *testing.T) {
	d := startDaemon(t, nil)
	up := newUpstream(t, "act")
	d.addURL("up", up.url)
	task := d.mint(taskFor("be stopped in an outage", 50, "up.act: {args: any}"))
	wantAllowed(t, d.call(task, "up", "act", `{"id":"1"}`))
	d.stop()
	line, err := json.Marshal(map[string]any{"by": "uid 0", "note": "outage", "what": capability.Revocation{Task: task.ID}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(d.conf.Data, "revocations.pending")
	if err := os.WriteFile(file, append(line, '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
	d.start()
	wantDenied(t, d.call(task, "up", "act", `{"id":"2"}`), vault.CodeCapabilityRevoked, vault.ExecutedNo)
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the waiting file: %v", err)
	}
	d.stop()
	d.start() // now from the ledger
	wantDenied(t, d.call(task, "up", "act", `{"id":"3"}`), vault.CodeCapabilityRevoked, vault.ExecutedNo)

	d.stop()
	if err := os.WriteFile(file, []byte("garbage\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if broken, err := daemon.Open(t.Context(), d.conf, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "revocations.pending") {
		t.Errorf("started with revocations that cannot be read: %v", err)
		_ = broken.Close()
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	d.start()
}

// A task that was stopped is not handed out again: an approver's mint opens a new
// instance of the same file.
func TestStoppedTaskGivesWayToANewOne(t *testing.T) {
	d := startDaemon(t, nil)
	up := newUpstream(t, "act")
	d.addURL("up", up.url)
	file := taskFor("be stopped and minted again", 50, "up.act: {args: any}")
	task := d.mint(file)
	if _, err := d.admin.Revoke(t.Context(), admin.RevokeRequest{What: "agent", ID: string(task.Agent)}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.admin.OpenTask(t.Context(), admin.TaskRequest{File: []byte(file)}); err == nil {
		t.Error("the dead instance was handed out")
	}
	again := d.mint(file)
	if again.ID == task.ID {
		t.Fatal("the mint rejoined the dead instance")
	}
	wantAllowed(t, d.call(again, "up", "act", `{"id":"1"}`))
}

// Arguments that do not parse are a refusal on record in the caller's run.
func TestMalformedArgumentsAreOnRecord(t *testing.T) {
	d := startDaemon(t, nil)
	up := newUpstream(t, "act")
	d.addURL("up", up.url)
	task := d.mint(taskFor("send nonsense", 50, "up.act: {args: any}"))
	a := d.call(task, "up", "act", `{"n":9007199254740993}`)
	wantDenied(t, a, vault.CodeNumberUnsafe, vault.ExecutedNo)
	if a.Denial.Event == nil {
		t.Error("no event")
	}
}

package daemon_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
	"github.com/pilox/vault/evidence"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
	"github.com/pilox/vault/internal/store"
)

// dump keeps a copy of the database of a stopped daemon, and returns what puts it
// back.
func (r *rig) dump() (restore func()) {
	r.t.Helper()
	db := r.path("vault.db")
	b := readFile(r.t, db)
	return func() {
		r.t.Helper()
		for _, f := range []string{db + "-wal", db + "-shm"} {
			if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
				r.t.Fatal(err)
			}
		}
		writeFile(r.t, db, b)
	}
}

// loseCheckpoint removes the last checkpoint.
func (r *rig) loseCheckpoint() {
	r.t.Helper()
	if err := os.Remove(r.path("checkpoint")); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) path(name string) string { return filepath.Join(r.conf.Data, name) }

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeFile(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// openRecovery opens a recovery that is closed with the test, or by the caller.
func (r *rig) openRecovery() *daemon.Recovery {
	r.t.Helper()
	rec, err := daemon.OpenRecovery(r.t.Context(), r.conf, slog.New(slog.DiscardHandler))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { rec.Close() })
	return rec
}

// recover runs a recovery to its end.
func (r *rig) recover(why string) (daemon.Found, daemon.Recovered) {
	r.t.Helper()
	rec := r.openRecovery()
	done, err := rec.Run(r.t.Context(), why, r.approver)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := rec.Close(); err != nil {
		r.t.Fatal(err)
	}
	return rec.Found(), done
}

// refuses checks that the daemon does not start, for what, and returns why.
func (r *rig) refuses(want string) {
	r.t.Helper()
	d, err := daemon.Open(r.t.Context(), r.conf, slog.New(slog.DiscardHandler))
	if err == nil {
		d.Close()
	}
	if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "pvault audit recover") {
		r.t.Errorf("start of the daemon: %v; want %q and what to run", err, want)
	}
}

// sound checks that there is nothing to recover.
func (r *rig) sound() {
	r.t.Helper()
	rec, err := daemon.OpenRecovery(r.t.Context(), r.conf, slog.New(slog.DiscardHandler))
	if err == nil {
		rec.Close()
	}
	if !errors.Is(err, daemon.ErrSound) {
		r.t.Errorf("recover a sound ledger: %v", err)
	}
}

// predecessor returns the first record of the ledger, and what it says it follows.
func (r *rig) predecessor() (record, predecessor) {
	r.t.Helper()
	first := r.records("")[0]
	var p predecessor
	if first.Leaf.Class != string(vault.ClassRecovery) || first.Leaf.Phase != string(vault.PhaseOpened) {
		r.t.Fatalf("the first record is %+v", first.Leaf)
	}
	if err := json.Unmarshal([]byte(first.Fields["predecessor"]), &p); err != nil {
		r.t.Fatal(err)
	}
	return first, p
}

// A predecessor is what the first record says; see the statement of package daemon.
type predecessor struct {
	Origin     string
	Checkpoint string
	Unreadable *struct{ Bytes int }
	Store      struct {
		Records uint64
		Root    vault.Digest
	}
	Successor struct{ Origin, Key string }
	Why, By   string
	Approver  string `json:"approver_key"`
}

// TestRecoveryTakesNoAuthorityOver restores yesterday's database over today's
// checkpoint. What it says of tasks, servers and answers counts for nothing in the
// ledger that goes on; what it says was revoked stays so.
func TestRecoveryTakesNoAuthorityOver(t *testing.T) {
	r := startDaemon(t, nil)
	up := newUpstream(t, "act")
	r.addURL("up", up.url)
	file := taskFor("be there before and after", 50, "up.act: {args: any}")
	task := r.mint(file)
	wantAllowed(t, r.call(task, "up", "act", `{"id":"1"}`))
	const gone = vault.AgentID("spiffe://vault.internal/agent/default/gone")
	if _, err := r.admin.Revoke(t.Context(), admin.RevokeRequest{What: "agent", ID: string(gone), Why: "left"}); err != nil {
		t.Fatal(err)
	}
	before, err := r.admin.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r.stop()
	restore := r.dump()
	r.start()
	wantAllowed(t, r.call(task, "up", "act", `{"id":"2"}`))
	r.stop()
	note := readFile(t, r.path("checkpoint"))
	restore()
	// And this was stopped while the ledger could not be written.
	line, err := json.Marshal(map[string]any{"by": "uid 0", "note": "outage", "what": capability.Revocation{Agent: gone + "/2"}})
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, r.path("revocations.pending"), append(line, '\n'))
	r.refuses("older than the last signed checkpoint")

	found, done := r.recover("dump of yesterday")
	if found.Lost == 0 || found.Doubtful.Tasks != 1 || !slices.Equal(found.Doubtful.Servers, []string{"up"}) || found.Carried != 1 {
		t.Errorf("found %+v", found)
	}
	r.sound()
	r.start()
	wantDenied(t, r.call(task, "up", "act", `{"id":"3"}`), vault.CodeCapabilityAudience, vault.ExecutedNo)
	if _, err := r.admin.MintTask(t.Context(), admin.TaskRequest{File: []byte(file)}, "", nil); err == nil {
		t.Error("the task was rejoined without an approver")
	}
	if list, err := r.admin.Servers(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("servers: %+v, %v", list, err)
	}
	after, err := r.admin.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if after.Cluster == before.Cluster || after.LedgerKey == before.LedgerKey || after.LedgerKey != done.Key || after.Cluster != done.Cluster {
		t.Errorf("goes on as %s with %s, was %s with %s", after.Cluster, after.LedgerKey, before.Cluster, before.LedgerKey)
	}

	// The first record leads from the old ledger to this one, and the approver signed.
	first, p := r.predecessor()
	if p.Origin != found.Origin || p.Checkpoint != string(note) || p.Store.Records != found.Store.Records || p.Store.Root != found.Store.Root ||
		p.Why != "dump of yesterday" || first.Fields["why"] != p.Why || p.Successor.Origin != done.Origin || p.Successor.Key != done.Key {
		t.Errorf("the first record says %+v", p)
	}
	if _, _, err := evidence.OpenCheckpoint([]byte(p.Checkpoint), before.LedgerKey); err != nil {
		t.Errorf("the old checkpoint in it: %v", err)
	}
	key, err := base64.StdEncoding.DecodeString(p.Approver)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := base64.StdEncoding.DecodeString(first.Fields["signature"])
	digest := vault.Hash("recovery", []byte(first.Fields["predecessor"]))
	if err != nil || !ed25519.Verify(key, digest[:], sig) {
		t.Errorf("the approver's signature: %v", err)
	}
	bundle, err := r.admin.Export(t.Context(), admin.ExportRequest{Disclose: true})
	if err != nil {
		t.Fatal(err)
	}
	if rep, err := evidence.VerifyBytes(bundle, evidence.Options{Keys: []string{done.Key}}); err != nil || rep.Problem != evidence.ProblemNone {
		t.Errorf("the new ledger: %v\n%s", err, rep)
	}

	// Both revocations are on record, also after the next start.
	for range 2 {
		var said []string
		for _, rec := range r.records("") {
			if rec.Leaf.Class == string(vault.ClassRevocation) {
				said = append(said, rec.Fields["what"])
			}
		}
		if len(said) != 2 || !strings.Contains(said[0], string(gone)) || !strings.Contains(said[1], string(gone)+"/2") {
			t.Errorf("revocations: %q", said)
		}
		r.stop()
		r.start()
	}
	r.addURL("up", up.url)
	wantAllowed(t, r.call(r.mint(file), "up", "act", `{"id":"4"}`))

	// The subject of a task before can still be erased, as its key is here.
	if _, err := r.admin.Erase(t.Context(), admin.EraseRequest{Subject: "user:clerk@example.com", Basis: "x"}, approverName, r.approver); err == nil {
		t.Error("erased while a task of theirs is open")
	}
	for _, open := range mustTasks(t, r) {
		if err := r.admin.CloseTask(t.Context(), open.ID); err != nil {
			t.Fatal(err)
		}
	}
	erased, err := r.admin.Erase(t.Context(), admin.EraseRequest{Subject: "user:clerk@example.com", Basis: "x"}, approverName, r.approver)
	if err != nil || !slices.Contains(erased.Runs, task.ID) {
		t.Errorf("erased %+v, %v", erased, err)
	}
	r.stop()
	var archive bytes.Buffer
	n, err := daemon.ArchivePredecessor(t.Context(), r.conf, slog.New(slog.DiscardHandler), &archive)
	if err != nil || n != found.Proven || n == 0 {
		t.Fatalf("archived %d records of %d, %v", n, found.Proven, err)
	}
	if rep, err := evidence.VerifyBytes(archive.Bytes(), evidence.Options{Keys: []string{before.LedgerKey}}); err != nil || rep.Problem != evidence.ProblemNone {
		t.Errorf("the archive: %v\n%s", err, rep)
	}
	r.start()
}

// TestRecoveryOnAnotherHost has a host with a copy of the data directory start after
// the other recovered.
func TestRecoveryOnAnotherHost(t *testing.T) {
	r := startDaemon(t, nil)
	r.stop()
	old := readFile(t, r.path("checkpoint"))
	r.loseCheckpoint()
	r.recover("lost")
	next := readFile(t, r.path("checkpoint"))
	writeFile(t, r.path("checkpoint"), old)
	r.refuses("not of this ledger")
	if _, err := daemon.OpenRecovery(t.Context(), r.conf, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "copy the file from there") {
		t.Errorf("recovered what another host had: %v", err)
	}
	writeFile(t, r.path("checkpoint"), next)
	r.start()
}

// TestRecoveryKeepsWhatIsStricter: labels are taken over as they stand, or not at
// all if nobody can read them, and statuses of before stay revoked for others.
func TestRecoveryKeepsWhatIsStricter(t *testing.T) {
	for _, labels := range []string{`[{"server":"up","integrity":"web"}]`, `garbage`} {
		r := startDaemon(t, nil)
		up := newUpstream(t, "act")
		r.addURL("up", up.url)
		file := taskFor("have a status", 50, "up.act: {args: any}")
		before := r.mint(file)
		r.stop()
		rows := func(of vault.Tenant) (*store.Tenant, func()) {
			db, err := store.Open(t.Context(), r.path("vault.db"))
			if err != nil {
				t.Fatal(err)
			}
			tenant, err := db.Tenant(t.Context(), of)
			if err != nil {
				t.Fatal(err)
			}
			return tenant, func() { db.Close() }
		}
		old, done := rows("default")
		if err := old.PutRecord(t.Context(), store.Record{Kind: store.KindSetting, ID: "labels", Doc: []byte(labels)}); err != nil {
			t.Fatal(err)
		}
		was, err := old.Head(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		done()
		r.loseCheckpoint()
		_, now := r.recover("lost")
		_, id, _ := strings.Cut(now.Cluster, "~")
		kept, done := rows("default@" + vault.Tenant(id))
		rec, err := kept.Record(t.Context(), store.KindSetting, "labels")
		done()
		old, done = rows("default")
		if is, err := old.Head(t.Context()); err != nil || is.Epoch != was.Epoch+1 || is.Size != was.Size || is.Root != was.Root {
			t.Errorf("who served the old ledger can go on: its head is %+v, was %+v, %v", is, was, err)
		}
		done()
		if labels == "garbage" && !errors.Is(err, store.ErrNotFound) || labels != "garbage" && (err != nil || string(rec.Doc) != labels) {
			t.Errorf("labels %s: now %s, %v", labels, rec.Doc, err)
		}
		r.start()
		r.addURL("up", up.url)
		after := r.mint(file)
		if before.Status == nil || after.Status == nil || *after.Status <= *before.Status {
			t.Fatalf("statuses %v and %v", before.Status, after.Status)
		}
		list, err := r.admin.StatusList(t.Context(), "https://status.example/1")
		if err != nil {
			t.Fatal(err)
		}
		s, err := r.admin.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for index, want := range map[int]bool{*before.Status: true, *after.Status - 1: true, *after.Status: false} {
			if revoked, _, err := daemon.CheckStatus(list, s.StatusKey, index); err != nil || revoked != want {
				t.Errorf("status %d is revoked: %v, %v; want %v", index, revoked, err, want)
			}
		}
		r.stop()
	}
}

// TestRecoverBesideALocalLog restores a database that the local log does not
// continue. The log is put aside with the rest.
func TestRecoverBesideALocalLog(t *testing.T) {
	r := startDaemon(t, func(c *daemon.Config) { c.Ledger.WAL = true })
	r.stop()
	restore := r.dump()
	r.start()
	r.stop()
	r.start()
	r.stop()
	restore()
	r.refuses("the local log does not continue the database")
	found, done := r.recover("older")
	if !strings.Contains(found.Problem, "local log") {
		t.Errorf("found %+v", found)
	}
	for _, f := range []string{"ledger.wal.0", "ledger.wal.1", "checkpoint"} {
		if _, err := os.Stat(filepath.Join(done.Kept, f)); err != nil {
			t.Error(err)
		}
	}
	r.sound()
	r.start()
	r.predecessor()
}

// TestRecoverWhateverIsBroken breaks a ledger in each way, recovers it, and breaks
// it again.
func TestRecoverWhateverIsBroken(t *testing.T) {
	for name, tt := range map[string]struct {
		breakIt func(t *testing.T, r *rig)
		refused string
	}{
		"the checkpoint is missing": {func(_ *testing.T, r *rig) { r.loseCheckpoint() }, "is missing"},
		"the checkpoint is damaged": {func(t *testing.T, r *rig) { writeFile(t, r.path("checkpoint"), []byte("\xff\x00 no note")) }, "not of this ledger"},
		"the store is another's": {func(t *testing.T, r *rig) {
			other := startDaemon(t, nil)
			other.stop()
			for _, f := range []string{"vault.db-wal", "vault.db-shm"} {
				_ = os.Remove(r.path(f))
			}
			writeFile(t, r.path("vault.db"), readFile(t, other.path("vault.db")))
		}, "not of this ledger"},
		"the store is empty": {func(t *testing.T, r *rig) {
			for _, f := range []string{"vault.db", "vault.db-wal", "vault.db-shm"} {
				_ = os.Remove(r.path(f))
			}
		}, "not of this ledger"},
		"the ledger's key is lost": {func(t *testing.T, r *rig) {
			if err := os.Remove(r.path("keys/ledger.pem")); err != nil {
				t.Fatal(err)
			}
		}, "not of this ledger"},
	} {
		t.Run(name, func(t *testing.T) {
			r := startDaemon(t, nil)
			var origins []string
			for i := range 2 { // the recovered one can break as the first did
				r.stop()
				tt.breakIt(t, r)
				r.refuses(tt.refused)
				found, done := r.recover(fmt.Sprint("breakage ", i))
				if found.Problem == "" || found.Unfinished != nil {
					t.Errorf("found %+v", found)
				}
				if slices.Contains(origins, done.Origin) {
					t.Errorf("two ledgers of origin %s", done.Origin)
				}
				origins = append(origins, done.Origin)
				r.sound()
				r.start()
				_, p := r.predecessor()
				if p.Why != fmt.Sprint("breakage ", i) || p.Successor.Origin != done.Origin {
					t.Errorf("the first record says %+v", p)
				}
			}
		})
	}
}

// TestRecoveryIsRepeatable ends a recovery after each of its steps. The daemon does
// not start on what is half done; the same recovery again ends as one would.
func TestRecoveryIsRepeatable(t *testing.T) {
	for _, step := range daemon.RecoverySteps {
		t.Run(step, func(t *testing.T) {
			r := startDaemon(t, nil)
			up := newUpstream(t, "act")
			r.addURL("up", up.url)
			if _, err := r.admin.Revoke(t.Context(), admin.RevokeRequest{What: "agent", ID: "spiffe://a/b", Why: "n"}); err != nil {
				t.Fatal(err)
			}
			r.stop()
			restore := r.dump()
			r.start()
			r.stop()
			restore()
			old := readFile(t, r.path("checkpoint"))
			for _, of := range []string{"anchors", "sinks"} {
				if err := os.Mkdir(r.path(of), 0o700); err != nil {
					t.Fatal(err)
				}
			}

			rec := r.openRecovery()
			errKilled := errors.New("killed")
			daemon.StopRecovery(rec, step, errKilled)
			if _, err := rec.Run(t.Context(), "first", r.approver); !errors.Is(err, errKilled) {
				t.Fatalf("not stopped: %v", err)
			}
			rec.Close()
			last := daemon.RecoverySteps[len(daemon.RecoverySteps)-1]
			if step == last {
				r.sound()
			} else {
				r.refuses("begun and not finished")
				found, _ := r.recover("second")
				if u := found.Unfinished; u == nil || u.Why != "first" {
					t.Errorf("found %+v", found)
				}
			}
			r.sound()
			r.start()
			_, p := r.predecessor()
			if p.Why != "first" || p.Checkpoint != string(old) {
				t.Errorf("the first record says %+v", p)
			}
			firsts := 0
			for _, rec := range r.records("") {
				if rec.Leaf.Class == string(vault.ClassRecovery) && rec.Leaf.Phase == string(vault.PhaseOpened) {
					firsts++
				}
			}
			kept, err := filepath.Glob(r.path("recovered/*/checkpoint"))
			if err != nil || firsts != 1 || len(kept) != 1 || !bytes.Equal(readFile(t, kept[0]), old) {
				t.Errorf("%d first records, kept %v, %v", firsts, kept, err)
			}
			for _, of := range []string{"anchors", "sinks"} {
				if _, err := os.Stat(filepath.Join(filepath.Dir(kept[0]), of)); err != nil {
					t.Errorf("the old %s: %v", of, err)
				}
			}
			bundle, err := r.admin.Export(t.Context(), admin.ExportRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if rep, err := evidence.VerifyBytes(bundle, evidence.Options{Keys: []string{p.Successor.Key}}); err != nil || rep.Problem != evidence.ProblemNone {
				t.Errorf("%v\n%s", err, rep)
			}
		})
	}
}

// A recovery that was begun is not finished where the store is another by now.
func TestBegunRecoveryIsOfOneState(t *testing.T) {
	r := startDaemon(t, nil)
	r.stop()
	restore := r.dump()
	r.start()
	r.stop()
	newer := r.dump()
	restore()
	begin := func() {
		rec := r.openRecovery()
		daemon.StopRecovery(rec, "ledger", context.Canceled)
		if _, err := rec.Run(t.Context(), "first", r.approver); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		rec.Close()
	}
	begin()
	newer() // it was found after all
	r.refuses("begun and not finished")
	r.sound()
	r.start()
	r.stop()

	restore()
	begin()
	r.loseCheckpoint()
	found, _ := r.recover("second")
	if found.Unfinished != nil {
		t.Errorf("found %+v", found)
	}
	r.start()
	if _, p := r.predecessor(); p.Why != "second" || p.Checkpoint != "" {
		t.Errorf("the first record says %+v", p)
	}
	r.stop()
	newer() // of before the recovery: its ledger is not the one that goes on
	r.refuses("not of this ledger")
	r.recover("third")
	r.start()
}

func TestRecoverRefuses(t *testing.T) {
	r := startDaemon(t, nil)
	if _, err := daemon.OpenRecovery(t.Context(), r.conf, slog.New(slog.DiscardHandler)); !errors.Is(err, store.ErrLocked) {
		t.Errorf("beside a daemon: %v", err)
	}
	r.stop()
	r.sound()
	elsewhere := r.conf
	elsewhere.Data = filepath.Join(r.dir, "none")
	if _, err := daemon.OpenRecovery(t.Context(), elsewhere, slog.New(slog.DiscardHandler)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of nothing: %v", err)
	}
	// The ledger is sound, and the configuration names another.
	renamed := r.conf
	renamed.Domain = "else.where"
	if _, err := daemon.OpenRecovery(t.Context(), renamed, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "set domain") {
		t.Errorf("under another name: %v", err)
	}
	r.loseCheckpoint()
	rec := r.openRecovery()
	for _, why := range []string{"", strings.Repeat("x", 1025), "\xff"} {
		if _, err := rec.Run(t.Context(), why, r.approver); err == nil {
			t.Errorf("recovered for %q", why)
		}
	}
	dir := filepath.Join(r.dir, "approvers")
	if _, err := daemon.CreateApprover(dir, approverName, nil); err != nil {
		t.Fatal(err)
	}
	stranger, err := daemon.OpenApprover(dir, approverName, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rec.Run(t.Context(), "x", stranger); err == nil {
		t.Error("recovered by another key of the same name")
	}
	if _, err := os.Stat(r.path("recovery")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a refused recovery was begun: %v", err)
	}
	rec.Close()
	writeFile(t, r.path("recovery"), []byte(`{"id":"../../x"}`))
	if _, err := daemon.OpenRecovery(t.Context(), r.conf, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("a plan that leads elsewhere: %v", err)
	}
	if err := os.Remove(r.path("recovery")); err != nil {
		t.Fatal(err)
	}
	r.recover("so that the rig can start")
	r.start()
}

func mustTasks(t *testing.T, r *rig) []admin.Task {
	t.Helper()
	list, err := r.admin.Tasks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(list, func(t admin.Task) bool { return t.State != "open" })
}

package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

func denied(err error) bool {
	d, ok := errors.AsType[*vault.Denial](err)
	return ok && d.Reason.Code == vault.CodeLedger && d.Verdict == "deny"
}

// eventually polls, because the store comes back when it does.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatal("never: " + what)
		}
		time.Sleep(time.Millisecond)
	}
}

var errDisk = errors.New("database or disk is full (13)")

// TestStoreFailures: whatever a failed write did, nothing acknowledged is lost,
// nothing forks, and an intent whose caller was told no is closed as failed.
func TestStoreFailures(t *testing.T) {
	for name, fault := range map[string]func(real func() error) error{
		"failed":              func(func() error) error { return errDisk },
		"failed but happened": func(real func() error) error { return errors.Join(real(), errDisk) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			const run = "t-1"
			r.commit(opened(run))
			before := r.commit(intent(run, "c-0"))
			r.fault.set(fault)
			r.fault.setHead(errDisk) // nor can the store say at first what happened
			_, err := r.led.Commit(t.Context(), intent(run, "c-1"))
			if !denied(err) || !errors.Is(err, errDisk) {
				t.Fatalf("commit on a failing store: %v", err)
			}
			// What has happened is taken on, what would happen is not.
			if _, err := r.led.Sequence(t.Context(), outcomeOf(before, intent(run, "c-0"), vault.PhaseDone)); err != nil {
				t.Fatalf("an outcome while the store is down: %v", err)
			}
			r.fault.set(nil)
			r.fault.setHead(nil)
			eventually(t, "takes events again", func() bool { return r.led.Health() == nil })
			r.commit(intent(run, "c-2"))
			rep := r.check()
			var phases []string
			for rec, err := range r.led.Records(t.Context(), 0, rep.Size, run, false) {
				if err != nil {
					t.Fatal(err)
				}
				phases = append(phases, rec.Call+" "+string(rec.Phase))
			}
			got := strings.Join(phases, ", ")
			if !strings.Contains(got, "c-0 intent, c-1 intent") || !strings.Contains(got, "c-0 done") || !strings.Contains(got, "c-1 failed") {
				t.Fatalf("on record: %s", got)
			}
			if err := r.reopen(); err != nil {
				t.Fatal(err)
			}
			if open := r.led.Recovered().Open; len(open) != 1 || open[0].Call != "c-2" {
				t.Fatalf("open intents %+v", open)
			}
		})
	}
}

func TestWhileTheStoreIsDownCommitFailsFast(t *testing.T) {
	r := newRig(t)
	r.fault.set(func(func() error) error { return errDisk })
	if _, err := r.led.Commit(t.Context(), opened("t-1")); !denied(err) {
		t.Fatal(err)
	}
	start := time.Now()
	for range 100 {
		if _, err := r.led.Commit(t.Context(), intent("t-1", "c")); !denied(err) || !errors.Is(err, ErrDown) {
			t.Fatal(err)
		}
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Fatalf("100 refusals took %s", d)
	}
	// There is room for outcomes up to one batch, then they are refused too.
	n := 0
	for ; n <= maxBatch; n++ {
		if _, err := r.led.Sequence(t.Context(), &vault.Event{Class: vault.ClassDaemon, Phase: vault.PhaseNoted}); err != nil {
			if !denied(err) {
				t.Fatal(err)
			}
			break
		}
	}
	if n == 0 || n > maxBatch {
		t.Fatalf("%d events were taken", n)
	}
	if err := r.led.Close(); err == nil || !errors.Is(err, errDisk) {
		t.Fatalf("close hides that events were lost: %v", err)
	}
}

func TestAnotherDaemonTakesOver(t *testing.T) {
	r := newRig(t)
	r.commit(opened("t-1"))
	second, err := Open(t.Context(), r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if _, err := r.led.Commit(t.Context(), intent("t-1", "c-1")); !denied(err) {
		t.Fatalf("the stale daemon appended: %v", err)
	}
	eventually(t, "the stale daemon knows", func() bool { return errors.Is(r.led.Health(), ErrLost) })
	if _, err := second.Commit(t.Context(), intent("t-1", "c-2")); err != nil {
		t.Fatal(err)
	}
	r.led = second
	r.check()
}

func TestManyProducersDoNotFork(t *testing.T) {
	r := newRig(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[uint64]bool{}
	for p := range 16 {
		wg.Go(func() {
			run := vault.TaskID(fmt.Sprintf("t-%d", p%5))
			for i := range 20 {
				e := intent(run, fmt.Sprintf("c-%d-%d", p, i))
				got, err := r.led.Commit(context.Background(), e)
				if err != nil {
					t.Error(err)
					return
				}
				out, err := r.led.Sequence(context.Background(), outcomeOf(got, e, vault.PhaseDone))
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if seen[got.Index] || seen[out.Index] || out.Index <= got.Index {
					t.Errorf("index %d or %d twice, or out of order", got.Index, out.Index)
				}
				seen[got.Index], seen[out.Index] = true, true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	eventually(t, "outcomes are durable", func() bool { return r.led.Head().Size == 640 })
	if rep := r.check(); rep.Records != 640 {
		t.Fatal(rep)
	}
}

func TestSequencedEventIsDurableWithoutACommit(t *testing.T) {
	r := newRig(t)
	if _, err := r.led.Sequence(t.Context(), opened("t-1")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "durable", func() bool { return r.led.Head().Size == 1 })
}

func TestRecoveredIsWhereTheLastDaemonStopped(t *testing.T) {
	r := newRig(t)
	const run = "t-1"
	r.commit(opened(run))
	done := r.commit(intent(run, "c-done"))
	refunded := r.commit(intent(run, "c-refunded"))
	e := intent(run, "c-open")
	e.Kind, e.Target.Name = vault.KindEgress, "bank.example"
	e.Debits = append(e.Debits, vault.Debit{Counter: "approval/a-1", Amount: 1, Limit: 1, Unit: "approvals", Kept: true})
	left := r.commit(e)
	r.commit(outcomeOf(done, intent(run, "c-done"), vault.PhaseDone))
	back := outcomeOf(refunded, intent(run, "c-refunded"), vault.PhaseFailed)
	back.Refund = true
	r.commit(back)
	r.commit(&vault.Event{
		Class: vault.ClassRevocation, Phase: vault.PhaseNoted, Verdict: vault.Deny,
		Fields: []vault.Field{{Name: "what", Value: []byte("link:abc")}, {Name: "by", Value: []byte("operator")}},
	})
	r.commit(opened("t-over"))
	r.commit(&vault.Event{
		Run: "t-over", Call: "c", Class: vault.ClassCall, Phase: vault.PhaseIntent, Verdict: vault.Allow,
		Debits: []vault.Debit{{Counter: "over/calls", Amount: 1, Limit: 1, Unit: "calls"}},
	})
	r.commit(closed("t-over"))
	if err := r.reopen(); err != nil {
		t.Fatal(err)
	}
	got := r.led.Recovered()
	if got.Counters["link/calls"] != 3 || got.Counters["link/eur"] != 3000 || got.Counters["approval/a-1"] != 1 {
		t.Fatalf("counters %v", got.Counters)
	}
	if _, kept := got.Counters["over/calls"]; kept {
		t.Fatal("the counter of a closed run is kept for ever")
	}
	if !slices.Equal(got.Approvals, []string{"a-1"}) || !slices.Equal(got.Runs, []vault.TaskID{run}) {
		t.Fatalf("approvals %v, runs %v", got.Approvals, got.Runs)
	}
	if len(got.Revocations) != 1 || got.Revocations[0].What() != "link:abc" {
		t.Fatalf("revocations %+v", got.Revocations)
	}
	i := slices.IndexFunc(got.Open, func(o OpenIntent) bool { return o.Index == left.Index })
	if i < 0 || got.Open[i].Target.Name != "bank.example" || string(got.Open[i].Caller) != "spiffe://test/agent/acme/clerk/1" {
		t.Fatalf("open %+v", got.Open)
	}
	r.commit(got.Open[i].Unknown())
	r.check()
	if err := r.reopen(); err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(r.led.Recovered().Open, func(o OpenIntent) bool { return o.Index == left.Index }) {
		t.Fatal("an intent closed as unknown is open again")
	}
}

func TestHostsAndFieldsAreNotInTheLeaf(t *testing.T) {
	r := newRig(t)
	e := intent("t-1", "c-1")
	e.Kind, e.Target = vault.KindEgress, vault.Target{Name: "bank.example"}
	r.commit(e)
	r.commit(&vault.Event{ // an answer to a question about it
		Run: "t-1", Call: "c-1", Class: vault.ClassApproval, Phase: vault.PhaseNoted, Verdict: vault.Allow, Kind: e.Kind, Target: e.Target,
		Fields: []vault.Field{{Name: "question", Value: []byte("may bank.example have it?")}},
	})
	var b bytes.Buffer
	if err := r.led.ExportRun(t.Context(), &b, "t-1", ExportOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"bank.example", "/srv/invoices", "spiffe://"} {
		if strings.Contains(b.String(), secret) {
			t.Errorf("a pseudonymised bundle holds %q", secret)
		}
	}
	db, err := os.ReadFile(filepath.Join(r.dir, "vault.db-wal"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(db, []byte("bank.example")) || bytes.Contains(db, []byte("/srv/invoices")) {
		t.Error("the store holds a field in the clear")
	}
}

func TestLargeFieldIsCommittedToAndNotKept(t *testing.T) {
	r := newRig(t)
	e := intent("t-1", "c-1")
	e.Fields[0].Value = bytes.Repeat([]byte("x"), maxField+1)
	got := r.commit(e)
	fields, err := r.led.fields(t.Context(), got.Index)
	if err != nil {
		t.Fatal(err)
	}
	f := fields[0]
	if f.Name != "args" || !f.NotKept || f.Size != maxField+1 || f.Value != nil {
		t.Fatalf("%+v", f)
	}
	if evidence.Commit(&f.Salt, "args", e.Fields[0].Value) != f.Commit() {
		t.Fatal("the commitment is not to the value")
	}
	if rep := r.check(); rep.Disclosed != 1 { // the caller, with a path past the large one
		t.Fatal(rep)
	}
}

func TestErasedKeyLeavesEveryProofAsItWas(t *testing.T) {
	r := newRig(t)
	const run = "t-1"
	r.commit(opened(run))
	r.commit(intent(run, "c-1"))
	r.commit(closed(run))
	export := func(o ExportOptions) string {
		var b bytes.Buffer
		if err := r.led.ExportRun(t.Context(), &b, run, o); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	before := export(ExportOptions{})
	if export(ExportOptions{Disclose: true}) == before {
		t.Fatal("nothing was disclosed")
	}
	if err := os.Remove(filepath.Join(r.dir, "keys", run)); err != nil {
		t.Fatal(err)
	}
	if export(ExportOptions{Disclose: true}) != before || export(ExportOptions{}) != before {
		t.Fatal("erasing a key changed a proof, or the fields can still be read")
	}
}

func TestEventsALedgerDoesNotTake(t *testing.T) {
	r := newRig(t)
	r.commit(opened("t-1"))
	r.commit(closed("t-1"))
	for name, e := range map[string]*vault.Event{
		"the zero event":            {},
		"an unknown class":          {Class: "x", Phase: vault.PhaseNoted},
		"an unknown field":          {Class: vault.ClassDaemon, Phase: vault.PhaseNoted, Fields: []vault.Field{{Name: "x", Value: []byte("x")}}},
		"a field twice":             {Class: vault.ClassDaemon, Phase: vault.PhaseNoted, Fields: []vault.Field{{Name: "note", Value: []byte("x")}, {Name: "note", Value: []byte("y")}}},
		"an intent that is to come": {Class: vault.ClassCall, Phase: vault.PhaseDone, Intent: 99, HasIntent: true},
		"a run with a slash":        {Run: "../x", Class: vault.ClassCall, Phase: vault.PhaseNoted},
		"a run that is closed":      intent("t-1", "c-1"),
	} {
		if _, err := r.led.Commit(t.Context(), e); err == nil {
			t.Errorf("%s: taken", name)
		}
		if _, err := r.led.Sequence(t.Context(), e); err == nil {
			t.Errorf("%s: sequenced", name)
		}
	}
	if err := r.reopen(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.led.Commit(t.Context(), intent("t-1", "c-1")); !errors.Is(err, ErrRunClosed) {
		t.Errorf("a run closed before the restart: %v", err)
	}
	if rep := r.check(); rep.Records != 2 {
		t.Fatal(rep)
	}
}

// TestStoreThatWasChangedIsNotOpened edits the database behind the ledger's back.
func TestStoreThatWasChangedIsNotOpened(t *testing.T) {
	for name, tc := range map[string]struct {
		sql  string
		want error
	}{
		"a leaf edited":                   {`UPDATE audit_leaf SET leaf = CAST(replace(CAST(leaf AS TEXT), 'read_file', 'send_file') AS BLOB) WHERE pos & 0xff = 1`, ErrCorrupt},
		"a leaf deleted":                  {`DELETE FROM audit_leaf WHERE pos & 0xff = 1`, ErrCorrupt},
		"the last leaf deleted":           {`DELETE FROM audit_leaf WHERE pos & 0xff = 3`, ErrCorrupt},
		"a run renamed":                   {`UPDATE audit_leaf SET run = 't-9' WHERE pos & 0xff = 1`, ErrCorrupt},
		"a time changed":                  {`UPDATE audit_leaf SET ts = ts + 1 WHERE pos & 0xff = 1`, ErrCorrupt},
		"the chain changed":               {`UPDATE audit_leaf SET chain = zeroblob(32) WHERE pos & 0xff = 1`, ErrCorrupt},
		"the head moved back":             {`UPDATE audit_head SET size = size - 1`, ErrCorrupt},
		"everything deleted":              {`DELETE FROM audit_leaf; DELETE FROM audit_head`, ErrRollback},
		"a field of a revocation changed": {`UPDATE audit_detail SET ct = zeroblob(99) WHERE field = 'what'`, ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.commit(opened("t-1"))
			r.commit(intent("t-1", "c-1"))
			r.commit(intent("t-1", "c-2"))
			r.commit(&vault.Event{Class: vault.ClassRevocation, Phase: vault.PhaseNoted, Fields: []vault.Field{{Name: "what", Value: []byte("all")}}})
			if _, err := r.led.Checkpoint(t.Context()); err != nil {
				t.Fatal(err)
			}
			r.led.Close()
			r.db.Close()
			execSQL(t, filepath.Join(r.dir, "vault.db"), tc.sql)
			if err := r.reopen(); !errors.Is(err, tc.want) {
				t.Fatalf("opened: %v", err)
			}
		})
	}
}

func TestStoreOfYesterdayIsNotOpened(t *testing.T) {
	r := newRig(t)
	r.commit(opened("t-1"))
	r.led.Close()
	r.db.Close()
	old, err := os.ReadFile(filepath.Join(r.dir, "vault.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.reopen(); err != nil {
		t.Fatal(err)
	}
	r.commit(intent("t-1", "c-1"))
	r.led.Close()
	r.db.Close()
	if err := os.WriteFile(filepath.Join(r.dir, "vault.db"), old, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.reopen(); !errors.Is(err, ErrRollback) {
		t.Fatalf("opened yesterday's store: %v", err)
	}
}

func TestMissingOrForeignCheckpointIsNotPassedOver(t *testing.T) {
	r := newRig(t)
	r.commit(opened("t-1"))
	if err := os.Remove(r.cfg.CheckpointFile); err != nil {
		t.Fatal(err)
	}
	if _, err := r.led.Checkpoint(t.Context()); err == nil {
		t.Fatal("signed without the last checkpoint")
	}
	if err := r.reopen(); !errors.Is(err, ErrRollback) {
		t.Fatalf("opened without the last checkpoint: %v", err)
	}
	forged, err := evidence.Checkpoint{Origin: origin}.Sign(testKey("other"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.cfg.CheckpointFile, forged, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.reopen(); !errors.Is(err, evidence.ErrWrongKey) {
		t.Fatalf("opened with a checkpoint by another key: %v", err)
	}
}

func TestRunBundleFromTheLedgerVerifies(t *testing.T) {
	r := newRig(t)
	const run = "t-1"
	r.commit(opened(run))
	for i := range 300 { // more than one block of the tree
		if _, err := r.led.Sequence(t.Context(), intent(vault.TaskID(fmt.Sprintf("t-%d", 1+i%3)), "c")); err != nil {
			t.Fatal(err)
		}
	}
	r.commit(intent(run, "c-last"))
	held, err := r.led.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cp, _, err := evidence.OpenCheckpoint(held, r.led.VerifierKey())
	if err != nil {
		t.Fatal(err)
	}
	answer := func() evidence.Problem {
		var b bytes.Buffer
		if err := r.led.ExportRun(t.Context(), &b, run, ExportOptions{Since: cp.Size, Disclose: true}); err != nil {
			t.Fatal(err)
		}
		rep, err := evidence.VerifyBytes(b.Bytes(), evidence.Options{Keys: []string{r.led.VerifierKey()}, Since: held, Run: run})
		if err != nil {
			t.Fatal(err)
		}
		return rep.Problem
	}
	if got := answer(); got != evidence.ProblemIncomplete {
		t.Fatalf("an open run is %s", got)
	}
	r.commit(closed(run))
	if got := answer(); got != evidence.ProblemNone {
		t.Fatalf("a closed run is %s", got)
	}
	if err := r.led.ExportRun(t.Context(), new(bytes.Buffer), "t-none", ExportOptions{}); !errors.Is(err, ErrNoRun) {
		t.Fatal(err)
	}
}

func TestTailWaitsForMore(t *testing.T) {
	r := newRig(t)
	r.commit(opened("t-1"))
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	if _, err := r.led.Sequence(ctx, intent("t-1", "c-1")); err != nil {
		t.Fatal(err)
	}
	var calls []string
	for rec, err := range r.led.Tail(ctx, 1, "t-1", true) {
		if err != nil {
			t.Fatal(err)
		}
		calls = append(calls, rec.Call)
		if len(calls) == 2 {
			break
		}
		if _, err := r.led.Sequence(ctx, intent("t-1", "c-2")); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(calls, []string{"c-1", "c-2"}) {
		t.Fatalf("tail gave %v", calls)
	}
}

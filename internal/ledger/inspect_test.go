package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

// TestInspectSaysWhatOpenSays breaks a ledger in each way and holds what Inspect
// finds against why Open refuses. Nothing is written.
func TestInspectSaysWhatOpenSays(t *testing.T) {
	older := func(t *testing.T, r *rig, signed []byte) { write(t, r.cfg.CheckpointFile, signed) }
	for name, tt := range map[string]struct {
		breakIt func(t *testing.T, r *rig, later []byte)
		want    error
		size    uint64
		proven  uint64
	}{
		"sound":                   {func(*testing.T, *rig, []byte) {}, nil, 3, 3},
		"older than signed":       {older, ErrRollback, 3, 2},
		"the checkpoint is gone":  {func(t *testing.T, r *rig, _ []byte) { remove(t, r.cfg.CheckpointFile) }, ErrRollback, 3, 3},
		"the checkpoint is cut":   {func(t *testing.T, r *rig, later []byte) { write(t, r.cfg.CheckpointFile, later[:20]) }, ErrForeign, 3, 3},
		"of another key":          {func(t *testing.T, r *rig, _ []byte) { write(t, r.cfg.CheckpointFile, signed(t, origin, 3, "other")) }, ErrForeign, 3, 3},
		"of another ledger":       {func(t *testing.T, r *rig, _ []byte) { write(t, r.cfg.CheckpointFile, signed(t, "else", 3, "ledger")) }, ErrForeign, 3, 3},
		"too large":               {func(t *testing.T, r *rig, _ []byte) { write(t, r.cfg.CheckpointFile, make([]byte, 1<<20)) }, ErrForeign, 3, 3},
		"others were signed":      {func(t *testing.T, r *rig, _ []byte) { write(t, r.cfg.CheckpointFile, signed(t, origin, 3, "ledger")) }, ErrRollback, 3, 3},
		"a record was changed":    {sqlOf("UPDATE audit_leaf SET leaf = CAST(replace(CAST(leaf AS TEXT), 'allow', 'ALLOW') AS BLOB) WHERE pos % 1024 = 1"), ErrCorrupt, 1, 0},
		"a chain value is others": {sqlOf("UPDATE audit_leaf SET chain = zeroblob(32) WHERE pos % 1024 = 2"), ErrCorrupt, 2, 2},
		"a record is gone":        {sqlOf("DELETE FROM audit_leaf WHERE pos % 1024 = 2"), ErrCorrupt, 2, 2},
		"the head claims more":    {sqlOf("UPDATE audit_head SET size = 9"), ErrCorrupt, 3, 3},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.commit(opened("t-1"))
			r.commit(intent("t-1", "c-1"))
			if _, err := r.led.checkpoint(t.Context(), true); err != nil { // kept over 2
				t.Fatal(err)
			}
			r.commit(intent("t-1", "c-2"))
			r.led.Close()
			r.closeStore()
			later := signed(t, origin, 5, "ledger")
			tt.breakIt(t, r, later)
			if name == "older than signed" { // the one over 3, which closing kept, was never made
				execSQL(t, filepath.Join(r.dir, "vault.db"), "DELETE FROM audit_ckpt WHERE size = 3")
			}
			r.openStore()
			before := file(t, r.cfg.CheckpointFile)
			in, err := Inspect(t.Context(), r.cfg)
			if err != nil {
				t.Fatal(err)
			}
			if !errors.Is(in.Problem, tt.want) || (tt.want == nil) != (in.Problem == nil) {
				t.Errorf("found %v, want %v", in.Problem, tt.want)
			}
			if in.Size != tt.size || in.Proven.Size != tt.proven || in.Runs != 1 {
				t.Errorf("%d records, %d of them proven, %d runs; want %d, %d and 1", in.Size, in.Proven.Size, in.Runs, tt.size, tt.proven)
			}
			if head, err := r.cfg.Store.Head(t.Context()); err != nil || head.Epoch != 1 {
				t.Errorf("it took the store over: epoch %d, %v", head.Epoch, err)
			}
			if !bytes.Equal(before, file(t, r.cfg.CheckpointFile)) {
				t.Error("it wrote the checkpoint")
			}
			archive(t, in, tt.proven)
			l, err := Open(t.Context(), r.cfg)
			if err == nil {
				l.Close()
			}
			if !errors.Is(err, tt.want) || (tt.want == nil) != (err == nil) {
				t.Errorf("opened: %v, want %v", err, tt.want)
			}
		})
	}
}

// archive writes what is proven and verifies it with the pinned key.
func archive(t *testing.T, in *Inspection, records uint64) {
	t.Helper()
	var b bytes.Buffer
	err := in.Archive(t.Context(), &b)
	if records == 0 {
		if !errors.Is(err, ErrUnproven) {
			t.Errorf("archived what nobody signed: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	rep, err := evidence.VerifyBytes(b.Bytes(), evidence.Options{Keys: []string{in.ledger.verifier}})
	if err != nil || rep.Problem != evidence.ProblemNone || rep.Records != records {
		t.Errorf("the archive of %d records: %v\n%s", records, err, rep)
	}
}

func TestInspectOfANewLedgerMakesNothing(t *testing.T) {
	r := &rig{t: t, dir: t.TempDir(), key: testKey("ledger")}
	r.openStore()
	in, err := Inspect(t.Context(), r.cfg)
	if err != nil || in.Problem != nil || in.Size != 0 {
		t.Fatalf("%+v, %v", in, err)
	}
	if _, err := os.Stat(r.cfg.CheckpointFile); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it made a checkpoint: %v", err)
	}
	archive(t, in, 0)
}

func TestInspectReadsRevocations(t *testing.T) {
	r := newRig(t)
	revoke := func(run vault.TaskID) *vault.Event {
		return &vault.Event{
			Run: run, Class: vault.ClassRevocation, Phase: vault.PhaseNoted, Verdict: vault.Deny,
			Fields: []vault.Field{{Name: "what", Value: []byte(`{"agent":"a"}`)}},
		}
	}
	r.commit(revoke(""))
	r.commit(revoke("t-1"))
	r.led.Close()
	if err := r.keys.Erase("t-1"); err != nil {
		t.Fatal(err)
	}
	in, err := Inspect(t.Context(), r.cfg)
	if err != nil || len(in.Revocations) != 1 || in.Revocations[0].What() != `{"agent":"a"}` || in.Unreadable != 1 {
		t.Fatalf("%+v, %v", in, err)
	}
}

func TestRecordsOfARecoveryAreKept(t *testing.T) {
	r := newRig(t)
	at := r.commit(&vault.Event{
		Class: vault.ClassRecovery, Phase: vault.PhaseOpened, Verdict: vault.Allow,
		Fields: []vault.Field{{Name: "predecessor", Value: []byte("{}")}},
	})
	if _, err := r.led.EraseField(t.Context(), FieldAt{at.Index, "predecessor"}, Erasure{By: "key:default", Basis: "x"}); !errors.Is(err, ErrKept) {
		t.Errorf("erased: %v", err)
	}
}

func TestEraseEarlierReachesWhatTheLedgerBeforeKept(t *testing.T) {
	r := newRig(t)
	if _, err := r.keys.Key("t-old"); err != nil {
		t.Fatal(err)
	}
	r.commit(opened("t-1"))
	o := Erasure{By: "key:default", Basis: "x"}
	if _, err := r.led.EraseEarlier(t.Context(), "t-old", o); err != nil {
		t.Fatal(err)
	}
	if _, err := r.keys.Lookup("t-old"); !errors.Is(err, ErrNoKey) {
		t.Errorf("the key is there: %v", err)
	}
	for _, run := range []vault.TaskID{"", "t-1"} { // the daemon's own key, and an open run's
		if _, err := r.led.EraseEarlier(t.Context(), run, o); !errors.Is(err, ErrNoRun) {
			t.Errorf("erased %q: %v", run, err)
		}
	}
	r.check()
}

func sqlOf(query string) func(*testing.T, *rig, []byte) {
	return func(t *testing.T, r *rig, _ []byte) { execSQL(t, filepath.Join(r.dir, "vault.db"), query) }
}

func signed(t *testing.T, of string, size uint64, key string) []byte {
	t.Helper()
	note, err := evidence.Checkpoint{Origin: of, Size: size, Root: vault.Digest{1}}.Sign(testKey(key))
	if err != nil {
		t.Fatal(err)
	}
	return note
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// file returns what a file holds, nil if there is none.
func file(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(fmt.Errorf("read: %w", err))
	}
	return b
}

package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

var lawful = Erasure{By: "key:dpo", Basis: "GDPR Art. 17(1)(a)"}

// rows are all rows of a ledger up to a size, as the store has them.
func (r *rig) rows(size uint64) (leaves []evidence.Entry, fields map[string]evidence.Sealed) {
	r.t.Helper()
	fields = map[string]evidence.Sealed{}
	for e, err := range r.cfg.Store.Entries(r.t.Context(), 0, size) {
		if err != nil {
			r.t.Fatal(err)
		}
		leaves = append(leaves, e)
	}
	for i := range leaves {
		sealed, err := r.cfg.Store.Sealed(r.t.Context(), uint64(i))
		if err != nil {
			r.t.Fatal(err)
		}
		for _, s := range sealed {
			fields[fmt.Sprintf("%d/%s", i, s.Field)] = s
		}
	}
	return leaves, fields
}

// TestEraseOneField: of many events one field of one goes, and one row changes. No
// leaf, proof or checkpoint does, the other fields can still be opened, and what was
// written is in no file of the live database.
func TestEraseOneField(t *testing.T) {
	n := 2000
	switch {
	case os.Getenv("PVAULT_LONG") != "" && database == nil:
		n = 1_000_000
	case testing.Short():
		n = 300
	}
	r := newRig(t)
	r.commit(opened("t-1"))
	for i := range n {
		e := intent("t-1", fmt.Sprint("c-", i))
		e.Fields[0].Value = bytes.Repeat([]byte{byte(i)}, 1+i*37%9000) // also over several pages
		if i > 20_000 {
			e.Fields[0].Value = []byte("small") // or a million take an hour
		}
		if _, err := r.led.Sequence(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	r.commit(closed("t-1"))
	head := r.led.Head()
	note, err := r.led.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	prove := func(idx uint64) string {
		p, err := r.led.prover(head.Size).inclusion(t.Context(), idx)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(p)
	}
	leaves, fields := r.rows(head.Size)
	proofs := map[uint64]string{}
	gone := []uint64{1, 7, 100, uint64(n / 2), uint64(n)}
	for _, idx := range gone {
		proofs[idx] = prove(idx)
		if _, err := r.led.EraseField(t.Context(), FieldAt{idx, "args"}, lawful); err != nil {
			t.Fatal(err)
		}
	}
	leavesAfter, fieldsAfter := r.rows(head.Size)
	if !slices.EqualFunc(leaves, leavesAfter, func(a, b evidence.Entry) bool {
		return a.Hash == b.Hash && a.Chain == b.Chain && bytes.Equal(a.Leaf, b.Leaf)
	}) {
		t.Fatal("a leaf changed")
	}
	changed := 0
	for at, was := range fields {
		is := fieldsAfter[at]
		if bytes.Equal(was.Text, is.Text) && bytes.Equal(was.Nonce, is.Nonce) && was.Key == is.Key {
			continue
		}
		changed++
		if is.Key != keyErased || len(is.Text) != len(vault.Digest{}) || len(is.Nonce) != 0 {
			t.Fatalf("%s became %+v", at, is)
		}
	}
	if changed != len(gone) || len(fields) != len(fieldsAfter) {
		t.Fatalf("%d rows changed and %d of %d are left, for %d fields", changed, len(fieldsAfter), len(fields), len(gone))
	}
	for idx, was := range proofs {
		if prove(idx) != was {
			t.Fatalf("the proof of record %d changed", idx)
		}
	}
	held, _, err := evidence.OpenCheckpoint(note, r.led.VerifierKey())
	if err != nil || held.Root != head.Root {
		t.Fatal("the checkpoint is not that of before", err)
	}
	if r.url == "" {
		for _, name := range []string{"vault.db", "vault.db-wal"} {
			file, err := os.ReadFile(filepath.Join(r.dir, name))
			if err != nil {
				t.Fatal(err)
			}
			for _, idx := range gone {
				text := fields[fmt.Sprintf("%d/args", idx)].Text
				for _, part := range [][]byte{text[:16], text[len(text)-16:]} {
					if bytes.Contains(file, part) {
						t.Errorf("%s still holds what stood in record %d", name, idx)
					}
				}
			}
		}
	}

	if n <= 2000 { // to open a million records one by one would take an hour
		var b bytes.Buffer
		if err := r.led.ExportAll(t.Context(), &b, ExportOptions{Disclose: true}); err != nil {
			t.Fatal(err)
		}
		rep, err := evidence.VerifyBytes(b.Bytes(), evidence.Options{Keys: []string{r.led.VerifierKey()}, Since: note})
		if err != nil || rep.Problem != evidence.ProblemNone {
			t.Fatal(rep, err)
		}
	}
	if err := r.reopen(); err != nil {
		t.Fatal(err)
	}
	for rec, err := range r.led.Records(t.Context(), 1, 2, "", true) {
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range rec.Fields {
			if f.Erased != (f.Name == "args") || f.Erased == (f.Value != nil) {
				t.Errorf("after a restart: %+v", f)
			}
		}
	}
}

// TestEraseRecordsItself: the order and its fulfilment are events that name the
// place, the person and the basis, and hold nothing of the value.
func TestEraseRecordsItself(t *testing.T) {
	r := newRig(t)
	r.commit(opened("t-1"))
	at := r.commit(intent("t-1", "c-1")).Index
	r.commit(closed("t-1"))
	size := r.led.Head().Size
	done, err := r.led.EraseField(t.Context(), FieldAt{at, "args"}, lawful)
	if err != nil {
		t.Fatal(err)
	}
	if done.Index != size+1 {
		t.Fatalf("closed at %d, want %d", done.Index, size+1)
	}
	var phases []vault.Phase
	for rec, err := range r.led.Records(t.Context(), size, size+2, "", true) {
		if err != nil {
			t.Fatal(err)
		}
		phases = append(phases, rec.Phase)
		got := map[string]string{}
		for _, f := range rec.Fields {
			got[f.Name] = string(f.Value)
		}
		if got["what"] != fmt.Sprintf("%d/args", at) || got["by"] != lawful.By || got["basis"] != lawful.Basis || strings.Contains(fmt.Sprint(got), "/srv/invoices") {
			t.Errorf("recorded %v", got)
		}
	}
	if !slices.Equal(phases, []vault.Phase{vault.PhaseOpened, vault.PhaseClosed}) {
		t.Fatal(phases)
	}
	if _, err := r.led.EraseField(t.Context(), FieldAt{at, "args"}, lawful); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

// TestEraseSubjectReachesBackups: a copy of the database and its log from before is
// of no use once the key of the run is gone.
func TestEraseSubjectReachesBackups(t *testing.T) {
	r := newRig(t)
	for _, run := range []vault.TaskID{"t-1", "t-2"} {
		r.commit(opened(run))
		r.commit(intent(run, "c-1"))
	}
	r.commit(closed("t-1"))
	if err := r.reopen(); err != nil { // what is in the log goes to the file, and the other way round
		t.Fatal(err)
	}
	r.commit(intent("t-2", "c-2"))
	_, backup := r.rows(r.led.Head().Size)

	if _, err := r.led.EraseRun(t.Context(), "t-2", lawful); !errors.Is(err, ErrRunOpen) {
		t.Fatalf("an open run: %v", err)
	}
	if _, err := r.led.EraseRun(t.Context(), "t-1", lawful); err != nil {
		t.Fatal(err)
	}
	lost, left := 0, 0
	for at, s := range backup {
		c, err := r.led.aeads.lookup(s.Key)
		if err == nil {
			if _, err := s.Open(c, origin); err != nil {
				t.Fatalf("%s: %v", at, err)
			}
			left++
			continue
		}
		if s.Key != "t-1" || !errors.Is(err, ErrNoKey) {
			t.Fatalf("%s under %s: %v", at, s.Key, err)
		}
		lost++
	}
	if lost == 0 || left == 0 {
		t.Fatalf("%d fields of the backup are lost and %d are left", lost, left)
	}
	if err := r.reopen(); err != nil {
		t.Fatal(err)
	}
	if rep := r.check(); rep.Problem != evidence.ProblemNone {
		t.Fatal(rep)
	}
}

func TestEraseRefuses(t *testing.T) {
	r := newRig(t)
	r.commit(opened("t-1"))
	call := r.commit(intent("t-1", "c-1")).Index
	stop := r.commit(&vault.Event{Class: vault.ClassRevocation, Phase: vault.PhaseNoted, Fields: []vault.Field{{Name: "what", Value: []byte("all")}}}).Index
	size := r.led.Head().Size
	for name, tc := range map[string]struct {
		at   FieldAt
		o    Erasure
		want error
	}{
		"a record that is to come":     {FieldAt{99, "args"}, lawful, ErrNoField},
		"a field of another class":     {FieldAt{call, "question"}, lawful, ErrNoField},
		"a field that had no value":    {FieldAt{call, "result"}, lawful, ErrNoField},
		"what a revocation revokes":    {FieldAt{stop, "what"}, lawful, ErrKept},
		"an order that nobody gave":    {FieldAt{call, "args"}, Erasure{Basis: "x"}, nil},
		"an order without legal basis": {FieldAt{call, "args"}, Erasure{By: "x"}, nil},
	} {
		if _, err := r.led.EraseField(t.Context(), tc.at, tc.o); err == nil || tc.want != nil && !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, run := range []vault.TaskID{"", "t-none", "../x"} {
		if _, err := r.led.EraseRun(t.Context(), run, lawful); !errors.Is(err, ErrNoRun) {
			t.Errorf("run %q: %v", run, err)
		}
	}
	if got := r.led.Head().Size; got != size {
		t.Errorf("%d events of erasures that were refused", got-size)
	}
}

// TestDiscloseOneFieldRedactOthers: a bundle opens what was asked for and no more.
func TestDiscloseOneFieldRedactOthers(t *testing.T) {
	r := newRig(t)
	r.commit(opened("t-1"))
	at := r.commit(intent("t-1", "c-1")).Index
	r.commit(intent("t-1", "c-2"))
	r.commit(closed("t-1"))
	for name, tc := range map[string]struct {
		o            ExportOptions
		args, caller int
	}{
		"nothing":               {ExportOptions{}, 0, 0},
		"everything":            {ExportOptions{Disclose: true}, 2, 2},
		"all but one name":      {ExportOptions{Disclose: true, Redact: []string{"args"}}, 0, 2},
		"one field of a record": {ExportOptions{Only: &FieldAt{at, "args"}}, 1, 0},
		"one, whatever else":    {ExportOptions{Only: &FieldAt{at, "caller"}, Disclose: true}, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			args, caller := 0, 0
			for e, err := range r.led.entries(t.Context(), 0, r.led.Head().Size, "t-1") {
				if err != nil {
					t.Fatal(err)
				}
				err := r.led.disclose(t.Context(), &e, tc.o.reveals, func(d evidence.Disclosure) error {
					switch d.Field {
					case "args":
						args++
					case "caller":
						caller++
					}
					leaf, err := evidence.ParseLeaf(e.Leaf)
					if err != nil {
						return err
					}
					return d.Verify(leaf)
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			if args != tc.args || caller != tc.caller {
				t.Fatalf("opened args %d times and caller %d times, want %d and %d", args, caller, tc.args, tc.caller)
			}
			var b bytes.Buffer
			if err := r.led.ExportRun(t.Context(), &b, "t-1", tc.o); err != nil {
				t.Fatal(err)
			}
			if rep, err := evidence.VerifyBytes(b.Bytes(), evidence.Options{Keys: []string{r.led.VerifierKey()}}); err != nil || rep.Problem != evidence.ProblemNone {
				t.Fatal(rep, err)
			}
		})
	}
}

// TestEraseFieldBehindALocalLog: what cannot be fulfilled is refused before it is on
// record, and the subject can be erased instead.
func TestEraseFieldBehindALocalLog(t *testing.T) {
	localLog = true
	defer func() { localLog = false }()
	r := newRig(t)
	r.commit(opened("t-1"))
	at := r.commit(intent("t-1", "c-1")).Index
	r.commit(closed("t-1"))
	size := r.led.Head().Size
	if _, err := r.led.EraseField(t.Context(), FieldAt{at, "args"}, lawful); !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "erase the subject") {
		t.Errorf("error %v, want one that says what to do", err)
	}
	if now := r.led.Head().Size; now != size {
		t.Errorf("the ledger grew from %d to %d by an erasure that was refused", size, now)
	}
	if _, err := r.led.EraseRun(t.Context(), "t-1", lawful); err != nil {
		t.Error(err)
	}
}

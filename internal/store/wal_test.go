package store

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

func walRecordOf(h evidence.Head) (*walRecord, evidence.Head) {
	next := h
	next.Size++
	next.Chain = vault.Digest{byte(next.Size), byte(next.Epoch)}
	return &walRecord{
		before: h, after: next,
		entries: []evidence.Entry{{Index: h.Size, Micro: -1, Run: "t-1", Class: vault.ClassCall, Leaf: bytes.Repeat([]byte("x"), 100), Hash: vault.Digest{1}, Chain: next.Chain}},
		sealed:  []evidence.Sealed{{Index: h.Size, Field: "args", Nonce: []byte{1}, Text: []byte{2}, Key: "k"}},
	}, next
}

// TestWAL fills a small log several times over, and starts it again at each end.
func TestWAL(t *testing.T) {
	dir := t.TempDir()
	s := tenantIn(t, dir)
	const size = 4 << 10 // a dozen batches
	w, err := s.openWAL(t.Context(), filepath.Join(dir, "wal"), size)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.openWAL(t.Context(), filepath.Join(dir, "wal"), size); !errors.Is(err, ErrLocked) {
		t.Fatalf("opened twice: %v", err)
	}
	h, err := w.Seize(t.Context(), evidence.Head{})
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		r, next := walRecordOf(h)
		if err := w.Append(t.Context(), r.before, r.after, r.entries, r.sealed); err != nil {
			t.Fatal(err)
		}
		if err := w.Append(t.Context(), r.before, r.after, r.entries, r.sealed); !errors.Is(err, ErrStale) {
			t.Fatalf("appended twice: %v", err)
		}
		h = next
		hashes, err1 := w.Hashes(t.Context(), 0, h.Size)
		fields, err2 := w.Sealed(t.Context(), h.Size-1)
		there, err3 := w.RunExists(t.Context(), "t-1")
		n := uint64(0)
		for e, err := range w.RunEntries(t.Context(), "t-1", 0, h.Size) {
			if err != nil || e.Index != n {
				t.Fatal(e.Index, n, err)
			}
			n++
		}
		if uint64(len(hashes)) != h.Size || len(fields) != 1 || !there || n != h.Size || errors.Join(err1, err2, err3) != nil {
			t.Fatal(len(hashes), len(fields), there, n, err1, err2, err3)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Head(t.Context()); err != nil || got.Size != 100 || got.Chain != h.Chain {
		t.Fatal(got, err)
	}
}

func tenantIn(t *testing.T, dir string) *Tenant {
	t.Helper()
	d := openDB(t, filepath.Join(dir, "vault.db"))
	s, err := d.Tenant(t.Context(), "acme")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestWALIsReplayed writes logs as a crash leaves them.
func TestWALIsReplayed(t *testing.T) {
	first, h1 := walRecordOf(evidence.Head{Epoch: 1})
	second, h2 := walRecordOf(h1)
	third, _ := walRecordOf(h2)
	old, _ := walRecordOf(evidence.Head{Epoch: 1, Size: 1})
	old.before.Chain = vault.Digest{9}
	other, _ := walRecordOf(evidence.Head{Epoch: 7, Size: 1})
	log := func(rs ...*walRecord) (b []byte) {
		for _, r := range rs {
			b = r.appendTo(b)
		}
		return b
	}
	torn := log(first, second)
	torn[len(torn)-1] ^= 1
	for name, tc := range map[string]struct {
		files [2][]byte
		want  uint64
		err   error
	}{
		"an empty log":                           {want: 0},
		"a batch the database has not":           {files: [2][]byte{log(first)}, want: 1},
		"batches in order in both files":         {files: [2][]byte{log(third), log(first, second)}, want: 3},
		"a torn write was not acknowledged":      {files: [2][]byte{torn}, want: 1},
		"what was there before is not continued": {files: [2][]byte{log(first, old)}, want: 1},
		"a gap":                                  {files: [2][]byte{log(second)}, err: ErrWAL},
		"an epoch the database does not know":    {files: [2][]byte{log(other)}, err: ErrWAL},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := tenantIn(t, dir)
			if _, err := s.Seize(t.Context(), evidence.Head{}); err != nil {
				t.Fatal(err)
			}
			for i, b := range tc.files {
				if err := os.WriteFile(filepath.Join(dir, "wal."+string(rune('0'+i))), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 { // a second start finds it done
				w, err := s.openWAL(t.Context(), filepath.Join(dir, "wal"), 4<<10)
				if !errors.Is(err, tc.err) {
					t.Fatal(err)
				}
				if err != nil {
					return
				}
				if got, err := s.Head(t.Context()); err != nil || got.Size != tc.want {
					t.Fatal(got.Size, err)
				}
				w.Close()
			}
		})
	}
}

func TestWALIsLostToAnotherDaemon(t *testing.T) {
	dir := t.TempDir()
	s := tenantIn(t, dir)
	w, err := s.openWAL(t.Context(), filepath.Join(dir, "wal"), 4<<10)
	if err != nil {
		t.Fatal(err)
	}
	h, err := w.Seize(t.Context(), evidence.Head{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Seize(t.Context(), h); err != nil { // behind its back
		t.Fatal(err)
	}
	for err == nil {
		r, next := walRecordOf(h)
		err = w.Append(context.Background(), r.before, r.after, r.entries, r.sealed)
		h = next
	}
	if !errors.Is(err, ErrWAL) {
		t.Fatal(err)
	}
	if err := w.Close(); !errors.Is(err, ErrWAL) {
		t.Fatal(err)
	}
}

func FuzzWALRecord(f *testing.F) {
	r, _ := walRecordOf(evidence.Head{Epoch: 1, Size: 4, Frontier: []byte{1}})
	f.Add(r.appendTo(nil)[walHeader:])
	f.Fuzz(func(t *testing.T, payload []byte) {
		whole := (&walRecord{}).appendTo(nil)[:walHeader]
		whole = sealPayload(append(whole, payload...))
		got, n, err := readRecord(whole)
		if err != nil {
			return
		}
		if again := got.appendTo(nil); n != len(whole) || !bytes.Equal(again, whole) {
			t.Fatalf("%x was read, %x written", whole, again)
		}
		if back, _, err := readRecord(got.appendTo(nil)); err != nil || !reflect.DeepEqual(got, back) {
			t.Fatal(err)
		}
	})
}

package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

func openDB(t testing.TB, path string) *DB {
	t.Helper()
	d, err := Open(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// TestSQLite holds SQLite to the suite that every store passes.
func TestSQLite(t *testing.T) {
	suite(t, func(t *testing.T) func(name vault.Tenant) *Tenant {
		path := filepath.Join(t.TempDir(), "vault.db")
		d := openDB(t, path)
		return func(name vault.Tenant) *Tenant {
			tenant, err := d.Tenant(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			return tenant
		}
	})
}

// suite is what the ledger and the daemon rely on. open returns a function that
// opens tenants of one fresh store.
func suite(t *testing.T, open func(t *testing.T) func(vault.Tenant) *Tenant) {
	entries := func(from, n uint64) (list []evidence.Entry) {
		for i := from; i < from+n; i++ {
			list = append(list, evidence.Entry{
				Index: i, Micro: int64(i), Run: vault.TaskID(fmt.Sprintf("t-%d", i%3)), Class: vault.ClassCall,
				Leaf: []byte(fmt.Sprintf("leaf %d", i)), Hash: vault.Digest{byte(i), 1}, Chain: vault.Digest{byte(i), 2},
			})
		}
		return list
	}
	head := func(epoch, size uint64) evidence.Head {
		return evidence.Head{Epoch: epoch, Size: size, Chain: vault.Digest{byte(size)}, Root: vault.Digest{byte(size), 9}, Frontier: []byte{1, 2}}
	}
	read := func(t *testing.T, s *Tenant, from, to uint64, run vault.TaskID) (idx []uint64) {
		t.Helper()
		seq := s.Entries(t.Context(), from, to)
		if run != "" {
			seq = s.RunEntries(t.Context(), run, from, to)
		}
		for e, err := range seq {
			if err != nil {
				t.Fatal(err)
			}
			want := entries(e.Index, 1)[0]
			if string(e.Leaf) != string(want.Leaf) || e.Hash != want.Hash || e.Chain != want.Chain || e.Run != want.Run || e.Class != want.Class || e.Micro != want.Micro {
				t.Fatalf("entry %+v, want %+v", e, want)
			}
			idx = append(idx, e.Index)
		}
		return idx
	}

	t.Run("a new ledger has the zero head", func(t *testing.T) {
		s := open(t)("acme")
		if h, err := s.Head(t.Context()); err != nil || h.Epoch != 0 || h.Size != 0 {
			t.Fatal(h, err)
		}
	})
	t.Run("what was appended is read back, in order and by run", func(t *testing.T) {
		s := open(t)("acme")
		h, err := s.Seize(t.Context(), evidence.Head{})
		if err != nil || h.Epoch != 1 {
			t.Fatal(h, err)
		}
		const n = 201 // every chunk size
		sealed := []evidence.Sealed{{Index: 7, Field: "b", Nonce: []byte{1}, Text: []byte{2}, Key: "k"}, {Index: 7, Field: "a", Nonce: []byte{3}, Text: []byte{4}, Key: "k"}}
		if err := s.Append(t.Context(), h, head(1, n), entries(0, n), sealed); err != nil {
			t.Fatal(err)
		}
		if got := read(t, s, 0, n, ""); len(got) != n || !slices.IsSorted(got) {
			t.Fatal(got)
		}
		if got := read(t, s, 5, 12, "t-0"); !slices.Equal(got, []uint64{6, 9}) {
			t.Fatal(got)
		}
		if got, err := s.Head(t.Context()); err != nil || got.Size != n || got.Chain != head(1, n).Chain || got.Root != head(1, n).Root || string(got.Frontier) != "\x01\x02" {
			t.Fatal(got, err)
		}
		hashes, err := s.Hashes(t.Context(), 3, 5)
		if err != nil || !slices.Equal(hashes, []vault.Digest{{3, 1}, {4, 1}}) {
			t.Fatal(hashes, err)
		}
		fields, err := s.Sealed(t.Context(), 7)
		if err != nil || len(fields) != 2 || fields[0].Field != "a" || fields[1].Text[0] != 2 {
			t.Fatal(fields, err)
		}
		for run, want := range map[vault.TaskID]bool{"t-1": true, "t-9": false} {
			if got, err := s.RunExists(t.Context(), run); err != nil || got != want {
				t.Fatal(run, got, err)
			}
		}
		if err := s.PutCheckpoint(t.Context(), n, []byte("note")); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("the newest checkpoint of at most a size", func(t *testing.T) {
		at := open(t)
		s := at("acme")
		for size, note := range map[uint64]string{2: "two", 5: "older", 9: "nine"} {
			if err := s.PutCheckpoint(t.Context(), size, []byte(note)); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.PutCheckpoint(t.Context(), 5, []byte("five")); err != nil {
			t.Fatal(err)
		}
		for most, want := range map[uint64]string{0: "", 1: "", 2: "two", 4: "two", 5: "five", 8: "five", 9: "nine", 1 << 63: "nine"} {
			note, size, err := s.Checkpoint(t.Context(), most)
			if err != nil || string(note) != want || size > most || (size == 0) != (want == "") {
				t.Errorf("of at most %d: %q over %d, %v; want %q", most, note, size, err, want)
			}
		}
		if note, _, err := at("other").Checkpoint(t.Context(), 9); err != nil || note != nil {
			t.Errorf("of another tenant: %q, %v", note, err)
		}
	})
	t.Run("a stale daemon appends nothing", func(t *testing.T) {
		s := open(t)("acme")
		first, err := s.Seize(t.Context(), evidence.Head{})
		if err != nil {
			t.Fatal(err)
		}
		second, err := s.Seize(t.Context(), first)
		if err != nil {
			t.Fatal(err)
		}
		for name, before := range map[string]evidence.Head{"old epoch": first, "old size": {Epoch: second.Epoch, Size: 5}} {
			if err := s.Append(t.Context(), before, head(9, 1), entries(0, 1), nil); !errors.Is(err, ErrStale) {
				t.Fatalf("%s: %v", name, err)
			}
		}
		if _, err := s.Seize(t.Context(), first); !errors.Is(err, ErrStale) {
			t.Fatal(err)
		}
		if got := read(t, s, 0, 10, ""); got != nil {
			t.Fatal(got)
		}
	})
	t.Run("a failed append leaves nothing behind", func(t *testing.T) {
		s := open(t)("acme")
		h, err := s.Seize(t.Context(), evidence.Head{})
		if err != nil {
			t.Fatal(err)
		}
		twice := append(entries(0, 3), entries(1, 1)...)
		if err := s.Append(t.Context(), h, head(1, 4), twice, nil); err == nil {
			t.Fatal("the same index twice was taken")
		}
		if err := s.Append(t.Context(), h, head(1, 3), entries(0, 3), nil); err != nil {
			t.Fatalf("after a failed append: %v", err)
		}
	})
	t.Run("tenants do not see each other", func(t *testing.T) {
		tenant := open(t)
		a, b := tenant("a"), tenant("b")
		for _, s := range []*Tenant{a, b} {
			h, err := s.Seize(t.Context(), evidence.Head{})
			if err != nil {
				t.Fatal(err)
			}
			if s == b {
				break
			}
			if err := s.Append(t.Context(), h, head(1, 3), entries(0, 3), []evidence.Sealed{{Index: 1, Field: "f", Nonce: []byte{1}, Text: []byte{1}, Key: "k"}}); err != nil {
				t.Fatal(err)
			}
		}
		if err := a.PutRecord(t.Context(), Record{Kind: KindServer, ID: "files", Doc: []byte("x")}); err != nil {
			t.Fatal(err)
		}
		if err := a.PutTask(t.Context(), Task{ID: "t-1", Principal: "p", State: TaskOpen}); err != nil {
			t.Fatal(err)
		}
		if got := read(t, b, 0, 1<<50, ""); got != nil {
			t.Fatal(got)
		}
		exists, err1 := b.RunExists(t.Context(), "t-0")
		fields, err2 := b.Sealed(t.Context(), 1)
		records, err3 := b.Records(t.Context(), KindServer, "")
		tasks, err4 := b.Tasks(t.Context(), "")
		if exists || fields != nil || records != nil || tasks != nil {
			t.Fatal("b sees what is a's", exists, fields, records, tasks)
		}
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("a file and principal have one open task", func(t *testing.T) {
		s := open(t)("acme")
		task := Task{ID: "t-1", FileDigest: vault.Digest{1}, Principal: "user:clerk", State: TaskOpen, Opened: time.UnixMicro(5).UTC(), Doc: []byte("d")}
		if err := s.PutTask(t.Context(), task); err != nil {
			t.Fatal(err)
		}
		got, err := s.OpenTask(t.Context(), task.FileDigest, task.Principal)
		if err != nil || got.ID != task.ID || !got.Opened.Equal(task.Opened) || string(got.Doc) != "d" {
			t.Fatal(got, err)
		}
		other := task
		other.ID = "t-2"
		if err := s.PutTask(t.Context(), other); !errors.Is(err, ErrTaskOpen) {
			t.Fatal(err)
		}
		task.State = TaskClosed
		if err := s.PutTask(t.Context(), task); err != nil {
			t.Fatal(err)
		}
		if err := s.PutTask(t.Context(), other); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Task(t.Context(), "t-9"); !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
		if list, err := s.Tasks(t.Context(), TaskOpen); err != nil || len(list) != 1 || list[0].ID != "t-2" {
			t.Fatal(list, err)
		}
		if err := s.PutTask(t.Context(), Task{ID: "t-3"}); err == nil {
			t.Fatal("a task without a state was taken")
		}
	})
	t.Run("records are kept by kind, id and state", func(t *testing.T) {
		s := open(t)("acme")
		for _, r := range []Record{{KindApproval, "a-2", "asked", []byte("2")}, {KindApproval, "a-1", "asked", []byte("1")}, {KindApproval, "a-1", "allowed", nil}, {KindServer, "a-1", "", []byte("s")}} {
			if err := s.PutRecord(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
		if list, err := s.Records(t.Context(), KindApproval, "asked"); err != nil || len(list) != 1 || list[0].ID != "a-2" {
			t.Fatal(list, err)
		}
		if list, err := s.Records(t.Context(), KindApproval, ""); err != nil || len(list) != 2 || list[0].State != "allowed" {
			t.Fatal(list, err)
		}
		if err := s.DeleteRecord(t.Context(), KindServer, "a-1"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Record(t.Context(), KindServer, "a-1"); !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
		if err := s.DeleteRecord(t.Context(), KindServer, "a-1"); !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
	})
}

func TestSecondProcessIsLockedOut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vault.db")
	if os.Getenv("STORE_TEST_PATH") != "" {
		if _, err := Open(t.Context(), os.Getenv("STORE_TEST_PATH")); !errors.Is(err, ErrLocked) {
			t.Fatalf("opened: %v", err)
		}
		return
	}
	d := openDB(t, path)
	if _, err := Open(t.Context(), path); !errors.Is(err, ErrLocked) {
		t.Fatalf("the same process opened it twice: %v", err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSecondProcessIsLockedOut$")
	cmd.Env = append(os.Environ(), "STORE_TEST_PATH="+path)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	openDB(t, path)
}

func TestNewerSchemaIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vault.db")
	d := openDB(t, path)
	if _, err := d.engine.(*file).write.ExecContext(t.Context(), fmt.Sprintf("PRAGMA user_version = %d", len(migrations)+1)); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if d, err := Open(t.Context(), path); err == nil {
		d.Close()
		t.Fatal("a schema from the future was opened")
	}
}

func TestFileIsPrivateAndSynced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vault.db")
	d := openDB(t, path)
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2"} {
		var got string
		if err := d.engine.(*file).write.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got); err != nil || got != want {
			t.Fatalf("%s is %s, want %s: %v", pragma, got, want, err)
		}
	}
	for _, f := range []string{path, path + "-wal", path + ".lock"} {
		st, err := os.Stat(f)
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Fatalf("%s: %v, %v", f, st.Mode(), err)
		}
	}
}

// BenchmarkAppend is the bare store: rows in, no sequencer.
func BenchmarkAppend(b *testing.B) {
	for _, batch := range []int{1, 64, 1024} {
		b.Run(fmt.Sprint(batch), func(b *testing.B) {
			d := openDB(b, filepath.Join(b.TempDir(), "vault.db"))
			s, err := d.Tenant(b.Context(), "acme")
			if err != nil {
				b.Fatal(err)
			}
			h, err := s.Seize(b.Context(), evidence.Head{})
			if err != nil {
				b.Fatal(err)
			}
			leaf := make([]byte, 613)
			rows := make([]evidence.Entry, batch)
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				for i := range rows {
					rows[i] = evidence.Entry{Index: h.Size + uint64(i), Run: vault.TaskID(fmt.Sprintf("t-%d", i)), Class: vault.ClassCall, Leaf: leaf}
				}
				next := h
				next.Size += uint64(batch)
				if err := s.Append(b.Context(), h, next, rows, nil); err != nil {
					b.Fatal(err)
				}
				h = next
				n += batch
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

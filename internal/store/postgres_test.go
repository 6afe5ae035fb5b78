//go:build unix

package store

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
	"github.com/pilox/vault/internal/vaulttest"
)

func openPG(t testing.TB, url string) *DB {
	t.Helper()
	d, err := OpenPostgres(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func tenantOf(t testing.TB, d *DB, name vault.Tenant) *Tenant {
	t.Helper()
	s, err := d.Tenant(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestPostgres holds PostgreSQL to the suite that every store passes, and to what
// only a server can do. One server for all: to start one takes seconds.
func TestPostgres(t *testing.T) {
	pg := vaulttest.StartPostgres(t)
	n := 0
	fresh := func(t *testing.T) string {
		n++
		return pg.URL(t, fmt.Sprintf("v%d", n))
	}
	t.Run("suite", func(t *testing.T) {
		suite(t, func(t *testing.T) func(vault.Tenant) *Tenant {
			d := openPG(t, fresh(t))
			return func(name vault.Tenant) *Tenant { return tenantOf(t, d, name) }
		})
	})
	t.Run("two daemons that start at once make one schema", func(t *testing.T) {
		url := fresh(t)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				d, err := OpenPostgres(t.Context(), url)
				if err != nil {
					t.Error(err)
					return
				}
				d.Close()
			})
		}
		wg.Wait()
	})
	t.Run("of daemons that race, one appends", func(t *testing.T) { raceAppend(t, fresh(t)) })
	t.Run("a batch staged behind another is written after it or not at all", func(t *testing.T) { stageBehind(t, fresh(t)) })
	t.Run("roles", func(t *testing.T) { roles(t, pg, fresh(t), fmt.Sprintf("v%d", n)) })
	t.Run("a lease has one holder", func(t *testing.T) { lease(t, fresh(t)) })
	t.Run("after a restart of the server the next append works", func(t *testing.T) {
		s := tenantOf(t, openPG(t, fresh(t)), "acme")
		h, err := s.Seize(t.Context(), evidence.Head{})
		if err != nil {
			t.Fatal(err)
		}
		h = appendTo(t, s, h)
		pg.Kill()
		if err := s.Append(t.Context(), h, h, nil, nil); err == nil {
			t.Fatal("appended to a server that is down")
		}
		pg.Start(t)
		// The pool may hold more than one dead connection.
		for range pgReads + 1 {
			if _, err = s.Head(t.Context()); err == nil {
				break
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		h = appendTo(t, s, h)
		if got, err := s.Head(t.Context()); err != nil || got.Size != h.Size {
			t.Fatal(got, err)
		}
	})
	t.Run("a server without fsync is refused", func(t *testing.T) {
		url := fresh(t)
		pg.SQL(t, "postgres", "ALTER SYSTEM SET fsync = off")
		pg.SQL(t, "postgres", "SELECT pg_reload_conf()")
		defer pg.SQL(t, "postgres", "SELECT pg_reload_conf()")
		defer pg.SQL(t, "postgres", "ALTER SYSTEM RESET fsync")
		for pg.SQL(t, "postgres", "SHOW fsync") != "off" {
			time.Sleep(time.Millisecond)
		}
		if d, err := OpenPostgres(t.Context(), url); err == nil || !strings.Contains(err.Error(), "fsync") {
			d.Close()
			t.Fatalf("opened: %v", err)
		}
	})
	t.Run("a schema from the future is refused", func(t *testing.T) {
		url := fresh(t)
		openPG(t, url).Close()
		pg.SQL(t, fmt.Sprintf("v%d", n), "UPDATE pvault.schema_version SET version = version + 1")
		if d, err := OpenPostgres(t.Context(), url); err == nil {
			d.Close()
			t.Fatal("opened")
		}
	})
}

func one(h evidence.Head) ([]evidence.Entry, evidence.Head) {
	next := h
	next.Size++
	next.Chain = vault.Digest{byte(next.Size), byte(next.Epoch)}
	return []evidence.Entry{{Index: h.Size, Run: "t-1", Class: vault.ClassCall, Leaf: []byte(fmt.Sprint(h.Epoch)), Chain: next.Chain}}, next
}

func appendTo(t *testing.T, s *Tenant, h evidence.Head) evidence.Head {
	t.Helper()
	rows, next := one(h)
	if err := s.Append(t.Context(), h, next, rows, nil); err != nil {
		t.Fatal(err)
	}
	return next
}

// raceAppend has daemons take a ledger from each other as fast as they can while
// each appends until it loses: the rows must be one history.
func raceAppend(t *testing.T, url string) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	acked := map[uint64]uint64{} // index → epoch
	for range 3 {
		s := tenantOf(t, openPG(t, url), "acme")
		wg.Go(func() {
			for range 15 {
				h, err := s.Head(t.Context())
				if err == nil {
					h, err = s.Seize(t.Context(), h)
				}
				for i := 0; i < 20 && err == nil; i++ {
					rows, next := one(h)
					if err = s.Append(t.Context(), h, next, rows, nil); err == nil {
						mu.Lock()
						if _, twice := acked[h.Size]; twice {
							t.Errorf("index %d was acknowledged twice", h.Size)
						}
						acked[h.Size] = h.Epoch
						mu.Unlock()
						h = next
					}
				}
				if err != nil && !errors.Is(err, ErrStale) && !strings.Contains(err.Error(), "23505") { // the index is taken
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	s := tenantOf(t, openPG(t, url), "acme")
	h, err := s.Head(t.Context())
	if err != nil || uint64(len(acked)) != h.Size {
		t.Fatalf("%d acknowledged, the head says %d: %v", len(acked), h.Size, err)
	}
	for e, err := range s.Entries(t.Context(), 0, h.Size) {
		if err != nil || string(e.Leaf) != fmt.Sprint(acked[e.Index]) {
			t.Fatalf("leaf %d is of epoch %s, acknowledged to %d: %v", e.Index, e.Leaf, acked[e.Index], err)
		}
	}
}

func stageBehind(t *testing.T, url string) {
	s := tenantOf(t, openPG(t, url), "acme")
	h, err := s.Seize(t.Context(), evidence.Head{})
	if err != nil {
		t.Fatal(err)
	}
	first, mid := one(h)
	second, end := one(mid)
	staged, err := s.Stage(t.Context(), second, []evidence.Sealed{{Index: 1, Field: "f", Nonce: []byte{1}, Text: []byte{2}, Key: "k"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := staged(t.Context(), mid, end, true); !errors.Is(err, ErrStale) {
		t.Fatalf("committed before its turn: %v", err)
	}
	if staged, err = s.Stage(t.Context(), second, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Append(t.Context(), h, mid, first, nil); err != nil {
		t.Fatal(err)
	}
	if err := staged(t.Context(), mid, end, true); err != nil {
		t.Fatal(err)
	}
	third, last := one(end)
	if staged, err = s.Stage(t.Context(), third, nil); err != nil {
		t.Fatal(err)
	}
	if err := staged(t.Context(), end, last, false); err != nil {
		t.Fatal(err)
	}
	if err := s.Append(t.Context(), end, last, third, nil); err != nil {
		t.Fatalf("after one was discarded: %v", err)
	}
	if fields, err := s.Sealed(t.Context(), 1); err != nil || fields != nil {
		t.Fatal("a batch that failed left a field", fields, err)
	}
}

// roles holds the grants against what each role must not do.
func roles(t *testing.T, pg *vaulttest.Postgres, url, database string) {
	pg.SQL(t, database, PostgresSQL())
	pg.SQL(t, database, "CREATE ROLE daemon LOGIN IN ROLE pvault_writer; CREATE ROLE gdpr LOGIN IN ROLE pvault_eraser; CREATE ROLE audit LOGIN IN ROLE pvault_auditor")
	as := func(role string) *DB { return openPG(t, strings.Replace(url, "vault@", role+"@", 1)) }
	d := as("daemon")
	s := tenantOf(t, d, "acme")
	h, err := s.Seize(t.Context(), evidence.Head{})
	if err != nil {
		t.Fatal(err)
	}
	rows, next := one(h)
	if err := s.Append(t.Context(), h, next, rows, []evidence.Sealed{{Index: 0, Field: "f", Nonce: []byte{1}, Text: []byte{2}, Key: "k"}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Lease(t.Context(), "d-1", time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.PutCheckpoint(t.Context(), 1, []byte("n")), s.PutCheckpoint(t.Context(), 1, []byte("n")), s.PutTask(t.Context(), Task{ID: "t", State: TaskOpen})); err != nil {
		t.Fatal(err)
	}
	for _, no := range []struct{ role, query string }{
		{"daemon", `UPDATE audit_leaf SET leaf = ''`},
		{"daemon", `DELETE FROM audit_leaf`},
		{"daemon", `TRUNCATE audit_leaf`},
		{"daemon", `DELETE FROM audit_detail`},
		{"daemon", `DELETE FROM audit_head`},
		{"daemon", `DROP TABLE audit_leaf`},
		{"gdpr", `DELETE FROM audit_leaf`},
		{"gdpr", `UPDATE audit_head SET size = 0`},
		{"gdpr", `SELECT * FROM audit_leaf`},
		{"audit", `DELETE FROM audit_detail`},
		{"audit", `INSERT INTO audit_ckpt VALUES (1, 5, '')`},
		{"audit", `SELECT audit_extend(77)`},
	} {
		cmd := fmt.Sprintf("SET ROLE %s; SET search_path = pvault; %s", no.role, no.query)
		if out := pg.Refuses(t, database, cmd); !strings.Contains(out, "permission denied") && !strings.Contains(out, "must be owner") {
			t.Errorf("%s may %s: %s", no.role, no.query, out)
		}
	}
	pg.SQL(t, database, "SET ROLE gdpr; DELETE FROM pvault.audit_detail WHERE pos >= 0")
	pg.SQL(t, database, "SET ROLE audit; SELECT count(*) FROM pvault.audit_leaf")
}

func lease(t *testing.T, url string) {
	a, b := tenantOf(t, openPG(t, url), "acme"), tenantOf(t, openPG(t, url), "acme")
	ctx := t.Context()
	if err := a.Lease(ctx, "a", time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := a.Lease(ctx, "a", time.Minute); err != nil {
		t.Fatalf("renew: %v", err)
	}
	if err := b.Lease(ctx, "b", time.Minute); !errors.Is(err, ErrHeld) {
		t.Fatalf("two holders: %v", err)
	}
	if err := b.Release(ctx, "b"); err != nil {
		t.Fatal(err)
	}
	if err := b.Lease(ctx, "b", time.Minute); !errors.Is(err, ErrHeld) {
		t.Fatalf("released by another: %v", err)
	}
	if err := a.Lease(ctx, "a", -time.Second); err != nil { // it ends
		t.Fatal(err)
	}
	if err := b.Lease(ctx, "b", time.Minute); err != nil {
		t.Fatalf("after its end: %v", err)
	}
	if err := a.Lease(ctx, "a", time.Minute); !errors.Is(err, ErrHeld) {
		t.Fatalf("taken back: %v", err)
	}
}

func TestPostgresURLs(t *testing.T) {
	for url, want := range map[string]string{
		"postgres://vault@db.example/vault":                          errPlain.Error(),
		"postgres://vault@db.example/vault?sslmode=require":          errPlain.Error(),
		"postgres://vault@127.0.0.1,db.example/vault?sslmode=prefer": errPlain.Error(),
		"postgres://vault:hunter2@localhost/vault":                   "holds a password",
		"postgres://vault@localhost/vault?password=hunter2":          "holds a password",
		"postgres://vault@localhost:hunter2/vault":                   "cannot be read",
		"host=localhost": "want postgres://",
		"postgres://vault@db.example/vault?sslmode=verify-full&sslrootcert=system": "",
		"postgres://vault@localhost/vault":                                         "",
		"postgres:///vault?host=/run/postgresql":                                   "",
	} {
		_, err := pgConfig(url)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", url, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error repeats the password: %v", url, err)
		}
	}
}

func TestDollars(t *testing.T) {
	for in, want := range map[string]string{
		"SELECT 1":              "SELECT 1",
		"a = ? AND b = ?":       "a = $1 AND b = $2",
		"a = ?1 AND b = ?12":    "a = $1 AND b = $12",
		"a = ?2 OR b = ?2, c ?": "a = $2 OR b = $2, c $3",
	} {
		if got := dollars(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestCopyFormEnds(t *testing.T) {
	b := copyLeaves(&Tenant{}, []evidence.Entry{{Leaf: []byte("x")}})
	if !bytes.HasPrefix(b, []byte(copyHeader)) || !bytes.HasSuffix(b, []byte{0xff, 0xff}) || copyLeaves(&Tenant{}, nil) != nil || copyDetails(&Tenant{}, nil) != nil {
		t.Fatalf("%q", b)
	}
}

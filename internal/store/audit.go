package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"iter"
	"strings"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

// Head returns the head of the ledger, the zero Head for one that was never
// written.
func (t *Tenant) Head(ctx context.Context) (evidence.Head, error) {
	var h evidence.Head
	var chain, root []byte
	err := t.db.read.QueryRowContext(ctx, `SELECT epoch, size, chain, root, frontier FROM audit_head WHERE tenant = ?`, t.id).
		Scan(&h.Epoch, &h.Size, &chain, &root, &h.Frontier)
	if errors.Is(err, sql.ErrNoRows) {
		return evidence.Head{}, nil
	}
	if err == nil && (len(chain) != len(h.Chain) || len(root) != len(h.Root)) {
		err = errors.New("a digest is not 32 bytes long")
	}
	if err != nil {
		return evidence.Head{}, fmt.Errorf("read head: %w", err)
	}
	h.Chain, h.Root = vault.Digest(chain), vault.Digest(root)
	return h, nil
}

// Seize starts a new epoch over the head h, so that whoever had the ledger
// before can append no more. It returns the head with the new epoch, or
// [ErrStale] if the stored head is not h.
func (t *Tenant) Seize(ctx context.Context, h evidence.Head) (evidence.Head, error) {
	next := h
	next.Epoch++
	n, err := t.exec(ctx, `INSERT INTO audit_head(tenant, epoch, size, chain, root, frontier) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
		ON CONFLICT (tenant) DO UPDATE SET epoch = excluded.epoch WHERE audit_head.epoch = ?7 AND audit_head.size = ?3`,
		t.id, int64(next.Epoch), int64(h.Size), h.Chain[:], h.Root[:], notNil(h.Frontier), int64(h.Epoch))
	if err != nil {
		return evidence.Head{}, fmt.Errorf("start epoch %d: %w", next.Epoch, err)
	}
	if n != 1 {
		return evidence.Head{}, fmt.Errorf("start epoch %d: %w", next.Epoch, ErrStale)
	}
	return next, nil
}

// Append writes entries and the sealed fields beside them and moves the head
// from before to after, all or nothing. It fails with [ErrStale] unless the
// stored head has the epoch and size of before.
func (t *Tenant) Append(ctx context.Context, before, after evidence.Head, entries []evidence.Entry, sealed []evidence.Sealed) error {
	t.db.mu.Lock()
	defer t.db.mu.Unlock()
	err := t.db.write.Raw(func(c any) error {
		w := writer{ctx: ctx, db: t.db, conn: c.(conn)}
		if _, err := w.exec(`BEGIN IMMEDIATE`); err != nil {
			return err
		}
		err := t.append(&w, before, after, entries, sealed)
		if err == nil {
			_, err = w.exec(`COMMIT`)
		}
		if err != nil {
			// A cancelled context must not leave the transaction open.
			w.ctx = context.WithoutCancel(ctx)
			_, back := w.exec(`ROLLBACK`)
			if back != nil && !strings.Contains(back.Error(), "no transaction is active") {
				err = errors.Join(err, back)
			}
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("append %d leaves: %w", len(entries), err)
	}
	return nil
}

func (t *Tenant) append(w *writer, before, after evidence.Head, entries []evidence.Entry, sealed []evidence.Sealed) error {
	w.args = append(w.args[:0], int64(after.Size), after.Chain[:], after.Root[:], notNil(after.Frontier),
		t.id, int64(before.Epoch), int64(before.Size))
	n, err := w.exec(`UPDATE audit_head SET size = ?, chain = ?, root = ?, frontier = ? WHERE tenant = ? AND epoch = ? AND size = ?`)
	if err != nil {
		return err
	}
	if n != 1 {
		return ErrStale
	}
	for len(entries) > 0 {
		n := chunk(len(entries))
		w.args = w.args[:0]
		for i := range entries[:n] {
			e := &entries[i]
			w.args = append(w.args, t.pos(e.Index), e.Micro, string(e.Run), string(e.Class), e.Leaf, e.Hash[:], e.Chain[:])
		}
		if _, err := w.exec(insertLeaf[n]); err != nil {
			return err
		}
		entries = entries[n:]
	}
	for len(sealed) > 0 {
		n := chunk(len(sealed))
		w.args = w.args[:0]
		for i := range sealed[:n] {
			s := &sealed[i]
			w.args = append(w.args, t.pos(s.Index), s.Field, s.Nonce, s.Text, s.Key)
		}
		if _, err := w.exec(insertDetail[n]); err != nil {
			return err
		}
		sealed = sealed[n:]
	}
	return nil
}

// chunk returns how many of n rows go into the next statement. Few sizes, so
// that each has a prepared statement; large ones, because a statement costs more
// than a row.
func chunk(n int) int {
	for _, c := range chunks {
		if n >= c {
			return c
		}
	}
	return 1
}

var (
	chunks       = []int{64, 16, 4, 2, 1}
	insertLeaf   = inserts(`INSERT INTO audit_leaf(pos, ts, run, class, leaf, leaf_hash, chain) VALUES `, 7)
	insertDetail = inserts(`INSERT INTO audit_detail(pos, field, nonce, ct, key_id) VALUES `, 5)
)

func inserts(head string, columns int) map[int]string {
	row := "(" + strings.TrimSuffix(strings.Repeat("?,", columns), ",") + ")"
	m := map[int]string{}
	for _, c := range chunks {
		m[c] = head + strings.TrimSuffix(strings.Repeat(row+",", c), ",")
	}
	return m
}

// conn is what the driver's connection can do. The hot path talks to it directly:
// database/sql would look at every one of a few hundred arguments again.
type conn interface {
	driver.ConnPrepareContext
}

// A writer runs statements on the writing connection, under db.mu.
type writer struct {
	ctx   context.Context
	db    *DB
	conn  conn
	args  []any
	named []driver.NamedValue
}

// exec runs a prepared statement with w.args, which it uses up.
func (w *writer) exec(query string) (int64, error) {
	s := w.db.stmts[query]
	if s == nil {
		var err error
		if s, err = w.conn.PrepareContext(w.ctx, query); err != nil {
			return 0, err
		}
		w.db.stmts[query] = s
	}
	w.named = w.named[:0]
	for i, a := range w.args {
		w.named = append(w.named, driver.NamedValue{Ordinal: i + 1, Value: a})
	}
	w.args = w.args[:0]
	r, err := s.(driver.StmtExecContext).ExecContext(w.ctx, w.named)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// Entries yields the leaves from index from up to and without to.
func (t *Tenant) Entries(ctx context.Context, from, to uint64) iter.Seq2[evidence.Entry, error] {
	return t.entries(ctx, `SELECT pos, ts, run, class, leaf, leaf_hash, chain FROM audit_leaf
		WHERE pos >= ?1 AND pos < ?2 ORDER BY pos`, t.pos(from), t.pos(to))
}

// RunEntries yields the leaves of one run in the same range.
func (t *Tenant) RunEntries(ctx context.Context, run vault.TaskID, from, to uint64) iter.Seq2[evidence.Entry, error] {
	return t.entries(ctx, `SELECT pos, ts, run, class, leaf, leaf_hash, chain FROM audit_leaf
		WHERE run = ?3 AND pos >= ?1 AND pos < ?2 ORDER BY pos`, t.pos(from), t.pos(to), string(run))
}

func (t *Tenant) entries(ctx context.Context, query string, args ...any) iter.Seq2[evidence.Entry, error] {
	return func(yield func(evidence.Entry, error) bool) {
		fail := func(err error) { yield(evidence.Entry{}, fmt.Errorf("read leaves: %w", err)) }
		rows, err := t.db.read.QueryContext(ctx, query, args...)
		if err != nil {
			fail(err)
			return
		}
		defer rows.Close()
		for rows.Next() {
			var e evidence.Entry
			var pos int64
			var hash, chain []byte
			if err := rows.Scan(&pos, &e.Micro, &e.Run, &e.Class, &e.Leaf, &hash, &chain); err != nil {
				fail(err)
				return
			}
			if len(hash) != len(e.Hash) || len(chain) != len(e.Chain) {
				fail(fmt.Errorf("leaf %d: a digest is not 32 bytes long", pos-t.base))
				return
			}
			e.Index, e.Hash, e.Chain = uint64(pos-t.base), vault.Digest(hash), vault.Digest(chain)
			if !yield(e, nil) {
				return
			}
		}
		if err := rows.Err(); err != nil {
			fail(err)
		}
	}
}

// Hashes returns the leaf hashes from index from up to and without to.
func (t *Tenant) Hashes(ctx context.Context, from, to uint64) ([]vault.Digest, error) {
	rows, err := t.db.read.QueryContext(ctx, `SELECT leaf_hash FROM audit_leaf WHERE pos >= ? AND pos < ? ORDER BY pos`, t.pos(from), t.pos(to))
	if err != nil {
		return nil, fmt.Errorf("read leaf hashes: %w", err)
	}
	defer rows.Close()
	var list []vault.Digest
	for rows.Next() {
		var h sql.RawBytes
		if err := rows.Scan(&h); err != nil {
			return nil, fmt.Errorf("read leaf hashes: %w", err)
		}
		if len(h) != len(vault.Digest{}) {
			return nil, errors.New("read leaf hashes: a digest is not 32 bytes long")
		}
		list = append(list, vault.Digest(h))
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read leaf hashes: %w", err)
	}
	return list, nil
}

// RunExists reports whether the run has a leaf.
func (t *Tenant) RunExists(ctx context.Context, run vault.TaskID) (bool, error) {
	var n int
	err := t.db.read.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM audit_leaf WHERE run = ? AND pos >= ? AND pos < ?)`,
		string(run), t.base, t.pos(1<<indexBits-1)).Scan(&n)
	if err != nil {
		return false, fmt.Errorf("look up run %s: %w", run, err)
	}
	return n == 1, nil
}

// Sealed returns the fields that are kept beside leaf idx, by name.
func (t *Tenant) Sealed(ctx context.Context, idx uint64) ([]evidence.Sealed, error) {
	rows, err := t.db.read.QueryContext(ctx, `SELECT field, nonce, ct, key_id FROM audit_detail WHERE pos = ? ORDER BY field`, t.pos(idx))
	if err != nil {
		return nil, fmt.Errorf("read fields of leaf %d: %w", idx, err)
	}
	defer rows.Close()
	var list []evidence.Sealed
	for rows.Next() {
		s := evidence.Sealed{Index: idx}
		if err := rows.Scan(&s.Field, &s.Nonce, &s.Text, &s.Key); err != nil {
			return nil, fmt.Errorf("read fields of leaf %d: %w", idx, err)
		}
		list = append(list, s)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read fields of leaf %d: %w", idx, err)
	}
	return list, nil
}

// PutCheckpoint keeps a signed checkpoint over size leaves.
func (t *Tenant) PutCheckpoint(ctx context.Context, size uint64, note []byte) error {
	if _, err := t.exec(ctx, `INSERT INTO audit_ckpt(tenant, size, note) VALUES (?, ?, ?)
		ON CONFLICT (tenant, size) DO UPDATE SET note = excluded.note`, t.id, int64(size), note); err != nil {
		return fmt.Errorf("keep checkpoint %d: %w", size, err)
	}
	return nil
}

func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

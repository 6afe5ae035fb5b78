package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"strings"

	"github.com/pilox/vault/evidence"
)

// append implements engine.
func (d *file) append(ctx context.Context, t *Tenant, before, after evidence.Head, entries []evidence.Entry, sealed []evidence.Sealed) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.write.Raw(func(c any) error {
		w := writer{ctx: ctx, db: d, conn: c.(conn)}
		if _, err := w.exec(`BEGIN IMMEDIATE`); err != nil {
			return err
		}
		err := w.append(t, before, after, entries, sealed)
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
}

func (w *writer) append(t *Tenant, before, after evidence.Head, entries []evidence.Entry, sealed []evidence.Sealed) error {
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
	db    *file
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

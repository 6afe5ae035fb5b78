package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/pilox/vault/evidence"
)

// MayEraseField allows it.
func (t *Tenant) MayEraseField() error { return nil }

// EraseField puts erased in the place of the field that stands there: one row. It
// returns once the live database no longer holds what it was.
//
// In SQLite the page is overwritten and the write-ahead log emptied; it fails if a
// reader keeps the log from being emptied, and can be tried again. In PostgreSQL the
// row is gone for every query, and the dead one is vacuumed if the login may do that;
// its bytes can stay in the data file until the page is written again, and in the
// server's own log and backups. There the key is what protects it.
func (t *Tenant) EraseField(ctx context.Context, erased evidence.Sealed) error {
	if err := t.db.engine.erase(ctx, t.pos(erased.Index), erased); err != nil {
		return fmt.Errorf("erase field %s of leaf %d: %w", erased.Field, erased.Index, err)
	}
	return nil
}

// erase implements engine.
func (d *file) erase(ctx context.Context, pos int64, s evidence.Sealed) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.write.ExecContext(ctx, `UPDATE audit_detail SET nonce = ?, ct = ?, key_id = ? WHERE pos = ? AND field = ?`,
		notNil(s.Nonce), notNil(s.Text), s.Key, pos, s.Field); err != nil {
		return err
	}
	var busy, pages, moved int
	if err := d.write.QueryRowContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`).Scan(&busy, &pages, &moved); err != nil {
		return err
	}
	if busy != 0 {
		return errors.New("a reader keeps the write-ahead log from being emptied; try again")
	}
	return nil
}

// erase implements engine. It deletes and inserts, so that no role needs the right
// to change a row.
func (s *server) erase(ctx context.Context, pos int64, e evidence.Sealed) error {
	if _, err := s.exec(ctx, `WITH gone AS (DELETE FROM audit_detail WHERE pos = ?1 AND field = ?2 RETURNING pos, field)
		INSERT INTO audit_detail(pos, field, nonce, ct, key_id) SELECT pos, field, ?3, ?4, ?5 FROM gone`,
		pos, e.Field, notNil(e.Nonce), notNil(e.Text), e.Key); err != nil {
		return err
	}
	_, err := s.exec(ctx, `VACUUM audit_detail`) // without the right to, the server only warns
	return err
}

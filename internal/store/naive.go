package store

import (
	"context"
	"crypto/sha256"
	"errors"
)

// A Naive is the chain that one would write first: each event reads the head row
// for update, hashes, inserts, and moves the head. It is right, and serial; it is
// what pvault bench holds the ledger against. Make one with [DB.Naive].
type Naive struct{ s *server }

// Naive makes the tables of a naive chain in a PostgreSQL.
func (d *DB) Naive(ctx context.Context) (*Naive, error) {
	s, ok := d.engine.(*server)
	if !ok {
		return nil, errors.New("make naive chain: not a PostgreSQL")
	}
	_, err := s.db.ExecContext(ctx, `CREATE TABLE naive_head(id int PRIMARY KEY, idx bigint NOT NULL, hash bytea NOT NULL);
		CREATE TABLE naive_event(idx bigint PRIMARY KEY, event bytea NOT NULL, hash bytea NOT NULL);
		INSERT INTO naive_head VALUES (1, 0, '')`)
	return &Naive{s}, err
}

// Append makes one event durable at the end of the chain.
func (n *Naive) Append(ctx context.Context, event []byte) error {
	tx, err := n.s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after a commit there is nothing to roll back
	var idx int64
	var prev []byte
	if err := tx.QueryRowContext(ctx, `SELECT idx, hash FROM naive_head WHERE id = 1 FOR UPDATE`).Scan(&idx, &prev); err != nil {
		return err
	}
	hash := sha256.Sum256(append(prev, event...))
	if _, err := tx.ExecContext(ctx, `INSERT INTO naive_event VALUES ($1, $2, $3)`, idx, event, hash[:]); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, `UPDATE naive_head SET idx = $1, hash = $2 WHERE id = 1`, idx+1, hash[:]); err != nil {
		return err
	}
	return tx.Commit()
}

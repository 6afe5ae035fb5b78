package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"

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

// Seize starts the epoch after h.Epoch, so that whoever had the ledger before can
// append no more, and returns the head as it is then: up to that moment it may
// have grown beyond h. It is [ErrStale] if another daemon started an epoch first,
// or the stored head is smaller than h.
func (t *Tenant) Seize(ctx context.Context, h evidence.Head) (evidence.Head, error) {
	epoch := h.Epoch + 1
	n, err := t.exec(ctx, `INSERT INTO audit_head(tenant, epoch, size, chain, root, frontier) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
		ON CONFLICT (tenant) DO UPDATE SET epoch = excluded.epoch WHERE audit_head.epoch = ?7 AND audit_head.size >= ?3`,
		t.id, int64(epoch), int64(h.Size), h.Chain[:], h.Root[:], notNil(h.Frontier), int64(h.Epoch))
	if err != nil {
		return evidence.Head{}, fmt.Errorf("start epoch %d: %w", epoch, err)
	}
	next, err := t.Head(ctx)
	if err != nil {
		return evidence.Head{}, fmt.Errorf("start epoch %d: %w", epoch, err)
	}
	if n != 1 || next.Epoch != epoch {
		return evidence.Head{}, fmt.Errorf("start epoch %d: %w", epoch, ErrStale)
	}
	return next, nil
}

// Append writes entries and the sealed fields beside them and moves the head
// from before to after, all or nothing. It fails with [ErrStale] unless the
// stored head has the epoch and size of before.
func (t *Tenant) Append(ctx context.Context, before, after evidence.Head, entries []evidence.Entry, sealed []evidence.Sealed) error {
	if err := t.db.engine.append(ctx, t, before, after, entries, sealed); err != nil {
		return fmt.Errorf("append %d leaves: %w", len(entries), err)
	}
	return nil
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
	var exists bool
	err := t.db.read.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM audit_leaf WHERE run = ? AND pos >= ? AND pos < ?)`,
		string(run), t.base, t.pos(1<<indexBits-1)).Scan(&exists)
	if err != nil {
		return false, fmt.Errorf("look up run %s: %w", run, err)
	}
	return exists, nil
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

// Checkpoint returns the newest checkpoint that is kept over at most so many
// leaves, and its size; a nil note if there is none.
func (t *Tenant) Checkpoint(ctx context.Context, most uint64) (note []byte, size uint64, err error) {
	var n int64
	err = t.db.read.QueryRowContext(ctx, `SELECT size, note FROM audit_ckpt WHERE tenant = ? AND size <= ? ORDER BY size DESC LIMIT 1`,
		t.id, int64(min(most, 1<<indexBits))).Scan(&n, &note)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, fmt.Errorf("read checkpoint up to %d: %w", most, err)
	}
	return note, uint64(n), nil
}

func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

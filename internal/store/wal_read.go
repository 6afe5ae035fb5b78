package store

import (
	"context"
	"iter"
	"slices"
	"strings"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

// waiting returns the batches that are not in the database, and the index from
// which on they are. What is drained meanwhile is read from here all the same.
func (w *WAL) waiting() ([]*walRecord, uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) == 0 {
		return nil, w.head.Size
	}
	return slices.Clone(w.queue), w.queue[0].before.Size
}

// Entries is [Tenant.Entries] with what is in the log.
func (w *WAL) Entries(ctx context.Context, from, to uint64) iter.Seq2[evidence.Entry, error] {
	return w.both(from, to, "", func(end uint64) iter.Seq2[evidence.Entry, error] { return w.Tenant.Entries(ctx, from, end) })
}

// RunEntries is [Tenant.RunEntries] with what is in the log.
func (w *WAL) RunEntries(ctx context.Context, run vault.TaskID, from, to uint64) iter.Seq2[evidence.Entry, error] {
	return w.both(from, to, run, func(end uint64) iter.Seq2[evidence.Entry, error] { return w.Tenant.RunEntries(ctx, run, from, end) })
}

// both yields what rows gives up to where the log begins, and then the log; of one
// run unless it is empty.
func (w *WAL) both(from, to uint64, run vault.TaskID, rows func(end uint64) iter.Seq2[evidence.Entry, error]) iter.Seq2[evidence.Entry, error] {
	return func(yield func(evidence.Entry, error) bool) {
		log, start := w.waiting()
		if log == nil {
			start = to
		}
		if from < start {
			for e, err := range rows(min(to, start)) {
				if !yield(e, err) || err != nil {
					return
				}
			}
		}
		for _, r := range log {
			for _, e := range r.entries {
				if e.Index < from || e.Index >= to || run != "" && e.Run != run {
					continue
				}
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}

// Hashes is [Tenant.Hashes] with what is in the log.
func (w *WAL) Hashes(ctx context.Context, from, to uint64) ([]vault.Digest, error) {
	log, start := w.waiting()
	if log == nil {
		return w.Tenant.Hashes(ctx, from, to)
	}
	var list []vault.Digest
	if from < start {
		var err error
		if list, err = w.Tenant.Hashes(ctx, from, min(to, start)); err != nil {
			return nil, err
		}
	}
	for _, r := range log {
		for i := range r.entries {
			if e := &r.entries[i]; e.Index >= from && e.Index < to {
				list = append(list, e.Hash)
			}
		}
	}
	return list, nil
}

// Sealed is [Tenant.Sealed] with what is in the log.
func (w *WAL) Sealed(ctx context.Context, idx uint64) ([]evidence.Sealed, error) {
	log, start := w.waiting()
	if log == nil || idx < start {
		return w.Tenant.Sealed(ctx, idx)
	}
	var list []evidence.Sealed
	for _, r := range log {
		for _, s := range r.sealed {
			if s.Index == idx {
				list = append(list, s)
			}
		}
	}
	slices.SortFunc(list, func(a, b evidence.Sealed) int { return strings.Compare(a.Field, b.Field) })
	return list, nil
}

// RunExists is [Tenant.RunExists] with what is in the log.
func (w *WAL) RunExists(ctx context.Context, run vault.TaskID) (bool, error) {
	log, _ := w.waiting()
	for _, r := range log {
		for i := range r.entries {
			if r.entries[i].Run == run {
				return true, nil
			}
		}
	}
	return w.Tenant.RunExists(ctx, run)
}

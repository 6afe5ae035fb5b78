package ledger

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

// ExportOptions says what goes into a bundle. The zero value is a pseudonymised
// one: every record, no opened field.
type ExportOptions struct {
	// Disclose opens the sensitive fields that are still there.
	Disclose bool
	// Redact names fields that stay closed all the same.
	Redact []string
	// Only opens one field of one record and nothing else, whatever Disclose says.
	// Nil: no such limit.
	Only *FieldAt
	// Since adds a proof that the ledger at this size is a prefix, for a verifier
	// that holds a checkpoint of it. Zero: none. Scope log needs none.
	Since uint64
}

// A FieldAt is one field of one record.
type FieldAt struct {
	Index uint64
	Field string
}

// reveals reports whether a field may be opened.
func (o *ExportOptions) reveals(idx uint64, field string) bool {
	if o.Only != nil {
		return *o.Only == FieldAt{idx, field}
	}
	return o.Disclose && !slices.Contains(o.Redact, field)
}

// ErrNoRun means that the ledger has no record of a run.
var ErrNoRun = errors.New("no record of this run")

// ExportRun writes the bundle of one run under a fresh checkpoint.
func (l *Ledger) ExportRun(ctx context.Context, w io.Writer, run vault.TaskID, o ExportOptions) error {
	note, cp, err := l.fresh(ctx)
	if err != nil {
		return fmt.Errorf("export run %s: %w", run, err)
	}
	entries := func() iter.Seq2[evidence.Entry, error] { return l.entries(ctx, 0, cp.Size, run) }
	b := l.bundle(ctx, entries, note, o)
	if b.Anchors, err = l.anchors(ctx, cp); err != nil {
		return fmt.Errorf("export run %s: %w", run, err)
	}
	b.Scope, b.Run = evidence.ScopeRun, run
	if b.Count, err = count(entries()); err != nil {
		return fmt.Errorf("export run %s: %w", run, err)
	}
	if b.Count == 0 {
		return fmt.Errorf("export run %s: %w", run, ErrNoRun)
	}
	b.Proofs = func(yield func(evidence.Inclusion) error) error {
		p := l.prover(cp.Size)
		for e, err := range entries() {
			if err != nil {
				return err
			}
			proof, err := p.inclusion(ctx, e.Index)
			if err != nil {
				return err
			}
			if err := yield(proof); err != nil {
				return err
			}
		}
		return nil
	}
	if o.Since > 0 && o.Since < cp.Size {
		path, err := l.prover(cp.Size).consistency(ctx, o.Since)
		if err != nil {
			return fmt.Errorf("export run %s: %w", run, err)
		}
		b.Consistency = &evidence.Consistency{From: o.Since, Path: path}
	}
	if _, err := b.WriteTo(w); err != nil {
		return fmt.Errorf("export run %s: %w", run, err)
	}
	return nil
}

// ExportAll writes the bundle of the whole ledger under a fresh checkpoint.
func (l *Ledger) ExportAll(ctx context.Context, w io.Writer, o ExportOptions) error {
	note, cp, err := l.fresh(ctx)
	if err == nil {
		err = l.exportAll(ctx, w, note, cp, o)
	}
	if err != nil {
		return fmt.Errorf("export ledger: %w", err)
	}
	return nil
}

// exportAll writes the bundle of all that cp covers, note being its signed form.
func (l *Ledger) exportAll(ctx context.Context, w io.Writer, note []byte, cp evidence.Checkpoint, o ExportOptions) (err error) {
	entries := func() iter.Seq2[evidence.Entry, error] { return l.entries(ctx, 0, cp.Size, "") }
	b := l.bundle(ctx, entries, note, o)
	if b.Anchors, err = l.anchors(ctx, cp); err != nil {
		return err
	}
	b.Scope, b.Count = evidence.ScopeLog, cp.Size
	b.Hashes = func(yield func(vault.Digest) error) error {
		const step = 1024
		for from := uint64(0); from < cp.Size; from += step {
			hashes, err := l.cfg.Store.Hashes(ctx, from, min(from+step, cp.Size))
			if err != nil {
				return err
			}
			for _, h := range hashes {
				if err := yield(h); err != nil {
					return err
				}
			}
		}
		return nil
	}
	_, err = b.WriteTo(w)
	return err
}

// fresh returns a checkpoint over all that is on disk.
func (l *Ledger) fresh(ctx context.Context) ([]byte, evidence.Checkpoint, error) {
	note, err := l.checkpoint(ctx, true)
	if err != nil {
		return nil, evidence.Checkpoint{}, err
	}
	cp, _, err := evidence.OpenCheckpoint(note, l.verifier)
	return note, cp, err
}

// bundle fills in what the scopes share.
func (l *Ledger) bundle(ctx context.Context, entries func() iter.Seq2[evidence.Entry, error], note []byte, o ExportOptions) *evidence.Bundle {
	b := &evidence.Bundle{
		Checkpoint: note, Keys: []string{l.verifier}, Witnesses: l.cfg.Witnesses,
		Sign: func(payload []byte) (evidence.EnvelopeSignature, error) {
			return evidence.SignStatement(l.cfg.Origin, l.cfg.Key, payload)
		},
	}
	b.Leaves = func(w *evidence.LeafWriter) error {
		for e, err := range entries() {
			if err != nil {
				return err
			}
			if err := w.Write(e.Leaf); err != nil {
				return err
			}
		}
		return nil
	}
	if o.Disclose || o.Only != nil {
		b.Disclosures = func(yield func(evidence.Disclosure) error) error {
			for e, err := range entries() {
				if err != nil {
					return err
				}
				if err := l.disclose(ctx, &e, o.reveals, yield); err != nil {
					return err
				}
			}
			return nil
		}
	}
	return b
}

// anchors returns what others vouch for, each with the proof that cp continues it.
func (l *Ledger) anchors(ctx context.Context, cp evidence.Checkpoint) ([]evidence.Anchor, error) {
	if l.cfg.Anchors == nil {
		return nil, nil
	}
	list, err := l.cfg.Anchors(ctx)
	if err != nil {
		return nil, fmt.Errorf("anchors: %w", err)
	}
	var out []evidence.Anchor
	for _, a := range list {
		old, _, err := evidence.OpenCheckpoint([]byte(a.Checkpoint), l.verifier)
		if err != nil {
			return nil, fmt.Errorf("anchors: %w", err)
		}
		if old.Size > cp.Size || old.Size == 0 {
			continue // of a moment after this export began
		}
		a.Path = []vault.Digest{}
		if old.Size < cp.Size {
			if a.Path, err = l.prover(cp.Size).consistency(ctx, old.Size); err != nil {
				return nil, fmt.Errorf("anchors: %w", err)
			}
		}
		out = append(out, a)
	}
	return out, nil
}

// disclose opens what can be opened of one record.
func (l *Ledger) disclose(ctx context.Context, e *evidence.Entry, reveal func(uint64, string) bool, yield func(evidence.Disclosure) error) error {
	opened, err := l.fields(ctx, e.Index)
	if errors.Is(err, ErrNoKey) || err == nil && len(opened) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	byName := map[string]*evidence.Opened{}
	for i := range opened {
		byName[opened[i].Name] = &opened[i]
	}
	names := vault.FieldsOf(e.Class)
	at := slices.IndexFunc(opened, func(o evidence.Opened) bool { return !o.Erased })
	if at < 0 {
		return nil // nothing is left that could be opened
	}
	commitments := make([]vault.Digest, len(names))
	for i, name := range names {
		if o := byName[name]; o != nil {
			commitments[i] = o.Commit()
			continue
		}
		salt := evidence.NullSalt(&opened[at].Nulls, name)
		commitments[i] = evidence.Commit(&salt, name, nil)
	}
	for _, o := range opened {
		if o.NotKept || o.Erased || !reveal(e.Index, o.Name) {
			continue
		}
		d, err := evidence.Disclose(e.Index, e.Class, o, commitments)
		if err != nil {
			return err
		}
		if err := yield(d); err != nil {
			return err
		}
	}
	return nil
}

func count(entries iter.Seq2[evidence.Entry, error]) (n uint64, err error) {
	for _, err := range entries {
		if err != nil {
			return 0, err
		}
		n++
	}
	return n, nil
}

// entries yields the leaves in [from, to), of one run unless run is empty. It
// reads them page by page, so that a slow reader, or one that reads fields on the
// way, holds no connection of the store.
func (l *Ledger) entries(ctx context.Context, from, to uint64, run vault.TaskID) iter.Seq2[evidence.Entry, error] {
	return func(yield func(evidence.Entry, error) bool) {
		const page = 512
		list := make([]evidence.Entry, 0, page)
		for {
			rows := l.cfg.Store.Entries(ctx, from, to)
			if run != "" {
				rows = l.cfg.Store.RunEntries(ctx, run, from, to)
			}
			list = list[:0]
			for e, err := range rows {
				if err != nil {
					yield(evidence.Entry{}, err)
					return
				}
				if list = append(list, e); len(list) == page {
					break
				}
			}
			for _, e := range list {
				if !yield(e, nil) {
					return
				}
			}
			if len(list) < page {
				return
			}
			from = list[page-1].Index + 1
		}
	}
}

// A Record is one record for people who may read the ledger.
type Record struct {
	evidence.Leaf
	Hash   vault.Digest
	Fields []evidence.Opened // what is kept of them; nil if erased
}

// Records yields the records in [from, to) that are on disk, those of one run
// unless run is empty, with their fields opened if open is set.
func (l *Ledger) Records(ctx context.Context, from, to uint64, run vault.TaskID, open bool) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		head, _ := l.Watch()
		to := min(to, head.Size)
		for e, err := range l.entries(ctx, from, to, run) {
			var r Record
			if err == nil {
				r, err = l.record(ctx, &e, open)
			}
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}

func (l *Ledger) record(ctx context.Context, e *evidence.Entry, open bool) (Record, error) {
	leaf, err := evidence.ParseLeaf(e.Leaf)
	if err != nil {
		return Record{}, fmt.Errorf("read record %d: %w", e.Index, err)
	}
	r := Record{Leaf: *leaf, Hash: e.Hash}
	if open {
		if r.Fields, err = l.fields(ctx, e.Index); err != nil && !errors.Is(err, ErrNoKey) {
			return Record{}, fmt.Errorf("read record %d: %w", e.Index, err)
		}
	}
	return r, nil
}

// Tail yields the records from index from on and waits for more, until ctx is
// done or the reader stops. It falls behind rather than hold a producer up.
func (l *Ledger) Tail(ctx context.Context, from uint64, run vault.TaskID, open bool) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		for {
			head, grown := l.Watch()
			for r, err := range l.Records(ctx, from, head.Size, run, open) {
				if err != nil && ctx.Err() != nil {
					return
				}
				if !yield(r, err) || err != nil {
					return
				}
			}
			from = max(from, head.Size)
			select {
			case <-grown:
			case <-ctx.Done():
				return
			}
		}
	}
}

// Prove returns the exact bytes of record idx and its proof under a fresh
// checkpoint.
func (l *Ledger) Prove(ctx context.Context, idx uint64) (leaf []byte, p *evidence.Proof, err error) {
	note, cp, err := l.fresh(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("prove record %d: %w", idx, err)
	}
	if idx >= cp.Size {
		return nil, nil, fmt.Errorf("prove record %d: the ledger has %d", idx, cp.Size)
	}
	for e, err := range l.cfg.Store.Entries(ctx, idx, idx+1) {
		if err != nil {
			return nil, nil, fmt.Errorf("prove record %d: %w", idx, err)
		}
		leaf = e.Leaf
	}
	in, err := l.prover(cp.Size).inclusion(ctx, idx)
	if err != nil {
		return nil, nil, err
	}
	return leaf, &evidence.Proof{Inclusion: in, Checkpoint: note}, nil
}

package ledger

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

// An Inspection is what a store and the last signed checkpoint hold, read without
// a write to either.
type Inspection struct {
	// Problem is why [Open] refuses; nil if it does not.
	Problem error
	// Origin is what the records were held against.
	Origin string
	// Head is what the store says of itself.
	Head evidence.Head
	// Size is how many records are in order from the first on, Root the tree over
	// them, Last the time of the last.
	Size uint64
	Root vault.Digest
	Last time.Time
	// Runs is how many runs of them are open.
	Runs int
	// Note is the last signed checkpoint as it stands in its file, nil if there is
	// none or it is too large to be one; Written is when it was written.
	Note    []byte
	Written time.Time
	// Signed is what Note says, zero if it cannot be read; Own, that the ledger's key
	// signed it, whatever the ledger it names.
	Signed evidence.Checkpoint
	Own    bool
	// Proven is the newest signed checkpoint that the records continue, zero if
	// there is none: so far an archive goes.
	Proven evidence.Checkpoint
	// Revocations are those of the records that can be read; Unreadable is how many
	// others there are.
	Revocations []Revocation
	Unreadable  int

	ledger *Ledger
	proven []byte // signed form of Proven
}

// Inspect reads and checks a ledger that may not be sound, as [Open] does. It takes
// nothing over and signs nothing. The error says that the store or the file cannot
// be read at all.
func Inspect(ctx context.Context, cfg Config) (*Inspection, error) {
	in, err := inspect(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("inspect ledger: %w", err)
	}
	return in, nil
}

func inspect(ctx context.Context, cfg Config) (*Inspection, error) {
	l, err := prepare(cfg)
	if err != nil {
		return nil, err
	}
	in := &Inspection{Origin: cfg.Origin, ledger: l}
	if in.Head, err = cfg.Store.Head(ctx); err != nil {
		return nil, err
	}
	last, err := in.checkpoint()
	if err != nil && !unsound(err) {
		return nil, err
	}
	in.Problem = err
	re, err := l.read(ctx, in.Head, last)
	switch {
	case err == nil:
	case !unsound(err):
		return nil, err
	case in.Problem == nil:
		in.Problem = err
	case errors.Is(err, ErrCorrupt): // held against nothing, the records have a fault of their own
		in.Problem = fmt.Errorf("%w; and %w", in.Problem, err)
	}
	in.Size, in.Root, in.Last = l.seq.size, l.seq.tree.Root(), re.at
	for run := range l.seq.runs {
		if run != "" {
			in.Runs++
		}
	}
	if in.Problem == nil { // what the daemon needs of the fields, it can read
		if _, err := re.result(ctx); err != nil {
			in.Problem = fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
	}
	revoked := re.revoked
	// Behind a fault nothing is proven. A revocation there that opens under our key is
	// obeyed all the same: it only takes authority away.
	for e, err := range cfg.Store.Entries(ctx, l.seq.size, in.Head.Size) {
		if err != nil {
			break
		}
		if e.Class == vault.ClassRevocation && !slices.Contains(revoked, e.Index) {
			revoked = append(revoked, e.Index)
		}
	}
	for _, idx := range revoked {
		rev, err := re.revocation(ctx, idx)
		if err != nil {
			in.Unreadable++
			continue
		}
		in.Revocations = append(in.Revocations, rev)
	}
	return in, in.prove(ctx)
}

// unsound reports whether err says that store and checkpoint do not fit, rather
// than that one of them could not be read.
func unsound(err error) bool {
	return errors.Is(err, ErrRollback) || errors.Is(err, ErrForeign) || errors.Is(err, ErrCorrupt)
}

// checkpoint reads the copy outside the store, as far as it can be read. What
// it returns is signed by the ledger's key for this ledger, or zero.
func (in *Inspection) checkpoint() (evidence.Checkpoint, error) {
	l := in.ledger
	last, note, err := readCheckpoint(l.cfg.CheckpointFile, l.verifier)
	none := evidence.Checkpoint{Root: evidence.NewTree(0).Root()}
	if errors.Is(err, fs.ErrNotExist) {
		if in.Head.Epoch == 0 {
			return none, nil // a new ledger
		}
		return none, l.missing()
	}
	if err != nil && !errors.Is(err, ErrForeign) {
		return none, err
	}
	if st, err := os.Stat(l.cfg.CheckpointFile); err == nil {
		in.Written = st.ModTime().UTC()
	}
	in.Note = note
	if err == nil {
		in.Signed, in.Own = last, true
		return last, nil
	}
	if cp, parseErr := parseSigned(note); parseErr == nil {
		in.Signed = cp
		if key, keyErr := evidence.VerifierKey(cp.Origin, l.cfg.Key.Public()); keyErr == nil {
			_, _, openErr := evidence.OpenCheckpoint(note, key)
			in.Own = openErr == nil
		}
	}
	return none, err
}

// maxKept bounds how many kept checkpoints are tried: those of half a day.
const maxKept = 720

// prove finds the newest signed checkpoint that the records continue.
func (in *Inspection) prove(ctx context.Context) error {
	if in.Own && in.Signed.Origin == in.Origin {
		if ok, err := in.continues(ctx, in.Signed); ok || err != nil {
			in.Proven, in.proven = in.Signed, in.Note
			return err
		}
	}
	most := in.Size
	for range maxKept {
		note, size, err := in.ledger.cfg.Store.Checkpoint(ctx, most)
		if err != nil || note == nil {
			return err
		}
		if cp, _, err := evidence.OpenCheckpoint(note, in.ledger.verifier); err == nil {
			ok, err := in.continues(ctx, cp)
			if err != nil {
				return err
			}
			if ok {
				in.Proven, in.proven = cp, note
				return nil
			}
		}
		if size == 0 {
			return nil
		}
		most = size - 1
	}
	return nil
}

// continues reports whether the records continue cp, which is signed and not empty.
func (in *Inspection) continues(ctx context.Context, cp evidence.Checkpoint) (bool, error) {
	switch {
	case cp.Size == 0 || cp.Size > in.Size:
		return false, nil
	case cp.Size == in.Size:
		return cp.Root == in.Root, nil
	}
	path, err := in.ledger.prover(in.Size).consistency(ctx, cp.Size)
	if err != nil {
		return false, err
	}
	return evidence.VerifyConsistency(cp, evidence.Checkpoint{Origin: in.Origin, Size: in.Size, Root: in.Root}, path) == nil, nil
}

// ErrUnproven means that no signed checkpoint covers a record of the store.
var ErrUnproven = errors.New("no checkpoint under the ledger's key covers what the store holds")

// Archive writes the bundle of what [Inspection.Proven] covers, under that
// checkpoint: nothing new is signed for the ledger, because what was signed after
// it may contradict.
func (in *Inspection) Archive(ctx context.Context, w io.Writer) error {
	if in.proven == nil {
		return fmt.Errorf("archive ledger: %w", ErrUnproven)
	}
	l := in.ledger
	if all := l.cfg.Anchors; all != nil {
		l.cfg.Anchors = func(ctx context.Context) ([]evidence.Anchor, error) {
			list, err := all(ctx)
			var fit []evidence.Anchor
			for _, a := range list {
				cp, _, openErr := evidence.OpenCheckpoint([]byte(a.Checkpoint), l.verifier)
				if openErr != nil {
					continue
				}
				ok, proveErr := in.continues(ctx, cp)
				err = errors.Join(err, proveErr)
				if ok {
					fit = append(fit, a)
				}
			}
			return fit, err
		}
		defer func() { l.cfg.Anchors = all }()
	}
	if err := l.exportAll(ctx, w, in.proven, in.Proven, ExportOptions{}); err != nil {
		return fmt.Errorf("archive ledger: %w", err)
	}
	return nil
}

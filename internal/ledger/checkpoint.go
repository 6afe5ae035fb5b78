package ledger

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

// Checkpoint signs the ledger as it is on disk and returns the signed note. It
// first proves that it continues the last one, from the copy kept outside the
// store. Without new leaves it returns the last.
func (l *Ledger) Checkpoint(ctx context.Context) ([]byte, error) { return l.checkpoint(ctx, false) }

func (l *Ledger) checkpoint(ctx context.Context, keep bool) ([]byte, error) {
	l.cpMu.Lock()
	defer l.cpMu.Unlock()
	head, _ := l.Watch()
	if head.Size != l.cp.Size {
		next := evidence.Checkpoint{Origin: l.cfg.Origin, Size: head.Size, Root: head.Root}
		if err := l.consistent(ctx, next); err != nil {
			return nil, fmt.Errorf("checkpoint %d: %w", next.Size, err)
		}
		note, err := next.Sign(l.cfg.Key)
		if err != nil {
			return nil, fmt.Errorf("checkpoint %d: %w", next.Size, err)
		}
		// The outside copy first: once anybody has seen a checkpoint, a restart
		// must know of it.
		if err := writeFile(l.cfg.CheckpointFile, note); err != nil {
			return nil, fmt.Errorf("checkpoint %d: %w", next.Size, err)
		}
		l.cp, l.note = next, note
	}
	if keep && l.kept != l.cp.Size {
		if err := l.cfg.Store.PutCheckpoint(ctx, l.cp.Size, l.note); err != nil {
			return nil, err
		}
		l.kept = l.cp.Size
	}
	return l.note, nil
}

// Consistency proves that the ledger with newer leaves continues the one with
// older. Both must be on disk.
func (l *Ledger) Consistency(ctx context.Context, older, newer uint64) ([]vault.Digest, error) {
	if head, _ := l.Watch(); older > newer || newer > head.Size {
		return nil, fmt.Errorf("prove consistency of %d with %d: the ledger has %d", newer, older, head.Size)
	}
	if older == 0 || older == newer {
		return nil, nil // nothing to prove
	}
	return l.prover(newer).consistency(ctx, older)
}

// consistent proves next from the file, not from memory: the file is what the
// world may have seen, and another daemon may have written it.
func (l *Ledger) consistent(ctx context.Context, next evidence.Checkpoint) error {
	last, _, err := readCheckpoint(l.cfg.CheckpointFile, l.verifier)
	if err != nil {
		return err
	}
	switch {
	case last.Size > next.Size:
		return fmt.Errorf("%w: a checkpoint of %d was signed", ErrRollback, last.Size)
	case last.Size == 0:
		return nil
	case last.Size == next.Size:
		if last.Root != next.Root {
			return fmt.Errorf("%w: another checkpoint of this size was signed", ErrRollback)
		}
		return nil
	}
	path, err := l.prover(next.Size).consistency(ctx, last.Size)
	if err != nil {
		return err
	}
	if err := evidence.VerifyConsistency(last, next, path); err != nil {
		return fmt.Errorf("%w: %w", ErrRollback, err)
	}
	return nil
}

// lastCheckpoint reads the copy outside the store. A new ledger gets one of size
// 0 before anything else, so a missing one always means a loss.
func (l *Ledger) lastCheckpoint(head evidence.Head) (evidence.Checkpoint, error) {
	cp, note, err := readCheckpoint(l.cfg.CheckpointFile, l.verifier)
	if errors.Is(err, fs.ErrNotExist) {
		if head.Epoch != 0 {
			return evidence.Checkpoint{}, l.missing()
		}
		cp = evidence.Checkpoint{Origin: l.cfg.Origin, Root: evidence.NewTree(0).Root()}
		if note, err = cp.Sign(l.cfg.Key); err == nil {
			err = writeFile(l.cfg.CheckpointFile, note)
		}
	}
	if err != nil {
		return evidence.Checkpoint{}, fmt.Errorf("last checkpoint: %w", err)
	}
	l.cp, l.note = cp, note
	return cp, nil
}

// missing says that there is no last checkpoint where there was one.
func (l *Ledger) missing() error {
	return fmt.Errorf("%w: %s is missing, so nobody can tell; put it back", ErrRollback, l.cfg.CheckpointFile)
}

func readCheckpoint(path, key string) (evidence.Checkpoint, []byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return evidence.Checkpoint{}, nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return evidence.Checkpoint{}, nil, err
	}
	if st.Size() > evidence.MaxCheckpoint {
		return evidence.Checkpoint{}, nil, fmt.Errorf("%w: read %s: %d bytes is no checkpoint", ErrForeign, path, st.Size())
	}
	note, err := os.ReadFile(path)
	if err != nil {
		return evidence.Checkpoint{}, nil, err
	}
	cp, _, err := evidence.OpenCheckpoint(note, key)
	if err != nil {
		of := ""
		if other, parseErr := parseSigned(note); parseErr == nil && !strings.HasPrefix(key, other.Origin+"+") {
			of = " of " + other.Origin
		}
		return evidence.Checkpoint{}, note, fmt.Errorf("%w: read %s%s: %w", ErrForeign, path, of, err)
	}
	return cp, note, nil
}

// parseSigned reads what a signed checkpoint says, whoever signed it.
func parseSigned(note []byte) (evidence.Checkpoint, error) {
	text, _, _ := strings.Cut(string(note), "\n\n")
	return evidence.ParseCheckpoint(text + "\n")
}

// writeFile replaces a file so that a crash leaves the old or the new one.
func writeFile(path string, b []byte) error {
	dir, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	name := filepath.Base(path)
	f, err := dir.OpenFile(name+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := dir.Rename(name+".new", name); err != nil {
		return err
	}
	return syncDir(dir)
}

// checkpointLoop signs on a timer what has grown, and now and then what has not.
func (l *Ledger) checkpointLoop(ctx context.Context) {
	grown := time.NewTicker(l.cfg.Every)
	defer grown.Stop()
	beat := time.NewTicker(l.cfg.Heartbeat)
	defer beat.Stop()
	for {
		keep := false
		select {
		case <-ctx.Done():
			return
		case <-grown.C:
		case <-beat.C:
			keep = true
		}
		if _, err := l.checkpoint(ctx, keep); err != nil && ctx.Err() == nil {
			l.log.ErrorContext(ctx, "checkpoint not signed", "err", err)
		}
	}
}

func syncDir(root *os.Root) error {
	d, err := root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

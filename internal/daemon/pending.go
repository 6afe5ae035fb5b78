package daemon

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
)

// A pendingRevocation is one that counts and is not in the ledger yet, because the
// ledger could not be written when it was made.
type pendingRevocation struct {
	By   string                `json:"by"`
	Note string                `json:"note"`
	What capability.Revocation `json:"what"`
}

// event is the record of p.
func (p *pendingRevocation) event() (*vault.Event, error) {
	what, err := json.Marshal(p.What)
	if err != nil {
		return nil, fmt.Errorf("encode revocation: %w", err)
	}
	return &vault.Event{
		Class: vault.ClassRevocation, Phase: vault.PhaseNoted, Verdict: vault.Deny, Reason: vault.CodeCapabilityRevoked,
		Fields: []vault.Field{{Name: "by", Value: []byte(p.By)}, {Name: "note", Value: []byte(p.Note)}, {Name: "what", Value: what}},
	}, nil
}

// pending keeps revocations beside the ledger until they are in it, so that a
// restart before then does not bring back what was stopped.
type pending struct {
	path string

	mu   sync.Mutex
	open int // in the file
}

// maxPending bounds the file at start: far more than people revoke in an outage.
const maxPending = 1 << 20

// add appends p, durably.
func (q *pending) add(p *pendingRevocation) error {
	line, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode revocation: %w", err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	f, err := os.OpenFile(q.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("keep revocation: %w", err)
	}
	_, err = f.Write(append(line, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("keep revocation: %w", err)
	}
	q.open++
	return nil
}

// done notes that one of them is in the ledger. The file goes with the last.
func (q *pending) done() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.open--; q.open > 0 {
		return nil
	}
	return os.Remove(q.path)
}

// read returns what an earlier daemon left.
func (q *pending) read() ([]pendingRevocation, error) {
	info, err := os.Stat(q.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if info.Size() > maxPending {
		return nil, fmt.Errorf("%s is larger than %d bytes", q.path, maxPending)
	}
	b, err := os.ReadFile(q.path)
	if err != nil {
		return nil, err
	}
	var out []pendingRevocation
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Buffer(nil, maxPending)
	for sc.Scan() {
		var p pendingRevocation
		if err := json.Unmarshal(sc.Bytes(), &p); err != nil {
			return nil, fmt.Errorf("%s cannot be read, and without it something that was stopped could run: %w", q.path, err)
		}
		out = append(out, p)
	}
	return out, sc.Err()
}

// recoverPending takes over the revocations that did not reach the ledger.
func (d *Daemon) recoverPending(ctx context.Context) error {
	left, err := d.pending.read()
	if err != nil || len(left) == 0 {
		return err
	}
	for i := range left {
		if err := d.revoked.Add(left[i].What); err != nil {
			return fmt.Errorf("pending revocation: %w", err)
		}
		e, err := left[i].event()
		if err != nil {
			return err
		}
		if _, err := d.ledger.Commit(ctx, e); err != nil {
			return fmt.Errorf("record pending revocation: %w", err)
		}
	}
	return os.Remove(d.pending.path)
}

// recordLater keeps a revocation that already counts beside the ledger, and records
// it as soon as the ledger takes it.
func (d *Daemon) recordLater(p *pendingRevocation, e *vault.Event) error {
	kept := d.pending.add(p)
	if d.ctx.Err() != nil {
		return kept
	}
	d.work.Go(func() {
		t := time.NewTicker(500 * time.Millisecond)
		defer t.Stop()
		for {
			select {
			case <-d.ctx.Done():
				return
			case <-t.C:
				if _, err := d.ledger.Commit(d.ctx, e); err != nil {
					continue
				}
				if kept == nil {
					if err := d.pending.done(); err != nil {
						d.log.Error("recorded revocation stays in the waiting file", "err", err)
					}
				}
				return
			}
		}
	})
	return kept
}

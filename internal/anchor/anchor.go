// Package anchor has others vouch for the ledger's checkpoints: witnesses that
// cosign them, transparency logs that hold their digest, and a time-stamp authority
// that stamps it.
//
// It owns the requests, their pace, and the answers, which it keeps in a directory
// outside the ledger's store. It does not own the checkpoints (a [Source] signs
// them) or what an answer is worth (the verifier's policy says that). Start with
// [Open].
//
// It promises: nothing waits for it but who asks it to; an answer is kept only if
// it verifies for the checkpoint that was sent; what failed is tried again, slower
// each time, and a later checkpoint covers what an earlier one missed; no redirect
// is followed and every answer is bounded.
package anchor

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

// A Source is the ledger, as far as anchors need it.
type Source interface {
	// Checkpoint returns a signed checkpoint of all that is on disk.
	Checkpoint(ctx context.Context) ([]byte, error)
	// Consistency proves that the ledger with newer leaves continues older.
	Consistency(ctx context.Context, older, newer uint64) ([]vault.Digest, error)
	// VerifierKey returns the key of the checkpoints.
	VerifierKey() string
}

// Config says who is asked.
type Config struct {
	// Policy is a witness policy; every witness in it with a URL is asked. Nil: none.
	Policy []byte
	// Rekor is the URL of a Rekor v2 log. Empty: none.
	Rekor string
	// RekorKey is the verifier key of that log, NAME+HASH+KEY. Required with Rekor:
	// an answer that nobody can verify is no anchor.
	RekorKey string
	// RekorV1 is the URL of a Rekor v1 log. Empty: none.
	RekorV1 string
	// RekorV1Key is the public key of that log, ECDSA P-256 in PEM. Required with RekorV1.
	RekorV1Key string
	// Key signs what the logs take, P-256. Required with Rekor and RekorV1.
	Key *ecdsa.PrivateKey
	// TSA is the URL of a time-stamp authority, RFC 3161 over HTTP. Empty: none.
	TSA string
	// TSARoots are certificates in PEM that its own leads to. Required with TSA.
	TSARoots []byte
	// Dir keeps the answers. Required.
	Dir string
	// Every is the time between two anchors. Zero: 5 min.
	Every time.Duration
	// Timeout bounds one request. Zero: 20 s.
	Timeout time.Duration
	// Now is the clock. Nil: time.Now.
	Now func() time.Time
	// Log gets what an operator must know. Nil: nothing.
	Log *slog.Logger
}

// Bounds of what is kept and of the pace.
const (
	maxKept    = 4               // anchors of each kind: the newest say all
	maxFile    = 2 << 20         // bytes of the file that keeps them: as long as each can be
	firstPause = 2 * time.Second // after a failure; it doubles up to Config.Every
)

// An Anchorer asks for anchors and keeps them. It is safe for concurrent use.
type Anchorer struct {
	cfg    Config
	source Source
	client *http.Client
	policy *evidence.WitnessPolicy // nil: no witnesses
	roots  *evidence.TSARoots      // nil: no time-stamp authority

	round sync.Mutex // one round at a time; guards what follows
	note  []byte     // of this round, with the cosignatures so far
	began time.Time
	sig   []byte            // of this round's entry, the same for each attempt
	sigV1 []byte            // the same, of the Rekor v1 log's
	seen  map[string]uint64 // by target: size it has vouched for, or is known to hold

	mu     sync.Mutex // guards what follows
	kept   []evidence.Anchor
	status map[string]Status
}

// A Status says how far a target is.
type Status struct {
	Target string    `json:"target"`          // rekor, rekor_v1, tsa, or witness NAME
	Size   uint64    `json:"size"`            // records that it vouches for
	At     time.Time `json:"at,omitzero"`     // when it did
	Error  string    `json:"error,omitempty"` // of the last attempt, if that failed
}

// Open reads what was kept and checks the configuration. It asks nobody.
func Open(source Source, cfg Config) (*Anchorer, error) {
	if cfg.Every == 0 {
		cfg.Every = 5 * time.Minute
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 20 * time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	a := &Anchorer{cfg: cfg, source: source, client: newClient(cfg.Timeout), seen: map[string]uint64{}, status: map[string]Status{}}
	if cfg.Policy != nil {
		var err error
		if a.policy, err = evidence.ParseWitnessPolicy(cfg.Policy); err != nil {
			return nil, err
		}
		for _, w := range a.policy.Witnesses {
			if w.URL == "" {
				continue
			}
			if err := checkURL(w.URL); err != nil {
				return nil, fmt.Errorf("witness %s: %w", w.Name, err)
			}
			a.status["witness "+w.Name] = Status{Target: "witness " + w.Name}
		}
	}
	if cfg.Rekor != "" {
		if err := checkURL(cfg.Rekor); err != nil {
			return nil, fmt.Errorf("rekor: %w", err)
		}
		if cfg.RekorKey == "" || cfg.Key == nil {
			return nil, errors.New("rekor: the log's key is missing, and without it its answers prove nothing")
		}
		a.status[rekorTarget] = Status{Target: rekorTarget}
	}
	if cfg.RekorV1 != "" {
		if err := checkURL(cfg.RekorV1); err != nil {
			return nil, fmt.Errorf("rekor_v1: %w", err)
		}
		if cfg.RekorV1Key == "" || cfg.Key == nil {
			return nil, errors.New("rekor_v1: the log's key is missing, and without it its answers prove nothing")
		}
		if err := evidence.CheckRekorV1Key(cfg.RekorV1Key); err != nil {
			return nil, fmt.Errorf("rekor_v1: key: %w", err)
		}
		a.status[rekorV1Target] = Status{Target: rekorV1Target}
	}
	if cfg.TSA != "" {
		if err := checkURL(cfg.TSA); err != nil {
			return nil, fmt.Errorf("tsa: %w", err)
		}
		var err error
		if a.roots, err = evidence.ParseTSARoots(cfg.TSARoots); err != nil {
			return nil, fmt.Errorf("tsa: %w", err)
		}
		a.status[tsaTarget] = Status{Target: tsaTarget}
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("anchors: %w", err)
	}
	return a, a.load()
}

// Run asks until ctx is done.
func (a *Anchorer) Run(ctx context.Context) {
	pause := firstPause // a daemon that has just started is anchored soon
	for {
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		err := a.ask(ctx, false)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			pause = a.cfg.Every
		default:
			a.cfg.Log.WarnContext(ctx, "checkpoint not anchored everywhere", "err", err)
			if pause >= a.cfg.Every {
				pause = firstPause
			} else {
				pause = min(2*pause, a.cfg.Every)
			}
		}
	}
}

// Now asks every target about a fresh checkpoint and returns what failed.
func (a *Anchorer) Now(ctx context.Context) error { return a.ask(ctx, true) }

// ask sends the round's checkpoint to those that have not vouched for it. A new
// round begins when one is asked for, or the last is over or as old as Every.
func (a *Anchorer) ask(ctx context.Context, fresh bool) error {
	a.round.Lock()
	defer a.round.Unlock()
	if now := a.cfg.Now(); fresh || a.note == nil || now.Sub(a.began) >= a.cfg.Every {
		note, err := a.source.Checkpoint(ctx)
		if err != nil {
			return fmt.Errorf("anchor: %w", err)
		}
		old, _, err := a.open(a.note)
		next, _, err2 := a.open(note)
		if err2 != nil {
			return fmt.Errorf("anchor: %w", err2)
		}
		if next.Size == 0 {
			return nil // an empty ledger has nothing to lose
		}
		a.began = now
		if err != nil || old != next { // else what has been collected stays
			a.note, a.sig, a.sigV1 = note, nil, nil
		}
	}
	cp, _, err := a.open(a.note)
	if err != nil {
		return fmt.Errorf("anchor: %w", err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex // guards errs, a.seen and a.note while the targets are asked
	var errs []error
	sent := a.note
	ask := func(target string, f func(size uint64) (uint64, []byte, error)) {
		if a.reached(target) == cp.Size {
			return
		}
		mu.Lock()
		size := a.seen[target] // those asked before may be answering
		mu.Unlock()
		wg.Go(func() {
			has, line, err := f(size)
			mu.Lock()
			defer mu.Unlock()
			a.seen[target] = has
			if err == nil && len(a.note)+len(line) > evidence.MaxCheckpoint {
				err = errors.New("no room for one more signature")
				line = nil
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", target, err))
			}
			a.note = append(a.note[:len(a.note):len(a.note)], line...)
			a.mark(target, cp.Size, err)
		})
	}
	if a.policy != nil {
		for _, w := range a.policy.Witnesses {
			if w.URL != "" {
				ask("witness "+w.Name, func(size uint64) (uint64, []byte, error) { return a.cosign(ctx, w, sent, cp, size) })
			}
		}
	}
	var entry, entryV1, token []byte
	if a.cfg.Rekor != "" {
		ask(rekorTarget, func(size uint64) (uint64, []byte, error) {
			var err error
			entry, err = a.enter(ctx, cp, &a.sig, a.submit)
			return size, nil, err
		})
	}
	if a.cfg.RekorV1 != "" {
		ask(rekorV1Target, func(size uint64) (uint64, []byte, error) {
			var err error
			entryV1, err = a.enter(ctx, cp, &a.sigV1, a.submitV1)
			return size, nil, err
		})
	}
	if a.cfg.TSA != "" {
		ask(tsaTarget, func(size uint64) (uint64, []byte, error) {
			var err error
			token, err = a.stamp(ctx, cp)
			return size, nil, err
		})
	}
	wg.Wait()
	if entry != nil {
		a.keep(evidence.Anchor{Checkpoint: string(sent), Kind: evidence.AnchorRekor, Proof: entry}, cp)
	}
	if entryV1 != nil {
		a.keep(evidence.Anchor{Checkpoint: string(sent), Kind: evidence.AnchorRekorV1, Proof: entryV1}, cp)
	}
	if token != nil {
		a.keep(evidence.Anchor{Checkpoint: string(sent), Kind: evidence.AnchorTSA, Proof: token}, cp)
	}
	if len(a.note) > len(sent) {
		a.keep(evidence.Anchor{Checkpoint: string(a.note), Kind: evidence.AnchorWitness}, cp)
	}
	return errors.Join(append(errs, a.save())...)
}

func (a *Anchorer) open(note []byte) (evidence.Checkpoint, string, error) {
	return evidence.OpenCheckpoint(note, a.source.VerifierKey())
}

// reached returns the size that a target has vouched for.
func (a *Anchorer) reached(target string) uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.status[target].Size
}

func (a *Anchorer) mark(target string, size uint64, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.status[target]
	s.Error = ""
	if err != nil {
		s.Error = err.Error()
	} else {
		s.Size, s.At = size, a.cfg.Now().UTC()
	}
	a.status[target] = s
}

// keep puts an anchor first among its kind and drops the oldest.
func (a *Anchorer) keep(n evidence.Anchor, cp evidence.Checkpoint) {
	a.mu.Lock()
	defer a.mu.Unlock()
	list, of := []evidence.Anchor{n}, 1
	for _, old := range a.kept {
		if old.Kind == n.Kind {
			if was, _, err := a.open([]byte(old.Checkpoint)); err != nil || was == cp || of == maxKept {
				continue
			}
			of++
		}
		list = append(list, old)
	}
	a.kept = list
}

// Anchors returns the newest few of each kind.
func (a *Anchorer) Anchors(context.Context) ([]evidence.Anchor, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]evidence.Anchor(nil), a.kept...), nil
}

// Status says how far each target is.
func (a *Anchorer) Status() []Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []Status
	if a.policy != nil {
		for _, w := range a.policy.Witnesses {
			if s, ok := a.status["witness "+w.Name]; ok {
				out = append(out, s)
			}
		}
	}
	for _, target := range []string{rekorTarget, rekorV1Target, tsaTarget} {
		if s, ok := a.status[target]; ok {
			out = append(out, s)
		}
	}
	return out
}

func (a *Anchorer) file() string { return filepath.Join(a.cfg.Dir, "anchors.json") }

// load reads what was kept. An anchor of another ledger or key is none of ours.
func (a *Anchorer) load() error {
	info, err := os.Stat(a.file())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || info.Size() > maxFile {
		return fmt.Errorf("anchors: %s cannot be read or is larger than %d bytes: %w", a.file(), maxFile, err)
	}
	b, err := os.ReadFile(a.file())
	if err != nil {
		return fmt.Errorf("anchors: %w", err)
	}
	var list []evidence.Anchor
	if err := json.Unmarshal(b, &list); err != nil {
		return fmt.Errorf("anchors: %s: %w", a.file(), err)
	}
	for _, n := range list {
		if _, _, err := a.open([]byte(n.Checkpoint)); err != nil {
			return fmt.Errorf("anchors: %s: %w", a.file(), err)
		}
	}
	a.kept = list
	return nil
}

// save replaces the file so that a crash leaves the old or the new one. What is
// lost is asked for again, so it need not be on disk at once.
func (a *Anchorer) save() error {
	list, _ := a.Anchors(context.Background()) //nolint:forbidigo // it reads memory
	b, err := json.Marshal(list)
	if err != nil {
		return fmt.Errorf("anchors: %w", err)
	}
	if err := os.WriteFile(a.file()+".new", b, 0o600); err != nil {
		return fmt.Errorf("anchors: %w", err)
	}
	return os.Rename(a.file()+".new", a.file())
}

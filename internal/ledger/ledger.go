// Package ledger gives every event its place, makes it durable, and proves it.
//
// It owns the order: a dense index, the run chains, the hash chain and the
// RFC 6962 tree, the leaf bytes, the encryption of sensitive fields, and the
// signed checkpoints. It does not own the rows (a [Store] does), the key (a
// crypto.Signer comes in) or the formats (package evidence). Start with [Open];
// producers call [Ledger.Commit] and [Ledger.Sequence].
//
// It promises: an event whose Commit returned nil is on disk and never changes
// place. The order of calls is the order of events. Two ledgers never fork from
// one store: a daemon that lost it can append no more. When the store fails,
// Commit fails at once and nothing may run; what had got its place is written,
// unchanged, as soon as the store is back.
package ledger

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"sync"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

// A Store keeps the rows of one ledger. It is safe for concurrent use. An error
// of a writing method means that the write may have happened or not.
type Store interface {
	// Head returns the state of the ledger, the zero Head for a new one.
	Head(ctx context.Context) (evidence.Head, error)
	// Seize starts the epoch after h.Epoch unless another daemon did, and returns
	// the head as it is then: at least h, or it fails. From then on Append refuses
	// older epochs.
	Seize(ctx context.Context, h evidence.Head) (evidence.Head, error)
	// Append writes entries and fields and moves the head from before to after,
	// all or nothing and durable, if the stored head has before's epoch and size.
	Append(ctx context.Context, before, after evidence.Head, entries []evidence.Entry, sealed []evidence.Sealed) error
	// Entries yields the leaves in [from, to) by index.
	Entries(ctx context.Context, from, to uint64) iter.Seq2[evidence.Entry, error]
	// RunEntries yields those of one run.
	RunEntries(ctx context.Context, run vault.TaskID, from, to uint64) iter.Seq2[evidence.Entry, error]
	// Hashes returns the leaf hashes in [from, to).
	Hashes(ctx context.Context, from, to uint64) ([]vault.Digest, error)
	// RunExists reports whether the run has a leaf.
	RunExists(ctx context.Context, run vault.TaskID) (bool, error)
	// Sealed returns the fields beside one leaf, by name.
	Sealed(ctx context.Context, idx uint64) ([]evidence.Sealed, error)
	// MayEraseField says why EraseField would be refused; nil means it would not.
	MayEraseField() error
	// EraseField puts erased in the place of the field that stands there, one row,
	// and returns once the live database no longer holds what it was.
	EraseField(ctx context.Context, erased evidence.Sealed) error
	// PutCheckpoint keeps a signed checkpoint over size leaves.
	PutCheckpoint(ctx context.Context, size uint64, note []byte) error
	// Checkpoint returns the newest kept over at most so many leaves; nil if none is.
	Checkpoint(ctx context.Context, most uint64) (note []byte, size uint64, err error)
}

// Config says what a ledger is made of.
type Config struct {
	// Store keeps the rows. Required.
	Store Store
	// Origin names the ledger, a schemeless URL; it stands in every leaf and
	// checkpoint and is the name of the key. Required.
	Origin string
	// Key signs checkpoints, Ed25519. Required.
	Key crypto.Signer
	// Keys holds the keys of sensitive fields, outside the store. Required.
	Keys Keys
	// Anchors returns what others vouch for, the newest few of each kind, for the
	// bundles; the paths are filled in here. Nil: nobody does.
	Anchors func(context.Context) ([]evidence.Anchor, error)
	// Witnesses is the ledger's witness policy, which bundles carry as a hint. Nil: none.
	Witnesses []byte
	// CheckpointFile keeps the last signed checkpoint, outside the store, so that
	// a store from an older day is noticed. Required.
	CheckpointFile string
	// Every is how often a ledger that has grown is checkpointed. Zero: 1 s.
	Every time.Duration
	// Heartbeat is how often one that has not grown is. Zero: 60 s.
	Heartbeat time.Duration
	// Linger is how long an event of Sequence waits for a commit to ride on.
	// Zero: 20 ms.
	Linger time.Duration
	// Retry is the first pause after the store failed; it doubles up to 2 s.
	// Zero: 50 ms.
	Retry time.Duration
	// Now is the clock. Nil: time.Now.
	Now func() time.Time
	// Confirm says whether this daemon still serves the ledger; while it returns an
	// error, Commit denies. Nil: it always does.
	Confirm func() error
	// Committed is told of every batch that is on disk: how many events, and how long
	// the write took. It must return at once. Nil: nobody is.
	Committed func(events int, took time.Duration)
	// Log gets what an operator must know. Nil: nothing.
	Log *slog.Logger
}

// Bounds of the ring. What is placed and not yet on disk is at most two batches:
// the one being written and the one being filled.
const (
	// maxBatch and maxBatchBytes end a batch: beyond them a bigger transaction is
	// no faster per event, and what waits for it waits longer.
	maxBatch      = 4096
	maxBatchBytes = 4 << 20
	// maxField is the largest value kept. A larger one is committed to and its
	// size kept.
	maxField = 32 << 10
)

// Errors to branch on. They stand below the *vault.Denial that producers get.
var (
	// ErrDown means that the store does not take writes at the moment.
	ErrDown = errors.New("the ledger's store is down")
	// ErrLost means that another daemon has the ledger, or that its store says
	// something else than was written. Only a restart helps.
	ErrLost = errors.New("the ledger is lost to this daemon")
	// ErrClosed means that the ledger was closed.
	ErrClosed = errors.New("the ledger is closed")
	// ErrRollback means that the store does not continue the last checkpoint.
	ErrRollback = errors.New("the store is older than the last signed checkpoint, or differs from it")
	// ErrForeign means that the last checkpoint is not by this ledger's key, or of
	// another ledger than the store.
	ErrForeign = errors.New("the last signed checkpoint is not of this ledger")
	// ErrCorrupt means that what the store holds is not what was written.
	ErrCorrupt = errors.New("the store was changed by another hand")
	// ErrRunClosed means that the run of an event has its closing record.
	ErrRunClosed = errors.New("the run is closed")
)

// A Ledger is one log. It is safe for concurrent use.
type Ledger struct {
	cfg       Config
	log       *slog.Logger
	verifier  string // key to pin
	recovered *Recovered
	aeads     aeads

	// mu guards the sequence: everything an event's place depends on.
	mu     sync.Mutex
	space  sync.Cond // on mu: the open batch was taken, or the state changed
	seq    sequence
	open   *batch // being filled; nil when empty
	staged *batch // sealed behind the one being written; else nil
	expect int    // how many waited for the last batch
	down   error  // why Commit is refused now; nil when the store works
	fatal  error  // why it is refused for ever
	closed bool   // by Close

	stager stager        // nil: the store has no use for it
	mean   time.Duration // of a commit; of whoever writes a batch

	wake chan struct{} // capacity 1: the committer has work
	urge chan struct{} // capacity 1: and somebody waits for it

	// durable is the head as last written. It has its own lock so that readers do
	// not meet producers.
	durableMu sync.Mutex
	durable   evidence.Head
	grown     chan struct{} // closed and replaced when durable moves

	cpMu sync.Mutex // one checkpoint at a time
	cp   evidence.Checkpoint
	note []byte
	kept uint64 // size of the checkpoint last put in the store

	stop context.CancelFunc
	wg   sync.WaitGroup
}

// Open recovers the ledger in cfg.Store, takes it over from whoever had it, and
// starts to sequence. It reads and checks every leaf; that is about a second for
// every few hundred thousand. It refuses a store that was changed or rolled back.
func Open(ctx context.Context, cfg Config) (*Ledger, error) {
	l, err := prepare(cfg)
	if err == nil {
		err = l.recover(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	l.stop = stop
	l.wg.Go(func() { l.commitLoop(run) })
	l.wg.Go(func() { l.checkpointLoop(run) })
	return l, nil
}

// prepare makes a ledger that has read nothing yet.
func prepare(cfg Config) (*Ledger, error) {
	if cfg.Store == nil || cfg.Origin == "" || cfg.Key == nil || cfg.Keys == nil || cfg.CheckpointFile == "" {
		return nil, errors.New("Config needs Store, Origin, Key, Keys and CheckpointFile")
	}
	cfg.Every = orElse(cfg.Every, time.Second)
	cfg.Heartbeat = orElse(cfg.Heartbeat, time.Minute)
	cfg.Linger = orElse(cfg.Linger, 20*time.Millisecond)
	cfg.Retry = orElse(cfg.Retry, 50*time.Millisecond)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	vkey, err := evidence.VerifierKey(cfg.Origin, cfg.Key.Public())
	if err != nil {
		return nil, err
	}
	l := &Ledger{
		cfg: cfg, log: cfg.Log, verifier: vkey, seq: newSequence(cfg.Origin),
		wake: make(chan struct{}, 1), urge: make(chan struct{}, 1), grown: make(chan struct{}),
	}
	l.space.L = &l.mu
	l.stager, _ = cfg.Store.(stager)
	l.aeads.keys = cfg.Keys
	return l, nil
}

// Close writes what has its place, signs a last checkpoint and stops. Later
// events are refused. It returns an error if something could not be written.
func (l *Ledger) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	l.space.Broadcast()
	l.mu.Unlock()
	notify(l.urge)
	l.stop()
	l.wg.Wait()

	var errs []error
	l.mu.Lock()
	lost := l.open != nil || l.staged != nil || l.down != nil
	if l.fatal != nil {
		errs = append(errs, l.fatal)
	} else if lost {
		errs = append(errs, errors.New("events without a place on disk were lost"), l.down)
	}
	l.mu.Unlock()
	if len(errs) == 0 {
		// The caller's context may be over; the last checkpoint must still be
		// written, and the store bounds how long that can take.
		_, err := l.checkpoint(context.Background(), true) //nolint:forbidigo // Close has no context and must finish
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close ledger: %w", err)
	}
	return nil
}

// Recovered says what stood in the ledger when it was opened.
func (l *Ledger) Recovered() *Recovered { return l.recovered }

// VerifierKey returns the key that an auditor pins: NAME+HASH+KEY.
func (l *Ledger) VerifierKey() string { return l.verifier }

// Head returns the ledger as it is on disk.
func (l *Ledger) Head() evidence.Head {
	h, _ := l.Watch()
	return h
}

// Watch returns the ledger as it is on disk and a channel that is closed when it
// grows.
func (l *Ledger) Watch() (evidence.Head, <-chan struct{}) {
	l.durableMu.Lock()
	defer l.durableMu.Unlock()
	return l.durable, l.grown
}

func (l *Ledger) setHead(h evidence.Head) {
	l.durableMu.Lock()
	defer l.durableMu.Unlock()
	l.durable = h
	close(l.grown)
	l.grown = make(chan struct{})
}

// Queue returns how many events have their place and are not on disk yet.
func (l *Ledger) Queue() uint64 {
	l.mu.Lock()
	placed := l.seq.size
	l.mu.Unlock()
	return placed - min(l.Head().Size, placed)
}

// Health returns nil while the ledger takes events, else why not.
func (l *Ledger) Health() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.refusal()
}

// refusal returns why events are refused now. Under mu.
func (l *Ledger) refusal() error {
	switch {
	case l.fatal != nil:
		return l.fatal
	case l.closed:
		return ErrClosed
	case l.down != nil:
		return l.down
	}
	return nil
}

var _ io.Closer = (*Ledger)(nil)

func orElse(d, zero time.Duration) time.Duration {
	if d == 0 {
		return zero
	}
	return d
}

// notify leaves a token in a channel of capacity 1.
func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

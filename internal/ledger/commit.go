package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

// A batch is what goes into one transaction.
type batch struct {
	before, after evidence.Head
	entries       []evidence.Entry
	sealed        []evidence.Sealed
	bytes         int
	waits         int      // how many wait for it
	intents       []uint64 // committed intents, to be closed if the batch fails
	wait          *outcome
	finish        finisher // of a batch that is staged, for the first try; else nil
}

// An outcome is what those who wait for a batch learn.
type outcome struct {
	done chan struct{}
	err  error // set before done is closed
}

func newOutcome() *outcome { return &outcome{done: make(chan struct{})} }

func (o *outcome) set(err error) {
	o.err = err
	close(o.done)
}

// Commit places e and returns once it is durable. A *vault.Denial with code
// ledger.unavailable means that nothing may run; e may be in the ledger all the
// same, and if it is an intent, the ledger closes it as failed by itself. It does
// not stop when ctx is cancelled: the caller that hangs up must not lose the
// record.
func (l *Ledger) Commit(ctx context.Context, e *vault.Event) (vault.Receipt, error) {
	receipt, durable, err := l.place(ctx, e, true)
	if err != nil {
		return vault.Receipt{}, err
	}
	<-durable.done
	if durable.err != nil {
		return vault.Receipt{}, unavailable(durable.err)
	}
	return receipt, nil
}

// Sequence places e and returns. It is durable with the next commit, at most
// 20 ms later. While the store is down it still gives places, as long as there is
// room, because the effect that e tells of has happened.
func (l *Ledger) Sequence(ctx context.Context, e *vault.Event) (vault.Receipt, error) {
	receipt, _, err := l.place(ctx, e, false)
	return receipt, err
}

func unavailable(err error) error { return vault.NewDenial(vault.CodeLedger, "", err) }

// place puts e into the open batch.
func (l *Ledger) place(ctx context.Context, e *vault.Event, wait bool) (vault.Receipt, *outcome, error) {
	ctx = context.WithoutCancel(ctx)
	if wait && l.cfg.Confirm != nil {
		if err := l.cfg.Confirm(); err != nil {
			return vault.Receipt{}, nil, unavailable(err)
		}
	}
	d, err := l.draft(e)
	if err != nil {
		return vault.Receipt{}, nil, unavailable(fmt.Errorf("record event: %w", err))
	}
	if err := l.knowRun(ctx, e.Run); err != nil {
		return vault.Receipt{}, nil, unavailable(fmt.Errorf("record event: %w", err))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if l.fatal != nil || l.closed || l.down != nil && (wait || l.full()) {
			return vault.Receipt{}, nil, unavailable(l.refusal())
		}
		if !l.full() {
			break
		}
		l.space.Wait()
	}
	receipt, b, err := l.put(d)
	if err != nil {
		if errors.Is(err, ErrRunClosed) {
			return vault.Receipt{}, nil, vault.NewDenial(vault.CodeTaskClosed, "", err)
		}
		return vault.Receipt{}, nil, unavailable(fmt.Errorf("record event: %w", err))
	}
	if wait {
		if e.Phase == vault.PhaseIntent {
			b.intents = append(b.intents, receipt.Index)
		}
		// The first wakes the committer, and the last of those it expects; the others
		// would only cost it a switch each.
		if b.waits++; b.waits == 1 || b.waits == l.expect || b.waits == pipelined {
			notify(l.urge)
		}
	} else {
		notify(l.wake)
	}
	return receipt, b.wait, nil
}

// full reports whether the open batch takes no more. Under mu.
func (l *Ledger) full() bool {
	return l.open != nil && (len(l.open.entries) >= maxBatch || l.open.bytes >= maxBatchBytes)
}

// put places a draft in the open batch. Under mu.
func (l *Ledger) put(d *draft) (vault.Receipt, *batch, error) {
	now := l.cfg.Now()
	b := l.open
	if b == nil {
		b = &batch{before: l.seq.head(), wait: newOutcome()}
	}
	e, sealed, err := l.seq.place(d, now)
	if err != nil {
		return vault.Receipt{}, nil, err
	}
	b.entries = append(b.entries, e)
	b.sealed = append(b.sealed, sealed...)
	b.bytes += len(e.Leaf)
	for i := range sealed {
		b.bytes += len(sealed[i].Text)
	}
	l.open = b
	return vault.Receipt{Index: e.Index, Leaf: e.Hash, Time: d.leaf.Time}, b, nil
}

// knowRun makes sure that a run the sequence does not know is new and not one
// that was closed before this process began. The store is asked outside mu; a run
// that is opened and closed meanwhile is in seq.ended.
func (l *Ledger) knowRun(ctx context.Context, id vault.TaskID) error {
	l.mu.Lock()
	known := l.seq.runs[id] != nil || l.seq.ended[id] || id == ""
	l.mu.Unlock()
	if known {
		return nil
	}
	exists, err := l.cfg.Store.RunExists(ctx, id)
	if err != nil || !exists {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seq.runs[id] == nil { // else somebody opened it while we looked
		l.seq.ended[id] = true
	}
	return nil
}

// take seals the open batch and returns it, nil if there is none.
func (l *Ledger) take() *batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == nil {
		return nil
	}
	return l.seal()
}

// seal closes the open batch. Under mu.
func (l *Ledger) seal() *batch {
	b := l.open
	b.after = l.seq.head()
	l.open, l.expect = nil, b.waits
	l.space.Broadcast()
	return b
}

// short reports whether fewer wait for the open batch than waited for the last.
func (l *Ledger) short() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open != nil && l.open.waits < l.expect
}

// commitLoop writes batches until ctx ends and nothing is left. Batching is
// natural: what arrives during one commit is the next. But when many producers
// have just been told, the first of them to come back must not get a commit of its
// own while the others are on their way: with 64 of them that halves the rate. So
// where a commit is slow the loop waits for as many as last time, for a quarter of
// a commit and at most 1 ms. One producer alone never waits.
func (l *Ledger) commitLoop(ctx context.Context) {
	linger := time.NewTimer(l.cfg.Linger)
	linger.Stop()
	defer linger.Stop()
	lingers := false
	gather := time.NewTimer(maxGather)
	gather.Stop()
	defer gather.Stop()
	for {
		select {
		case <-l.urge:
			if wait := min(l.mean/4, maxGather); wait > minGather && l.short() {
				gather.Reset(wait)
				select {
				case <-l.urge:
				case <-gather.C:
				case <-ctx.Done():
				}
				gather.Stop()
			}
		case <-linger.C:
		case <-ctx.Done():
		case <-l.wake:
			// Nobody waits for it: give a commit the chance to take it along.
			if !lingers {
				lingers = true
				linger.Reset(l.cfg.Linger)
			}
			continue
		}
		// What waited for the timer goes along: a commit for it alone, a moment later,
		// would only hold up the next intent.
		linger.Stop()
		lingers = false
		b := l.take()
		if b == nil {
			if ctx.Err() != nil {
				return
			}
			continue
		}
		if !l.commit(ctx, b) {
			return
		}
	}
}

// Bounds of the wait for those who are on their way. Below minGather a timer costs
// more than the commit it saves.
const (
	minGather = 50 * time.Microsecond
	maxGather = time.Millisecond
)

// write makes b durable. While the store fails it tells the waiters at once,
// refuses new commits, and tries the very same batch again: its leaves have their
// places, so writing others would be a fork. It reports whether to go on.
func (l *Ledger) write(ctx context.Context, b *batch) bool {
	pause := l.cfg.Retry
	const maxPause = 2 * time.Second
	told := false
	start := time.Now()
	for {
		err := l.append(ctx, b)
		if err == nil {
			break
		}
		if !told {
			told = true
			l.fail(b, fmt.Errorf("%w: %w", ErrDown, err))
			l.log.ErrorContext(ctx, "ledger does not take events", "err", err, "events", len(b.entries))
		}
		// Failed, or failed but happened? The head tells.
		switch happened, state := l.look(ctx, b); {
		case state != nil:
			l.lose(fmt.Errorf("%w: %w", ErrLost, state))
			l.log.ErrorContext(ctx, "ledger lost", "err", state)
			return false
		case happened:
			err = nil
		}
		if err == nil {
			break
		}
		if ctx.Err() != nil { // closing: the one more try was the last
			return false
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
		pause = min(2*pause, maxPause)
	}
	took := time.Since(start)
	l.mean += (took - l.mean) / 8
	if l.cfg.Committed != nil {
		l.cfg.Committed(len(b.entries), took)
	}
	l.setHead(b.after)
	if told {
		l.recoverFrom(b)
		l.log.InfoContext(ctx, "ledger takes events again", "size", b.after.Size)
	} else {
		b.wait.set(nil)
	}
	return true
}

// append tries to write b once. A daemon that stops still writes what it has.
func (l *Ledger) append(ctx context.Context, b *batch) error {
	ctx = context.WithoutCancel(ctx)
	if finish := b.finish; finish != nil {
		b.finish = nil
		return finish(ctx, b.before, b.after, true)
	}
	return l.cfg.Store.Append(ctx, b.before, b.after, b.entries, b.sealed)
}

// fail tells the waiters of b and of the open batch, and refuses commits.
func (l *Ledger) fail(b *batch, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = err
	b.wait.set(err)
	l.unstage(err)
	if o := l.open; o != nil {
		// Its places stay; those who wait for it do not.
		o.wait.set(err)
		o.wait = newOutcome()
	}
	l.space.Broadcast()
}

// look reads the head after a failed write. A state that is neither before nor
// after b is an error: somebody else writes here. A head that cannot be read is
// no news.
func (l *Ledger) look(ctx context.Context, b *batch) (happened bool, err error) {
	h, readErr := l.cfg.Store.Head(context.WithoutCancel(ctx))
	switch {
	case readErr != nil:
		return false, nil //nolint:nilerr // the write is tried again and says itself why it fails
	case h.Epoch != b.before.Epoch:
		return false, fmt.Errorf("another daemon started epoch %d", h.Epoch)
	case h.Size == b.after.Size && h.Chain == b.after.Chain:
		return true, nil
	case h.Size == b.before.Size && h.Chain == b.before.Chain:
		return false, nil
	}
	return false, fmt.Errorf("the store is at %d leaves, expected %d or %d", h.Size, b.before.Size, b.after.Size)
}

// lose refuses everything from now on.
func (l *Ledger) lose(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fatal = err
	l.unstage(err)
	if o := l.open; o != nil {
		o.wait.set(err)
		l.open = nil
	}
	l.space.Broadcast()
}

// recoverFrom takes commits again after a failure, and closes the intents whose
// Commit failed: their callers were told no, so nothing ran.
func (l *Ledger) recoverFrom(b *batch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = nil
	intents := b.intents
	if o := l.open; o != nil {
		intents = append(intents, o.intents...)
		o.intents = nil
	}
	for _, idx := range intents {
		if err := l.putFailed(idx, b); err != nil {
			// The run was closed in between. The intent stays open until the next
			// start, which closes it as unknown.
			l.log.Error("intent without effect not closed", "index", idx, "err", err)
		}
	}
	l.space.Broadcast()
	notify(l.wake)
}

// putFailed places the closing record of an intent that was refused to its
// caller. Under mu.
func (l *Ledger) putFailed(idx uint64, b *batch) error {
	leaf, err := l.placedLeaf(idx, b)
	if err != nil {
		return err
	}
	d, err := l.draft(&vault.Event{
		Run: leaf.Run, Call: leaf.Call, Class: vault.ClassCall, Phase: vault.PhaseFailed,
		Intent: idx, HasIntent: true, Reason: vault.CodeLedger,
		Kind: leaf.Kind, Target: vault.Target{Server: leaf.Server}, Proof: leaf.Proof, Grade: leaf.Grade,
		AnyArgs: leaf.AnyArgs, SameUID: leaf.SameUID, Refund: true,
	})
	if err != nil {
		return err
	}
	d.leaf.Tool = leaf.Tool
	_, _, err = l.put(d)
	return err
}

// placedLeaf finds a leaf that is in b or in the open batch. Under mu.
func (l *Ledger) placedLeaf(idx uint64, b *batch) (*evidence.Leaf, error) {
	for _, in := range []*batch{b, l.open} {
		if in != nil && idx >= in.before.Size && idx < in.before.Size+uint64(len(in.entries)) {
			return evidence.ParseLeaf(in.entries[idx-in.before.Size].Leaf)
		}
	}
	return nil, fmt.Errorf("leaf %d is not at hand", idx)
}

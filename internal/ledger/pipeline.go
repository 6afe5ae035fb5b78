package ledger

import (
	"context"

	"github.com/pilox/vault/evidence"
)

// A stager is a store that takes the rows of a batch while the one before it is
// being committed. finish with commit moves the head in the same transaction, like
// Append, and without takes the rows back; one of them must be called. A nil
// finish means that the store gains nothing by it.
type stager interface {
	Stage(ctx context.Context, entries []evidence.Entry, sealed []evidence.Sealed) (finish finisher, err error)
}

type finisher = func(ctx context.Context, before, after evidence.Head, commit bool) error

// pipelined is how many must wait for a batch before it is worth a second
// connection. With fewer, two small batches cost more than a large one.
const pipelined = 256

// commit writes b and what was staged behind it.
func (l *Ledger) commit(ctx context.Context, b *batch) bool {
	// What came meanwhile may have left its token with stageBehind.
	defer func() {
		if l.waiting() > 0 {
			notify(l.urge)
		}
	}()
	for {
		if b.waits < pipelined || l.stager == nil {
			return l.write(ctx, b)
		}
		done := make(chan bool, 1)
		l.wg.Go(func() { done <- l.write(ctx, b) })
		ok, finish := l.stageBehind(ctx, done)
		l.mu.Lock()
		next := l.staged
		l.staged = nil
		l.mu.Unlock()
		if next != nil && ok {
			next.finish = finish
			b = next
			continue
		}
		if finish != nil {
			// The batch before it failed, and this one went back to those without a
			// transaction.
			if err := finish(ctx, evidence.Head{}, evidence.Head{}, false); err != nil {
				l.log.WarnContext(ctx, "staged rows not taken back", "err", err)
			}
		}
		if next != nil {
			next.wait.set(ErrLost)
		}
		return ok
	}
}

// stageBehind waits for the batch that is being written, and stages the next one
// meanwhile if there is enough for it.
func (l *Ledger) stageBehind(ctx context.Context, done <-chan bool) (bool, finisher) {
	for {
		select {
		case ok := <-done:
			return ok, nil
		case <-l.urge:
		}
		b := l.takeStaged()
		if b == nil {
			continue
		}
		finish, err := l.stager.Stage(context.WithoutCancel(ctx), b.entries, b.sealed)
		if err != nil { // it is appended as a whole when its turn comes, which says why if it must
			finish = nil
		}
		return <-done, finish
	}
}

// takeStaged seals the open batch as the one behind that which is being written.
func (l *Ledger) takeStaged() *batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == nil || l.open.waits < pipelined || l.down != nil || l.fatal != nil {
		return nil
	}
	l.staged = l.seal()
	return l.staged
}

// unstage puts the staged batch back before the open one, because the batch
// before it failed: it tells its waiters, and keeps its places. Under mu.
func (l *Ledger) unstage(err error) {
	s := l.staged
	if s == nil {
		return
	}
	l.staged = nil
	s.wait.set(err)
	// A copy: the rows of s may be on their way to the store.
	b := &batch{before: s.before, entries: s.entries, sealed: s.sealed, bytes: s.bytes, intents: s.intents, wait: newOutcome()}
	if o := l.open; o != nil {
		b.entries = append(b.entries[:len(b.entries):len(b.entries)], o.entries...)
		b.sealed = append(b.sealed[:len(b.sealed):len(b.sealed)], o.sealed...)
		b.intents = append(b.intents, o.intents...)
		b.bytes += o.bytes
		o.wait.set(err)
	}
	l.open = b
}

// waiting returns how many wait for the open batch.
func (l *Ledger) waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == nil {
		return 0
	}
	return l.open.waits
}

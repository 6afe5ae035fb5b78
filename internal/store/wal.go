package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/pilox/vault/evidence"
)

// A WAL is a tenant whose batches are durable in a local log before they are in
// the database: an append costs one fdatasync of a file that has its size already.
// They go on to the database in order, many in one transaction. Until then they
// are on this machine only, so a WAL is for one daemon: another that took the
// ledger over would not know them. Everything else is the tenant's.
type WAL struct {
	*Tenant
	lock  *os.File
	files [2]*os.File // written in turn; one is used again when all of it is in the database
	size  int64

	mu     sync.Mutex
	moved  sync.Cond      // on mu: the queue or a state changed
	head   evidence.Head  // of the last batch in the log
	queue  []*walRecord   // in the log and not in the database, oldest first
	held   [2]int         // of them, by file
	at     int            // file being written
	off    int64          // and where
	broken error          // a sync failed: what the file holds is unknown, for ever
	lost   error          // the database is not where this log left it
	down   error          // why the database takes nothing at the moment
	buf    []byte         // of the record being written
	stop   func()         // ends the drain
	wg     sync.WaitGroup // the drain
}

// ErrWAL means that the local log and the database do not fit together.
var ErrWAL = errors.New("the local log does not continue the database")

// walSegment is the size of each of two files. What they hold together is how far
// the database may be behind: above it an append waits.
const walSegment = 64 << 20

// OpenWAL opens or makes the log path.0 and path.1 and brings what it holds to the
// database. It fails with [ErrLocked] if another process has the log, and with
// [ErrWAL] if another daemon wrote the ledger meanwhile.
func (t *Tenant) OpenWAL(ctx context.Context, path string) (*WAL, error) {
	return t.openWAL(ctx, path, walSegment)
}

func (t *Tenant) openWAL(ctx context.Context, path string, size int64) (*WAL, error) {
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, fmt.Errorf("open local log: %w", err)
	}
	w := &WAL{Tenant: t, lock: lock, size: size}
	w.moved.L = &w.mu
	for i := range w.files {
		if w.files[i], err = allocate(fmt.Sprintf("%s.%d", path, i), size); err != nil {
			return nil, errors.Join(fmt.Errorf("open local log: %w", err), w.closeFiles())
		}
	}
	if err := w.replay(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open local log: %w", err), w.closeFiles())
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	w.stop = stop
	w.wg.Go(func() { w.drain(run) })
	return w, nil
}

// allocate opens a file and writes all of it once: a write into a hole would make
// every sync write the file system's own records as well.
func allocate(path string, size int64) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	zero := make([]byte, 1<<20)
	for at := st.Size(); at < size && err == nil; at += int64(len(zero)) {
		_, err = f.WriteAt(zero[:min(int64(len(zero)), size-at)], at)
	}
	if err = errors.Join(err, f.Sync()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// replay writes to the database what the log has beyond it. The records of a file
// follow each other; what comes after them is older and does not.
func (w *WAL) replay(ctx context.Context) error {
	var runs [2][]*walRecord
	for i, f := range w.files {
		b := make([]byte, w.size)
		if _, err := f.ReadAt(b, 0); err != nil {
			return err
		}
		for {
			r, n, err := readRecord(b)
			if err != nil || len(runs[i]) > 0 && !follows(runs[i][len(runs[i])-1], r) {
				break
			}
			runs[i] = append(runs[i], r)
			b = b[n:]
		}
	}
	if len(runs[0]) > 0 && len(runs[1]) > 0 && runs[0][0].before.Size > runs[1][0].before.Size {
		runs[0], runs[1] = runs[1], runs[0]
	}
	head, err := w.Tenant.Head(ctx)
	if err != nil {
		return err
	}
	for _, r := range append(runs[0], runs[1]...) {
		if r.after.Size <= head.Size && r.after.Epoch <= head.Epoch {
			continue // it is there; the ledger checks that it is the same
		}
		if r.before.Epoch != head.Epoch || r.before.Size != head.Size || r.before.Chain != head.Chain {
			return fmt.Errorf("%w: it goes on at leaf %d of epoch %d, the database is at %d of %d",
				ErrWAL, r.before.Size, r.before.Epoch, head.Size, head.Epoch)
		}
		if err := w.Tenant.Append(ctx, r.before, r.after, r.entries, r.sealed); err != nil {
			return err
		}
		head = r.after
	}
	w.head = head
	return nil
}

func follows(a, b *walRecord) bool {
	return b.before.Size == a.after.Size && b.before.Epoch == a.after.Epoch && b.before.Chain == a.after.Chain
}

// Head returns the ledger as it is in the log.
func (w *WAL) Head(context.Context) (evidence.Head, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.head, w.lost
}

// Seize brings the log to the database and starts an epoch there.
func (w *WAL) Seize(ctx context.Context, h evidence.Head) (evidence.Head, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.queue) > 0 && w.lost == nil && w.down == nil {
		w.moved.Wait()
	}
	if len(w.queue) > 0 {
		return evidence.Head{}, errors.Join(w.lost, w.down)
	}
	next, err := w.Tenant.Seize(ctx, h)
	if err == nil {
		w.head = next
	}
	return next, err
}

// Append is [Tenant.Append], durable in the log. When the log is full it waits for
// the database, and fails if that takes nothing.
func (w *WAL) Append(_ context.Context, before, after evidence.Head, entries []evidence.Entry, sealed []evidence.Sealed) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if before.Epoch != w.head.Epoch || before.Size != w.head.Size {
		return fmt.Errorf("append %d leaves: %w", len(entries), ErrStale)
	}
	r := &walRecord{before: before, after: after, entries: entries, sealed: sealed}
	w.buf = r.appendTo(w.buf[:0])
	if err := w.room(int64(len(w.buf))); err != nil {
		return fmt.Errorf("append %d leaves: %w", len(entries), err)
	}
	_, err := w.files[w.at].WriteAt(w.buf, w.off)
	if err == nil {
		err = fdatasync(w.files[w.at])
	}
	if err != nil {
		// The kernel reports a lost page once. Nothing after this can be believed.
		w.broken = fmt.Errorf("write local log: %w", err)
		return w.broken
	}
	r.segment = w.at
	w.off += int64(len(w.buf))
	w.held[w.at]++
	w.queue = append(w.queue, r)
	w.head = after
	w.moved.Broadcast()
	return nil
}

// Stage has no use here: the log is what an append waits for. The tenant's own
// would go past it.
func (w *WAL) Stage(context.Context, []evidence.Entry, []evidence.Sealed) (func(context.Context, evidence.Head, evidence.Head, bool) error, error) {
	return nil, nil
}

// MayEraseField refuses: the local log is written from end to end and never
// overwritten in one place. To erase the key of the run reaches it.
func (w *WAL) MayEraseField() error {
	return fmt.Errorf("%w: single fields cannot be erased with a local log (ledger.wal); erase the subject", errors.ErrUnsupported)
}

// EraseField fails as MayEraseField says.
func (w *WAL) EraseField(context.Context, evidence.Sealed) error { return w.MayEraseField() }

// room makes sure that n bytes fit at off. Under mu, which it gives up to wait.
func (w *WAL) room(n int64) error {
	for {
		switch {
		case w.broken != nil || w.lost != nil:
			return errors.Join(w.broken, w.lost)
		case n > w.size:
			return fmt.Errorf("a batch of %d bytes does not fit the local log", n)
		case w.off+n <= w.size:
			return nil
		case w.held[1-w.at] == 0:
			w.at, w.off = 1-w.at, 0
		case w.down != nil:
			return w.down
		default:
			w.moved.Wait()
		}
	}
}

// Lag returns how many leaves are in the log and not in the database.
func (w *WAL) Lag() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) == 0 {
		return 0
	}
	return w.head.Size - w.queue[0].before.Size
}

// drainEvents is about how many leaves go to the database at once.
const drainEvents = 4096

// drain brings batches to the database until ctx ends and none is left.
func (w *WAL) drain(ctx context.Context) {
	end := context.AfterFunc(ctx, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.moved.Broadcast()
	})
	defer end()
	pause := 50 * time.Millisecond
	for {
		batch, n := w.next(ctx)
		if n == 0 {
			return
		}
		err := w.Tenant.Append(context.WithoutCancel(ctx), batch.before, batch.after, batch.entries, batch.sealed)
		if err != nil {
			err = w.look(ctx, batch, err)
		}
		w.mu.Lock()
		if w.down = err; err == nil {
			for _, r := range w.queue[:n] {
				w.held[r.segment]--
			}
			clear(w.queue[:n])
			w.queue = w.queue[n:]
		}
		lost := w.lost
		w.moved.Broadcast()
		w.mu.Unlock()
		if lost != nil || err != nil && ctx.Err() != nil {
			return // what is left is read from the log at the next start
		}
		if err == nil {
			pause = 50 * time.Millisecond
			continue
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, 2*time.Second)
	}
}

// next waits for batches and joins some to one. It returns how many they are, 0
// when the end has come.
func (w *WAL) next(ctx context.Context) (walRecord, int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.queue) == 0 {
		if ctx.Err() != nil {
			return walRecord{}, 0
		}
		w.moved.Wait()
	}
	one := *w.queue[0]
	if len(w.queue) > 1 {
		one.entries, one.sealed = nil, nil
		n := 0
		for n < len(w.queue) && (n == 0 || len(one.entries)+len(w.queue[n].entries) <= drainEvents) {
			one.entries = append(one.entries, w.queue[n].entries...)
			one.sealed = append(one.sealed, w.queue[n].sealed...)
			one.after = w.queue[n].after
			n++
		}
		return one, n
	}
	return one, 1
}

// look finds out whether a batch that failed happened. Anything else than that it
// did or did not is a loss.
func (w *WAL) look(ctx context.Context, b walRecord, cause error) error {
	h, err := w.Tenant.Head(context.WithoutCancel(ctx))
	switch {
	case err != nil:
		return cause
	case h.Epoch == b.after.Epoch && h.Size == b.after.Size && h.Chain == b.after.Chain:
		return nil
	case h.Epoch == b.before.Epoch && h.Size == b.before.Size && h.Chain == b.before.Chain:
		return cause
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lost = fmt.Errorf("%w: the database is at leaf %d of epoch %d", ErrWAL, h.Size, h.Epoch)
	return w.lost
}

// Close brings the log to the database and closes it. What the database does not
// take stays in the log for the next start.
func (w *WAL) Close() error {
	w.stop()
	w.wg.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	err := w.lost
	if n := len(w.queue); n > 0 && err == nil {
		err = fmt.Errorf("%d batches stay in the local log: %w", n, w.down)
	}
	return errors.Join(err, w.closeFiles())
}

func (w *WAL) closeFiles() error {
	var errs []error
	for _, f := range w.files {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(append(errs, w.lock.Close())...)
}

package gateway

import (
	"context"
	"crypto/sha256"
	"errors"
	"sync"

	"github.com/pilox/vault"
)

// Tasks keeps, for the tasks this daemon owns, the calls in flight, the ids of
// closed calls, and the budget counters. It is a cache of the ledger: everything
// in it is rebuilt from intents by [Tasks.Restore]. The zero Tasks is ready for use.
type Tasks struct {
	// MaxInFlight bounds the calls in flight of one task. Zero means 256.
	MaxInFlight int
	// MaxKept bounds the bytes of results kept for retries. Zero means 8 MiB.
	MaxKept int

	mu       sync.Mutex
	tasks    map[vault.TaskID]*task
	counters map[string]int64
	kept     int      // bytes of results in closed entries
	oldest   []*entry // closed entries that keep a result, oldest first

	refusals  refusals
	strangers strangers
}

// A task is the live state of one task instance; Tasks.mu guards its fields.
type task struct {
	admit    sync.Mutex // held while a call of the task is admitted
	inFlight int
	calls    int
	denies   int
	entries  map[string]*entry
}

// An entry is one call id of a task.
type entry struct {
	task vault.TaskID
	id   string
	what vault.Digest  // of kind, target and arguments; zero if not known any more
	done chan struct{} // closed when the call is over
	own  bool          // the id was generated: nobody can retry under it

	// Guarded by Tasks.mu until done is closed, then fixed.
	phase  vault.Phase // zero until an outcome is known
	intent uint64
	ran    bool // an intent exists
	res    vault.Result
	err    error
	lost   bool // the result is no longer kept
}

// fingerprint identifies what a call does, so that a reused id cannot stand for
// something else.
func fingerprint(c *vault.Call) vault.Digest {
	d := c.Args.Digest()
	p := c.Params.Digest()
	return sha256.Sum256(append(append(append([]byte("vault/call-print/v1\x00"+string(c.Kind)+"\x00"+c.Target.Name+"\x00"), c.Target.Server[:]...), d[:]...), p[:]...))
}

func (t *Tasks) get(id vault.TaskID) *task {
	if t.tasks == nil {
		t.tasks = make(map[vault.TaskID]*task)
		t.counters = make(map[string]int64)
	}
	k := t.tasks[id]
	if k == nil {
		k = &task{entries: make(map[string]*entry)}
		t.tasks[id] = k
	}
	return k
}

// begin registers a call. mine is false if the id is in flight or closed: then
// wait on the entry.
func (t *Tasks) begin(c *vault.Call) (e *entry, mine bool, err error) {
	what := fingerprint(c)
	t.mu.Lock()
	defer t.mu.Unlock()
	k := t.get(c.Task)
	if e := k.entries[c.ID]; e != nil {
		switch {
		case e.phase == vault.PhaseUnknown:
			d := vault.NewDenial(vault.CodeCallUnknown, "", nil)
			d.Executed = vault.ExecutedUnknown
			return nil, false, d
		case !e.what.IsZero() && e.what != what:
			return nil, false, vault.NewDenial(vault.CodeCallArgsDiffer, "", nil)
		}
		return e, false, nil
	}
	limit := t.MaxInFlight
	if limit == 0 {
		limit = 256
	}
	if k.inFlight >= limit {
		d := vault.NewDenial(vault.CodeBusy, "", nil)
		d.Retry = vault.RetryAfter
		return nil, false, d
	}
	k.inFlight++
	e = &entry{task: c.Task, id: c.ID, what: what, done: make(chan struct{}), own: c.Generated}
	k.entries[c.ID] = e
	return e, true, nil
}

// end closes an entry. A call that was refused leaves no trace, so that the same
// id can be tried again after a person answered.
func (t *Tasks) end(e *entry, res vault.Result, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := t.get(e.task)
	k.inFlight--
	e.res, e.err = res, err
	if e.ran {
		k.calls++
	} else {
		k.denies++
	}
	if !e.ran || e.own {
		delete(k.entries, e.id)
	} else {
		t.keep(e)
	}
	close(e.done)
}

// keep retains the result of e and drops the oldest beyond the bound. A dropped
// entry stays: it must keep the call from running twice.
func (t *Tasks) keep(e *entry) {
	limit := t.MaxKept
	if limit == 0 {
		limit = 8 << 20
	}
	t.kept += len(e.res.Raw)
	t.oldest = append(t.oldest, e)
	for t.kept > limit {
		old := t.oldest[0]
		t.oldest[0] = nil
		t.oldest = t.oldest[1:]
		t.kept -= len(old.res.Raw)
		if old != e {
			// Somebody may be reading old: replace it instead of changing it.
			t.get(old.task).entries[old.id] = &entry{task: old.task, id: old.id, what: old.what, done: closed, phase: old.phase, intent: old.intent, ran: true, lost: true}
			continue
		}
		t.get(e.task).entries[e.id] = &entry{task: e.task, id: e.id, what: e.what, done: closed, phase: e.phase, intent: e.intent, ran: true, lost: true}
	}
}

var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// wait returns the outcome of a call that another caller runs or ran.
func (e *entry) wait(ctx context.Context) (vault.Result, error) {
	select {
	case <-e.done:
	case <-ctx.Done():
		d := vault.NewDenial(vault.CodeCancelled, "", ctx.Err())
		d.Executed = vault.ExecutedUnknown
		return vault.Result{}, d
	}
	if e.lost {
		d := vault.NewDenial(vault.CodeCallClosed, "", nil)
		d.Executed, d.Event = vault.ExecutedYes, &e.intent
		return vault.Result{}, d
	}
	return e.res, e.err
}

// admitted notes that the intent of e is durable.
func (t *Tasks) admitted(e *entry, intent uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e.ran, e.intent, e.phase = true, intent, vault.PhaseIntent
}

// closes notes the outcome of e.
func (t *Tasks) closes(e *entry, p vault.Phase) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e.phase = p
}

// history says how many calls of a task ran and how many were refused.
func (t *Tasks) history(id vault.TaskID) (calls, denies int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := t.get(id)
	return k.calls, k.denies
}

// locked runs f while no other call of the task is being admitted.
func (t *Tasks) locked(id vault.TaskID, f func() error) error {
	t.mu.Lock()
	k := t.get(id)
	t.mu.Unlock()
	k.admit.Lock()
	defer k.admit.Unlock()
	return f()
}

var errBudget = errors.New("a budget would be exceeded")

// debit takes all debits or none.
func (t *Tasks) debit(debits []vault.Debit) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.get("")
	for i, d := range debits {
		have := t.counters[d.Counter]
		for _, earlier := range debits[:i] {
			if earlier.Counter == d.Counter {
				have += earlier.Amount
			}
		}
		if d.Amount < 0 || d.Limit < 0 || have > d.Limit || d.Amount > d.Limit-have {
			code := vault.CodeCapabilityBudget
			if d.Unit == "uses" {
				code = vault.CodeApprovalInvalid
			}
			return vault.NewDenial(code, "", errBudget)
		}
	}
	for _, d := range debits {
		t.counters[d.Counter] += d.Amount
	}
	return nil
}

// refund gives back the debits that do not outlive a call that was not dispatched.
func (t *Tasks) refund(debits []vault.Debit) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, d := range debits {
		if !d.Kept {
			t.counters[d.Counter] -= d.Amount
		}
	}
}

// giveBack undoes debit for a call whose intent was not written.
func (t *Tasks) giveBack(debits []vault.Debit) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, d := range debits {
		t.counters[d.Counter] -= d.Amount
	}
}

// Spent returns how much of a counter is taken.
func (t *Tasks) Spent(counter string) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.counters[counter]
}

// A Past is one call of an earlier life of the daemon, as its ledger tells.
type Past struct {
	Task   vault.TaskID
	ID     string
	Phase  vault.Phase
	Intent uint64
}

// Restore rebuilds counters and closed calls from the ledger. It is called once,
// before the first call.
func (t *Tasks) Restore(counters map[string]int64, calls []Past) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.get("")
	for k, n := range counters {
		t.counters[k] = n
	}
	for _, p := range calls {
		k := t.get(p.Task)
		k.calls++
		k.entries[p.ID] = &entry{task: p.Task, id: p.ID, done: closed, phase: p.Phase, intent: p.Intent, ran: true, lost: true}
	}
}

// Forget drops a closed task.
func (t *Tasks) Forget(id vault.TaskID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if k := t.tasks[id]; k != nil && k.inFlight == 0 {
		delete(t.tasks, id)
	}
}

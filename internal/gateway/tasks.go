package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"hash/maphash"
	"strings"
	"sync"

	"github.com/pilox/vault"
)

// Tasks keeps, for the tasks this daemon owns, the calls in flight, the ids of
// closed calls, and the budget counters. It is a cache of the ledger: everything
// in it is rebuilt from intents by [Tasks.Restore]. The zero Tasks is ready for use.
type Tasks struct {
	// MaxInFlight bounds the calls in flight of one task. Zero means 256.
	MaxInFlight int
	// MaxKept bounds the bytes kept of closed calls, so that a retry gets their
	// results. Zero means 1 MiB: a thousand small results, which is more than a
	// client can have lost at once.
	MaxKept int

	mu       sync.Mutex
	tasks    map[vault.TaskID]*task
	counters map[string]int64
	members  map[string]map[member]struct{} // of distinct counters
	kept     int                            // bytes of closed entries
	oldest   []*entry                       // closed entries, oldest first

	refusals  refusals
	strangers strangers
}

// A task is the live state of one task instance; Tasks.mu guards its fields.
type task struct {
	admit    sync.Mutex // held while a call of the task is admitted
	inFlight int
	idle     chan struct{} // closed when inFlight is zero again; nil if nobody waits
	calls    int
	denies   int
	entries  map[string]*entry
	past     map[uint64]pastCall // closed calls whose result is no longer kept, by idHash
}

// idHash stands for a call id of a closed call. An id is up to 128 bytes of the
// client's, and a task may have millions. The hash is keyed for this process, so
// nobody can choose ids that meet. That two of a million do by chance is 3 in 10^8; the
// later one would be refused, and nothing would run twice.
func idHash(id string) uint64 { return maphash.String(idSeed, id) }

var idSeed = maphash.MakeSeed()

// A pastCall is what has to be known of a closed call for as long as its task
// lives: that it ran, so that it never runs twice. There are no pointers in it,
// which keeps a large map cheap for the collector.
type pastCall struct {
	intent  uint64
	what    uint32 // the first bytes of the entry's, to word a refusal; zero if not known
	unknown bool   // its outcome is not known
}

func whatHash(d vault.Digest) uint32 { return binary.BigEndian.Uint32(d[:]) }

// An entry is one call id of a task.
type entry struct {
	task vault.TaskID
	id   string
	what vault.Digest  // fingerprint; zero if not known any more
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

// fingerprint identifies what a call does and for whom, so that a reused id cannot
// stand for something else. A result belongs to the agent that it was labelled
// for, and to the link whose clearance it was checked against.
func fingerprint(c *vault.Call, leaf vault.Digest, outside bool) vault.Digest {
	args, params := c.Args.Digest(), c.Params.Digest()
	b := make([]byte, 0, 512)
	for _, s := range []string{"vault/call-print/v1", string(c.Kind), c.Target.Name, string(c.Agent)} {
		b = append(append(b, s...), 0)
	}
	for _, d := range []vault.Digest{vault.Digest(c.Target.Server), leaf, args, params} {
		b = append(b, d[:]...)
	}
	if outside { // the permit of another gateway's effect is no result of ours, nor the other way round
		b = append(b, 1)
	}
	return sha256.Sum256(b)
}

func (t *Tasks) get(id vault.TaskID) *task {
	if t.tasks == nil {
		t.tasks = make(map[vault.TaskID]*task)
		t.counters = make(map[string]int64)
		t.members = make(map[string]map[member]struct{})
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
func (t *Tasks) begin(c *vault.Call, leaf vault.Digest, outside bool) (e *entry, mine bool, err error) {
	what := fingerprint(c, leaf, outside)
	t.mu.Lock()
	defer t.mu.Unlock()
	k := t.get(c.Task)
	if e := k.entries[c.ID]; e != nil {
		switch {
		case e.phase == vault.PhaseUnknown:
			return nil, false, unknownCall()
		case !e.what.IsZero() && e.what != what:
			return nil, false, vault.NewDenial(vault.CodeCallArgsDiffer, "", nil)
		}
		return e, false, nil
	}
	if p, ok := k.past[idHash(c.ID)]; ok {
		switch {
		case p.unknown:
			return nil, false, unknownCall()
		case p.what != 0 && p.what != whatHash(what):
			return nil, false, vault.NewDenial(vault.CodeCallArgsDiffer, "", nil)
		}
		return &entry{task: c.Task, intent: p.intent, done: closed, ran: true, lost: true}, false, nil
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
	// The id is a part of the request, which must not live as long as the entry.
	e = &entry{task: c.Task, id: strings.Clone(c.ID), what: what, done: make(chan struct{}), own: c.Generated}
	k.entries[e.id] = e
	return e, true, nil
}

// unknownCall refuses the id of a call whose outcome is not known.
func unknownCall() *vault.Denial {
	d := vault.NewDenial(vault.CodeCallUnknown, "", nil)
	d.Executed = vault.ExecutedUnknown
	return d
}

// end closes an entry. A call that was refused leaves no trace, so that the same
// id can be tried again after a person answered.
func (t *Tasks) end(e *entry, res vault.Result, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := t.get(e.task)
	if k.inFlight--; k.inFlight == 0 && k.idle != nil {
		close(k.idle)
		k.idle = nil
	}
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

// entryBytes is about what an entry takes beside its result.
const entryBytes = 512

// keep retains e with its result and drops the oldest beyond the bound. Of a
// dropped one stays what keeps the call from running twice.
func (t *Tasks) keep(e *entry) {
	limit := t.MaxKept
	if limit == 0 {
		limit = 1 << 20
	}
	t.kept += entryBytes + len(e.res.Raw)
	t.oldest = append(t.oldest, e)
	for t.kept > limit {
		old := t.oldest[0]
		t.oldest[0] = nil
		t.oldest = t.oldest[1:]
		t.kept -= entryBytes + len(old.res.Raw)
		// A task that was forgotten meanwhile has forgotten its calls too.
		if k := t.tasks[old.task]; k != nil && k.entries[old.id] == old {
			delete(k.entries, old.id)
			k.remember(old.id, pastCall{what: whatHash(old.what), intent: old.intent, unknown: old.phase == vault.PhaseUnknown})
		}
	}
}

// remember notes a closed call.
func (k *task) remember(id string, p pastCall) {
	if k.past == nil {
		k.past = make(map[uint64]pastCall)
	}
	k.past[idHash(id)] = p
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

// A Past is one call of an earlier life of the daemon, as its ledger tells.
type Past struct {
	Task   vault.TaskID
	ID     string
	Phase  vault.Phase
	Intent uint64
}

// Restore rebuilds counters and closed calls from the ledger. It is called once,
// before the first call. reached says who was reached under the counters of
// distinct recipients and hosts. One that is missing there, because its key was
// erased, counts as new when it is reached again.
func (t *Tasks) Restore(counters map[string]int64, reached map[string][]string, calls []Past) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.get("")
	for k, n := range counters {
		t.counters[k] = n
	}
	for counter, names := range reached {
		for _, name := range names {
			t.join(counter, memberOf(name))
		}
	}
	for _, p := range calls {
		k := t.get(p.Task)
		k.calls++
		k.remember(p.ID, pastCall{intent: p.Intent, unknown: p.Phase == vault.PhaseUnknown})
	}
}

// Idle returns a channel that is closed once no call of a task is in flight. Who
// closes a run waits for it: an outcome has its place before the run's last record.
func (t *Tasks) Idle(id vault.TaskID) <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := t.tasks[id]
	if k == nil || k.inFlight == 0 {
		return closed
	}
	if k.idle == nil {
		k.idle = make(chan struct{})
	}
	return k.idle
}

// Forget drops a closed task.
func (t *Tasks) Forget(id vault.TaskID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if k := t.tasks[id]; k != nil && k.inFlight == 0 {
		delete(t.tasks, id)
	}
}

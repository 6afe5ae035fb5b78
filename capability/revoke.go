package capability

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pilox/vault"
)

// A Revocation ends chains for good. Exactly one of Link, Agent, Task, Issuer and
// Everything is set. It covers every chain with that link, agent, task or issuer,
// and so all that was delegated from it.
type Revocation struct {
	Link       vault.Digest  `json:"link,omitzero"`       // link id
	Agent      vault.AgentID `json:"agent,omitzero"`      // any agent of the chain
	Task       vault.TaskID  `json:"task,omitzero"`       //
	Issuer     string        `json:"issuer,omitzero"`     // kid of a root issuer whose key is compromised
	Everything bool          `json:"everything,omitzero"` // the kill switch: every chain issued up to At
	At         time.Time     `json:"at"`                  //
}

// Revocations is the set of what was revoked, in memory. It is filled again from
// the ledger at start, before it is used. The zero Revocations is empty and ready;
// it is safe for concurrent use and must not be copied.
type Revocations struct {
	epoch atomic.Uint64 // counts additions; written under mu

	mu      sync.RWMutex
	links   map[vault.Digest]time.Time
	agents  map[vault.AgentID]time.Time
	tasks   map[vault.TaskID]time.Time
	issuers map[string]time.Time
	all     time.Time // chains issued up to then are revoked
	ids     filter    // of all four sets

	watches map[vault.Digest]*watch // by chain
	sweep   int                     // number of watches at which expired ones are dropped
}

// A watch is closed when its chain is revoked.
type watch struct {
	ch      chan struct{}
	closed  bool
	subject subject
	expires time.Time
}

// A subject is what of a chain can be revoked.
type subject struct {
	links  []vault.Digest
	agents []vault.AgentID
	task   vault.TaskID
	kid    string
	issued time.Time
}

// Add revokes. It counts from the next call on, and the channels of calls in
// flight are closed before it returns.
func (r *Revocations) Add(v Revocation) error {
	n := 0
	for _, set := range []bool{!v.Link.IsZero(), v.Agent != "", v.Task != "", v.Issuer != "", v.Everything} {
		if set {
			n++
		}
	}
	if n != 1 {
		return errors.New("revocation: want one of link, agent, task, issuer and everything")
	}
	if v.Everything && v.At.IsZero() {
		return errors.New("revocation of everything without a time")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case !v.Link.IsZero():
		put(&r.links, v.Link, v.At)
	case v.Agent != "":
		put(&r.agents, v.Agent, v.At)
	case v.Task != "":
		put(&r.tasks, v.Task, v.At)
	case v.Issuer != "":
		put(&r.issuers, v.Issuer, v.At)
	case v.At.After(r.all):
		r.all = v.At
	}
	if r.ids.full() {
		r.ids = newFilter(len(r.links) + len(r.agents) + len(r.tasks) + len(r.issuers))
		for old := range r.each {
			r.index(old)
		}
	} else {
		r.index(v)
	}
	r.epoch.Add(1)
	for _, w := range r.watches {
		if !w.closed && r.covers(&w.subject) {
			w.closed = true
			close(w.ch)
		}
	}
	return nil
}

func put[K comparable](m *map[K]time.Time, k K, at time.Time) {
	if *m == nil {
		*m = make(map[K]time.Time)
	}
	if _, ok := (*m)[k]; !ok {
		(*m)[k] = at
	}
}

// index adds what v names to r.ids; r.mu is held.
func (r *Revocations) index(v Revocation) {
	switch {
	case !v.Link.IsZero():
		r.ids.add(hashOf(&v.Link))
	case v.Agent != "":
		r.ids.add(r.ids.hash(string(v.Agent)))
	case v.Task != "":
		r.ids.add(r.ids.hash(string(v.Task)))
	case v.Issuer != "":
		r.ids.add(r.ids.hash(v.Issuer))
	}
}

// each yields all revocations in no order; r.mu is held.
func (r *Revocations) each(yield func(Revocation) bool) {
	for k, at := range r.links {
		if !yield(Revocation{Link: k, At: at}) {
			return
		}
	}
	for k, at := range r.agents {
		if !yield(Revocation{Agent: k, At: at}) {
			return
		}
	}
	for k, at := range r.tasks {
		if !yield(Revocation{Task: k, At: at}) {
			return
		}
	}
	for k, at := range r.issuers {
		if !yield(Revocation{Issuer: k, At: at}) {
			return
		}
	}
	if !r.all.IsZero() {
		yield(Revocation{Everything: true, At: r.all})
	}
}

// Export returns all revocations, oldest first.
func (r *Revocations) Export() []Revocation {
	r.mu.RLock()
	defer r.mu.RUnlock()
	out := slices.Collect(r.each)
	slices.SortFunc(out, func(a, b Revocation) int { return a.At.Compare(b.At) })
	return out
}

// Epoch counts what was added. It never goes back while the daemon lives.
func (r *Revocations) Epoch() uint64 { return r.epoch.Load() }

// covers reports whether s is revoked; r.mu is held.
func (r *Revocations) covers(s *subject) bool {
	// Chains carry milliseconds: one issued in the millisecond of the kill is cut.
	if !r.all.IsZero() && s.issued.UnixMilli() <= r.all.UnixMilli() {
		return true
	}
	if !r.mayCover(s) {
		return false
	}
	if _, ok := r.tasks[s.task]; ok {
		return true
	}
	if _, ok := r.issuers[s.kid]; ok {
		return true
	}
	for _, a := range s.agents {
		if _, ok := r.agents[a]; ok {
			return true
		}
	}
	for _, id := range s.links {
		if _, ok := r.links[id]; ok {
			return true
		}
	}
	return false
}

// mayCover reports false only if no id of s was revoked; r.mu is held.
func (r *Revocations) mayCover(s *subject) bool {
	// The lookups wait for memory, so what nothing was revoked by is left out.
	if len(r.tasks) > 0 && r.ids.has(r.ids.hash(string(s.task))) || len(r.issuers) > 0 && r.ids.has(r.ids.hash(s.kid)) {
		return true
	}
	if len(r.agents) > 0 {
		for _, a := range s.agents {
			if r.ids.has(r.ids.hash(string(a))) {
				return true
			}
		}
	}
	if len(r.links) == 0 {
		return false
	}
	for i := range s.links {
		if r.ids.has(hashOf(&s.links[i])) {
			return true
		}
	}
	return false
}

// subjectOf returns what of a grant's chain can be revoked.
func subjectOf(g *vault.Grant) subject {
	return subject{links: g.Links, agents: g.Agents, task: g.Task, kid: g.Issuer, issued: g.Issued}
}

// revokes reports whether s is revoked.
func (r *Revocations) revokes(s subject) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.covers(&s)
}

// isRevoked reports whether a is revoked. Between additions it costs one load.
func (r *Revocations) isRevoked(a *authority) bool {
	// One more than the epoch, so that the zero state means never looked.
	if state := a.revoked.Load(); state>>1 == r.epoch.Load()+1 {
		return state&1 == 1
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	revoked := r.covers(&a.subject)
	state := (r.epoch.Load() + 1) << 1
	if revoked {
		state |= 1
	}
	a.revoked.Store(state)
	return revoked
}

// watch returns a channel that is closed when the chain of g is revoked.
func (r *Revocations) watch(g *vault.Grant, now time.Time) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w := r.watches[g.Chain]; w != nil {
		return w.ch
	}
	// Watches of expired chains are dropped whenever their number has doubled, so
	// memory follows the chains that live. Calls in flight keep their channel; a
	// chain that has expired is refused at Admit whatever else happens to it.
	if len(r.watches) >= max(r.sweep, 1024) {
		for k, w := range r.watches {
			if now.After(w.expires) {
				delete(r.watches, k)
			}
		}
		r.sweep = 2 * len(r.watches)
	}
	w := &watch{ch: make(chan struct{}), subject: subjectOf(g), expires: g.Expires.Add(watchGrace)}
	if r.covers(&w.subject) {
		w.closed = true
		close(w.ch)
	}
	if r.watches == nil {
		r.watches = make(map[vault.Digest]*watch)
	}
	r.watches[g.Chain] = w
	return w.ch
}

// watchGrace keeps a watch beyond its chain's expiry for calls that were admitted
// in time and still run.
const watchGrace = time.Hour

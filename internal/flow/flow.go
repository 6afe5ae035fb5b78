// Package flow tracks what data an agent instance has seen, where single values
// came from, and which calls would carry data out.
//
// It owns the scope of every agent instance (the joined label of all results),
// the memory of typed values and of what was written where, and three rules:
// the deadly three (private data, untrusted content and a way out never meet
// without a person), the provenance of consequential arguments, and the readers
// of private data. It does not look at what text says, and it does not know what
// a person answered: it allows or asks. Start with [New] and [Flow.Check].
//
// It promises: a label is joined before the data it belongs to is released; a
// scope never gets better, short of a fresh sandbox; what is not remembered is
// unknown, and unknown asks. Bounds that are reached cost questions, not safety.
package flow

import (
	"context"
	"hash/maphash"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/pilox/vault"
)

// A Config bounds what is kept. Its zero value is fine.
type Config struct {
	// Group is the approval group that questions go to; empty means "flow".
	Group string
	// Agents bounds the agent instances with a scope of their own; zero means
	// 65,536 (a label is at most a few kilobytes). One more counts as having
	// seen the worst.
	Agents int
	// Values bounds the typed values kept per agent instance and integrity;
	// zero means 4,096. The oldest is forgotten first.
	Values int
	// AllValues bounds the values of all agents together; zero means 262,144,
	// some 20 MB. The agents that were idle longest forget all theirs first.
	AllValues int
}

// A Flow is the state of all agent instances of one daemon. It is safe for
// concurrent use.
type Flow struct {
	cfg  Config
	seed seeds

	mu     sync.RWMutex // guards agents, tick
	agents map[vault.AgentID]*agent
	tick   uint64 // a clock of uses, for choosing whose values to forget

	held atomic.Int64 // values of all agents, an upper bound

	stores stores
}

// New returns a Flow in which nobody has seen anything.
func New(cfg Config) *Flow {
	if cfg.Group == "" {
		cfg.Group = "flow"
	}
	if cfg.Agents <= 0 {
		cfg.Agents = 65_536
	}
	if cfg.Values <= 0 {
		cfg.Values = 4096
	}
	if cfg.AllValues <= 0 {
		cfg.AllValues = 262_144
	}
	return &Flow{cfg: cfg, seed: newSeeds(), agents: map[vault.AgentID]*agent{}}
}

// An agent is the state of one agent instance.
type agent struct {
	mu      sync.Mutex // guards everything below
	used    uint64     // tick of the last use
	label   vault.Label
	values  [vault.FromUser + 1]memory // by integrity
	sources []string                   // names that entries point to
	task    taskWords
}

// untrusted reports whether somebody outside the organisation can have had a say
// in data labelled l.
func untrusted(l vault.Label) bool { return l.Integrity < vault.FromOrganisation }

// private reports whether not everybody may read data labelled l.
func private(l vault.Label) bool { return !l.Readers.IsPublic() }

// worst is the scope of an agent of which nothing can be known.
func worst() vault.Label { return vault.Label{Truncated: true} }

// find returns the state of an agent instance, making it if need be. It is nil
// for a nameless agent and for one too many: their scope is the worst.
func (w *Flow) find(id vault.AgentID) *agent {
	if id == "" {
		return nil
	}
	w.mu.RLock()
	a := w.agents[id]
	w.mu.RUnlock()
	if a != nil {
		return a
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if a := w.agents[id]; a != nil {
		return a
	}
	if len(w.agents) >= w.cfg.Agents {
		return nil
	}
	a = &agent{label: vault.Clean()}
	w.agents[id] = a
	return a
}

// Check fills in f.Scope and, with untrusted data in scope, f.Origins, and
// decides: allow, or ask with one reason per rule that objects. With nothing
// untrusted in scope the agent's own words count as the task's, and the origin
// of values does not matter.
func (w *Flow) Check(_ context.Context, f *vault.Facts) vault.Decision {
	a := w.find(f.Call.Agent)
	if a == nil {
		f.Scope = worst()
	} else {
		a.mu.Lock()
		defer a.mu.Unlock()
		f.Scope = a.label
	}
	f.Origins = nil
	d := vault.Allowed()
	bad, secret := untrusted(f.Scope), private(f.Scope)
	if !bad && !secret {
		w.stores.write(f)
		return d
	}
	if secret {
		if path, out := wayOut(f, !bad); out {
			code := vault.CodeFlowReaders
			if bad {
				code = vault.CodeFlowDeadlyThree
			}
			d = d.Join(vault.Asked(w.cfg.Group, code, path, w.explain(f, path)))
		}
	}
	if bad {
		if a == nil {
			a = &agent{label: f.Scope}
		}
		d = w.provenance(f, a, d)
	}
	w.stores.write(f)
	return d
}

// explain says as a path which data would go where.
func (w *Flow) explain(f *vault.Facts, path string) string {
	var from []string
	for _, s := range f.Scope.Sources {
		if len(from) == 4 {
			from = append(from, "others")
			break
		}
		from = append(from, named(s.Kind, s.Server, s.Name))
	}
	if len(from) == 0 {
		from = []string{"data of unknown origin"}
	}
	return "bytes of " + strings.Join(from, ", ") + " (" + f.Scope.Integrity.String() + ", readers " +
		f.Scope.Readers.String() + ") would reach " + target(f) + where(path)
}

func target(f *vault.Facts) string { return named(f.Call.Kind, f.Call.Server, f.Call.Target.Name) }

// named is what people call a target; kinds without a server stand in its place.
func named(k vault.Kind, server, name string) string {
	if server == "" {
		return string(k) + ":" + name
	}
	return server + "." + name
}

func where(path string) string {
	if path == "" {
		return ""
	}
	return " " + path
}

// Label returns the label of a result or frame of this call, joins it to the
// scope of the agent instance, and remembers the typed values in raw as coming
// from there. What the target is worth is joined with what was written to it
// under a worse scope.
func (w *Flow) Label(_ context.Context, f *vault.Facts, raw []byte) vault.Label {
	l := f.Tool.Label(f.Call.Kind).Join(w.stores.read(f))
	if f.Lowered != nil {
		l = l.Join(*f.Lowered) // before anything in raw is remembered as trusted
	}
	a := w.find(f.Call.Agent)
	if a == nil {
		return l
	}
	before := w.join(a, l)
	w.remember(a, f, l, before, raw)
	return l
}

// Taint joins l to the scope of an agent, for intents whose outcome is not known.
func (w *Flow) Taint(id vault.AgentID, l vault.Label) {
	if a := w.find(id); a != nil {
		w.join(a, l)
	}
}

// join worsens the scope of a and returns what it was.
func (w *Flow) join(a *agent, l vault.Label) vault.Label {
	w.mu.Lock()
	w.tick++
	now := w.tick
	w.mu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.used = now
	before := a.label
	a.label = before.Join(l)
	return before
}

// Scope returns the label of everything an agent instance has seen.
func (w *Flow) Scope(id vault.AgentID) vault.Label {
	w.mu.RLock()
	a, full := w.agents[id], len(w.agents) >= w.cfg.Agents
	w.mu.RUnlock()
	switch {
	case a != nil:
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.label
	case id == "" || full:
		return worst()
	}
	return vault.Clean()
}

// Forget drops the state of an agent instance whose sandbox is gone for good. A
// caller that may come back under the same id must not be forgotten.
func (w *Flow) Forget(id vault.AgentID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.agents, id)
}

// An Entry is one label to keep over a restart: of an agent instance, or of what
// was written to a server. Values are not exported: the hashes they are kept as
// mean nothing under the next process's key, and unknown values ask.
type Entry struct {
	Agent    vault.AgentID // set for the scope of an agent
	Server   string        // set for what was written to a server, see Resource
	Resource string        // "" for the whole server
	Label    vault.Label
}

// Export returns every label, in order.
func (w *Flow) Export() []Entry {
	w.mu.RLock()
	agents := maps.Clone(w.agents)
	w.mu.RUnlock()
	var out []Entry
	for _, id := range slices.Sorted(maps.Keys(agents)) {
		a := agents[id]
		a.mu.Lock()
		out = append(out, Entry{Agent: id, Label: a.label})
		a.mu.Unlock()
	}
	return append(out, w.stores.export()...)
}

// Import joins exported labels to what is known; it cannot make a label better.
func (w *Flow) Import(entries []Entry) {
	for _, e := range entries {
		if e.Agent != "" {
			w.Taint(e.Agent, e.Label)
		}
		if e.Server != "" {
			w.stores.join(e.Server, e.Resource, e.Label)
		}
	}
}

// seeds key the hashes that values are kept as: two per kind, so that a value is
// 128 bits and values of different kinds never meet. They are random per
// process, so nobody can prepare a value that collides with a trusted one.
type seeds [kinds][2]maphash.Seed

func newSeeds() (s seeds) {
	for i := range s {
		s[i] = [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}
	}
	return s
}

// A key stands for one typed value.
type key [2]uint64

func (s *seeds) key(k kind, normal string) key {
	return key{maphash.String(s[k][0], normal), maphash.String(s[k][1], normal)}
}

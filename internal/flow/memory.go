package flow

import (
	"cmp"
	"slices"

	"github.com/pilox/vault"
)

// An entry says where a remembered value came from.
type entry struct {
	source uint8 // index into agent.sources
	alone  bool  // the only value of its kind at its place there
}

// A memory holds the values of one integrity, the oldest giving way.
type memory struct {
	entries map[key]entry
	ring    []key
	next    int
}

func (m *memory) get(k key) (entry, bool) {
	e, ok := m.entries[k]
	return e, ok
}

// put adds a value and returns by how many the memory grew. A value that is
// known stays with the source it first came from, and stands alone if it did so
// anywhere.
func (m *memory) put(k key, e entry, most int) int {
	if old, ok := m.entries[k]; ok {
		old.alone = old.alone || e.alone
		m.entries[k] = old
		return 0
	}
	if m.entries == nil {
		m.entries = map[key]entry{}
	}
	m.entries[k] = e
	if len(m.ring) < most {
		m.ring = append(m.ring, k)
		return 1
	}
	delete(m.entries, m.ring[m.next])
	m.ring[m.next] = k
	m.next = (m.next + 1) % most
	return 0
}

// trusts reports whether a value is known from inside the organisation, the
// user's words included. a.mu is held.
func (a *agent) trusts(k key) bool {
	if _, ok := a.task.values[k]; ok {
		return true
	}
	for i := vault.FromOrganisation; i <= vault.FromUser; i++ {
		if _, ok := a.values[i].get(k); ok {
			return true
		}
	}
	return false
}

// maxSources bounds the names an agent's values point to, the last one standing
// for all the others. It is what fits the entry's byte.
const maxSources = 256

// source returns the index of a source's name. a.mu is held.
func (a *agent) source(name string) uint8 {
	if i := slices.Index(a.sources, name); i >= 0 {
		return uint8(i)
	}
	if len(a.sources) == maxSources-1 {
		name = "another source"
	}
	if len(a.sources) < maxSources {
		a.sources = append(a.sources, name)
	}
	return uint8(len(a.sources) - 1)
}

// size is the number of values an agent holds. a.mu is held.
func (a *agent) size() int {
	n := 0
	for i := range a.values {
		n += len(a.values[i].entries)
	}
	return n
}

// shrink makes the agents that were idle longest forget their values when all
// together hold too many. Their labels stay; their values become unknown.
func (w *Flow) shrink(keep *agent) {
	w.mu.Lock()
	defer w.mu.Unlock()
	type holder struct {
		a    *agent
		size int
		used uint64
	}
	total := 0
	var holders []holder
	for _, a := range w.agents {
		a.mu.Lock()
		h := holder{a, a.size(), a.used}
		a.mu.Unlock()
		if total += h.size; h.size > 0 && a != keep {
			holders = append(holders, h)
		}
	}
	defer func() { w.held.Store(int64(total)) }()
	if total <= w.cfg.AllValues { // agents were forgotten since
		return
	}
	slices.SortFunc(holders, func(x, y holder) int { return cmp.Compare(x.used, y.used) })
	for _, h := range holders {
		if total <= w.cfg.AllValues*3/4 { // leave room, so that not every result sorts
			return
		}
		h.a.mu.Lock()
		clear(h.a.values[:])
		h.a.sources = nil
		h.a.mu.Unlock()
		total -= h.size
	}
}

// taskWords are the values in the user's own words.
type taskWords struct {
	text   string
	values map[key]entry
}

// learn takes the values from the inputs of a task, once per text.
func (t *taskWords) learn(s *seeds, inputs string) {
	if t.values != nil && t.text == inputs {
		return
	}
	t.text, t.values = inputs, map[key]entry{}
	type set struct {
		form form
		kind kind
	}
	count := map[set]int{}
	setOf := map[key]set{}
	extract(inputs, func(fm form, k kind, normal string) bool {
		id := s.key(k, normal)
		if _, ok := setOf[id]; !ok {
			setOf[id] = set{fm, k}
			count[set{fm, k}]++
		}
		return len(setOf) < maxHarvest
	})
	for id, st := range setOf {
		t.values[id] = entry{alone: count[st] == 1}
	}
}

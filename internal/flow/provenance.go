package flow

import (
	"iter"

	"github.com/pilox/vault"
)

// maxObjections bounds the arguments one question lists. More than these nobody
// compares, and the verdict is the same.
const maxObjections = 8

// provenance holds every consequential argument against the trusted sources: the
// user's own words, the values that the capability itself lists, and results
// from inside the organisation. Only a whole value of the same type counts, so
// that no rewording helps an attacker. It appends to f.Origins.
//
// A value that is one of several in its trusted source is a choice, and at high
// risk a choice that untrusted content can have made is a person's.
func (w *Flow) provenance(f *vault.Facts, a *agent, d vault.Decision) vault.Decision {
	a.task.learn(&w.seed, f.Grant.Inputs)
	args := f.Call.Args.Root()
	objections := 0
	for path, v := range args.Walk() {
		role, classified := roleOf(f.Tool, path)
		if v.Kind() == vault.Null || !consequential(f.Tool, role, classified) {
			continue
		}
		o, choice := w.origin(f, a, path, role, v)
		f.Origins = append(f.Origins, o)
		if o.Trusted && !(choice && f.Tool.Risk.AtLeast(vault.RiskHigh)) {
			continue
		}
		if objections++; objections > maxObjections {
			continue
		}
		d = d.Join(vault.Asked(w.cfg.Group, vault.CodeFlowProvenance, path, whence(f, path, o)))
	}
	return d
}

// whence says in words where a value came from, for the approver.
func whence(f *vault.Facts, path string, o vault.Origin) string {
	switch {
	case o.Trusted:
		return "the value of " + path + " is one of several in " + o.Found[0] + "; untrusted content may have chosen it"
	case len(o.Found) > 0:
		return "bytes of " + o.Found[0] + " reached " + target(f) + " " + path
	}
	return "the value of " + path + " occurs in no source that was read"
}

// consequential reports whether it matters who chose the value of an argument.
func consequential(t *vault.Tool, role vault.Role, classified bool) bool {
	if !classified {
		return !t.ReadOnly
	}
	switch role {
	case vault.RoleContent:
		return false
	case vault.RoleSelector:
		return !t.ReadOnly
	case vault.RolePath:
		// Reading some other file inside the sandbox changes nothing and leads
		// nowhere; a path that a remote server gets to see is a way to tell it.
		return !t.ReadOnly || !t.Local
	case vault.RoleRecipient, vault.RoleHost, vault.RoleCommand, vault.RoleAmount:
	}
	return true
}

// origin looks a value up. choice reports that its only trusted sources hold
// several values of the kind.
func (w *Flow) origin(f *vault.Facts, a *agent, path string, role vault.Role, v vault.Value) (o vault.Origin, choice bool) {
	o.Path = path
	alone := false
	for _, c := range f.Grant.Choices {
		if within(path, c.Path) {
			o.Found, o.Trusted = append(o.Found, "capability"), true
			alone = alone || c.Fixed
		}
	}
	for k := range w.candidates(f, path, role, v) {
		if e, ok := a.task.values[k]; ok {
			o.Found, o.Trusted = append(o.Found, "task"), true
			alone = alone || e.alone
		}
		for i := len(a.values) - 1; i >= 0; i-- {
			e, ok := a.values[i].get(k)
			if !ok {
				continue
			}
			integrity := vault.Integrity(i)
			if integrity >= vault.FromOrganisation {
				o.Trusted = true
				alone = alone || e.alone
			}
			o.Found = append(o.Found, a.sources[e.source]+" ("+integrity.String()+")")
		}
	}
	return o, o.Trusted && !alone
}

// candidates yields what a value may be remembered as. That is one typed value,
// by its form and by the role of the argument; an amount is a number together
// with a unit beside it in the arguments.
func (w *Flow) candidates(f *vault.Facts, path string, role vault.Role, v vault.Value) iter.Seq[key] {
	return func(yield func(key) bool) {
		s, isText := v.Str()
		var k kind
		var normal string
		switch {
		case isText:
			k, normal = classify(s)
		case v.Kind() == vault.Number:
			if n, ok := jsonNumber(v.Raw()); ok {
				k, normal = kindNumber, n
			}
		}
		if k == kindText && !isText {
			return // one bit, or an empty list, has no origin: only the capability can fix it
		}
		switch {
		case k == kindURL || k == kindEmail:
		case role == vault.RolePath:
			if p, ok := normalPath(s); ok && !yield(w.seed.key(kindPath, p)) {
				return
			}
		case role == vault.RoleHost:
			if h, ok := normalHost(s); ok {
				k, normal = kindHost, h
			}
		}
		if k == kindText && len(normal) < minText {
			if amount, ok := w.amountBeside(f, path, s); ok {
				yield(amount)
			}
			return
		}
		if !yield(w.seed.key(k, normal)) || k != kindNumber {
			return
		}
		for _, unit := range siblings(f, path) {
			if u, ok := unit.Str(); ok && isUnit(u) {
				if !yield(w.seed.key(kindAmount, normal+" "+normalUnit(u))) {
					return
				}
			}
		}
	}
}

// amountBeside returns the amount that a unit forms with the number beside it,
// so that the unit has the origin of the amount.
func (w *Flow) amountBeside(f *vault.Facts, path, unit string) (key, bool) {
	if !isUnit(unit) {
		return key{}, false
	}
	var only string
	for _, n := range siblings(f, path) {
		s, isText := n.Str()
		if !isText {
			s = n.Raw()
		}
		if k, normal := classify(s); k == kindNumber {
			if only != "" {
				return key{}, false // two numbers: nobody knows whose unit it is
			}
			only = normal
		}
	}
	return w.seed.key(kindAmount, only+" "+normalUnit(unit)), only != ""
}

// siblings returns the other members of the object around path. Bounded: an
// amount and its unit stand in a small object.
func siblings(f *vault.Facts, path string) []vault.Value {
	const most = 32
	i := lastSlash(path)
	parent := f.Call.Args.At(path[:i])
	if parent.Kind() != vault.Object || parent.Len() > most {
		return nil
	}
	var out []vault.Value
	for k, v := range parent.All() {
		if path[i+1:] != vault.PointerToken(k) {
			out = append(out, v)
		}
	}
	return out
}

func lastSlash(path string) int {
	for i := len(path) - 1; i > 0; i-- {
		if path[i] == '/' {
			return i
		}
	}
	return 0
}

// within reports whether path is at or below the pointer around.
func within(path, around string) bool {
	return len(path) >= len(around) && path[:len(around)] == around && (len(path) == len(around) || path[len(around)] == '/')
}

// remember keeps the typed values of a result as coming from there.
//
// A value that the agent itself had put into the arguments while untrusted data
// was in scope is not made trusted by a trusted server repeating it ("no match
// for X"): it is kept only if it was trusted before.
func (w *Flow) remember(a *agent, f *vault.Facts, l, before vault.Label, raw []byte) {
	doc, err := vault.ParseValue(raw)
	if err != nil {
		return // not what a stage could have checked; its values stay unknown
	}
	var said map[key]bool
	if untrusted(before) && !untrusted(l) {
		said = w.harvest(f.Call.Args.Root())
	}
	found := w.harvest(doc.Root())

	a.mu.Lock()
	added := 0
	mem := &a.values[l.Integrity]
	from := a.source(target(f))
	for k, alone := range found {
		if _, own := said[k]; own && !a.trusts(k) {
			continue
		}
		added += mem.put(k, entry{from, alone}, w.cfg.Values)
	}
	a.mu.Unlock()
	if w.held.Add(int64(added)) > int64(w.cfg.AllValues) {
		w.shrink(a)
	}
}

// harvest returns the typed values of a document and whether each stands alone:
// whether no other value of its kind and form has the same place in it. The
// elements of an array share a place.
func (w *Flow) harvest(root vault.Value) map[key]bool {
	type place struct {
		path string
		form form
		kind kind
	}
	first := map[place]key{}
	several := map[place]bool{}
	at := map[key]place{}
	budget := maxHarvest
	var walk func(v vault.Value, path string)
	walk = func(v vault.Value, path string) {
		switch v.Kind() {
		case vault.Object:
			for k, c := range v.All() {
				walk(c, path+"/"+k)
			}
			return
		case vault.Array:
			for _, c := range v.All() {
				walk(c, path+"/*")
			}
			return
		default:
		}
		if inner, ok := nested(v); ok {
			walk(inner, path)
			return
		}
		leaf(v, func(fm form, k kind, normal string) bool {
			if budget--; budget < 0 {
				return false
			}
			id, p := w.seed.key(k, normal), place{path, fm, k}
			if one, ok := first[p]; !ok {
				first[p] = id
			} else if one != id {
				several[p] = true
			}
			if _, ok := at[id]; !ok {
				at[id] = p
			}
			return true
		})
	}
	walk(root, "")
	out := make(map[key]bool, len(at))
	for id, p := range at {
		out[id] = !several[p]
	}
	return out
}

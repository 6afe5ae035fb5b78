package taskfile

import (
	"maps"
	"slices"
	"strings"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
)

// rule makes the rule of calls. With a base that lets all of them through it is the
// base, made narrower, so that no generalisation of ours can give more than a person
// has reviewed. wider names the arguments in which it is not.
func (g *learner) rule(in *inference, base *Rule, calls []*Seen) (r capability.Rule, wider []string, ok bool) {
	roots := make([]vault.Value, len(calls))
	for i, s := range calls {
		roots[i] = s.Args.Root()
	}
	if base == nil || base.Any {
		r.Args, ok = in.members("", roots, 0)
		return r, nil, ok
	}
	if passAll(base.Args, g.Engines, calls) {
		r.Args, ok = g.narrowed(in, base.Args, roots)
		return r, nil, ok
	}
	r.Args, ok = in.members("", roots, 0)
	for _, p := range slices.Sorted(maps.Keys(r.Args)) {
		a := r.Args[p]
		b, named := base.Args[p]
		values, absent := valuesAt(roots, p)
		b.Optional = b.Optional || !named
		if !named || absent && !b.Optional || !in.passes(&b, values) {
			wider = append(wider, argName(p))
			continue
		}
		n := in.narrow(b, a, values)
		n.Optional = a.Optional
		r.Args[p] = n
	}
	return r, wider, ok
}

// valuesAt returns the values that are there, and whether one is not.
func valuesAt(roots []vault.Value, pointer string) (values []vault.Value, absent bool) {
	for _, root := range roots {
		if v := root.At(pointer); v.Kind() != vault.Absent {
			values = append(values, v)
		} else {
			absent = true
		}
	}
	return values, absent
}

// narrowed makes each argument that base names as narrow as the values are. One that
// no call gave is not named any more.
func (g *learner) narrowed(in *inference, base capability.Args, roots []vault.Value) (capability.Args, bool) {
	out := capability.Args{}
	for p, b := range base {
		values, absent := valuesAt(roots, p)
		if len(values) == 0 {
			if !b.Optional {
				return nil, false
			}
			continue
		}
		n := b
		if a, ok := in.arg(p, values, 0); ok {
			n = in.narrow(b, a, values)
		}
		n.Optional = b.Optional && absent
		out[p] = n
	}
	return out, true
}

// narrow returns what passes both b and a, or b if that cannot be written. Both pass
// all values.
func (in *inference) narrow(b, a capability.Arg, values []vault.Value) capability.Arg {
	if len(a.All) == 1 && (a.All[0].Exact != nil || a.All[0].OneOf != nil) {
		return a // values that pass b
	}
	both := capability.Arg{All: slices.Clone(b.All)}
	for _, c := range a.All {
		i := slices.IndexFunc(both.All, func(o capability.Constraint) bool { return word(&o) == word(&c) })
		if i < 0 {
			both.All = append(both.All, c)
			continue
		}
		both.All[i] = tighter(both.All[i], c)
	}
	if in.passes(&both, values) {
		return both
	}
	return b
}

// tighter returns what passes both of two constraints with one word: b itself where
// that is not plain to see.
func tighter(b, a capability.Constraint) capability.Constraint {
	switch {
	case b.Int != nil:
		b.Int = meet(b.Int, a.Int)
	case b.Length != nil:
		b.Length = meet(b.Length, a.Length)
	case b.Count != nil:
		b.Count = meet(b.Count, a.Count)
	case b.Decimal != nil:
		b.Decimal = &capability.DecimalRange{Min: max(b.Decimal.Min, a.Decimal.Min), Max: min(b.Decimal.Max, a.Decimal.Max)}
	case b.MaxLength != nil:
		limit := min(*b.MaxLength, *a.MaxLength)
		b.MaxLength = &limit
	case b.SubPath != nil:
		if *b.SubPath == "/" || strings.HasPrefix(*a.SubPath, *b.SubPath+"/") {
			return a
		}
	case b.EmailDomain != nil:
		if within(a.EmailDomain, b.EmailDomain) {
			return a
		}
	case b.HostSuffix != nil:
		if within(a.HostSuffix, b.HostSuffix) {
			return a
		}
	case b.Subset != nil:
		if within(a.Subset, b.Subset) {
			return a
		}
	}
	return b
}

func meet(b, a *capability.IntRange) *capability.IntRange {
	return &capability.IntRange{Min: max(b.Min, a.Min), Max: min(b.Max, a.Max)}
}

func within[T comparable](a, b []T) bool {
	return !slices.ContainsFunc(a, func(v T) bool { return !slices.Contains(b, v) })
}

package aat

import (
	"errors"
	"fmt"
	"slices"

	"github.com/pilox/vault"
)

// The core constraint types (section 3.4).
const (
	typeExact    = "exact"
	typeRange    = "range"
	typeOneOf    = "one_of"
	typeNotOneOf = "not_one_of"
	typeContains = "contains"
	typeSubset   = "subset"
	typeWildcard = "wildcard"
	typeAll      = "all"
	typeAny      = "any"
)

// members are what each type defines beside constraint_type.
var members = map[string][]string{
	typeExact:    {"value"},
	typeRange:    {"min", "max", "min_inclusive", "max_inclusive"},
	typeOneOf:    {"values"},
	typeNotOneOf: {"excluded"},
	typeContains: {"required"},
	typeSubset:   {"allowed"},
	typeWildcard: {},
	typeAll:      {"constraints"},
	typeAny:      {"constraints"},
}

// A constraint is one constraint of an argument.
type constraint struct {
	kind    string
	values  []vault.Value // as listed: of exact, one_of, not_one_of, contains and subset
	set     []string      // the same in canonical JSON, sorted, each once
	min     bound
	max     bound
	clauses []constraint // of all and any
}

// A bound is one end of a range.
type bound struct {
	set, exclusive bool
	n              float64
	text           string // canonical
}

// parseConstraint reads a well-formed constraint. top says that it is one of a
// constraint map, where it may be optional.
func parseConstraint(v vault.Value, depth int, top bool) (c constraint, optional bool, err error) {
	if depth > maxNesting {
		return c, false, fmt.Errorf("constraints nest deeper than %d", maxNesting)
	}
	if v.Kind() != vault.Object {
		return c, false, errors.New("a constraint that is no object")
	}
	c.kind, _ = v.Get("constraint_type").Str()
	own, ok := members[c.kind]
	if !ok {
		return c, false, fmt.Errorf("constraint_type %s is not known", orAbsent(v.Get("constraint_type")))
	}
	for name, m := range v.All() {
		switch {
		case name == "constraint_type":
		case name == "optional" && top:
			if optional, ok = m.Bool(); !ok {
				return c, false, errors.New("optional: want true or false")
			}
		case !slices.Contains(own, name):
			return c, false, fmt.Errorf("%s: member %q is not known", c.kind, name)
		}
	}
	switch c.kind {
	case typeExact:
		value := v.Get("value")
		if k := value.Kind(); k == vault.Absent || k == vault.Array || k == vault.Object {
			return c, false, errors.New("exact: want a scalar")
		}
		c.list(value)
	case typeRange:
		err = c.parseRange(v)
	case typeAll, typeAny:
		list := v.Get("constraints")
		if list.Kind() != vault.Array || list.Len() == 0 {
			return c, false, fmt.Errorf("%s: want constraints", c.kind)
		}
		for _, m := range list.All() {
			clause, _, err := parseConstraint(m, depth+1, false)
			if err != nil {
				return c, false, err
			}
			c.clauses = append(c.clauses, clause)
		}
	case typeWildcard:
	default:
		list := v.Get(own[0])
		if list.Kind() != vault.Array || c.kind == typeOneOf && list.Len() == 0 {
			return c, false, fmt.Errorf("%s: want %s, an array", c.kind, own[0])
		}
		for _, m := range list.All() {
			c.list(m)
		}
	}
	slices.Sort(c.set)
	c.set = slices.Compact(c.set)
	return c, optional, err
}

func (c *constraint) list(v vault.Value) {
	c.values = append(c.values, v)
	c.set = append(c.set, v.Raw())
}

func (c *constraint) parseRange(v vault.Value) error {
	for _, end := range []struct {
		name string
		b    *bound
	}{{"min", &c.min}, {"max", &c.max}} {
		n, inclusive := v.Get(end.name), v.Get(end.name+"_inclusive")
		if n.Kind() == vault.Absent {
			if inclusive.Kind() != vault.Absent {
				return fmt.Errorf("range: %s_inclusive without %s", end.name, end.name)
			}
			continue
		}
		var ok bool
		if end.b.n, ok = n.Float(); !ok {
			return fmt.Errorf("range: %s is no number", end.name)
		}
		end.b.set, end.b.text = true, n.Raw()
		if inclusive.Kind() != vault.Absent {
			in, ok := inclusive.Bool()
			if !ok {
				return fmt.Errorf("range: %s_inclusive: want true or false", end.name)
			}
			end.b.exclusive = !in
		}
	}
	if c.min.set && c.max.set && c.min.n > c.max.n {
		return errors.New("range: min is greater than max")
	}
	return nil
}

// holds reports whether a number is in the range.
func (c *constraint) holds(n float64) bool {
	return !(c.min.set && (n < c.min.n || n == c.min.n && c.min.exclusive) ||
		c.max.set && (n > c.max.n || n == c.max.n && c.max.exclusive))
}

// subsumes reports whether every value that passes child passes c, by the table of
// section 4.5: pairs that are not in it are not.
func (c *constraint) subsumes(child *constraint) bool {
	switch c.kind {
	case typeWildcard:
		return true
	case typeExact:
		return child.kind == typeExact && child.set[0] == c.set[0]
	case typeRange:
		switch child.kind {
		case typeExact:
			n, ok := child.values[0].Float()
			return ok && c.holds(n)
		case typeRange:
			return tighter(&c.min, &child.min, 1) && tighter(&c.max, &child.max, -1)
		}
	case typeOneOf:
		return (child.kind == typeOneOf || child.kind == typeExact) && within(child.set, c.set)
	case typeNotOneOf, typeContains:
		return child.kind == c.kind && within(c.set, child.set)
	case typeSubset:
		return child.kind == c.kind && within(child.set, c.set)
	case typeAll:
		return child.kind == typeAll && every(c.clauses, func(p *constraint) bool {
			return slices.ContainsFunc(child.clauses, func(d constraint) bool { return p.subsumes(&d) })
		})
	case typeAny:
		return child.kind == typeAny && every(child.clauses, func(d *constraint) bool {
			return slices.ContainsFunc(c.clauses, func(p constraint) bool { return p.subsumes(d) })
		})
	}
	return false
}

// tighter reports whether child is at least as tight as parent; sign is 1 for lower
// bounds and -1 for upper ones.
func tighter(parent, child *bound, sign float64) bool {
	switch {
	case !parent.set:
		return true
	case !child.set || sign*child.n < sign*parent.n:
		return false
	}
	return child.n != parent.n || child.exclusive || !parent.exclusive
}

// within reports whether every element of a is in b. Both are sorted.
func within(a, b []string) bool {
	for _, s := range a {
		if _, ok := slices.BinarySearch(b, s); !ok {
			return false
		}
	}
	return true
}

func every(list []constraint, f func(*constraint) bool) bool {
	for i := range list {
		if !f(&list[i]) {
			return false
		}
	}
	return true
}

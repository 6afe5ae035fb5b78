package aat

import (
	"slices"
	"testing"
)

// sample is a constraint of each type that one value passes.
func sample(kind string) object {
	switch kind {
	case typeExact:
		return of(kind, "value", 1)
	case typeRange:
		return of(kind, "min", 1, "max", 1)
	case typeOneOf:
		return of(kind, "values", []any{1})
	case typeNotOneOf:
		return of(kind, "excluded", []any{2})
	case typeContains:
		return of(kind, "required", []any{1})
	case typeSubset:
		return of(kind, "allowed", []any{1})
	case typeAll, typeAny:
		return of(kind, "constraints", []any{of("exact", "value", 1)})
	}
	return of(kind)
}

// TestEveryPair holds every pair of a parent's type and a child's against the table of
// section 4.5. All samples but wildcard and not_one_of pass 1 or [1] alone, so that only
// the types decide.
func TestEveryPair(t *testing.T) {
	kinds := []string{typeExact, typeRange, typeOneOf, typeNotOneOf, typeContains, typeSubset, typeWildcard, typeAll, typeAny}
	valid := map[string][]string{
		typeExact:    {typeExact},
		typeRange:    {typeRange, typeExact},
		typeOneOf:    {typeOneOf, typeExact},
		typeNotOneOf: {typeNotOneOf},
		typeContains: {typeContains},
		typeSubset:   {typeSubset},
		typeAll:      {typeAll},
		typeAny:      {typeAny},
		typeWildcard: kinds,
	}
	if len(kinds) != len(members) {
		t.Fatalf("%d types, and %d are read", len(kinds), len(members))
	}
	for _, parent := range kinds {
		for _, child := range kinds {
			p := parsed(t, "p", one(sample(parent))).tools["t"]
			c := parsed(t, "c", one(sample(child))).tools["t"]
			if err := c.narrows(&p); (err == nil) != slices.Contains(valid[parent], child) {
				t.Errorf("%s under %s: %v", child, parent, err)
			}
		}
	}
}

package capability

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pilox/vault"
)

// maxElements bounds the arrays that the tests of this file look at; a longer one
// fails them.
const maxElements = 1024

// compileArray makes the test of set, subset, contains or count.
func (c *Constraint) compileArray() (test, error) {
	if c.Count != nil {
		lo, hi := c.Count.Min, c.Count.Max
		if lo > hi || lo < 0 {
			return nil, errRange
		}
		return func(v vault.Value) bool { n := int64(v.Len()); return lo <= n && n <= hi }, nil
	}
	set, exact, open := c.Set, true, false
	switch {
	case c.Subset != nil:
		set, exact = c.Subset, false
	case c.Contains != nil:
		set, open = c.Contains, true
	}
	raws, err := rawSet(set)
	if err != nil {
		return nil, err
	}
	return func(v vault.Value) bool {
		if v.Len() > maxElements {
			return false
		}
		var few [4]uint64 // a bit per value that was seen; 256 without allocation
		seen := few[:]
		if len(raws) > 64*len(few) {
			seen = make([]uint64, (len(raws)+63)/64)
		}
		found := 0
		for _, element := range v.All() {
			i, ok := slices.BinarySearch(raws, element.Raw())
			if !ok {
				if open {
					continue
				}
				return false
			}
			if seen[i/64]&(1<<(i%64)) == 0 {
				seen[i/64] |= 1 << (i % 64)
				found++
			} else if !open {
				return false
			}
		}
		return found == len(raws) || !exact
	}, nil
}

// compile makes the test of an argument vector. There is no shell between it and
// the program, so no character of an operand is special; what is special is an
// argument that the program takes for an option. So whatever begins with "-" has to
// be on the list, also after "--", which not every program knows.
func (a *Argv) compile() (test, error) {
	limit := a.Max
	if limit == 0 {
		limit = 64
	}
	switch {
	case len(a.Programs) == 0:
		return nil, errors.New("argv: no program")
	case limit < 1 || limit > maxArgv:
		return nil, fmt.Errorf("argv: max %d: want 1 to %d", a.Max, maxArgv)
	case len(a.Programs) > maxSet || len(a.Options) > maxSet:
		return nil, fmt.Errorf("argv: at most %d programs and options", maxSet)
	}
	for _, s := range a.Programs {
		if err := errors.Join(checkPattern(s), checkString(s, maxText)); err != nil {
			return nil, fmt.Errorf("argv: program: %w", err)
		}
	}
	for _, s := range a.Options {
		if len(s) < 2 || s[0] != '-' || len(s) > maxText {
			return nil, fmt.Errorf("argv: option %q does not begin with -", s)
		}
		if strings.HasSuffix(s, "=") != strings.Contains(s, "=") {
			return nil, fmt.Errorf("argv: option %q: a value is not a part of it", s)
		}
	}
	values, err := compileTexts(a.Values)
	if err != nil {
		return nil, fmt.Errorf("argv: values: %w", err)
	}
	operands, err := compileTexts(a.Operands)
	if err != nil {
		return nil, fmt.Errorf("argv: operands: %w", err)
	}
	programs, options := slices.Clone(a.Programs), slices.Clone(a.Options)
	return func(v vault.Value) bool {
		if n := v.Len(); n < 1 || n > limit {
			return false
		}
		first := true
		for _, element := range v.All() {
			s, ok := element.Str()
			switch {
			case !ok || strings.IndexByte(s, 0) >= 0:
				return false
			case first:
				first = false
				if !slices.Contains(programs, s) {
					return false
				}
			case strings.HasPrefix(s, "-"):
				name, value, has := strings.Cut(s, "=")
				if has {
					if !slices.Contains(options, name+"=") || !values.passText(value) {
						return false
					}
				} else if !slices.Contains(options, s) {
					return false
				}
			case !operands.pass(element):
				return false
			}
		}
		return true
	}, nil
}

// texts are tests of a string that is not a whole JSON value.
type texts []test

func compileTexts(all []Constraint) (texts, error) {
	if len(all) > maxTests {
		return nil, fmt.Errorf("%d constraints, at most %d", len(all), maxTests)
	}
	var out texts
	for _, c := range all {
		if k := c.kinds(); k != 1 {
			return nil, fmt.Errorf("constraint of %d kinds, want one", k)
		}
		t, sort, err := c.compile(nil)
		if err != nil {
			return nil, err
		}
		if sort != ofScalar {
			return nil, errors.New("want a constraint on a string")
		}
		out = append(out, t)
	}
	return out, nil
}

// pass holds v against the tests. Without one nothing passes: what nobody spoke
// of is not allowed.
func (t texts) pass(v vault.Value) bool {
	for _, test := range t {
		if !test(v) {
			return false
		}
	}
	return len(t) > 0
}

// passText holds a part of a string against the tests.
func (t texts) passText(s string) bool {
	doc, err := vault.ParseValue(vault.AppendQuoted(nil, s))
	return err == nil && t.pass(doc.Root())
}

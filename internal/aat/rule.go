package aat

import (
	"errors"
	"fmt"
	"maps"
	"math/big"
	"reflect"
	"slices"
	"strings"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
)

// Tools returns the tools that every token has, sorted.
func (c *Chain) Tools() []string {
	var out []string
	for name := range c.leaf().tools {
		if !slices.ContainsFunc(c.tokens, func(t *token) bool { _, ok := t.tools[name]; return !ok }) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// Rule returns what all tokens together say of a tool, as the rule of a child link
// below local, the rule of a reviewed root. The child can only narrow: what it leaves
// out it inherits, so a call passes both only if it passes local and every token. The
// error says what a capability cannot say.
func (c *Chain) Rule(tool string, local capability.Rule) (capability.Rule, error) {
	open, named, err := c.meet(tool)
	if err != nil {
		return capability.Rule{}, err
	}
	if open && len(named) == 0 {
		return capability.Rule{}, nil // inherit all
	}
	if open && local.Args == nil {
		return capability.Rule{}, errors.New("it names some arguments and leaves others open, and the task file leaves all open: name the arguments in the task file")
	}
	args := capability.Args{}
	for _, name := range slices.Sorted(maps.Keys(named)) {
		k := named[name]
		arg := capability.Arg{Optional: k.optional}
		for _, one := range k.all {
			all, err := restrictions(one)
			if err != nil {
				return capability.Rule{}, fmt.Errorf("argument %q: %w", name, err)
			}
			if len(arg.All)+len(all) > maxTests {
				return capability.Rule{}, fmt.Errorf("argument %q: more than %d constraints", name, maxTests)
			}
			for _, k := range all {
				if !slices.ContainsFunc(arg.All, func(o capability.Constraint) bool { return reflect.DeepEqual(o, k) }) {
					arg.All = append(arg.All, k) // what several tokens say counts once
				}
			}
		}
		if mixed(arg.All) { // a scalar and an array at once: nothing passes
			arg.All = []capability.Constraint{{OneOf: []capability.Scalar{}}}
		}
		pointer := "/" + vault.PointerToken(name)
		if len(arg.All) == 0 { // any value: as the local rule has it
			arg.All = inherited(local.Args, pointer)
		}
		args[pointer] = arg
	}
	if open {
		for pointer, arg := range local.Args {
			first, _, _ := strings.Cut(pointer[1:], "/")
			if _, ok := args["/"+first]; !ok {
				args[pointer] = arg
			}
		}
	}
	return capability.Rule{Args: args}, nil
}

// mixed reports whether some of the constraints are for arrays and some for scalars.
func mixed(all []capability.Constraint) bool {
	arrays := 0
	for i := range all {
		if all[i].Each != nil || all[i].Contains != nil {
			arrays++
		}
	}
	return arrays > 0 && arrays < len(all)
}

// inherited returns the constraints of a local rule on an argument; where it only
// speaks of members of the argument, an object of those.
func inherited(local capability.Args, pointer string) []capability.Constraint {
	if arg, ok := local[pointer]; ok {
		return arg.All
	}
	inside := capability.Args{}
	for p, arg := range local {
		if rest, ok := strings.CutPrefix(p, pointer+"/"); ok {
			inside["/"+rest] = arg
		}
	}
	if len(inside) == 0 {
		return nil
	}
	return []capability.Constraint{{Object: inside}}
}

// A met is what several constraint maps say of one argument together.
type met struct {
	optional bool
	all      []*constraint
}

// meet puts the constraint maps of all tokens together: an argument is let through if
// each of them lets it through, and required if one of them requires it.
func (c *Chain) meet(tool string) (open bool, named map[string]met, err error) {
	open, named = true, map[string]met{}
	for _, t := range c.tokens {
		a, ok := t.tools[tool]
		if !ok {
			return false, nil, fmt.Errorf("token %s does not have the tool", t.id)
		}
		open = open && a.open
		for name := range a.named {
			named[name] = met{optional: true}
		}
	}
	for name, m := range named {
		closed := false
		for _, t := range c.tokens {
			a := t.tools[tool]
			k, ok := a.named[name]
			if !ok {
				closed = closed || !a.open
				continue
			}
			m.optional = m.optional && k.optional
			m.all = append(m.all, &k.constraint)
		}
		switch {
		case !closed:
			named[name] = m
		case m.optional:
			delete(named, name)
		default:
			return false, nil, fmt.Errorf("argument %q: one token requires it and another refuses it", name)
		}
	}
	return open, named, nil
}

// restrictions returns constraints of a capability that pass only what c passes.
// None stand for any value.
func restrictions(c *constraint) ([]capability.Constraint, error) {
	switch c.kind {
	case typeWildcard:
		return nil, nil
	case typeExact, typeOneOf:
		set, err := scalars(c.values)
		return []capability.Constraint{{OneOf: set}}, err
	case typeRange:
		r, err := decimals(c)
		return []capability.Constraint{{Decimal: r}}, err
	case typeNotOneOf:
		set, err := scalars(c.values)
		if len(set) == 0 {
			return nil, err
		}
		return []capability.Constraint{{NotOneOf: set}}, err
	case typeContains:
		set, err := scalars(c.values)
		return []capability.Constraint{{Contains: set}, {Each: &capability.Arg{}}}, err
	case typeSubset:
		set, err := scalars(c.values)
		each := capability.One(capability.Constraint{OneOf: set})
		return []capability.Constraint{{Each: &each}}, err
	case typeAll:
		var out []capability.Constraint
		for i := range c.clauses {
			all, err := restrictions(&c.clauses[i])
			if err != nil {
				return nil, err
			}
			out = append(out, all...)
		}
		return out, nil
	}
	// any: one of several lists is one list.
	var union []vault.Value
	for i := range c.clauses {
		switch k := &c.clauses[i]; k.kind {
		case typeWildcard:
			return nil, nil
		case typeExact, typeOneOf:
			union = append(union, k.values...)
		default:
			return nil, fmt.Errorf("any of %s: a capability has no alternatives but listed values", k.kind)
		}
	}
	set, err := scalars(union)
	return []capability.Constraint{{OneOf: set}}, err
}

// Bounds that capabilities have.
const (
	maxTests  = 16   // constraints on one argument
	maxValues = 1024 // of one list
)

// scalars returns values as scalars of a capability. The slice is never nil.
func scalars(values []vault.Value) ([]capability.Scalar, error) {
	if len(values) > maxValues {
		return nil, fmt.Errorf("%d values, at most %d", len(values), maxValues)
	}
	out := make([]capability.Scalar, 0, len(values))
	for _, v := range values {
		var s capability.Scalar
		if text, ok := v.Str(); ok {
			s = capability.String(text)
		} else if n, ok := v.Int(); ok {
			s = capability.Int(n)
		} else if b, ok := v.Bool(); ok {
			s = capability.Bool(b)
		} else {
			return nil, fmt.Errorf("the value %s is no string, integer or boolean", v.Raw())
		}
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out, nil
}

// maxDecimal is the largest decimal that a capability knows, in millionths: twelve
// digits before the point and six after it.
const maxDecimal = 1_000_000_000_000_000_000 - 1

// decimals returns the decimals in a range.
func decimals(c *constraint) (*capability.DecimalRange, error) {
	r := &capability.DecimalRange{Min: -maxDecimal, Max: maxDecimal}
	if c.min.set {
		up, exact := millionths(c.min.text)
		if !exact || c.min.exclusive {
			up.Add(up, big.NewInt(1)) // millionths rounds down
		}
		r.Min = clip(up)
	}
	if c.max.set {
		down, exact := millionths(c.max.text)
		if exact && c.max.exclusive {
			down.Sub(down, big.NewInt(1))
		}
		r.Max = clip(down)
	}
	if r.Min > r.Max || c.min.set && c.min.n >= 1e12 || c.max.set && c.max.n <= -1e12 {
		return nil, errors.New("no number of at most six decimal places and twelve digits is in the range")
	}
	return r, nil
}

// millionths returns the floor of a JSON number times a million, and whether it is
// that number.
func millionths(text string) (n *big.Int, exact bool) {
	x, _ := new(big.Rat).SetString(text) // canonical JSON: it parses
	x.Mul(x, big.NewRat(1_000_000, 1))
	n, rest := new(big.Int).DivMod(x.Num(), x.Denom(), new(big.Int))
	return n, rest.Sign() == 0
}

func clip(n *big.Int) capability.Decimal {
	limit := big.NewInt(maxDecimal)
	switch {
	case n.Cmp(limit) > 0:
		return maxDecimal
	case n.CmpAbs(limit) > 0:
		return -maxDecimal
	}
	return capability.Decimal(n.Int64())
}

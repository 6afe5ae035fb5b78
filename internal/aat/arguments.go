package aat

import (
	"errors"
	"fmt"

	"github.com/pilox/vault"
)

// others is the key of a constraint map for what it does not name.
const others = "*"

// arguments are the constraint map of one tool. What it does not name is refused
// unless it is open.
type arguments struct {
	open  bool
	named map[string]argument
}

type argument struct {
	constraint
	optional bool
}

// parseArguments reads a constraint map. An empty one is open (section 3.3).
func parseArguments(v vault.Value) (arguments, error) {
	if v.Kind() != vault.Object {
		return arguments{}, errors.New("a constraint map that is no object")
	}
	a := arguments{open: v.Len() == 0, named: make(map[string]argument, v.Len())}
	for name, m := range v.All() {
		c, optional, err := parseConstraint(m, 1, true)
		if err != nil {
			return a, fmt.Errorf("argument %q: %w", name, err)
		}
		if name != others {
			a.named[name] = argument{c, optional}
			continue
		}
		if c.kind != typeWildcard || m.Get("optional").Kind() != vault.Absent {
			return a, errors.New(`"*" is not a plain wildcard`)
		}
		a.open = true
	}
	return a, nil
}

// narrows checks that a allows no more than parent, by the rules of section 4.5.
func (a *arguments) narrows(parent *arguments) error {
	if a.open && !parent.open {
		return errors.New("it opens what the token before closes")
	}
	for name, child := range a.named {
		p, ok := parent.named[name]
		switch {
		case !ok && !parent.open:
			return fmt.Errorf("argument %q: the token before does not name it", name)
		case !ok:
			continue // any value was let through
		case child.optional && !p.optional:
			return fmt.Errorf("argument %q: the token before requires it", name)
		case !p.subsumes(&child.constraint):
			return fmt.Errorf("argument %q: %s does not narrow %s", name, child.kind, p.kind)
		}
	}
	for name, p := range parent.named {
		if _, ok := a.named[name]; !ok && (!p.optional || a.open) {
			return fmt.Errorf("argument %q of the token before is left out", name)
		}
	}
	return nil
}

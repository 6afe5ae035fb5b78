package capability

import (
	"errors"
	"fmt"
	"time"

	"github.com/pilox/vault"
)

// Engines evaluate what this package only carries: CEL expressions and JSON
// Schemas. What a function returns is used from many goroutines and bounds its own
// work by cost, not by a clock of a few milliseconds. An error of an evaluation
// refuses the call. A nil function refuses every chain that needs it.
type Engines struct {
	// Caveat compiles a caveat over a whole call.
	Caveat func(text string) (func(call *vault.Call, now time.Time) (bool, error), error)
	// Value compiles a CEL test of one value.
	Value func(text string) (func(v vault.Value) (bool, error), error)
	// Schema compiles a JSON Schema. It loads nothing from anywhere.
	Schema func(doc string) (func(v vault.Value) (bool, error), error)
}

var errNoEngine = errors.New("nothing is configured that evaluates it")

// value compiles a schema or CEL constraint. Without e it checks the size and
// passes nothing.
func (e *Engines) value(c *Constraint) (test, error) {
	var (
		what    string
		doc     string
		compile func(string) (func(vault.Value) (bool, error), error)
	)
	if c.Schema != nil {
		what, doc = "schema", *c.Schema
	} else {
		what, doc = "cel", *c.CEL
	}
	if err := errors.Join(checkPattern(doc), checkString(doc, maxText)); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if e == nil {
		return func(vault.Value) bool { return false }, nil
	}
	if compile = e.Value; c.Schema != nil {
		compile = e.Schema
	}
	if compile == nil {
		return nil, fmt.Errorf("%s: %w", what, errNoEngine)
	}
	eval, err := compile(doc)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return func(v vault.Value) bool {
		ok, err := eval(v)
		return err == nil && ok
	}, nil
}

// A caveat is a compiled one, with its place for whoever explains a denial.
type caveat struct {
	at   string
	eval func(*vault.Call, time.Time) (bool, error)
}

// compileCaveats compiles the caveats of a chain.
func (e *Engines) compileCaveats(c *Chain) ([]caveat, error) {
	var out []caveat
	for i := range c.links {
		for _, text := range c.links[i].Caveats {
			if e == nil || e.Caveat == nil {
				return nil, fmt.Errorf("link %d: caveat: %w", i, errNoEngine)
			}
			eval, err := e.Caveat(text)
			if err != nil {
				return nil, fmt.Errorf("link %d: caveat: %w", i, err)
			}
			out = append(out, caveat{fmt.Sprintf("link %d: caveat %s", i, text), eval})
		}
	}
	return out, nil
}

// hold evaluates c. The denial says in its detail, which only people see, which
// caveat it was.
func (c *caveat) hold(call *vault.Call, now time.Time) *vault.Denial {
	ok, err := c.eval(call, now)
	if err == nil && ok {
		return nil
	}
	d := vault.NewDenial(vault.CodeCapabilityCaveat, "", err)
	d.Reason.Detail = c.at
	if err != nil {
		d.Reason.Detail += ": " + err.Error()
	}
	return d
}

package capability

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/pilox/vault"
)

// A Severity says how much a finding matters.
type Severity string

// The severities.
const (
	LintError   Severity = "error"   // it cannot mean what it says: nothing passes, or more than it looks like
	LintWarning Severity = "warning" // it bounds little
	LintNote    Severity = "note"    // it says nothing, or leaves something out
)

// A Finding is something in a chain that may not mean what its author meant.
type Finding struct {
	Severity Severity `json:"severity"`
	Code     string   `json:"code"`
	Link     int      `json:"link"` // 0 is the root
	Where    string   `json:"where,omitempty"`
	Detail   string   `json:"detail"`
}

// severities are those of the codes of this package. A code that is not here is a
// warning.
var severities = map[string]Severity{
	"leaves-nothing": LintError, "empty-set": LintError, "prefix-path": LintError, "expired": LintError,
	"changes-nothing": LintNote,
}

// wide is how many calls a budget may allow before it is no bound on a task.
const wide = 100_000

// Lint says what of a chain deserves a second look. It trusts no comparison of
// constraints: a chain is safe whether or not anything is found.
func Lint(c Chain, now time.Time) []Finding {
	n := linter{explainer: explainer{}}
	x := Explain(c, nil)
	for i := range c.links {
		l := &c.links[i].Link
		n.link = i
		if x.Links[i].Empty {
			n.add("changes-nothing", "", "the link restricts nothing")
		}
		if l.Expires != 0 && !now.Before(l.Expires.Time()) {
			n.add("expired", "", "ended at %s", l.Expires.Time().Format(time.RFC3339))
		}
		n.lint(l)
	}
	if len(x.Effect) == 0 {
		n.link = len(c.links) - 1
		n.add("leaves-nothing", "", "no target of the root is left under all links")
	}
	return n.found
}

// LintRoot says what of a root link that is not minted deserves a second look. name
// is as for [Explain].
func LintRoot(l *Link, name func(vault.ServerID) string) []Finding {
	n := linter{explainer: explainer{name}}
	n.lint(l)
	return n.found
}

// A linter collects findings about one link after the other.
type linter struct {
	explainer
	link  int
	found []Finding
}

func (n *linter) add(code, where, format string, args ...any) {
	s, ok := severities[code]
	if !ok {
		s = LintWarning
	}
	n.found = append(n.found, Finding{s, code, n.link, where, fmt.Sprintf(format, args...)})
}

// lint looks at what one link says.
func (n *linter) lint(l *Link) {
	if l.Grants != nil && len(l.Grants) == 0 {
		n.add("leaves-nothing", "", "the link grants nothing, so nothing can be called")
	}
	if b := l.Budgets; b != nil && b.Calls != nil && *b.Calls >= wide {
		n.add("wide-budget", "calls", "%d calls are no bound on a task", *b.Calls)
	}
	if l.Holder != nil && l.Holder.Bearer {
		n.add("bearer", "", "whoever has the token can use it")
	}
	for _, kind := range slices.Sorted(maps.Keys(l.Grants)) {
		for _, t := range slices.SortedFunc(maps.Keys(l.Grants[kind]), byName) {
			r := l.Grants[kind][t]
			where := n.target(kind, t)
			if r.Any {
				n.add("any", where, "the arguments are not constrained")
			}
			n.args(where, r.Args)
		}
	}
}

func (n *linter) args(where string, args Args) {
	for _, at := range slices.Sorted(maps.Keys(args)) {
		a := args[at]
		n.arg(where+" "+at, &a)
	}
}

// arg looks at the constraints of one argument.
func (n *linter) arg(where string, a *Arg) {
	if len(a.All) == 0 {
		n.add("unconstrained", where, "any text, number or boolean passes")
	}
	for i := range a.All {
		c := &a.All[i]
		switch {
		case c.Prefix != nil && strings.HasPrefix(*c.Prefix, "/"):
			n.add("prefix-path", where, "%q is a prefix of paths beside the one that is meant, and of ..: use subpath", *c.Prefix)
		case c.Regex != nil && (strings.HasPrefix(*c.Regex, ".*") || strings.HasSuffix(*c.Regex, ".*") || strings.HasSuffix(*c.Regex, ".+")):
			n.add("open-regex", where, "the expression %s is open at an end", *c.Regex)
		case c.Glob != nil && (*c.Glob == "*" || *c.Glob == "**"):
			n.add("open-glob", where, "the pattern passes everything")
		case c.SubPath != nil && *c.SubPath == "/":
			n.add("root-path", where, "every path is below /")
		case c.OneOf != nil && len(c.OneOf) == 0, c.EmailDomain != nil && len(c.EmailDomain) == 0, c.HostSuffix != nil && len(c.HostSuffix) == 0:
			n.add("empty-set", where, "nothing passes an empty set")
		case c.Each != nil:
			n.arg(where+" (each)", c.Each)
		case c.Object != nil:
			n.args(where, c.Object)
		}
	}
}

// String returns f as JSON, on one line.
func (f Finding) String() string {
	b, err := json.Marshal(f)
	if err != nil {
		return f.Code
	}
	return string(b)
}

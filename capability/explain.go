package capability

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/pilox/vault"
)

// An Explanation says in sentences what a chain lets an agent do. It is for people
// who review: every restriction is in it, and nothing that is not in the chain.
type Explanation struct {
	Summary []string            `json:"summary"` // who, for whom, what for, how long, how far it may be handed on
	Links   []LinkExplanation   `json:"links"`   // root first; a call must pass each
	Effect  []TargetExplanation `json:"effect"`  // what is left of the root's targets under all links
}

// A LinkExplanation is what one link says.
type LinkExplanation struct {
	ID    vault.Digest `json:"id,omitzero"` // zero if it is not minted
	Says  []string     `json:"says"`
	Empty bool         `json:"empty,omitempty"` // it restricts nothing
}

// A TargetExplanation is what all links together say of one target.
type TargetExplanation struct {
	Target string   `json:"target"`
	Rules  []string `json:"rules"`
}

// Explain explains a chain. name returns the registered name of a server, or "" if it
// is not known; nil knows none. Nothing is verified.
func Explain(c Chain, name func(vault.ServerID) string) Explanation {
	if c.IsZero() {
		return Explanation{}
	}
	e := explainer{name}
	v := Inspect(c)
	out := Explanation{Summary: []string{
		fmt.Sprintf("%s acts for %s: %s", v.Agent, v.Principal, v.Task.Purpose),
		fmt.Sprintf("from %s until %s, at the gateway %s", v.NotBefore.Format(time.RFC3339), v.Expires.Format(time.RFC3339), v.Audience),
		"held by " + v.Holder.String() + held(&v.Holder),
	}}
	switch v.Depth {
	case 0:
		out.Summary = append(out.Summary, "it cannot be handed on")
	default:
		out.Summary = append(out.Summary, fmt.Sprintf("it can be handed on %d more times, and only narrower", v.Depth))
	}
	for i := range c.links {
		l := &c.links[i]
		says := e.link(&l.Link)
		out.Links = append(out.Links, LinkExplanation{l.id, says, i > 0 && len(says) == 0})
	}
	grants := make([]Grants, len(c.links))
	for i := range c.links {
		grants[i] = c.links[i].Grants
	}
	out.Effect = e.effects(grants)
	return out
}

// ExplainRoot explains a root link that is not minted: whom and what for, what it
// says, and what that leaves. Who holds it and how long is not in it yet.
func ExplainRoot(l *Link, name func(vault.ServerID) string) Explanation {
	e := explainer{name}
	out := Explanation{Links: []LinkExplanation{{Says: e.link(l)}}, Effect: e.effects([]Grants{l.Grants})}
	if l.Task != nil {
		out.Summary = []string{fmt.Sprintf("acts for %s: %s", l.Principal, l.Task.Purpose)}
	}
	return out
}

// held says what it takes to use a capability that is held so.
func held(h *Holder) string {
	switch {
	case !h.Key.IsZero():
		return ", who signs or MACs every call"
	case h.Channel != "":
		return ", a socket that the gateway holds for one sandbox"
	case h.UID != nil:
		return ", by the kernel's word on a local socket"
	case h.SPIFFE != "":
		return ", by mutual TLS"
	case h.Bearer:
		return ": whoever has the token can use it"
	}
	return ""
}

func byName(a, b vault.Target) int {
	if n := strings.Compare(a.Name, b.Name); n != 0 {
		return n
	}
	return strings.Compare(a.Server.String(), b.Server.String())
}

// An explainer knows the names of servers.
type explainer struct{ name func(vault.ServerID) string }

// target names a target of a kind.
func (e explainer) target(kind vault.Kind, t vault.Target) string {
	what := t.Name
	if what == anyName {
		what = "every " + string(kind)
	}
	if t.Server.IsZero() {
		return string(kind) + " " + what
	}
	server := ""
	if e.name != nil {
		server = e.name(t.Server)
	}
	if server == "" {
		server = "server " + t.Server.String()[:12]
	}
	return string(kind) + " " + server + ": " + what
}

// link says what one link restricts.
func (e explainer) link(l *Link) (says []string) {
	add := func(format string, args ...any) { says = append(says, fmt.Sprintf(format, args...)) }
	if l.Grants != nil && len(l.Grants) == 0 {
		add("grants nothing")
	}
	for _, kind := range slices.Sorted(maps.Keys(l.Grants)) {
		for _, t := range slices.SortedFunc(maps.Keys(l.Grants[kind]), byName) {
			r := l.Grants[kind][t]
			add("%s, %s", e.target(kind, t), strings.Join(ruleSays(&r), "; "))
		}
	}
	says = append(says, budgetSays("", l.Budgets)...)
	for _, c := range l.Caveats {
		add("only while %s", c)
	}
	for _, p := range l.ThirdParty {
		add("every call asks the group %s, who answers at %s", p.Group, p.Audience)
	}
	if l.SignAt != "" {
		add("a call of risk %s and above carries a signature of its own", l.SignAt)
	}
	if l.MinGrade > vault.GradeNone {
		add("runs in a sandbox of grade %s or better", l.MinGrade)
	}
	if l.MayRead != nil {
		add("may read %s", list(l.MayRead, "nothing that is not public"))
	}
	if l.MaySendTo != nil {
		add("private data may go to %s", list(l.MaySendTo, "nobody"))
	}
	if l.Delegates != nil {
		names := make([]string, len(l.Delegates))
		for i, a := range l.Delegates {
			names[i] = string(a)
		}
		add("may be handed to the agents %s", list(names, "none"))
	}
	if l.DelegateKeys != nil {
		add("may be bound to %d keys that it names", len(l.DelegateKeys))
	}
	if !l.Parent.IsZero() {
		if l.Holder != nil {
			add("held by %s", l.Holder)
		}
		if l.Agent != "" {
			add("for the agent %s", l.Agent)
		}
		if l.Expires != 0 {
			add("until %s", l.Expires.Time().Format(time.RFC3339))
		}
		if l.Depth != nil {
			add("may be handed on %d more times at most", *l.Depth)
		}
	}
	return says
}

// effects says what is left of the targets of the first grants under all of them.
func (e explainer) effects(all []Grants) (out []TargetExplanation) {
	for _, kind := range slices.Sorted(maps.Keys(all[0])) {
		for _, t := range slices.SortedFunc(maps.Keys(all[0][kind]), byName) {
			if x, ok := e.effect(all, kind, t); ok {
				out = append(out, x)
			}
		}
	}
	return out
}

// effect unites what all grants say of one target; false if one of them takes it away.
func (e explainer) effect(all []Grants, kind vault.Kind, t vault.Target) (TargetExplanation, bool) {
	x := TargetExplanation{Target: e.target(kind, t)}
	for _, grants := range all {
		l := layer{grants: grants}
		if l.grants == nil {
			continue
		}
		r, _, ok := l.rule(kind, t)
		if !ok {
			return x, false
		}
		for _, s := range ruleSays(&r) {
			if !slices.Contains(x.Rules, s) {
				x.Rules = append(x.Rules, s)
			}
		}
	}
	return x, true
}

// ruleSays says what a rule allows.
func ruleSays(r *Rule) (says []string) {
	switch {
	case r.Any:
		says = append(says, "with any arguments")
	case r.Args != nil && len(r.Args) == 0:
		says = append(says, "without arguments")
	case r.Args != nil:
		says = append(says, arguments(r.Args)...)
	}
	for _, g := range r.Ask {
		says = append(says, "each call asks the group "+g)
	}
	if !r.Definition.IsZero() {
		says = append(says, "as its definition "+r.Definition.String()[:12]+" stands")
	}
	return append(says, budgetSays("of these calls: ", r.Budgets)...)
}

// arguments says what each named argument has to be.
func arguments(args Args) (says []string) {
	for _, at := range slices.Sorted(maps.Keys(args)) {
		a := args[at]
		s := at + " is " + value(&a)
		if a.Optional {
			s += ", or is left out"
		}
		says = append(says, s)
	}
	return says
}

// value says what a value has to be.
func value(a *Arg) string {
	if len(a.All) == 0 {
		return "any text, number or boolean"
	}
	all := make([]string, len(a.All))
	for i := range a.All {
		all[i] = demand(&a.All[i])
	}
	return strings.Join(all, " and ")
}

func scalars(set []Scalar) string {
	out := make([]string, len(set))
	for i, s := range set {
		b, err := s.MarshalJSON()
		if err != nil {
			b = []byte("?")
		}
		out[i] = string(b)
	}
	return list(out, "nothing")
}

// list writes names with commas, and none as what nothing means there.
func list(names []string, none string) string {
	if len(names) == 0 {
		return none
	}
	return strings.Join(names, ", ")
}

// demand says what one constraint demands.
func demand(c *Constraint) string {
	switch {
	case c.Exact != nil:
		return "exactly " + scalars([]Scalar{*c.Exact})
	case c.OneOf != nil:
		return "one of " + scalars(c.OneOf)
	case c.NotOneOf != nil:
		return "none of " + scalars(c.NotOneOf)
	case c.Int != nil:
		return fmt.Sprintf("a whole number from %d to %d", c.Int.Min, c.Int.Max)
	case c.Decimal != nil:
		return fmt.Sprintf("a number from %s to %s", c.Decimal.Min, c.Decimal.Max)
	case c.Prefix != nil:
		return fmt.Sprintf("text that begins with %q", *c.Prefix)
	case c.SubPath != nil:
		return "the path " + *c.SubPath + " or one below it"
	case c.Glob != nil:
		return "text like " + *c.Glob
	case c.Regex != nil:
		return "text that matches " + *c.Regex
	case c.EmailDomain != nil:
		return "an address at " + list(c.EmailDomain, "no domain")
	case c.URL != nil:
		return "a URL of " + list(c.URL.Hosts, "no host") + c.URL.Path
	case c.HostSuffix != nil:
		return "a host in " + list(c.HostSuffix, "no domain")
	case c.CIDR != nil:
		return "an address in " + list(c.CIDR, "no network")
	case c.PublicURL != nil:
		return "a URL of the public internet"
	case c.MaxLength != nil:
		return fmt.Sprintf("text of at most %d characters", *c.MaxLength)
	case c.Length != nil:
		return fmt.Sprintf("text of %d to %d characters", c.Length.Min, c.Length.Max)
	case c.Each != nil:
		return "a list, each of it " + value(c.Each)
	case c.Object != nil:
		return "an object in which " + list(arguments(c.Object), "there is nothing")
	case c.Set != nil:
		return "the list of " + scalars(c.Set)
	case c.Subset != nil:
		return "a list out of " + scalars(c.Subset)
	case c.Contains != nil:
		return "a list with " + scalars(c.Contains)
	case c.Count != nil:
		return fmt.Sprintf("a list of %d to %d", c.Count.Min, c.Count.Max)
	case c.Argv != nil:
		return "a command: " + list(c.Argv.Programs, "none") + ", options " + list(c.Argv.Options, "none") + operands(c.Argv)
	case c.Schema != nil:
		return "what the schema " + *c.Schema + " describes"
	case c.CEL != nil:
		return "what makes " + *c.CEL + " true"
	}
	return "nothing"
}

func operands(a *Argv) string {
	if len(a.Operands) == 0 {
		return ", no operands"
	}
	return ", operands " + value(&Arg{All: a.Operands})
}

// budgetSays says what counters allow.
func budgetSays(before string, b *Budgets) (says []string) {
	if b == nil {
		return nil
	}
	for _, n := range []struct {
		limit *int64
		what  string
	}{{b.Calls, "calls"}, {b.BytesOut, "bytes of arguments"}, {b.Recipients, "different recipients"}, {b.Hosts, "different hosts"}, {b.Wall, "milliseconds of running"}} {
		if n.limit != nil {
			says = append(says, fmt.Sprintf("%sat most %d %s", before, *n.limit, n.what))
		}
	}
	for _, s := range b.Sums {
		of := ""
		if s.Name != "" {
			of = " of " + s.Name
		}
		says = append(says, fmt.Sprintf("%sat most %s %s in all of %s%s", before, s.Limit, s.Unit, s.Arg, of))
	}
	return says
}

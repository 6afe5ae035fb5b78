package policy

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/pilox/vault"
)

// inputVersion is the version of the document the rules see. Fields may be added
// under the same version; one is never renamed, removed or given another meaning.
const inputVersion = 1

// A needs says which fields of the input some rule can look at: section to the
// names in it. What no rule names is not built: nothing can tell the difference,
// and most of the cost of a decision is building what nobody reads.
type needs struct {
	all      bool                       // the whole document
	sections map[string]map[string]bool // a nil set is the whole section
}

// want reports whether a section must be built.
func (n *needs) want(section string) bool {
	if n.all {
		return true
	}
	_, ok := n.sections[section]
	return ok
}

// A fieldList collects the fields of one section that must be built.
type fieldList struct {
	only  map[string]bool // nil: all
	items [][2]*ast.Term
}

func (n *needs) in(section string, size int) fieldList {
	return fieldList{only: n.sections[section], items: make([][2]*ast.Term, 0, size)}
}

func (l *fieldList) add(name string, build func() *ast.Term) {
	if l.only == nil || l.only[name] {
		l.items = append(l.items, kv(name, build()))
	}
}

func (l *fieldList) object() *ast.Term { return object(l.items...) }

// needsOf collects the fields that the modules name. A rule that takes the input
// or a section as a whole, or picks in it by a variable, needs all of it.
func needsOf(modules map[string]*ast.Module) needs {
	n := needs{sections: map[string]map[string]bool{}}
	var visit *ast.GenericVisitor
	visit = ast.NewGenericVisitor(func(x any) bool {
		switch x := x.(type) {
		case ast.Var:
			if x == ast.InputRootDocument.Value {
				n.all = true
			}
		case ast.Ref:
			if !x[0].Equal(ast.InputRootDocument) {
				return false
			}
			n.note(x)
			for _, t := range x[1:] {
				visit.Walk(t)
			}
			return true
		}
		return false
	})
	for _, m := range modules {
		visit.Walk(m)
	}
	return n
}

// note records one reference to the input. An import or a with names a section
// like any reference does.
func (n *needs) note(ref ast.Ref) {
	name := func(i int) (string, bool) {
		if i >= len(ref) {
			return "", false
		}
		s, ok := ref[i].Value.(ast.String)
		return string(s), ok
	}
	section, ok := name(1)
	if !ok {
		n.all = true
		return
	}
	set, seen := n.sections[section]
	field, ok := name(2)
	switch {
	case !ok:
		n.sections[section] = nil
	case !seen:
		n.sections[section] = map[string]bool{field: true}
	case set != nil:
		set[field] = true
	}
}

// An input builds the document for one call, once for all its hooks.
type input struct {
	f       *vault.Facts
	gateway string
	at      string
	event   any
	doc     ast.Value
}

// Input returns the whole document version 1 for a call as JSON, for explaining
// and recording. Rules see the same.
func (p *Policy) Input(f *vault.Facts) ([]byte, error) {
	in := input{f: f, gateway: p.cfg.Gateway, at: AtToolCall}
	v, err := in.value(&needs{all: true})
	if err != nil {
		return nil, err
	}
	doc, err := ast.JSON(v)
	if err != nil {
		return nil, fmt.Errorf("encode input: %w", err)
	}
	return json.Marshal(doc)
}

func (in *input) value(n *needs) (ast.Value, error) {
	if in.doc != nil {
		return in.doc, nil
	}
	f := in.f
	if f == nil || f.Call == nil || f.Grant == nil || f.Tool == nil {
		return nil, fmt.Errorf("facts are incomplete: call %t, grant %t, tool %t", f != nil && f.Call != nil, f != nil && f.Grant != nil, f != nil && f.Tool != nil)
	}
	// A section that no rule names is left out: it would be null, and nobody can tell.
	items := make([][2]*ast.Term, 0, 14)
	section := func(name string, build func(*needs) *ast.Term) {
		if n.want(name) {
			items = append(items, kv(name, build(n)))
		}
	}
	event, err := in.eventTerm(n)
	if err != nil {
		return nil, err
	}
	section("version", func(*needs) *ast.Term { return ast.InternedTerm(inputVersion) })
	section("decision_id", func(*needs) *ast.Term { return text(f.Call.ID) })
	section("time", func(*needs) *ast.Term { return instant(f.Call.At) })
	section("hook", func(*needs) *ast.Term { return text(in.at) })
	section("agent", in.agent)
	section("principal", in.principal)
	section("task", in.task)
	section("grant", in.grant)
	section("call", in.callOrNull)
	section("data", in.data)
	section("history", in.history)
	section("approvals", func(*needs) *ast.Term { return ast.InternedEmptyArray })
	section("env", in.env)
	section("event", func(*needs) *ast.Term { return event })
	in.doc = ast.NewObject(items...)
	return in.doc, nil
}

// callOrNull leaves out the call where there is none.
func (in *input) callOrNull(n *needs) *ast.Term {
	if in.f.Call.Kind == "" {
		return null
	}
	return in.call(n)
}

// eventTerm converts the event of the hook point, which our own code made.
func (in *input) eventTerm(n *needs) (*ast.Term, error) {
	if in.event == nil || !n.want("event") {
		return null, nil
	}
	v, err := ast.InterfaceToValue(in.event)
	if err != nil {
		return nil, fmt.Errorf("event: %w", err)
	}
	return ast.NewTerm(v), nil
}

func (in *input) agent(n *needs) *ast.Term {
	l := n.in("agent", 4)
	l.add("id", func() *ast.Term { return text(string(in.f.Grant.Agent)) })
	l.add("key_thumbprint", none)
	l.add("roles", none)
	l.add("parent", none)
	return l.object()
}

func (in *input) principal(n *needs) *ast.Term {
	l := n.in("principal", 2)
	l.add("user", func() *ast.Term { return text(in.f.Grant.Principal) })
	l.add("tenant", func() *ast.Term { return text(string(in.f.Grant.Tenant)) })
	return l.object()
}

func (in *input) task(n *needs) *ast.Term {
	l := n.in("task", 3)
	l.add("id", func() *ast.Term { return text(string(in.f.Grant.Task)) })
	l.add("purpose", func() *ast.Term { return text(in.f.Grant.Purpose) })
	l.add("opened_at", none)
	return l.object()
}

func (in *input) grant(n *needs) *ast.Term {
	g := in.f.Grant
	l := n.in("grant", 12)
	l.add("chain_id", func() *ast.Term { return digest(g.Chain) })
	l.add("link_ids", func() *ast.Term {
		links := make([]*ast.Term, len(g.Links))
		for i, id := range g.Links {
			links[i] = text(id.String())
		}
		return array(links)
	})
	l.add("depth", func() *ast.Term { return ast.InternedTerm(max(len(g.Links)-1, 0)) })
	l.add("exp", func() *ast.Term { return instant(g.Expires) })
	l.add("proof", func() *ast.Term { return text(string(g.Proof)) })
	l.add("any_args", func() *ast.Term { return ast.InternedTerm(g.AnyArgs) })
	l.add("same_uid", func() *ast.Term { return ast.InternedTerm(g.SameUID) })
	l.add("ask", func() *ast.Term { return texts(g.Ask) })
	l.add("may_read", func() *ast.Term { return texts(g.MayRead) })
	l.add("may_send_to", func() *ast.Term { return texts(g.MaySendTo) })
	l.add("effective", none)
	l.add("budgets", func() *ast.Term {
		budgets := make([][2]*ast.Term, 0, len(g.Debits))
		for _, d := range g.Debits {
			budgets = append(budgets, [2]*ast.Term{text(d.Counter), object(
				kv("amount", whole(d.Amount)),
				kv("limit", whole(d.Limit)),
				kv("unit", text(d.Unit)),
				kv("used", null),
			)})
		}
		return object(budgets...)
	})
	return l.object()
}

func (in *input) call(n *needs) *ast.Term {
	c, t := in.f.Call, in.f.Tool
	l := n.in("call", 11)
	l.add("kind", func() *ast.Term { return text(string(c.Kind)) })
	l.add("server", func() *ast.Term { return text(c.Server) })
	l.add("tool", func() *ast.Term { return text(c.Target.Name) })
	l.add("schema_digest", func() *ast.Term { return digest(t.Definition) })
	l.add("risk", func() *ast.Term { return text(t.Risk.String()) })
	l.add("read_only", func() *ast.Term { return ast.InternedTerm(t.ReadOnly) })
	l.add("local", func() *ast.Term { return ast.InternedTerm(t.Local) })
	l.add("roles", func() *ast.Term {
		roles := make([][2]*ast.Term, 0, len(t.Roles))
		for path, role := range t.Roles {
			roles = append(roles, [2]*ast.Term{text(path), text(string(role))})
		}
		return object(roles...)
	})
	l.add("args", func() *ast.Term { return tree(c.Args.Root()) })
	l.add("args_digest", func() *ast.Term { return digest(c.Args.Digest()) })
	l.add("seq", func() *ast.Term { return whole(int64(min(c.Credential.Seq, 1<<53-1))) })
	return l.object()
}

func (in *input) data(n *needs) *ast.Term {
	scope := in.f.Scope
	l := n.in("data", 3)
	l.add("labels", func() *ast.Term {
		readers := text("public")
		if !scope.Readers.IsPublic() {
			readers = texts(scope.Readers.Names())
		}
		return object(
			kv("integrity", text(scope.Integrity.String())),
			kv("confidentiality", readers),
		)
	})
	l.add("sources", func() *ast.Term {
		sources := make([]*ast.Term, len(scope.Sources))
		for i, s := range scope.Sources {
			sources[i] = text(s.String())
		}
		return array(sources)
	})
	l.add("arg_provenance", func() *ast.Term {
		if in.f.Origins == nil {
			return null
		}
		items := make([][2]*ast.Term, len(in.f.Origins))
		for i, o := range in.f.Origins {
			items[i] = [2]*ast.Term{text(o.Path), object(
				kv("found", texts(o.Found)),
				kv("trusted", ast.InternedTerm(o.Trusted)),
			)}
		}
		return object(items...)
	})
	return l.object()
}

func (in *input) history(n *needs) *ast.Term {
	l := n.in("history", 3)
	l.add("calls", func() *ast.Term { return ast.InternedTerm(in.f.Calls) })
	l.add("last_n", none)
	l.add("denies", func() *ast.Term { return ast.InternedTerm(in.f.Denies) })
	return l.object()
}

func (in *input) env(n *needs) *ast.Term {
	l := n.in("env", 3)
	l.add("gateway", func() *ast.Term {
		if in.gateway == "" {
			return null
		}
		return text(in.gateway)
	})
	l.add("net", none)
	l.add("sandbox_grade", func() *ast.Term { return text(in.f.Grade.String()) })
	return l.object()
}

// Terms are immutable, so the fixed ones are shared between calls.
var null = ast.InternedNullTerm

func none() *ast.Term { return null }

func kv(key string, v *ast.Term) [2]*ast.Term { return [2]*ast.Term{keys[key], v} }

func object(items ...[2]*ast.Term) *ast.Term { return ast.NewTerm(ast.NewObject(items...)) }

func array(items []*ast.Term) *ast.Term { return ast.NewTerm(ast.NewArray(items...)) }

func text(s string) *ast.Term { return ast.InternedTerm(s) }

func texts(s []string) *ast.Term {
	items := make([]*ast.Term, len(s))
	for i := range s {
		items[i] = text(s[i])
	}
	return array(items)
}

func whole(n int64) *ast.Term { return ast.NewTerm(ast.Number(fmt.Append(nil, n))) }

func digest(d vault.Digest) *ast.Term {
	if d.IsZero() {
		return null
	}
	return text(d.String())
}

// instant is RFC 3339 in UTC with nanoseconds as needed; time.parse_rfc3339_ns
// reads it.
func instant(t time.Time) *ast.Term {
	if t.IsZero() {
		return null
	}
	return text(t.UTC().Format(time.RFC3339Nano))
}

// tree converts arguments. Their depth is bounded by vault.MaxArgsDepth.
func tree(v vault.Value) *ast.Term {
	switch v.Kind() {
	case vault.Bool:
		b, _ := v.Bool()
		return ast.InternedTerm(b)
	case vault.Number:
		return ast.NewTerm(ast.Number(v.Raw()))
	case vault.String:
		s, _ := v.Str()
		return text(s)
	case vault.Array:
		items := make([]*ast.Term, 0, v.Len())
		for _, c := range v.All() {
			items = append(items, tree(c))
		}
		return array(items)
	case vault.Object:
		items := make([][2]*ast.Term, 0, v.Len())
		for k, c := range v.All() {
			items = append(items, [2]*ast.Term{text(k), tree(c)})
		}
		return object(items...)
	case vault.Null, vault.Absent:
	}
	return null
}

// keys holds a term for every key of the input. A key that is missing here
// would be a nil term: TestInputSchema builds them all.
var keys = func() map[string]*ast.Term {
	m := map[string]*ast.Term{}
	for _, k := range []string{
		"version", "decision_id", "time", "hook", "agent", "principal", "task", "grant", "call", "data", "history", "approvals", "env", "event",
		"id", "key_thumbprint", "roles", "parent", "user", "tenant", "purpose", "opened_at",
		"chain_id", "link_ids", "depth", "exp", "proof", "any_args", "same_uid", "ask", "may_read", "may_send_to", "effective", "budgets",
		"amount", "limit", "unit", "used",
		"kind", "server", "tool", "schema_digest", "risk", "read_only", "local", "args", "args_digest", "seq",
		"labels", "integrity", "confidentiality", "sources", "arg_provenance", "found", "trusted",
		"calls", "last_n", "denies", "gateway", "net", "sandbox_grade",
	} {
		m[k] = ast.StringTerm(k)
	}
	return m
}()

// fields returns the keys of an object in order, for messages.
func fields(o ast.Object) []string {
	var names []string
	o.Foreach(func(k, _ *ast.Term) { names = append(names, k.String()) })
	slices.Sort(names)
	return names
}

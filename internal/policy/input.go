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

// A needs says which sections of the input some rule can look at. A section that
// no rule names is not built: nothing can tell the difference, and a small policy
// gets twice as fast.
type needs uint16

const (
	needAgent needs = 1 << iota
	needPrincipal
	needTask
	needGrant
	needCall
	needData
	needHistory
	needEnv
	needAll = 1<<iota - 1
)

var sectionNeeds = map[string]needs{
	"agent": needAgent, "principal": needPrincipal, "task": needTask, "grant": needGrant,
	"call": needCall, "data": needData, "history": needHistory, "env": needEnv,
	// always built
	"version": 0, "decision_id": 0, "time": 0, "hook": 0, "approvals": 0,
}

// needsOf collects the sections that the modules name. A rule that takes the
// input as a whole, or picks a section by a variable, needs all of them.
func needsOf(modules map[string]*ast.Module) needs {
	var n needs
	var visit *ast.GenericVisitor
	visit = ast.NewGenericVisitor(func(x any) bool {
		switch x := x.(type) {
		case ast.Var:
			if x == ast.InputRootDocument.Value {
				n = needAll
			}
		case ast.Ref:
			if !x[0].Equal(ast.InputRootDocument) {
				return false
			}
			n |= sectionOf(x)
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

func sectionOf(ref ast.Ref) needs {
	if len(ref) < 2 {
		return needAll
	}
	name, ok := ref[1].Value.(ast.String)
	if !ok {
		return needAll
	}
	return sectionNeeds[string(name)] // an unknown name is undefined either way
}

// An input builds the document for one call, once for all its hooks.
type input struct {
	f       *vault.Facts
	gateway string
	doc     ast.Value
}

// Input returns the whole document version 1 for a call as JSON, for explaining
// and recording. Rules see the same.
func (p *Policy) Input(f *vault.Facts) ([]byte, error) {
	in := input{f: f, gateway: p.cfg.Gateway}
	v, err := in.value(needAll)
	if err != nil {
		return nil, err
	}
	doc, err := ast.JSON(v)
	if err != nil {
		return nil, fmt.Errorf("encode input: %w", err)
	}
	return json.Marshal(doc)
}

func (in *input) value(n needs) (ast.Value, error) {
	if in.doc != nil {
		return in.doc, nil
	}
	f := in.f
	if f == nil || f.Call == nil || f.Grant == nil || f.Tool == nil {
		return nil, fmt.Errorf("facts are incomplete: call %t, grant %t, tool %t", f != nil && f.Call != nil, f != nil && f.Grant != nil, f != nil && f.Tool != nil)
	}
	section := func(bit needs, build func() *ast.Term) *ast.Term {
		if n&bit == 0 {
			return null
		}
		return build()
	}
	in.doc = ast.NewObject(
		kv("version", ast.InternedTerm(inputVersion)),
		kv("decision_id", text(f.Call.ID)),
		kv("time", instant(f.Call.At)),
		kv("hook", text(AtToolCall)),
		kv("agent", section(needAgent, in.agent)),
		kv("principal", section(needPrincipal, in.principal)),
		kv("task", section(needTask, in.task)),
		kv("grant", section(needGrant, in.grant)),
		kv("call", section(needCall, in.call)),
		kv("data", section(needData, in.data)),
		kv("history", section(needHistory, in.history)),
		kv("approvals", ast.InternedEmptyArray),
		kv("env", section(needEnv, in.env)),
	)
	return in.doc, nil
}

func (in *input) agent() *ast.Term {
	return object(
		kv("id", text(string(in.f.Grant.Agent))),
		kv("key_thumbprint", null),
		kv("roles", null),
		kv("parent", null),
	)
}

func (in *input) principal() *ast.Term {
	return object(
		kv("user", text(in.f.Grant.Principal)),
		kv("tenant", text(string(in.f.Grant.Tenant))),
	)
}

func (in *input) task() *ast.Term {
	return object(
		kv("id", text(string(in.f.Grant.Task))),
		kv("purpose", text(in.f.Grant.Purpose)),
		kv("opened_at", null),
	)
}

func (in *input) grant() *ast.Term {
	g := in.f.Grant
	links := make([]*ast.Term, len(g.Links))
	for i, l := range g.Links {
		links[i] = text(l.String())
	}
	budgets := make([][2]*ast.Term, 0, len(g.Debits))
	for _, d := range g.Debits {
		budgets = append(budgets, [2]*ast.Term{text(d.Counter), object(
			kv("amount", whole(d.Amount)),
			kv("limit", whole(d.Limit)),
			kv("unit", text(d.Unit)),
			kv("used", null),
		)})
	}
	return object(
		kv("chain_id", digest(g.Chain)),
		kv("link_ids", array(links)),
		kv("depth", ast.InternedTerm(max(len(g.Links)-1, 0))),
		kv("exp", instant(g.Expires)),
		kv("proof", text(string(g.Proof))),
		kv("any_args", ast.InternedTerm(g.AnyArgs)),
		kv("same_uid", ast.InternedTerm(g.SameUID)),
		kv("ask", texts(g.Ask)),
		kv("may_read", texts(g.MayRead)),
		kv("may_send_to", texts(g.MaySendTo)),
		kv("effective", null),
		kv("budgets", object(budgets...)),
	)
}

func (in *input) call() *ast.Term {
	c, t := in.f.Call, in.f.Tool
	roles := make([][2]*ast.Term, 0, len(t.Roles))
	for path, role := range t.Roles {
		roles = append(roles, [2]*ast.Term{text(path), text(string(role))})
	}
	return object(
		kv("kind", text(string(c.Kind))),
		kv("server", text(c.Server)),
		kv("tool", text(c.Target.Name)),
		kv("schema_digest", digest(t.Definition)),
		kv("risk", text(t.Risk.String())),
		kv("read_only", ast.InternedTerm(t.ReadOnly)),
		kv("local", ast.InternedTerm(t.Local)),
		kv("roles", object(roles...)),
		kv("args", tree(c.Args.Root())),
		kv("args_digest", digest(c.Args.Digest())),
		kv("seq", whole(int64(min(c.Credential.Seq, 1<<53-1)))),
	)
}

func (in *input) data() *ast.Term {
	scope := in.f.Scope
	sources := make([]*ast.Term, len(scope.Sources))
	for i, s := range scope.Sources {
		sources[i] = text(s.String())
	}
	var origins *ast.Term = null
	if in.f.Origins != nil {
		items := make([][2]*ast.Term, len(in.f.Origins))
		for i, o := range in.f.Origins {
			items[i] = [2]*ast.Term{text(o.Path), object(
				kv("found", texts(o.Found)),
				kv("trusted", ast.InternedTerm(o.Trusted)),
			)}
		}
		origins = object(items...)
	}
	readers := text("public")
	if !scope.Readers.IsPublic() {
		readers = texts(scope.Readers.Names())
	}
	return object(
		kv("labels", object(
			kv("integrity", text(scope.Integrity.String())),
			kv("confidentiality", readers),
		)),
		kv("sources", array(sources)),
		kv("arg_provenance", origins),
	)
}

func (in *input) history() *ast.Term {
	return object(
		kv("calls", ast.InternedTerm(in.f.Calls)),
		kv("last_n", null),
		kv("denies", ast.InternedTerm(in.f.Denies)),
	)
}

func (in *input) env() *ast.Term {
	gateway := null
	if in.gateway != "" {
		gateway = text(in.gateway)
	}
	return object(
		kv("gateway", gateway),
		kv("net", null),
		kv("sandbox_grade", text(in.f.Grade.String())),
	)
}

// Terms are immutable, so the fixed ones are shared between calls.
var null = ast.InternedNullTerm

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
		"version", "decision_id", "time", "hook", "agent", "principal", "task", "grant", "call", "data", "history", "approvals", "env",
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

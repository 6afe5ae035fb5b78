package aat

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
)

// allows is the draft's check of an invocation by one token (section 8, step 6b), from
// the JSON of its tools and without the code under test.
func allows(tools object, tool string, args object) bool {
	m, ok := tools[tool].(object)
	if !ok {
		return false
	}
	open := len(m) == 0
	if _, ok := m["*"]; ok {
		open = true
	}
	for name, v := range args {
		if c, ok := m[name].(object); ok && name != "*" {
			if !passes(c, v) {
				return false
			}
		} else if !open {
			return false
		}
	}
	for name, c := range m {
		_, given := args[name]
		if name != "*" && !given && c.(object)["optional"] != true {
			return false
		}
	}
	return true
}

// passes is the check predicate of section 3.4.
func passes(c object, v any) bool {
	same := func(a, b any) bool { return string(jcs(a)) == string(jcs(b)) }
	in := func(list any, v any) bool {
		return slices.ContainsFunc(list.([]any), func(e any) bool { return same(e, v) })
	}
	switch c["constraint_type"] {
	case "wildcard":
		return true
	case "exact":
		return same(c["value"], v)
	case "one_of":
		return in(c["values"], v)
	case "not_one_of":
		return !in(c["excluded"], v)
	case "range":
		n, ok := v.(float64)
		if !ok {
			return false
		}
		if lo, ok := c["min"].(float64); ok && (n < lo || n == lo && c["min_inclusive"] == false) {
			return false
		}
		if hi, ok := c["max"].(float64); ok && (n > hi || n == hi && c["max_inclusive"] == false) {
			return false
		}
		return true
	case "contains":
		list, ok := v.([]any)
		return ok && !slices.ContainsFunc(c["required"].([]any), func(e any) bool { return !in(list, e) })
	case "subset":
		list, ok := v.([]any)
		return ok && !slices.ContainsFunc(list, func(e any) bool { return !in(c["allowed"], e) })
	case "all":
		return !slices.ContainsFunc(c["constraints"].([]any), func(k any) bool { return !passes(k.(object), v) })
	case "any":
		return slices.ContainsFunc(c["constraints"].([]any), func(k any) bool { return passes(k.(object), v) })
	}
	return false
}

func jcs(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	doc, err := vault.ParseValue(b)
	if err != nil {
		panic(err)
	}
	return doc.Bytes()
}

// plain turns v into what encoding/json decodes.
func plain(v any) object {
	var out object
	if err := json.Unmarshal(jcs(v), &out); err != nil {
		panic(err)
	}
	return out
}

var (
	scalarValues = []any{"a", "b", "", 0.0, 1.0, 2.0, 3.0, -1.0, 0.5, 1.5, 0.0000001, 1e13, true, false}
	allValues    = append([]any{nil, []any{}, []any{"a"}, []any{"a", "a"}, []any{"a", 1.0}, []any{"b"}, []any{[]any{"a"}}, []any{nil}, object{}, object{"x": "a"}, object{"x": 1.0, "y": "b"}}, scalarValues...)
)

func drawValues(t *rapid.T, from []any, least int) []any {
	return rapid.SliceOfN(rapid.SampledFrom(from), least, 3).Draw(t, "values")
}

// drawAAT draws a constraint of the draft.
func drawAAT(t *rapid.T, depth int) object {
	last := 8
	if depth > 2 {
		last = 6
	}
	from := scalarValues
	if rapid.IntRange(0, 9).Draw(t, "odd") == 0 {
		from = allValues
	}
	switch rapid.IntRange(0, last).Draw(t, "type") {
	case 0:
		return of("wildcard")
	case 1:
		return of("exact", "value", rapid.SampledFrom(scalarValues).Draw(t, "value"))
	case 2:
		c := of("range")
		lo := rapid.SampledFrom([]float64{-1, 0, 0.5, 1, 0.0000005}).Draw(t, "lo")
		if rapid.Bool().Draw(t, "min") {
			c["min"] = lo
			if rapid.Bool().Draw(t, "open") {
				c["min_inclusive"] = false
			}
		}
		if rapid.Bool().Draw(t, "max") {
			c["max"] = lo + rapid.SampledFrom([]float64{0, 1, 1.5, 3}).Draw(t, "span")
			if rapid.Bool().Draw(t, "open") {
				c["max_inclusive"] = false
			}
		}
		return c
	case 3:
		return of("one_of", "values", drawValues(t, from, 1))
	case 4:
		return of("not_one_of", "excluded", drawValues(t, from, 0))
	case 5:
		return of("contains", "required", drawValues(t, from, 0))
	case 6:
		return of("subset", "allowed", drawValues(t, from, 0))
	}
	var clauses []any
	for range rapid.IntRange(1, 3).Draw(t, "clauses") {
		clauses = append(clauses, drawAAT(t, depth+1))
	}
	return of(rapid.SampledFrom([]string{"all", "any"}).Draw(t, "of"), "constraints", clauses)
}

func drawMap(t *rapid.T) object {
	m := object{}
	for _, name := range []string{"a", "b", "o"} {
		if rapid.IntRange(0, 2).Draw(t, name) == 0 {
			continue
		}
		c := drawAAT(t, 1)
		if rapid.Bool().Draw(t, "optional") {
			c["optional"] = true
		}
		m[name] = c
	}
	if rapid.IntRange(0, 3).Draw(t, "star") == 0 {
		m["*"] = of("wildcard")
	}
	return m
}

// narrower draws a map that often narrows m.
func narrower(t *rapid.T, m object) object {
	out := object{}
	for _, name := range []string{"a", "b", "o", "*"} {
		c, ok := m[name].(object)
		if !ok {
			continue
		}
		switch rapid.IntRange(0, 4).Draw(t, "change") {
		case 0:
			if c["optional"] == true || name == "*" {
				continue // left out
			}
		case 1:
			if v, ok := c["values"].([]any); ok {
				c = of("one_of", "values", v[:1])
			}
		case 2:
			if c["constraint_type"] == "wildcard" && name != "*" {
				c = drawAAT(t, 1)
			}
		case 3:
			if list, ok := c["constraints"].([]any); ok && c["constraint_type"] == "any" {
				c = of("any", "constraints", list[:1])
			}
		}
		out[name] = c
	}
	return out
}

// drawArgsFor draws arguments, most of them with names and values that m speaks of.
func drawArgsFor(t *rapid.T, m object) object {
	args := object{}
	for _, name := range []string{"a", "b", "o", "c", "*"} {
		c, named := m[name].(object)
		often := 1
		if named && name != "*" {
			often = 8
		}
		if rapid.IntRange(0, 9).Draw(t, "give "+name) > often {
			continue
		}
		from := allValues
		if hints := hinted(c); len(hints) > 0 && rapid.IntRange(0, 3).Draw(t, "hint") > 0 {
			from = hints
		}
		args[name] = rapid.SampledFrom(from).Draw(t, name)
	}
	return args
}

// hinted returns values that a constraint speaks of.
func hinted(c object) (out []any) {
	for _, word := range []string{"values", "excluded"} {
		list, _ := c[word].([]any)
		out = append(out, list...)
	}
	for _, word := range []string{"required", "allowed"} {
		if list, ok := c[word].([]any); ok {
			out = append(out, list, append(slices.Clone(list), list...))
		}
	}
	if v, ok := c["value"]; ok {
		out = append(out, v)
	}
	if c["constraint_type"] == "range" {
		out = append(out, 0.0, 0.5, 1.0, 1.5, 2.0, 0.0000001, 1.0000001)
	}
	list, _ := c["constraints"].([]any)
	for _, k := range list {
		out = append(out, hinted(k.(object))...)
	}
	return out
}

// A gate is a gateway that mints and verifies capabilities.
type gate struct {
	t        testing.TB
	verifier *capability.Verifier
	agent    capability.Key
}

var (
	gateIssuer = seeded("gateway")
	gateAgent  = seeded("agent")
	toolServer = vault.ServerID(vault.Hash("test", []byte("up")))
	theTool    = vault.Target{Server: toolServer, Name: "t"}
)

func newGate(t testing.TB) *gate {
	t.Helper()
	v, err := capability.New(capability.Config{
		Roots: []capability.RootIssuer{{KID: "k1", Key: keyFor(t, gateIssuer), Tenant: "acme", Own: true}}, Audience: testAudience,
		Now: func() time.Time { return testNow }, SameUID: func(vault.Binding) bool { return false },
	})
	if err != nil {
		t.Fatal(err)
	}
	return &gate{t, v, keyFor(t, gateAgent)}
}

// mint mints a root and adds a child for each further rule.
func (g *gate) mint(root capability.Rule, children ...capability.Rule) (capability.Chain, error) {
	tool := func(r capability.Rule) capability.Grants {
		return capability.Grants{vault.KindTool: {theTool: r}}
	}
	c, err := capability.Mint(capability.Link{
		Tenant: "acme", Principal: "user:clerk@example.com", Agent: "spiffe://example.org/agent/acme/clerk/1",
		Task: &capability.Task{ID: "t-0123456789abcdefghjkmnpqrs", Purpose: "test"}, Audience: testAudience,
		Issued: capability.InstantOf(testNow), NotBefore: capability.InstantOf(testNow), Expires: capability.InstantOf(testNow.Add(time.Hour)),
		Depth: capability.Depth(8), Holder: capability.HeldBy(g.agent), Grants: tool(root), Budgets: &capability.Budgets{Calls: capability.Limit(1000)},
	}, capability.Signer{Key: gateIssuer, KID: "k1"})
	for _, r := range children {
		if err == nil {
			c, err = capability.Attenuate(c, capability.Link{Grants: tool(r)}, capability.Signer{Key: gateAgent})
		}
	}
	return c, err
}

// allows reports whether a call passes a chain.
func (g *gate) allows(c capability.Chain, args object) bool {
	g.t.Helper()
	parsed, err := vault.ParseArgs(jcs(args))
	if err != nil {
		g.t.Fatal(err)
	}
	call := &vault.Call{ID: "c-1", Kind: vault.KindTool, Target: theTool, Args: parsed}
	nonce, err := g.verifier.Nonce()
	if err != nil {
		g.t.Fatal(err)
	}
	if err := capability.SignCall(call, c, gateAgent, nonce); err != nil {
		g.t.Fatal(err)
	}
	_, err = g.verifier.Verify(g.t.Context(), call)
	if err != nil && !strings.HasPrefix(string(vault.DenialOf(err).Reason.Code), "capability.") {
		g.t.Fatalf("not held against the chain: %v", err)
	}
	return err == nil
}

// drawLocal draws the rule of a reviewed task file.
func drawLocal(t *rapid.T) capability.Rule {
	if rapid.IntRange(0, 2).Draw(t, "any") == 0 {
		return capability.Rule{Any: true}
	}
	args := capability.Args{}
	for _, p := range []string{"/a", "/b", "/c"} {
		if rapid.IntRange(0, 4).Draw(t, p) > 0 {
			args[p] = drawCapArg(t)
		}
	}
	switch rapid.IntRange(0, 3).Draw(t, "/o") {
	case 0:
		args["/o/x"] = capability.Arg{Optional: rapid.Bool().Draw(t, "x")}
		args["/o/y"] = capability.Arg{Optional: rapid.Bool().Draw(t, "y")}
	case 1:
		args["/o"] = capability.Arg{Optional: true, All: []capability.Constraint{{Object: capability.Args{"/x": {}}}}}
	case 2:
		args["/o"] = capability.Arg{Optional: true, All: []capability.Constraint{{Each: &capability.Arg{}}}}
	}
	return capability.Rule{Args: args}
}

func ptr[T any](v T) *T { return &v }

// drawCapArg draws what a task file could say, exportable or not.
func drawCapArg(t *rapid.T) capability.Arg {
	a := capability.Arg{Optional: rapid.Bool().Draw(t, "optional")}
	for range rapid.IntRange(1, 2).Draw(t, "constraints") {
		switch rapid.IntRange(0, 11).Draw(t, "constraint") {
		case 0, 1, 2:
			a.All = append(a.All, capability.Constraint{OneOf: []capability.Scalar{capability.String("a"), capability.Int(1), capability.Bool(true)}})
		case 3, 4:
			a.All = append(a.All, capability.Constraint{Exact: ptr(capability.String(rapid.SampledFrom([]string{"a", "b", ""}).Draw(t, "exact")))})
		case 5, 6:
			a.All = append(a.All, capability.Constraint{Int: &capability.IntRange{Min: 0, Max: rapid.SampledFrom([]int64{0, 2, 255, 256, 1 << 53}).Draw(t, "max")}})
		case 7:
			a.All = append(a.All, capability.Constraint{MaxLength: ptr(int64(1))})
		case 8:
			a.All = append(a.All, capability.Constraint{Decimal: &capability.DecimalRange{Min: 0, Max: 2e6}})
		case 9:
			a.All = append(a.All, capability.Constraint{NotOneOf: []capability.Scalar{capability.String("a")}})
		case 10:
			each := capability.One(capability.Constraint{OneOf: []capability.Scalar{capability.String("a"), capability.Int(1)}})
			return capability.Arg{Optional: a.Optional, All: []capability.Constraint{{Each: &each}}}
		case 11:
			return capability.Arg{Optional: a.Optional, All: []capability.Constraint{{Subset: []capability.Scalar{capability.String("a"), capability.Int(1)}}}}
		}
	}
	return a
}

// parsed returns a token with these tools, as if a signed one had been read.
func parsed(t testing.TB, id string, tools object) *token {
	t.Helper()
	doc, err := vault.ParseValue(jcs(details(tools)))
	if err != nil {
		t.Fatal(err)
	}
	out := &token{id: id}
	if err := out.readDetails(doc.Root()); err != nil {
		t.Fatalf("%s: %v", doc, err)
	}
	return out
}

// TestImportNarrows: whatever tokens say, narrowing or not, a call that passes the
// rules made from them passes each of them, and the local rule.
func TestImportNarrows(t *testing.T) {
	g := newGate(t)
	made, passed, refused := 0, 0, 0
	rapid.Check(t, func(r *rapid.T) {
		chain := &Chain{}
		var tools []object
		m := drawMap(r)
		for i := range rapid.IntRange(1, 3).Draw(r, "tokens") {
			if i > 0 {
				if rapid.IntRange(0, 3).Draw(r, "honest") > 0 {
					m = narrower(r, m)
				} else {
					m = drawMap(r)
				}
			}
			tools = append(tools, plain(object{"t": m}))
			chain.tokens = append(chain.tokens, parsed(t, fmt.Sprint(i), tools[i]))
		}
		local := drawLocal(r)
		root, err := g.mint(local)
		if err != nil {
			r.Skip("the local rule cannot be minted")
		}
		rule, err := chain.Rule("t", local)
		if err != nil {
			refused++
			return
		}
		c, err := g.mint(local, rule)
		if err != nil {
			refused++ // constraints that can never hold together
			return
		}
		made++
		for range 12 {
			args := plain(drawArgsFor(r, plain(m)))
			if !g.allows(c, args) {
				continue
			}
			passed++
			if !g.allows(root, args) {
				r.Errorf("%v passes the child and not the local rule", args)
			}
			for i, tool := range tools {
				if !allows(tool, "t", args) {
					r.Errorf("%v passes the rule %+v and not token %d: %s", args, rule, i, jcs(tool))
				}
			}
		}
	})
	t.Logf("%d rules made, %d refused, %d calls passed", made, refused, passed)
	if made == 0 || passed == 0 || refused == 0 {
		t.Errorf("%d rules made, %d refused, %d calls passed: the test shows nothing", made, refused, passed)
	}
}

// TestNarrowingIsSound: what is taken for a narrowing is one, for every call.
func TestNarrowingIsSound(t *testing.T) {
	narrows, passed := 0, 0
	rapid.Check(t, func(r *rapid.T) {
		m := drawMap(r)
		n := narrower(r, m)
		if rapid.Bool().Draw(r, "unrelated") {
			n = drawMap(r)
		}
		parent, child := plain(object{"t": m}), plain(object{"t": n})
		p, c := parsed(t, "p", parent).tools["t"], parsed(t, "c", child).tools["t"]
		if err := p.narrows(&p); err != nil {
			r.Errorf("%s does not narrow itself: %v", jcs(parent), err)
		}
		if c.narrows(&p) != nil {
			return
		}
		narrows++
		for range 20 {
			args := plain(drawArgsFor(r, plain(n)))
			if !allows(child, "t", args) {
				continue
			}
			passed++
			if !allows(parent, "t", args) {
				r.Errorf("%v passes %s and not its parent %s", args, jcs(child), jcs(parent))
			}
		}
	})
	t.Logf("%d pairs narrow, %d calls passed", narrows, passed)
	if narrows == 0 || passed == 0 {
		t.Error("the test shows nothing")
	}
}

// exporter loses all that can be lost: the calls of these tests have no budgets.
func exporter(t testing.TB) Exporter {
	t.Helper()
	return Exporter{
		Issuer: testIssuer, Key: seeded("issuer"), Server: func(id vault.ServerID) string {
			if id == toolServer {
				return "up"
			}
			return ""
		}, Lose: Losses, Now: testNow,
	}
}

// TestExport: what is exported allows no call that the capability denies, and, where
// everything could be said, none less; and it comes back as the same.
func TestExport(t *testing.T) {
	g := newGate(t)
	exported, missing, passed := 0, 0, 0
	rapid.Check(t, func(r *rapid.T) {
		root := drawLocal(r)
		var children []capability.Rule
		for range rapid.IntRange(0, 2).Draw(r, "links") {
			child := drawLocal(r)
			child.Any = false // nil args inherit
			children = append(children, child)
		}
		c, err := g.mint(root, children...)
		if err != nil {
			r.Skip("it cannot be minted")
		}
		raw, err := Export(c, exporter(t))
		if err != nil {
			missing++
			return
		}
		exported++
		chain, err := Verify(raw, testConfig(t))
		if err != nil {
			r.Fatalf("what was exported does not verify: %v", err)
		}
		if chain.Holder() != keyFor(t, gateAgent) {
			r.Fatalf("held by %v", chain.Holder())
		}
		tools := toolsOf(t, raw)
		rule, err := chain.Rule("up.t", root)
		if err != nil {
			r.Fatalf("what was exported makes no rule: %v", err)
		}
		back, err := g.mint(root, rule)
		if err != nil {
			r.Fatalf("the rule of an exported token cannot be minted: %v", err)
		}
		for range 12 {
			args := plain(drawArgsFor(r, tools["up.t"].(object)))
			was, is, again := g.allows(c, args), allows(tools, "up.t", args), g.allows(back, args)
			if was != is || was != again {
				r.Errorf("%v: the capability says %v, the token %v, what came back %v: %s", args, was, is, again, jcs(tools))
			}
			if was {
				passed++
			}
		}
	})
	t.Logf("%d exported, %d not, %d calls passed", exported, missing, passed)
	if exported == 0 || missing == 0 || passed == 0 {
		t.Error("the test shows nothing")
	}
}

// toolsOf returns the tools of a chain of one token.
func toolsOf(t testing.TB, raw []byte) object {
	t.Helper()
	list, err := Parse(raw)
	if err != nil || len(list) != 1 {
		t.Fatalf("%d tokens, %v", len(list), err)
	}
	payload := payloadOf(list[0])
	var claims struct {
		Details []struct {
			Tools object `json:"tools"`
		} `json:"authorization_details"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	return claims.Details[0].Tools
}

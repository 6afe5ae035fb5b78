package aat

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
)

// said is a capability that a token can say, but for what is lost.
func said() capability.Rule {
	return capability.Rule{Args: capability.Args{"/path": capability.One(capability.Constraint{Exact: ptr(capability.String("/a"))})}}
}

// rootOf is a root link of the agent's key that grants one rule.
func rootOf(t testing.TB, r capability.Rule) capability.Link {
	t.Helper()
	return capability.Link{
		Tenant: "acme", Principal: "user:clerk@example.com", Agent: "spiffe://example.org/agent/acme/clerk/1",
		Task: &capability.Task{ID: "t-0123456789abcdefghjkmnpqrs", Purpose: "test"}, Audience: testAudience,
		Issued: capability.InstantOf(testNow), NotBefore: capability.InstantOf(testNow), Expires: capability.InstantOf(testNow.Add(10 * time.Minute)),
		Depth: capability.Depth(3), Holder: capability.HeldBy(keyFor(t, gateAgent)),
		Grants:  capability.Grants{vault.KindTool: {theTool: r}},
		Budgets: &capability.Budgets{Calls: capability.Limit(3)},
	}
}

func mintLink(t testing.TB, l capability.Link) capability.Chain {
	t.Helper()
	c, err := capability.Mint(l, capability.Signer{Key: gateIssuer, KID: "k1"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestExportRefuses lists all that a token cannot say. Nothing of it is dropped unless
// the exporter was told to, and some not even then.
func TestExportRefuses(t *testing.T) {
	with := func(edit func(*capability.Link)) capability.Link {
		l := rootOf(t, said())
		edit(&l)
		return l
	}
	rule := func(edit func(*capability.Rule)) capability.Link {
		r := said()
		edit(&r)
		return rootOf(t, r)
	}
	arg := func(c ...capability.Constraint) capability.Link {
		return rootOf(t, capability.Rule{Args: capability.Args{"/a": capability.One(c...)}})
	}
	for _, tt := range []struct {
		name string
		link capability.Link
		want string // of what is missing
		lose string // makes it possible; "" is not possible
	}{
		{"a budget of the link", rootOf(t, said()), "budgets: link 0 counts", LoseBudgets},
		{"a budget of the rule", rule(func(r *capability.Rule) { r.Budgets = &capability.Budgets{Calls: capability.Limit(1)} }), "budgets: link 0 counts calls of up.t", LoseBudgets},
		{"labels", rootOf(t, said()), "labels: link 0", LoseLabels},
		{"a grade", with(func(l *capability.Link) { l.MinGrade = vault.GradeB }), "sandbox: link 0", LoseSandbox},
		{"a pinned definition", rule(func(r *capability.Rule) { r.Definition = vault.Digest{1} }), "pins: the definition of up.t", LosePins},
		{"an approval", rule(func(r *capability.Rule) { r.Ask = []string{"finance"} }), "approval of up.t by finance", ""},
		{"a third party", with(func(l *capability.Link) {
			l.ThirdParty = []capability.ThirdParty{{Group: "board", Audience: testAudience}}
		}), "approval of every call by board", ""},
		{"a caveat", with(func(l *capability.Link) { l.Caveats = []string{"now < 5"} }), "caveat now < 5", ""},
		{"a signature per call", with(func(l *capability.Link) { l.SignAt = "high" }), "a signature per call", ""},
		{"a begin", with(func(l *capability.Link) { l.NotBefore += 60_000 }), "a begin in the future", ""},
		{"a holder without a key", with(func(l *capability.Link) { l.Holder = capability.HeldByUID(7) }), "a holder without a key: uid 7", ""},
		{"a bearer", with(func(l *capability.Link) { l.Holder = &capability.Holder{Bearer: true} }), "a holder without a key: bearer", ""},
		{"egress", with(func(l *capability.Link) {
			l.Grants[vault.KindEgress] = map[vault.Target]capability.Rule{{Name: "api.example"}: {Any: true}}
		}), "grants of kind egress", ""},
		{"every tool", with(func(l *capability.Link) {
			l.Grants[vault.KindTool][vault.Target{Server: toolServer, Name: "*"}] = capability.Rule{Any: true}
		}), "every tool of up", ""},
		{"a server without a name", with(func(l *capability.Link) {
			l.Grants[vault.KindTool][vault.Target{Server: vault.ServerID{9}, Name: "x"}] = capability.Rule{Any: true}
		}), "a server whose name is not known", ""},
		{"any scalar", arg(), "any scalar", ""},
		{"a path", arg(capability.Constraint{SubPath: ptr("/srv")}), "the constraint subpath", ""},
		{"one of several constraints", arg(capability.Constraint{OneOf: []capability.Scalar{capability.Int(1)}}, capability.Constraint{CEL: ptr("this < 5")}), "the constraint cel", ""},
		{"a decimal", arg(capability.Constraint{Decimal: &capability.DecimalRange{Max: 1}}), "the constraint decimal", ""},
		{"many integers", arg(capability.Constraint{Int: &capability.IntRange{Max: 256}}), "passes fractions", ""},
		{"all integers", arg(capability.Constraint{Int: &capability.IntRange{Min: -1 << 63, Max: 1<<63 - 1}}), "passes fractions", ""},
		{"not one of", arg(capability.Constraint{NotOneOf: []capability.Scalar{capability.Int(1)}}), "the constraint not_one_of", ""},
		{"each once", arg(capability.Constraint{Subset: []capability.Scalar{capability.Int(1)}}), "the constraint subset", ""},
		{"an argument inside another", rootOf(t, capability.Rule{Args: capability.Args{"/a/b": capability.One(capability.Constraint{Exact: ptr(capability.Int(1))})}}), "the argument /a/b", ""},
		{"an argument called *", rootOf(t, capability.Rule{Args: capability.Args{"/*": capability.One(capability.Constraint{Exact: ptr(capability.Int(1))})}}), "the argument /*", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := mintLink(t, tt.link)
			x := exporter(t)
			x.Lose = slices.DeleteFunc(slices.Clone(Losses), func(l string) bool { return l == tt.lose })
			_, err := Export(c, x)
			var missing *MissingError
			if !errors.As(err, &missing) || len(missing.Missing) == 0 || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if tt.lose == "" {
				return
			}
			x.Lose = Losses
			if _, err := Export(c, x); err != nil {
				t.Errorf("told to lose all that can be lost: %v", err)
			}
		})
	}
	// All is listed at once, not the first of it.
	l := rootOf(t, capability.Rule{Args: capability.Args{"/a": {}}, Ask: []string{"finance"}})
	x := exporter(t)
	x.Lose = nil
	var missing *MissingError
	if _, err := Export(mintLink(t, l), x); !errors.As(err, &missing) || len(missing.Missing) != 4 {
		t.Errorf("%v", err)
	}
}

// TestExportSays holds what an exported token says beside its tools.
func TestExportSays(t *testing.T) {
	l := rootOf(t, said())
	l.Grants[vault.KindTool][vault.Target{Server: toolServer, Name: "wide"}] = capability.Rule{Args: capability.Args{"/n": {}}}
	l.Grants[vault.KindTool][vault.Target{Server: toolServer, Name: "none"}] = capability.Rule{Args: capability.Args{}}
	c := mintLink(t, l)
	x := exporter(t)
	x.Only = []string{"up.t", "up.none"}
	raw, err := Export(c, x)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := Verify(raw, testConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	if got := chain.Tools(); !slices.Equal(got, []string{"up.none", "up.t"}) {
		t.Errorf("tools %v", got)
	}
	// The capability's own end comes before the default life.
	if !chain.Expires().Equal(testNow.Add(10*time.Minute)) || chain.Depth() != 3 || chain.Issuer() != testIssuer || chain.ID() == "" {
		t.Errorf("until %v, depth %d, issuer %s, id %q", chain.Expires(), chain.Depth(), chain.Issuer(), chain.ID())
	}
	for _, args := range []object{{"x": 1.0}, {"no arguments": true}, {"no arguments": false}} {
		if allows(toolsOf(t, raw), "up.none", args) {
			t.Errorf("a tool without arguments takes %v", args)
		}
	}
	if !allows(toolsOf(t, raw), "up.none", object{}) {
		t.Error("a tool without arguments takes none")
	}

	// It is for the gateway that the capability is for, unless somebody says otherwise.
	conf := testConfig(t)
	conf.Audience = "cluster-2"
	if _, err := Verify(raw, conf); err == nil {
		t.Error("another gateway takes it")
	}
	x.Audience, x.Key, x.Life = "cluster-2", seededP256(t, "issuer"), time.Minute
	if raw, err = Export(c, x); err != nil {
		t.Fatal(err)
	}
	if chain, err := Verify(raw, conf); err != nil || !chain.Expires().Equal(testNow.Add(time.Minute)) {
		t.Errorf("%v", err)
	}

	// Links that say who may come after them cannot be said: nobody may.
	l.DelegateKeys = []vault.Digest{{1}}
	if raw, err = Export(mintLink(t, l), x); err != nil {
		t.Fatal(err)
	}
	if chain, err := Verify(raw, conf); err != nil || chain.Depth() != 0 {
		t.Errorf("depth %v, %v", chain, err)
	}
}

// TestExportOfLinks: an argument is let through if every link names it, and required if
// one requires it.
func TestExportOfLinks(t *testing.T) {
	value := func(optional bool) capability.Arg {
		return capability.Arg{Optional: optional, All: []capability.Constraint{{OneOf: []capability.Scalar{capability.String("a"), capability.Int(1)}}}}
	}
	rule := func(args capability.Args) capability.Rule { return capability.Rule{Args: args} }
	for _, tt := range []struct {
		name          string
		root, child   capability.Rule
		allow, refuse []object
	}{
		{"a required argument that a link makes optional", rule(capability.Args{"/a": value(false)}), rule(capability.Args{"/a": value(true)}), []object{{"a": "a"}}, []object{{}}},
		{"an optional argument that a link requires", rule(capability.Args{"/a": value(true)}), rule(capability.Args{"/a": value(false)}), []object{{"a": 1.0}}, []object{{}}},
		{"an optional argument that a link leaves out", rule(capability.Args{"/a": value(true), "/b": value(false)}), rule(capability.Args{"/b": value(true)}), []object{{"b": "a"}}, []object{{"a": "a", "b": "a"}, {}}},
		{"arguments that a link is the first to name", capability.Rule{Any: true}, rule(capability.Args{"/a": value(false)}), []object{{"a": "a"}}, []object{{"a": "b"}, {"a": "a", "b": "a"}}},
		{"a link that inherits", rule(capability.Args{"/a": value(false)}), capability.Rule{}, []object{{"a": "a"}}, []object{{"a": "b"}, {}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := newGate(t).mint(tt.root, tt.child)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := Export(c, exporter(t))
			if err != nil {
				t.Fatal(err)
			}
			for _, args := range tt.allow {
				if !allows(toolsOf(t, raw), "up.t", args) {
					t.Errorf("%v is refused by %s", args, jcs(toolsOf(t, raw)))
				}
			}
			for _, args := range tt.refuse {
				if allows(toolsOf(t, raw), "up.t", args) {
					t.Errorf("%v is allowed by %s", args, jcs(toolsOf(t, raw)))
				}
			}
		})
	}
	// Required by one and refused by another: no call passes, and the tool is gone.
	c, err := newGate(t).mint(rule(capability.Args{"/a": value(false)}), rule(capability.Args{"/b": value(false)}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Export(c, exporter(t)); err == nil || !strings.Contains(err.Error(), "nothing is left") {
		t.Errorf("%v", err)
	}
}

// TestExporterRefuses lists what an exporter is not used for.
func TestExporterRefuses(t *testing.T) {
	c := mintLink(t, rootOf(t, said()))
	for _, tt := range []struct {
		name, want string
		edit       func(*Exporter)
	}{
		{"no issuer", "want a URI", func(x *Exporter) { x.Issuer = "" }},
		{"an issuer that is no URI", "want a URI", func(x *Exporter) { x.Issuer = "auth.example.com" }},
		{"an issuer that looks like a holder", "want a URI", func(x *Exporter) { x.Issuer = thumbprint(keyFor(t, gateAgent)) }},
		{"an unknown loss", "cannot be lost", func(x *Exporter) { x.Lose = []string{"approvals"} }},
		{"no key", "no key", func(x *Exporter) { x.Key = nil }},
		{"a tool that is not there", "names no such tool", func(x *Exporter) { x.Only = []string{"up.t", "up.delete"} }},
		{"an expired capability", "expired", func(x *Exporter) { x.Now = testNow.Add(time.Hour) }},
		{"a life that is over", "expired", func(x *Exporter) { x.Life = -time.Minute }},
	} {
		x := exporter(t)
		tt.edit(&x)
		if _, err := Export(c, x); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	if _, err := Export(capability.Chain{}, exporter(t)); err == nil {
		t.Error("no capability")
	}
	closed := rootOf(t, said())
	closed.Grants = capability.Grants{}
	if _, err := Export(mintLink(t, closed), exporter(t)); err == nil || !strings.Contains(err.Error(), "nothing is left") {
		t.Errorf("a capability that grants nothing: %v", err)
	}
}

package capability

import (
	"bytes"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/pilox/vault"
)

// drawConstraint draws a constraint that some of drawValue's values pass.
func drawConstraint(t *rapid.T) Constraint {
	word := rapid.SampledFrom([]string{"a", "b", "/srv", "/srv/a", "x@a.example", "https://a.example/v1", "a.example"})
	switch rapid.IntRange(0, 17).Draw(t, "constraint") {
	case 0:
		return Constraint{Exact: ptr(String(word.Draw(t, "exact")))}
	case 1:
		return Constraint{OneOf: []Scalar{String(word.Draw(t, "first")), Int(3), Bool(true)}}
	case 2:
		lo := rapid.Int64Range(0, 4).Draw(t, "lo")
		return Constraint{Int: &IntRange{Min: lo, Max: lo + rapid.Int64Range(0, 4).Draw(t, "span")}}
	case 3:
		return Constraint{Decimal: &DecimalRange{Min: 0, Max: Decimal(rapid.Int64Range(0, 6e6).Draw(t, "max"))}}
	case 4:
		return Constraint{Prefix: ptr(word.Draw(t, "prefix")[:1])}
	case 5:
		return Constraint{SubPath: ptr(rapid.SampledFrom([]string{"/", "/srv", "/srv/a"}).Draw(t, "subpath"))}
	case 6:
		return Constraint{Glob: ptr(rapid.SampledFrom([]string{"*", "**", "/srv/*", "?"}).Draw(t, "glob"))}
	case 7:
		return Constraint{Regex: ptr(rapid.SampledFrom([]string{".*", "[a-z]", "a|b"}).Draw(t, "regex"))}
	case 8:
		return Constraint{EmailDomain: []string{rapid.SampledFrom([]string{"a.example", "b.example"}).Draw(t, "domain")}}
	case 9:
		return Constraint{URL: &URL{Hosts: []string{"a.example"}, Path: rapid.SampledFrom([]string{"", "/v1", "/v2"}).Draw(t, "path")}}
	case 10:
		return Constraint{NotOneOf: []Scalar{String(word.Draw(t, "not")), Int(3)}}
	case 11:
		return Constraint{CIDR: []string{rapid.SampledFrom([]string{"10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32"}).Draw(t, "network")}}
	case 12:
		return Constraint{PublicURL: &PublicURL{}}
	case 13:
		return Constraint{Length: &IntRange{Min: rapid.Int64Range(0, 4).Draw(t, "least"), Max: 12}}
	case 14:
		return Constraint{CEL: ptr(rapid.SampledFrom([]string{"string", "short"}).Draw(t, "cel"))}
	case 15:
		return Constraint{Schema: ptr(rapid.SampledFrom([]string{"string", "short"}).Draw(t, "schema"))}
	}
	return Constraint{MaxLength: ptr(rapid.Int64Range(0, 12).Draw(t, "length"))}
}

func drawArg(t *rapid.T) Arg {
	a := Arg{Optional: rapid.Bool().Draw(t, "optional")}
	switch rapid.IntRange(0, 11).Draw(t, "shape") {
	case 0, 1:
		a.All = []Constraint{{Each: &Arg{All: []Constraint{drawConstraint(t)}}}, {Count: &IntRange{Min: 0, Max: rapid.Int64Range(0, 3).Draw(t, "count")}}}
		return a
	case 2:
		a.All = []Constraint{{Subset: []Scalar{String("a"), Int(3)}}}
		return a
	case 3:
		a.All = []Constraint{{Set: []Scalar{String("a"), Int(3)}}, {Contains: []Scalar{Int(3)}}}
		return a
	case 4:
		a.All = []Constraint{{Argv: &Argv{Programs: []string{"a"}, Options: []string{"-x"}, Operands: []Constraint{drawConstraint(t)}}}}
		return a
	}
	for range rapid.IntRange(0, 2).Draw(t, "constraints") {
		a.All = append(a.All, drawConstraint(t))
	}
	return a
}

func drawArgs(t *rapid.T) Args {
	args := Args{}
	for _, name := range []string{"/a", "/b", "/o/x"} {
		if rapid.IntRange(0, 3).Draw(t, name) > 0 {
			args[name] = drawArg(t)
		}
	}
	return args
}

func drawRule(t *rapid.T, root bool) Rule {
	if root && rapid.IntRange(0, 3).Draw(t, "any") == 0 {
		return Rule{Any: true}
	}
	r := Rule{}
	if root || rapid.Bool().Draw(t, "args") {
		r.Args = drawArgs(t)
	}
	if rapid.IntRange(0, 5).Draw(t, "ask") == 0 {
		r.Ask = []string{"finance"}
	}
	if rapid.IntRange(0, 5).Draw(t, "pin") == 0 {
		r.Definition = vault.Digest{byte(rapid.IntRange(1, 2).Draw(t, "definition"))}
	}
	return r
}

func drawGrants(t *rapid.T, root bool) Grants {
	g := Grants{}
	if rapid.IntRange(0, 9).Draw(t, "kind") > 0 {
		g[vault.KindTool] = map[vault.Target]Rule{}
		names := []string{"read_file", "list"}
		if root {
			names = append(names, "*")
		}
		for _, n := range names {
			if rapid.IntRange(0, 3).Draw(t, n) > 0 {
				g[vault.KindTool][vault.Target{Server: filesServer, Name: n}] = drawRule(t, root)
			}
		}
	}
	return g
}

// drawChild draws any link that may follow.
func drawChild(t *rapid.T) Link {
	var l Link
	if rapid.Bool().Draw(t, "grants") {
		l.Grants = drawGrants(t, false)
	}
	if rapid.IntRange(0, 3).Draw(t, "budgets") == 0 {
		l.Budgets = &Budgets{Calls: Limit(rapid.Int64Range(0, 5).Draw(t, "calls"))}
	}
	if rapid.IntRange(0, 5).Draw(t, "expires") == 0 {
		l.Expires = InstantOf(testStart.Add(time.Duration(rapid.IntRange(1, 120).Draw(t, "minutes")) * time.Minute))
	}
	if rapid.IntRange(0, 5).Draw(t, "caveats") == 0 {
		l.Caveats = []string{rapid.SampledFrom([]string{"yes", "no", "read"}).Draw(t, "caveat")}
	}
	if rapid.IntRange(0, 5).Draw(t, "third party") == 0 {
		l.ThirdParty = []ThirdParty{{Group: "legal", Audience: testAudience}}
	}
	if rapid.IntRange(0, 5).Draw(t, "sign") == 0 {
		l.SignAt = rapid.SampledFrom([]SignAt{"low", "medium", "high"}).Draw(t, "sign at")
	}
	if rapid.IntRange(0, 3).Draw(t, "labels") == 0 {
		l.MayRead, l.MaySendTo = []string{"crm"}, []string{}
	}
	return l
}

func drawCall(t *rapid.T) *vault.Call {
	value := rapid.SampledFrom([]string{
		`"a"`, `"b"`, `"/srv/a"`, `"/etc"`, `"x@a.example"`, `"https://a.example/v1/x"`,
		`"a.example"`, `1`, `3`, `2.5`, `true`, `null`, `["x@a.example"]`, `[]`, `[3,"a"]`,
		`"10.1.2.3"`, `"2001:db8::1"`, `["a","-x"]`, `["a","b"]`, `{"x":1}`,
	})
	var b bytes.Buffer
	for _, name := range []string{"a", "b"} {
		if rapid.IntRange(0, 3).Draw(t, "has "+name) > 0 {
			b.WriteString(`,"` + name + `":` + value.Draw(t, "value of "+name))
		}
	}
	if rapid.IntRange(0, 2).Draw(t, "has o") > 0 {
		b.WriteString(`,"o":{"x":` + value.Draw(t, "value of x") + `}`)
	}
	return &vault.Call{
		ID: "c-1", Kind: vault.KindTool, Args: vault.MustArgs("{" + string(bytes.TrimPrefix(b.Bytes(), []byte(","))) + "}"),
		Target: vault.Target{Server: filesServer, Name: rapid.SampledFrom([]string{"read_file", "list", "write"}).Draw(t, "name")},
	}
}

// TestLongerChainsAllowLess is the promise of the package: what chain + link
// allows, chain allows, and it costs at least as much and asks at least as many.
func TestLongerChainsAllowLess(t *testing.T) {
	w := newWorld(t)
	w.cfg.Engines = &testEngines
	v := w.verifier()
	compile := func(t *rapid.T, c Chain) *authority {
		a, err := v.trust.compile(c.raw)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	allowed := 0
	rapid.Check(t, func(t *rapid.T) {
		l := w.root(Rule{})
		l.Grants, l.MayRead, l.MaySendTo = drawGrants(t, true), []string{"crm", "hr"}, []string{"a.example"}
		c, err := Mint(l, Signer{Key: w.issuer, KID: "k1"})
		if err != nil {
			t.Skip("contradictory rule")
		}
		for range rapid.IntRange(1, 3).Draw(t, "links") {
			longer, err := Attenuate(c, drawChild(t), Signer{Key: w.agent})
			if err != nil {
				t.Skip("contradictory rule")
			}
			short, long := compile(t, c), compile(t, longer)
			if long.expires.After(short.expires) {
				t.Fatal("the longer chain lives longer")
			}
			for range 8 {
				call := drawCall(t)
				g, denial := long.authorise(call, testStart)
				if denial != nil {
					continue
				}
				allowed++
				parent, denial := short.authorise(call, testStart)
				switch {
				case denial != nil:
					t.Fatalf("%s %s: the longer chain allows what the shorter one refuses: %v", call.Target.Name, call.Args, denial)
				case g.AnyArgs && !parent.AnyArgs:
					t.Fatal("arguments became open")
				case parent.MustSign && (!g.MustSign || !parent.SignAt.AtLeast(g.SignAt)):
					t.Fatalf("a signature is no longer demanded: %v at %v, then %v at %v", parent.MustSign, parent.SignAt, g.MustSign, g.SignAt)
				case !parent.Definition.IsZero() && g.Definition != parent.Definition:
					t.Fatal("a pin went")
				}
				for _, d := range parent.Debits {
					if !slices.Contains(g.Debits, d) {
						t.Fatalf("the debit %v went", d)
					}
				}
				for _, group := range parent.Ask {
					if !slices.Contains(g.Ask, group) {
						t.Fatalf("the group %s is no longer asked", group)
					}
				}
				for _, reader := range slices.Concat(g.MayRead, g.MaySendTo) {
					if !slices.Contains(slices.Concat(parent.MayRead, parent.MaySendTo), reader) {
						t.Fatalf("clearance for %s was added", reader)
					}
				}
			}
			c = longer
		}
	})
	if allowed == 0 {
		t.Error("no call was allowed: the test shows nothing")
	}
}

// TestEncodingIsDeterministic holds parse and encode of random chains together.
func TestEncodingIsDeterministic(t *testing.T) {
	w := newWorld(t)
	rapid.Check(t, func(t *rapid.T) {
		l := w.root(Rule{})
		l.Grants = drawGrants(t, true)
		c, err := Mint(l, Signer{Key: w.issuer, KID: "k1"})
		if err != nil {
			t.Skip("contradictory rule")
		}
		again, err := Parse(c.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		payload, err := det.enc.Marshal(&again.links[0].Link)
		if err != nil || !bytes.Equal(payload, c.links[0].payload) {
			t.Fatalf("encodes to other bytes: %v", err)
		}
		text, err := ParseText(c.Text())
		if err != nil || !bytes.Equal(text.raw, c.raw) {
			t.Fatalf("text form: %v", err)
		}
		if _, err := json.Marshal(Inspect(c)); err != nil {
			t.Fatal(err)
		}
	})
}

package capability

import (
	"crypto/ed25519"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/pilox/vault"
)

// testEngines know a handful of words instead of CEL and JSON Schema.
var testEngines = Engines{
	Caveat: func(text string) (func(*vault.Call, time.Time) (bool, error), error) {
		switch text {
		case "yes", "no":
			return func(*vault.Call, time.Time) (bool, error) { return text == "yes", nil }, nil
		case "read":
			return func(c *vault.Call, _ time.Time) (bool, error) { return c.Target.Name == "read_file", nil }, nil
		case "before noon":
			return func(_ *vault.Call, now time.Time) (bool, error) { return now.Hour() < 12, nil }, nil
		case "fails":
			return func(*vault.Call, time.Time) (bool, error) { return true, errors.New("no such member") }, nil
		}
		return nil, errors.New("unknown word")
	},
	Value:  testWord,
	Schema: testWord,
}

func testWord(text string) (func(vault.Value) (bool, error), error) {
	switch text {
	case "string":
		return func(v vault.Value) (bool, error) { return v.Kind() == vault.String, nil }, nil
	case "object":
		return func(v vault.Value) (bool, error) { return v.Kind() == vault.Object, nil }, nil
	case "short":
		return func(v vault.Value) (bool, error) { return len(v.Raw()) < 10, nil }, nil
	case "fails":
		return func(vault.Value) (bool, error) { return true, errors.New("too expensive") }, nil
	}
	return nil, errors.New("unknown word")
}

// TestCaveats reads as the specification of caveats: what each link demands, and
// what a call that its arguments would allow comes to.
func TestCaveats(t *testing.T) {
	const refused = vault.CodeCapabilityCaveat
	for _, tt := range []struct {
		name        string
		root, child []string
		engines     *Engines
		want        vault.Code
	}{
		{"none", nil, nil, nil, ""},
		{"one that holds", []string{"read"}, nil, &testEngines, ""},
		{"one that does not", []string{"no"}, nil, &testEngines, refused},
		{"one of two", []string{"yes", "no"}, nil, &testEngines, refused},
		{"one of a child", []string{"yes"}, []string{"no"}, &testEngines, refused},
		{"a child cannot lift its parent's", []string{"no"}, []string{"yes"}, &testEngines, refused},
		{"one that fails, whatever it answers", []string{"fails"}, nil, &testEngines, refused},
		{"one that does not compile", []string{"???"}, nil, &testEngines, refused},
		{"one about the time", []string{"before noon"}, nil, &testEngines, refused},
		{"one that nobody can evaluate", []string{"yes"}, nil, nil, refused},
		{"one of a child that nobody can evaluate", nil, []string{"yes"}, &Engines{}, refused},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.cfg.Engines = tt.engines
			l := w.root(Rule{Any: true})
			l.Caveats = tt.root
			c := w.attenuate(w.mint(l), Link{Caveats: tt.child}, w.agent)
			v := w.verifier()
			_, err := w.verify(v, c, w.agent, newCall(`{"path":"/a"}`))
			if got := code(err); got != tt.want {
				t.Errorf("got %q (%v), want %q", got, err, tt.want)
			}
		})
	}
}

// A constraint that no engine evaluates refuses its target and nothing else.
func TestConstraintWithoutEngine(t *testing.T) {
	w := newWorld(t)
	l := w.root(arg("/s", Constraint{CEL: ptr("short")}))
	list := vault.Target{Server: filesServer, Name: "list"}
	l.Grants[vault.KindTool][list] = Rule{Args: Args{}}
	v, c := w.verifier(), w.mint(l)
	if _, err := w.verify(v, c, w.agent, newCall(`{"s":"a"}`)); code(err) != vault.CodeCapabilityCaveat {
		t.Errorf("got %v", err)
	}
	call := newCall(`{}`)
	call.Target = list
	if _, err := w.verify(v, c, w.agent, call); err != nil {
		t.Error(err)
	}
}

func TestThirdParties(t *testing.T) {
	w := newWorld(t)
	l := w.root(Rule{Any: true, Ask: []string{"finance"}})
	l.ThirdParty = []ThirdParty{{Group: "legal", Audience: testAudience}}
	v := w.verifier()
	c := w.mint(l)
	g, err := w.verify(v, c, w.agent, newCall(`{"path":"/a"}`))
	if err != nil || !slices.Equal(g.Ask, []string{"finance", "legal"}) {
		t.Errorf("asks %v, %v", g.Ask, err)
	}
	c = w.attenuate(c, Link{ThirdParty: []ThirdParty{{Group: "security", Audience: testAudience}}}, w.agent)
	g, err = w.verify(v, c, w.agent, newCall(`{"path":"/a"}`))
	if err != nil || !slices.Equal(g.Ask, []string{"finance", "legal", "security"}) {
		t.Errorf("asks %v, %v", g.Ask, err)
	}
	c = w.attenuate(c, Link{ThirdParty: []ThirdParty{{Group: "legal", Audience: "cluster-2"}}}, w.agent)
	if _, err = w.verify(v, c, w.agent, newCall(`{"path":"/a"}`)); code(err) != vault.CodeCapabilityCaveat {
		t.Errorf("a group that answers to another gateway: %v", err)
	}
}

// The strictest demand of a chain counts, in whatever order it stands.
func TestSignAt(t *testing.T) {
	w := newWorld(t)
	for _, tt := range []struct {
		links []SignAt
		must  bool
		at    vault.Risk
	}{
		{[]SignAt{"", ""}, false, 0},
		{[]SignAt{"high", ""}, true, vault.RiskHigh},
		{[]SignAt{"high", "low"}, true, vault.RiskLow},
		{[]SignAt{"low", "high"}, true, vault.RiskLow},
		{[]SignAt{"", "medium"}, true, vault.RiskMedium},
	} {
		l := w.root(Rule{Any: true})
		l.SignAt = tt.links[0]
		c := w.attenuate(w.mint(l), Link{SignAt: tt.links[1]}, w.agent)
		v := w.verifier()
		g, err := w.verify(v, c, w.agent, newCall(`{"path":"/a"}`))
		if err != nil || g.MustSign != tt.must || g.SignAt != tt.at {
			t.Errorf("%q: must %v at %v, %v", tt.links, g.MustSign, g.SignAt, err)
		}
	}
}

func TestDelegateKeys(t *testing.T) {
	w := newWorld(t)
	friend, stranger := seeded("friend"), seeded("stranger")
	l := w.root(Rule{Any: true})
	l.DelegateKeys = []vault.Digest{keyOf(t, friend).Thumbprint()}
	root := w.mint(l)
	bind := func(c Chain, to, by ed25519.PrivateKey) (Chain, error) {
		return Attenuate(c, Link{Holder: HeldBy(keyOf(t, to))}, Signer{Key: by})
	}
	c, err := bind(root, friend, w.agent)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bind(root, stranger, w.agent); err == nil {
		t.Error("bound to a key that is not on the list")
	}
	if _, err := bind(c, stranger, friend); err == nil {
		t.Error("bound to a key that an earlier link does not list")
	}
}

// Budgets whose amount the gateway finds out are counters of the link, with
// nothing taken yet.
func TestBudgetsOfTheGateway(t *testing.T) {
	w := newWorld(t)
	l := w.root(Rule{Any: true})
	l.Budgets = &Budgets{Calls: Limit(5), Recipients: Limit(3), Hosts: Limit(2), Wall: Limit(60_000)}
	v, c := w.verifier(), w.mint(l)
	g, err := w.verify(v, c, w.agent, newCall(`{"path":"/a"}`))
	if err != nil {
		t.Fatal(err)
	}
	id := c.IDs()[0].String()
	for _, d := range []vault.Debit{
		{Counter: id + "/calls", Amount: 1, Limit: 5, Unit: "calls", Kept: true},
		{Counter: id + "/recipients", Limit: 3, Unit: vault.UnitRecipients},
		{Counter: id + "/hosts", Limit: 2, Unit: vault.UnitHosts},
		{Counter: id + "/ms", Limit: 60_000, Unit: vault.UnitWall},
	} {
		if !slices.Contains(g.Debits, d) {
			t.Errorf("no debit %v in %v", d, g.Debits)
		}
	}
}

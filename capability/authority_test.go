package capability

import (
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/pilox/vault"
)

// TestChild reads as the rules for a further link: what it may say, and what a
// call then meets. The root allows read_file with path and mode.
func TestChild(t *testing.T) {
	base := Rule{Args: Args{"/path": One(Constraint{SubPath: ptr("/srv")}), "/mode": {Optional: true}}}
	args := func(a Args) Link { return Link{Grants: Grants{vault.KindTool: {readFile: {Args: a}}}} }
	for _, tt := range []struct {
		name   string
		root   func(*Link)
		child  Link
		refuse bool // nobody can sign it
		call   string
		want   vault.Code
	}{
		{name: "an empty child changes nothing", call: `{"path":"/srv/a","mode":1}`},
		{name: "no grants inherit", child: Link{Expires: InstantOf(testStart.Add(time.Minute))}, call: `{"path":"/srv/a"}`},
		{name: "empty grants allow nothing", child: Link{Grants: Grants{}}, call: `{"path":"/srv/a"}`, want: vault.CodeCapabilityTarget},
		{name: "an empty kind allows nothing", child: Link{Grants: Grants{vault.KindTool: {}}}, call: `{"path":"/srv/a"}`, want: vault.CodeCapabilityTarget},
		{name: "a rule without args inherits them", child: Link{Grants: Grants{vault.KindTool: {readFile: {}}}}, call: `{"path":"/srv/a"}`},
		{name: "args that are empty allow none", child: args(Args{}), call: `{"path":"/srv/a"}`, want: vault.CodeCapabilityArgument},
		{name: "a tighter argument lets the narrower value through", child: args(Args{"/path": One(Constraint{SubPath: ptr("/srv/a")})}), call: `{"path":"/srv/a/b"}`},
		{name: "a tighter argument refuses the wider value", child: args(Args{"/path": One(Constraint{SubPath: ptr("/srv/a")})}), call: `{"path":"/srv/b"}`, want: vault.CodeCapabilityArgument},
		{name: "a wider argument widens nothing", child: args(Args{"/path": One(Constraint{SubPath: ptr("/")})}), call: `{"path":"/etc/passwd"}`, want: vault.CodeCapabilityArgument},
		{name: "an argument that the child leaves out is refused", child: args(Args{"/path": {}}), call: `{"path":"/srv/a","mode":1}`, want: vault.CodeCapabilityArgument},
		{name: "an argument that the child adds is refused", child: args(Args{"/path": {}, "/new": {Optional: true}}), call: `{"path":"/srv/a","new":1}`, want: vault.CodeCapabilityArgument},
		{name: "a child makes an optional argument required", child: args(Args{"/path": {}, "/mode": {}}), call: `{"path":"/srv/a"}`, want: vault.CodeCapabilityArgument},
		{name: "a child cannot make a required argument optional", child: args(Args{"/path": {Optional: true}}), call: `{}`, want: vault.CodeCapabilityArgument},
		{name: "a target that the root lacks is not added", child: Link{Grants: Grants{vault.KindTool: {transfer: {}}}}, call: `{"path":"/srv/a"}`, want: vault.CodeCapabilityTarget},
		{name: "a pin", child: Link{Grants: Grants{vault.KindTool: {readFile: {Definition: vault.Digest{1}}}}}, call: `{"path":"/srv/a"}`},
		{name: "another pin than the root's", root: func(l *Link) {
			l.Grants[vault.KindTool][readFile] = Rule{Args: base.Args, Definition: vault.Digest{2}}
		}, child: Link{Grants: Grants{vault.KindTool: {readFile: {Definition: vault.Digest{1}}}}}, call: `{"path":"/srv/a"}`, want: vault.CodeCapabilityDiffers},
		{name: "a budget of nothing", child: Link{Budgets: &Budgets{Calls: Limit(0)}}, call: `{"path":"/srv/a"}`, want: vault.CodeCapabilityBudget},
		{name: "a budget of a rule", child: Link{Grants: Grants{vault.KindTool: {readFile: {Budgets: &Budgets{Calls: Limit(0)}}}}}, call: `{"path":"/srv/a"}`, want: vault.CodeCapabilityBudget},
		{name: "bytes out beyond the budget", child: Link{Budgets: &Budgets{BytesOut: Limit(10)}}, call: `{"path":"/srv/a"}`, want: vault.CodeCapabilityBudget},
		{name: "an expiry that has passed", child: Link{Expires: InstantOf(testStart)}, call: `{"path":"/srv/a"}`, want: vault.CodeCapabilityExpired},
		{name: "an expiry later than the root's does not prolong", child: Link{Expires: InstantOf(testStart.Add(48 * time.Hour))}, call: `{"path":"/srv/a"}`},
		{name: "open arguments", child: Link{Grants: Grants{vault.KindTool: {readFile: {Any: true}}}}, refuse: true},
		{name: "every name of a server", child: Link{Grants: Grants{vault.KindTool: {{Server: filesServer, Name: "*"}: {}}}}, refuse: true},
		{name: "a tenant", child: Link{Tenant: testTenant}, refuse: true},
		{name: "a principal", child: Link{Principal: "user:x"}, refuse: true},
		{name: "a task", child: Link{Task: &Task{ID: testTask}}, refuse: true},
		{name: "an audience", child: Link{Audience: testAudience}, refuse: true},
		{name: "a not-before", child: Link{NotBefore: 1}, refuse: true},
		{name: "an issue time", child: Link{Issued: 1}, refuse: true},
		{name: "budgets without a counter", child: Link{Budgets: &Budgets{}}, refuse: true},
		{name: "a delegate that nobody allowed", child: Link{Agent: testMailer}, refuse: true},
		{name: "a delegate", root: func(l *Link) { l.Delegates = []vault.AgentID{testMailer} }, child: Link{Agent: testMailer}, call: `{"path":"/srv/a"}`},
		{name: "another delegate", root: func(l *Link) { l.Delegates = []vault.AgentID{testMailer} }, child: Link{Agent: testMailer + "/x"}, refuse: true},
		{name: "deeper than allowed", root: func(l *Link) { l.Depth = Depth(0) }, refuse: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			l := w.root(base)
			if tt.root != nil {
				tt.root(&l)
			}
			c, err := Attenuate(w.mint(l), tt.child, Signer{Key: w.agent})
			if tt.refuse {
				if err == nil {
					t.Fatal("signed")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			g, err := w.verify(w.verifier(), c, w.agent, newCall(tt.call))
			if code(err) != tt.want {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			if latest := testStart.Add(time.Hour); g.Expires.After(latest) {
				t.Errorf("expires %v, after the root", g.Expires)
			}
		})
	}
}

func TestDepthCountsDown(t *testing.T) {
	w := newWorld(t)
	l := w.root(Rule{Any: true})
	l.Depth = Depth(15)
	c := w.mint(l)
	for range 15 {
		c = w.attenuate(c, Link{}, w.agent)
	}
	if _, err := Attenuate(c, Link{}, Signer{Key: w.agent}); err == nil {
		t.Error("a seventeenth link")
	}
	c = w.attenuate(w.mint(l), Link{Depth: Depth(1)}, w.agent)
	c = w.attenuate(c, Link{Depth: Depth(15)}, w.agent)
	if _, err := Attenuate(c, Link{}, Signer{Key: w.agent}); err == nil {
		t.Error("a child raised the depth")
	}
}

// A delegate holds the longer chain with a key of its own; the parent's key proves
// nothing for it, and no key but the parent's extends the parent.
func TestDelegationToAnotherKey(t *testing.T) {
	w := newWorld(t)
	mailer := seeded("mailer")
	l := w.root(Rule{Any: true})
	l.Delegates = []vault.AgentID{testMailer}
	parent := w.mint(l)
	if _, err := Attenuate(parent, Link{}, Signer{Key: mailer}); err == nil {
		t.Error("a stranger extended the chain")
	}
	c := w.attenuate(parent, Link{Agent: testMailer, Holder: HeldBy(keyOf(t, mailer))}, w.agent)
	v := w.verifier()
	g, err := w.verify(v, c, mailer, newCall(`{}`))
	if err != nil || g.Agent != testMailer || !reflect.DeepEqual(g.Agents, []vault.AgentID{testAgent, testMailer}) {
		t.Errorf("delegate: %v, agents %v", err, g.Agents)
	}
	if want := []vault.Digest{keyOf(t, w.agent).Thumbprint(), keyOf(t, mailer).Thumbprint()}; !reflect.DeepEqual(g.Holders, want) {
		t.Errorf("holders %v, want %v", g.Holders, want)
	}
	if _, err := w.verify(v, c, w.agent, newCall(`{}`)); code(err) != vault.CodeProof {
		t.Errorf("the parent's key for the delegate's chain: %v", err)
	}
	if err := w.cfg.Revocations.Add(Revocation{Agent: testAgent}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.verify(v, c, mailer, newCall(`{}`)); code(err) != vault.CodeCapabilityRevoked {
		t.Errorf("the delegator revoked: %v", err)
	}
}

func TestWildcard(t *testing.T) {
	w := newWorld(t)
	every := vault.Target{Server: filesServer, Name: "*"}
	l := w.root(Rule{Args: Args{}})
	l.Grants[vault.KindTool][every] = Rule{Any: true}
	c, v := w.mint(l), w.verifier()
	call := newCall(`{"a":1}`)
	call.Target.Name = "list"
	if _, err := w.verify(v, c, w.agent, call); err != nil {
		t.Errorf("any name: %v", err)
	}
	if _, err := w.verify(v, c, w.agent, newCall(`{"a":1}`)); code(err) != vault.CodeCapabilityArgument {
		t.Errorf("the exact name comes first: %v", err)
	}
	call.Target.Server = payServer
	if _, err := w.verify(v, c, w.agent, call); code(err) != vault.CodeCapabilityTarget {
		t.Errorf("another server: %v", err)
	}
	child := w.attenuate(c, Link{Grants: Grants{vault.KindTool: {{Server: filesServer, Name: "list"}: {Args: Args{"/a": {}}}}}}, w.agent)
	call.Target.Server = filesServer
	if g, err := w.verify(v, child, w.agent, call); err != nil || g.AnyArgs {
		t.Errorf("a child that names the arguments: %v, any %v", err, g.AnyArgs)
	}
}

// TestGrant holds everything a grant says against one chain that says everything.
func TestGrant(t *testing.T) {
	w := newWorld(t)
	mailer := seeded("mailer")
	l := w.root(Rule{
		Args: Args{
			"/to":       One(Constraint{OneOf: []Scalar{String("DE1"), String("DE2")}}),
			"/amount":   One(Constraint{Decimal: &DecimalRange{Min: 0, Max: 1000e6}}),
			"/currency": One(Constraint{Exact: ptr(String("EUR"))}),
			"/notify":   {Optional: true, All: []Constraint{{Each: &Arg{All: []Constraint{{EmailDomain: []string{"a.example"}}}}}}},
			"/note":     {Optional: true, All: []Constraint{{MaxLength: ptr(int64(20))}}},
		},
		Ask: []string{"finance"}, Definition: vault.Digest{7},
		Budgets: &Budgets{Calls: Limit(9), Sums: []Sum{{Arg: "/amount", Unit: "units", Limit: 5e9}}},
	})
	l.Grants = Grants{vault.KindTool: {transfer: l.Grants[vault.KindTool][readFile]}}
	l.Budgets.Sums = []Sum{
		{Kind: vault.KindTool, Server: payServer, Name: "transfer", Arg: "/amount", UnitArg: "/currency", Unit: "EUR", Limit: 2000e6},
		{Kind: vault.KindTool, Server: payServer, Name: "other", Arg: "/amount", Unit: "EUR", Limit: 1},
	}
	l.MayRead, l.MaySendTo, l.MinGrade = []string{"finance", "crm"}, []string{"a.example"}, vault.GradeD
	l.Delegates = []vault.AgentID{testMailer}
	c := w.attenuate(w.mint(l), Link{
		Agent: testMailer, Holder: HeldBy(keyOf(t, mailer)), MayRead: []string{"crm", "hr"}, MaySendTo: []string{}, MinGrade: vault.GradeB,
		Expires: InstantOf(testStart.Add(10 * time.Minute)),
		Grants: Grants{vault.KindTool: {transfer: {Ask: []string{"board", "finance"}, Args: Args{
			"/to": One(Constraint{Exact: ptr(String("DE2"))}), "/amount": {}, "/currency": {},
		}}}},
		Budgets: &Budgets{Calls: Limit(3), BytesOut: Limit(1000)},
	}, w.agent)

	call := newCall(`{"to":"DE2","amount":12.5,"currency":"EUR"}`)
	call.Target = transfer
	g, err := w.verify(w.verifier(), c, mailer, call)
	if err != nil {
		t.Fatal(err)
	}
	root, child := g.Links[0].String(), g.Links[1].String()
	what := vault.Hash("rule", []byte("tool"), payServer[:], []byte("transfer"))
	rule := fmt.Sprintf("%s/rule/%x", root, what[:16])
	want := vault.Grant{
		Chain: c.Digest(), Leaf: c.IDs()[1], Links: c.IDs(), Issuer: "k1", Issued: testStart,
		Tenant: testTenant, Task: testTask, Agent: testMailer, Agents: []vault.AgentID{testAgent, testMailer},
		Principal: "user:clerk@example.com", Purpose: "test", Inputs: "please",
		Expires: testStart.Add(10 * time.Minute), Proof: vault.ProofSignature,
		Holders:    []vault.Digest{keyOf(t, w.agent).Thumbprint(), keyOf(t, mailer).Thumbprint()},
		Definition: vault.Digest{7}, Ask: []string{"board", "finance"},
		Choices: []vault.Choice{{Path: "/currency", Fixed: true}, {Path: "/notify"}, {Path: "/to"}},
		Debits: []vault.Debit{
			{Counter: root + "/calls", Amount: 1, Limit: 50, Unit: "calls", Kept: true},
			{Counter: rule + "/calls", Amount: 1, Limit: 9, Unit: "calls", Kept: true},
			{Counter: child + "/calls", Amount: 1, Limit: 3, Unit: "calls", Kept: true},
			{Counter: root + "/sum/0", Amount: 12_500_000, Limit: 2000e6, Unit: "EUR·10^-6"},
			{Counter: rule + "/sum/0", Amount: 12_500_000, Limit: 5e9, Unit: "units·10^-6"},
			{Counter: child + "/bytes_out", Amount: int64(len(call.Args.String())), Limit: 1000, Unit: "bytes"},
		},
		MinGrade: vault.GradeB, MayRead: []string{"crm"}, MaySendTo: []string{},
	}
	if !reflect.DeepEqual(g, want) {
		t.Errorf("got  %+v\nwant %+v", g, want)
	}
}

// TestChoicesAreTheRoots: an agent that was talked into it could narrow its own
// capability to the attacker's value. That makes nobody's decision of it.
func TestChoicesAreTheRoots(t *testing.T) {
	w := newWorld(t)
	c := w.mint(w.root(Rule{Args: Args{"/to": One(Constraint{MaxLength: ptr(int64(40))}), "/unit": One(Constraint{OneOf: []Scalar{String("EUR"), String("USD")}})}}))
	c = w.attenuate(c, Link{Grants: Grants{vault.KindTool: {readFile: {Args: Args{
		"/to": One(Constraint{Exact: ptr(String("thief@evil.example"))}), "/unit": One(Constraint{Exact: ptr(String("USD"))}),
	}}}}}, w.agent)
	g, err := w.verify(w.verifier(), c, w.agent, newCall(`{"to":"thief@evil.example","unit":"USD"}`))
	if err != nil {
		t.Fatal(err)
	}
	if want := []vault.Choice{{Path: "/unit"}}; !reflect.DeepEqual(g.Choices, want) {
		t.Errorf("choices %+v, want %+v", g.Choices, want)
	}
}

// TestSum reads as the rules for budgets of amounts.
func TestSum(t *testing.T) {
	sum := Sum{Kind: vault.KindTool, Server: filesServer, Name: "read_file", Arg: "/amount", UnitArg: "/currency", Unit: "EUR", Limit: 100e6}
	for _, tt := range []struct {
		name, args string
		want       vault.Code
		path       string
		amount     int64
	}{
		{"an amount", `{"amount":99.99,"currency":"EUR"}`, "", "", 99_990_000},
		{"the limit", `{"amount":100,"currency":"EUR"}`, "", "", 100_000_000},
		{"nothing", `{"amount":0,"currency":"EUR"}`, "", "", 0},
		{"more than the limit", `{"amount":100.000001,"currency":"EUR"}`, vault.CodeCapabilityBudget, "/amount", 0},
		{"another unit", `{"amount":1,"currency":"USD"}`, vault.CodeCapabilityArgument, "/currency", 0},
		{"no unit", `{"amount":1}`, vault.CodeCapabilityArgument, "/currency", 0},
		{"no amount", `{"currency":"EUR"}`, vault.CodeCapabilityArgument, "/amount", 0},
		{"a negative amount refills nothing", `{"amount":-1,"currency":"EUR"}`, vault.CodeCapabilityArgument, "/amount", 0},
		{"an amount as text", `{"amount":"1","currency":"EUR"}`, vault.CodeCapabilityArgument, "/amount", 0},
		{"more places than are counted", `{"amount":1.0000001,"currency":"EUR"}`, vault.CodeCapabilityArgument, "/amount", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			l := w.root(Rule{Any: true})
			l.Budgets.Sums = []Sum{sum}
			g, err := w.verify(w.verifier(), w.mint(l), w.agent, newCall(tt.args))
			if code(err) != tt.want {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			if err != nil {
				if p := vault.DenialOf(err).Reason.Path; p != tt.path {
					t.Errorf("at %q, want %q", p, tt.path)
				}
				return
			}
			if d := g.Debits[1]; d.Amount != tt.amount || d.Unit != "EUR·10^-6" || d.Kept {
				t.Errorf("debit %+v", d)
			}
		})
	}
}

// What leaves with an egress call is not in its arguments, so a budget of bytes
// cannot be kept for it.
func TestBytesOutRefusesEgress(t *testing.T) {
	w := newWorld(t)
	l := w.root(Rule{})
	target := vault.Target{Name: "api.example"}
	l.Grants = Grants{vault.KindEgress: {target: {Any: true}}}
	l.Budgets.BytesOut = Limit(1 << 20)
	call := newCall(`{}`)
	call.Kind, call.Target = vault.KindEgress, target
	if _, err := w.verify(w.verifier(), w.mint(l), w.agent, call); code(err) != vault.CodeCapabilityBudget {
		t.Errorf("got %v", err)
	}
}

func TestReverifyChecksTheNewArguments(t *testing.T) {
	w := newWorld(t)
	v, c := w.verifier(), w.mint(w.root(arg("/p", Constraint{SubPath: ptr("/srv")})))
	call := newCall(`{"p":"/srv/a"}`)
	g, err := w.verify(v, c, w.agent, call)
	if err != nil {
		t.Fatal(err)
	}
	call.Args = vault.MustArgs(`{"p":"/srv/b"}`)
	again, err := v.Reverify(t.Context(), call, &g)
	if err != nil || again.Proof != vault.ProofSignature {
		t.Errorf("allowed arguments: %v", err)
	}
	clear(v.cache) // as if pushed out
	call.Args = vault.MustArgs(`{"p":"/etc"}`)
	if _, err := v.Reverify(t.Context(), call, &g); code(err) != vault.CodeCapabilityArgument {
		t.Errorf("other arguments: %v", err)
	}
	if _, err := v.Reverify(t.Context(), call, &vault.Grant{}); code(err) != vault.CodeProof {
		t.Errorf("a zero grant: %v", err)
	}
}

func TestAuthenticateAndGranted(t *testing.T) {
	w := newWorld(t)
	v, c := w.verifier(), w.mint(w.root(Rule{Any: true}))
	call := &vault.Call{ID: "list-1"}
	nonce, err := v.Nonce()
	if err != nil {
		t.Fatal(err)
	}
	if err := SignCall(call, c, w.agent, nonce); err != nil {
		t.Fatal(err)
	}
	g, err := v.Authenticate(t.Context(), call)
	if err != nil || g.Task != testTask || g.Debits != nil || g.AnyArgs {
		t.Fatalf("%v, %+v", err, g)
	}
	granted := v.Granted(call, &g)
	if !granted(vault.KindTool, readFile) || granted(vault.KindTool, transfer) || granted(vault.KindPrompt, readFile) {
		t.Error("the filter shows something else than what is granted")
	}
	if v.Granted(call, &vault.Grant{})(vault.KindTool, readFile) {
		t.Error("the zero grant sees something")
	}
	if _, err := v.Authenticate(t.Context(), call); code(err) != vault.CodeProof {
		t.Errorf("the same proof again: %v", err)
	}
}

func TestRevocationCutsCallsInFlight(t *testing.T) {
	for _, tt := range []struct {
		name string
		what func(c Chain) Revocation
		cuts bool
	}{
		{"the root link", func(c Chain) Revocation { return Revocation{Link: c.IDs()[0]} }, true},
		{"the leaf", func(c Chain) Revocation { return Revocation{Link: c.IDs()[1]} }, true},
		{"the task", func(Chain) Revocation { return Revocation{Task: testTask} }, true},
		{"the agent", func(Chain) Revocation { return Revocation{Agent: testAgent} }, true},
		{"the issuer", func(Chain) Revocation { return Revocation{Issuer: "k1"} }, true},
		{"everything", func(Chain) Revocation { return Revocation{Everything: true, At: testStart} }, true},
		{"another link", func(Chain) Revocation { return Revocation{Link: vault.Digest{1}} }, false},
		{"another agent", func(Chain) Revocation { return Revocation{Agent: testMailer} }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			v, c := w.verifier(), w.attenuate(w.mint(w.root(Rule{Any: true})), Link{}, w.agent)
			s := w.open(v, c, w.agent)
			call := newCall(`{}`)
			if err := s.Sign(call); err != nil {
				t.Fatal(err)
			}
			g, err := v.Verify(t.Context(), call)
			if err != nil {
				t.Fatal(err)
			}
			if err := v.Recheck(t.Context(), &g); err != nil {
				t.Fatal(err)
			}
			gone := v.Revoked(&g)
			if err := w.cfg.Revocations.Add(tt.what(c)); err != nil {
				t.Fatal(err)
			}
			select {
			case <-gone:
				if !tt.cuts {
					t.Error("cut")
				}
			default:
				if tt.cuts {
					t.Error("not cut")
				}
			}
			want := vault.Code("")
			if tt.cuts {
				want = vault.CodeCapabilityRevoked
			}
			if err := v.Recheck(t.Context(), &g); code(err) != want {
				t.Errorf("recheck: %v", err)
			}
			next := newCall(`{}`)
			if err := s.Sign(next); err != nil {
				t.Fatal(err)
			}
			if _, err := v.Verify(t.Context(), next); code(err) != want {
				t.Errorf("next call: %v", err)
			}
			// A daemon that starts again fills the set from the ledger.
			fresh := new(Revocations)
			for _, r := range w.cfg.Revocations.Export() {
				if err := fresh.Add(r); err != nil {
					t.Fatal(err)
				}
			}
			w.cfg.Revocations = fresh
			if _, err := w.verify(w.verifier(), c, w.agent, newCall(`{}`)); code(err) != want {
				t.Errorf("after a restart: %v", err)
			}
		})
	}
}

func TestRecheckOfWhatIsNoGrant(t *testing.T) {
	w := newWorld(t)
	v := w.verifier()
	if err := v.Recheck(t.Context(), &vault.Grant{}); err == nil {
		t.Error("the zero grant passes")
	}
	g, err := w.verify(v, w.mint(w.root(Rule{Any: true})), w.agent, newCall(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Recheck(t.Context(), &g); err != nil {
		t.Errorf("a grant: %v", err)
	}
	for name, change := range map[string]func(*vault.Grant){
		"no chain":         func(g *vault.Grant) { g.Chain = vault.Digest{} },
		"another's issuer": func(g *vault.Grant) { g.Issuer = "k2" },
	} {
		other := g
		change(&other)
		if err := v.Recheck(t.Context(), &other); code(err) != vault.CodeCapabilityMissing {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.clock = testStart.Add(time.Hour)
	if err := v.Recheck(t.Context(), &g); code(err) != vault.CodeCapabilityExpired {
		t.Errorf("expired: %v", err)
	}
	w.clock = testStart
	w.cfg.Roots[0].NotAfter = testStart.Add(time.Minute)
	v = w.verifier()
	if err := v.Recheck(t.Context(), &g); err != nil {
		t.Errorf("while the issuer is in use: %v", err)
	}
	w.clock = testStart.Add(time.Minute)
	if err := v.Recheck(t.Context(), &g); code(err) != vault.CodeCapabilityIssuer {
		t.Errorf("after the issuer was in use: %v", err)
	}
	for _, r := range []Revocation{{}, {Task: "a", Agent: "b"}, {Everything: true}} {
		if err := w.cfg.Revocations.Add(r); err == nil {
			t.Errorf("%+v was taken", r)
		}
	}
}

// A cache that is too small makes valid calls slower and refuses none, with many
// callers at once.
func TestSmallCacheUnderLoad(t *testing.T) {
	w := newWorld(t)
	w.cfg.CacheSize = 2
	w.cfg.Now = func() time.Time { return testStart }
	v := w.verifier()
	var wg sync.WaitGroup
	for i := range 4 {
		l := w.root(Rule{Any: true})
		l.Principal = fmt.Sprintf("user:%d", i)
		s := w.open(v, w.mint(l), w.agent)
		for range 2 {
			wg.Go(func() {
				for range 50 {
					call := newCall(`{"a":1}`)
					if err := s.Sign(call); err != nil {
						t.Error(err)
						return
					}
					g, err := v.Verify(t.Context(), call)
					if err != nil {
						t.Error(err)
						return
					}
					if err := v.Recheck(t.Context(), &g); err != nil {
						t.Error(err)
					}
					if !v.Granted(call, &g)(vault.KindTool, readFile) {
						t.Error("not granted")
					}
					v.Revoked(&g)
				}
			})
		}
	}
	wg.Go(func() {
		for i := range 100 {
			if err := w.cfg.Revocations.Add(Revocation{Task: vault.TaskID(fmt.Sprint("t-", i))}); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
}

func TestVerifyWarmAllocatesNothing(t *testing.T) {
	w := newWorld(t)
	v, c := w.verifier(), w.mint(w.root(benchRule))
	s := w.open(v, c, w.agent)
	calls := make([]*vault.Call, 101)
	for i := range calls {
		calls[i] = newCall(benchArgs)
		if err := s.Sign(calls[i]); err != nil {
			t.Fatal(err)
		}
	}
	i, ctx := 0, t.Context()
	if n := testing.AllocsPerRun(100, func() {
		if _, err := v.Verify(ctx, calls[i]); err != nil {
			t.Error(err)
		}
		i++
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

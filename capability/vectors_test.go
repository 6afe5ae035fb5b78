package capability

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pilox/vault"
)

// Vectors are chains for other implementations: which to accept with what
// meaning, and which to refuse with which code. UPDATE=1 rewrites the file.
type vectors struct {
	Comment  string         `json:"comment"`
	Audience string         `json:"audience"`
	Now      time.Time      `json:"now"`
	Issuers  []vectorIssuer `json:"issuers"`
	Accept   []vector       `json:"accept"`
	Refuse   []vector       `json:"refuse"`
	Proofs   []vectorProof  `json:"proofs"`
}

type vectorIssuer struct {
	KID    string       `json:"kid"`
	Key    Key          `json:"key"`
	Tenant vault.Tenant `json:"tenant"`
}

type vector struct {
	Name  string         `json:"name"`
	Token string         `json:"token"`
	IDs   []vault.Digest `json:"link_ids,omitempty"`
	Calls []vectorCall   `json:"calls,omitempty"` // holder and proof left aside
	Code  vault.Code     `json:"code,omitempty"`

	Revoked []Revocation `json:"revoked,omitempty"` // what counts as revoked
}

// A vectorProof is the proof of one call: the bytes that it covers and a signature
// over them.
type vectorProof struct {
	Name      string          `json:"name"`
	Token     string          `json:"token"` // the holder of its last link signs
	Call      string          `json:"call_id"`
	Kind      vault.Kind      `json:"kind"`
	Target    vault.Target    `json:"target"`
	Args      json.RawMessage `json:"args"`
	Session   string          `json:"sid"` // hex
	Seq       uint64          `json:"seq"`
	Nonce     string          `json:"nonce"`     // hex
	Bytes     string          `json:"bytes"`     // hex: what is signed, or MAC'd under the session's key
	Signature string          `json:"signature"` // hex
	Valid     bool            `json:"valid"`
}

type vectorCall struct {
	Kind   vault.Kind      `json:"kind"`
	Target vault.Target    `json:"target"`
	Args   json.RawMessage `json:"args"`
	Code   vault.Code      `json:"code,omitempty"` // empty: allowed
	Path   string          `json:"path,omitempty"`

	// What an allowed call costs and demands, where the vector is about it.
	Debits []vault.Debit `json:"debits,omitempty"`
	Ask    []string      `json:"ask,omitempty"`
	SignAt string        `json:"sign_at,omitempty"`
}

func makeVectors(t testing.TB) vectors {
	w := newWorld(t)
	invoices := Rule{Args: Args{"/path": One(Constraint{SubPath: ptr("/srv/invoices")}), "/head": {Optional: true, All: []Constraint{{Int: &IntRange{Min: 1, Max: 100}}}}}, Ask: []string{"finance"}}
	root := w.mint(w.root(invoices))
	tighter := w.attenuate(root, Link{
		Holder: HeldBy(keyOf(t, seeded("delegate"))), Budgets: &Budgets{Calls: Limit(3)},
		Grants: Grants{vault.KindTool: {readFile: {Args: Args{"/path": One(Constraint{Glob: ptr("/srv/invoices/*.txt")})}}}},
	}, w.agent)
	pay := w.root(Rule{})
	pay.Grants = Grants{vault.KindTool: {transfer: {Args: Args{
		"/to": One(Constraint{OneOf: []Scalar{String("DE1"), String("DE2")}}), "/amount": One(Constraint{Decimal: &DecimalRange{Min: 0, Max: 1000e6}}),
		"/currency": One(Constraint{Exact: ptr(String("EUR"))}),
	}}}}
	pay.Budgets.Sums = []Sum{{Kind: vault.KindTool, Server: payServer, Name: "transfer", Arg: "/amount", UnitArg: "/currency", Unit: "EUR", Limit: 500e6}}
	channel := w.root(Rule{Any: true})
	channel.Holder = &Holder{Channel: "sandbox-1"}

	call := func(target vault.Target, args string, code vault.Code, path string) vectorCall {
		return vectorCall{Kind: vault.KindTool, Target: target, Args: json.RawMessage(args), Code: code, Path: path}
	}
	const argument, budget = vault.CodeCapabilityArgument, vault.CodeCapabilityBudget
	out := vectors{
		Comment:  "Capability chains, format 1. Keys are throw-away ones. Check signatures, audience and time first; then calls.",
		Audience: testAudience, Now: testStart,
		Issuers: []vectorIssuer{{"k1", keyOf(t, w.issuer), testTenant}},
	}
	accept := func(name string, c Chain, calls ...vectorCall) {
		out.Accept = append(out.Accept, vector{Name: name, Token: c.Text(), IDs: c.IDs(), Calls: calls})
	}
	accept("a root", root,
		call(readFile, `{"path":"/srv/invoices/1.txt"}`, "", ""),
		call(readFile, `{"path":"/srv/invoices/1.txt","head":101}`, argument, "/head"),
		call(readFile, `{"path":"/etc/passwd"}`, argument, "/path"),
		call(readFile, `{}`, argument, "/path"),
		call(transfer, `{}`, vault.CodeCapabilityTarget, ""))
	accept("a child that tightens", tighter,
		call(readFile, `{"path":"/srv/invoices/1.txt"}`, "", ""),
		call(readFile, `{"path":"/srv/invoices/1.txt","head":1}`, argument, "/head"),
		call(readFile, `{"path":"/srv/invoices/a/1.txt"}`, argument, "/path"))
	accept("a budget of amounts", w.mint(pay),
		call(transfer, `{"to":"DE1","amount":499.99,"currency":"EUR"}`, "", ""),
		call(transfer, `{"to":"DE1","amount":500.01,"currency":"EUR"}`, budget, "/amount"),
		call(transfer, `{"to":"DE3","amount":1,"currency":"EUR"}`, argument, "/to"))
	for _, c := range constraintVectors() {
		name, rule, calls := c.make(call)
		accept(name, w.mint(w.root(rule)), calls...)
	}
	demanding := w.root(Rule{Any: true, Ask: []string{"finance"}})
	demanding.Budgets = &Budgets{Calls: Limit(5), BytesOut: Limit(1000), Recipients: Limit(3), Hosts: Limit(2), Wall: Limit(60_000)}
	demanding.ThirdParty = []ThirdParty{{Group: "legal", Audience: testAudience}}
	demanding.SignAt = "high"
	strict := w.attenuate(w.mint(demanding), Link{SignAt: "medium", Budgets: &Budgets{Calls: Limit(2)}}, w.agent)
	costly := call(readFile, `{"path":"/a"}`, "", "")
	ids := strict.IDs()
	costly.Debits = []vault.Debit{
		{Counter: ids[0].String() + "/calls", Amount: 1, Limit: 5, Unit: "calls", Kept: true},
		{Counter: ids[0].String() + "/recipients", Limit: 3, Unit: vault.UnitRecipients},
		{Counter: ids[0].String() + "/hosts", Limit: 2, Unit: vault.UnitHosts},
		{Counter: ids[0].String() + "/ms", Limit: 60_000, Unit: vault.UnitWall},
		{Counter: ids[1].String() + "/calls", Amount: 1, Limit: 2, Unit: "calls", Kept: true},
		{Counter: ids[0].String() + "/bytes_out", Amount: 13, Limit: 1000, Unit: "bytes"},
	}
	costly.Ask, costly.SignAt = []string{"finance", "legal"}, "medium"
	accept("budgets, groups and a signature that links demand together", strict, costly)
	delegated := w.root(invoices)
	delegated.Delegates, delegated.DelegateKeys = []vault.AgentID{testMailer}, []vault.Digest{keyOf(t, seeded("delegate")).Thumbprint()}
	handed := w.attenuate(w.mint(delegated), Link{Agent: testMailer, Holder: HeldBy(keyOf(t, seeded("delegate"))), Depth: Depth(0)}, w.agent)
	accept("another agent with a key of its own", handed, call(readFile, `{"path":"/srv/invoices/1.txt"}`, "", ""))
	p256, err := ParseText(es256Vector)
	if err != nil {
		t.Fatal(err)
	}
	accept("a child that a P-256 key signed", p256, call(readFile, `{"path":"/srv/invoices/1.txt"}`, "", ""), call(readFile, `{"path":"/etc/passwd"}`, argument, "/path"))
	accept("a holder without a key", w.mint(channel), call(readFile, `{"x":{"y":[]}}`, "", ""))

	refuse := func(name string, code vault.Code, raw []byte) {
		out.Refuse = append(out.Refuse, vector{Name: name, Token: Chain{raw: raw}.Text(), Code: code})
	}
	const malformed, signature = vault.CodeCapabilityMalformed, vault.CodeCapabilitySignature
	// Payloads that the issuer did sign and that are refused all the same.
	signed := func(payload []byte) []byte {
		m, err := signMessage(w.issuer, "k1", typLink, nil, payload)
		if err != nil {
			t.Fatal(err)
		}
		return append([]byte{0x81}, m...)
	}
	payload := root.links[0].payload
	flipped := root.Bytes()
	flipped[len(flipped)-1] ^= 1
	refuse("a signature with a byte changed", signature, flipped)
	refuse("an unknown field", malformed, signed(append([]byte{payload[0] + 1}, append(bytes.Clone(payload[1:]), 0x18, 99, 0)...)))
	refuse("data after the payload", malformed, signed(append(bytes.Clone(payload), 0)))
	refuse("a payload that is no map", malformed, signed([]byte{0x80}))
	refuse("a payload of null", malformed, signed([]byte{0xf6}))
	refuse("fields out of order", malformed, signed(swapFirstFields(payload)))
	refuse("a field twice", malformed, signed(append([]byte{payload[0] + 1, 2, 0x61, 'x'}, payload[1:]...)))
	other := w.root(invoices)
	other.Audience = "cluster-2"
	refuse("another audience", vault.CodeCapabilityAudience, w.mint(other).raw)
	old := w.root(invoices)
	old.Issued, old.NotBefore, old.Expires = 1, 1, InstantOf(testStart)
	refuse("expired", vault.CodeCapabilityExpired, w.mint(old).raw)
	early := w.root(invoices)
	early.NotBefore += 30_001
	refuse("not yet valid", vault.CodeCapabilityNotYet, w.mint(early).raw)
	stranger, err := Mint(w.root(invoices), Signer{Key: w.issuer, KID: "k2"})
	if err != nil {
		t.Fatal(err)
	}
	refuse("an unknown issuer", vault.CodeCapabilityIssuer, stranger.raw)
	refuse("a child without its root", vault.CodeCapabilityIssuer, append([]byte{0x81}, tighter.links[1].raw...))
	spliced := w.root(invoices)
	spliced.Budgets.Calls = Limit(1000)
	refuse("a child of another root", malformed, append(append([]byte{0x82}, w.mint(spliced).links[0].raw...), tighter.links[1].raw...))
	forged, err := signMessage(seeded("stranger"), "", typLink, nil, tighter.links[1].payload)
	if err != nil {
		t.Fatal(err)
	}
	unevaluated := w.root(invoices)
	unevaluated.Caveats = []string{"args.path != ''"}
	refuse("a caveat that nothing here evaluates", vault.CodeCapabilityCaveat, w.mint(unevaluated).raw)
	elsewhere := w.root(invoices)
	elsewhere.ThirdParty = []ThirdParty{{Group: "legal", Audience: "cluster-2"}}
	refuse("a third party that answers to another gateway", vault.CodeCapabilityCaveat, w.mint(elsewhere).raw)
	for name, edit := range map[string]func(*Link){
		"a constraint of two kinds": func(l *Link) {
			l.Grants = Grants{vault.KindTool: {readFile: arg("/p", Constraint{Prefix: ptr("a"), Glob: ptr("a")})}}
		},
		"a network with host bits": func(l *Link) {
			l.Grants = Grants{vault.KindTool: {readFile: arg("/p", Constraint{CIDR: []string{"10.0.0.1/8"}})}}
		},
		"contains that leaves the rest": func(l *Link) {
			l.Grants = Grants{vault.KindTool: {readFile: arg("/p", Constraint{Contains: []Scalar{Int(1)}})}}
		},
		"a sub-path that is not clean": func(l *Link) {
			l.Grants = Grants{vault.KindTool: {readFile: arg("/p", Constraint{SubPath: ptr("/a/../b")})}}
		},
		"an argument inside another":       func(l *Link) { l.Grants = Grants{vault.KindTool: {readFile: {Args: Args{"/a": {}, "/a/b": {}}}}} },
		"a negative budget":                func(l *Link) { l.Budgets.Hosts = Limit(-1) },
		"a signature from an unknown risk": func(l *Link) { l.SignAt = "severe" },
		"a root without a budget of calls": func(l *Link) { l.Budgets.Calls, l.Budgets.Hosts = nil, Limit(1) },
		"a root with a parent":             func(l *Link) { l.Parent = vault.Digest{1} },
		"expires before it begins":         func(l *Link) { l.Expires = l.NotBefore },
	} {
		l := w.root(invoices)
		edit(&l)
		payload, err := det.enc.Marshal(&l)
		if err != nil {
			t.Fatal(err)
		}
		refuse(name, malformed, signed(payload))
	}
	// Children that the holder did sign and that do not fit their chain.
	for name, edit := range map[string]func(*Link){
		"a child that names its tenant":                func(l *Link) { l.Tenant = testTenant },
		"a child that opens its arguments":             func(l *Link) { l.Grants = Grants{vault.KindTool: {readFile: {Any: true}}} },
		"a child that grants every name":               func(l *Link) { l.Grants = Grants{vault.KindTool: {vault.Target{Server: filesServer, Name: "*"}: {}}} },
		"a child for an agent that is no delegate":     func(l *Link) { l.Agent = "spiffe://example.org/agent/acme/other/1" },
		"a child bound to a key that is no delegate's": func(l *Link) { l.Holder = HeldBy(keyOf(t, seeded("stranger"))) },
	} {
		l := Link{Parent: sha256.Sum256(w.mint(delegated).links[0].raw)}
		edit(&l)
		payload, err := det.enc.Marshal(&l)
		if err != nil {
			t.Fatal(err)
		}
		m, err := signMessage(w.agent, "", typLink, nil, payload)
		if err != nil {
			t.Fatal(err)
		}
		refuse(name, malformed, append(append([]byte{0x82}, w.mint(delegated).links[0].raw...), m...))
	}
	deep := w.mint(delegated)
	deep = w.attenuate(deep, Link{Depth: Depth(0)}, w.agent)
	last, err := det.enc.Marshal(&Link{Parent: sha256.Sum256(deep.links[1].raw)})
	if err != nil {
		t.Fatal(err)
	}
	m, err := signMessage(w.agent, "", typLink, nil, last)
	if err != nil {
		t.Fatal(err)
	}
	refuse("a link beyond the depth", malformed, append(append([]byte{0x83}, deep.raw[1:]...), m...))
	slices.SortFunc(out.Refuse, func(a, b vector) int { return strings.Compare(a.Name, b.Name) }) // maps have no order
	for _, v := range []Revocation{
		{Link: tighter.IDs()[0], At: testStart},
		{Link: tighter.IDs()[1], At: testStart},
		{Agent: testAgent, At: testStart},
		{Task: testTask, At: testStart},
		{Issuer: "k1", At: testStart},
		{Everything: true, At: testStart},
	} {
		out.Refuse = append(out.Refuse, vector{Name: "revoked", Token: tighter.Text(), Code: vault.CodeCapabilityRevoked, Revoked: []Revocation{v}})
	}
	out.Accept = append(out.Accept, vector{Name: "issued after everything was revoked", Token: root.Text(), IDs: root.IDs(), Revoked: []Revocation{{Everything: true, At: testStart.Add(-time.Millisecond)}, {Link: tighter.IDs()[1], At: testStart}}})
	out.Proofs = proofVectors(t, root, w.agent)
	refuse("a child that the holder did not sign", signature, append(append([]byte{0x82}, root.links[0].raw...), forged...))
	return out
}

// proofVectors are proofs of one call outside a session and in one, and what must
// not pass for them.
func proofVectors(t testing.TB, c Chain, key crypto.Signer) []vectorProof {
	nonce, sid := bytes.Repeat([]byte{7}, nonceBytes), bytes.Repeat([]byte{9}, sidBytes)
	make := func(name string, sid []byte, seq uint64, args string) vectorProof {
		call := newCall(args)
		leaf := c.IDs()[len(c.IDs())-1]
		b := appendCall(nil, testAudience, sid, seq, &leaf, call, nonce)
		sig, err := sign(key, b)
		if err != nil {
			t.Fatal(err)
		}
		return vectorProof{
			Name: name, Token: c.Text(), Call: call.ID, Kind: call.Kind, Target: call.Target, Args: json.RawMessage(args),
			Session: hex.EncodeToString(sid), Seq: seq, Nonce: hex.EncodeToString(nonce), Bytes: hex.EncodeToString(b), Signature: hex.EncodeToString(sig), Valid: true,
		}
	}
	alone, within := make("a call alone", nil, 0, `{"path":"/srv/invoices/1.txt"}`), make("a call in a session", sid, 3, `{"n":1e2,"path":"/srv/\u00e9"}`)
	other := alone
	other.Name, other.Args, other.Valid = "the proof of other arguments", json.RawMessage(`{"path":"/srv/invoices/2.txt"}`), false
	again := within
	again.Name, again.Seq, again.Valid = "the proof of another number", 4, false
	return []vectorProof{alone, within, other, again}
}

// swapFirstFields exchanges the first two fields of a root: tenant and principal.
func swapFirstFields(payload []byte) []byte {
	field := func(b []byte) []byte {
		_, n, rest, _ := readHead(b[1:])
		return b[:len(b)-len(rest)+int(n)]
	}
	a := field(payload[1:])
	b := field(payload[1+len(a):])
	return bytes.Join([][]byte{payload[:1], b, a, payload[1+len(a)+len(b):]}, nil)
}

func TestVectors(t *testing.T) {
	const name = "testdata/vectors.json"
	got, err := json.MarshalIndent(makeVectors(t), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	if os.Getenv("UPDATE") == "1" {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(raw, got) {
		t.Fatal("the format has changed: the vectors that were published differ from those made now")
	}
	// From here on as another implementation would: from the file alone.
	var v vectors
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	var roots []RootIssuer
	for _, is := range v.Issuers {
		roots = append(roots, RootIssuer{KID: is.KID, Key: is.Key, Tenant: is.Tenant, Own: true})
	}
	for _, tt := range v.Accept {
		t.Run(tt.Name, func(t *testing.T) {
			raw, err := DecodeText(tt.Token)
			if err != nil {
				t.Fatal(err)
			}
			view, err := Verify(raw, roots, v.Audience, v.Now)
			if err != nil || !view.Verified {
				t.Fatal(err)
			}
			for i, l := range view.Links {
				if l.ID != tt.IDs[i] {
					t.Errorf("link %d is %v", i, l.ID)
				}
			}
			a, err := (&trust{roots, v.Audience, nil, new(signatures)}).compile(raw)
			if err != nil {
				t.Fatal(err)
			}
			if revoked(t, tt.Revoked, a) {
				t.Error("revoked")
			}
			for _, c := range tt.Calls {
				g, denial := a.authorise(&vault.Call{Kind: c.Kind, Target: c.Target, Args: vault.MustArgs(string(c.Args))}, v.Now)
				var code vault.Code
				var path string
				if denial != nil {
					code, path = denial.Reason.Code, denial.Reason.Path
				}
				if code != c.Code || path != c.Path {
					t.Errorf("%s: got %q at %q, want %q at %q", c.Args, code, path, c.Code, c.Path)
				}
				if c.Debits != nil && !slices.Equal(g.Debits, c.Debits) {
					t.Errorf("%s: debits %v, want %v", c.Args, g.Debits, c.Debits)
				}
				if c.Ask != nil && !slices.Equal(g.Ask, c.Ask) {
					t.Errorf("%s: asks %v, want %v", c.Args, g.Ask, c.Ask)
				}
				if c.SignAt != "" && (!g.MustSign || g.SignAt.String() != c.SignAt) {
					t.Errorf("%s: signature at %v %v, want %s", c.Args, g.MustSign, g.SignAt, c.SignAt)
				}
			}
		})
	}
	for _, tt := range v.Refuse {
		t.Run(tt.Name, func(t *testing.T) {
			raw, err := DecodeText(tt.Token)
			if err == nil {
				_, err = Verify(raw, roots, v.Audience, v.Now)
			}
			if err == nil && len(tt.Revoked) > 0 {
				var a *authority
				if a, err = (&trust{roots, v.Audience, nil, new(signatures)}).compile(raw); err == nil && revoked(t, tt.Revoked, a) {
					err = vault.NewDenial(vault.CodeCapabilityRevoked, "", nil)
				}
			}
			if code(err) != tt.Code {
				t.Errorf("got %v, want %q", err, tt.Code)
			}
		})
	}
}

// revoked reports whether a chain is revoked once the revocations have been added.
func revoked(t *testing.T, all []Revocation, a *authority) bool {
	t.Helper()
	var set Revocations
	for _, v := range all {
		if err := set.Add(v); err != nil {
			t.Fatal(err)
		}
	}
	return set.isRevoked(a)
}

// TestProofVectors makes the bytes of each proof again and verifies its signature.
func TestProofVectors(t *testing.T) {
	raw, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, p := range v.Proofs {
		c, err := ParseText(p.Token)
		if err != nil {
			t.Fatal(err)
		}
		call := &vault.Call{ID: p.Call, Kind: p.Kind, Target: p.Target, Args: vault.MustArgs(string(p.Args))}
		leaf := c.IDs()[len(c.IDs())-1]
		b := appendCall(nil, v.Audience, unhex(p.Session), p.Seq, &leaf, call, unhex(p.Nonce))
		if ok := bytes.Equal(b, unhex(p.Bytes)) && c.holder().Key.verify(b, unhex(p.Signature)); ok != p.Valid {
			t.Errorf("%s: valid %v", p.Name, ok)
		}
	}
	if len(v.Proofs) == 0 {
		t.Error("no proofs")
	}
}

// The first example of RFC 9052, appendix C.2.1: Sig_structure and ES256.
func TestCOSEExample(t *testing.T) {
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	key := Key{
		alg: algES256,
		x:   [32]byte(unhex("bac5b11cad8f99f9c72b05cf4b9e26d244dc189f745228255a219a86d6a09eff")),
		y:   [32]byte(unhex("20138bf82dc1b6d562be0fa54ab7804a3a64b6d72ccfed6b6fb6ed28bbfc117e")),
	}
	tbs := toBeSigned(unhex("a10126"), nil, []byte("This is the content."))
	if want := unhex("846a5369676e61747572653143a101264054546869732069732074686520636f6e74656e742e"); !bytes.Equal(tbs, want) {
		t.Errorf("Sig_structure %x\nwant %x", tbs, want)
	}
	sig := unhex("8eb33e4ca31d1c465ab05aac34cc6b23d58fef5c083106c4d25a91aef0b0117e2af9a291aa32e14ab834dc56ed2a223444547e01f11d3b0916e5a4c345cacb36")
	if !key.verify(tbs, sig) {
		t.Error("the example's signature is refused")
	}
	sig[0] ^= 1
	if key.verify(tbs, sig) {
		t.Error("a changed signature is taken")
	}
}

// RFC 8032, section 7.1, test 2, and its signature with the group order added to
// S, which a careless verifier takes too.
func TestEd25519Malleability(t *testing.T) {
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	key := Key{alg: algEd25519, x: [32]byte(unhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"))}
	sig := unhex("92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00")
	if !key.verify([]byte{0x72}, sig) {
		t.Fatal("the published signature is refused")
	}
	order := unhex("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010") // little endian
	carry := 0
	for i := range order {
		n := int(sig[32+i]) + int(order[i]) + carry
		sig[32+i], carry = byte(n), n>>8
	}
	if key.verify([]byte{0x72}, sig) {
		t.Error("the same signature in another form is taken")
	}
}

// The integers, strings and arrays of RFC 8949, appendix A, through the encoder
// that links use and the heads that are written by hand.
func TestDeterministicEncoding(t *testing.T) {
	for _, tt := range []struct {
		value any
		want  string
	}{
		{0, "00"},
		{1, "01"},
		{10, "0a"},
		{23, "17"},
		{24, "1818"},
		{25, "1819"},
		{100, "1864"},
		{1000, "1903e8"},
		{1000000, "1a000f4240"},
		{1000000000000, "1b000000e8d4a51000"},
		{uint64(math.MaxUint64), "1bffffffffffffffff"},
		{-1, "20"},
		{-10, "29"},
		{-100, "3863"},
		{-1000, "3903e7"},
		{false, "f4"},
		{true, "f5"},
		{[]byte{}, "40"},
		{[]byte{1, 2, 3, 4}, "4401020304"},
		{"", "60"},
		{"a", "6161"},
		{"IETF", "6449455446"},
		{"\"\\", "62225c"},
		{"ü", "62c3bc"},
		{"水", "63e6b0b4"},
		{[]int{1, 2, 3}, "83010203"},
		{map[int]int{3: 4, 1: 2}, "a201020304"},
		{map[string]string{"b": "B", "a": "A"}, "a2616161416162" + "6142"},
	} {
		b, err := det.enc.Marshal(tt.value)
		if err != nil || hex.EncodeToString(b) != tt.want {
			t.Errorf("%v: %x, %v; want %s", tt.value, b, err, tt.want)
		}
		var hand []byte
		switch v := tt.value.(type) {
		case int:
			if v < 0 {
				continue
			}
			hand = appendHead(nil, majorUint, uint64(v))
		case uint64:
			hand = appendHead(nil, majorUint, v)
		case []byte:
			hand = appendBytes(nil, v)
		case string:
			hand = appendText(nil, v)
		default:
			continue
		}
		if !bytes.Equal(hand, b) {
			t.Errorf("%v by hand: %x, want %x", tt.value, hand, b)
		}
	}
	for _, n := range []uint64{0, 23, 24, 255, 256, 65535, 65536, 1<<32 - 1, 1 << 32, math.MaxUint64} {
		if _, got, rest, ok := readHead(appendHead(nil, majorUint, n)); !ok || got != n || len(rest) != 0 {
			t.Errorf("%d reads as %d", n, got)
		}
	}
	for _, long := range []string{"1800", "1817", "1900ff", "1a0000ffff", "1b00000000ffffffff", "1c", "1f", "19", ""} {
		b, err := hex.DecodeString(long)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, _, ok := readHead(b); ok {
			t.Errorf("%s is taken", long)
		}
	}
}

func TestTextForm(t *testing.T) {
	w := newWorld(t)
	c := w.mint(w.root(Rule{Any: true}))
	good := c.Text()
	for _, bad := range []string{
		"", good[4:], "vc2." + good[4:], good + "=", good + "\n", good[:20] + "\r\n" + good[20:], " " + good,
		"vc1." + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{0xff}, 9)),
		"vc1." + base64.RawURLEncoding.EncodeToString(make([]byte, MaxChainBytes+3)),
	} {
		if _, err := ParseText(bad); err == nil {
			t.Errorf("%.40q is taken", bad)
		}
	}
	if again, err := ParseText(good); err != nil || again.Digest() != c.Digest() {
		t.Errorf("%v", err)
	}
}

func TestKeyText(t *testing.T) {
	for _, k := range []Key{keyOf(t, seeded("a")), keyOf(t, seededP256(t, "a"))} {
		var again Key
		if err := again.UnmarshalText([]byte(k.String())); err != nil || again != k {
			t.Errorf("%v: %v, %v", k, again, err)
		}
		if k.Thumbprint().IsZero() {
			t.Errorf("%v has no thumbprint", k)
		}
	}
	for _, bad := range []string{"", "ed25519:", "ed25519:AA", "rsa:AA", "p256:" + string(bytes.Repeat([]byte("A"), 86))} {
		var k Key
		if err := k.UnmarshalText([]byte(bad)); err == nil || !k.IsZero() {
			t.Errorf("%q is taken", bad)
		}
	}
}

package capability

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"math"
	"os"
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
}

type vectorCall struct {
	Kind   vault.Kind      `json:"kind"`
	Target vault.Target    `json:"target"`
	Args   json.RawMessage `json:"args"`
	Code   vault.Code      `json:"code,omitempty"` // empty: allowed
	Path   string          `json:"path,omitempty"`
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
		return vectorCall{vault.KindTool, target, json.RawMessage(args), code, path}
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
	refuse("a child that the holder did not sign", signature, append(append([]byte{0x82}, root.links[0].raw...), forged...))
	return out
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
			a, err := (&trust{roots, v.Audience, nil}).compile(raw)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range tt.Calls {
				_, denial := a.authorise(&vault.Call{Kind: c.Kind, Target: c.Target, Args: vault.MustArgs(string(c.Args))}, v.Now)
				var code vault.Code
				var path string
				if denial != nil {
					code, path = denial.Reason.Code, denial.Reason.Path
				}
				if code != c.Code || path != c.Path {
					t.Errorf("%s: got %q at %q, want %q at %q", c.Args, code, path, c.Code, c.Path)
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
			if code(err) != tt.Code {
				t.Errorf("got %v, want %q", err, tt.Code)
			}
		})
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

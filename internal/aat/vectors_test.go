package aat

import (
	"bytes"
	"crypto"
	"encoding/base64"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
)

// A vector is a chain and what becomes of it. The file is for other implementations
// too: everything that decides is in it.
type vector struct {
	Name   string          `json:"name"`
	Chain  json.RawMessage `json:"chain"`            // a presentation object
	Reject string          `json:"reject,omitempty"` // what the error says; "" is accepted
	Rules  json.RawMessage `json:"rules,omitempty"`  // of an accepted chain under rules that leave all open
	Refuse string          `json:"refuse,omitempty"` // why an accepted chain makes no rules
}

type vectors struct {
	Draft   string                     `json:"draft"`
	Now     int64                      `json:"now"`
	Anchors map[string]json.RawMessage `json:"anchors"` // issuer to JWK set
	Aud     string                     `json:"audience"`
	Cases   []vector                   `json:"cases"`
}

func (v *vectors) config(t *testing.T) Config {
	t.Helper()
	c := Config{Audience: v.Aud, Now: time.Unix(v.Now, 0)}
	for issuer, set := range v.Anchors {
		keys, err := ParseKeys(set)
		if err != nil {
			t.Fatal(err)
		}
		c.Anchors = append(c.Anchors, Anchor{Issuer: issuer, Keys: keys})
	}
	return c
}

// rulesOf is what an accepted chain says, as JSON.
func rulesOf(c *Chain) (json.RawMessage, error) {
	rules := map[string]capability.Rule{}
	for _, tool := range c.Tools() {
		r, err := c.Rule(tool, capability.Rule{Any: true})
		if err != nil {
			return nil, err
		}
		rules[tool] = r
	}
	return json.Marshal(rules)
}

const vectorFile = "vectors.json"

// TestAATVectors holds the chains of testdata against what each is there for. UPDATE=1
// makes the file anew.
func TestAATVectors(t *testing.T) {
	path := filepath.Join("testdata", vectorFile)
	if os.Getenv("UPDATE") != "" {
		b := append(makeVectors(t), '\n')
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var file vectors
	if err := json.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	conf := file.config(t)
	accepted := 0
	for _, v := range file.Cases {
		t.Run(v.Name, func(t *testing.T) {
			chain, err := Verify(compact(t, v.Chain), conf)
			if v.Reject != "" {
				if err == nil || !strings.Contains(err.Error(), v.Reject) {
					t.Errorf("%v, want %q", err, v.Reject)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			accepted++
			rules, err := rulesOf(chain)
			if v.Refuse != "" {
				if err == nil || !strings.Contains(err.Error(), v.Refuse) {
					t.Errorf("rules: %v, want %q", err, v.Refuse)
				}
				return
			}
			if err != nil || !bytes.Equal(rules, compact(t, v.Rules)) {
				t.Errorf("rules %s, %v, want %s", rules, err, v.Rules)
			}
		})
	}
	if accepted == 0 || accepted == len(file.Cases) {
		t.Errorf("%d of %d are accepted", accepted, len(file.Cases))
	}
}

func compact(t *testing.T, raw json.RawMessage) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// pathOf is a constraint map that one path passes.
func pathOf(path string) object {
	return object{"path": object{"constraint_type": "exact", "value": path}}
}

func of(kind string, members ...any) object {
	c := object{"constraint_type": kind}
	for i := 0; i < len(members); i += 2 {
		c[members[i].(string)] = members[i+1]
	}
	return c
}

// one is a map of one tool whose argument a has one constraint.
func one(c any) object { return object{"t": object{"a": c}} }

// makeVectors signs all chains.
func makeVectors(t *testing.T) []byte {
	t.Helper()
	conf := testConfig(t)
	file := vectors{Draft: "draft-niyikiza-oauth-attenuating-agent-tokens-02", Now: testNow.Unix(), Aud: conf.Audience, Anchors: map[string]json.RawMessage{
		testIssuer:                  canonical(t, object{"keys": []any{jwkOf(t, seeded("issuer")), jwkOf(t, seededP256(t, "issuer"))}}),
		"https://other.example.com": canonical(t, jwkOf(t, seeded("other"))),
	}}
	for _, c := range cases(t) {
		v := vector{Name: c.name, Reject: c.reject, Refuse: c.refuse, Chain: c.raw}
		if v.Chain == nil {
			v.Chain = c.m.presentation()
		}
		if v.Reject == "" && v.Refuse == "" {
			chain, err := Verify(v.Chain, conf)
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			if v.Rules, err = rulesOf(chain); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
		}
		file.Cases = append(file.Cases, v)
	}
	b, err := json.MarshalIndent(file, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type vectorCase struct {
	name           string
	m              *maker
	raw            json.RawMessage
	reject, refuse string
}

func cases(t *testing.T) []vectorCase {
	var out []vectorCase
	add := func(name, reject string, m *maker, edit func(m *maker)) {
		if edit != nil {
			edit(m)
		}
		out = append(out, vectorCase{name: name, m: m, reject: reject})
	}
	wide := object{"read_file": object{"path": of("one_of", "values", []any{"/a", "/b"}), "limit": of("range", "min", 0, "max", 100, "optional", true)}, "search": object{}}
	narrow := object{"read_file": pathOf("/a")}
	claims := func(i int, name string, v any) func(*maker) {
		return func(m *maker) { m.steps[i].claims[name] = v }
	}
	without := func(i int, name string) func(*maker) {
		return func(m *maker) {
			m.steps[i].raw = func(b []byte) []byte {
				var c object
				if err := json.Unmarshal(b, &c); err != nil {
					t.Fatal(err)
				}
				delete(c, name)
				return canonical(t, c)
			}
		}
	}
	replace := func(i int, old, with string) func(*maker) {
		return func(m *maker) {
			m.steps[i].raw = func(b []byte) []byte {
				if !bytes.Contains(b, []byte(old)) {
					t.Fatalf("%s has no %s", b, old)
				}
				return bytes.Replace(b, []byte(old), []byte(with), 1)
			}
		}
	}
	header := func(i int, name string, v any) func(*maker) {
		return func(m *maker) {
			m.steps[i].header[name] = v
			if v == nil {
				delete(m.steps[i].header, name)
			}
		}
	}
	base := func() *maker { return newMaker(t, wide, narrow, narrow) }

	// What is accepted.
	add("one token", "", newMaker(t, wide), nil)
	add("three tokens", "", base(), nil)
	add("an audience that names us", "", base(), claims(1, "aud", []any{"somebody", testAudience}))
	add("ES256 all the way", "", base(), func(m *maker) {
		for i, s := range m.steps {
			s.header["alg"] = "ES256"
			s.holder = seededP256(t, "holder "+string(rune('0'+i)))
			s.key = seededP256(t, "issuer")
			if i > 0 {
				s.key = m.steps[i-1].holder
			}
		}
	})
	add("a key in the header is as if it were absent", "", base(), header(1, "jwk", jwkOf(t, seeded("thief"))))
	add("claims that are not known", "", base(), claims(0, "mission", object{"id": "7"}))
	add("an entry of another type", "", base(), claims(0, "authorization_details", append(details(wide), object{"type": "payment", "amount": 5})))
	add("the same authority in other hands", "", newMaker(t, narrow, narrow), nil)
	add("an argument that an open parent does not name", "", newMaker(t, object{"t": object{}}, one(of("exact", "value", 5))), nil)
	add("an open map that closes", "", newMaker(t, object{"t": object{"a": of("wildcard"), "*": of("wildcard")}}, one(of("exact", "value", true))), nil)
	add("a clause that covers two", "", newMaker(t, one(of("all", "constraints", []any{of("wildcard"), of("wildcard")})), one(of("all", "constraints", []any{of("exact", "value", 5)}))), nil)
	add("alternatives that are lists", "", newMaker(t, one(of("any", "constraints", []any{of("exact", "value", "pdf"), of("one_of", "values", []any{"csv", 7})}))), nil)
	add("an array of listed values", "", newMaker(t, one(of("subset", "allowed", []any{"a", "b"})), one(of("subset", "allowed", []any{"a"}))), nil)
	add("a range that excludes its ends", "", newMaker(t, one(of("range", "min", 0, "min_inclusive", false, "max", 1.5, "max_inclusive", false))), nil)
	add("a range without ends", "", newMaker(t, one(of("range"))), nil)
	add("more and more that is excluded", "", newMaker(t, one(of("not_one_of", "excluded", []any{"a"})), one(of("not_one_of", "excluded", []any{"a", "b"}))), nil)
	add("more and more that is contained", "", newMaker(t, one(of("contains", "required", []any{"a"})), one(of("contains", "required", []any{"a", 1}))), nil)
	add("a token in between without authority", "", newMaker(t, wide, narrow, object{}), claims(1, "authorization_details", []any{}))

	// The presentation.
	raw := func(name, reject, text string) {
		out = append(out, vectorCase{name: name, reject: reject, raw: json.RawMessage(text)})
	}
	raw("no chain", "want aat_chain", `{}`)
	raw("an empty chain", "want aat_chain", `{"aat_chain":[]}`)
	raw("a chain that is no array", "want aat_chain", `{"aat_chain":"a.b.c"}`)
	raw("a token that is no text", "no text", `{"aat_chain":[7]}`)
	raw("an array", "chain:", `["a.b.c"]`)
	raw("too many tokens", "1 to 9 tokens", `{"aat_chain":[`+strings.Repeat(`"a.b.c",`, 9)+`"a.b.c"]}`)
	raw("too many bytes", "at most 16384", `{"aat_chain":["`+strings.Repeat("a", MaxChain)+`"]}`)
	raw("two parts", "compact JWS", `{"aat_chain":["e30.e30"]}`)
	raw("padding", "base64url", `{"aat_chain":["e30=.e30.AA"]}`)
	raw("stray bits in base64url", "base64url", `{"aat_chain":["e30.e30.AB"]}`)
	raw("a line break in base64url", "base64url", `{"aat_chain":["e3\n0.e30.AA"]}`)

	// The header.
	add("alg none", `alg is "none"`, base(), header(0, "alg", "none"))
	add("alg HS256", `alg is "HS256"`, base(), header(0, "alg", "HS256"))
	add("alg EdDSA, the name of -01", `alg is "EdDSA"`, base(), header(0, "alg", "EdDSA"))
	add("no alg", "alg is absent", base(), header(1, "alg", nil))
	add("ES256 for an Ed25519 key", "not for the key", base(), header(1, "alg", "ES256"))
	add("no typ", "typ is absent", base(), header(0, "typ", nil))
	add("the typ of a proof", `typ is "aat-pop+jwt"`, base(), header(1, "typ", "aat-pop+jwt"))
	add("typ JWT", `typ is "JWT"`, base(), header(0, "typ", "JWT"))
	add("crit", "crit", base(), header(0, "crit", []any{"exp"}))
	add("a payload that is not encoded", "b64", base(), header(0, "b64", false))

	// Signatures.
	add("a root of a stranger", "no trusted issuer", base(), func(m *maker) { m.steps[0].key = seeded("thief") })
	add("a root of another issuer", "iss is not", base(), func(m *maker) { m.steps[0].key = seeded("other") })
	add("a child that somebody else signed", "not signed by the holder", base(), func(m *maker) { m.steps[1].key = seeded("thief") })
	add("a child that the issuer signed", "not signed by the holder", base(), func(m *maker) { m.steps[1].key = seeded("issuer") })
	add("a child as root", "no trusted issuer", base(), func(m *maker) { m.steps = m.steps[1:2]; m.steps[0].key = seeded("holder 0") })
	{
		m := newMaker(t, wide)
		tokens := m.chain()
		parts := strings.Split(tokens[0], ".")
		payload, _ := base64.RawURLEncoding.DecodeString(parts[1])
		payload = bytes.Replace(payload, []byte(`"/a"`), []byte(`"/c"`), 1)
		parts[1] = base64.RawURLEncoding.EncodeToString(payload)
		out = append(out, vectorCase{name: "a changed payload", reject: "no trusted issuer", raw: canonical(t, object{"aat_chain": []string{strings.Join(parts, ".")}})})
	}

	// Claims.
	for _, name := range []string{"jti", "iss", "iat", "exp", "cnf", "del_depth", "del_max_depth", "authorization_details"} {
		add("a root without "+name, name, base(), without(0, name))
		add("a child without "+name, name, base(), without(1, name))
	}
	add("a child without par_hash", "I5", base(), without(1, "par_hash"))
	add("a fraction", "iat: want an integer", base(), replace(0, `"iat":1704067200`, `"iat":1704067200.0`))
	add("an exponent", "del_max_depth: want an integer", base(), replace(0, `"del_max_depth":3`, `"del_max_depth":3e0`))
	add("a negative depth", "del_depth: want an integer", base(), claims(0, "del_depth", -1))
	add("a claim twice", "claims", base(), replace(0, `"del_depth":0`, `"del_depth":0,"del_depth":0`))
	add("a claim in capitals", "jti", base(), replace(0, `"jti"`, `"JTI"`))
	add("a tool twice", "claims", newMaker(t, object{"t": object{}}), replace(0, `"t":{}`, `"t":{},"t":{}`))
	add("an integer that a double does not keep", "claims", newMaker(t, one(of("exact", "value", 1))), replace(0, `"value":1`, `"value":9007199254740993`))
	add("a private key as holder", "private", base(), func(m *maker) {
		jwk := jwkOf(t, seeded("holder 0"))
		jwk["d"] = base64.RawURLEncoding.EncodeToString(seeded("holder 0").Seed())
		m.steps[0].claims["cnf"] = object{"jwk": jwk}
	})
	add("a shared key as holder", "private or shared", base(), claims(0, "cnf", object{"jwk": object{"kty": "oct", "k": "AAAA"}}))
	add("a thumbprint as holder", "cnf: no JWK", base(), claims(0, "cnf", object{"jkt": "abc"}))
	add("an RSA key as holder", "cnf", base(), claims(0, "cnf", object{"jwk": object{"kty": "RSA", "n": "AQAB", "e": "AQAB"}}))
	add("another audience", "aud does not name", base(), claims(0, "aud", "https://tools.example.com"))
	add("an audience of nobody", "aud does not name", base(), claims(1, "aud", []any{}))
	add("an audience that is no text", "aud", base(), claims(1, "aud", 7))
	add("nbf after iat", "nbf", base(), claims(0, "nbf", testNow.Unix()))
	add("a jti with a line break", "jti", base(), claims(0, "jti", "a\nb"))

	// Times (I3).
	add("an expired root", "expired", newMaker(t, wide), claims(0, "exp", testNow.Unix()))
	add("an expired child", "expired", base(), claims(1, "exp", testNow.Unix()))
	add("from the future", "iat lies in the future", newMaker(t, wide), claims(0, "iat", testNow.Unix()+31))
	add("exp before iat", "exp is not after iat", newMaker(t, wide), func(m *maker) {
		m.steps[0].claims["iat"], m.steps[0].claims["exp"] = testNow.Unix()+20, testNow.Unix()+10
	})
	add("a life of years", "lives longer", newMaker(t, wide), claims(0, "exp", testNow.Unix()+91*24*3600))
	add("a child that outlives its parent", "I3", base(), claims(1, "exp", testNow.Unix()+3301))
	add("a child that is older than its parent", "I3", base(), claims(1, "iat", testNow.Unix()-301))

	// Depth (I2) and linkage (I1, I5).
	add("a root with a depth", "a root with a del_depth", base(), claims(0, "del_depth", 1))
	add("a root with a parent", "a root with a par_hash", base(), claims(0, "par_hash", "AAAA"))
	add("a depth that is left out", "I2", base(), claims(1, "del_depth", 2))
	add("deeper than the root allows", "I2", base(), claims(0, "del_max_depth", 0))
	add("a child that allows more depth", "I2", base(), claims(1, "del_max_depth", 4))
	add("a child beyond its own depth", "I2", base(), claims(2, "del_max_depth", 1))
	add("a depth without end", "at most 8", base(), claims(0, "del_max_depth", 9))
	add("a child of the issuer's name", "I1", base(), claims(1, "iss", "https://auth.example.com/"))
	add("a child with the bare thumbprint", "I1", base(), func(m *maker) {
		sum := keyFor(t, m.steps[0].holder).JWKThumbprint()
		m.steps[1].claims["iss"] = base64.RawURLEncoding.EncodeToString(sum[:])
	})
	add("the same token twice", "twice", base(), func(m *maker) { m.steps[1].claims["jti"] = "token-0" })
	{
		// A child of another root of the same holder (grant-context substitution).
		a, b := newMaker(t, wide, narrow), newMaker(t, wide)
		b.steps[0].claims["jti"] = "another"
		out = append(out, vectorCase{name: "a child of another parent", reject: "I5", raw: canonical(t, object{"aat_chain": []string{b.chain()[0], a.chain()[1]}})})
	}

	// The entry.
	add("no entry in the root", "root without an entry", base(), claims(0, "authorization_details", []any{object{"type": "payment"}}))
	add("no entry in the leaf", "the last token has no entry", base(), claims(2, "authorization_details", []any{}))
	add("two entries", "two entries", base(), claims(0, "authorization_details", append(details(wide), details(wide)...)))
	add("an entry without tools", "tools", base(), claims(0, "authorization_details", []any{object{"type": entryType}}))
	add("a member of the entry that could restrict", `"max_tool_calls" of the entry`, base(), claims(0, "authorization_details", []any{object{"type": entryType, "tools": wide, "max_tool_calls": 2}}))
	add("a tool that is no object", "no object", newMaker(t, object{"t": true}), nil)
	add("an argument that is no object", "no object", newMaker(t, one("any")), nil)
	malformed := map[string]object{
		"an unknown type":                   of("cel", "expr", "true"),
		"pattern, a type of -00":            of("pattern", "pattern", "*"),
		"no type":                           {"value": 5},
		"a member of another type":          of("exact", "value", 5, "max", 7),
		"exact without a value":             of("exact"),
		"exact of an array":                 of("exact", "value", []any{1}),
		"one_of without values":             of("one_of", "values", []any{}),
		"one_of that is no array":           of("one_of", "values", "a"),
		"a range that is empty":             of("range", "min", 2, "max", 1),
		"a range of texts":                  of("range", "min", "2"),
		"inclusive without its end":         of("range", "min", 2, "max_inclusive", true),
		"inclusive that is no boolean":      of("range", "min", 2, "min_inclusive", "no"),
		"all of nothing":                    of("all", "constraints", []any{}),
		"any of nothing":                    of("any", "constraints", []any{}),
		"an optional clause":                of("all", "constraints", []any{of("exact", "value", 1, "optional", true)}),
		"optional that is no boolean":       of("wildcard", "optional", "yes"),
		"an unknown type inside":            of("any", "constraints", []any{of("wildcard"), of("regex", "expr", ".*")}),
		"constraints nested without end":    nested(17),
		"all with a clause that is no list": of("all", "constraints", of("wildcard")),
	}
	for _, name := range slices.Sorted(maps.Keys(malformed)) {
		add(name, `argument "a"`, newMaker(t, one(malformed[name])), nil)
	}
	add(`"*" with a constraint`, `"*" is not a plain wildcard`, newMaker(t, object{"t": object{"*": of("exact", "value", 1)}}), nil)
	add(`"*" that is optional`, `"*" is not a plain wildcard`, newMaker(t, object{"t": object{"*": of("wildcard", "optional", true)}}), nil)

	// Narrowing (I4): the rules about names, and each row of the table broken once.
	widen := func(name string, parent, child any) {
		add("widens: "+name, "I4", newMaker(t, parent, child), nil)
	}
	widen("a tool that the parent does not have", narrow, wide)
	widen("an open map under a closed one", one(of("wildcard")), object{"t": object{}})
	widen("a closed map that opens", one(of("wildcard")), object{"t": object{"a": of("wildcard"), "*": of("wildcard")}})
	widen("a name under a closed map", one(of("wildcard")), object{"t": object{"a": of("wildcard"), "b": of("exact", "value", 1)}})
	widen("a required argument that becomes optional", one(of("wildcard")), one(of("wildcard", "optional", true)))
	widen("a required argument that is left out", object{"t": object{"a": of("wildcard"), "b": of("wildcard")}}, one(of("wildcard")))
	widen("an optional argument that comes back under *", object{"t": object{"a": of("exact", "value", 1, "optional", true), "*": of("wildcard")}}, object{"t": object{"*": of("wildcard")}})
	widen("a value more", one(of("one_of", "values", []any{"a"})), one(of("one_of", "values", []any{"a", "b"})))
	widen("a text for a number", one(of("exact", "value", 5)), one(of("exact", "value", "5")))
	widen("a wider range", one(of("range", "max", 5)), one(of("range", "max", 6)))
	widen("a range without its end", one(of("range", "max", 5)), one(of("range", "min", 0)))
	widen("an end that becomes inclusive", one(of("range", "max", 5, "max_inclusive", false)), one(of("range", "max", 5)))
	widen("a number out of range", one(of("range", "max", 5)), one(of("exact", "value", 6)))
	widen("the excluded end", one(of("range", "min", 5, "min_inclusive", false)), one(of("exact", "value", 5)))
	widen("less that is excluded", one(of("not_one_of", "excluded", []any{"a", "b"})), one(of("not_one_of", "excluded", []any{"a"})))
	widen("less that is contained", one(of("contains", "required", []any{"a", "b"})), one(of("contains", "required", []any{"a"})))
	widen("more elements", one(of("subset", "allowed", []any{"a"})), one(of("subset", "allowed", []any{"a", "b"})))
	widen("a clause of all that is dropped", one(of("all", "constraints", []any{of("range", "max", 5), of("range", "min", 1)})), one(of("all", "constraints", []any{of("range", "max", 5)})))
	widen("an alternative more", one(of("any", "constraints", []any{of("exact", "value", "pdf")})), one(of("any", "constraints", []any{of("exact", "value", "pdf"), of("exact", "value", "doc")})))
	// What is a valid chain and no rule of ours.
	refuse := func(name, why string, tools ...any) {
		out = append(out, vectorCase{name: "refused: " + name, m: newMaker(t, tools...), refuse: why})
	}
	refuse("a null", "the value null", one(of("exact", "value", nil)))
	refuse("a fraction among values", "the value 0.5", one(of("one_of", "values", []any{1, 0.5})))
	refuse("an array among values", "the value [1]", one(of("one_of", "values", []any{[]any{1}})))
	refuse("alternatives that are no lists", "any of range", one(of("any", "constraints", []any{of("range", "max", 5), of("range", "min", 7)})))
	refuse("an open map with names", "leaves others open", object{"t": object{"a": of("exact", "value", 1), "*": of("wildcard")}})
	var many []any
	for i := range 1025 {
		many = append(many, i)
	}
	refuse("more values than a capability lists", "1025 values", one(of("one_of", "values", many)))
	var clauses []any
	for i := range 17 {
		clauses = append(clauses, of("range", "min", i))
	}
	refuse("more constraints than a capability has", "more than 16", one(of("all", "constraints", clauses)))
	refuse("numbers beyond what a capability knows", "six decimal places", one(of("range", "min", 1e13)))
	return out
}

// nested is a constraint of that depth.
func nested(depth int) object {
	c := of("wildcard")
	for range depth - 1 {
		c = of("all", "constraints", []any{c})
	}
	return c
}

// TestPublishedChain signs the single-token chain of the draft's appendix E (vector
// J.1) and compares the thumbprint and the digest that are printed there. Its keys come
// from seeds of one repeated byte.
func TestPublishedChain(t *testing.T) {
	role := func(b byte) crypto.Signer { return keyFromSeed(bytes.Repeat([]byte{b}, 32)) }
	holder := keyFor(t, role(2))
	if got, want := thumbprint(holder), thumbprintURI+"aVBtapLd11SUVKIMGJfPzOEDuN0sXcmzJQNVT-_sKEU"; got != want {
		t.Errorf("thumbprint %s, want %s", got, want)
	}
	token, err := sign(role(1), object{
		"jti": "019471f8-0000-7000-8000-000000000001", "iss": testIssuer, "iat": 1704067200, "exp": 1704070800, "del_depth": 0, "del_max_depth": 3,
		"cnf":                   object{"jwk": jwkOf(t, role(2))},
		"authorization_details": details(object{"read_file": object{"path": of("wildcard")}}),
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := hashOf(token), "qz05CjO1S-iTk93CGKmiB8y7bRUdUAe67kXzUwyMzUU"; got != want {
		t.Errorf("digest %s, want %s", got, want)
	}
	if !strings.HasSuffix(token, ".G2ZIeMAY5H1nbG0j2f6R9hW8WsP98CC8ZA9-dLpNATy-i7DMR6iAHzgSrAhpdTVt1Y5urMK9iE0ZXMcLHzrHBg") {
		t.Errorf("another signature: %s", token)
	}
	chain, err := Verify(canonical(t, object{"aat_chain": []string{token}}), Config{Anchors: []Anchor{{Issuer: testIssuer, Keys: []capability.Key{keyFor(t, role(1))}}}, Now: testNow})
	if err != nil || chain.Holder() != holder || chain.Depth() != 3 || chain.Expires().Unix() != 1704070800 {
		t.Errorf("%+v %v", chain, err)
	}
}

// TestPublishedLinkage makes the three-level chain of appendix E (vector J.3) and compares
// the digests that are printed there, which each next token commits to.
func TestPublishedLinkage(t *testing.T) {
	role := func(b byte) crypto.Signer { return keyFromSeed(bytes.Repeat([]byte{b}, 32)) }
	m := newMaker(t,
		object{
			"read_file":    object{"path": of("one_of", "values", []any{"/data/q3-report.pdf", "/data/q4-report.pdf"})},
			"search_index": object{"query": of("wildcard"), "limit": of("range", "max", 100)},
		},
		object{
			"read_file":    object{"path": of("one_of", "values", []any{"/data/q3-report.pdf"})},
			"search_index": object{"query": of("exact", "value", "public filings"), "limit": of("range", "max", 20)},
		},
		object{"read_file": pathOf("/data/q3-report.pdf")},
	)
	const begin = 1704067200
	for i, claims := range []object{
		{"jti": "019471f8-0000-7000-8000-000000000010", "iat": begin, "exp": begin + 3600, "del_max_depth": 3},
		{"jti": "019471f8-0000-7000-8000-000000000011", "iat": begin + 60, "exp": begin + 1800, "del_max_depth": 2},
		{"jti": "019471f8-0000-7000-8000-000000000012", "iat": begin + 120, "exp": begin + 1200, "del_max_depth": 2},
	} {
		maps.Copy(m.steps[i].claims, claims)
		m.steps[i].key, m.steps[i].holder = role(byte(i+1)), role(byte(i+2))
	}
	for i, want := range []string{
		"BR0nHWoCPtlrdOSpY8vPj7ejvLGj1SSJfK97P-ZWV0g",
		"3kFpxq53WreeYGKbIxNqnCqjRSmVjwNoHjjZKIuqRw0",
		"6JQpH_zCOFYgK-F4EjOrO9yssdlA24Ygm3JRH6stIdk",
	} {
		if got := hashOf(m.chain()[i]); got != want {
			t.Errorf("token %d: digest %s, want %s", i, got, want)
		}
	}
	chain, err := Verify(m.presentation(), Config{Anchors: []Anchor{{Issuer: testIssuer, Keys: []capability.Key{keyFor(t, role(1))}}}, Now: testNow})
	if err != nil || chain.Depth() != 0 {
		t.Errorf("%v", err)
	}
}

// TestAudienceOfIssuer: what an issuer calls this gateway counts in its chains only.
func TestAudienceOfIssuer(t *testing.T) {
	m := newMaker(t, object{"t": object{}})
	m.steps[0].claims["aud"] = "https://vault.example.com"
	if _, err := Verify(m.presentation(), testConfig(t)); err != nil {
		t.Error(err)
	}
	m = newMaker(t, object{"t": object{}})
	m.steps[0].claims["aud"], m.steps[0].claims["iss"], m.steps[0].key = "https://vault.example.com", "https://other.example.com", seeded("other")
	if _, err := Verify(m.presentation(), testConfig(t)); err == nil || !strings.Contains(err.Error(), "aud does not name") {
		t.Errorf("the name that another issuer has for us: %v", err)
	}
	m.steps[0].claims["aud"] = testAudience
	if _, err := Verify(m.presentation(), testConfig(t)); err != nil {
		t.Error(err)
	}
}

// TestKeys lists the key files that are read and those that are not.
func TestKeys(t *testing.T) {
	ed, p256 := jwkOf(t, seeded("a")), jwkOf(t, seededP256(t, "a"))
	private := jwkOf(t, seeded("a"))
	private["d"] = base64.RawURLEncoding.EncodeToString(seeded("a").Seed())
	for _, tt := range []struct {
		name string
		file any
		want int
	}{
		{"one key", ed, 1},
		{"a set", object{"keys": []any{ed, p256}}, 2},
		{"an empty set", object{"keys": []any{}}, 0},
		{"a private key", private, 0},
		{"a private key in a set", object{"keys": []any{ed, private}}, 0},
		{"an RSA key", object{"kty": "RSA", "n": "AQAB", "e": "AQAB"}, 0},
		{"a shared key", object{"kty": "oct", "k": "AAAA"}, 0},
		{"a point off the curve", object{"kty": "EC", "crv": "P-256", "x": p256["x"], "y": p256["x"]}, 0},
		{"a list", []any{ed}, 0},
	} {
		keys, err := ParseKeys(canonical(t, tt.file))
		if len(keys) != tt.want || (err == nil) != (tt.want > 0) {
			t.Errorf("%s: %d keys, %v", tt.name, len(keys), err)
		}
	}
	set, err := MarshalKey(keyFor(t, seeded("a")))
	if err != nil {
		t.Fatal(err)
	}
	if keys, err := ParseKeys(set); err != nil || keys[0] != keyFor(t, seeded("a")) {
		t.Errorf("%v %v", keys, err)
	}
	if _, err := vault.ParseValue(set); err != nil {
		t.Error(err)
	}
}

package aat

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
)

// The clock of the tests, an hour before the roots expire.
var testNow = time.Unix(1_704_067_500, 0)

const (
	testIssuer   = "https://auth.example.com"
	testAudience = "cluster-1"
)

// seeded returns a key that is the same in every run.
func seeded(name string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte(name))
	return ed25519.NewKeyFromSeed(seed[:])
}

func seededP256(t testing.TB, name string) *ecdsa.PrivateKey {
	t.Helper()
	d := sha256.Sum256([]byte(name))
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), d[:])
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func keyFor(t testing.TB, s crypto.Signer) capability.Key {
	t.Helper()
	k, err := capability.KeyOf(s.Public())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// An object is a JSON object of a test.
type object = map[string]any

// jwkOf is the public JWK of a key, made by hand.
func jwkOf(t testing.TB, s crypto.Signer) object {
	t.Helper()
	enc := base64.RawURLEncoding
	switch pub := s.Public().(type) {
	case ed25519.PublicKey:
		return object{"kty": "OKP", "crv": "Ed25519", "x": enc.EncodeToString(pub)}
	case *ecdsa.PublicKey:
		b, err := pub.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		return object{"kty": "EC", "crv": "P-256", "x": enc.EncodeToString(b[1:33]), "y": enc.EncodeToString(b[33:])}
	}
	t.Fatalf("key %T", s)
	return nil
}

// canonical encodes v in canonical JSON; a json.RawMessage stands as it is.
func canonical(t testing.TB, v any) []byte {
	t.Helper()
	if raw, ok := v.(json.RawMessage); ok {
		return raw
	}
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := vault.ParseValue(b)
	if err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	return doc.Bytes()
}

// signToken makes a compact JWS without the package under test. Its signatures are
// deterministic.
func signToken(t testing.TB, key crypto.Signer, header object, payload []byte) string {
	t.Helper()
	enc := base64.RawURLEncoding
	input := enc.EncodeToString(canonical(t, header)) + "." + enc.EncodeToString(payload)
	var sig []byte
	var err error
	switch key := key.(type) {
	case ed25519.PrivateKey:
		sig, err = key.Sign(nil, []byte(input), crypto.Hash(0))
	default:
		sum := sha256.Sum256([]byte(input))
		var der []byte
		if der, err = key.Sign(nil, sum[:], crypto.SHA256); err == nil { // RFC 6979
			var rs struct{ R, S *big.Int }
			_, err = asn1.Unmarshal(der, &rs)
			sig = append(rs.R.FillBytes(make([]byte, 32)), rs.S.FillBytes(make([]byte, 32))...)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return input + "." + enc.EncodeToString(sig)
}

// A step is one token of a chain that a test makes.
type step struct {
	key    crypto.Signer // that signs
	holder crypto.Signer
	header object
	claims object
	// raw changes the payload after it was encoded, where an object cannot say it.
	raw func([]byte) []byte
}

// A maker makes chains that are valid until a test breaks them.
type maker struct {
	t     testing.TB
	steps []*step
}

func details(tools any) []any {
	return []any{object{"type": entryType, "tools": tools}}
}

// newMaker makes a chain of a root and a token for each further map of tools.
func newMaker(t testing.TB, tools ...any) *maker {
	t.Helper()
	m := &maker{t: t}
	issuer := crypto.Signer(seeded("issuer"))
	for i, tool := range tools {
		holder := seeded("holder " + string(rune('0'+i)))
		m.steps = append(m.steps, &step{
			key: issuer, holder: holder, header: object{"alg": "Ed25519", "typ": tokenType},
			claims: object{
				"jti": "token-" + string(rune('0'+i)), "iss": testIssuer, "iat": testNow.Unix() - 300 + int64(i), "exp": testNow.Unix() + 3300 - int64(i),
				"del_depth": i, "del_max_depth": 3, "authorization_details": details(tool),
			},
		})
		issuer = holder
	}
	return m
}

// chain signs the tokens. What a test has set in the claims stays.
func (m *maker) chain() []string {
	m.t.Helper()
	var out []string
	for i, s := range m.steps {
		if _, set := s.claims["cnf"]; !set {
			s.claims["cnf"] = object{"jwk": jwkOf(m.t, s.holder)}
		}
		if i > 0 {
			sum := keyFor(m.t, m.steps[i-1].holder).JWKThumbprint()
			if s.claims["iss"] == testIssuer {
				s.claims["iss"] = "urn:ietf:params:oauth:jwk-thumbprint:sha-256:" + base64.RawURLEncoding.EncodeToString(sum[:])
			}
			if _, set := s.claims["par_hash"]; !set {
				parent := out[i-1]
				digest := sha256.Sum256([]byte(parent[:bytes.LastIndexByte([]byte(parent), '.')]))
				s.claims["par_hash"] = base64.RawURLEncoding.EncodeToString(digest[:])
			}
		}
		payload := canonical(m.t, s.claims)
		if s.raw != nil {
			payload = s.raw(slices.Clone(payload))
		}
		out = append(out, signToken(m.t, s.key, s.header, payload))
	}
	return out
}

// presentation is the chain as it is presented.
func (m *maker) presentation() []byte {
	m.t.Helper()
	return canonical(m.t, object{"aat_chain": m.chain()})
}

func testConfig(t testing.TB) Config {
	t.Helper()
	return Config{
		Anchors: []Anchor{
			{Issuer: "https://other.example.com", Keys: []capability.Key{keyFor(t, seeded("other"))}},
			{Issuer: testIssuer, Keys: []capability.Key{keyFor(t, seeded("issuer")), keyFor(t, seededP256(t, "issuer"))}, Audience: "https://vault.example.com"},
		},
		Audience: testAudience, Now: testNow,
	}
}

func keyFromSeed(seed []byte) ed25519.PrivateKey { return ed25519.NewKeyFromSeed(seed) }

package oauth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// An idp is an issuer of tokens.
type idp struct {
	t   testing.TB
	key *ecdsa.PrivateKey
	kid string
}

func newIDP(t testing.TB, kid string) *idp {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &idp{t, key, kid}
}

func (p *idp) jwks() []byte {
	p.t.Helper()
	b, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: p.key.Public(), KeyID: p.kid, Use: "sig", Algorithm: "ES256"}}})
	if err != nil {
		p.t.Fatal(err)
	}
	return b
}

func (p *idp) file() string {
	p.t.Helper()
	path := filepath.Join(p.t.TempDir(), "jwks.json")
	if err := os.WriteFile(path, p.jwks(), 0o600); err != nil {
		p.t.Fatal(err)
	}
	return path
}

func (p *idp) token(claims map[string]any, extra map[jose.HeaderKey]any) string {
	p.t.Helper()
	opts := &jose.SignerOptions{ExtraHeaders: map[jose.HeaderKey]any{"kid": p.kid, "typ": "JWT"}}
	maps.Copy(opts.ExtraHeaders, extra)
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: p.key}, opts)
	if err != nil {
		p.t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		p.t.Fatal(err)
	}
	jws, err := s.Sign(payload)
	if err != nil {
		p.t.Fatal(err)
	}
	text, err := jws.CompactSerialize()
	if err != nil {
		p.t.Fatal(err)
	}
	return text
}

var testNow = time.Unix(1_800_000_000, 0)

func goodClaims() map[string]any {
	return map[string]any{
		"iss": "https://idp.example", "aud": "pvault", "sub": "anna", "email": "anna@example.com", "email_verified": true,
		"iat": testNow.Unix(), "exp": testNow.Add(time.Hour).Unix(),
	}
}

// TestSubject lists what makes a subject token not count.
func TestSubject(t *testing.T) {
	p, thief, second := newIDP(t, "k1"), newIDP(t, "k1"), newIDP(t, "k2")
	list := []Issuer{
		{Issuer: "https://idp.example", Audience: "pvault", JWKS: p.file(), Claim: "email"},
		{Issuer: "https://second.example", Audience: "pvault", JWKS: second.file(), Prefix: "service:"},
	}
	issuers, err := NewIssuers(list, nil, func() time.Time { return testNow })
	if err != nil {
		t.Fatal(err)
	}
	set := func(k string, v any) map[string]any { c := goodClaims(); c[k] = v; return c }
	without := func(k string) map[string]any { c := goodClaims(); delete(c, k); return c }
	jwk := jose.JSONWebKey{Key: thief.key.Public()}
	for _, tt := range []struct {
		name  string
		token string
		ok    bool
	}{
		{"a good one", p.token(goodClaims(), nil), true},
		{"an access token by its type", p.token(goodClaims(), map[jose.HeaderKey]any{"typ": "at+jwt"}), true},
		{"a logout token by its type", p.token(goodClaims(), map[jose.HeaderKey]any{"typ": "logout+jwt"}), false},
		{"a DPoP proof by its type", p.token(goodClaims(), map[jose.HeaderKey]any{"typ": "dpop+jwt"}), false},
		{"another key under the same kid", thief.token(goodClaims(), nil), false},
		{"another key that the token brings itself", thief.token(goodClaims(), map[jose.HeaderKey]any{"jwk": jwk}), false},
		{"another key that the token names a URL for", thief.token(goodClaims(), map[jose.HeaderKey]any{"jku": "https://thief.example/jwks"}), false},
		{"a kid that looks like a path", p.token(goodClaims(), map[jose.HeaderKey]any{"kid": "../../k1"}), false},
		{"no kid", p.token(goodClaims(), map[jose.HeaderKey]any{"kid": ""}), false},
		{"another issuer's key for this issuer's name", second.token(goodClaims(), map[jose.HeaderKey]any{"kid": "k2"}), false},
		{"this issuer's key for another issuer's name", p.token(set("iss", "https://second.example"), nil), false},
		{"an issuer nobody knows", p.token(set("iss", "https://thief.example"), nil), false},
		{"an issuer with a slash more", p.token(set("iss", "https://idp.example/"), nil), false},
		{"another audience", p.token(set("aud", "shop"), nil), false},
		{"no audience", p.token(without("aud"), nil), false},
		{"several audiences and another party", p.token(set("aud", []string{"shop", "pvault"}), nil), false},
		{"expired this second", p.token(set("exp", testNow.Unix()), nil), false},
		{"no end", p.token(without("exp"), nil), false},
		{"not valid yet", p.token(set("nbf", testNow.Add(time.Minute).Unix()), nil), false},
		{"an address nobody verified", p.token(set("email_verified", false), nil), false},
		{"an address verified by a word", p.token(set("email_verified", "true"), nil), false},
		{"no such claim", p.token(without("email"), nil), false},
		{"a claim that is no text", p.token(set("email", []string{"anna@example.com"}), nil), false},
		{"a principal with a line break", p.token(set("email", "anna@example.com\nspiffe://x"), nil), false},
		{"a principal that is endless", p.token(set("email", strings.Repeat("a", 300)), nil), false},
		{"bound to a certificate", p.token(set("cnf", map[string]string{"x5t#S256": "abc"}), nil), false},
		{"too long", p.token(set("pad", strings.Repeat("a", maxToken)), nil), false},
		{"no token", "a.b.c", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := issuers.Subject(t.Context(), tt.token)
			if (err == nil) != tt.ok {
				t.Fatalf("%+v, %v", s, err)
			}
			if tt.ok && s.Principal != "user:anna@example.com" {
				t.Errorf("principal %q", s.Principal)
			}
		})
	}
	both := goodClaims()
	both["aud"], both["azp"] = []string{"shop", "pvault"}, "pvault"
	if _, err := issuers.Subject(t.Context(), p.token(both, nil)); err != nil {
		t.Errorf("several audiences, issued to us: %v", err)
	}
}

// TestIssuerConfig lists issuers that cannot be meant.
func TestIssuerConfig(t *testing.T) {
	p := newIDP(t, "k1")
	file := p.file()
	shared := filepath.Join(t.TempDir(), "shared.json")
	if err := os.WriteFile(shared, []byte(`{"keys":[{"kty":"oct","kid":"k1","k":"c2VjcmV0"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	good := Issuer{Issuer: "https://idp.example", Audience: "pvault", JWKS: file}
	for _, tt := range []struct {
		name string
		list func() []Issuer
	}{
		{"no audience", func() []Issuer { i := good; i.Audience = ""; return []Issuer{i} }},
		{"keys over plain HTTP", func() []Issuer { i := good; i.JWKS = "http://idp.example/jwks"; return []Issuer{i} }},
		{"a shared key in the set", func() []Issuer { i := good; i.JWKS = shared; return []Issuer{i} }},
		{"principals that look like SPIFFE IDs", func() []Issuer { i := good; i.Prefix = "spiffe:"; return []Issuer{i} }},
		{"the prefix of issuers of attenuating tokens", func() []Issuer { i := good; i.Prefix = PrefixAAT; return []Issuer{i} }},
		{"two issuers that name the same principals", func() []Issuer { i := good; i.Issuer = "https://b.example"; return []Issuer{good, i} }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := NewIssuers(tt.list(), nil, nil); err == nil {
				t.Error("accepted")
			}
		})
	}
}

// TestKeysFetched follows the key set of an issuer behind a URL: a new key is found
// soon, tokens with made-up kids do not make the gateway ask all the time, and keys
// that nobody can confirm any more stop counting.
func TestKeysFetched(t *testing.T) {
	p := newIDP(t, "k1")
	asked, down := 0, false
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked++
		if down {
			http.Error(w, "down", http.StatusInternalServerError)
			return
		}
		_, _ = w.Write(p.jwks())
	}))
	defer srv.Close()
	now := testNow
	issuers, err := NewIssuers([]Issuer{{Issuer: "https://idp.example", Audience: "pvault", JWKS: srv.URL}}, srv.Client(), func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	long := goodClaims()
	long["exp"] = testNow.Add(24 * time.Hour).Unix()
	subject := func() error { _, err := issuers.Subject(t.Context(), p.token(long, nil)); return err }
	for range 3 {
		if err := subject(); err != nil {
			t.Fatal(err)
		}
	}
	p.kid = "k2"
	for range 10 {
		if subject() == nil {
			t.Fatal("a key that was not fetched counts")
		}
	}
	if asked != 1 {
		t.Errorf("asked %d times within half a minute", asked)
	}
	now = now.Add(keysRetry)
	if err := subject(); err != nil {
		t.Errorf("the new key: %v", err)
	}
	down = true
	now = now.Add(keysFresh + time.Second)
	if err := subject(); err != nil {
		t.Errorf("the issuer is down for a moment: %v", err)
	}
	now = now.Add(keysStale)
	if subject() == nil {
		t.Error("the issuer is down for an hour and its keys still count")
	}
}

package oauth

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/pilox/vault/capability"
)

const testURL = "http://127.0.0.1:7700/mcp"

// A prover under test, with a clock and a client that has a key.
type dpopWorld struct {
	now    time.Time
	prover *Prover
	key    crypto.Signer
	alg    jose.SignatureAlgorithm
	typ    string
	jwk    any // of the header; nil: the key's public half
	claims map[string]any
}

func newDPoP(t testing.TB) *dpopWorld {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	w := &dpopWorld{now: time.Unix(1_800_000_000, 0), key: key, alg: jose.ES256, typ: "dpop+jwt"}
	w.prover = NewProver(func() time.Time { return w.now })
	w.claims = map[string]any{
		"jti": "j-1", "htm": "POST", "htu": testURL, "iat": w.now.Unix(), "ath": hashOf("vc1.token"), "nonce": w.prover.Nonce(),
	}
	return w
}

func hashOf(token string) string {
	sum := sha256.Sum256([]byte(token))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// proof signs the claims.
func (w *dpopWorld) proof(t testing.TB) string {
	t.Helper()
	jwk := w.jwk
	if jwk == nil {
		jwk = jose.JSONWebKey{Key: w.key.Public()}
	}
	opts := (&jose.SignerOptions{}).WithType(jose.ContentType(w.typ)).WithHeader("jwk", jwk)
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: w.alg, Key: w.key}, opts)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(w.claims)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := s.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	text, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (w *dpopWorld) check(proof, method, url, token string) (*Proof, error) {
	return w.prover.Check(http.Header{"Dpop": {proof}}, method, url, token)
}

func codeOf(err error) string {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return err.Error()
}

// TestProof lists what makes a proof not fit its request.
func TestProof(t *testing.T) {
	other := newDPoP(t)
	for _, tt := range []struct {
		name string
		do   func(*dpopWorld)
		want string
	}{
		{"it fits", func(*dpopWorld) {}, ""},
		{"it fits with another spelling of the URL", func(w *dpopWorld) { w.claims["htu"] = "HTTP://127.0.0.1:7700/mcp?x=1#f" }, ""},
		{"it fits under the nonce of a minute ago", func(w *dpopWorld) { w.now = w.now.Add(nonceStep) }, ""},
		{"Ed25519 fits too", func(w *dpopWorld) {
			_, w.key, _ = ed25519.GenerateKey(nil)
			w.alg = jose.EdDSA
		}, ""},
		{"another URL", func(w *dpopWorld) { w.claims["htu"] = "http://127.0.0.1:7700/token" }, InvalidProof},
		{"another host", func(w *dpopWorld) { w.claims["htu"] = "http://127.0.0.2:7700/mcp" }, InvalidProof},
		{"another port", func(w *dpopWorld) { w.claims["htu"] = "http://127.0.0.1/mcp" }, InvalidProof},
		{"another scheme", func(w *dpopWorld) { w.claims["htu"] = "https://127.0.0.1:7700/mcp" }, InvalidProof},
		{"a URL with a user", func(w *dpopWorld) { w.claims["htu"] = "http://a@127.0.0.1:7700/mcp" }, InvalidProof},
		{"another method", func(w *dpopWorld) { w.claims["htm"] = "GET" }, InvalidProof},
		{"another token", func(w *dpopWorld) { w.claims["ath"] = hashOf("vc1.other") }, InvalidProof},
		{"no token", func(w *dpopWorld) { delete(w.claims, "ath") }, InvalidProof},
		{"no jti", func(w *dpopWorld) { delete(w.claims, "jti") }, InvalidProof},
		{"no iat", func(w *dpopWorld) { delete(w.claims, "iat") }, InvalidProof},
		{"made an hour ago", func(w *dpopWorld) { w.claims["iat"] = w.now.Add(-time.Hour).Unix() }, InvalidProof},
		{"made an hour ahead", func(w *dpopWorld) { w.claims["iat"] = w.now.Add(time.Hour).Unix() }, InvalidProof},
		{"made at no time", func(w *dpopWorld) { w.claims["iat"] = 1e300 }, InvalidProof},
		{"no nonce", func(w *dpopWorld) { delete(w.claims, "nonce") }, UseNonce},
		{"another gateway's nonce", func(w *dpopWorld) { w.claims["nonce"] = other.prover.Nonce() }, UseNonce},
		{"the nonce of two minutes ago", func(w *dpopWorld) { w.now = w.now.Add(2 * nonceStep) }, UseNonce},
		{"another type", func(w *dpopWorld) { w.typ = "JWT" }, InvalidProof},
		{"signed with another key than it shows", func(w *dpopWorld) { w.jwk = jose.JSONWebKey{Key: other.key.Public()} }, InvalidProof},
		{"it shows a private key", func(w *dpopWorld) { w.jwk = jose.JSONWebKey{Key: w.key} }, InvalidProof},
		{"it shows a shared key", func(w *dpopWorld) { w.jwk = map[string]string{"kty": "oct", "k": "AAAA"} }, InvalidProof},
		{"it shows no key", func(w *dpopWorld) { w.jwk = "none" }, InvalidProof},
		{"a key of another curve", func(w *dpopWorld) {
			w.key, _ = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
			w.alg = jose.ES384
		}, InvalidProof},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newDPoP(t)
			tt.do(w)
			p, err := w.check(w.proof(t), "POST", testURL, "vc1.token")
			if codeOf(err) != tt.want || (err == nil) != (p != nil) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

// TestProofAlgorithms replaces the algorithm of a good proof: none, and a MAC keyed
// with the public key, which is what a verifier that believed the header would use.
func TestProofAlgorithms(t *testing.T) {
	w := newDPoP(t)
	good := w.proof(t)
	jwk, err := json.Marshal(jose.JSONWebKey{Key: w.key.Public()})
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(w.claims)
	if err != nil {
		t.Fatal(err)
	}
	enc := base64.RawURLEncoding.EncodeToString
	for _, alg := range []string{"none", "HS256", "RS256", "ES384", ""} {
		head := fmt.Sprintf(`{"typ":"dpop+jwt","alg":%q,"jwk":%s}`, alg, jwk)
		for _, sig := range []string{"", enc(make([]byte, 32)), enc(make([]byte, 64))} {
			if _, err := w.check(enc([]byte(head))+"."+enc(payload)+"."+sig, "POST", testURL, "vc1.token"); codeOf(err) != InvalidProof {
				t.Errorf("alg %q with a signature of %d: %v", alg, len(sig), err)
			}
		}
	}
	if _, err := w.prover.Check(http.Header{"Dpop": {good, good}}, "POST", testURL, "vc1.token"); codeOf(err) != InvalidProof {
		t.Errorf("two proofs: %v", err)
	}
	if _, err := w.prover.Check(http.Header{}, "POST", testURL, "vc1.token"); codeOf(err) != InvalidProof {
		t.Errorf("no proof: %v", err)
	}
}

// TestProofOnce holds replays: one proof counts once for as long as its nonce does.
func TestProofOnce(t *testing.T) {
	w := newDPoP(t)
	proof := w.proof(t)
	first, err := w.check(proof, "POST", testURL, "vc1.token")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.prover.Use(first); err != nil {
		t.Fatal(err)
	}
	for _, after := range []time.Duration{0, nonceStep} {
		w.now = w.now.Add(after)
		again, err := w.check(proof, "POST", testURL, "vc1.token")
		if err != nil {
			t.Fatal(err)
		}
		if err := w.prover.Use(again); codeOf(err) != InvalidProof {
			t.Errorf("after %v: %v", after, err)
		}
	}
	w.now = w.now.Add(nonceStep)
	if err := w.prover.Use(first); codeOf(err) != InvalidProof {
		t.Errorf("after its nonce: %v", err)
	}
	if n := len(w.prover.steps); n != 0 {
		t.Errorf("%d steps are remembered after their time", n)
	}
}

// TestProofMemory holds the bound on what is remembered: at it, a holder is refused
// and nothing is forgotten.
func TestProofMemory(t *testing.T) {
	w := newDPoP(t)
	key, err := capability.KeyOf(w.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	one := func(i int) *Proof {
		p := &Proof{Key: key, step: w.prover.step()}
		p.jti[0], p.jti[1], p.jti[2] = byte(i), byte(i>>8), byte(i>>16)
		return p
	}
	for i := range maxUsedBy {
		if err := w.prover.Use(one(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.prover.Use(one(maxUsedBy)); codeOf(err) != Unavailable {
		t.Errorf("beyond the bound: %v", err)
	}
	if err := w.prover.Use(one(0)); codeOf(err) != InvalidProof {
		t.Errorf("a replay at the bound: %v", err)
	}
}

// TestThumbprint holds the JWK thumbprints to the example of RFC 8037, appendix A.3.
func TestThumbprint(t *testing.T) {
	x, err := base64.RawURLEncoding.DecodeString("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo")
	if err != nil {
		t.Fatal(err)
	}
	key, err := capability.KeyOf(ed25519.PublicKey(x))
	if err != nil {
		t.Fatal(err)
	}
	got := key.JWKThumbprint()
	if s := base64.RawURLEncoding.EncodeToString(got[:]); s != "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k" {
		t.Errorf("thumbprint %s", s)
	}
	w := newDPoP(t)
	want, err := (&jose.JSONWebKey{Key: w.key.Public()}).Thumbprint(crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if key, err = capability.KeyOf(w.key.Public()); err != nil {
		t.Fatal(err)
	}
	if got := key.JWKThumbprint(); got.String() != hex.EncodeToString(want) {
		t.Errorf("P-256: %v, go-jose says %x", got, want)
	}
}

// FuzzProof holds that no header panics and that what is accepted fits its request.
func FuzzProof(f *testing.F) {
	w := newDPoP(f)
	f.Add(w.proof(f), "POST", testURL, "vc1.token")
	f.Add("a.b.c", "GET", "", "")
	f.Fuzz(func(t *testing.T, proof, method, url, token string) {
		p, err := w.check(proof, method, url, token)
		if (err == nil) != (p != nil) {
			t.Fatal("neither proof nor error")
		}
		if err == nil && (method != "POST" || token != "vc1.token") {
			t.Errorf("accepted for %s and %q", method, token)
		}
	})
}

// TestSignProof: what is signed here passes here, for both kinds of key, and only for
// the request that it was made for.
func TestSignProof(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	p := NewProver(func() time.Time { return now })
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []crypto.Signer{edwards, p256} {
		for _, token := range []string{"", "vc1.token"} {
			proof, err := SignProof(key, http.MethodPost, testURL, p.Nonce(), token, now)
			if err != nil {
				t.Fatal(err)
			}
			h := http.Header{"Dpop": {proof}}
			got, err := p.Check(h, http.MethodPost, testURL, token)
			if err != nil {
				t.Fatalf("%T, token %q: %v", key, token, err)
			}
			if want, err := capability.KeyOf(key.Public()); err != nil || got.Key != want {
				t.Errorf("%T: proves %v", key, got.Key)
			}
			if _, err := p.Check(h, http.MethodPost, testURL, token+"x"); err == nil {
				t.Error("for another token too")
			}
		}
	}
}

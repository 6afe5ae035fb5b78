package daemon_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/daemon"
)

// A dpopClient is an OAuth client with a key of its own.
type dpopClient struct {
	t     *testing.T
	key   *ecdsa.PrivateKey
	nonce string // of the server
	jti   int
	kind  string // of subject tokens; "" means id_token
}

func newDPoPClient(t *testing.T) *dpopClient {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &dpopClient{t: t, key: key}
}

// signJWT signs claims as a compact JWS.
func signJWT(t *testing.T, key *ecdsa.PrivateKey, o *jose.SignerOptions, claims map[string]any) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, o)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := s.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	out, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// proof makes a DPoP proof for one request (RFC 9449, section 4.2).
func (c *dpopClient) proof(method, to, token string) string {
	c.t.Helper()
	c.jti++
	claims := map[string]any{"jti": "j-" + string(rune('a'+c.jti)), "htm": method, "htu": to, "iat": time.Now().Unix(), "nonce": c.nonce}
	if token != "" {
		sum := sha256.Sum256([]byte(token))
		claims["ath"] = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	o := new(jose.SignerOptions).WithType("dpop+jwt").WithHeader("jwk", jose.JSONWebKey{Key: c.key.Public()})
	return signJWT(c.t, c.key, o, claims)
}

// exchange asks for a token and returns the status and the answer.
func (c *dpopClient) exchange(r *rig, subject, audience string) (int, map[string]any) {
	c.t.Helper()
	to := "http://" + r.addr + "/token"
	kind := c.kind
	if kind == "" {
		kind = "urn:ietf:params:oauth:token-type:id_token"
	}
	form := url.Values{
		"grant_type":    {"urn:ietf:params:oauth:grant-type:token-exchange"},
		"subject_token": {subject}, "subject_token_type": {kind}, "audience": {audience},
	}
	for {
		req, err := http.NewRequestWithContext(c.t.Context(), http.MethodPost, to, strings.NewReader(form.Encode()))
		if err != nil {
			c.t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("DPoP", c.proof(http.MethodPost, to, ""))
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			c.t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			c.t.Fatal(err)
		}
		var answer map[string]any
		if err := json.Unmarshal(b, &answer); err != nil {
			c.t.Fatalf("%s: %s", res.Status, b)
		}
		fresh := res.Header.Get("Dpop-Nonce")
		if answer["error"] == "use_dpop_nonce" && fresh != "" && fresh != c.nonce {
			c.nonce = fresh
			continue
		}
		return res.StatusCode, answer
	}
}

// TestTokenExchange follows a client from its identity provider's token to a call:
// exchanged for the capability of a reviewed task, held by the client's own key, and
// worth nothing in anybody else's hands.
func TestTokenExchange(t *testing.T) {
	const file = "version: 1\npurpose: act for whoever asks\nprincipal: user:nobody@example.com\nlife: 1h\ntools: {up.act: {args: any}}\nbudgets: {calls: 3}\n"
	idp, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	jwks, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: idp.Public(), KeyID: "k1", Algorithm: "ES256", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"jwks.json": jwks, "task.yaml": []byte(file)} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := startDaemon(t, func(c *daemon.Config) {
		c.Exchange = daemon.Exchange{
			Issuers: []daemon.TokenIssuer{{Issuer: "https://idp.example", Audience: "vault", JWKS: filepath.Join(dir, "jwks.json"), Claim: "sub", Prefix: "user:"}},
			Grants: []daemon.ExchangeGrant{{
				Name: "act", Task: filepath.Join(dir, "task.yaml"), Digest: vault.Hash("task-file", []byte(file), nil).String(),
				Subjects: []string{"user:anna", "user:carl"}, Life: 10 * time.Minute, PerDay: 1,
			}},
		}
		c.Policy.Hooks = []daemon.Hook{{At: "token.delegate", Engine: "cel", Expr: `input.event.why == "exchange act" && input.principal.user != "user:carl"`}}
	})
	up := newUpstream(t, "act")
	r.addURL("up", up.url)

	idToken := func(edit func(map[string]any)) string {
		claims := map[string]any{"iss": "https://idp.example", "aud": "vault", "sub": "anna", "iat": time.Now().Unix(), "exp": time.Now().Add(5 * time.Minute).Unix()}
		if edit != nil {
			edit(claims)
		}
		return signJWT(t, idp, new(jose.SignerOptions).WithType("JWT").WithHeader("kid", "k1"), claims)
	}
	client := newDPoPClient(t)
	for _, tt := range []struct {
		name, token, audience, want string
	}{
		{"another audience of the token", idToken(func(c map[string]any) { c["aud"] = "mail" }), "act", "invalid_grant"},
		{"another issuer", idToken(func(c map[string]any) { c["iss"] = "https://evil.example" }), "act", "invalid_grant"},
		{"an expired token", idToken(func(c map[string]any) { c["exp"] = time.Now().Add(-time.Hour).Unix() }), "act", "invalid_grant"},
		{"a subject that may not", idToken(func(c map[string]any) { c["sub"] = "bob" }), "act", "invalid_target"},
		{"a subject whom the rules refuse", idToken(func(c map[string]any) { c["sub"] = "carl" }), "act", "invalid_target"},
		{"a task that is not offered", idToken(nil), "pay", "invalid_target"},
		{"a token that somebody else signed", signJWT(t, client.key, new(jose.SignerOptions).WithType("JWT").WithHeader("kid", "k1"), map[string]any{"iss": "https://idp.example", "aud": "vault", "sub": "anna", "exp": time.Now().Add(time.Hour).Unix()}), "act", "invalid_grant"},
	} {
		if status, answer := client.exchange(r, tt.token, tt.audience); status == http.StatusOK || answer["error"] != tt.want {
			t.Errorf("%s: %d %v, want %s", tt.name, status, answer, tt.want)
		}
	}
	status, answer := client.exchange(r, idToken(nil), "act")
	token, _ := answer["access_token"].(string)
	if status != http.StatusOK || answer["token_type"] != "DPoP" || !strings.HasPrefix(token, "vc1.") {
		t.Fatalf("%d %v", status, answer)
	}

	mcp := "http://" + r.addr + "/mcp"
	header := func(scheme, token, proof string) http.Header {
		h := http.Header{"Authorization": {scheme + " " + token}}
		if proof != "" {
			h.Set("DPoP", proof)
		}
		return h
	}
	once := client.proof(http.MethodPost, mcp, token)
	if status, body := r.post(t, header("DPoP", token, once), "c-1", "act", `{"id":"one"}`); status != http.StatusOK || up.ran("one") != 1 {
		t.Fatalf("the holder's call: %d %s", status, body)
	}
	// The same token, or the same proof, in other hands or for another request.
	thief := newDPoPClient(t)
	thief.nonce = client.nonce
	for name, h := range map[string]http.Header{
		"the proof again":             header("DPoP", token, once),
		"the proof of another key":    header("DPoP", token, thief.proof(http.MethodPost, mcp, token)),
		"the proof of another URL":    header("DPoP", token, client.proof(http.MethodPost, "http://"+r.addr+"/token", token)),
		"the proof of another method": header("DPoP", token, client.proof(http.MethodGet, mcp, token)),
		"the proof of another token":  header("DPoP", token, client.proof(http.MethodPost, mcp, "vc1.other")),
		"no proof":                    header("DPoP", token, ""),
		"the token as a bearer's":     header("Bearer", token, ""),
	} {
		status, body := r.post(t, h, "c-"+strings.ReplaceAll(name, " ", "-"), "act", `{"id":"two"}`)
		if status != http.StatusUnauthorized || !strings.Contains(body, "proof") {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	if n := up.ran("two"); n != 0 {
		t.Errorf("%d stolen calls ran", n)
	}
	// Asking again gives no fresh budget: it is the same instance of the task.
	_, again := client.exchange(r, idToken(nil), "act")
	second, _ := again["access_token"].(string)
	for i, want := range []bool{true, true, false} {
		_, body := r.post(t, header("DPoP", second, client.proof(http.MethodPost, mcp, second)), "c-again-"+string(rune('0'+i)), "act", `{"id":"three"}`)
		if ok := !strings.Contains(body, string(vault.CodeCapabilityBudget)); ok != want {
			t.Errorf("call %d under the second token: %s", i, body)
		}
	}
	proofs := map[string]int{}
	for _, rec := range r.records("") {
		if rec.Leaf.Class == string(vault.ClassCall) && rec.Leaf.Phase == string(vault.PhaseIntent) {
			proofs[rec.Leaf.Proof]++
		}
	}
	if len(proofs) != 1 || proofs[string(vault.ProofDPoP)] != 3 {
		t.Errorf("proofs on record: %v", proofs)
	}
}

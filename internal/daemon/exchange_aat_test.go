package daemon_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
	"github.com/pilox/vault/internal/daemon"
)

const aatType = "urn:dev.pilox.vault:token-type:aat"

// An aatToken is one token of a chain and the keys around it.
type aatToken struct {
	compact string
	claims  map[string]any
	holder  *ecdsa.PrivateKey
}

func p256(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issueAAT signs a token for holder: a root by an issuer's key, or, with a parent, a
// child by the parent's holder. tools are JSON.
func issueAAT(t *testing.T, parent *aatToken, key, holder *ecdsa.PrivateKey, jti, tools string, edit map[string]any) *aatToken {
	t.Helper()
	claims := map[string]any{
		"jti": jti, "iss": "https://partner.example", "iat": time.Now().Unix(), "exp": time.Now().Add(30 * time.Minute).Unix(), "del_depth": 0, "del_max_depth": 2,
		"cnf":                   map[string]any{"jwk": jose.JSONWebKey{Key: holder.Public()}},
		"authorization_details": []any{map[string]any{"type": "attenuating_agent_token", "tools": json.RawMessage(tools)}},
	}
	if parent != nil {
		key = parent.holder
		k, err := capability.KeyOf(key.Public())
		if err != nil {
			t.Fatal(err)
		}
		sum, hash := k.JWKThumbprint(), sha256.Sum256([]byte(parent.compact[:strings.LastIndexByte(parent.compact, '.')]))
		maps.Copy(claims, map[string]any{
			"iss":       "urn:ietf:params:oauth:jwk-thumbprint:sha-256:" + base64.RawURLEncoding.EncodeToString(sum[:]),
			"par_hash":  base64.RawURLEncoding.EncodeToString(hash[:]),
			"del_depth": parent.claims["del_depth"].(int) + 1, "iat": parent.claims["iat"], "exp": parent.claims["exp"],
		})
	}
	maps.Copy(claims, edit)
	return &aatToken{signJWT(t, key, new(jose.SignerOptions).WithType("aat+jwt"), claims), claims, holder}
}

func presentation(t *testing.T, tokens ...*aatToken) string {
	t.Helper()
	var list []string
	for _, k := range tokens {
		list = append(list, k.compact)
	}
	b, err := json.Marshal(map[string]any{"aat_chain": list})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestAATExchange follows a chain of attenuating tokens of a trusted issuer to calls:
// exchanged for what both the tokens and the reviewed task file allow, held by the key
// of its last token, under the budgets of one task for all of the issuer's tokens.
func TestAATExchange(t *testing.T) {
	const file = "version: 1\npurpose: act for a partner\nprincipal: user:nobody@example.com\nlife: 1h\n" +
		"tools: {up.act: {args: any}, up.pay: {args: {id: {one_of: [low, high]}}}, up.secret: {args: any}}\nbudgets: {calls: 4}\n"
	const all = "version: 1\npurpose: act for a partner\nprincipal: user:nobody@example.com\nlife: 1h\ntools: {\"up.*\": {args: any}}\nbudgets: {calls: 4}\n"
	issuer, stranger := p256(t), p256(t)
	dir := t.TempDir()
	jwks, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: issuer.Public()}}})
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"jwks.json": jwks, "task.yaml": []byte(file), "all.yaml": []byte(all)} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := startDaemon(t, func(c *daemon.Config) {
		c.Exchange = daemon.Exchange{
			AAT: []daemon.AATIssuer{{Issuer: "https://partner.example", JWKS: filepath.Join(dir, "jwks.json"), Audience: "https://vault.example"}},
			Grants: []daemon.ExchangeGrant{{
				Name: "act", Task: filepath.Join(dir, "task.yaml"), Digest: vault.Hash("task-file", []byte(file), nil).String(),
				Subjects: []string{"aat:https://partner.example"}, Life: 10 * time.Minute, PerDay: 1,
			}, {
				Name: "all", Task: filepath.Join(dir, "all.yaml"), Digest: vault.Hash("task-file", []byte(all), nil).String(),
				Subjects: []string{"aat:https://partner.example"}, Life: 10 * time.Minute, PerDay: 1,
			}},
		}
	})
	up := newUpstream(t, "act", "pay", "secret")
	r.addURL("up", up.url)

	const tools = `{"up.act":{"id":{"constraint_type":"one_of","values":["one","two","three"]}},"up.pay":{},"up.gone":{},"other.act":{},"up.*":{}}`
	const narrow = `{"up.act":{"id":{"constraint_type":"exact","value":"two"}}}`
	client, deputy := newDPoPClient(t), newDPoPClient(t)
	client.kind, deputy.kind = aatType, aatType
	root := issueAAT(t, nil, issuer, client.key, "root-1", tools, map[string]any{"aud": "https://vault.example"})
	child := issueAAT(t, root, nil, deputy.key, "child-1", narrow, nil)

	for _, tt := range []struct {
		name  string
		by    *dpopClient
		token string
		want  string
	}{
		{"a stranger's root", client, presentation(t, issueAAT(t, nil, stranger, client.key, "x", tools, nil)), "invalid_grant"},
		{"an expired root", client, presentation(t, issueAAT(t, nil, issuer, client.key, "x", tools, map[string]any{"exp": time.Now().Add(-time.Second).Unix(), "iat": time.Now().Add(-time.Hour).Unix()})), "invalid_grant"},
		{"another audience", client, presentation(t, issueAAT(t, nil, issuer, client.key, "x", tools, map[string]any{"aud": "https://mail.example"})), "invalid_grant"},
		{"a chain in other hands", deputy, presentation(t, root), "invalid_grant"},
		{"a chain in the hands before", client, presentation(t, root, child), "invalid_grant"},
		{"a child alone", deputy, presentation(t, child), "invalid_grant"},
		{"a child that widens", deputy, presentation(t, root, issueAAT(t, root, nil, deputy.key, "x", `{"up.secret":{}}`, nil)), "invalid_grant"},
		{"a child that outlives its parent", deputy, presentation(t, root, issueAAT(t, root, nil, deputy.key, "x", narrow, map[string]any{"exp": root.claims["exp"].(int64) + 60})), "invalid_grant"},
		{"a token that is not in a presentation", client, root.compact, "invalid_grant"},
		{"nothing that the task grants", client, presentation(t, issueAAT(t, nil, issuer, client.key, "x", `{"up.gone":{},"up.*":{}}`, nil)), "invalid_target"},
		{"what no capability says", client, presentation(t, issueAAT(t, nil, issuer, client.key, "x", `{"up.act":{"id":{"constraint_type":"exact","value":null}}}`, nil)), "invalid_grant"},
	} {
		if status, answer := tt.by.exchange(r, tt.token, "act"); status == http.StatusOK || answer["error"] != tt.want {
			t.Errorf("%s: %d %v, want %s", tt.name, status, answer, tt.want)
		}
	}
	asID := newDPoPClient(t)
	asID.key = client.key
	if status, _ := asID.exchange(r, presentation(t, root), "act"); status == http.StatusOK {
		t.Error("a chain passes for an id token")
	}

	exchange := func(c *dpopClient, tokens ...*aatToken) string {
		status, answer := c.exchange(r, presentation(t, tokens...), "act")
		token, _ := answer["access_token"].(string)
		if status != http.StatusOK || answer["token_type"] != "DPoP" || !strings.HasPrefix(token, "vc1.") {
			t.Fatalf("%d %v", status, answer)
		}
		return token
	}
	wide, tight := exchange(client, root), exchange(deputy, root, child)
	deputy2 := issueAAT(t, child, nil, client.key, "grandchild", narrow, nil)
	last := exchange(client, root, child, deputy2)

	mcp := "http://" + r.addr + "/mcp"
	calls := 0
	call := func(c *dpopClient, token, tool, args string) string {
		calls++
		h := http.Header{"Authorization": {"DPoP " + token}, "Dpop": {c.proof(http.MethodPost, mcp, token)}}
		_, body := r.post(t, h, "c-"+string(rune('a'+calls)), tool, args)
		return body
	}
	for _, tt := range []struct {
		name       string
		by         *dpopClient
		token      string
		tool, args string
		want       vault.Code // "" runs
	}{
		{"what both allow", client, wide, "act", `{"id":"one"}`, ""},
		{"what the tokens do not list", client, wide, "act", `{"id":"four"}`, vault.CodeCapabilityArgument},
		{"an argument that the tokens do not name", client, wide, "act", `{"id":"one","to":"x"}`, vault.CodeCapabilityArgument},
		{"what the task does not list", client, wide, "pay", `{"id":"all"}`, vault.CodeCapabilityArgument},
		{"what the task lists and the tokens leave open", client, wide, "pay", `{"id":"low"}`, ""},
		{"what the child does not list", deputy, tight, "act", `{"id":"one"}`, vault.CodeCapabilityArgument},
		{"what the child lists", deputy, tight, "act", `{"id":"two"}`, ""},
		{"the last of three tokens", client, last, "act", `{"id":"two"}`, ""},
		{"a fifth call under the budget that all share", client, wide, "act", `{"id":"one"}`, vault.CodeCapabilityBudget},
	} {
		body := call(tt.by, tt.token, tt.tool, tt.args)
		if refused := strings.Contains(body, `"reason"`) || strings.Contains(body, "capability."); tt.want == "" && refused || tt.want != "" && !strings.Contains(body, string(tt.want)) {
			t.Errorf("%s: %s, want %q", tt.name, body, tt.want)
		}
	}
	for _, hidden := range []struct {
		by    *dpopClient
		token string
		tool  string
	}{{client, wide, "secret"}, {deputy, tight, "pay"}} {
		if body := call(hidden.by, hidden.token, hidden.tool, `{"id":"low"}`); !strings.Contains(body, string(vault.CodeCapabilityTarget)) {
			t.Errorf("%s is not granted: %s", hidden.tool, body)
		}
	}
	thief := newDPoPClient(t)
	thief.nonce = client.nonce
	if body := call(thief, wide, "act", `{"id":"one"}`); !strings.Contains(body, "proof") || up.ran("one") != 1 {
		t.Errorf("the capability in other hands: %s", body)
	}

	// A capability ends with its tokens, and a task that grants every tool gives those
	// that the tokens name.
	short := issueAAT(t, nil, issuer, client.key, "short", `{"up.act":{},"up.*":{}}`, map[string]any{"exp": time.Now().Add(2 * time.Minute).Unix()})
	status, answer := client.exchange(r, presentation(t, short), "all")
	token, _ := answer["access_token"].(string)
	if in, _ := answer["expires_in"].(float64); status != http.StatusOK || in < 100 || in > 120 {
		t.Errorf("%d %v, want two minutes", status, answer)
	}
	if body := call(client, token, "pay", `{"id":"low"}`); !strings.Contains(body, string(vault.CodeCapabilityTarget)) {
		t.Errorf("a tool that the tokens do not name: %s", body)
	}
	if body := call(client, token, "act", `{"id":"any"}`); up.ran("any") != 1 {
		t.Errorf("a tool that both name: %s", body)
	}

	// It is on record which token it was, and who vouched for it.
	chain, err := capability.ParseText(last)
	if err != nil {
		t.Fatal(err)
	}
	if links := chain.Links(); len(links) != 2 || links[0].Principal != "aat:https://partner.example" || *links[1].Depth != 0 || links[1].Holder.Key.JWKThumbprint() == (vault.Digest{}) {
		t.Errorf("links %+v", links)
	}
	found := false
	for _, rec := range r.records("") {
		if rec.Leaf.Class == string(vault.ClassTask) && rec.Leaf.Phase == string(vault.PhaseNoted) {
			found = found || strings.Contains(string(rec.Fields["by"]), "AAT grandchild")
		}
	}
	if !found {
		t.Error("the record does not name the token")
	}
}

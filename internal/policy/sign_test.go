package policy_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"testing"

	opabundle "github.com/open-policy-agent/opa/v1/bundle"

	"github.com/pilox/vault/internal/policy"
)

// A signer makes keys in the form that files hold them.
type signer struct {
	private []byte
	key     policy.Key
}

func newSigner(t *testing.T, id, algorithm string) signer {
	t.Helper()
	var key crypto.Signer
	var err error
	switch algorithm {
	case "ES256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "EdDSA":
		_, key, err = ed25519.GenerateKey(nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	private, err1 := x509.MarshalPKCS8PrivateKey(key)
	public, err2 := x509.MarshalPKIXPublicKey(key.Public())
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return signer{
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
		policy.Key{ID: id, Algorithm: algorithm, PEM: pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})},
	}
}

// TestSignedBundle reads as the specification of signed bundles: what happens to a
// bundle after it was signed, and whether it loads.
func TestSignedBundle(t *testing.T) {
	write := func(name, text string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func(name string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tt := range []struct {
		name string
		edit func(t *testing.T, dir string)
		ok   bool
	}{
		{"nothing", func(*testing.T, string) {}, true},
		{"data in another layout", write("data.json", "{ \"limit\" :500 }"), true},
		{"a test beside it", write("p_test.rego", "package p_test"), true},
		{"other data", write("data.json", `{"limit": 501}`), false},
		{"another rule", write("p.rego", "package p\ndecision := true\n"), false},
		{"one more module", write("q.rego", "package p\nallow := true\n"), false},
		{"a module less", remove("q/r.rego"), false},
		{"no signature", remove(".signatures.json"), false},
		{"an empty signature", write(".signatures.json", `{"signatures": []}`), false},
		{"no JSON", write(".signatures.json", `{`), false},
		{"a signature that names a plugin", write(".signatures.json", `{"signatures": ["a.b.c"], "plugin": "x"}`), false},
	} {
		for _, algorithm := range []string{"ES256", "EdDSA"} {
			t.Run(tt.name+" "+algorithm, func(t *testing.T) {
				b := bundle(t, map[string]string{"p.rego": "package p\ndecision := false\n", "q/r.rego": "package q.r\nx := 1\n", "data.json": `{"limit": 500}`})
				s := newSigner(t, "k1", algorithm)
				if _, err := policy.Sign(b.Dir, "k1", algorithm, s.private); err != nil {
					t.Fatal(err)
				}
				tt.edit(t, b.Dir)
				b.Unsigned, b.Key = false, &s.key
				_, err := policy.New(t.Context(), policy.Config{Bundles: []policy.Bundle{b}, Hooks: []policy.Hook{hook()}})
				if (err == nil) != tt.ok || err != nil && !errors.Is(err, policy.ErrSignature) {
					t.Errorf("got %v", err)
				}
			})
		}
	}
}

// A signature over digests that two files can share says nothing of either.
func TestSignedByAWeakHash(t *testing.T) {
	const text = "package p\ndecision := true\n"
	b := bundle(t, map[string]string{"p.rego": text})
	s := newSigner(t, "k1", "ES256")
	for alg, ok := range map[opabundle.HashingAlgorithm]bool{opabundle.MD5: false, opabundle.SHA1: false, opabundle.SHA256: true, opabundle.SHA512: true} {
		hasher, err := opabundle.NewSignatureHasher(alg)
		if err != nil {
			t.Fatal(err)
		}
		sum, err := hasher.HashFile([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		token, err := opabundle.GenerateSignedToken([]opabundle.FileInfo{opabundle.NewFile("p.rego", hex.EncodeToString(sum), alg.String())}, opabundle.NewSigningConfig(string(s.private), "ES256", ""), "k1")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(b.Dir, ".signatures.json"), []byte(`{"signatures":["`+token+`"]}`), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := policy.Verify(b.Dir, s.key); (err == nil) != ok || err != nil && !errors.Is(err, policy.ErrSignature) {
			t.Errorf("%s: %v", alg, err)
		}
	}
}

func TestSignedByAnother(t *testing.T) {
	b := bundle(t, map[string]string{"p.rego": "package p\ndecision := true\n"})
	s, other := newSigner(t, "k1", "ES256"), newSigner(t, "k1", "ES256")
	if _, err := policy.Sign(b.Dir, "k1", "ES256", s.private); err != nil {
		t.Fatal(err)
	}
	if n, err := policy.Verify(b.Dir, s.key); err != nil || n != 1 {
		t.Errorf("%d files, %v", n, err)
	}
	if _, err := policy.Verify(b.Dir, other.key); !errors.Is(err, policy.ErrSignature) {
		t.Errorf("another key under the same name: %v", err)
	}
	for _, algorithm := range []string{"HS256", "none", "", "ES512"} {
		confused := s.key
		confused.Algorithm = algorithm
		if _, err := policy.Verify(b.Dir, confused); err == nil {
			t.Errorf("verified as %q", algorithm)
		}
	}
	// A reload that fails keeps the last good rules.
	b.Unsigned, b.Key = false, &s.key
	p, err := policy.New(t.Context(), policy.Config{Bundles: []policy.Bundle{b}, Hooks: []policy.Hook{hook()}})
	if err != nil {
		t.Fatal(err)
	}
	before := p.Revision()
	if err := os.WriteFile(filepath.Join(b.Dir, "p.rego"), []byte("package p\ndecision := false\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.Reload(t.Context()); !errors.Is(err, policy.ErrSignature) {
		t.Errorf("reloaded a changed bundle: %v", err)
	}
	if st := p.Status(); p.Revision() != before || st.Err == nil {
		t.Errorf("the last good rules are gone: %+v", st)
	}
}

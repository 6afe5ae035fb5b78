package aat

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pilox/vault/capability"
)

func seedVectors(f *testing.F) vectors {
	f.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", vectorFile))
	if err != nil {
		f.Fatal(err)
	}
	var file vectors
	if err := json.Unmarshal(b, &file); err != nil {
		f.Fatal(err)
	}
	return file
}

// FuzzVerify holds that no presentation panics, and that what is accepted was signed by
// the issuer and the holders: a changed byte of what was signed does not pass.
func FuzzVerify(f *testing.F) {
	file := seedVectors(f)
	good := map[string]bool{}
	for _, v := range file.Cases {
		var b bytes.Buffer
		if err := json.Compact(&b, v.Chain); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
		if v.Reject == "" {
			list, err := Parse(b.Bytes())
			if err != nil {
				f.Fatal(err)
			}
			for n := range list {
				good[signedText(list[:n+1])] = true
			}
		}
	}
	conf := testConfig(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, err := Verify(raw, conf); err != nil {
			return
		}
		if list, _ := Parse(raw); !good[signedText(list)] {
			t.Errorf("accepted %q", raw)
		}
	})
}

// signedText is what the tokens of a chain sign: an ECDSA signature has two forms.
func signedText(list []string) string {
	var b strings.Builder
	for _, token := range list {
		b.WriteString(token[:strings.LastIndexByte(token, '.')+1])
	}
	return b.String()
}

// FuzzClaims reads payloads as if they had been signed: nothing panics, what is read
// narrows itself, and what it makes of rules can be minted or is refused.
func FuzzClaims(f *testing.F) {
	for _, v := range seedVectors(f).Cases {
		list, err := Parse(v.Chain)
		if err != nil {
			continue
		}
		for _, token := range list {
			f.Add(payloadOf(token))
		}
	}
	f.Add([]byte(`{"jti":"a","iss":"https://a","iat":1,"exp":2,"del_depth":0,"del_max_depth":0}`))
	g := newGate(f)
	locals := []capability.Rule{{Any: true}, {Args: capability.Args{"/a": {}, "/o/x": {Optional: true}}}}
	f.Fuzz(func(t *testing.T, payload []byte) {
		tok, err := decode(payload)
		if err != nil {
			return
		}
		if tok.id == "" || tok.issuer == "" || tok.holder.IsZero() || tok.depth < 0 || tok.deeper < 0 {
			t.Fatalf("accepted %+v", tok)
		}
		chain := &Chain{tokens: []*token{tok}}
		for name, args := range tok.tools {
			if err := args.narrows(&args); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			for _, local := range locals {
				rule, err := chain.Rule(name, local)
				if err != nil {
					continue
				}
				if rule.Any {
					t.Errorf("%s: a child that leaves arguments open", name)
				}
				if c, err := g.mint(local, rule); err == nil {
					if _, err := capability.Parse(c.Bytes()); err != nil {
						t.Errorf("%s: %v", name, err)
					}
				}
			}
		}
	})
}

// payloadOf returns what a compact JWS carries, nil if it is none.
func payloadOf(token string) []byte {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil
	}
	return b
}

// FuzzKeys holds that no key file panics and that only public keys come out of one.
func FuzzKeys(f *testing.F) {
	for _, set := range seedVectors(f).Anchors {
		f.Add([]byte(set))
	}
	f.Add([]byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AAAA","d":"AAAA"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		keys, err := ParseKeys(b)
		if err != nil {
			return
		}
		for _, k := range keys {
			if k.IsZero() {
				t.Error("no key")
			}
		}
	})
}

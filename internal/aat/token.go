package aat

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
)

// The names of the signature algorithms, fully specified (RFC 9864).
const (
	algEd25519 jose.SignatureAlgorithm = "Ed25519"
	algES256                           = jose.ES256
)

// A token is one token whose signature was verified.
type token struct {
	id, issuer    string
	issued, ends  int64 // Unix seconds
	depth, deeper int64 // del_depth, del_max_depth
	parent        string
	holder        capability.Key
	audience      []string // nil: says nothing
	hash          string   // what a child has as par_hash

	entry bool // there is a capability entry; without one tools is empty
	tools map[string]arguments
}

// parseSigned splits a compact JWS and checks its header. The key that verifies it is
// never taken from the header.
func parseSigned(compact string) (jws *jose.JSONWebSignature, alg jose.SignatureAlgorithm, err error) {
	parts := strings.Split(compact, ".")
	if len(parts) != 3 {
		return nil, "", errors.New("not a compact JWS")
	}
	// One text for one token: what a decoder overlooks would make another hash.
	var header []byte
	for i, p := range parts {
		b, err := base64.RawURLEncoding.DecodeString(p)
		if err != nil || base64.RawURLEncoding.EncodeToString(b) != p {
			return nil, "", errors.New("not base64url without padding")
		}
		if i == 0 {
			header = b
		}
	}
	head, err := parse(header)
	if err != nil {
		return nil, "", fmt.Errorf("header: %w", err)
	}
	if typ, _ := head.Get("typ").Str(); typ != tokenType {
		return nil, "", fmt.Errorf("typ is %s: want %q", orAbsent(head.Get("typ")), tokenType)
	}
	if head.Get("b64").Kind() != vault.Absent || head.Get("crit").Kind() != vault.Absent {
		return nil, "", errors.New("the header has crit or b64, of which nothing is understood")
	}
	name, _ := head.Get("alg").Str()
	switch alg = jose.SignatureAlgorithm(name); alg {
	case algEd25519, algES256:
	default:
		return nil, "", fmt.Errorf("alg is %s: want Ed25519 or ES256", orAbsent(head.Get("alg")))
	}
	if jws, err = jose.ParseSignedCompact(compact, []jose.SignatureAlgorithm{alg}); err != nil {
		return nil, "", fmt.Errorf("parse: %w", err)
	}
	return jws, alg, nil
}

func orAbsent(v vault.Value) string {
	if v.Kind() == vault.Absent {
		return "absent"
	}
	return v.Raw()
}

// verified returns the payload if key, which has to be of the kind that alg is for,
// signed the token.
func verified(jws *jose.JSONWebSignature, alg jose.SignatureAlgorithm, key capability.Key) ([]byte, error) {
	switch pub := key.Public().(type) {
	case ed25519.PublicKey:
		if alg == algEd25519 {
			return jws.Verify(edwards{pub})
		}
	default:
		if alg == algES256 {
			return jws.Verify(pub)
		}
	}
	return nil, errors.New("alg is not for the key that must have signed")
}

// edwards verifies under the name that RFC 9864 gave Ed25519, which the JOSE library
// does not know.
type edwards struct{ key ed25519.PublicKey }

func (e edwards) VerifyPayload(payload, signature []byte, alg jose.SignatureAlgorithm) error {
	if alg != algEd25519 || !ed25519.Verify(e.key, payload, signature) {
		return errors.New("wrong signature")
	}
	return nil
}

// hashOf returns the par_hash of a token's children: of its JWS signing input.
func hashOf(compact string) string {
	sum := sha256.Sum256([]byte(compact[:strings.LastIndexByte(compact, '.')]))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// thumbprint returns the issuer name of a key that derives (RFC 9278).
func thumbprint(k capability.Key) string {
	sum := k.JWKThumbprint()
	return thumbprintURI + base64.RawURLEncoding.EncodeToString(sum[:])
}

// decode reads the claims of a verified payload.
func decode(payload []byte) (*token, error) {
	root, err := parse(payload)
	if err != nil {
		return nil, fmt.Errorf("claims: %w", err)
	}
	// As written: an integer has no fraction and no exponent, which the canonical form
	// no longer shows.
	var written map[string]json.RawMessage
	if err := json.Unmarshal(payload, &written); err != nil {
		return nil, fmt.Errorf("claims: %w", err)
	}
	t := &token{}
	for _, c := range []struct {
		name string
		n    *int64
	}{{"iat", &t.issued}, {"exp", &t.ends}, {"del_depth", &t.depth}, {"del_max_depth", &t.deeper}} {
		if *c.n, err = integer(written[c.name]); err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
	}
	if t.id, _ = root.Get("jti").Str(); t.id == "" || len(t.id) > maxID || !printable(t.id) {
		return nil, fmt.Errorf("jti: want 1 to %d printable characters", maxID)
	}
	if t.issuer, _ = root.Get("iss").Str(); t.issuer == "" {
		return nil, errors.New("iss: want a text")
	}
	if v := root.Get("par_hash"); v.Kind() != vault.Absent {
		if t.parent, _ = v.Str(); t.parent == "" {
			return nil, errors.New("par_hash: want a text")
		}
	}
	if t.holder, err = keyOf(root.At("/cnf/jwk")); err != nil {
		return nil, fmt.Errorf("cnf: %w", err)
	}
	if t.audience, err = audienceOf(root.Get("aud")); err != nil {
		return nil, err
	}
	if err := t.readDetails(root.Get("authorization_details")); err != nil {
		return nil, fmt.Errorf("authorization_details: %w", err)
	}
	return t, t.notBefore(written["nbf"])
}

// notBefore refuses a token that begins later than it was issued: then iat alone says
// whether it has begun.
func (t *token) notBefore(raw json.RawMessage) error {
	if raw == nil {
		return nil
	}
	n, err := integer(raw)
	if err == nil && n > t.issued {
		err = errors.New("later than iat")
	}
	if err != nil {
		return fmt.Errorf("nbf: %w", err)
	}
	return nil
}

// integer reads a non-negative JSON integer without fraction and exponent.
func integer(raw json.RawMessage) (int64, error) {
	if len(raw) == 0 {
		return 0, errors.New("absent")
	}
	n, err := strconv.ParseInt(string(bytes.TrimSpace(raw)), 10, 64)
	if err != nil || n < 0 {
		return 0, errors.New("want an integer that is not negative")
	}
	return n, nil
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

func audienceOf(v vault.Value) ([]string, error) {
	if s, ok := v.Str(); ok {
		return []string{s}, nil
	}
	switch v.Kind() {
	case vault.Absent:
		return nil, nil
	case vault.Array:
		out := []string{}
		for _, e := range v.All() {
			s, ok := e.Str()
			if !ok {
				return nil, errors.New("aud: want texts")
			}
			out = append(out, s)
		}
		return out, nil
	default:
		return nil, errors.New("aud: want a text or an array of texts")
	}
}

// readDetails finds the capability entry. Entries of other types carry no authority
// here and are ignored (section 3.3).
func (t *token) readDetails(v vault.Value) error {
	if v.Kind() != vault.Array {
		return errors.New("want an array")
	}
	for _, e := range v.All() {
		kind, ok := e.Get("type").Str()
		if !ok {
			return errors.New("an entry without a type")
		}
		if kind != entryType {
			continue
		}
		if t.entry {
			return errors.New("two entries of type " + entryType)
		}
		t.entry = true
		for name := range e.All() {
			if name != "type" && name != "tools" {
				return fmt.Errorf("member %q of the entry is not understood", name)
			}
		}
		tools := e.Get("tools")
		if tools.Kind() != vault.Object {
			return errors.New("tools: want an object")
		}
		t.tools = make(map[string]arguments, tools.Len())
		for name, m := range tools.All() {
			args, err := parseArguments(m)
			if err != nil {
				return fmt.Errorf("tool %q: %w", name, err)
			}
			t.tools[name] = args
		}
	}
	return nil
}

// checkTimes holds a token against the clock and its own claims (I3).
func (t *token) checkTimes(now time.Time) error {
	switch {
	case t.ends <= now.Unix():
		return errors.New("expired")
	case t.issued > now.Add(maxSkew).Unix():
		return errors.New("iat lies in the future")
	case t.ends <= t.issued:
		return errors.New("exp is not after iat")
	case t.ends-t.issued > int64(maxLifetime/time.Second):
		return fmt.Errorf("it lives longer than %v", maxLifetime)
	}
	return nil
}

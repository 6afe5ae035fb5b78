package oauth

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/pilox/vault"
)

// An Issuer is an OpenID provider or authorisation server whose tokens count.
type Issuer struct {
	Issuer   string // exactly the iss claim
	Audience string // must be in aud
	JWKS     string // path of a file, or https URL
	Claim    string // whose value becomes the principal; sub, email, …
	Prefix   string // that stands before it: user:
}

// tokenAlgs are the algorithms of subject tokens: asymmetric ones, so that a public
// key can never pass for a shared secret.
var tokenAlgs = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

const (
	keysFresh   = 5 * time.Minute  // a key set is fetched again after that
	keysStale   = time.Hour        // and still used that long if it cannot be had
	keysRetry   = 30 * time.Second // least time between two fetches, whatever tokens name
	fetchTime   = 5 * time.Second
	tokenSkew   = 30 * time.Second // nbf and iat; exp has no grace
	maxSubjects = 200              // bytes of a principal
)

// Issuers checks subject tokens. Make one with [NewIssuers].
type Issuers struct {
	now    func() time.Time
	client *http.Client
	list   []*issuer
}

type issuer struct {
	Issuer

	mu      sync.Mutex // held while keys are fetched: one fetch at a time
	keys    jose.JSONWebKeySet
	fetched time.Time // when keys were got
	tried   time.Time // when that was last tried
}

// PrefixAAT begins the principal of an issuer of attenuating authorization tokens.
const PrefixAAT = "aat:"

var prefixForm = regexp.MustCompile(`^[a-z][a-z0-9-]{0,30}:$`)

// NewIssuers reads the key sets in files; those behind URLs are fetched when a token
// names their issuer. client is nil but in tests.
func NewIssuers(list []Issuer, client *http.Client, now func() time.Time) (*Issuers, error) {
	if now == nil {
		now = time.Now
	}
	if client == nil {
		client = &http.Client{
			Timeout:       fetchTime,
			Transport:     &http.Transport{TLSHandshakeTimeout: fetchTime, MaxResponseHeaderBytes: 64 << 10},
			CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("redirects are not followed") },
		}
	}
	s := &Issuers{now: now, client: client}
	seen := map[string]bool{}
	for _, c := range list {
		if c.Claim == "" {
			c.Claim = "sub"
		}
		if c.Prefix == "" {
			c.Prefix = "user:"
		}
		switch {
		case c.Issuer == "" || c.Audience == "" || c.JWKS == "":
			return nil, errors.New("issuer, audience and jwks are required")
		case !prefixForm.MatchString(c.Prefix) || c.Prefix == "spiffe:" || c.Prefix == PrefixAAT:
			return nil, fmt.Errorf("issuer %s: prefix %q: want a word and a colon, and not that of SPIFFE or of attenuating tokens", c.Issuer, c.Prefix)
		case seen[c.Issuer] || seen["prefix "+c.Prefix]:
			return nil, fmt.Errorf("issuer %s or its prefix %s is there twice: two issuers must not name the same principal", c.Issuer, c.Prefix)
		}
		seen[c.Issuer], seen["prefix "+c.Prefix] = true, true
		is := &issuer{Issuer: c}
		if !strings.Contains(c.JWKS, "://") {
			b, err := readBounded(c.JWKS)
			if err != nil {
				return nil, fmt.Errorf("issuer %s: %w", c.Issuer, err)
			}
			if is.keys, err = parseKeys(b); err != nil {
				return nil, fmt.Errorf("issuer %s: %w", c.Issuer, err)
			}
		} else if !strings.HasPrefix(c.JWKS, "https://") {
			return nil, fmt.Errorf("issuer %s: jwks %q: want a file or https", c.Issuer, c.JWKS)
		}
		s.list = append(s.list, is)
	}
	return s, nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxJWKS+1))
	if err == nil && len(b) > maxJWKS {
		err = fmt.Errorf("%s: larger than %d bytes", path, maxJWKS)
	}
	return b, err
}

// parseKeys reads a JWK set and keeps the public signing keys with a kid. A shared
// secret in it is an error: whoever published it has given it away.
func parseKeys(b []byte) (jose.JSONWebKeySet, error) {
	var raw struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(b, &raw); err != nil {
		return jose.JSONWebKeySet{}, fmt.Errorf("key set: %w", err)
	}
	if len(raw.Keys) > maxKeys {
		return jose.JSONWebKeySet{}, fmt.Errorf("key set of %d keys: at most %d", len(raw.Keys), maxKeys)
	}
	var set jose.JSONWebKeySet
	for _, r := range raw.Keys {
		var k jose.JSONWebKey
		if err := json.Unmarshal(r, &k); err != nil {
			continue // a key of a kind nobody here verifies with
		}
		switch key := k.Key.(type) {
		case *rsa.PublicKey:
			if key.N.BitLen() < 2048 || key.N.BitLen() > 8192 {
				continue
			}
		case *ecdsa.PublicKey, ed25519.PublicKey:
		default:
			return jose.JSONWebKeySet{}, errors.New("key set: it holds a private or shared key")
		}
		if k.KeyID != "" && (k.Use == "" || k.Use == "sig") {
			set.Keys = append(set.Keys, k)
		}
	}
	if len(set.Keys) == 0 {
		return jose.JSONWebKeySet{}, errors.New("key set: no signing key with a kid")
	}
	return set, nil
}

// A Subject is whom a token speaks of.
type Subject struct {
	Principal string
	Issuer    string
	Expires   time.Time
	// Bound is the RFC 7638 thumbprint of the key that the token itself is bound to
	// (cnf.jkt): only who proves that key may use it. Zero: to none.
	Bound vault.Digest
}

// tokenClaims are the claims that are looked at.
type tokenClaims struct {
	Issuer        string           `json:"iss"`
	Audience      jwt.Audience     `json:"aud"`
	Expires       *jwt.NumericDate `json:"exp"`
	NotBefore     *jwt.NumericDate `json:"nbf"`
	Issued        *jwt.NumericDate `json:"iat"`
	Party         string           `json:"azp"`
	EmailVerified any              `json:"email_verified"`
	Cnf           json.RawMessage  `json:"cnf"`
}

// Subject verifies a token of one of the issuers.
func (s *Issuers) Subject(ctx context.Context, token string) (Subject, error) {
	if len(token) > maxToken {
		return Subject{}, fmt.Errorf("token of %d bytes: at most %d", len(token), maxToken)
	}
	jws, err := jose.ParseSignedCompact(token, tokenAlgs)
	if err != nil {
		return Subject{}, fmt.Errorf("parse token: %w", err)
	}
	head := jws.Signatures[0].Protected
	if !typed(head, "", "jwt", "at+jwt") {
		return Subject{}, errors.New("a token of another type")
	}
	var peek struct {
		Issuer string `json:"iss"`
	}
	if err := json.Unmarshal(jws.UnsafePayloadWithoutVerification(), &peek); err != nil {
		return Subject{}, fmt.Errorf("claims: %w", err)
	}
	var is *issuer
	for _, c := range s.list {
		if c.Issuer.Issuer == peek.Issuer {
			is = c
		}
	}
	if is == nil {
		return Subject{}, errors.New("no such issuer")
	}
	key, err := s.key(ctx, is, head.KeyID, head.Algorithm)
	if err != nil {
		return Subject{}, err
	}
	payload, err := jws.Verify(key)
	if err != nil {
		return Subject{}, fmt.Errorf("verify token: %w", err)
	}
	return is.subject(payload, s.now())
}

// subject checks the claims of a token whose signature was verified.
func (is *issuer) subject(payload []byte, now time.Time) (Subject, error) {
	var c tokenClaims
	var all map[string]any
	if err := errors.Join(json.Unmarshal(payload, &c), json.Unmarshal(payload, &all)); err != nil {
		return Subject{}, fmt.Errorf("claims: %w", err)
	}
	switch {
	case c.Issuer != is.Issuer.Issuer:
		return Subject{}, errors.New("another issuer")
	case !c.Audience.Contains(is.Audience):
		return Subject{}, errors.New("for another audience")
	case len(c.Audience) > 1 && c.Party != is.Audience:
		return Subject{}, errors.New("for several audiences and issued to another party")
	case c.Expires == nil || !now.Before(c.Expires.Time()):
		return Subject{}, errors.New("expired, or without an end")
	case c.NotBefore != nil && now.Add(tokenSkew).Before(c.NotBefore.Time()), c.Issued != nil && now.Add(tokenSkew).Before(c.Issued.Time()):
		return Subject{}, errors.New("not valid yet")
	}
	who, ok := all[is.Claim].(string)
	if !ok || !plain(who) || len(is.Prefix)+len(who) > maxSubjects {
		return Subject{}, fmt.Errorf("claim %s names nobody", is.Claim)
	}
	if is.Claim == "email" && c.EmailVerified != true {
		return Subject{}, errors.New("the address was not verified by its issuer")
	}
	out := Subject{Principal: is.Prefix + who, Issuer: c.Issuer, Expires: c.Expires.Time()}
	if len(c.Cnf) > 0 {
		var cnf struct {
			JKT string `json:"jkt"`
		}
		if err := json.Unmarshal(c.Cnf, &cnf); err != nil {
			return Subject{}, fmt.Errorf("cnf: %w", err)
		}
		b, err := base64.RawURLEncoding.Strict().DecodeString(cnf.JKT)
		if err != nil || len(b) != len(out.Bound) {
			return Subject{}, errors.New("bound to something that cannot be proven here")
		}
		out.Bound = vault.Digest(b)
	}
	return out, nil
}

// plain reports whether s is printable ASCII without space: what a principal is
// shown as in questions and records.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return s != ""
}

// key returns the key of an issuer with this kid, that may be used with alg. Key sets
// behind URLs are fetched again when they are old, and when a token names a kid that
// is not there, but never more often than every half minute.
func (s *Issuers) key(ctx context.Context, is *issuer, kid, alg string) (any, error) {
	if kid == "" {
		return nil, errors.New("token without a kid")
	}
	is.mu.Lock()
	defer is.mu.Unlock()
	k := find(&is.keys, kid, alg)
	if strings.HasPrefix(is.JWKS, "https://") {
		now := s.now()
		if age := now.Sub(is.fetched); (k == nil || age > keysFresh) && now.Sub(is.tried) >= keysRetry {
			is.tried = now
			set, err := s.fetch(ctx, is.JWKS)
			switch {
			case err == nil:
				is.keys, is.fetched = set, now
				k = find(&is.keys, kid, alg)
			case is.fetched.IsZero():
				return nil, err
			}
		}
		if now.Sub(is.fetched) > keysStale {
			return nil, errors.New("the issuer's keys cannot be had")
		}
	}
	if k == nil {
		return nil, errors.New("no such key")
	}
	return k.Key, nil
}

// find returns the one key with this kid; two of a name are none.
func find(set *jose.JSONWebKeySet, kid, alg string) *jose.JSONWebKey {
	found := set.Key(kid)
	if len(found) != 1 || found[0].Algorithm != "" && found[0].Algorithm != alg {
		return nil
	}
	return &found[0]
}

func (s *Issuers) fetch(ctx context.Context, url string) (jose.JSONWebKeySet, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return jose.JSONWebKeySet{}, fmt.Errorf("fetch keys: %w", err)
	}
	res, err := s.client.Do(req)
	if err != nil {
		return jose.JSONWebKeySet{}, fmt.Errorf("fetch keys: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return jose.JSONWebKeySet{}, fmt.Errorf("fetch keys: %s", res.Status)
	}
	var b bytes.Buffer
	if n, err := io.Copy(&b, io.LimitReader(res.Body, maxJWKS+1)); err != nil || n > maxJWKS {
		return jose.JSONWebKeySet{}, fmt.Errorf("fetch keys: %d bytes: %w", n, errors.Join(err, errors.New("unreadable or too large")))
	}
	return parseKeys(b.Bytes())
}

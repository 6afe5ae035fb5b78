// Package aat reads and writes Attenuating Authorization Tokens, the JWT chains of
// draft-niyikiza-oauth-attenuating-agent-tokens, as far as they and capabilities say
// the same.
//
// It owns the format: parsing, verification of a chain, what a chain means as rules of
// a capability, and what of a capability a token can say. It opens no task, knows no
// server and accepts no call: a chain is only ever exchanged for a capability that its
// holder proves. Start with [Verify], [Chain.Rule] and [Export].
//
// It promises: a call that passes the rules made from a chain passes every token of
// the chain, and a call that an exported token allows passes every link it was made
// from but for what [Export] was told to lose. What is not understood is refused.
//
// # What is the draft's
//
// Revision -02 of October 2026, read in its author's source text: the claims and the header of section 3, with the
// algorithm names Ed25519 and ES256 (EdDSA, the name in -01, must not be used any
// more), typ aat+jwt, the invariants I1 to I5 of section 4, the core constraint types
// with their table of what subsumes what, and steps 1 to 6a and 6c of the algorithm in
// section 8. The chain is read from the presentation object of section 7.4. Its
// aat_pop is ignored: a PoP JWT speaks of one invocation, and here the holder's key is
// proven by whoever asks for the capability, and then with each call (I6).
//
// # What is our reading
//
// Stricter than the draft, so that a chain it accepts can be refused here:
//   - a chain has at most 9 tokens and 16 KiB in all, constraints nest 16 deep, and a
//     jti is up to 128 printable ASCII characters;
//   - the capability entry has no members but type and tools: another one could be a
//     restriction, as RFC 9396 has locations and actions;
//   - a token whose nbf is later than its iat is refused; the draft does not speak of nbf;
//   - JSON is I-JSON, also with keys that differ in case only, and integers beyond
//     2^53-1 are refused.
//
// Restatement is not believed. A derived token says again what its parent said; that
// it narrows is checked (I4), and then the rules are made from all tokens together.
//
// Narrower where a capability cannot say it exactly: a range passes numbers of at most
// twelve digits before the point and six after it; not_one_of passes scalars of the
// types it lists, so an empty one passes scalars; the elements of an array under
// contains are scalars, at most 1,024; a wildcard under a local rule that leaves its
// arguments open passes scalars. Refused, because it would have to be guessed: an
// argument that may be one of several things which are no lists of values (any), a
// listed value that is no string, integer or boolean, and a tool whose token names some
// arguments and leaves others open where the local rule leaves all open.
package aat

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
)

// Bounds on a chain.
const (
	MaxChain = 16 << 10 // bytes of a presentation; what a token request carries
	MaxDepth = 8        // of delegation, so at most nine tokens; the least that section 4.3 allows

	maxNesting  = 16                  // of constraints
	maxLifetime = 90 * 24 * time.Hour // from iat to exp, section 4.4
	maxSkew     = 30 * time.Second    // iat and nbf ahead of us, section 4.4
	maxID       = 128                 // bytes of a jti
	maxKeyFile  = 64 << 10            //
	maxKeys     = 16                  // of one issuer
)

// entryType is the type of the capability entry in authorization_details.
const entryType = "attenuating_agent_token"

// tokenType is the typ header of a token.
const tokenType = "aat+jwt"

// thumbprintURI begins the issuer of a derived token (RFC 9278).
const thumbprintURI = "urn:ietf:params:oauth:jwk-thumbprint:sha-256:"

// An Anchor is an issuer of root tokens that is trusted.
type Anchor struct {
	Issuer   string           // exactly the iss claim
	Keys     []capability.Key //
	Audience string           // what aud may name in its chains beside Config.Audience; "" means nothing
}

// ParseKeys reads the public keys of an issuer: a JWK set or one JWK, of Ed25519 or
// P-256 keys and no other. A private key in it is an error.
func ParseKeys(b []byte) ([]capability.Key, error) {
	if len(b) > maxKeyFile {
		return nil, fmt.Errorf("keys: more than %d bytes", maxKeyFile)
	}
	root, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("keys: not a JWK or JWK set: %w", err)
	}
	list := []vault.Value{root}
	if set := root.Get("keys"); set.Kind() == vault.Array {
		list = nil
		for _, v := range set.All() {
			list = append(list, v)
		}
	}
	if len(list) == 0 || len(list) > maxKeys {
		return nil, fmt.Errorf("keys: %d keys, want 1 to %d", len(list), maxKeys)
	}
	keys := make([]capability.Key, len(list))
	for i, v := range list {
		if keys[i], err = keyOf(v); err != nil {
			return nil, fmt.Errorf("key %d: %w", i, err)
		}
	}
	return keys, nil
}

// MarshalKey returns a JWK set with one public key, for those who are to trust it.
func MarshalKey(k capability.Key) ([]byte, error) {
	if k.IsZero() {
		return nil, errors.New("no key")
	}
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: k.Public(), Use: "sig"}}}
	b, err := json.Marshal(set)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return b, nil
}

// parse reads an I-JSON object. Its errors are of this format and no denials of a call.
func parse(b []byte) (vault.Value, error) {
	doc, err := vault.ParseArgs(b)
	if err != nil {
		return vault.Value{}, fmt.Errorf("not an I-JSON object (%s)", vault.DenialOf(err).Reason.Code)
	}
	return doc.Root(), nil
}

// keyOf reads a public JWK.
func keyOf(v vault.Value) (capability.Key, error) {
	if v.Kind() != vault.Object {
		return capability.Key{}, errors.New("no JWK")
	}
	for _, private := range []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k"} {
		if v.Get(private).Kind() != vault.Absent {
			return capability.Key{}, errors.New("a JWK with private or shared key material")
		}
	}
	var jwk jose.JSONWebKey
	if err := jwk.UnmarshalJSON([]byte(v.Raw())); err != nil {
		return capability.Key{}, fmt.Errorf("JWK: %w", err)
	}
	return capability.KeyOf(jwk.Key)
}

// Package oauth is what Vault speaks of OAuth at its edges: proofs of possession for
// HTTP clients (DPoP, RFC 9449), tokens of other issuers and the request that turns
// one into a capability (RFC 8693), and the status list of root links
// (draft-ietf-oauth-status-list).
//
// It owns the parsing and the checks of these formats. It decides nothing about what
// may be minted and keeps no tasks: the daemon does. Start with [Prover.Check],
// [Issuers.Subject], [ParseExchange] and [StatusList.Sign].
//
// It promises: signatures are checked with a key that configuration or the holder of
// a capability names, never with one that a token brings for itself; only listed
// asymmetric algorithms are read; every input, key set and memory is bounded; an
// error that leaves the daemon says what kind of thing is wrong and no more.
package oauth

import (
	"net/http"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

// Bounds on what others send.
const (
	maxProof = 4 << 10  // a DPoP proof is about 500 bytes
	maxToken = 16 << 10 // a JWT of an issuer
	maxJWKS  = 256 << 10
	maxKeys  = 100 // of one key set
)

// An Error is an error answer of RFC 6749, section 5.2.
type Error struct {
	Code        string `json:"error"`
	Description string `json:"error_description,omitempty"`
	Err         error  `json:"-"` // cause; logged, never shown
}

// The error codes that are used here.
const (
	InvalidRequest  = "invalid_request"
	InvalidGrant    = "invalid_grant"
	InvalidTarget   = "invalid_target"
	InvalidProof    = "invalid_dpop_proof"
	UseNonce        = "use_dpop_nonce"
	UnsupportedType = "unsupported_grant_type"
	Unavailable     = "temporarily_unavailable"
)

func (e *Error) Error() string {
	if e.Err != nil {
		return e.Code + ": " + e.Err.Error()
	}
	return e.Code
}

func (e *Error) Unwrap() error { return e.Err }

// Status returns the HTTP status of e.
func (e *Error) Status() int {
	if e.Code == Unavailable {
		return http.StatusServiceUnavailable
	}
	return http.StatusBadRequest
}

// typed reports whether the typ header of a JWS is one of want. Media types may
// leave out "application/" (RFC 7515, section 4.1.9).
func typed(h jose.Header, want ...string) bool {
	typ := ""
	if v, ok := h.ExtraHeaders[jose.HeaderType]; ok {
		s, isText := v.(string)
		if !isText {
			return false
		}
		typ = strings.TrimPrefix(strings.ToLower(s), "application/")
	}
	for _, w := range want {
		if typ == w {
			return true
		}
	}
	return false
}

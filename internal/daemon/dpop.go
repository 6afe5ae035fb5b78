package daemon

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/oauth"
)

// dpopScheme is how the Authorization header of a request with a DPoP proof begins.
const dpopScheme = "DPoP "

// challenge is what the TCP listeners say to requests that are not authenticated.
const challenge = `Bearer, DPoP algs="ES256 EdDSA"`

// proofKey is the context key of the DPoP proof of a request.
type proofKey struct{}

// proofOf returns the DPoP proof that was checked for r, or nil.
func proofOf(r *http.Request) *oauth.Proof {
	p, _ := r.Context().Value(proofKey{}).(*oauth.Proof)
	return p
}

// proven checks the DPoP proof of requests that say they have one (RFC 9449, section
// 7.1). Whether the key is the holder's is the verifier's word, later.
//
// It proves that the holder of the key sent a request with this token to this URL, a
// minute or two ago at most and once. It does not prove what is in the body: on a
// connection without TLS, who can change the bytes can change the call. Records of
// such calls say dpop, and a capability that wants more demands a signature by risk.
func (d *Daemon) proven(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, ok := strings.CutPrefix(r.Header.Get("Authorization"), dpopScheme)
		if !ok {
			next.ServeHTTP(w, r)
			return
		}
		proof, err := d.prover.Check(r.Header, r.Method, urlOf(r), token)
		if err != nil {
			d.gateway.CountStranger("mcp", vault.CodeProof)
			d.log.InfoContext(r.Context(), "DPoP proof refused", "cause", err)
			code := oauth.InvalidProof
			if e, ok := errors.AsType[*oauth.Error](err); ok {
				code = e.Code
			}
			w.Header().Set("Dpop-Nonce", d.prover.Nonce())
			w.Header().Set("Www-Authenticate", `DPoP error="`+code+`", algs="ES256 EdDSA"`)
			http.Error(w, string(vault.CodeProof)+": "+code, http.StatusUnauthorized)
			return
		}
		if proof.Stale() {
			w.Header().Set("Dpop-Nonce", d.prover.Nonce())
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), proofKey{}, proof)))
	})
}

// urlOf returns the URL of a request as its client must have named it. The Host was
// held against our own names before.
func urlOf(r *http.Request) string {
	scheme := "http://"
	if r.TLS != nil {
		scheme = "https://"
	}
	return scheme + r.Host + r.URL.EscapedPath()
}

// useProof uses up the DPoP proof of a request whose holder is known, if there is one.
func (d *Daemon) useProof(r *http.Request) error {
	proof := proofOf(r)
	if proof == nil {
		return nil
	}
	err := d.prover.Use(proof)
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*oauth.Error](err); ok && e.Code == oauth.Unavailable {
		denial := vault.NewDenial(vault.CodeBusy, "", err)
		denial.Retry = vault.RetryAfter
		return denial
	}
	return vault.NewDenial(vault.CodeProof, "", err)
}

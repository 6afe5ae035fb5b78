package oauth

import (
	"errors"
	"mime"
	"net/http"
	"net/url"
)

// The identifiers of RFC 8693, and ours for identities that it has none for.
const (
	GrantType       = "urn:ietf:params:oauth:grant-type:token-exchange"
	TypeIDToken     = "urn:ietf:params:oauth:token-type:id_token"     //nolint:gosec // the name of a type
	TypeAccessToken = "urn:ietf:params:oauth:token-type:access_token" //nolint:gosec // the name of a type
	TypeJWT         = "urn:ietf:params:oauth:token-type:jwt"
	TypeJWTSVID     = "urn:dev.pilox.vault:token-type:jwt-svid"
	// TypeX509SVID says that the client is the subject itself, by the certificate of
	// the connection. The subject token is its SPIFFE ID.
	TypeX509SVID = "urn:dev.pilox.vault:token-type:x509-svid"
	// TypeAAT is a presentation object with a chain of attenuating authorization tokens
	// (draft-niyikiza-oauth-attenuating-agent-tokens-02, section 7.4).
	TypeAAT = "urn:dev.pilox.vault:token-type:aat"
)

// MaxExchange bounds the body of a token request.
const MaxExchange = 32 << 10

// maxParams bounds the parameters of a token request; RFC 8693 defines ten.
const maxParams = 32

// An Exchange is a token exchange request.
type Exchange struct {
	SubjectToken string
	SubjectType  string
	Audience     string // the grant that is asked for
}

// ParseExchange reads the form of a token request, strictly: a parameter twice and
// what would ask for something that is not done here (an actor, a resource, another
// type of token) are errors, because ignoring them would answer another question.
// Unknown parameters are ignored, as RFC 6749 demands. The error is an [*Error].
func ParseExchange(h http.Header, body []byte) (Exchange, error) {
	media, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil || media != "application/x-www-form-urlencoded" {
		return Exchange{}, badRequest("want application/x-www-form-urlencoded", err)
	}
	if len(body) > MaxExchange {
		return Exchange{}, badRequest("too large", nil)
	}
	form, err := url.ParseQuery(string(body))
	if err != nil || len(form) > maxParams {
		return Exchange{}, badRequest("not a form", err)
	}
	for _, values := range form {
		if len(values) != 1 {
			return Exchange{}, badRequest("a parameter more than once", nil)
		}
	}
	if form.Get("grant_type") != GrantType {
		return Exchange{}, &Error{Code: UnsupportedType, Description: "want " + GrantType}
	}
	for _, p := range []string{"actor_token", "actor_token_type", "scope"} {
		if form.Get(p) != "" {
			return Exchange{}, badRequest(p+" is not supported", nil)
		}
	}
	if form.Get("resource") != "" {
		return Exchange{}, &Error{Code: InvalidTarget, Description: "name what is asked for in audience"}
	}
	if t := form.Get("requested_token_type"); t != "" && t != TypeAccessToken {
		return Exchange{}, badRequest("requested_token_type is not supported", nil)
	}
	x := Exchange{SubjectToken: form.Get("subject_token"), SubjectType: form.Get("subject_token_type"), Audience: form.Get("audience")}
	switch x.SubjectType {
	case TypeIDToken, TypeAccessToken, TypeJWT, TypeJWTSVID, TypeX509SVID, TypeAAT:
	default:
		return Exchange{}, badRequest("subject_token_type is missing or not supported", nil)
	}
	if x.SubjectToken == "" || len(x.SubjectToken) > maxToken {
		return Exchange{}, badRequest("subject_token is missing or too large", nil)
	}
	if x.Audience == "" || len(x.Audience) > 256 {
		return Exchange{}, badRequest("audience is missing or too large", nil)
	}
	return x, nil
}

func badRequest(text string, cause error) *Error {
	if cause == nil {
		cause = errors.New(text)
	}
	return &Error{Code: InvalidRequest, Description: text, Err: cause}
}

// An ExchangeAnswer is the successful answer of RFC 8693, section 2.2.1.
type ExchangeAnswer struct {
	AccessToken string `json:"access_token"`
	IssuedType  string `json:"issued_token_type"`
	TokenType   string `json:"token_type"` // DPoP, or Bearer where the connection proves the holder (RFC 8705)
	ExpiresIn   int64  `json:"expires_in"` // seconds
}

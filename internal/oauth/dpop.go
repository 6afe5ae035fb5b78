package oauth

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
)

const (
	// nonceStep is how often the nonce changes. One is good for its step and the next,
	// so a proof can be replayed, if its jti were forgotten, for two minutes at most.
	nonceStep = time.Minute
	// clockSkew is how far the clock of a client may be off. Freshness comes from the
	// nonce; iat only stops proofs that were made long before or ahead.
	clockSkew = 5 * time.Minute
	maxJTI    = 256
	// maxUsed bounds the proofs remembered of one step, to about 4 MB, and maxUsedBy
	// those of one key, so that one holder cannot use up all.
	maxUsed   = 1 << 16
	maxUsedBy = 1 << 14

	nonceBytes = 8 + 16
)

// proofAlgs are the algorithms of a DPoP proof: those of the keys that can hold a
// capability.
var proofAlgs = []jose.SignatureAlgorithm{jose.ES256, jose.EdDSA}

// A Prover checks DPoP proofs. Make one with [NewProver]; it is safe for concurrent
// use. Its nonces die with it, so no proof outlives a restart of the daemon.
type Prover struct {
	now func() time.Time
	key [32]byte // of the nonces

	mu    sync.Mutex
	steps map[int64]*step // by step of the nonce, at most two; guarded by mu
}

// A step is what was used under the nonce of one step.
type step struct {
	used map[[16]byte]struct{}
	by   map[vault.Digest]int // how many of each key
}

// NewProver returns a Prover. A nil clock is time.Now.
func NewProver(now func() time.Time) *Prover {
	if now == nil {
		now = time.Now
	}
	p := &Prover{now: now, steps: make(map[int64]*step)}
	rand.Read(p.key[:])
	return p
}

// Nonce returns the nonce that proofs have to carry now, for the DPoP-Nonce header.
func (p *Prover) Nonce() string { return p.nonce(p.step()) }

func (p *Prover) step() int64 { return p.now().Unix() / int64(nonceStep/time.Second) }

func (p *Prover) nonce(step int64) string {
	var b [nonceBytes]byte
	binary.BigEndian.PutUint64(b[:8], uint64(step))
	mac := hmac.New(sha256.New, p.key[:])
	mac.Write([]byte("vault/dpop-nonce/v1"))
	mac.Write(b[:8])
	copy(b[8:], mac.Sum(nil))
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// stepOf returns the step of a nonce that is good now.
func (p *Prover) stepOf(nonce string) (int64, bool) {
	now := p.step()
	for _, s := range [...]int64{now, now - 1} {
		if hmac.Equal([]byte(nonce), []byte(p.nonce(s))) {
			return s, true
		}
	}
	return 0, false
}

// A Proof is a DPoP proof that fits its request. It is not used up yet.
type Proof struct {
	Key   capability.Key
	jti   [16]byte
	step  int64
	stale bool // of the step before
}

// Thumbprint returns the RFC 7638 thumbprint of the key.
func (p *Proof) Thumbprint() vault.Digest { return p.Key.JWKThumbprint() }

// Stale reports whether the client should be given a new nonce.
func (p *Proof) Stale() bool { return p.stale }

// proofClaims are the claims of a proof (RFC 9449, section 4.2).
type proofClaims struct {
	JTI   string   `json:"jti"`
	HTM   string   `json:"htm"`
	HTU   string   `json:"htu"`
	IAT   *float64 `json:"iat"`
	ATH   string   `json:"ath"`
	Nonce string   `json:"nonce"`
}

// Check holds the DPoP header of a request against the request: htu is what the
// client must have named, token the access token that goes with it, "" if there is
// none. A nil error means that the key signed for this method, URL and token under a
// nonce of ours; whose key it is, the caller finds out, and then calls [Prover.Use].
// Nothing of the request's body is proven. Errors are [*Error].
func (p *Prover) Check(h http.Header, method, htu, token string) (*Proof, error) {
	values := h.Values("DPoP")
	if len(values) != 1 || len(values[0]) > maxProof {
		return nil, badProof("want one DPoP header of at most %d bytes", maxProof)
	}
	jws, err := jose.ParseSignedCompact(values[0], proofAlgs)
	if err != nil {
		return nil, badProof("parse: %w", err)
	}
	head := jws.Signatures[0].Protected
	if !typed(head, "dpop+jwt") {
		return nil, badProof("typ is not dpop+jwt")
	}
	jwk := head.JSONWebKey
	if jwk == nil || !jwk.IsPublic() || !jwk.Valid() {
		return nil, badProof("no public key")
	}
	key, err := capability.KeyOf(jwk.Key)
	if err != nil {
		return nil, badProof("%w", err)
	}
	// The nonce comes before the signature: a stranger without one costs no more
	// than a hash.
	var c proofClaims
	if err := json.Unmarshal(jws.UnsafePayloadWithoutVerification(), &c); err != nil {
		return nil, badProof("claims: %w", err)
	}
	at, ok := p.stepOf(c.Nonce)
	if !ok {
		return nil, &Error{Code: UseNonce, Description: "sign again with the nonce in the DPoP-Nonce header"}
	}
	if _, err := jws.Verify(jwk.Key); err != nil {
		return nil, badProof("signature: %w", err)
	}
	switch {
	case c.JTI == "" || len(c.JTI) > maxJTI:
		return nil, badProof("jti has %d bytes: want 1 to %d", len(c.JTI), maxJTI)
	case c.HTM != method:
		return nil, badProof("htm is another method")
	case !sameURL(c.HTU, htu):
		return nil, badProof("htu is another URL")
	case c.IAT == nil:
		return nil, badProof("no iat")
	}
	if off := p.now().Sub(time.Unix(int64(*c.IAT), 0)); off > clockSkew+nonceStep || off < -clockSkew {
		return nil, badProof("iat is too far off")
	}
	want := ""
	if token != "" {
		sum := sha256.Sum256([]byte(token))
		want = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	if !hmac.Equal([]byte(c.ATH), []byte(want)) {
		return nil, badProof("ath is another token's")
	}
	proof := &Proof{Key: key, step: at, stale: at != p.step()}
	jkt := key.JWKThumbprint()
	sum := vault.Hash("dpop-jti", jkt[:], []byte(c.JTI))
	copy(proof.jti[:], sum[:])
	return proof, nil
}

// Use uses a proof up. It fails if the proof was used before, or if so many were used
// in this step that nobody could say. Call it once the key is known to hold
// something, so that strangers cannot fill the memory.
func (p *Prover) Use(proof *Proof) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.step()
	for s := range p.steps {
		if s < now-1 {
			delete(p.steps, s)
		}
	}
	if proof.step < now-1 {
		return badProof("the nonce has expired meanwhile")
	}
	s := p.steps[proof.step]
	if s == nil {
		s = &step{used: make(map[[16]byte]struct{}), by: make(map[vault.Digest]int)}
		p.steps[proof.step] = s
	}
	if _, ok := s.used[proof.jti]; ok {
		return badProof("replayed")
	}
	jkt := proof.Thumbprint()
	if len(s.used) >= maxUsed || s.by[jkt] >= maxUsedBy {
		return &Error{Code: Unavailable, Err: errors.New("too many proofs in this minute")}
	}
	s.used[proof.jti] = struct{}{}
	s.by[jkt]++
	return nil
}

func badProof(format string, args ...any) *Error {
	return &Error{Code: InvalidProof, Description: "the DPoP proof does not fit this request", Err: fmt.Errorf(format, args...)}
}

// sameURL compares htu with the URL of the request after the normalisation of RFC
// 3986, sections 6.2.2 and 6.2.3: scheme and host without case, without the default
// port. Query and fragment of htu are ignored, as RFC 9449 says.
func sameURL(got, want string) bool {
	if len(got) > 2048 {
		return false
	}
	g, err1 := url.Parse(got)
	w, err2 := url.Parse(want)
	if err1 != nil || err2 != nil || g.User != nil || g.Opaque != "" {
		return false
	}
	return strings.EqualFold(g.Scheme, w.Scheme) && g.Host != "" && hostPort(g) == hostPort(w) && pathOf(g) == pathOf(w)
}

func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		switch strings.ToLower(u.Scheme) {
		case "http":
			port = "80"
		case "https":
			port = "443"
		}
	}
	return strings.ToLower(u.Hostname()) + ":" + port
}

func pathOf(u *url.URL) string {
	if p := u.EscapedPath(); p != "" {
		return p
	}
	return "/"
}

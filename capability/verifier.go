package capability

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/pilox/vault"
)

// Config configures a [Verifier].
type Config struct {
	Roots       []RootIssuer             // who may sign roots; empty: every chain is refused
	Audience    string                   // this budget domain, the cluster id; required
	Now         func() time.Time         // nil: time.Now
	AllowBearer bool                     // accept holders that only have the token; false: refuse
	Revocations *Revocations             // nil: an empty set of its own
	SessionKey  crypto.Signer            // signs answers to session openings; nil: a fresh Ed25519 key
	CacheSize   int                      // compiled chains kept; zero: 4,096
	MaxSessions int                      // open sessions; zero: 4,096
	Engines     *Engines                 // evaluate caveats, CEL and schemas; nil: chains with any are refused
	SameUID     func(vault.Binding) bool // does the caller share the daemon's uid outside our sandbox; nil: see sameUID
}

const (
	defaultCache    = 4096 // a chain takes about 4 KiB compiled
	defaultSessions = 4096
	maxChainSession = 64               // sessions of one chain, so that one holder cannot use up all
	sessionLife     = 15 * time.Minute // FORMATS section 3
	notBeforeSkew   = 30 * time.Second // clocks of issuers differ; expiry has no such grace
)

// A Verifier checks calls against capability chains. It is safe for concurrent
// use. It touches neither disk nor network, and the goroutines that it starts to
// verify a chain end before the call does.
type Verifier struct {
	cfg        Config
	trust      trust
	sessionKey Key
	nonces     nonces

	mu    sync.RWMutex
	cache map[vault.Digest]*authority // guarded by mu

	smu      sync.RWMutex
	sessions map[[sidBytes]byte]*session // guarded by smu
}

// New returns a Verifier. Sessions and nonces live in it and die with it.
func New(cfg Config) (*Verifier, error) {
	if cfg.Audience == "" {
		return nil, errors.New("capability: no audience")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Revocations == nil {
		cfg.Revocations = new(Revocations)
	}
	if cfg.CacheSize <= 0 {
		cfg.CacheSize = defaultCache
	}
	if cfg.MaxSessions <= 0 {
		cfg.MaxSessions = defaultSessions
	}
	if cfg.SameUID == nil {
		cfg.SameUID = sameUID
	}
	if cfg.SessionKey == nil {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("session key: %w", err)
		}
		cfg.SessionKey = key
	}
	t, err := newTrust(cfg.Roots, cfg.Audience, cfg.Engines)
	if err != nil {
		return nil, err
	}
	key, err := KeyOf(cfg.SessionKey.Public())
	if err != nil {
		return nil, fmt.Errorf("session key: %w", err)
	}
	for _, is := range cfg.Roots {
		if is.Key == key {
			return nil, errors.New("capability: the session key is also an issuer's")
		}
	}
	return &Verifier{
		cfg: cfg, trust: t, sessionKey: key,
		cache:    make(map[vault.Digest]*authority),
		sessions: make(map[[sidBytes]byte]*session),
	}, nil
}

func newTrust(roots []RootIssuer, audience string, e *Engines) (trust, error) {
	roots = slices.Clone(roots)
	seen := make(map[string]bool)
	for _, is := range roots {
		switch {
		case is.KID == "" || len(is.KID) > maxKID || seen[is.KID]:
			return trust{}, fmt.Errorf("issuer %q: the kid is empty, too long or not unique", is.KID)
		case is.Key.IsZero() || is.Tenant == "":
			return trust{}, fmt.Errorf("issuer %q: no key or no tenant", is.KID)
		}
		if err := is.Ceiling.check(); err != nil {
			return trust{}, fmt.Errorf("issuer %q: %w", is.KID, err)
		}
		seen[is.KID] = true
	}
	return trust{roots, audience, e, new(signatures)}, nil
}

// sameUID says true unless the transport shows otherwise: separation that cannot
// be seen is not claimed.
func sameUID(b vault.Binding) bool {
	switch {
	case b.Channel != "", b.Remote:
		return false
	case b.Peer:
		return b.PeerUID == os.Getuid()
	}
	return true
}

// SessionKey returns the public key that signs the gateway's half of a session.
// Clients pin it.
func (v *Verifier) SessionKey() Key { return v.sessionKey }

// Check verifies a chain and compiles everything in it, so that an expression or
// schema which no call could ever be held against is found when it is minted and
// not at the first call. It looks at no clock and keeps nothing.
func (v *Verifier) Check(c Chain) error {
	a, err := v.trust.compile(c.raw)
	if err != nil {
		return fmt.Errorf("check capability: %w", errors.Join(err, vault.DenialOf(err).Err))
	}
	for i := range c.links {
		for kind, targets := range c.links[i].Grants {
			for t := range targets {
				if compiled := a.compileTarget(kind, t); compiled.cause != nil {
					return fmt.Errorf("check capability: %s %s: %w", kind, t.Name, compiled.cause)
				}
			}
		}
	}
	return nil
}

// Nonce returns a fresh 16-byte nonce for one call proven by [SignCall]. It is
// good for two minutes. The error is a *vault.Denial.
func (v *Verifier) Nonce() ([]byte, error) { return v.nonces.issue(v.cfg.Now()) }

// authority returns the compiled chain for raw. Chains that fail are not kept:
// whoever sends garbage must not push out what is valid.
func (v *Verifier) authority(raw []byte) (*authority, error) {
	if len(raw) == 0 {
		return nil, vault.NewDenial(vault.CodeCapabilityMissing, "", nil)
	}
	// What nobody here signed is turned away before it is hashed.
	if len(raw) > MaxChainBytes || raw[0]>>5 != majorArray {
		return nil, vault.NewDenial(vault.CodeCapabilityMalformed, "", errFrame)
	}
	root, _, err := readMessage(raw[1:], typLink)
	if err != nil {
		return nil, vault.NewDenial(vault.CodeCapabilityMalformed, "", err)
	}
	if v.trust.issuer(root.kid) == nil {
		return nil, vault.NewDenial(vault.CodeCapabilityIssuer, "", errIssuer)
	}
	key := vault.Digest(sha256.Sum256(raw))
	v.mu.RLock()
	a := v.cache[key]
	v.mu.RUnlock()
	if a != nil {
		if !a.used.Load() { // a store on every call would bounce the cache line
			a.used.Store(true)
		}
		return a, nil
	}
	if a, err = v.trust.compile(slices.Clone(raw)); err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if old := v.cache[key]; old != nil {
		return old, nil
	}
	v.makeRoom()
	v.cache[key] = a
	return a, nil
}

// makeRoom drops a chain if the cache is full: one that has expired or was not
// used since makeRoom last came by, else, after a few looks, any. v.mu is held.
func (v *Verifier) makeRoom() {
	if len(v.cache) < v.cfg.CacheSize {
		return
	}
	looks, now := 16, v.cfg.Now()
	for k, a := range v.cache { // in random order
		looks--
		if looks == 0 || now.After(a.expires) || !a.used.Swap(false) {
			delete(v.cache, k)
			return
		}
	}
	// Fewer than 16 entries and all in use: the next one finds them unused.
	for k := range v.cache {
		delete(v.cache, k)
		return
	}
}

// held returns the compiled chain of a grant that was returned for call.
func (v *Verifier) held(call *vault.Call, g *vault.Grant) (*authority, error) {
	if g.Proof == "" || g.Chain.IsZero() {
		return nil, vault.NewDenial(vault.CodeProof, "", errNoProof)
	}
	v.mu.RLock()
	a := v.cache[g.Chain]
	v.mu.RUnlock()
	if a != nil {
		return a, nil
	}
	if s := v.session(call.Credential.Session); s != nil && s.authority.key == g.Chain {
		return s.authority, nil
	}
	a, err := v.authority(call.Credential.Chain)
	if err != nil {
		return nil, err
	}
	if a.key != g.Chain {
		return nil, vault.NewDenial(vault.CodeProof, "", errors.New("the grant is another chain's"))
	}
	return a, nil
}

// now checks what of a depends on the moment.
func (v *Verifier) now(a *authority, now time.Time) *vault.Denial {
	switch {
	case !now.Before(a.expires):
		return vault.NewDenial(vault.CodeCapabilityExpired, "", nil)
	case now.Add(notBeforeSkew).Before(a.notBefore):
		return vault.NewDenial(vault.CodeCapabilityNotYet, "", nil)
	case !a.issuer.inUse(now):
		return vault.NewDenial(vault.CodeCapabilityIssuer, "", fmt.Errorf("issuer %q is not in use now", a.issuer.KID))
	case v.cfg.Revocations.isRevoked(a):
		return vault.NewDenial(vault.CodeCapabilityRevoked, "", nil)
	}
	return nil
}

// authenticate finds the chain of a call, checks possession and then the moment.
// With a non-nil authority and proof the caller is known, whatever the denial.
func (v *Verifier) authenticate(call *vault.Call) (*authority, vault.ProofKind, *vault.Denial) {
	cred := &call.Credential
	now := v.cfg.Now()
	var s *session
	if len(cred.Session) > 0 {
		s = v.session(cred.Session)
	}
	var a *authority
	if s != nil && (len(cred.Chain) == 0 || bytes.Equal(cred.Chain, s.authority.chain.raw)) {
		a = s.authority
	} else {
		var err error
		if a, err = v.authority(cred.Chain); err != nil {
			if len(cred.Chain) == 0 && len(cred.Session) > 0 {
				err = vault.NewDenial(vault.CodeProof, "", errSession)
			}
			return nil, "", vault.DenialOf(err)
		}
		if s != nil {
			return nil, "", vault.NewDenial(vault.CodeProof, "", errors.New("the session is another chain's"))
		}
	}
	untimely := v.now(a, now)
	proof, err := v.prove(a, s, call, now)
	if err == nil {
		err = claims(a, call)
	}
	if err != nil {
		// Why an old session fails matters less than that its capability is over.
		if untimely != nil {
			return nil, "", untimely
		}
		return nil, "", vault.NewDenial(vault.CodeProof, "", err)
	}
	return a, proof, untimely
}

var (
	errSession  = errors.New("no such session")
	errReplay   = errors.New("sequence number or nonce used, or out of range")
	errWrong    = errors.New("wrong MAC or signature")
	errNoProof  = errors.New("want exactly one MAC or signature")
	errNotBound = errors.New("the transport does not show the holder")
)

// claims checks what the edge already believes about the call.
func claims(a *authority, call *vault.Call) error {
	g := &a.grant
	if call.Task != "" && call.Task != g.Task || call.Tenant != "" && call.Tenant != g.Tenant ||
		call.Agent != "" && call.Agent != g.Agent || call.Principal != "" && call.Principal != g.Principal {
		return errors.New("the call names another task, tenant, agent or principal than the chain")
	}
	return nil
}

// prove checks possession, with at most one MAC or signature.
func (v *Verifier) prove(a *authority, s *session, call *vault.Call, now time.Time) (vault.ProofKind, error) {
	b := &call.Credential.Binding
	bound, proof := false, vault.ProofKind("")
	switch h := &a.holder; {
	case !h.Key.IsZero():
		return v.proveKey(a, s, call, now)
	case h.SPIFFE != "":
		bound, proof = h.SPIFFE == b.SPIFFE, vault.ProofSVID
	case h.Channel != "":
		bound, proof = h.Channel == b.Channel, vault.ProofChannel
	case h.UID != nil:
		bound, proof = b.Peer && b.PeerUID >= 0 && uint64(b.PeerUID) == uint64(*h.UID), vault.ProofPeer
	case h.Bearer:
		bound, proof = v.cfg.AllowBearer && b.Bearer, vault.ProofBearer
	}
	if !bound {
		return "", errNotBound
	}
	return proof, nil
}

func (v *Verifier) proveKey(a *authority, s *session, call *vault.Call, now time.Time) (vault.ProofKind, error) {
	cred := &call.Credential
	if a.signsRequest(cred) {
		return vault.ProofDPoP, nil
	}
	if (len(cred.MAC) == 0) == (len(cred.Signature) == 0) {
		return "", errNoProof
	}
	if len(cred.Nonce) != nonceBytes {
		return "", errReplay
	}
	if len(cred.Session) > 0 {
		if s == nil {
			return "", errSession
		}
		return s.prove(call, now)
	}
	if len(cred.Signature) == 0 {
		return "", errSession
	}
	if cred.Seq != 0 || !v.nonces.known(cred.Nonce, now) {
		return "", errReplay
	}
	msg := appendCall(make([]byte, 0, 512), v.cfg.Audience, nil, 0, &a.grant.Leaf, call, cred.Nonce)
	if !a.holder.Key.verify(msg, cred.Signature) {
		return "", errWrong
	}
	if !v.nonces.take(cred.Nonce) {
		return "", errReplay
	}
	return vault.ProofSignature, nil
}

// signsRequest reports whether the edge has checked a DPoP proof (RFC 9449) that the
// holder's key signed, and the call brings nothing of its own. Such a proof covers
// method, URL and token of the HTTP request and not its body: it shows who sent the
// request, and not what was in it.
func (a *authority) signsRequest(cred *vault.Credential) bool {
	return !a.jkt.IsZero() && cred.Binding.DPoP == a.jkt &&
		len(cred.MAC) == 0 && len(cred.Signature) == 0 && len(cred.Session) == 0
}

// finish adds to g what the proof says.
func (v *Verifier) finish(g *vault.Grant, proof vault.ProofKind, call *vault.Call) {
	g.Proof = proof
	g.SameUID = v.cfg.SameUID(call.Credential.Binding)
}

// Authenticate checks chain, possession, time and revocation of a call without
// looking at its target or arguments, for requests that have none, such as a
// list. The grant names task, agent and links and allows nothing. It uses up the
// proof like [Verifier.Verify] and fails like it.
func (v *Verifier) Authenticate(ctx context.Context, call *vault.Call) (vault.Grant, error) {
	a, proof, denial := v.authenticate(call)
	if a == nil {
		return vault.Grant{}, denial
	}
	g := a.grant
	v.finish(&g, proof, call)
	if denial != nil {
		return g, denial
	}
	return g, nil
}

// Verify checks chain, possession, time, revocation, target and arguments of a
// call and returns what the chain allows for it. Budgets do not move. A sequence
// number or nonce is used up once its MAC or signature has verified.
//
// Every error is a *vault.Denial. If possession was proven, the grant beside it
// names task, agent, principal, links and proof; else it is zero.
func (v *Verifier) Verify(ctx context.Context, call *vault.Call) (vault.Grant, error) {
	a, proof, denial := v.authenticate(call)
	if a == nil {
		return vault.Grant{}, denial
	}
	if denial != nil {
		g := a.grant
		v.finish(&g, proof, call)
		return g, denial
	}
	g, denial := a.authorise(call, v.cfg.Now())
	v.finish(&g, proof, call)
	if denial != nil {
		return g, denial
	}
	return g, nil
}

// Reverify checks target and arguments again for a call whose arguments a stage
// transformed. The proof in g stands.
func (v *Verifier) Reverify(ctx context.Context, call *vault.Call, g *vault.Grant) (vault.Grant, error) {
	a, err := v.held(call, g)
	if err != nil {
		return vault.Grant{}, err
	}
	now := v.cfg.Now()
	denial := v.now(a, now)
	again := a.grant
	if denial == nil {
		again, denial = a.authorise(call, now)
	}
	again.Proof, again.SameUID = g.Proof, g.SameUID
	if denial != nil {
		return again, denial
	}
	return again, nil
}

// Recheck reports a *vault.Denial if g has expired or was revoked since. It needs
// nothing but the grant, so a full cache cannot fail a call that was admitted.
func (v *Verifier) Recheck(ctx context.Context, g *vault.Grant) error {
	now := v.cfg.Now()
	is := v.trust.issuer([]byte(g.Issuer))
	switch {
	case g.Chain.IsZero() || is == nil:
		return vault.NewDenial(vault.CodeCapabilityMissing, "", errors.New("not a grant of this verifier"))
	case !now.Before(g.Expires):
		return vault.NewDenial(vault.CodeCapabilityExpired, "", nil)
	case !is.inUse(now):
		return vault.NewDenial(vault.CodeCapabilityIssuer, "", fmt.Errorf("issuer %q is not in use now", is.KID))
	case v.cfg.Revocations.revokes(subjectOf(g)):
		return vault.NewDenial(vault.CodeCapabilityRevoked, "", nil)
	}
	return nil
}

// RevokedRoot reports whether what g names, the task, agents, links, issuer and issue
// time of a root, was revoked. It needs no chain.
func (v *Verifier) RevokedRoot(g *vault.Grant) bool { return v.cfg.Revocations.revokes(subjectOf(g)) }

// Revoked returns a channel that is closed when g is revoked, at once if it is.
// Grants of one chain share it.
func (v *Verifier) Revoked(g *vault.Grant) <-chan struct{} {
	return v.cfg.Revocations.watch(g, v.cfg.Now())
}

// Granted returns a function that reports whether the chain of g grants a kind and
// target at all, with whatever arguments, so that an edge lists only what can be
// called. call is the one that g was returned for.
func (v *Verifier) Granted(call *vault.Call, g *vault.Grant) func(vault.Kind, vault.Target) bool {
	a, err := v.held(call, g)
	return func(kind vault.Kind, t vault.Target) bool {
		return err == nil && a.target(kind, t).code == ""
	}
}

package capability

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"sync"
	"time"

	"github.com/pilox/vault"
)

// sidBytes is the length of a session id.
const sidBytes = 16

// A session opens with two messages. The request is a CBOR array of the chain and
// a COSE message that the holder signs; the answer is a COSE message that the
// gateway signs, with the digest of the holder's message in the external AAD.
//
//	transcript = SHA-256("vault/session/v1" ‖ holder's message ‖ gateway's payload)
//	MAC key    = HKDF-SHA-256(X25519, salt = transcript, info = "vault/session/caller/v1")
//
// Whoever replays a request gets a session whose key it cannot compute. Answers
// are not MAC'd; a key for that direction would have an info string of its own.
type opening struct {
	Audience string       `cbor:"1,keyasint"`
	Chain    vault.Digest `cbor:"2,keyasint"` // SHA-256 of the chain with signatures
	Share    [32]byte     `cbor:"3,keyasint"` // X25519
	Nonce    [16]byte     `cbor:"4,keyasint"`
	Exporter []byte       `cbor:"5,keyasint,omitzero"` // tls-exporter of the connection, if there is one
}

type opened struct {
	SID     [sidBytes]byte `cbor:"1,keyasint"`
	Share   [32]byte       `cbor:"2,keyasint"`
	Nonce   [16]byte       `cbor:"3,keyasint"`
	Key     Key            `cbor:"4,keyasint"` // that signs the answer
	Expires Instant        `cbor:"5,keyasint"`
}

// maxOpening bounds a request: a chain, and a message whose fields are all small.
const maxOpening = MaxChainBytes + 1024

// A session is the gateway's half.
type session struct {
	id        [sidBytes]byte
	authority *authority
	binding   vault.Binding
	expires   time.Time

	mu     sync.Mutex
	mac    hash.Hash // guarded by mu, with all below
	window window
	buf    []byte // scratch, so that a check allocates nothing
	sum    [sha256.Size]byte
}

// OpenSession answers a request made by [Session.Open]. b is what the transport
// proves; the session is good on the same channel, peer and connection only. It
// ends with the capability or after 15 minutes. Errors are *vault.Denial.
func (v *Verifier) OpenSession(ctx context.Context, request []byte, b vault.Binding) ([]byte, error) {
	if len(request) > maxOpening || len(request) == 0 || request[0] != majorArray<<5|2 {
		return nil, vault.NewDenial(vault.CodeCapabilityMalformed, "", errFrame)
	}
	raw, rest, ok := readBytes(request[1:])
	if !ok {
		return nil, vault.NewDenial(vault.CodeCapabilityMalformed, "", errFrame)
	}
	m, rest, err := readMessage(rest, typOpen)
	if err != nil || len(rest) != 0 || len(m.kid) > 0 {
		return nil, vault.NewDenial(vault.CodeProof, "", errors.Join(errFrame, err))
	}
	a, err := v.authority(raw)
	if err != nil {
		return nil, err
	}
	now := v.cfg.Now()
	if denial := v.now(a, now); denial != nil {
		return nil, denial
	}
	if a.holder.Key.IsZero() {
		return nil, vault.NewDenial(vault.CodeProof, "", errors.New("the holder has no key"))
	}
	var open opening
	if !m.verify(a.holder.Key, typOpen, nil) {
		return nil, vault.NewDenial(vault.CodeProof, "", errWrong)
	}
	if err := det.decode(m.payload, &open); err != nil {
		return nil, vault.NewDenial(vault.CodeProof, "", err)
	}
	if open.Audience != v.cfg.Audience || open.Chain != a.key || !bytes.Equal(open.Exporter, b.Exporter) {
		return nil, vault.NewDenial(vault.CodeProof, "", errors.New("opened for another audience, chain or connection"))
	}
	s := &session{authority: a, binding: b, expires: earlier(a.expires, now.Add(sessionLife))}
	answer, err := v.accept(s, &m, &open)
	if err != nil {
		return nil, vault.NewDenial(vault.CodeProof, "", err)
	}
	if err := v.keep(s, now); err != nil {
		return nil, err
	}
	return answer, nil
}

// accept makes the gateway's share, derives the key and signs the answer.
func (v *Verifier) accept(s *session, m *message, open *opening) ([]byte, error) {
	private, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	answer := opened{Share: [32]byte(private.PublicKey().Bytes()), Key: v.sessionKey, Expires: InstantOf(s.expires)}
	rand.Read(s.id[:])
	rand.Read(answer.Nonce[:])
	answer.SID = s.id
	payload, err := det.enc.Marshal(&answer)
	if err != nil {
		return nil, err
	}
	if s.mac, err = sessionMAC(private, open.Share[:], m.raw, payload); err != nil {
		return nil, err
	}
	first := sha256.Sum256(m.raw)
	return signMessage(v.cfg.SessionKey, "", typAnswer, first[:], payload)
}

// sessionMAC derives the key that the caller's messages are MAC'd with. A share
// of low order is refused by ECDH (RFC 7748, section 6.1).
func sessionMAC(private *ecdh.PrivateKey, share, first, answer []byte) (hash.Hash, error) {
	peer, err := ecdh.X25519().NewPublicKey(share)
	if err != nil {
		return nil, err
	}
	secret, err := private.ECDH(peer)
	if err != nil {
		return nil, err
	}
	transcript := sha256.New()
	transcript.Write([]byte("vault/session/v1"))
	transcript.Write(first)
	transcript.Write(answer)
	key, err := hkdf.Key(sha256.New, secret, transcript.Sum(nil), "vault/session/caller/v1", sha256.Size)
	if err != nil {
		return nil, err
	}
	return hmac.New(sha256.New, key), nil
}

// keep adds s to the open sessions.
func (v *Verifier) keep(s *session, now time.Time) error {
	v.smu.Lock()
	defer v.smu.Unlock()
	same := 0
	for id, old := range v.sessions {
		if !now.Before(old.expires) || v.cfg.Revocations.isRevoked(old.authority) {
			delete(v.sessions, id)
		} else if old.authority.key == s.authority.key {
			same++
		}
	}
	if len(v.sessions) >= v.cfg.MaxSessions || same >= maxChainSession {
		return vault.NewDenial(vault.CodeBusy, "", fmt.Errorf("%d open sessions, %d of this chain", len(v.sessions), same))
	}
	v.sessions[s.id] = s
	return nil
}

// session returns an open session, or nil.
func (v *Verifier) session(id []byte) *session {
	if len(id) != sidBytes {
		return nil
	}
	v.smu.RLock()
	defer v.smu.RUnlock()
	return v.sessions[[sidBytes]byte(id)]
}

// on reports whether b is the channel, peer and connection of the session.
func (s *session) on(b *vault.Binding) bool {
	return b.Channel == s.binding.Channel && b.Peer == s.binding.Peer && b.PeerUID == s.binding.PeerUID &&
		b.SPIFFE == s.binding.SPIFFE && bytes.Equal(b.Exporter, s.binding.Exporter)
}

// prove checks the MAC or signature of a call in the session. The sequence number
// is used up once it verified, never before.
func (s *session) prove(call *vault.Call, now time.Time) (vault.ProofKind, error) {
	cred := &call.Credential
	if !now.Before(s.expires) {
		return "", errSession
	}
	if !s.on(&cred.Binding) {
		return "", errNotBound
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.window.fresh(cred.Seq) {
		return "", errReplay
	}
	s.buf = appendCall(s.buf[:0], s.authority.chain.links[0].Audience, s.id[:], cred.Seq, &s.authority.grant.Leaf, call, cred.Nonce)
	proof := vault.ProofSession
	if len(cred.Signature) > 0 {
		proof = vault.ProofSignature
		if !s.authority.holder.Key.verify(s.buf, cred.Signature) {
			return "", errWrong
		}
	} else {
		s.mac.Reset()
		s.mac.Write(s.buf)
		if !hmac.Equal(s.mac.Sum(s.sum[:0]), cred.MAC) {
			return "", errWrong
		}
	}
	s.window.use(cred.Seq)
	return proof, nil
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

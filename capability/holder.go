package capability

import (
	"crypto"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"slices"
	"sync"
	"time"

	"github.com/pilox/vault"
)

// A Session is the holder's half of a session with one gateway. Set the fields,
// send what [Session.Open] returns, give the answer to [Session.Finish], then
// [Session.Sign] every call. Sign is safe for concurrent use; open a new Session
// when it has expired.
type Session struct {
	Chain    Chain         // what the session is about; its holder has Key
	Key      crypto.Signer // the holder's key
	Gateway  Key           // public key of the gateway's answers, as pinned; required
	Exporter []byte        // tls-exporter of the connection; nil without TLS

	private *ecdh.PrivateKey
	first   []byte // our message

	mu      sync.Mutex
	id      [sidBytes]byte
	expires time.Time
	seq     uint64    // guarded by mu, with all below
	mac     hash.Hash // nil until finished
	buf     []byte
}

// Open returns the request that opens the session.
func (s *Session) Open() ([]byte, error) {
	if s.Chain.IsZero() {
		return nil, errEmpty
	}
	if s.Key == nil || s.Gateway.IsZero() {
		return nil, errNoKey
	}
	private, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("open session: %w", err)
	}
	open := opening{
		Audience: s.Chain.links[0].Audience,
		Chain:    s.Chain.Digest(),
		Share:    [32]byte(private.PublicKey().Bytes()),
		Exporter: slices.Clone(s.Exporter),
	}
	if len(open.Exporter) == 0 {
		open.Exporter = nil
	}
	rand.Read(open.Nonce[:])
	payload, err := det.enc.Marshal(&open)
	if err != nil {
		return nil, fmt.Errorf("open session: %w", err)
	}
	first, err := signMessage(s.Key, "", typOpen, nil, payload)
	if err != nil {
		return nil, fmt.Errorf("open session: %w", err)
	}
	s.private, s.first = private, first
	return append(appendBytes([]byte{majorArray<<5 | 2}, s.Chain.raw), first...), nil
}

// Finish checks the gateway's answer and makes the session ready.
func (s *Session) Finish(answer []byte) error {
	if s.private == nil {
		return errors.New("finish session: not opened")
	}
	m, rest, err := readMessage(answer, typAnswer)
	if err != nil || len(rest) != 0 || len(m.kid) > 0 {
		return fmt.Errorf("finish session: %w", errors.Join(errFrame, err))
	}
	first := sha256.Sum256(s.first)
	if !m.verify(s.Gateway, typAnswer, first[:]) {
		return errors.New("finish session: not the gateway's signature")
	}
	var o opened
	if err := det.decode(m.payload, &o); err != nil {
		return fmt.Errorf("finish session: %w", err)
	}
	if o.Key != s.Gateway {
		return errors.New("finish session: the answer names another key")
	}
	mac, err := sessionMAC(s.private, o.Share[:], s.first, m.payload)
	if err != nil {
		return fmt.Errorf("finish session: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.id, s.expires, s.mac, s.seq = o.SID, o.Expires.Time(), mac, 0
	s.private = nil // one answer, one key
	return nil
}

// Expires returns when the session ends; zero before Finish.
func (s *Session) Expires() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.expires
}

// Sign proves a call with a MAC. It fills in call.Credential but for the binding. The
// call must not change afterwards.
func (s *Session) Sign(call *vault.Call) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	cred, err := s.next(call)
	if err != nil {
		return err
	}
	s.mac.Reset()
	s.mac.Write(s.buf)
	cred.MAC = s.mac.Sum(make([]byte, 0, sha256.Size))
	call.Credential = cred
	return nil
}

// SignCall proves a call like [Session.Sign], with a signature of the holder instead
// of a MAC: third parties can verify it, and a capability can demand it ([Link.SignAt]).
func (s *Session) SignCall(call *vault.Call) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	cred, err := s.next(call)
	if err != nil {
		return err
	}
	if cred.Signature, err = sign(s.Key, s.buf); err != nil {
		return fmt.Errorf("sign call: %w", err)
	}
	call.Credential = cred
	return nil
}

// next returns the credential of the next call without its proof, and leaves in s.buf
// what the proof covers; s.mu is held.
func (s *Session) next(call *vault.Call) (vault.Credential, error) {
	if s.mac == nil {
		return vault.Credential{}, errors.New("sign call: the session is not open")
	}
	s.seq++
	nonce := make([]byte, nonceBytes)
	rand.Read(nonce)
	last := &s.Chain.links[len(s.Chain.links)-1]
	s.buf = appendCall(s.buf[:0], s.Chain.links[0].Audience, s.id[:], s.seq, &last.id, call, nonce)
	return vault.Credential{
		Chain: s.Chain.raw, Binding: call.Credential.Binding,
		Session: slices.Clone(s.id[:]), Seq: s.seq, Nonce: nonce,
	}, nil
}

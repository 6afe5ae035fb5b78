package approval

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/pilox/vault"
)

// An Effect is what a person answers.
type Effect string

// The effects. The zero Effect is no answer.
const (
	Allow Effect = "allow"
	Deny  Effect = "deny"
)

// maxAnswer bounds an encoded answer: four short fields and a signature.
const maxAnswer = 4 << 10

// answerContext starts the bytes that an approver key signs. A passkey signs the
// challenge inside its own structure instead.
const answerContext = "vault/answer/v1"

// A decision is the part of an answer that is signed together with the question.
type decision struct {
	Effect     string   `cbor:"1,keyasint"`
	Narrowing  []byte   `cbor:"2,keyasint"` // empty: this version has no narrowing
	Nonce      [16]byte `cbor:"3,keyasint"` // makes two answers to one question differ
	ValidUntil int64    `cbor:"4,keyasint"` // Unix seconds
}

// An answer is one person's signed decision on one question.
type answer struct {
	Question  string `cbor:"1,keyasint"` // approval id
	Approver  string `cbor:"2,keyasint"` // id; the key of that id must have signed
	Decision  []byte `cbor:"3,keyasint"` // encoded decision
	Signature []byte `cbor:"4,keyasint"`

	decision decision // decoded from Decision
}

func (a *answer) validUntil() time.Time { return time.Unix(a.decision.ValidUntil, 0) }

// challenge returns SHA-256('vault/approval/v1' ‖ SHA-256(question) ‖ decision),
// which a WebAuthn assertion would carry too (FORMATS section 5).
func challenge(signed, decision []byte) [32]byte {
	d := digest(signed)
	b := append([]byte(questionContext), d[:]...)
	return digest(append(b, decision...))
}

// Sign answers a question. signed must verify under the gateway's key, so that
// nobody signs what Vault did not ask; sign is the approver's Ed25519 key. An
// allow is good until validUntil or until the question expires, whichever is
// first; a zero validUntil means the latter. The result goes to [Desk.Submit].
func Sign(signed []byte, gateway ed25519.PublicKey, approver string, effect Effect, validUntil time.Time, sign func([]byte) ([]byte, error)) ([]byte, error) {
	c := newCodec()
	q, err := c.open(signed, gateway)
	if err != nil {
		return nil, err
	}
	if effect != Allow && effect != Deny {
		return nil, fmt.Errorf("sign answer: effect %q, want allow or deny", effect)
	}
	d := decision{Effect: string(effect), ValidUntil: q.ExpiresAt}
	if !validUntil.IsZero() {
		d.ValidUntil = min(d.ValidUntil, validUntil.Unix())
	}
	rand.Read(d.Nonce[:])
	enc, err := c.enc.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("sign answer: %w", err)
	}
	ch := challenge(signed, enc)
	sig, err := sign(append([]byte(answerContext), ch[:]...))
	if err != nil {
		return nil, fmt.Errorf("sign answer: %w", err)
	}
	return c.enc.Marshal(answer{Question: q.ID, Approver: approver, Decision: enc, Signature: sig})
}

// parseAnswer decodes an answer without checking its signature.
func (c codec) parseAnswer(raw []byte) (*answer, error) {
	if len(raw) > maxAnswer {
		return nil, fmt.Errorf("%d bytes, at most %d are read", len(raw), maxAnswer)
	}
	a := new(answer)
	if err := c.decode(raw, a); err != nil {
		return nil, err
	}
	if err := c.decode(a.Decision, &a.decision); err != nil {
		return nil, fmt.Errorf("decision: %w", err)
	}
	if e := Effect(a.decision.Effect); e != Allow && e != Deny {
		return nil, fmt.Errorf("effect %q, want allow or deny", a.decision.Effect)
	}
	if len(a.decision.Narrowing) != 0 {
		return nil, errors.New("narrowing is not supported")
	}
	return a, nil
}

// signedBy reports whether key signed a for exactly this question.
func (a *answer) signedBy(key ed25519.PublicKey, signed []byte) bool {
	ch := challenge(signed, a.Decision)
	return len(key) == ed25519.PublicKeySize && ed25519.Verify(key, append([]byte(answerContext), ch[:]...), a.Signature)
}

// Verify checks an answer from the record, without a [Desk]: that key signed raw
// for exactly the question in signed, which the gateway's key signed. It returns
// the effect and the end of its validity. Whether the approver was entitled to
// answer is not in these bytes.
func Verify(raw, signed []byte, gateway, key ed25519.PublicKey) (Effect, time.Time, error) {
	c := newCodec()
	q, err := c.open(signed, gateway)
	if err != nil {
		return "", time.Time{}, err
	}
	a, err := c.parseAnswer(raw)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("verify answer: %w", err)
	}
	if a.Question != q.ID || !a.signedBy(key, signed) {
		return "", time.Time{}, fmt.Errorf("verify answer: %w: not signed by this key for this question", ErrInvalid)
	}
	return Effect(a.decision.Effect), a.validUntil(), nil
}

func (e Effect) verdict() vault.Verdict {
	if e == Allow {
		return vault.Allow
	}
	return vault.Deny
}

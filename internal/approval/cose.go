package approval

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// A message is a COSE_Sign1 (RFC 9052, section 4.2) with Ed25519, tag 18.
const tagSign1 = 18

// algEd25519 is the fully specified form of EdDSA (RFC 9864), as in capabilities.
const algEd25519 = -19

const (
	// questionContext starts every hash and is the external_aad of every
	// signature of this package, so that neither can be taken for another's.
	questionContext = "vault/approval/v1"
	questionType    = "application/vnd.pilox.vault.approval+cbor" // typ, RFC 9596
)

// A header is the protected header. There is no other: everything that says how
// to read the payload is signed.
type header struct {
	Alg int64  `cbor:"1,keyasint"`
	Typ string `cbor:"16,keyasint"`
}

type sign1 struct {
	_           struct{} `cbor:",toarray"`
	Protected   []byte
	Unprotected map[int64]cbor.RawMessage
	Payload     []byte
	Signature   []byte
}

type sigStructure struct {
	_         struct{} `cbor:",toarray"`
	Context   string
	Protected []byte
	External  []byte
	Payload   []byte
}

// A codec encodes deterministically (RFC 8949, section 4.2.1) and decodes nothing
// that it would not have written.
type codec struct {
	enc cbor.EncMode
	dec cbor.DecMode
}

func newCodec() codec {
	eo := cbor.CoreDetEncOptions()
	eo.NilContainers = cbor.NilContainerAsEmpty
	eo.IndefLength = cbor.IndefLengthForbidden
	enc, err := eo.EncMode()
	if err != nil {
		panic("approval: encode options: " + err.Error()) // constants above
	}
	dec, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		MaxNestedLevels:   8,           // a question has 4
		MaxArrayElements:  maxElements, // reasons, origins, readers
		MaxMapPairs:       64,          // fields of a question
	}.DecMode()
	if err != nil {
		panic("approval: decode options: " + err.Error())
	}
	return codec{enc, dec}
}

// decode decodes b into v and encodes v again: anything but the same bytes is
// refused, whatever it means.
func (c codec) decode(b []byte, v any) error {
	if err := c.dec.Unmarshal(b, v); err != nil {
		return err
	}
	again, err := c.enc.Marshal(v)
	if err != nil {
		return err
	}
	if !bytes.Equal(b, again) {
		return errors.New("not in deterministic encoding")
	}
	return nil
}

// seal signs payload.
func (c codec) seal(payload []byte, key crypto.Signer) ([]byte, error) {
	protected, err := c.enc.Marshal(header{algEd25519, questionType})
	if err != nil {
		return nil, err
	}
	tbs, err := c.enc.Marshal(sigStructure{Context: "Signature1", Protected: protected, External: []byte(questionContext), Payload: payload})
	if err != nil {
		return nil, err
	}
	sig, err := key.Sign(nil, tbs, crypto.Hash(0))
	if err != nil {
		return nil, err
	}
	return c.enc.Marshal(cbor.Tag{Number: tagSign1, Content: sign1{Protected: protected, Payload: payload, Signature: sig}})
}

// unseal checks the signature and returns the payload.
func (c codec) unseal(signed []byte, key ed25519.PublicKey) ([]byte, error) {
	if len(key) != ed25519.PublicKeySize {
		return nil, errors.New("no key to check the signature with")
	}
	var tag cbor.RawTag
	if err := c.decode(signed, &tag); err != nil {
		return nil, err
	}
	if tag.Number != tagSign1 {
		return nil, fmt.Errorf("tag %d, want COSE_Sign1", tag.Number)
	}
	var m sign1
	if err := c.decode(tag.Content, &m); err != nil {
		return nil, err
	}
	if len(m.Unprotected) != 0 {
		return nil, errors.New("an unprotected header")
	}
	var h header
	if err := c.decode(m.Protected, &h); err != nil {
		return nil, err
	}
	if h.Alg != algEd25519 || h.Typ != questionType {
		return nil, fmt.Errorf("algorithm %d and type %q, want %d and %q", h.Alg, h.Typ, algEd25519, questionType)
	}
	tbs, err := c.enc.Marshal(sigStructure{Context: "Signature1", Protected: m.Protected, External: []byte(questionContext), Payload: m.Payload})
	if err != nil {
		return nil, err
	}
	if !ed25519.Verify(key, tbs, m.Signature) {
		return nil, errors.New("signature does not verify")
	}
	return m.Payload, nil
}

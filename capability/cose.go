package capability

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
)

// The typ of every COSE message, which is its external AAD too, so that no
// signature counts for another purpose.
const (
	typLink   = "vault/link/v1"
	typOpen   = "vault/session-open/v1"
	typAnswer = "vault/session-answer/v1"
)

// A message is a COSE_Sign1 without the tag: [protected, {}, payload, signature].
// The slices share the memory they were read from.
type message struct {
	raw       []byte // the whole
	protected []byte // encoded header, the content of the byte string
	payload   []byte
	signature []byte

	alg alg
	kid []byte // empty: none
}

var (
	errFrame  = errors.New("not a COSE_Sign1 of this format")
	errHeader = errors.New("unknown algorithm or header, or a message of another type")
)

// readMessage reads one message of the given typ from the front of b.
func readMessage(b []byte, typ string) (m message, rest []byte, err error) {
	var ok bool
	if len(b) == 0 || b[0] != majorArray<<5|4 {
		return m, nil, errFrame
	}
	if m.protected, rest, ok = readBytes(b[1:]); !ok {
		return m, nil, errFrame
	}
	if len(rest) == 0 || rest[0] != 0xa0 { // the unprotected header is the empty map
		return m, nil, errFrame
	}
	if m.payload, rest, ok = readBytes(rest[1:]); !ok {
		return m, nil, errFrame
	}
	if m.signature, rest, ok = readBytes(rest); !ok || len(m.signature) != sigBytes {
		return m, nil, errFrame
	}
	m.raw = b[:len(b)-len(rest)]
	if m.alg, m.kid, err = readHeader(m.protected, typ); err != nil {
		return m, nil, err
	}
	return m, rest, nil
}

// appendHeader appends the protected header: alg, kid unless empty, typ
// (RFC 9596).
func appendHeader(b []byte, a alg, kid []byte, typ string) []byte {
	if len(kid) == 0 {
		b = append(b, 0xa2)
	} else {
		b = append(b, 0xa3)
	}
	b = append(b, 1, byte(0x20|(-1-a))) // both algorithm numbers fit one byte
	if len(kid) > 0 {
		b = appendBytes(append(b, 4), kid)
	}
	return appendText(append(b, 16), typ)
}

// readHeader accepts exactly what appendHeader writes.
func readHeader(b []byte, typ string) (a alg, kid []byte, err error) {
	if len(b) < 3 || b[1] != 1 {
		return 0, nil, errFrame
	}
	switch b[2] {
	case byte(0x20 | (-1 - algEd25519)):
		a = algEd25519
	case byte(0x20 | (-1 - algES256)):
		a = algES256
	default:
		return 0, nil, errHeader
	}
	if b[0] == 0xa3 {
		if len(b) < 5 || b[3] != 4 {
			return 0, nil, errFrame
		}
		var ok bool
		if kid, _, ok = readBytes(b[4:]); !ok || len(kid) == 0 || len(kid) > maxKID {
			return 0, nil, errFrame
		}
	}
	var scratch [128]byte
	if !bytes.Equal(b, appendHeader(scratch[:0], a, kid, typ)) {
		return 0, nil, errHeader
	}
	return a, kid, nil
}

// toBeSigned returns the Sig_structure of RFC 9052, section 4.4, for COSE_Sign1.
func toBeSigned(protected, aad, payload []byte) []byte {
	b := make([]byte, 0, 32+len(protected)+len(aad)+len(payload))
	b = appendText(append(b, majorArray<<5|4), "Signature1")
	return appendBytes(appendBytes(appendBytes(b, protected), aad), payload)
}

// verify reports whether k signed m, with the typ and more as external AAD.
func (m *message) verify(k Key, typ string, more []byte) bool {
	if k.alg != m.alg {
		return false
	}
	return k.verify(toBeSigned(m.protected, append([]byte(typ), more...), m.payload), m.signature)
}

// signMessage returns the message with payload signed by key.
func signMessage(key crypto.Signer, kid, typ string, more, payload []byte) ([]byte, error) {
	if len(kid) > maxKID {
		return nil, fmt.Errorf("kid of %d bytes: at most %d", len(kid), maxKID)
	}
	pub, err := KeyOf(key.Public())
	if err != nil {
		return nil, err
	}
	protected := appendHeader(nil, pub.alg, []byte(kid), typ)
	sig, err := sign(key, toBeSigned(protected, append([]byte(typ), more...), payload))
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", typ, err)
	}
	b := appendBytes([]byte{majorArray<<5 | 4}, protected)
	b = appendBytes(append(b, 0xa0), payload)
	return appendBytes(b, sig), nil
}

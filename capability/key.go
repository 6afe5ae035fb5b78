package capability

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"

	"github.com/pilox/vault"
)

// An alg is a COSE algorithm number.
type alg int8

const (
	algES256   alg = -7  // RFC 9053: ECDSA on P-256 with SHA-256
	algEd25519 alg = -19 // RFC 9864: the fully specified form of EdDSA
)

// A Key is a public key that can hold or sign a capability: Ed25519 or ECDSA on
// P-256. Keys compare with ==. The zero Key is none and verifies nothing.
type Key struct {
	alg  alg
	x, y [32]byte // y is zero for Ed25519
}

// KeyOf returns pub as a Key: an ed25519.PublicKey or *ecdsa.PublicKey on P-256.
func KeyOf(pub crypto.PublicKey) (Key, error) {
	switch p := pub.(type) {
	case ed25519.PublicKey:
		if len(p) == ed25519.PublicKeySize {
			return Key{alg: algEd25519, x: [32]byte(p)}, nil
		}
	case *ecdsa.PublicKey:
		if p.Curve != elliptic.P256() {
			break
		}
		b, err := p.Bytes()
		if err != nil {
			return Key{}, fmt.Errorf("public key: %w", err)
		}
		return Key{alg: algES256, x: [32]byte(b[1:33]), y: [32]byte(b[33:65])}, nil
	}
	return Key{}, fmt.Errorf("public key %T: want Ed25519 or P-256", pub)
}

// Public returns k as an ed25519.PublicKey or *ecdsa.PublicKey; nil for the zero Key.
func (k Key) Public() crypto.PublicKey {
	switch k.alg {
	case algEd25519:
		return ed25519.PublicKey(slices.Clone(k.x[:]))
	case algES256:
		if pub, err := k.p256(); err == nil {
			return pub
		}
	}
	return nil
}

// IsZero reports whether k is no key.
func (k Key) IsZero() bool { return k.alg == 0 }

// MarshalText returns "ed25519:" or "p256:" and the key in base64url.
func (k Key) MarshalText() ([]byte, error) {
	enc := base64.RawURLEncoding
	switch k.alg {
	case algEd25519:
		return enc.AppendEncode([]byte("ed25519:"), k.x[:]), nil
	case algES256:
		return enc.AppendEncode(enc.AppendEncode([]byte("p256:"), k.x[:]), k.y[:]), nil
	}
	return nil, errNoKey
}

// UnmarshalText parses the form of [Key.MarshalText].
func (k *Key) UnmarshalText(b []byte) error {
	*k = Key{}
	kind, text, _ := strings.Cut(string(b), ":")
	enc := base64.RawURLEncoding.Strict()
	half := enc.EncodedLen(32)
	switch {
	case kind == "ed25519" && len(text) == half:
		x, err := enc.DecodeString(text)
		if err != nil {
			return fmt.Errorf("key: %w", err)
		}
		*k = Key{alg: algEd25519, x: [32]byte(x)}
		return nil
	case kind == "p256" && len(text) == 2*half:
		x, errX := enc.DecodeString(text[:half])
		y, errY := enc.DecodeString(text[half:])
		if err := errors.Join(errX, errY); err != nil {
			return fmt.Errorf("key: %w", err)
		}
		p := Key{alg: algES256, x: [32]byte(x), y: [32]byte(y)}
		if _, err := p.p256(); err != nil {
			return err
		}
		*k = p
		return nil
	}
	return errors.New("key: want ed25519:… or p256:…")
}

func (k Key) String() string {
	b, err := k.MarshalText()
	if err != nil {
		return "none"
	}
	return string(b)
}

var errNoKey = errors.New("no key")

// coseKey is the COSE_Key of RFC 9053, section 7, for the two kinds of key.
type coseKey struct {
	Kty int    `cbor:"1,keyasint"`
	Crv int    `cbor:"-1,keyasint"`
	X   []byte `cbor:"-2,keyasint"`
	Y   []byte `cbor:"-3,keyasint,omitzero"`
}

// MarshalCBOR returns the COSE_Key.
func (k Key) MarshalCBOR() ([]byte, error) {
	switch k.alg {
	case algEd25519:
		return det.enc.Marshal(coseKey{Kty: 1, Crv: 6, X: k.x[:]})
	case algES256:
		return det.enc.Marshal(coseKey{Kty: 2, Crv: 1, X: k.x[:], Y: k.y[:]})
	}
	return nil, errNoKey
}

// UnmarshalCBOR parses a COSE_Key and refuses a point that is not on the curve.
func (k *Key) UnmarshalCBOR(b []byte) error {
	*k = Key{}
	var c coseKey
	if err := det.dec.Unmarshal(b, &c); err != nil {
		return fmt.Errorf("key: %w", err)
	}
	switch {
	case c.Kty == 1 && c.Crv == 6 && len(c.X) == 32 && c.Y == nil:
		*k = Key{alg: algEd25519, x: [32]byte(c.X)}
		return nil
	case c.Kty == 2 && c.Crv == 1 && len(c.X) == 32 && len(c.Y) == 32:
		p := Key{alg: algES256, x: [32]byte(c.X), y: [32]byte(c.Y)}
		if _, err := p.p256(); err != nil {
			return err
		}
		*k = p
		return nil
	}
	return errors.New("key: want Ed25519 or P-256")
}

// Thumbprint returns SHA-256 of the deterministic COSE_Key (RFC 9679), zero for
// the zero Key.
func (k Key) Thumbprint() vault.Digest {
	b, err := k.MarshalCBOR()
	if err != nil {
		return vault.Digest{}
	}
	return sha256.Sum256(b)
}

// JWKThumbprint returns the SHA-256 thumbprint of the key as a JWK (RFC 7638, and
// RFC 8037 for Ed25519), zero for the zero Key.
func (k Key) JWKThumbprint() vault.Digest {
	enc := base64.RawURLEncoding
	switch k.alg {
	case algEd25519:
		return sha256.Sum256([]byte(`{"crv":"Ed25519","kty":"OKP","x":"` + enc.EncodeToString(k.x[:]) + `"}`))
	case algES256:
		return sha256.Sum256([]byte(`{"crv":"P-256","kty":"EC","x":"` + enc.EncodeToString(k.x[:]) + `","y":"` + enc.EncodeToString(k.y[:]) + `"}`))
	}
	return vault.Digest{}
}

func (k Key) p256() (*ecdsa.PublicKey, error) {
	var b [65]byte
	b[0] = 4 // uncompressed, SEC 1
	copy(b[1:], k.x[:])
	copy(b[33:], k.y[:])
	pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), b[:])
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	return pub, nil
}

// sigBytes is the length of a signature of either algorithm.
const sigBytes = 64

// verify reports whether sig is k's signature of msg.
func (k Key) verify(msg, sig []byte) bool {
	if len(sig) != sigBytes {
		return false
	}
	switch k.alg {
	case algEd25519:
		return ed25519.Verify(k.x[:], msg, sig)
	case algES256:
		pub, err := k.p256()
		if err != nil {
			return false
		}
		sum := sha256.Sum256(msg)
		r, s := new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])
		return ecdsa.Verify(pub, sum[:], r, s)
	}
	return false
}

// sign returns the COSE signature of msg: 64 bytes, r ‖ s for ECDSA (RFC 9053,
// section 2.1), where a crypto.Signer gives ASN.1.
func sign(key crypto.Signer, msg []byte) ([]byte, error) {
	pub, err := KeyOf(key.Public())
	if err != nil {
		return nil, err
	}
	if pub.alg == algEd25519 {
		return key.Sign(rand.Reader, msg, crypto.Hash(0))
	}
	sum := sha256.Sum256(msg)
	der, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	var rs struct{ R, S *big.Int }
	if rest, err := asn1.Unmarshal(der, &rs); err != nil || len(rest) != 0 {
		return nil, errors.New("signer returned no ASN.1 signature")
	}
	if rs.R.Sign() <= 0 || rs.S.Sign() <= 0 || rs.R.BitLen() > 256 || rs.S.BitLen() > 256 {
		return nil, errors.New("signer returned a signature out of range")
	}
	sig := make([]byte, sigBytes)
	rs.R.FillBytes(sig[:32])
	rs.S.FillBytes(sig[32:])
	return sig, nil
}

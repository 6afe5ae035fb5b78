package evidence

import (
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/pilox/vault"
)

// SaltSize is the size of the salt of a commitment, in bytes.
const SaltSize = 32

// A Salt makes a commitment to a guessable value unguessable. Each field of each
// leaf has its own.
type Salt [SaltSize]byte

// nullLength stands where the length of a value stands, for a field that the
// event does not have. No value is that long.
const nullLength = math.MaxUint64

// Commit returns the commitment to a field:
//
//	HMAC-SHA256(salt, "vault/field/v1" ‖ len(name) ‖ name ‖ len(value) ‖ value)
//
// Lengths are eight bytes big endian. A nil value is null: length 2^64−1 and no
// bytes, so null and empty differ.
func Commit(salt *Salt, name string, value []byte) vault.Digest {
	mac := hmac.New(sha256.New, salt[:])
	var small [128]byte
	b := append(small[:0], "vault/field/v1"...)
	b = append(appendUint64(b, uint64(len(name))), name...)
	if value == nil {
		b = appendUint64(b, nullLength)
	} else {
		b = appendUint64(b, uint64(len(value)))
	}
	mac.Write(b)
	mac.Write(value)
	var d vault.Digest
	mac.Sum(d[:0])
	return d
}

var tree = compact.RangeFactory{Hash: hashNode}

// FieldRoot returns the RFC 6962 root over the commitments of one leaf, in the
// order of [vault.FieldsOf].
func FieldRoot(commitments []vault.Digest) vault.Digest {
	r := tree.NewEmptyRange(0)
	for i := range commitments {
		h := HashLeaf(commitments[i][:])
		// Append fails only on a range whose own hashes are inconsistent.
		if err := r.Append(h[:], nil); err != nil {
			return vault.Digest{}
		}
	}
	root, err := r.GetRootHash(nil)
	if err != nil || len(root) != sha256.Size {
		return vault.Digest{}
	}
	return vault.Digest(root)
}

// An Opened is a field with what opens its commitment.
type Opened struct {
	Name  string
	Value []byte // nil for null
	Salt  Salt
	// Size is set instead of Value for a value too large to keep: its length in
	// bytes. The commitment is to the value itself, so whoever has it elsewhere
	// can still show that it is the one.
	Size    uint64
	NotKept bool
}

// The first byte of a sealed field.
const (
	sealedValue   = 0
	sealedNotKept = 1
)

// Seal encrypts o for the record at idx of log. The plaintext is salt ‖ kind ‖
// value or length; the additional data binds it to its place: "vault/sealed/v1"
// ‖ len(log) ‖ log ‖ idx ‖ field.
func (o *Opened) Seal(aead cipher.AEAD, nonce []byte, log string, idx uint64) []byte {
	text := make([]byte, 0, SaltSize+1+max(8, len(o.Value))+aead.Overhead())
	text = append(text, o.Salt[:]...)
	if o.NotKept {
		text = appendUint64(append(text, sealedNotKept), o.Size)
	} else {
		text = append(append(text, sealedValue), o.Value...)
	}
	var small [160]byte
	return aead.Seal(text[:0], nonce, text, sealedPlace(small[:0], log, idx, o.Name))
}

// Open decrypts a sealed field of the record at s.Index of log.
func (s *Sealed) Open(aead cipher.AEAD, log string) (Opened, error) {
	if len(s.Nonce) != aead.NonceSize() {
		return Opened{}, fmt.Errorf("open field %s of record %d: nonce of %d bytes", s.Field, s.Index, len(s.Nonce))
	}
	text, err := aead.Open(nil, s.Nonce, s.Text, sealedPlace(nil, log, s.Index, s.Field))
	if err != nil {
		return Opened{}, fmt.Errorf("open field %s of record %d: %w", s.Field, s.Index, err)
	}
	if len(text) < SaltSize+1 {
		return Opened{}, fmt.Errorf("open field %s of record %d: too short", s.Field, s.Index)
	}
	o := Opened{Name: s.Field, Salt: Salt(text[:SaltSize])}
	kind, rest := text[SaltSize], text[SaltSize+1:]
	switch {
	case kind == sealedValue:
		o.Value = rest
	case kind == sealedNotKept && len(rest) == 8:
		o.NotKept, o.Size = true, binary.BigEndian.Uint64(rest)
	default:
		return Opened{}, fmt.Errorf("open field %s of record %d: unknown form", s.Field, s.Index)
	}
	return o, nil
}

func sealedPlace(b []byte, log string, idx uint64, field string) []byte {
	b = append(b, "vault/sealed/v1"...)
	b = append(appendUint64(b, uint64(len(log))), log...)
	return append(appendUint64(b, idx), field...)
}

// A Disclosure opens one field of one record: value, salt and the path from its
// commitment to the root in the leaf. It says nothing about the other fields.
type Disclosure struct {
	Index uint64         `json:"idx"`
	Field string         `json:"field"`
	Value []byte         `json:"value"` // null for a field the event does not have
	Salt  []byte         `json:"salt"`
	Path  []vault.Digest `json:"path"`
}

// Disclose opens field o of a leaf of the given class whose commitments are
// known, in the order of [vault.FieldsOf].
func Disclose(idx uint64, class vault.Class, o Opened, commitments []vault.Digest) (Disclosure, error) {
	at := slices.Index(vault.FieldsOf(class), o.Name)
	if at < 0 || len(commitments) != len(vault.FieldsOf(class)) || o.NotKept {
		return Disclosure{}, fmt.Errorf("disclose field %s of record %d: not a kept field of class %s", o.Name, idx, class)
	}
	nodes, err := proof.Inclusion(uint64(at), uint64(len(commitments)))
	if err != nil {
		return Disclosure{}, fmt.Errorf("disclose field %s of record %d: %w", o.Name, idx, err)
	}
	hashes, err := Nodes(nodes, func(id compact.NodeID) ([]byte, error) {
		lo, hi := id.Coverage()
		sub := FieldRoot(commitments[lo:hi])
		return sub[:], nil
	})
	if err != nil {
		return Disclosure{}, fmt.Errorf("disclose field %s of record %d: %w", o.Name, idx, err)
	}
	d := Disclosure{Index: idx, Field: o.Name, Value: o.Value, Salt: o.Salt[:]}
	for _, h := range hashes {
		d.Path = append(d.Path, vault.Digest(h))
	}
	return d, nil
}

var errDisclosure = errors.New("the disclosed value is not the one that was recorded")

// Verify reports whether d opens a field of l.
func (d *Disclosure) Verify(l *Leaf) error {
	at := slices.Index(vault.FieldsOf(l.Class), d.Field)
	switch {
	case d.Index != l.Index:
		return fmt.Errorf("disclosure of record %d held against record %d", d.Index, l.Index)
	case at < 0:
		return fmt.Errorf("class %s has no field %q", l.Class, d.Field)
	case len(d.Salt) != SaltSize:
		return fmt.Errorf("salt of %d bytes", len(d.Salt))
	}
	salt := Salt(d.Salt)
	c := Commit(&salt, d.Field, d.Value)
	h := HashLeaf(c[:])
	path := make([][]byte, len(d.Path))
	for i := range d.Path {
		path[i] = d.Path[i][:]
	}
	if proof.VerifyInclusion(rfc6962.DefaultHasher, uint64(at), uint64(l.Fields.N), h[:], path, l.Fields.Root[:]) != nil {
		return errDisclosure
	}
	return nil
}

// Nodes fetches the nodes of a Merkle proof with get and folds them.
func Nodes(nodes proof.Nodes, get func(compact.NodeID) ([]byte, error)) ([][]byte, error) {
	hashes := make([][]byte, 0, len(nodes.IDs))
	for _, id := range nodes.IDs {
		h, err := get(id)
		if err != nil {
			return nil, err
		}
		hashes = append(hashes, h)
	}
	return nodes.Rehash(hashes, hashNode)
}

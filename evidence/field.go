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

// NullSalt returns the salt of a field that the event does not have. It follows
// from the seed that is sealed with each field that it does have:
// HMAC-SHA256(seed, "vault/null/v1" ‖ name).
func NullSalt(seed *Salt, name string) Salt {
	mac := hmac.New(sha256.New, seed[:])
	var small [64]byte
	mac.Write(append(append(small[:0], "vault/null/v1"...), name...))
	var s Salt
	mac.Sum(s[:0])
	return s
}

// An Opened is a field of an event with what opens its commitment.
type Opened struct {
	Name  string
	Value []byte
	Salt  Salt
	Nulls Salt // seed of the salts of the fields that the event does not have
	// NotKept marks a value too large to keep. Size is its length in bytes, and
	// Commitment is to the value itself, so whoever has it elsewhere can still
	// show, with the salt, that it is the one.
	NotKept    bool
	Size       uint64
	Commitment vault.Digest
	// Erased marks a value that is gone with its salts. Only Commitment is left,
	// which says nothing without the salt and keeps the other fields provable.
	Erased bool
}

// Commit returns the commitment to o.
func (o *Opened) Commit() vault.Digest {
	if o.NotKept || o.Erased {
		return o.Commitment
	}
	return Commit(&o.Salt, o.Name, o.Value)
}

// The byte after the salts of a sealed field.
const (
	sealedValue   = 0
	sealedNotKept = 1
	sealedHead    = 2*SaltSize + 1
)

// Seal encrypts o for the record at idx of log. The plaintext is salt ‖ seed ‖
// kind ‖ value, or ‖ length ‖ commitment for one not kept. The additional data
// binds it to its place: "vault/sealed/v1" ‖ len(log) ‖ log ‖ idx ‖ field.
func (o *Opened) Seal(aead cipher.AEAD, nonce []byte, log string, idx uint64) []byte {
	text := make([]byte, 0, sealedHead+max(8+sha256.Size, len(o.Value))+aead.Overhead())
	text = append(append(text, o.Salt[:]...), o.Nulls[:]...)
	if o.NotKept {
		text = append(appendUint64(append(text, sealedNotKept), o.Size), o.Commitment[:]...)
	} else {
		text = append(append(text, sealedValue), o.Value...)
	}
	var small [160]byte
	return aead.Seal(text[:0], nonce, text, sealedPlace(small[:0], log, idx, o.Name))
}

// Open decrypts a sealed field of the record at s.Index of log.
func (s *Sealed) Open(aead cipher.AEAD, log string) (Opened, error) {
	fail := func(err error) (Opened, error) {
		return Opened{}, fmt.Errorf("open field %s of record %d: %w", s.Field, s.Index, err)
	}
	if len(s.Nonce) != aead.NonceSize() {
		return fail(fmt.Errorf("nonce of %d bytes", len(s.Nonce)))
	}
	text, err := aead.Open(nil, s.Nonce, s.Text, sealedPlace(nil, log, s.Index, s.Field))
	if err != nil {
		return fail(err)
	}
	if len(text) < sealedHead {
		return fail(errors.New("too short"))
	}
	o := Opened{Name: s.Field, Salt: Salt(text[:SaltSize]), Nulls: Salt(text[SaltSize : 2*SaltSize])}
	kind, rest := text[sealedHead-1], text[sealedHead:]
	switch {
	case kind == sealedValue:
		o.Value = rest
	case kind == sealedNotKept && len(rest) == 8+sha256.Size:
		o.NotKept, o.Size, o.Commitment = true, binary.BigEndian.Uint64(rest), vault.Digest(rest[8:])
	default:
		return fail(errors.New("unknown form"))
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
	if at < 0 || len(commitments) != len(vault.FieldsOf(class)) || o.NotKept || o.Erased {
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

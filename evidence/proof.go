package evidence

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/transparency-dev/formats/proof"
	merkle "github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/pilox/vault"
)

// MaxProof bounds the bytes of a proof file: 64 hashes and a checkpoint.
const MaxProof = MaxCheckpoint + 64*45 + 256

// A Proof shows that one record is in a ledger, by itself.
type Proof struct {
	Inclusion
	Checkpoint []byte // signed
}

// Marshal returns the proof in the C2SP tlog-proof format
// (https://c2sp.org/tlog-proof). The leaf is not part of it.
func (p *Proof) Marshal() []byte {
	t := proof.TLogProof{Index: p.Index, Checkpoint: p.Checkpoint}
	for _, h := range p.Path {
		t.Hashes = append(t.Hashes, h)
	}
	return t.Marshal()
}

// ParseProof reads what [Proof.Marshal] writes.
func ParseProof(b []byte) (*Proof, error) {
	if len(b) > MaxProof {
		return nil, fmt.Errorf("parse proof: %d bytes, more than %d", len(b), MaxProof)
	}
	var t proof.TLogProof
	if err := t.Unmarshal(b); err != nil {
		return nil, fmt.Errorf("parse proof: %w", err)
	}
	p := &Proof{Inclusion: Inclusion{Index: t.Index}, Checkpoint: t.Checkpoint}
	for _, h := range t.Hashes {
		p.Path = append(p.Path, h)
	}
	if !bytes.Equal(p.Marshal(), b) {
		return nil, errors.New("parse proof: not in canonical form")
	}
	return p, nil
}

// Verify checks that leaf is record p.Index of the ledger whose key is among
// keys, and returns the checkpoint that says so.
func (p *Proof) Verify(leaf []byte, keys ...string) (Checkpoint, *Leaf, error) {
	cp, _, err := OpenCheckpoint(p.Checkpoint, keys...)
	if err != nil {
		return Checkpoint{}, nil, err
	}
	if err := p.check(HashLeaf(leaf), cp); err != nil {
		return Checkpoint{}, nil, fmt.Errorf("verify proof: %w", err)
	}
	l, err := ParseLeaf(leaf)
	if err != nil {
		return Checkpoint{}, nil, fmt.Errorf("verify proof: %w", err)
	}
	if l.Log != cp.Origin || l.Index != p.Index {
		return Checkpoint{}, nil, errors.New("verify proof: the record is of another ledger or place")
	}
	return cp, l, nil
}

// check reports whether the leaf with this hash stands at p.Index under cp.
func (p *Inclusion) check(leaf vault.Digest, cp Checkpoint) error {
	path := make([][]byte, len(p.Path))
	for i := range p.Path {
		path[i] = p.Path[i][:]
	}
	return merkle.VerifyInclusion(rfc6962.DefaultHasher, p.Index, cp.Size, leaf[:], path, cp.Root[:])
}

// VerifyConsistency reports whether the ledger at newer continues the one at
// older.
func VerifyConsistency(older, newer Checkpoint, path []vault.Digest) error {
	if older.Origin != newer.Origin {
		return errors.New("verify consistency: checkpoints of different ledgers")
	}
	hashes := make([][]byte, len(path))
	for i := range path {
		hashes[i] = path[i][:]
	}
	if err := merkle.VerifyConsistency(rfc6962.DefaultHasher, older.Size, newer.Size, hashes, older.Root[:], newer.Root[:]); err != nil {
		return fmt.Errorf("verify consistency: %w", err)
	}
	return nil
}

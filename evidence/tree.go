package evidence

import (
	"crypto/sha256"

	"github.com/transparency-dev/merkle/compact"

	"github.com/pilox/vault"
)

// A Tree is an RFC 6962 tree that grows at the right, kept as the few hashes it
// needs for that. It is a face for the Merkle library with digests in place of
// byte slices. A Tree is not safe for concurrent use.
type Tree struct{ r *compact.Range }

// NewTree returns an empty tree for the leaves from begin on; only a tree from 0
// has a root.
func NewTree(begin uint64) *Tree { return &Tree{tree.NewEmptyRange(begin)} }

// Size returns the index after the last leaf.
func (t *Tree) Size() uint64 { return t.r.End() }

// Append adds a leaf by its hash.
func (t *Tree) Append(leaf vault.Digest) { t.AppendVisit(leaf, nil) }

// AppendVisit adds a leaf by its hash and shows every complete node that this
// makes, the leaf first.
func (t *Tree) AppendVisit(leaf vault.Digest, visit func(level uint, index uint64, hash []byte)) {
	var v compact.VisitFn
	if visit != nil {
		v = func(id compact.NodeID, hash []byte) { visit(id.Level, id.Index, hash) }
	}
	// The library fails only if the number of its own hashes does not fit the
	// size, which [NewTree] rules out.
	if err := t.r.Append(leaf[:], v); err != nil {
		panic("evidence: inconsistent tree: " + err.Error())
	}
}

// Root returns the root; for an empty tree SHA-256 of nothing, as RFC 6962 has it.
func (t *Tree) Root() vault.Digest {
	if t.r.End() == 0 {
		return sha256.Sum256(nil)
	}
	h, err := t.r.GetRootHash(nil)
	if err != nil || len(h) != sha256.Size {
		return vault.Digest{}
	}
	return vault.Digest(h)
}

// Frontier returns the hashes that the tree consists of, 32 bytes each, from
// left to right.
func (t *Tree) Frontier() []byte {
	hashes := t.r.Hashes()
	b := make([]byte, 0, sha256.Size*len(hashes))
	for _, h := range hashes {
		b = append(b, h...)
	}
	return b
}

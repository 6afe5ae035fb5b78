package ledger

import (
	"context"
	"fmt"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

// blockLevel is the level from which on the nodes of the tree are kept in memory:
// an eighth of a byte a leaf and as much again above. What is below is made from
// at most 2^blockLevel leaf hashes.
const blockLevel = 8

// nodes holds the complete nodes of a tree from blockLevel up, by level.
type nodes [][]vault.Digest

func (n *nodes) add(level uint, index uint64, hash []byte) {
	if level < blockLevel {
		return
	}
	at := int(level - blockLevel)
	if at == len(*n) {
		*n = append(*n, nil)
	}
	if index == uint64(len((*n)[at])) { // always: a tree grows in order
		(*n)[at] = append((*n)[at], vault.Digest(hash))
	}
}

// A prover makes proofs for one tree size. It remembers the block of leaf hashes
// it read last, so proofs in order cost one read a block.
type prover struct {
	l     *Ledger
	size  uint64
	block uint64
	leafs []vault.Digest
}

func (l *Ledger) prover(size uint64) *prover { return &prover{l: l, size: size} }

// inclusion proves leaf idx.
func (p *prover) inclusion(ctx context.Context, idx uint64) (evidence.Inclusion, error) {
	nodes, err := proof.Inclusion(idx, p.size)
	if err != nil {
		return evidence.Inclusion{}, fmt.Errorf("prove record %d: %w", idx, err)
	}
	path, err := p.path(ctx, nodes)
	if err != nil {
		return evidence.Inclusion{}, fmt.Errorf("prove record %d: %w", idx, err)
	}
	return evidence.Inclusion{Index: idx, Path: path}, nil
}

// consistency proves that the tree of size from is a prefix.
func (p *prover) consistency(ctx context.Context, from uint64) ([]vault.Digest, error) {
	nodes, err := proof.Consistency(from, p.size)
	if err != nil {
		return nil, fmt.Errorf("prove consistency with %d: %w", from, err)
	}
	path, err := p.path(ctx, nodes)
	if err != nil {
		return nil, fmt.Errorf("prove consistency with %d: %w", from, err)
	}
	return path, nil
}

func (p *prover) path(ctx context.Context, nodes proof.Nodes) ([]vault.Digest, error) {
	hashes, err := evidence.Nodes(nodes, func(id compact.NodeID) ([]byte, error) { return p.node(ctx, id) })
	if err != nil {
		return nil, err
	}
	path := make([]vault.Digest, len(hashes))
	for i, h := range hashes {
		path[i] = vault.Digest(h)
	}
	return path, nil
}

// node returns a complete node of the tree.
func (p *prover) node(ctx context.Context, id compact.NodeID) ([]byte, error) {
	if id.Level >= blockLevel {
		p.l.mu.Lock()
		defer p.l.mu.Unlock()
		at := int(id.Level - blockLevel)
		if at >= len(p.l.seq.nodes) || id.Index >= uint64(len(p.l.seq.nodes[at])) {
			return nil, fmt.Errorf("no node %d of level %d", id.Index, id.Level)
		}
		h := p.l.seq.nodes[at][id.Index]
		return h[:], nil
	}
	from, to := id.Coverage()
	block := from >> blockLevel
	if p.leafs == nil || p.block != block {
		lo := block << blockLevel
		leafs, err := p.l.cfg.Store.Hashes(ctx, lo, min(lo+1<<blockLevel, p.size))
		if err != nil {
			return nil, err
		}
		p.block, p.leafs = block, leafs
	}
	from, to = from-block<<blockLevel, to-block<<blockLevel
	if to > uint64(len(p.leafs)) {
		return nil, fmt.Errorf("%w: leaf hashes are missing", ErrCorrupt)
	}
	t := evidence.NewTree(0)
	for _, h := range p.leafs[from:to] {
		t.Append(h)
	}
	h := t.Root()
	return h[:], nil
}

package ledger

import (
	"context"
	"fmt"
	"slices"

	"github.com/transparency-dev/merkle/compact"
	"golang.org/x/mod/sumdb/tlog"
)

// Published returns the last signed checkpoint and how many records it covers.
// There is none before the first was signed.
func (l *Ledger) Published() (note []byte, size uint64) {
	l.cpMu.Lock()
	defer l.cpMu.Unlock()
	return slices.Clone(l.note), l.cp.Size
}

// HashTile returns the hashes of a tile of height 8: tile.W hashes of level 8*tile.L
// from tile.N*256 on. All that it covers must be on disk.
func (l *Ledger) HashTile(ctx context.Context, tile tlog.Tile) ([]byte, error) {
	head, _ := l.Watch()
	p := l.prover(head.Size)
	b, err := tlog.ReadTileData(tile, tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, x := range indexes {
			level, n := tlog.SplitStoredHashIndex(x)
			h, err := p.node(ctx, compact.NodeID{Level: uint(level), Index: uint64(n)})
			if err != nil {
				return nil, err
			}
			out[i] = tlog.Hash(h)
		}
		return out, nil
	}))
	if err != nil {
		return nil, fmt.Errorf("tile %s: %w", tile.Path(), err)
	}
	return b, nil
}

// Leaves returns the leaf bytes in [from, to). All must be on disk.
func (l *Ledger) Leaves(ctx context.Context, from, to uint64) ([][]byte, error) {
	out := make([][]byte, 0, to-from)
	for e, err := range l.cfg.Store.Entries(ctx, from, to) {
		if err != nil {
			return nil, fmt.Errorf("leaves from %d: %w", from, err)
		}
		if e.Index != from+uint64(len(out)) {
			return nil, fmt.Errorf("leaves from %d: %w: %d is missing", from, ErrCorrupt, from+uint64(len(out)))
		}
		out = append(out, e.Leaf)
	}
	if uint64(len(out)) != to-from {
		return nil, fmt.Errorf("leaves from %d: %w: %d is missing", from, ErrCorrupt, from+uint64(len(out)))
	}
	return out, nil
}

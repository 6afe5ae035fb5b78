package ledger

import (
	"context"
	"fmt"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

// ownTiles reads tiles from a ledger.
type ownTiles struct{ *Ledger }

func (ownTiles) Height() int                         { return 8 }
func (ownTiles) SaveTiles(_ []tlog.Tile, _ [][]byte) {}
func (o ownTiles) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var out [][]byte
	for _, t := range tiles {
		b, err := o.HashTile(context.Background(), t)
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// TestTiles: what a ledger gives as tiles is its checkpoint's tree, by the judgement
// of sumdb/tlog, also after a restart and while it grows.
func TestTiles(t *testing.T) {
	r := newRig(t)
	if note, size := r.led.Published(); size != 0 || len(note) == 0 {
		t.Errorf("a new ledger publishes size %d, %q", size, note)
	}
	n := 0
	grow := func(by int) {
		for range by {
			if _, err := r.led.Sequence(context.Background(), intent(vault.TaskID(fmt.Sprintf("t-%d", n%7)), fmt.Sprint(n))); err != nil {
				t.Fatal(err)
			}
			n++
		}
		r.commit(opened(vault.TaskID(fmt.Sprint("n", n))))
		if _, err := r.led.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for round, by := range []int{1, 254, 1, 300, 700} {
		grow(by)
		if round == 3 {
			if err := r.reopen(); err != nil {
				t.Fatal(err)
			}
		}
		note, size := r.led.Published()
		cp, _, err := evidence.OpenCheckpoint(note, r.led.VerifierKey())
		if err != nil || cp.Size != size {
			t.Fatalf("published %d with a checkpoint of %d: %v", size, cp.Size, err)
		}
		grow(3) // it goes on
		leaves, err := r.led.Leaves(t.Context(), 0, size)
		if err != nil {
			t.Fatal(err)
		}
		tree := tlog.Tree{N: int64(size), Hash: tlog.Hash(cp.Root)}
		hashes := tlog.TileHashReader(tree, ownTiles{r.led})
		for i := range leaves {
			p, err := tlog.ProveRecord(tree.N, int64(i), hashes)
			if err != nil {
				t.Fatal(err)
			}
			if err := tlog.CheckRecord(p, tree.N, tree.Hash, int64(i), tlog.RecordHash(leaves[i])); err != nil {
				t.Fatalf("record %d of %d: %v", i, size, err)
			}
		}
	}
	_, size := r.led.Published()
	for _, bad := range []tlog.Tile{{H: 8, N: int64(size>>8) + 1, W: 256}, {H: 8, L: 1, N: 0, W: 256}, {H: 8, L: 2, N: 0, W: 1}} {
		if b, err := r.led.HashTile(t.Context(), bad); err == nil {
			t.Errorf("%s beyond the ledger is %d bytes", bad.Path(), len(b))
		}
	}
	if _, err := r.led.Leaves(t.Context(), size, size+10_000); err == nil {
		t.Error("leaves beyond the ledger were read")
	}
}

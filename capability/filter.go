package capability

import (
	"encoding/binary"
	"hash/maphash"

	"github.com/pilox/vault"
)

// A filter says of nearly every id that was not added that it was not, and never of
// one that was, at the cost of one cache line. It is a Bloom filter in blocks of 512
// bits (Putze, Sanders and Singler, Cache-, Hash- and Space-Efficient Bloom Filters,
// 2007) with 16 to 32 bits an id, so that looking up in maps of a million ids is
// rare.
type filter struct {
	seed   maphash.Seed
	blocks [][8]uint64 // their number is a power of two
	added  int
}

const blockIDs = 32 // ids a block, at most

// An idHash is 128 bits of an id: one half chooses the block, the other the bits.
type idHash struct{ block, bits uint64 }

// hashOf takes the bits of a digest as they are. Who can choose digests with the same
// ones makes lookups slower and no answer different.
func hashOf(d *vault.Digest) idHash {
	return idHash{binary.LittleEndian.Uint64(d[:8]), binary.LittleEndian.Uint64(d[8:16])}
}

func (f *filter) hash(name string) idHash {
	h := maphash.String(f.seed, name)
	return idHash{h, h * 0x9e3779b97f4a7c15 >> 28} // Knuth's multiplier; the block has used the low bits, which the low bits of a product follow
}

// newFilter returns an empty filter with room for twice n ids.
func newFilter(n int) filter {
	blocks := 16
	for blocks*blockIDs < 2*n {
		blocks *= 2
	}
	return filter{seed: maphash.MakeSeed(), blocks: make([][8]uint64, blocks)}
}

// full reports whether one more id would be too many. The zero filter has no room.
func (f *filter) full() bool { return f.added >= blockIDs*len(f.blocks) }

func (f *filter) add(h idHash) {
	f.added++
	b := &f.blocks[h.block&uint64(len(f.blocks)-1)]
	for range 4 {
		b[h.bits>>6&7] |= 1 << (h.bits & 63)
		h.bits >>= 9
	}
}

func (f *filter) has(h idHash) bool {
	b := &f.blocks[h.block&uint64(len(f.blocks)-1)]
	for range 4 {
		if b[h.bits>>6&7]&(1<<(h.bits&63)) == 0 {
			return false
		}
		h.bits >>= 9
	}
	return true
}

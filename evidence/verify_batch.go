package evidence

import (
	"runtime"
	"sync"

	"github.com/pilox/vault"
)

// A batches reads lines as leaves, many at a time: hashing and parsing are most of
// the work of a whole ledger and need no order, so every core takes a part.
type batches struct {
	lines *lines
	text  []string
	list  []readLeaf
	at    int
	err   error // of the line after the batch
}

// A readLeaf is a line with its leaf hash and what it says, or why it says nothing.
type readLeaf struct {
	leaf Leaf
	hash vault.Digest
	bad  error
}

// batchLeaves is about 100 KiB of text: a cache holds it and what was read of it.
const batchLeaves = 128

// next returns the next line; it is good until the call after.
func (b *batches) next() (*readLeaf, error) {
	if b.at == len(b.text) {
		if b.err != nil {
			return nil, b.err
		}
		b.fill()
		if len(b.text) == 0 {
			return nil, b.err
		}
	}
	b.at++
	return &b.list[b.at-1], nil
}

func (b *batches) fill() {
	b.text, b.at = b.text[:0], 0
	for len(b.text) < batchLeaves {
		line, err := b.lines.next()
		if err != nil {
			b.err = err
			break
		}
		b.text = append(b.text, line)
	}
	if b.list == nil {
		b.list = make([]readLeaf, batchLeaves)
	}
	parts := min(runtime.GOMAXPROCS(0), 8)
	var wg sync.WaitGroup
	for p := range parts {
		from, to := p*len(b.text)/parts, (p+1)*len(b.text)/parts
		wg.Go(func() {
			for i := from; i < to; i++ {
				r := &b.list[i]
				r.hash, r.bad = hashLine(b.text[i]), r.leaf.parse(b.text[i])
			}
		})
	}
	wg.Wait()
}

// linesFrom reads a section from line number from on.
func (v *verifier) linesFrom(name string, from uint64) (*lines, error) {
	l := v.lines(name)
	for range from {
		if _, err := l.next(); err != nil {
			return nil, err
		}
	}
	return l, nil
}

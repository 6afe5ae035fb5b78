package capability

import (
	"crypto/sha256"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/pilox/vault"
)

// A claim is a link and the key that has to have signed it.
type claim struct {
	link int // index in the chain
	key  Key
	*message
}

// digest identifies everything that the answer to "did this key sign this link"
// depends on: key, header, payload and signature. It says nothing of the place of
// the link in a chain, of time or of revocation, all of which are looked at again.
func (c claim) digest() vault.Digest {
	var scratch [1024]byte
	b := append(scratch[:0], "vault/signature-seen/v1"...)
	b = append(append(append(b, byte(c.key.alg)), c.key.x[:]...), c.key.y[:]...)
	return sha256.Sum256(append(b, c.raw...))
}

func (c claim) holds() bool { return c.verify(c.key, typLink, nil) }

// signatures remembers which claims hold, so that the links which a chain shares
// with an earlier one are not verified again. A claim that does not hold is not
// kept. The zero signatures is ready; it is safe for concurrent use.
type signatures struct {
	mu sync.Mutex
	// Guarded by mu. What was seen is in either; when recent is full it becomes old,
	// and what was old is forgotten.
	recent, old map[vault.Digest]struct{}
}

// maxSignatures bounds each half of what is remembered, to about 1 MB in all. Who
// fills it has as many valid links, and gains that others are verified once more.
const maxSignatures = 1 << 13

func (s *signatures) seen(d vault.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.recent[d]; ok {
		return true
	}
	if _, ok := s.old[d]; !ok {
		return false
	}
	s.add(d)
	return true
}

func (s *signatures) remember(d vault.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(d)
}

// add puts d among the recent; s.mu is held.
func (s *signatures) add(d vault.Digest) {
	if s.recent == nil || len(s.recent) >= maxSignatures {
		s.recent, s.old = make(map[vault.Digest]struct{}), s.recent
	}
	s.recent[d] = struct{}{}
}

// maxVerifiers bounds the goroutines that verify one chain. More than a few gain
// little for chains of usual length, and the other calls want their processors.
const maxVerifiers = 4

// wrong returns the index of the first claim that does not hold, -1 if all do. It
// verifies those not seen before, several at a time if there are processors, and
// begins no further one once one is found wrong. There are at most MaxLinks.
func (s *signatures) wrong(claims []claim) int {
	var indexes [MaxLinks]int
	todo := indexes[:0]
	var digests [MaxLinks]vault.Digest
	for i, c := range claims {
		if digests[i] = c.digest(); !s.seen(digests[i]) {
			todo = append(todo, i)
		}
	}
	var next atomic.Int64
	var stop atomic.Bool
	var held [MaxLinks]bool
	work := func() {
		// What was taken is verified, so all before the first wrong one are.
		for !stop.Load() {
			n := int(next.Add(1)) - 1
			if n >= len(todo) {
				return
			}
			i := todo[n]
			if held[n] = claims[i].holds(); held[n] {
				s.remember(digests[i])
			} else {
				stop.Store(true)
			}
		}
	}
	var wg sync.WaitGroup
	for range min(len(todo), runtime.GOMAXPROCS(0), maxVerifiers) - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
	for n, i := range todo {
		if !held[n] {
			return i
		}
	}
	return -1
}

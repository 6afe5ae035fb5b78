package capability

import (
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pilox/vault"
)

const callContext = "vault/call/v1"

// nonceBytes is the length of the nonces of calls and sessions.
const nonceBytes = 16

// appendCall appends what the proof of a call covers, in deterministic CBOR:
// ['vault/call/v1', aud, sid, seq, leaf link id, call id, kind, server id, name,
// args digest, nonce]. Outside a session sid is empty and seq 0.
func appendCall(b []byte, audience string, sid []byte, seq uint64, leaf *vault.Digest, call *vault.Call, nonce []byte) []byte {
	b = appendHead(b, majorArray, 11)
	b = appendText(b, callContext)
	b = appendText(b, audience)
	b = appendBytes(b, sid)
	b = appendHead(b, majorUint, seq)
	b = appendBytes(b, leaf[:])
	b = appendText(b, call.ID)
	b = appendText(b, string(call.Kind))
	b = appendBytes(b, call.Target.Server[:])
	b = appendText(b, call.Target.Name)
	digest := call.Args.Digest()
	b = appendBytes(b, digest[:])
	return appendBytes(b, nonce)
}

// SignCall proves possession for one call with a signature, which third parties
// can verify. The nonce comes from the gateway ([Verifier.Nonce]) and counts once.
// It fills in call.Credential but for the binding.
func SignCall(call *vault.Call, c Chain, key crypto.Signer, nonce []byte) error {
	if c.IsZero() {
		return errEmpty
	}
	if len(nonce) != nonceBytes {
		return fmt.Errorf("nonce of %d bytes: want %d", len(nonce), nonceBytes)
	}
	leaf := c.links[len(c.links)-1].id
	sig, err := sign(key, appendCall(nil, c.links[0].Audience, nil, 0, &leaf, call, nonce))
	if err != nil {
		return fmt.Errorf("sign call: %w", err)
	}
	call.Credential = vault.Credential{Chain: c.raw, Binding: call.Credential.Binding, Signature: sig, Nonce: nonce}
	return nil
}

// nonces are the single-use nonces that the gateway has given out.
type nonces struct {
	mu   sync.Mutex
	open map[[nonceBytes]byte]time.Time // until when
}

const (
	nonceLife = 2 * time.Minute // from asking for a nonce to the call
	// maxNonces bounds memory to about 2 MB. At the bound, asking is refused; what
	// was given out stays good.
	maxNonces = 1 << 15
)

func (n *nonces) issue(now time.Time) ([]byte, error) {
	var b [nonceBytes]byte
	rand.Read(b[:])
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.open) >= maxNonces {
		for k, until := range n.open {
			if now.After(until) {
				delete(n.open, k)
			}
		}
		if len(n.open) >= maxNonces {
			return nil, vault.NewDenial(vault.CodeBusy, "", errors.New("too many open nonces"))
		}
	}
	if n.open == nil {
		n.open = make(map[[nonceBytes]byte]time.Time)
	}
	n.open[b] = now.Add(nonceLife)
	return b[:], nil
}

// known reports whether b is open. It is not used up: a wrong signature must not
// burn somebody else's nonce.
func (n *nonces) known(b []byte, now time.Time) bool {
	if len(b) != nonceBytes {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	until, ok := n.open[[nonceBytes]byte(b)]
	return ok && !now.After(until)
}

// take uses b up and reports whether it was open.
func (n *nonces) take(b []byte) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	k := [nonceBytes]byte(b)
	_, ok := n.open[k]
	delete(n.open, k)
	return ok
}

// windowBits is how far a sequence number may trail the highest one.
const windowBits = 1024

// A window remembers which of the last 1,024 sequence numbers were used, after
// the way of RFC 6479. The zero window has used none; 0 is never good.
type window struct {
	top  uint64
	bits [windowBits / 64]uint64 // ring: bit n mod windowBits
}

// fresh reports whether n is inside the window and unused.
func (w *window) fresh(n uint64) bool {
	switch {
	case n == 0:
		return false
	case n > w.top:
		return true
	case w.top-n >= windowBits:
		return false
	}
	return w.bits[n/64%uint64(len(w.bits))]&(1<<(n%64)) == 0
}

// use marks a fresh n.
func (w *window) use(n uint64) {
	if n > w.top {
		if n-w.top >= windowBits {
			clear(w.bits[:])
		} else {
			for i := w.top + 1; i <= n; i++ {
				w.bits[i/64%uint64(len(w.bits))] &^= 1 << (i % 64)
			}
		}
		w.top = n
	}
	w.bits[n/64%uint64(len(w.bits))] |= 1 << (n % 64)
}

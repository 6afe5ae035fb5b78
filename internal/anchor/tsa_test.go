package anchor

import (
	"crypto/sha256"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pilox/vault/evidence"
	"github.com/pilox/vault/internal/vaulttest"
)

// TestAnswersOfAuthorities: a token is kept if it answers this request, and why
// not is said.
func TestAnswersOfAuthorities(t *testing.T) {
	b := newBench(t)
	b.source.grow(5)
	note, err := b.source.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cp, _, err := evidence.OpenCheckpoint(note, b.source.vkey)
	if err != nil {
		t.Fatal(err)
	}
	digest := cp.Digest()
	stamp := func(s vaulttest.Stamp) []byte {
		if s.Digest == nil {
			s.Digest = digest[:]
		}
		if s.Time.IsZero() {
			s.Time = time.Now()
		}
		return vaulttest.Response(0, b.tsa.Stamp(s))
	}
	another := sha256.Sum256([]byte("another"))
	for name, tc := range map[string]struct {
		answer []byte
		want   string
	}{
		"a token without a nonce":    {stamp(vaulttest.Stamp{}), "another request"},
		"a token with another nonce": {stamp(vaulttest.Stamp{Nonce: big.NewInt(7)}), "another request"},
		"a token of another digest":  {stamp(vaulttest.Stamp{Digest: another[:]}), "not of this checkpoint"},
		"a token of two signers":     {stamp(vaulttest.Stamp{Signers: 2}), "one signer"},
		"a refusal":                  {vaulttest.Response(2, nil), "not granted: PKI status 2"},
		"a refusal with a token":     {vaulttest.Response(2, b.tsa.Stamp(vaulttest.Stamp{Digest: digest[:], Time: time.Now()})), "not granted: PKI status 2"},
		"granted, and no token":      {vaulttest.Response(0, nil), "not granted: PKI status 0"},
		"bytes after the answer":     {append(stamp(vaulttest.Stamp{}), 0), "no timestamp response"},
	} {
		b.tsa.Set(func(w http.ResponseWriter, _ []byte) bool { w.Write(tc.answer); return true })
		if err := b.Now(t.Context()); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want %q", name, err, tc.want)
		}
		if _, _, _, s := b.check(t); s != 0 {
			t.Fatalf("%s: kept", name)
		}
	}
	if status := b.Status(); status[3].Target != "tsa" || status[3].Size != 0 || status[3].Error == "" {
		t.Errorf("status %+v", status)
	}
	b.tsa.Set(nil)
	if err := b.ask(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if _, _, _, s := b.check(t); s != 5 {
		t.Errorf("stamped at %d, want 5", s)
	}
}

func FuzzTSAAnswer(f *testing.F) {
	f.Add(vaulttest.Response(0, []byte{0x30, 0}))
	f.Add(vaulttest.Response(2, nil))
	f.Fuzz(func(t *testing.T, answer []byte) {
		if token, err := tokenOf(answer); err == nil && (len(token) == 0 || len(token) >= len(answer)) {
			t.Fatalf("a token of %d bytes in an answer of %d", len(token), len(answer))
		}
	})
}

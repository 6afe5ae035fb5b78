package capability

import (
	"crypto/ed25519"
	"fmt"
	"testing"

	"github.com/pilox/vault"
)

// benchRule has three constraints, as in the goal for the warm check.
var benchRule = Rule{Args: Args{
	"/path":     {All: []Constraint{{SubPath: ptr("/srv/invoices")}}},
	"/max":      {All: []Constraint{{Int: &IntRange{Min: 1, Max: 1000}}}},
	"/encoding": {All: []Constraint{{OneOf: []Scalar{String("utf-8"), String("latin-1")}}}},
}}

const benchArgs = `{"path":"/srv/invoices/2026/08/0017.txt","max":200,"encoding":"utf-8"}`

func benchVerify(b *testing.B, links int) (v *Verifier, w *world, c Chain) {
	w = newWorld(b)
	v, c = w.verifier(), w.mint(w.root(benchRule))
	for range links - 1 {
		c = w.attenuate(c, Link{Budgets: &Budgets{Calls: Limit(10)}}, w.agent)
	}
	return v, w, c
}

func BenchmarkVerifyWarm(b *testing.B) {
	for _, links := range []int{1, 3} {
		b.Run(fmt.Sprintf("session/links=%d", links), func(b *testing.B) {
			v, w, c := benchVerify(b, links)
			s := w.open(v, c, w.agent)
			// Signing is the caller's cost: calls are signed outside the clock.
			const batch = 1000
			calls := make([]*vault.Call, batch)
			i := batch
			b.ReportAllocs()
			for b.Loop() {
				if i == batch {
					b.StopTimer()
					for j := range calls {
						calls[j] = newCall(benchArgs)
						if err := s.Sign(calls[j]); err != nil {
							b.Fatal(err)
						}
					}
					i = 0
					b.StartTimer()
				}
				if _, err := v.Verify(b.Context(), calls[i]); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
	b.Run("baseline=ed25519", benchEd25519)
}

func BenchmarkVerifySigned(b *testing.B) {
	v, w, c := benchVerify(b, 1)
	const batch = 200
	calls := make([]*vault.Call, batch)
	i := batch
	b.ReportAllocs()
	for b.Loop() {
		if i == batch {
			b.StopTimer()
			for j := range calls {
				nonce, err := v.Nonce()
				if err != nil {
					b.Fatal(err)
				}
				calls[j] = newCall(benchArgs)
				if err := SignCall(calls[j], c, w.agent, nonce); err != nil {
					b.Fatal(err)
				}
			}
			i = 0
			b.StartTimer()
		}
		if _, err := v.Verify(b.Context(), calls[i]); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

func BenchmarkVerifyCold(b *testing.B) {
	for _, links := range []int{1, 3, 8} {
		b.Run(fmt.Sprintf("links=%d", links), func(b *testing.B) {
			v, _, c := benchVerify(b, links)
			b.ReportAllocs()
			for b.Loop() {
				v.trust.seen = new(signatures)
				if _, err := v.trust.compile(c.raw); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("baseline=ed25519", benchEd25519)
}

func BenchmarkMint(b *testing.B) {
	w := newWorld(b)
	root := w.root(benchRule)
	b.ReportAllocs()
	for b.Loop() {
		c := w.mint(root)
		c = w.attenuate(c, Link{Budgets: &Budgets{Calls: Limit(10)}}, w.agent)
		w.attenuate(c, Link{Budgets: &Budgets{Calls: Limit(5)}}, w.agent)
	}
}

func BenchmarkGarbage(b *testing.B) {
	v, _, c := benchVerify(b, 3)
	unknown := Config{Roots: []RootIssuer{{KID: "k2", Key: keyOf(b, seeded("other")), Tenant: testTenant}}, Audience: testAudience}
	stranger, err := New(unknown)
	if err != nil {
		b.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		v    *Verifier
		raw  []byte
	}{
		{"random", v, []byte("\x81\x84\x58\x20 this is no chain at all, it only begins like one")},
		{"json", v, []byte(`{"alg":"none"}`)},
		{"oversized", v, make([]byte, MaxChainBytes+1)},
		{"unknown issuer", stranger, c.raw},
		{"truncated", v, c.raw[:len(c.raw)-1]},
	} {
		b.Run(tt.name, func(b *testing.B) {
			call := newCall(benchArgs)
			call.Credential.Chain = tt.raw
			b.ReportAllocs()
			for b.Loop() {
				if _, err := tt.v.Verify(b.Context(), call); err == nil {
					b.Fatal("accepted")
				}
			}
		})
	}
}

// benchEd25519 is what one signature costs on this machine.
func benchEd25519(b *testing.B) {
	key := seeded("baseline")
	msg := make([]byte, 256)
	sig := ed25519.Sign(key, msg)
	pub := key.Public().(ed25519.PublicKey)
	b.ReportAllocs()
	for b.Loop() {
		if !ed25519.Verify(pub, msg, sig) {
			b.Fatal("refused")
		}
	}
}

package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
)

// A benchCapability is an issuer, a holder and a chain between them.
type benchCapability struct {
	issuer, holder, gateway ed25519.PrivateKey
	conf                    capability.Config
	target                  vault.Target
	args                    vault.Args
}

func newBenchCapability() (*benchCapability, error) {
	b := &benchCapability{target: vault.Target{Server: vault.ServerID(vault.Hash("bench", []byte("files"))), Name: benchTool}}
	for _, k := range []*ed25519.PrivateKey{&b.issuer, &b.holder, &b.gateway} {
		_, key, err := ed25519.GenerateKey(nil)
		if err != nil {
			return nil, err
		}
		*k = key
	}
	root, err := capability.KeyOf(b.issuer.Public())
	if err != nil {
		return nil, err
	}
	b.conf = capability.Config{
		Roots: []capability.RootIssuer{{KID: "bench", Key: root, Tenant: "bench", Own: true}}, Audience: "bench",
		SessionKey: b.gateway,
	}
	b.args, err = vault.ParseArgs([]byte(`{"path":"/srv/invoices/2026/08/0017.txt","max":200,"encoding":"utf-8"}`))
	return b, err
}

// mint returns a chain of n links for the holder's key.
func (b *benchCapability) mint(n int) (capability.Chain, error) {
	holder, err := capability.KeyOf(b.holder.Public())
	if err != nil {
		return capability.Chain{}, err
	}
	return b.mintFor(n, capability.HeldBy(holder), capability.Signer{Key: b.holder})
}

// benchUID is a local user whose process needs no proof but its socket.
const benchUID = 1000

// mintPeer returns a chain of n links for a local user, all signed by the issuer.
func (b *benchCapability) mintPeer(n int) (capability.Chain, error) {
	return b.mintFor(n, capability.HeldByUID(benchUID), capability.Signer{Key: b.issuer, KID: "bench"})
}

// mintFor returns a chain of n links whose tool has three constraints.
func (b *benchCapability) mintFor(n int, holder *capability.Holder, child capability.Signer) (capability.Chain, error) {
	below := "/srv/invoices"
	now := time.Now()
	chain, err := capability.Mint(capability.Link{
		Tenant: "bench", Principal: "user:bench@example.com", Agent: "spiffe://vault.internal/agent/bench/bench/1",
		Task: &capability.Task{ID: vault.NewTaskID(), Purpose: "measure"}, Audience: "bench",
		Issued: capability.InstantOf(now), NotBefore: capability.InstantOf(now), Expires: capability.InstantOf(now.Add(time.Hour)),
		Depth: capability.Depth(n), Holder: holder, Budgets: &capability.Budgets{Calls: capability.Limit(1000)},
		Grants: capability.Grants{vault.KindTool: {b.target: {Args: capability.Args{
			"/path":     capability.One(capability.Constraint{SubPath: &below}),
			"/max":      capability.One(capability.Constraint{Int: &capability.IntRange{Min: 1, Max: 1000}}),
			"/encoding": capability.One(capability.Constraint{OneOf: []capability.Scalar{capability.String("utf-8"), capability.String("latin-1")}}),
		}}}},
	}, capability.Signer{Key: b.issuer, KID: "bench"})
	for i := 1; i < n && err == nil; i++ {
		chain, err = b.narrow(chain, int64(1000-i), child)
	}
	return chain, err
}

// narrow returns the chain with one more link.
func (b *benchCapability) narrow(chain capability.Chain, calls int64, by capability.Signer) (capability.Chain, error) {
	return capability.Attenuate(chain, capability.Link{Budgets: &capability.Budgets{Calls: capability.Limit(calls)}}, by)
}

func (b *benchCapability) call() *vault.Call {
	return &vault.Call{ID: vault.NewCallID(), Kind: vault.KindTool, Target: b.target, Args: b.args}
}

// A benchCall is a call with a proof, and who is to verify it.
type benchCall struct {
	verifier *capability.Verifier
	call     *vault.Call
}

func (p *benchCall) verify(ctx context.Context) error {
	_, err := p.verifier.Verify(ctx, p.call)
	return err
}

// signed prepares a call with a signature of its own, for a verifier that knows
// the chain or for a new one that does not.
func (b *benchCapability) signed(chain capability.Chain, known *capability.Verifier) (*benchCall, error) {
	p := &benchCall{verifier: known, call: b.call()}
	var err error
	if known == nil {
		if p.verifier, err = capability.New(b.conf); err != nil {
			return nil, err
		}
	}
	nonce, err := p.verifier.Nonce()
	if err != nil {
		return nil, err
	}
	return p, capability.SignCall(p.call, chain, b.holder, nonce)
}

// peer prepares a call of a local user for a new verifier.
func (b *benchCapability) peer(chain capability.Chain) (*benchCall, error) {
	v, err := capability.New(b.conf)
	p := &benchCall{verifier: v, call: b.call()}
	p.call.Credential = vault.Credential{Chain: chain.Bytes(), Binding: vault.Binding{Peer: true, PeerUID: benchUID}}
	return p, err
}

// revoked returns a verifier that knows n revoked links.
func (b *benchCapability) revoked(n int) (*capability.Verifier, error) {
	conf := b.conf
	conf.Revocations = new(capability.Revocations)
	var id vault.Digest
	for range n {
		rand.Read(id[:])
		if err := conf.Revocations.Add(capability.Revocation{Link: id, At: time.Now()}); err != nil {
			return nil, err
		}
	}
	return capability.New(conf)
}

// recheck prepares the check of a grant of three links that nobody has seen.
func (b *benchCapability) recheck(v *capability.Verifier) func() (step, error) {
	return func() (step, error) {
		g := &vault.Grant{
			Chain: vault.Digest{1}, Issuer: "bench", Task: vault.NewTaskID(), Agents: []vault.AgentID{"spiffe://vault.internal/agent/bench/bench/1"},
			Expires: time.Now().Add(time.Hour), Issued: time.Now(), Links: make([]vault.Digest, 3),
		}
		for i := range g.Links {
			rand.Read(g.Links[i][:])
		}
		return func(ctx context.Context) error { return v.Recheck(ctx, g) }, nil
	}
}

// capabilityArea measures the check of a capability.
func (b *bench) capabilityArea(ctx context.Context) error {
	b.progress("capability: tokens and proofs")
	c, err := newBenchCapability()
	if err != nil {
		return err
	}
	known, err := capability.New(c.conf)
	if err != nil {
		return err
	}
	chains := map[int]capability.Chain{}
	for _, n := range []int{1, 3, 8} {
		if chains[n], err = c.mint(n); err != nil {
			return err
		}
	}
	session := &capability.Session{Chain: chains[1], Key: c.holder, Gateway: known.SessionKey()}
	opening, err := session.Open()
	if err != nil {
		return err
	}
	answer, err := known.OpenSession(ctx, opening, vault.Binding{})
	if err != nil {
		return err
	}
	if err := session.Finish(answer); err != nil {
		return err
	}
	message := make([]byte, 256)
	rand.Read(message)
	signature := ed25519.Sign(c.holder, message)
	public := c.holder.Public().(ed25519.PublicKey)
	verify := b.each(ctx, func() (step, error) {
		return func(context.Context) error {
			if !ed25519.Verify(public, message, signature) {
				return errors.New("a good signature was refused")
			}
			return nil
		}, nil
	})
	verifyCPU := b.cpu
	sign := b.each(ctx, func() (step, error) {
		return func(context.Context) error { ed25519.Sign(c.holder, message); return nil }, nil
	})
	garbage := slices.Concat([]byte("\x81\x84\x58\x20"), message)
	empty, err := c.revoked(0)
	if err != nil {
		return err
	}
	full, err := c.revoked(benchRevoked)
	if err != nil {
		return err
	}
	none := b.each(ctx, c.recheck(empty))
	peers := map[int]capability.Chain{}
	for _, n := range []int{3, 8} {
		if peers[n], err = c.mintPeer(n); err != nil {
			return err
		}
	}
	links := int64(0) // made so far
	cold := func(n int) func() (step, error) {
		return func() (step, error) {
			p, err := c.signed(chains[n], nil)
			return p.verify, err
		}
	}
	coldPeer := func(n int) func() (step, error) {
		return func() (step, error) {
			p, err := c.peer(peers[n])
			return p.verify, err
		}
	}
	for _, m := range []struct {
		name     string
		baseline string
		base     float64
		goal     float64
		cpu      float64 // of the baseline; the CPU time is printed too if it is not zero
		prepare  func() (step, error)
	}{
		{"warm", "one Ed25519 verification", verify, 2_000, 0, func() (step, error) {
			p := &benchCall{known, c.call()}
			return p.verify, session.Sign(p.call)
		}},
		{"signed", "one Ed25519 verification", verify, 60_000, 0, func() (step, error) {
			p, err := c.signed(chains[1], known)
			return p.verify, err
		}},
		{"wrong_proof", "one Ed25519 verification", verify, 1.1 * verify, 0, func() (step, error) {
			p, err := c.signed(chains[1], known)
			p.call.Credential.Signature[0] ^= 1
			return p.refused, err
		}},
		{"cold3", "four Ed25519 verifications: three links, one call", 4 * verify, 3.3 * verify, 4 * verifyCPU, cold(3)},
		{"cold8", "nine Ed25519 verifications: eight links, one call", 9 * verify, 8.5 * verify, 9 * verifyCPU, cold(8)},
		{"cold3_peer", "three Ed25519 verifications", 3 * verify, 0, 3 * verifyCPU, coldPeer(3)},
		{"cold8_peer", "eight Ed25519 verifications", 8 * verify, 0, 8 * verifyCPU, coldPeer(8)},
		{"cold3_shared", "two Ed25519 verifications: one new link, one call", 2 * verify, 0, 2 * verifyCPU, func() (step, error) {
			links++
			chain, err := c.narrow(chains[3], links, capability.Signer{Key: c.holder})
			if err != nil {
				return nil, err
			}
			p, err := c.signed(chain, known)
			return p.verify, err
		}},
		{"mint3", "three Ed25519 signatures", 3 * sign, 1.7 * verify, 0, func() (step, error) {
			return func(context.Context) error { _, err := c.mint(3); return err }, nil
		}},
		{"revoked", "the same with nothing revoked", none, 150, 0, c.recheck(full)},
		{"garbage", "", 0, 1_000, 0, func() (step, error) {
			p := &benchCall{known, c.call()}
			p.call.Credential.Chain = garbage
			return p.refused, nil
		}},
	} {
		b.add("capability."+m.name, b.each(ctx, m.prepare), unitTime, m.baseline, m.base, m.goal)
		if m.cpu != 0 {
			b.add("capability."+m.name+"_cpu", b.cpu, unitTime, m.baseline, m.cpu, 0)
		}
	}
	p99, err := c.slowest(ctx, known, session)
	if err != nil {
		return err
	}
	b.add("capability.warm_p99", p99, unitTime, "one Ed25519 verification", verify, 10_000)
	return nil
}

// benchRevoked is how many links are revoked where that is measured.
const benchRevoked = 1_000_000

// refused expects that the call is refused.
func (p *benchCall) refused(ctx context.Context) error {
	if p.verify(ctx) == nil {
		return errors.New("what should be refused was accepted")
	}
	return nil
}

// slowest times calls in a session one by one and returns the 99th percentile.
func (b *benchCapability) slowest(ctx context.Context, v *capability.Verifier, s *capability.Session) (float64, error) {
	const samples = 20_000
	took := make(times, 0, samples)
	for range samples {
		p := &benchCall{v, b.call()}
		if err := s.Sign(p.call); err != nil {
			return 0, err
		}
		start := time.Now()
		if err := p.verify(ctx); err != nil {
			return 0, err
		}
		took = append(took, time.Since(start))
	}
	return took.percentile(99), nil
}

// A step is what is measured.
type step = func(context.Context) error

// Batches of each.
const (
	eachBatches = 15
	eachBatch   = 200
)

// each prepares steps outside the clock, runs them in batches, and returns the
// median time of one. The CPU time of one is in b.cpu then. The first failure is kept
// for the end of the run.
func (b *bench) each(ctx context.Context, prepare func() (step, error)) float64 {
	var batches, cpu times
	for i := range eachBatches + 2 {
		steps := make([]step, eachBatch)
		for j := range steps {
			var err error
			if steps[j], err = prepare(); err != nil {
				b.fail(fmt.Errorf("prepare: %w", err))
				return 0
			}
		}
		used, start := ownCPU(), time.Now()
		for _, s := range steps {
			if err := s(ctx); err != nil {
				b.fail(err)
				return 0
			}
		}
		if i >= 2 { // the first warm up
			batches, cpu = append(batches, time.Since(start)), append(cpu, ownCPU()-used)
		}
	}
	b.cpu = cpu.percentile(50) / eachBatch
	return batches.percentile(50) / eachBatch
}

func (b *bench) fail(err error) { b.failed = errors.Join(b.failed, err) }

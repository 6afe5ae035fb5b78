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

// mint returns a chain of n links whose tool has three constraints.
func (b *benchCapability) mint(n int) (capability.Chain, error) {
	holder, err := capability.KeyOf(b.holder.Public())
	if err != nil {
		return capability.Chain{}, err
	}
	below := "/srv/invoices"
	now := time.Now()
	chain, err := capability.Mint(capability.Link{
		Tenant: "bench", Principal: "user:bench@example.com", Agent: "spiffe://vault.internal/agent/bench/bench/1",
		Task: &capability.Task{ID: vault.NewTaskID(), Purpose: "measure"}, Audience: "bench",
		Issued: capability.InstantOf(now), NotBefore: capability.InstantOf(now), Expires: capability.InstantOf(now.Add(time.Hour)),
		Depth: capability.Depth(n), Holder: capability.HeldBy(holder), Budgets: &capability.Budgets{Calls: capability.Limit(1000)},
		Grants: capability.Grants{vault.KindTool: {b.target: {Args: capability.Args{
			"/path":     capability.One(capability.Constraint{SubPath: &below}),
			"/max":      capability.One(capability.Constraint{Int: &capability.IntRange{Min: 1, Max: 1000}}),
			"/encoding": capability.One(capability.Constraint{OneOf: []capability.Scalar{capability.String("utf-8"), capability.String("latin-1")}}),
		}}}},
	}, capability.Signer{Key: b.issuer, KID: "bench"})
	for i := 1; i < n && err == nil; i++ {
		chain, err = capability.Attenuate(chain, capability.Link{Budgets: &capability.Budgets{Calls: capability.Limit(int64(1000 - i))}}, capability.Signer{Key: b.holder})
	}
	return chain, err
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
	sign := b.each(ctx, func() (step, error) {
		return func(context.Context) error { ed25519.Sign(c.holder, message); return nil }, nil
	})
	garbage := slices.Concat([]byte("\x81\x84\x58\x20"), message)
	for _, m := range []struct {
		name     string
		baseline string
		base     float64
		goal     float64
		prepare  func() (step, error)
	}{
		{"warm", "one Ed25519 verification", verify, 2_000, func() (step, error) {
			p := &benchCall{known, c.call()}
			return p.verify, session.Sign(p.call)
		}},
		{"signed", "one Ed25519 verification", verify, 60_000, func() (step, error) {
			p, err := c.signed(chains[1], known)
			return p.verify, err
		}},
		{"cold3", "four Ed25519 verifications: three links, one call", 4 * verify, 0, func() (step, error) {
			p, err := c.signed(chains[3], nil)
			return p.verify, err
		}},
		{"cold8", "nine Ed25519 verifications: eight links, one call", 9 * verify, 0, func() (step, error) {
			p, err := c.signed(chains[8], nil)
			return p.verify, err
		}},
		{"mint3", "three Ed25519 signatures", 3 * sign, 0, func() (step, error) {
			return func(context.Context) error { _, err := c.mint(3); return err }, nil
		}},
		{"garbage", "", 0, 0, func() (step, error) {
			p := &benchCall{known, c.call()}
			p.call.Credential.Chain = garbage
			return func(ctx context.Context) error {
				if p.verify(ctx) == nil {
					return errors.New("garbage was accepted")
				}
				return nil
			}, nil
		}},
	} {
		b.add("capability."+m.name, b.each(ctx, m.prepare), unitTime, m.baseline, m.base, m.goal)
	}
	return nil
}

// A step is what is measured.
type step = func(context.Context) error

// Batches of each.
const (
	eachBatches = 15
	eachBatch   = 200
)

// each prepares steps outside the clock, runs them in batches, and returns the
// median time of one. The first failure is kept for the end of the run.
func (b *bench) each(ctx context.Context, prepare func() (step, error)) float64 {
	var batches times
	for i := range eachBatches + 2 {
		steps := make([]step, eachBatch)
		for j := range steps {
			var err error
			if steps[j], err = prepare(); err != nil {
				b.fail(fmt.Errorf("prepare: %w", err))
				return 0
			}
		}
		start := time.Now()
		for _, s := range steps {
			if err := s(ctx); err != nil {
				b.fail(err)
				return 0
			}
		}
		if i >= 2 { // the first warm up
			batches = append(batches, time.Since(start))
		}
	}
	return batches.percentile(50) / eachBatch
}

func (b *bench) fail(err error) { b.failed = errors.Join(b.failed, err) }

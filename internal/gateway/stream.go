package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/pilox/vault"
)

// A stream is what a runner sees of the caller's side. Every frame passes the
// scanner and joins its label to the agent before it leaves, and the first one is
// on record. It refuses frames once the call is over.
type stream struct {
	g           *Gateway
	f           *vault.Facts
	out         vault.Stream
	obligations []vault.Obligation
	intent      vault.Receipt
	revoked     <-chan struct{} // closed when the call's authority is gone

	mu       sync.Mutex
	over     bool
	released bool
	requests int
}

// maxRequests bounds what a server may ask of the agent's side during one call.
const maxRequests = 32

// Notify releases one notification.
func (s *stream) Notify(ctx context.Context, method string, params json.RawMessage) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over || s.out == nil || s.dead() {
		return vault.NewDenial(vault.CodeCancelled, "", nil)
	}
	params, d := s.scan(ctx, params)
	if d.Verdict != vault.Allow {
		return withheld(d.Reason())
	}
	if err := s.first(ctx, params); err != nil {
		return err
	}
	return s.out.Notify(ctx, method, params)
}

// dead reports whether the authority of the call was revoked.
func (s *stream) dead() bool {
	select {
	case <-s.revoked:
		return true
	default:
		return false
	}
}

// first records that something of this call leaves before its outcome, and labels it.
func (s *stream) first(ctx context.Context, raw []byte) error {
	if l := s.g.Flow.Label(ctx, s.f, raw); cleared(s.f, l.Readers) != nil {
		return withheld(vault.Reason{Code: vault.CodeFlowClearance})
	}
	if s.released {
		return nil
	}
	if _, err := s.g.Recorder.Sequence(ctx, releasedEvent(s.f, s.intent)); err != nil {
		return vault.NewDenial(vault.CodeLedger, "", err)
	}
	s.released = true
	return nil
}

// scan applies the scanner and the redactions a stage asked for.
func (s *stream) scan(ctx context.Context, raw []byte) ([]byte, vault.Decision) {
	raw, d := s.g.Scanner.ScanResult(ctx, s.f, raw)
	if d.Verdict != vault.Allow {
		return nil, d
	}
	for _, o := range s.obligations {
		if o.Type != vault.ObligeRedact {
			continue
		}
		var err error
		if raw, err = redact(raw, o.Path); err != nil {
			return nil, vault.Denied(vault.CodeResultWithheld, o.Path, "redaction failed: "+err.Error())
		}
	}
	return raw, d
}

// Request is a call of its own, of kind server_request: what a server asks of the
// agent's side needs the capability's word like everything else.
func (s *stream) Request(ctx context.Context, method string, params json.RawMessage) (json.RawMessage, error) {
	s.mu.Lock()
	if s.over || s.out == nil {
		s.mu.Unlock()
		return nil, vault.NewDenial(vault.CodeCancelled, "", nil)
	}
	s.requests++
	n := s.requests
	s.mu.Unlock()
	if n > maxRequests {
		return nil, vault.NewDenial(vault.CodeBusy, "", fmt.Errorf("more than %d requests in one call", maxRequests))
	}
	args, err := vault.ParseArgs(params)
	if err != nil {
		return nil, err
	}
	sub := *s.f.Call
	sub.ID = fmt.Sprintf("%s/%d", s.f.Call.ID, n)
	sub.Generated = true
	sub.Kind = vault.KindServerRequest
	sub.Target.Name = method
	sub.Args, sub.Params = args, vault.Args{}
	res, err := s.g.within(ctx, s.f, &sub, func(ctx context.Context, _ *stream) (vault.Result, error) {
		// What the server asks is something it says: it reaches the agent with the
		// server's label, like any frame.
		if err := s.hand(ctx, args.Bytes()); err != nil {
			return vault.Result{}, err
		}
		raw, err := s.out.Request(ctx, method, args.Bytes())
		return vault.Result{Raw: raw}, err
	})
	return res.Raw, err
}

// hand labels a request that was let through and is about to leave, unless its call
// has ended meanwhile: deciding can take as long as a person does.
func (s *stream) hand(ctx context.Context, raw []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over || s.dead() {
		return vault.NewDenial(vault.CodeCancelled, "", nil)
	}
	return s.first(ctx, raw)
}

// close refuses all later frames and waits for the one on its way.
func (s *stream) close() {
	s.mu.Lock()
	s.over = true
	s.mu.Unlock()
}

// within runs a call that happens inside another one, under the same proof.
func (g *Gateway) within(ctx context.Context, parent *vault.Facts, call *vault.Call, run effect) (vault.Result, error) {
	f := &vault.Facts{Call: call, Tool: new(vault.Tool)}
	grant, err := g.Verifier.Reverify(ctx, call, parent.Grant)
	if err != nil {
		f.Grant = parent.Grant
		return vault.Result{}, g.refuse(ctx, f, vault.DenialOf(err))
	}
	f.Grant = &grant
	return g.once(ctx, f, run, nil)
}

// Permit decides a server request that a result carries instead of sending it
// (input_required of MCP 2026-07-28): the request is recorded as a call of its
// own, and its effect is that it is handed to the caller.
func (g *Gateway) Permit(ctx context.Context, parent *vault.Facts, n int, method string, params json.RawMessage) error {
	args, err := vault.ParseArgs(params)
	if err != nil {
		return err
	}
	sub := *parent.Call
	sub.ID = fmt.Sprintf("%s/input-%d", parent.Call.ID, n)
	sub.Generated = true
	sub.Kind = vault.KindServerRequest
	sub.Target.Name = method
	sub.Args, sub.Params = args, vault.Args{}
	_, err = g.within(ctx, parent, &sub, func(ctx context.Context, _ *stream) (vault.Result, error) {
		g.Flow.Label(ctx, parent, args.Bytes())
		return vault.Result{Raw: json.RawMessage("{}")}, nil
	})
	return err
}

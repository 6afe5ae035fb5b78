package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/pilox/vault"
)

// errTimeout is the cause of a call that took too long.
var errTimeout = errors.New("the server did not answer in time")

// maxClientWait bounds how long one request of a server waits for a person at the
// client; longer than a front parks a call.
const maxClientWait = 15 * time.Minute

// maxRounds bounds how often a server may ask for input in one call.
const maxRounds = 10

// Run sends the call to its server and returns what comes back, in the shape of
// the client's era. Every error is a *vault.Denial; Executed is no only if nothing was sent.
func (u *Upstreams) Run(ctx context.Context, f *vault.Facts, out vault.Stream) (vault.Result, error) {
	s := u.find(f.Call.Target.Server)
	if s == nil {
		return vault.Result{}, vault.NewDenial(vault.CodeToolUnknown, "", nil)
	}
	method, params, meta, err := outgoing(f.Call)
	if err != nil {
		return vault.Result{}, vault.NewDenial(vault.CodeRequestMalformed, "", err)
	}
	r := &running{u: u, s: s, f: f, out: out, client: clientOf(ctx), method: method, meta: meta}
	if method == methodSubscribe {
		return r.subscribe(ctx)
	}
	r.meta.capabilities = r.client.capabilities
	r.meta.logLevel = r.client.logLevel
	r.meta.progress = r.client.progress && out != nil
	if f.Call.Kind == vault.KindTool {
		r.meta.headers = s.paramHeaders(f.Call)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.timer = time.AfterFunc(s.srv.Timeout, func() { cancel(errTimeout) })
	defer r.timer.Stop()
	raw, err := r.rounds(ctx, params)
	return r.result(ctx, raw, err)
}

// A running call is one Run.
type running struct {
	u      *Upstreams
	s      *upstream
	f      *vault.Facts
	out    vault.Stream
	client *client
	method string
	meta   requestMeta
	timer  *time.Timer // of the server's time; stopped while it waits for the client
	era    string      // of the peer that answered
	asked  int         // requests that results carried
}

// instance names what the connection of this call may be shared by.
func (s *upstream) instance(f *vault.Facts) Instance {
	inst := Instance{Tenant: f.Call.Tenant, Server: s.srv.ID}
	task := f.Call.Task
	if f.Grant != nil {
		inst.Tenant, task = f.Grant.Tenant, f.Grant.Task
	}
	if s.srv.PerTask {
		inst.Task = task
	}
	return inst
}

// rounds sends the call, and again with the input that the server asks for when the client is
// of the era that cannot do so itself.
func (r *running) rounds(ctx context.Context, params []byte) (json.RawMessage, error) {
	p, done, err := r.s.peerFor(ctx, r.s.instance(r.f), r.client)
	if err != nil {
		return nil, err
	}
	defer done()
	r.era = p.era()
	round := params
	for range maxRounds {
		raw, err := p.call(ctx, r.method, round, r.meta, r)
		if err != nil || !isInputRequired(raw) {
			return raw, err
		}
		if modern(r.client.version) {
			return raw, r.permit(ctx, raw)
		}
		if round, err = r.fulfil(ctx, params, raw); err != nil {
			return nil, err
		}
	}
	return nil, failed(vault.CodeUpstreamFailed, errors.New("the server asks for input again and again"))
}

// isInputRequired reports whether a result asks the client for input.
func isInputRequired(raw json.RawMessage) bool {
	return string(member(raw, "resultType")) == `"input_required"`
}

// permit has each request that a result carries decided. One refusal refuses the result.
func (r *running) permit(ctx context.Context, raw json.RawMessage) error {
	return r.inputs(raw, func(_ []byte, method string, params json.RawMessage) error {
		r.asked++
		if r.u.cfg.Permit == nil {
			return failed(vault.CodeCapabilityTarget, errors.New("nobody permits requests of servers"))
		}
		if err := r.u.cfg.Permit(ctx, r.f, r.asked, method, params); err != nil {
			d := *vault.DenialOf(err)
			d.Executed = vault.ExecutedUnknown // the server has seen the call
			return &d
		}
		return nil
	})
}

// inputs calls fn for each request that an input_required result carries.
func (r *running) inputs(raw json.RawMessage, fn func(key []byte, method string, params json.RawMessage) error) error {
	requests := member(raw, "inputRequests")
	if requests == nil {
		return nil
	}
	if requests[0] != '{' {
		return failed(vault.CodeUpstreamGarbage, errMalformed)
	}
	return members(requests, func(key, val []byte) error {
		if val[0] != '{' {
			return failed(vault.CodeUpstreamGarbage, errMalformed)
		}
		method, ok := plainString(member(val, "method"))
		params := member(val, "params")
		switch {
		case !ok || params != nil && params[0] != '{':
			return failed(vault.CodeUpstreamGarbage, errMalformed)
		case params == nil:
			params = []byte("{}")
		}
		return fn(key, method, params)
	})
}

// fulfil asks the client for all that an input_required result wants and returns the
// parameters of the next round.
func (r *running) fulfil(ctx context.Context, params, raw json.RawMessage) ([]byte, error) {
	if r.out == nil {
		return nil, failed(vault.CodeCapabilityTarget, errors.New("nobody to ask for input"))
	}
	b := append([]byte(nil), params[:len(params)-1]...)
	if len(params) > len("{}") {
		b = append(b, ',')
	}
	b = append(b, `"inputResponses":{`...)
	first := true
	err := r.inputs(raw, func(key []byte, method string, params json.RawMessage) error {
		answer, err := r.request(ctx, method, params)
		if err != nil {
			d := *vault.DenialOf(err)
			d.Executed = vault.ExecutedUnknown // the server has seen the call
			return &d
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = append(appendQuoted(b, string(key)), ':')
		b = append(b, answer...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	b = append(b, '}')
	if state := member(raw, "requestState"); state != nil {
		b = append(append(b, `,"requestState":`...), state...)
	}
	return append(b, '}'), nil
}

// notify passes a notification of the call on.
func (r *running) notify(ctx context.Context, method string, params json.RawMessage) error {
	if r.out == nil || method == methodPing {
		return nil
	}
	switch method {
	case noteProgress, noteMessage:
		if params == nil {
			params = []byte("{}")
		}
		return r.out.Notify(ctx, method, params)
	case noteToolsChanged, notePromptsChanged, noteResourcesChanged, noteResourceUpdated:
		r.s.stray(method, params)
	}
	return nil
}

// request asks the client on the server's behalf. The server's time stands still meanwhile.
func (r *running) request(ctx context.Context, method string, params json.RawMessage) (json.RawMessage, error) {
	if r.out == nil {
		return nil, vault.NewDenial(vault.CodeCapabilityTarget, "", nil)
	}
	switch method {
	case methodSampling, methodElicitation, methodRoots:
	default:
		return nil, &RemoteError{codeMethodNotFound, errorObject(codeMethodNotFound, "method not found", nil)}
	}
	if params == nil {
		params = []byte("{}")
	}
	if r.timer.Stop() {
		defer r.timer.Reset(r.s.srv.Timeout)
	}
	ctx, cancel := context.WithTimeout(ctx, maxClientWait)
	defer cancel()
	return r.out.Request(ctx, method, stripReserved(params))
}

// result makes a vault.Result of an answer.
func (r *running) result(ctx context.Context, raw json.RawMessage, err error) (vault.Result, error) {
	if e, ok := errors.AsType[*RemoteError](err); ok {
		return vault.Result{Raw: e.Raw, IsError: true, Refused: true}, nil
	}
	if err != nil {
		d := vault.DenialOf(err)
		if errors.Is(context.Cause(ctx), errTimeout) && d.Executed != vault.ExecutedNo {
			d = failed(vault.CodeUpstreamTimeout, d)
		}
		return vault.Result{}, d
	}
	res := vault.Result{Raw: raw}
	typed := false
	_ = members(raw, func(key, val []byte) error { // scanned before
		switch string(key) {
		case "isError":
			res.IsError = string(val) == "true"
		case "resultType":
			typed = true
			res.Partial = string(val) == `"input_required"`
		}
		return nil
	})
	switch client, server := modern(r.client.version), modern(r.era); {
	case client && !server:
		res.Raw = toModern(raw, typed, r.method)
	case !client && server:
		res.Raw = toLegacy(raw)
	}
	return res, nil
}

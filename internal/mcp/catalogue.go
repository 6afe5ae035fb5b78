package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/pilox/vault"
)

// control returns the connection that lists and listens.
func (s *upstream) control(ctx context.Context, inst Instance) (peer, func(), error) {
	key := peerKey{inst: inst, control: s.srv.Dial.many}
	return s.peer(ctx, key, Version20260728, nil)
}

// A Listing is all that a server offers.
type Listing struct {
	Tools, Resources, Templates, Prompts []Definition
	Capabilities                         json.RawMessage // as declared by the server
	Version                              string          // protocol version spoken
}

const (
	maxPages       = 64   // of one list
	maxDefinitions = 4096 // of one list; nobody can review more
)

// List asks a server for all it offers, on the connection of inst (without its
// Server), and from then on listens for changes. Errors are *vault.Denial.
func (u *Upstreams) List(ctx context.Context, server vault.ServerID, inst Instance) (Listing, error) {
	s := u.find(server)
	if s == nil {
		return Listing{}, vault.NewDenial(vault.CodeToolUnknown, "", nil)
	}
	inst.Server = server
	ctx, cancel := context.WithTimeoutCause(ctx, s.srv.Timeout, errTimeout)
	defer cancel()
	p, done, err := s.control(ctx, inst)
	if err != nil {
		return Listing{}, err
	}
	defer done()
	l := Listing{Capabilities: member(p.hello(), "capabilities"), Version: p.era()}
	if l.Capabilities == nil || l.Capabilities[0] != '{' {
		l.Capabilities = json.RawMessage("{}")
	}
	for _, part := range []struct {
		capability, method, field, name string
		into                            *[]Definition
	}{
		{"tools", methodToolsList, "tools", "name", &l.Tools},
		{"resources", methodResourcesList, "resources", "uri", &l.Resources},
		{"resources", methodTemplatesList, "resourceTemplates", "uriTemplate", &l.Templates},
		{"prompts", methodPromptsList, "prompts", "name", &l.Prompts},
	} {
		if member(l.Capabilities, part.capability) == nil {
			continue
		}
		if *part.into, err = listAll(ctx, p, part.method, part.field, part.name); err != nil {
			return Listing{}, fmt.Errorf("%s: %w", part.method, vault.DenialOf(err))
		}
	}
	s.learn(l)
	s.listenOnce(inst, p, l.Capabilities)
	return l, nil
}

// learn keeps which arguments tools want as headers.
func (s *upstream) learn(l Listing) {
	bindings := make(map[string][]binding)
	for _, d := range l.Tools {
		if b, err := bindingsOf(member(d.Raw, "inputSchema")); err == nil && len(b) > 0 {
			bindings[d.Name] = b
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bindings = bindings
}

// listAll reads all pages of one list.
func listAll(ctx context.Context, p peer, method, field, name string) ([]Definition, error) {
	var out []Definition
	var params json.RawMessage
	for range maxPages {
		raw, err := p.call(ctx, method, params, requestMeta{}, refuseAll{})
		if e, ok := errors.AsType[*RemoteError](err); ok {
			if e.Code == codeMethodNotFound {
				return out, nil // templates are optional where resources are not
			}
			return nil, failed(vault.CodeUpstreamFailed, e)
		}
		if err != nil {
			return nil, err
		}
		var entries []json.RawMessage
		if err := json.Unmarshal(member(raw, field), &entries); err != nil {
			return nil, failed(vault.CodeUpstreamGarbage, err)
		}
		for _, e := range entries {
			if len(out) == maxDefinitions {
				return nil, failed(vault.CodeUpstreamTooLarge, errors.New("too many definitions"))
			}
			if len(e) == 0 || e[0] != '{' {
				return nil, failed(vault.CodeUpstreamGarbage, errMalformed)
			}
			n, ok := plainString(member(e, name))
			if !ok || n == "" {
				return nil, failed(vault.CodeUpstreamGarbage, errors.New("a definition without a name"))
			}
			out = append(out, Definition{Name: n, Raw: e})
		}
		cursor := member(raw, "nextCursor")
		if cursor == nil || string(cursor) == "null" || string(cursor) == `""` {
			return out, nil
		}
		params = append(append([]byte(`{"cursor":`), cursor...), '}')
	}
	return nil, failed(vault.CodeUpstreamTooLarge, errors.New("too many pages"))
}

// listenOnce opens the stream for list changes on a server of the era without sessions;
// in the other one the connection brings them.
func (s *upstream) listenOnce(inst Instance, p peer, caps json.RawMessage) {
	if !modern(p.era()) {
		return
	}
	b := []byte(`{"notifications":{`)
	for _, c := range []string{"tools", "prompts", "resources"} {
		if string(member(member(caps, c), "listChanged")) == "true" {
			if b[len(b)-1] != '{' {
				b = append(b, ',')
			}
			b = append(b, `"`+c+`ListChanged":true`...)
		}
	}
	if b[len(b)-1] == '{' {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listens || s.closed {
		return
	}
	s.listens = true
	s.wg.Go(func() { s.listen(s.ctx, inst, append(b, '}', '}'), nil) })
}

// listen keeps a subscriptions/listen request open until ctx ends. ready, if not nil,
// gets the outcome of the first attempt.
func (s *upstream) listen(ctx context.Context, inst Instance, params []byte, ready chan<- error) {
	for wait := time.Second; ; wait = min(2*wait, time.Minute) {
		p, done, err := s.control(ctx, inst)
		if err == nil {
			_, err = p.call(ctx, methodListen, params, requestMeta{}, listening{s, &ready})
			done()
		}
		if ready != nil {
			ready <- err
			return
		}
		if ctx.Err() != nil {
			return
		}
		s.u.cfg.Log.DebugContext(ctx, "mcp upstream listening stream ended", "server", s.srv.Name, "cause", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// listening takes what arrives on a subscriptions/listen stream.
type listening struct {
	s     *upstream
	ready *chan<- error
}

func (l listening) notify(_ context.Context, method string, params json.RawMessage) error {
	if method == noteSubscriptionsListen && *l.ready != nil {
		*l.ready <- nil
		*l.ready = nil
	}
	l.s.stray(method, params)
	return nil
}

func (listening) request(context.Context, string, json.RawMessage) (json.RawMessage, error) {
	return nil, errNotDuringCall
}

// maxWatched bounds the subscriptions to resources of one server.
const maxWatched = 256

// subscribe subscribes to a resource, once for all clients: what goes to them is
// only that it changed.
func (r *running) subscribe(ctx context.Context) (vault.Result, error) {
	s, uri := r.s, r.f.Call.Target.Name
	ok := vault.Result{Raw: json.RawMessage("{}")}
	inst := s.instance(r.f)
	s.mu.Lock()
	_, have := s.watching[uri]
	full := len(s.watching) >= maxWatched
	s.mu.Unlock()
	switch {
	case have:
		return ok, nil
	case full:
		return vault.Result{}, vault.NewDenial(vault.CodeBusy, "", errors.New("too many subscriptions"))
	}
	p, done, err := s.control(ctx, inst)
	if err != nil {
		return vault.Result{}, err
	}
	defer done()
	var end func()
	if modern(p.era()) {
		end, err = s.subscribeModern(ctx, inst, uri)
	} else {
		params := append(vault.AppendQuoted([]byte(`{"uri":`), uri), '}')
		_, err = p.call(ctx, methodSubscribe, params, requestMeta{}, refuseAll{})
		end = func() { s.unsubscribe(inst, params) }
	}
	if err != nil {
		return r.result(ctx, nil, err)
	}
	s.mu.Lock()
	_, have = s.watching[uri]
	if !have && !s.closed {
		s.watching[uri] = end
	}
	s.mu.Unlock()
	if have {
		end()
	}
	return ok, nil
}

// subscribeModern opens a listening stream for one resource.
func (s *upstream) subscribeModern(ctx context.Context, inst Instance, uri string) (func(), error) {
	listenCtx, cancel := context.WithCancel(s.ctx)
	params := append(vault.AppendQuoted([]byte(`{"notifications":{"resourceSubscriptions":[`), uri), ']', '}', '}')
	ready := make(chan error, 2)
	s.wg.Go(func() { s.listen(listenCtx, inst, params, ready) })
	select {
	case err := <-ready:
		if err != nil {
			cancel()
		}
		return cancel, err
	case <-ctx.Done():
		cancel()
		return nil, failed(vault.CodeCancelled, context.Cause(ctx))
	}
}

// unsubscribe ends a subscription on a connection of the era with sessions.
func (s *upstream) unsubscribe(inst Instance, params []byte) {
	ctx, cancel := context.WithTimeout(s.ctx, 5*time.Second)
	defer cancel()
	p, done, err := s.control(ctx, inst)
	if err != nil {
		return // no connection, no subscription
	}
	defer done()
	if _, err := p.call(ctx, methodUnsubscribe, params, requestMeta{}, refuseAll{}); err != nil {
		s.u.cfg.Log.Debug("mcp upstream did not end a subscription", "server", s.srv.Name, "cause", err)
	}
}

// unwatch ends the subscription to uri.
func (s *upstream) unwatch(uri string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	end := s.watching[uri]
	delete(s.watching, uri)
	if end != nil && !s.closed {
		s.wg.Go(end)
	}
}

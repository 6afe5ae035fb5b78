package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pilox/vault"
)

// An upstream is one server with all connections to it.
type upstream struct {
	u   *Upstreams
	srv Server

	ctx  context.Context // ends with close; of what runs beside calls
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu       sync.Mutex // guards what follows
	peers    map[peerKey]*slot
	bindings map[string][]binding // Mcp-Param headers by tool
	watching map[string]func()    // subscriptions by URI, with what ends each
	listens  bool                 // a stream for list changes is open
	closed   bool
}

// A peerKey says whom a connection serves.
type peerKey struct {
	inst    Instance
	session string // of the client, empty for a connection that all share
	control bool   // the connection that lists and listens
}

// A slot holds one connection, or the attempt to open it.
type slot struct {
	ready  chan struct{} // closed when peer and err are set
	peer   peer
	err    error
	inUse  int // guarded by the upstream's lock, as used is
	used   time.Time
	retire bool // close it when nobody uses it
}

func newUpstream(u *Upstreams, s Server) *upstream {
	up := &upstream{u: u, srv: s, peers: make(map[peerKey]*slot), watching: make(map[string]func())}
	up.ctx, up.stop = context.WithCancel(context.Background())
	return up
}

// peerFor returns the connection for a client's call and a func that gives it back. A
// client of the era with sessions gets one of its own where the server has sessions.
func (s *upstream) peerFor(ctx context.Context, inst Instance, c *client) (peer, func(), error) {
	key, want := peerKey{inst: inst}, Version20260728
	if s.srv.Dial.many && c.session != "" {
		key.session, want = c.session, c.version
	}
	return s.peer(ctx, key, want, c.capabilities)
}

// peer returns the connection under key and opens it if there is none.
func (s *upstream) peer(ctx context.Context, key peerKey, want string, caps json.RawMessage) (peer, func(), error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, nil, down(errors.New("the server was removed"))
	}
	sl := s.peers[key]
	if sl != nil && lost(sl) {
		s.drop(key, sl)
		sl = nil
	}
	open := sl == nil
	if open {
		if len(s.peers) >= s.u.cfg.MaxPeers && !s.makeRoom() {
			s.mu.Unlock()
			d := vault.NewDenial(vault.CodeBusy, "", errors.New("too many connections to the server"))
			d.Retry = vault.RetryAfter
			return nil, nil, d
		}
		sl = &slot{ready: make(chan struct{})}
		s.peers[key] = sl
	}
	sl.inUse++
	sl.used = s.u.cfg.Now()
	s.mu.Unlock()
	done := func() { s.release(sl) }
	if open {
		opts := peerOptions{maxMessage: s.u.cfg.MaxResult, log: s.u.cfg.Log, info: s.u.info.json(s.u.cfg.Name, s.u.cfg.Version)}
		if key.control || !s.srv.Dial.many {
			opts.stray = s.stray
		}
		if key.session != "" {
			opts.clientCaps = caps
			if caps == nil {
				opts.clientCaps = json.RawMessage("{}")
			}
		}
		sl.peer, sl.err = s.srv.Dial.dial(ctx, key.inst, want, opts)
		close(sl.ready)
		if sl.err != nil {
			s.mu.Lock()
			if s.peers[key] == sl {
				delete(s.peers, key)
			}
			s.mu.Unlock()
		}
	}
	select {
	case <-sl.ready:
	case <-ctx.Done():
		done()
		return nil, nil, vault.NewDenial(vault.CodeCancelled, "", context.Cause(ctx))
	}
	if sl.err != nil {
		done()
		// Nothing of the call itself was sent.
		d := vault.NewDenial(vault.CodeServerDown, "", sl.err)
		d.Retry = vault.RetryAfter
		return nil, nil, d
	}
	return sl.peer, done, nil
}

// lost reports whether a connection is open no more.
func lost(sl *slot) bool {
	select {
	case <-sl.ready:
	default:
		return false
	}
	b, ok := sl.peer.(interface{ broken() bool })
	return ok && b.broken()
}

// drop takes a connection out and closes it when nobody uses it any more. mu is held.
func (s *upstream) drop(key peerKey, sl *slot) {
	if s.peers[key] == sl {
		delete(s.peers, key)
	}
	sl.retire = true
	if sl.inUse == 0 {
		s.wg.Go(func() { s.closeSlot(sl) })
	}
}

func (s *upstream) closeSlot(sl *slot) {
	<-sl.ready
	if sl.peer == nil {
		return
	}
	if err := sl.peer.close(); err != nil {
		s.u.cfg.Log.Debug("mcp upstream connection did not close cleanly", "server", s.srv.Name, "cause", err)
	}
}

// makeRoom drops the connection that nobody used for longest. mu is held.
func (s *upstream) makeRoom() bool {
	var oldest *slot
	var at peerKey
	for key, sl := range s.peers {
		if sl.inUse == 0 && key.session != "" && (oldest == nil || sl.used.Before(oldest.used)) {
			oldest, at = sl, key
		}
	}
	if oldest == nil {
		return false
	}
	s.drop(at, oldest)
	return true
}

func (s *upstream) release(sl *slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sl.inUse--
	sl.used = s.u.cfg.Now()
	if sl.retire && sl.inUse == 0 && !s.closed {
		s.wg.Go(func() { s.closeSlot(sl) })
	}
}

// endSession closes the connections of one client's session.
func (s *upstream) endSession(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, sl := range s.peers {
		if key.session == id && id != "" {
			s.drop(key, sl)
		}
	}
}

// close ends all connections and waits.
func (s *upstream) close() {
	s.stop()
	s.mu.Lock()
	s.closed = true
	peers := s.peers
	s.peers = make(map[peerKey]*slot)
	s.mu.Unlock()
	for _, sl := range peers {
		s.closeSlot(sl)
	}
	s.wg.Wait()
}

// stray takes a notification that belongs to no call.
func (s *upstream) stray(method string, params json.RawMessage) {
	kind := vault.Kind("")
	switch method {
	case noteToolsChanged:
		kind = vault.KindTool
	case notePromptsChanged:
		kind = vault.KindPrompt
	case noteResourcesChanged:
		kind = vault.KindResource
	case noteResourceUpdated:
		uri, ok := plainString(member(params, "uri"))
		s.mu.Lock()
		_, wanted := s.watching[uri]
		s.mu.Unlock()
		s.u.mu.RLock()
		updated := s.u.updated
		s.u.mu.RUnlock()
		if ok && wanted && updated != nil {
			updated(vault.Target{Server: s.srv.ID, Name: uri})
		}
		return
	default:
		return
	}
	if s.u.cfg.Changed != nil {
		s.u.cfg.Changed(s.srv.ID, kind)
	}
}

// paramHeaders returns the arguments that the tool wants repeated as headers.
func (s *upstream) paramHeaders(c *vault.Call) (out []paramHeader) {
	s.mu.Lock()
	bindings := s.bindings[c.Target.Name]
	s.mu.Unlock()
	for i := range bindings {
		if v, ok, bad := bindings[i].value(c.Args.Root()); ok && !bad {
			out = append(out, paramHeader{bindings[i].header, v})
		}
	}
	return out
}

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
		s.u.cfg.Log.Debug("mcp upstream listening stream ended", "server", s.srv.Name, "cause", err)
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

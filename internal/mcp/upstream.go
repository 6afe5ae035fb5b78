package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/pilox/vault"
)

// UpstreamsConfig says how calls reach servers.
type UpstreamsConfig struct {
	// Permit decides a request of a server that a result carries to the client
	// (input_required): n counts within the call. Nil refuses all.
	Permit func(ctx context.Context, f *vault.Facts, n int, method string, params json.RawMessage) error
	// Changed is told that a list of a server may differ: kind is tool, prompt or
	// resource. It must not block. Nil tells nobody.
	Changed func(server vault.ServerID, kind vault.Kind)
	// MaxResult bounds one message of a server in bytes. Zero means 8 MiB.
	MaxResult int
	// MaxPeers bounds the connections with a session to one server. Zero means 64.
	MaxPeers int
	// Name and Version introduce the gateway to servers. Empty means vault and 1.
	Name, Version string
	// Log is for what goes wrong. Nil discards.
	Log *slog.Logger
	// Now is the clock. Nil means time.Now.
	Now func() time.Time
}

// Upstreams has the effect of calls of kind tool, resource and prompt: it sends
// them to the servers they are for. It is safe for concurrent use. Start with
// [NewUpstreams], [Upstreams.Add] and [Upstreams.Run]; end with [Upstreams.Close].
type Upstreams struct {
	cfg  UpstreamsConfig
	info serverInfo

	mu      sync.RWMutex // guards what follows
	servers map[vault.ServerID]*upstream
	updated func(vault.Target)
}

// NewUpstreams returns an Upstreams without servers.
func NewUpstreams(cfg UpstreamsConfig) *Upstreams {
	if cfg.MaxResult == 0 {
		cfg.MaxResult = DefaultMaxResult
	}
	if cfg.MaxPeers == 0 {
		cfg.MaxPeers = 64
	}
	if cfg.Name == "" {
		cfg.Name = "vault"
	}
	if cfg.Version == "" {
		cfg.Version = "1"
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Upstreams{cfg: cfg, servers: make(map[vault.ServerID]*upstream)}
}

// Add makes a server callable. One with the same id is an error.
func (u *Upstreams) Add(s Server) error {
	if s.ID.IsZero() || s.Dial.dial == nil {
		return fmt.Errorf("server %q: id and dialer must be set", s.Name)
	}
	if s.Timeout == 0 {
		s.Timeout = time.Minute
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if _, ok := u.servers[s.ID]; ok {
		return fmt.Errorf("server %q: id is taken", s.Name)
	}
	u.servers[s.ID] = newUpstream(u, s)
	return nil
}

// Remove ends the connections to a server and waits for them. Calls in flight fail.
func (u *Upstreams) Remove(id vault.ServerID) {
	u.mu.Lock()
	s := u.servers[id]
	delete(u.servers, id)
	u.mu.Unlock()
	if s != nil {
		s.close()
	}
}

// EndTask ends the connections, and with them the processes, that belong to one
// task alone. Calls in flight go on; the connection ends after them.
func (u *Upstreams) EndTask(tenant vault.Tenant, id vault.TaskID) {
	u.mu.RLock()
	defer u.mu.RUnlock()
	for _, s := range u.servers {
		s.endTask(tenant, id)
	}
}

// Close removes all servers.
func (u *Upstreams) Close() {
	u.mu.Lock()
	all := u.servers
	u.servers = make(map[vault.ServerID]*upstream)
	u.mu.Unlock()
	for _, s := range all {
		s.close()
	}
}

// Server returns the registration of a server that was added.
func (u *Upstreams) Server(id vault.ServerID) (Server, bool) {
	s := u.find(id)
	if s == nil {
		return Server{}, false
	}
	return s.srv, true
}

func (u *Upstreams) find(id vault.ServerID) *upstream {
	u.mu.RLock()
	defer u.mu.RUnlock()
	return u.servers[id]
}

func (u *Upstreams) onUpdated(fn func(vault.Target)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.updated = fn
}

// endSession ends the connections that were opened for one client's session.
func (u *Upstreams) endSession(id string) {
	u.mu.RLock()
	all := make([]*upstream, 0, len(u.servers))
	for _, s := range u.servers {
		all = append(all, s)
	}
	u.mu.RUnlock()
	for _, s := range all {
		s.endSession(id)
	}
}

// unwatch ends the subscription to a resource.
func (u *Upstreams) unwatch(target vault.Target) {
	if s := u.find(target.Server); s != nil {
		s.unwatch(target.Name)
	}
}

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

// stripReserved removes the protocol's own keys from _meta of an object, and progress tokens:
// they mean something on one connection only.
func stripReserved(object json.RawMessage) json.RawMessage {
	meta := member(object, "_meta")
	if meta == nil || meta[0] != '{' {
		return object
	}
	kept := []byte{'{'}
	err := members(meta, func(key, val []byte) error {
		if len(key) >= len(reservedMeta) && string(key[:len(reservedMeta)]) == reservedMeta || string(key) == "progressToken" {
			return nil
		}
		if len(kept) > 1 {
			kept = append(kept, ',')
		}
		kept = append(appendQuoted(kept, string(key)), ':')
		kept = append(kept, val...)
		return nil
	})
	if err != nil {
		return object
	}
	return replaceMember(object, "_meta", append(kept, '}'))
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

// toModern adds what results have in the era without sessions.
func toModern(raw json.RawMessage, typed bool, method string) json.RawMessage {
	if typed {
		return raw
	}
	b := append([]byte(nil), `{"resultType":"complete"`...)
	if method == methodResourcesRead {
		// A server of the other era may send them already; the SDK does over stdio.
		if member(raw, "ttlMs") == nil {
			b = append(b, `,"ttlMs":0`...)
		}
		if member(raw, "cacheScope") == nil {
			b = append(b, `,"cacheScope":"private"`...)
		}
	}
	if len(raw) > len("{}") {
		b = append(b, ',')
	}
	return append(b, raw[1:]...)
}

// toLegacy removes what results of the other era do not have.
func toLegacy(raw json.RawMessage) json.RawMessage {
	b := []byte{'{'}
	_ = members(stripReserved(raw), func(key, val []byte) error { // scanned before
		switch string(key) {
		case "resultType", "ttlMs", "cacheScope":
			return nil
		case "_meta":
			if string(val) == "{}" {
				return nil
			}
		}
		if len(b) > 1 {
			b = append(b, ',')
		}
		b = append(appendQuoted(b, string(key)), ':')
		b = append(b, val...)
		return nil
	})
	return append(b, '}')
}

// outgoing makes the request of a call: exactly what was decided and nothing else.
func outgoing(c *vault.Call) (method string, params []byte, meta requestMeta, err error) {
	root := c.Params.Root()
	method, _ = root.Get("method").Str()
	if method == "" {
		switch c.Kind {
		case vault.KindTool:
			method = methodToolsCall
		case vault.KindResource:
			method = methodResourcesRead
		case vault.KindPrompt:
			method = methodPromptsGet
		default: // no method of MCP; refused below
		}
	}
	meta.name = c.Target.Name
	args := c.Args.String()
	if args == "" {
		args = "{}"
	}
	b := make([]byte, 0, len(args)+len(c.Params.String())+len(c.Target.Name)+64)
	switch {
	case method == methodComplete:
		b, err = appendCompletion(b, c)
		return method, b, meta, err
	case method == methodToolsCall && c.Kind == vault.KindTool, method == methodPromptsGet && c.Kind == vault.KindPrompt:
		b = append(append(b, `{"arguments":`...), args...)
		b = vault.AppendQuoted(append(b, `,"name":`...), c.Target.Name)
	case (method == methodResourcesRead || method == methodSubscribe) && c.Kind == vault.KindResource:
		b = vault.AppendQuoted(append(b, `{"uri":`...), c.Target.Name)
	default:
		return "", nil, meta, fmt.Errorf("method %q does not go with kind %q", method, c.Kind)
	}
	for key, v := range root.All() {
		switch key {
		case "method":
			continue
		case "_meta":
			meta.extra = json.RawMessage(v.Raw())
			continue
		}
		b = append(vault.AppendQuoted(append(b, ','), key), ':')
		b = append(b, v.Raw()...)
	}
	return method, append(b, '}'), meta, nil
}

// appendCompletion is the inverse of makeCompletion.
func appendCompletion(b []byte, c *vault.Call) ([]byte, error) {
	name, ok := c.Params.Root().Get("argument").Str()
	value := c.Args.Root().Get(name)
	if !ok || value.Kind() != vault.String {
		return nil, errors.New("completion without its argument")
	}
	b = vault.AppendQuoted(append(b, `{"argument":{"name":`...), name)
	b = append(append(b, `,"value":`...), value.Raw()...)
	b = append(b, `},"context":{"arguments":{`...)
	for key, v := range c.Args.Root().All() {
		if key == name {
			continue
		}
		if b[len(b)-1] != '{' {
			b = append(b, ',')
		}
		b = append(vault.AppendQuoted(b, key), ':')
		b = append(b, v.Raw()...)
	}
	if c.Kind == vault.KindPrompt {
		b = append(b, `}},"ref":{"type":"ref/prompt","name":`...)
	} else {
		b = append(b, `}},"ref":{"type":"ref/resource","uri":`...)
	}
	return append(vault.AppendQuoted(b, c.Target.Name), '}', '}'), nil
}

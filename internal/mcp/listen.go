package mcp

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"

	"github.com/pilox/vault"
)

// A listener is a client's stream for what happens outside of any call. What goes
// over it is made here: a fixed notification, or the URI that the client itself
// subscribed to. No byte of an upstream is in it.
type listener struct {
	key    string
	queue  chan []byte // bounded; when the client does not read, news are lost and a later one comes
	done   chan struct{}
	once   sync.Once
	listen json.RawMessage // id of subscriptions/listen, nil in the era with sessions

	// What it wants; fixed before the listener is added to a table.
	tools, prompts, resources bool

	// uris are its subscriptions, guarded by the table's lock.
	uris map[vault.Target]bool
}

// maxQueued bounds what waits for a client that does not read, maxURIs what one
// client subscribes to.
const (
	maxQueued = 64
	maxURIs   = 64
)

func newListener(key string) *listener {
	return &listener{key: key, queue: make(chan []byte, maxQueued), done: make(chan struct{}), uris: make(map[vault.Target]bool)}
}

func (l *listener) everything() { l.tools, l.prompts, l.resources = true, true, true }

func (l *listener) close() { l.once.Do(func() { close(l.done) }) }

// push queues a notification, or drops it when the queue is full.
func (l *listener) push(method string, uri string) {
	b := []byte{'{'}
	if uri != "" {
		b = vault.AppendQuoted(append(b, `"uri":`...), uri)
	}
	if l.listen != nil {
		if len(b) > 1 {
			b = append(b, ',')
		}
		b = append(vault.AppendQuoted(append(b, `"_meta":{`...), metaListenID), ':')
		b = append(append(b, l.listen...), '}')
	}
	select {
	case l.queue <- appendRequest(nil, "", method, append(b, '}')):
	default:
	}
}

// A listenerTable holds the open listeners.
type listenerTable struct {
	mu  sync.Mutex // guards all, and the uris of each
	all map[*listener]bool
}

func newListenerTable() *listenerTable { return &listenerTable{all: make(map[*listener]bool)} }

func (t *listenerTable) add(l *listener) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all[l] = true
}

// count returns how many listeners the caller has.
func (t *listenerTable) count(key string) (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for l := range t.all {
		if l.key == key {
			n++
		}
	}
	return n
}

func (t *listenerTable) drop(l *listener) {
	if l == nil {
		return
	}
	t.mu.Lock()
	delete(t.all, l)
	t.mu.Unlock()
	l.close()
}

func (t *listenerTable) closeAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for l := range t.all {
		l.close()
	}
	clear(t.all)
}

func (t *listenerTable) subscribe(l *listener, target vault.Target) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(l.uris) >= maxURIs {
		return false
	}
	l.uris[target] = true
	return true
}

func (t *listenerTable) unsubscribe(l *listener, target vault.Target) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(l.uris, target)
}

// watched reports whether anybody still subscribes to target.
func (t *listenerTable) watched(target vault.Target) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for l := range t.all {
		if l.uris[target] {
			return true
		}
	}
	return false
}

// each calls fn for every listener.
func (t *listenerTable) each(fn func(*listener)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for l := range t.all {
		fn(l)
	}
}

// Changed tells clients that a list of their view may differ: kind is tool, prompt
// or resource. keep says which callers, by [Caller.Key]; nil means all.
func (f *Front) Changed(kind vault.Kind, keep func(key string) bool) {
	f.listeners.each(func(l *listener) {
		if keep != nil && !keep(l.key) {
			return
		}
		switch {
		case kind == vault.KindTool && l.tools:
			l.push(noteToolsChanged, "")
		case kind == vault.KindPrompt && l.prompts:
			l.push(notePromptsChanged, "")
		case kind == vault.KindResource && l.resources:
			l.push(noteResourcesChanged, "")
		}
	})
}

// resourceUpdated tells the subscribers of a resource.
func (f *Front) resourceUpdated(target vault.Target) {
	f.listeners.each(func(l *listener) {
		if l.uris[target] {
			l.push(noteResourceUpdated, target.Name)
		}
	})
}

// unwatched ends an upstream subscription that nobody needs any more.
func (f *Front) unwatched(target vault.Target) {
	if f.cfg.Upstreams != nil && !f.listeners.watched(target) {
		f.cfg.Upstreams.unwatch(target)
	}
}

// serveListener writes what a listener queues until client, session or authority go
// away.
func (f *Front) serveListener(w http.ResponseWriter, r *http.Request, l *listener, over <-chan struct{}) {
	startSSE(w)
	out := &reply{w: w, sse: true}
	out.flush()
	f.pump(r.Context(), l, out, over)
}

func (r *reply) flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = http.NewResponseController(r.w).Flush() // not every writer can
}

// gone reports whether the connection is lost.
func (r *reply) gone() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.w == nil
}

// listen serves subscriptions/listen of the era without sessions. Each resource is
// a call of its own.
func (f *Front) listen(q *request) {
	want := q.params.Get("notifications")
	if want.Kind() != vault.Object {
		f.fail(q, badRequest(codeInvalidParams, "notifications is missing"))
		return
	}
	if f.listeners.count(q.caller.Key) >= f.cfg.MaxSessions {
		d := vault.NewDenial(vault.CodeBusy, "", nil)
		writeJSON(q.w, http.StatusOK, appendErrorObject(nil, q.id, denialObject(d)))
		return
	}
	l := newListener(q.caller.Key)
	l.listen = q.id
	l.tools, _ = want.Get("toolsListChanged").Bool()
	l.prompts, _ = want.Get("promptsListChanged").Bool()
	l.resources, _ = want.Get("resourcesListChanged").Bool()
	defer func() {
		f.listeners.drop(l)
		for target := range l.uris {
			f.unwatched(target)
		}
	}()
	if d := f.watch(q, l, want.Get("resourceSubscriptions")); d != nil {
		writeJSON(q.w, http.StatusOK, appendErrorObject(nil, q.id, denialObject(d)))
		return
	}
	f.listeners.add(l)
	startSSE(q.w)
	out := &reply{w: q.w, sse: true}
	if out.send(appendRequest(nil, "", noteSubscriptionsListen, l.acknowledged())) != nil {
		return
	}
	if l.tools || l.prompts || l.resources || len(l.uris) > 0 {
		f.pump(q.r.Context(), l, out, q.caller.Over)
	}
	b := append(vault.AppendQuoted([]byte(`{"resultType":"complete","_meta":{`), metaListenID), ':')
	b = append(append(b, q.id...), '}', '}')
	_ = out.send(appendResult(nil, q.id, b)) // the client may be gone, which is how this mostly ends
}

// pump writes what is queued until somebody ends it.
func (f *Front) pump(ctx context.Context, l *listener, out *reply, over <-chan struct{}) {
	for {
		select {
		case msg := <-l.queue:
			if out.send(msg) != nil || out.gone() {
				return
			}
		case <-l.done:
			return
		case <-over:
			return
		case <-ctx.Done():
			return
		case <-f.ctx.Done():
			return
		}
	}
}

// watch subscribes to the resources a listener names, each as a call.
func (f *Front) watch(q *request, l *listener, uris vault.Value) *vault.Denial {
	if uris.Len() == 0 || f.cfg.Upstreams == nil {
		return nil
	}
	if uris.Len() > maxURIs {
		return vault.NewDenial(vault.CodeBusy, "", nil)
	}
	view := q.caller.View
	if view == nil {
		view = NewView(nil)
	}
	for _, v := range uris.All() {
		uri, _ := v.Str()
		params, err := vault.ParseArgs([]byte(`{"method":"` + methodSubscribe + `"}`))
		if err != nil {
			return vault.DenialOf(err)
		}
		c := &vault.Call{
			ID: vault.NewCallID(), Generated: true, Edge: "mcp", At: f.cfg.Now(),
			Kind: vault.KindResource, Args: emptyObject, Params: params, Credential: q.caller.Credential,
		}
		c.Target, c.Server = view.resource(uri)
		res, err := f.cfg.Gateway.Handle(q.with(q.r.Context()), c, newReply(q))
		if err != nil {
			return vault.DenialOf(err)
		}
		if !res.Refused && !res.Withheld {
			f.listeners.subscribe(l, c.Target)
		}
	}
	return nil
}

// acknowledged is the params of the first message of a listening stream: what is really sent.
func (l *listener) acknowledged() []byte {
	b := []byte(`{"notifications":{`)
	add := func(name string) {
		if b[len(b)-1] != '{' {
			b = append(b, ',')
		}
		b = append(vault.AppendQuoted(b, name), ':')
	}
	for _, w := range []struct {
		name string
		on   bool
	}{{"toolsListChanged", l.tools}, {"promptsListChanged", l.prompts}, {"resourcesListChanged", l.resources}} {
		if w.on {
			add(w.name)
			b = append(b, "true"...)
		}
	}
	if len(l.uris) > 0 {
		add("resourceSubscriptions")
		b = append(b, '[')
		for target := range l.uris {
			if b[len(b)-1] != '[' {
				b = append(b, ',')
			}
			b = vault.AppendQuoted(b, target.Name)
		}
		b = append(b, ']')
	}
	b = append(vault.AppendQuoted(append(b, `},"_meta":{`...), metaListenID), ':')
	return append(append(b, l.listen...), '}', '}')
}

package mcp

import (
	"context"
	"encoding/json"
	"errors"
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
	up.ctx, up.stop = context.WithCancel(context.Background()) //nolint:forbidigo // the life of the server here, which close ends
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
		if d, ok := errors.AsType[*vault.Denial](sl.err); ok && d.Executed == vault.ExecutedNo {
			return nil, nil, d // such as a host that cannot isolate as demanded
		}
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
		own := key.session != "" || key.inst.Task != "" // nobody else shares it
		if sl.inUse == 0 && own && (oldest == nil || sl.used.Before(oldest.used)) {
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

// endTask closes the connections that belong to one task alone.
func (s *upstream) endTask(tenant vault.Tenant, id vault.TaskID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, sl := range s.peers {
		if key.inst.Tenant == tenant && key.inst.Task == id && id != "" {
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

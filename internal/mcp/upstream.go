package mcp

import (
	"context"
	"encoding/json"
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

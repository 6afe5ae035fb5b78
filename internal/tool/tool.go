// Package tool is the catalogue of registered servers: what was installed, what
// it may reach, which definitions it listed and which of them an agent is served.
//
// It owns registrations, installed trees and their digests, pinned definitions,
// drift and quarantine, and the schemas that arguments and results are held
// against. It starts no server, talks to none and decides nothing about a task;
// the daemon lists a server and hands the listing in. Start with [Open].
//
// Promises. A server is known by the digest of its registration, so another
// tree, interpreter, command line, grant or URL is another server. The agent is
// served the pinned copy of a definition and never what a server says today. A
// changed schema, annotation or name quarantines that tool; a new tool is
// invisible until a person accepts exactly the bytes that were offered. A tree
// that no longer has its digest does not start. What a server says about itself
// (hints, schemas, descriptions) never makes a rule looser. Code is pinned only
// for trees that were installed here: for a URL server the definitions are
// pinned and the code behind them is not.
//
// The record of one server is one JSON document, version 1, in a [Store].
package tool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pilox/vault"
)

// Errors to branch on.
var (
	ErrUnknownServer = errors.New("no such server")
	ErrExists        = errors.New("server exists")
	ErrPinned        = errors.New("definitions are pinned already")
	ErrNotOffered    = errors.New("no definition with this digest is offered")
	ErrTreeChanged   = errors.New("installed tree differs from its pinned digest")
)

// A Store keeps one document for each server. It may be used by several
// goroutines at once; the catalogue calls Put and Delete one at a time.
type Store interface {
	// Get returns the document of a server, false if there is none.
	Get(ctx context.Context, name string) ([]byte, bool, error)
	// Put replaces the document. It is durable when Put returns.
	Put(ctx context.Context, name string, doc []byte) error
	// List returns the names of all servers, in any order.
	List(ctx context.Context) ([]string, error)
	// Delete removes the document; removing none is no error.
	Delete(ctx context.Context, name string) error
}

// Config is what a catalogue needs.
type Config struct {
	Store Store            // where records are kept; required
	Log   *slog.Logger     // nil discards
	Now   func() time.Time // nil means time.Now; for the times in records
}

// maxServers bounds the catalogue: every listing is checked for the names of all
// other servers, and a host runs a few dozen.
const maxServers = 1024

// A Catalogue knows the registered servers. It is safe for concurrent use; reads
// take no lock.
type Catalogue struct {
	cfg   Config
	trees Verifier

	mu   sync.Mutex               // serialises changes: record first, then snapshot
	snap atomic.Pointer[snapshot] // what reads see; never changed in place
}

// A snapshot is the catalogue at one moment. It is immutable.
type snapshot struct {
	byName map[string]*server
	byID   map[vault.ServerID]*server
}

// A server is one record in the form that calls need. It is immutable; a change
// makes a new one.
type server struct {
	rec   record
	id    vault.ServerID
	items map[itemKey]*item

	// Either of these makes everything of the server uncallable. They live as long
	// as the process: both are looked at again when a server is started.
	broken   error // the tree does not verify
	unlisted error // the last listing was not acceptable
}

// Open loads every record of cfg.Store. A record that does not load is an error:
// a catalogue that forgot a server would forget its quarantine too.
func Open(ctx context.Context, cfg Config) (*Catalogue, error) {
	if cfg.Store == nil {
		return nil, errors.New("open catalogue: no store")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	c := &Catalogue{cfg: cfg}
	names, err := cfg.Store.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list servers: %w", err)
	}
	if len(names) > maxServers {
		return nil, fmt.Errorf("open catalogue: %d servers, at most %d", len(names), maxServers)
	}
	next := &snapshot{byName: map[string]*server{}, byID: map[vault.ServerID]*server{}}
	for _, name := range names {
		doc, ok, err := cfg.Store.Get(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("read server %s: %w", name, err)
		}
		if !ok {
			continue // deleted since List
		}
		s, err := loadServer(name, doc)
		if err != nil {
			return nil, fmt.Errorf("load server %s: %w", name, err)
		}
		if other, ok := next.byID[s.id]; ok {
			return nil, fmt.Errorf("load server %s: same registration as %s", name, other.rec.Name)
		}
		next.byName[name], next.byID[s.id] = s, s
	}
	c.snap.Store(next)
	return c, nil
}

// Register adds a server without any definition: nothing of it is visible or
// callable before [Catalogue.Pin]. tree is what [Install] returned, the zero Tree
// for a URL server.
func (c *Catalogue) Register(ctx context.Context, name string, reg Registration, tree Tree) (Server, error) {
	if err := CheckName(name); err != nil {
		return Server{}, err
	}
	if err := reg.Check(); err != nil {
		return Server{}, fmt.Errorf("register %s: %w", name, err)
	}
	if err := tree.matches(reg); err != nil {
		return Server{}, fmt.Errorf("register %s: %w", name, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.snap.Load()
	if _, ok := old.byName[name]; ok {
		return Server{}, fmt.Errorf("register %s: %w", name, ErrExists)
	}
	if len(old.byName) >= maxServers {
		return Server{}, fmt.Errorf("register %s: %d servers already", name, maxServers)
	}
	s, err := newServer(record{
		Version: recordVersion, Name: name, Registration: reg, Tree: tree, Added: c.cfg.Now().UTC(),
	})
	if err != nil {
		return Server{}, fmt.Errorf("register %s: %w", name, err)
	}
	if other, ok := old.byID[s.id]; ok {
		// Two names for one target would let a capability for one reach the other.
		return Server{}, fmt.Errorf("register %s: same registration as %s: %w", name, other.rec.Name, ErrExists)
	}
	if err := c.replace(ctx, s); err != nil {
		return Server{}, err
	}
	return s.describe(), nil
}

// Remove forgets a server and its definitions. The tree on disk stays; see
// [RemoveTree].
func (c *Catalogue) Remove(ctx context.Context, name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.snap.Load()
	s, ok := old.byName[name]
	if !ok {
		return fmt.Errorf("remove %s: %w", name, ErrUnknownServer)
	}
	if err := c.cfg.Store.Delete(ctx, name); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	c.trees.forget(s.rec.Tree.Dir)
	next := old.clone()
	delete(next.byName, name)
	delete(next.byID, s.id)
	c.snap.Store(next)
	return nil
}

// replace makes s durable and then visible. The caller holds c.mu.
func (c *Catalogue) replace(ctx context.Context, s *server) error {
	doc, err := s.rec.encode()
	if err != nil {
		return fmt.Errorf("encode server %s: %w", s.rec.Name, err)
	}
	if err := c.cfg.Store.Put(ctx, s.rec.Name, doc); err != nil {
		return fmt.Errorf("write server %s: %w", s.rec.Name, err)
	}
	c.show(s)
	return nil
}

// show makes s visible. The caller holds c.mu.
func (c *Catalogue) show(s *server) {
	next := c.snap.Load().clone()
	next.byName[s.rec.Name], next.byID[s.id] = s, s
	c.snap.Store(next)
}

func (s *snapshot) clone() *snapshot {
	return &snapshot{byName: maps.Clone(s.byName), byID: maps.Clone(s.byID)}
}

// names returns the names of all servers but one, sorted.
func (s *snapshot) names(but string) []string {
	var names []string
	for name := range s.byName {
		if name != but {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// A Server is what is known of one server, for people and for those who start it.
type Server struct {
	Name         string
	ID           vault.ServerID
	Registration Registration
	Tree         Tree // zero for a URL server
	Added        time.Time
	Pinned       bool  // a first listing was pinned
	Broken       error // why nothing of it is callable: tree or listing; nil if it is
	Items        []Item
}

// Servers returns all servers, sorted by name.
func (c *Catalogue) Servers() []Server {
	snap := c.snap.Load()
	out := make([]Server, 0, len(snap.byName))
	for _, name := range slices.Sorted(maps.Keys(snap.byName)) {
		out = append(out, snap.byName[name].describe())
	}
	return out
}

// Server returns the server with a registered name.
func (c *Catalogue) Server(name string) (Server, error) {
	s, ok := c.snap.Load().byName[name]
	if !ok {
		return Server{}, fmt.Errorf("server %s: %w", name, ErrUnknownServer)
	}
	return s.describe(), nil
}

// ServerByID returns the server with an id.
func (c *Catalogue) ServerByID(id vault.ServerID) (Server, error) {
	s, ok := c.snap.Load().byID[id]
	if !ok {
		return Server{}, fmt.Errorf("server %s: %w", id, ErrUnknownServer)
	}
	return s.describe(), nil
}

func (s *server) describe() Server {
	out := Server{
		Name: s.rec.Name, ID: s.id, Registration: s.rec.Registration, Tree: s.rec.Tree,
		Added: s.rec.Added, Pinned: s.rec.Pinned, Broken: errors.Join(s.broken, s.unlisted),
	}
	for _, key := range slices.SortedFunc(maps.Keys(s.items), itemKey.compare) {
		out.Items = append(out.Items, s.items[key].Item)
	}
	return out
}

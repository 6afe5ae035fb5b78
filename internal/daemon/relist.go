package daemon

import (
	"sync"
	"time"

	"github.com/pilox/vault"
)

// relists remembers which servers said that a list of theirs changed, so that a
// server that says it all the time is listed once in a while and not all the time.
type relists struct {
	mu sync.Mutex
	// A server is in it while a goroutine lists it; the kinds are those that came
	// since that goroutine last looked.
	said map[vault.ServerID]map[vault.Kind]bool
}

// relistGap is the least time between two listings that a server can cause. Each
// costs it a round trip, and us a record if something differs.
const relistGap = 500 * time.Millisecond

// mark notes a change and reports whether the caller must start listing.
func (r *relists) mark(id vault.ServerID, kind vault.Kind) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	kinds, running := r.said[id]
	if !running {
		kinds = make(map[vault.Kind]bool)
		if r.said == nil {
			r.said = make(map[vault.ServerID]map[vault.Kind]bool)
		}
		r.said[id] = kinds
	}
	kinds[kind] = true
	return !running
}

// take returns what was marked since the last time. Nothing means that the caller
// is done with this server.
func (r *relists) take(id vault.ServerID) map[vault.Kind]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	kinds := r.said[id]
	if len(kinds) == 0 {
		delete(r.said, id)
		return nil
	}
	r.said[id] = make(map[vault.Kind]bool)
	return kinds
}

// relist asks a server again for what it offers, in the background, because it
// says that its list of kind changed. Clients are told afterwards, also if nothing
// that they see differs: a server's word is passed on, late enough that whoever
// lists then sees what is true.
func (d *Daemon) relist(id vault.ServerID, kind vault.Kind) {
	if d.ctx.Err() != nil || !d.relists.mark(id, kind) {
		return
	}
	d.work.Go(func() {
		for kinds := d.relists.take(id); kinds != nil; kinds = d.relists.take(id) {
			s, err := d.catalogue.ServerByID(id)
			if err != nil || !s.Pinned {
				continue // it is being registered or was removed
			}
			if err := d.observe(d.ctx, s); err != nil {
				if d.ctx.Err() == nil {
					d.log.Warn("server not listed", "server", s.Name, "err", err)
				}
				continue
			}
			for kind := range kinds {
				d.front.Changed(kind, nil)
			}
			select {
			case <-d.ctx.Done():
			case <-time.After(relistGap):
			}
		}
	})
}

// viewsChanged forgets every view and tells clients to list again.
func (d *Daemon) viewsChanged() {
	d.views.changed()
	for _, kind := range []vault.Kind{vault.KindTool, vault.KindPrompt, vault.KindResource} {
		d.front.Changed(kind, nil)
	}
}

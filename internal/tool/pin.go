package tool

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/pilox/vault"
)

// What a [Change] is about.
const (
	ChangeText      = "text"      // title or description differ; the pinned copy stays
	ChangeSchema    = "schema"    // inputSchema or outputSchema differ
	ChangeHints     = "hints"     // annotations or another pinned member differ
	ChangeUnusable  = "unusable"  // what is offered now cannot be pinned at all
	ChangeNew       = "new"       // not seen before
	ChangeRenamed   = "renamed"   // new, and otherwise equal to one that is gone
	ChangeRemoved   = "removed"   // no longer listed
	ChangeReturned  = "returned"  // listed again as it was pinned
	ChangeUnlisted  = "unlisted"  // the listing itself is not acceptable; the server is
	ChangeUnchanged = "unchanged" // the listing is acceptable again
)

// A Change is one difference between what is pinned and what a server lists, told
// once. It is what the daemon records as an event of class server.
type Change struct {
	Server      string
	Target      vault.Target
	Kind        vault.Kind
	What        string
	Members     []string     // members of the definition that differ
	Pinned      vault.Digest // zero if it never was
	Offered     vault.Digest // zero if nothing is
	Quarantined bool         // calls are refused from now on until somebody accepts
	Note        string       // for people; may quote the server
	Findings    []Finding
}

// Pin takes the first listing of a server as what it is: trust on first use, and
// an explicit act of the operator. What cannot be pinned is refused and reported;
// findings do not stop anything. A second Pin fails with [ErrPinned].
func (c *Catalogue) Pin(ctx context.Context, name string, listing Listing) ([]Finding, error) {
	offers, findings, err := listing.offers()
	if err != nil {
		return nil, fmt.Errorf("pin %s: %w", name, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	snap := c.snap.Load()
	s, ok := snap.byName[name]
	if !ok {
		return nil, fmt.Errorf("pin %s: %w", name, ErrUnknownServer)
	}
	if s.rec.Pinned {
		return nil, fmt.Errorf("pin %s: %w", name, ErrPinned)
	}
	others := snap.names(name)
	var items []Item
	for _, o := range offers {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		it := newItem(name, o, others)
		if it.State != StateRefused {
			it.State = StatePinned
			it.Pinned, it.Definition = it.Offer, it.Offered
			it.Offer, it.Offered = "", vault.Digest{}
		}
		items = append(items, it)
	}
	next, err := s.with(sortItems(items))
	if err != nil {
		return nil, fmt.Errorf("pin %s: %w", name, err)
	}
	next.rec.Pinned = true
	if err := c.replace(ctx, next); err != nil {
		return nil, err
	}
	for i := range findings {
		findings[i].Server = name
	}
	return sortFindings(append(findings, next.findings()...)), nil
}

// newItem is the item for an offer nobody has seen before.
func newItem(server string, o offer, others []string) Item {
	it := Item{
		Kind: o.key.kind, Template: o.key.template, Name: o.key.name, State: StateNew,
		Offered: o.digest, Offer: o.def.String(),
	}
	if o.err != nil {
		it.State, it.Why = StateRefused, shorten(o.err.Error())
		return it
	}
	it.Findings = examine(server, o.key, o.def.Root(), others)
	return it
}

// findings returns what is to be said about all items.
func (s *server) findings() []Finding {
	var out []Finding
	for _, it := range s.items {
		out = append(out, it.Findings...)
		if it.Why != "" {
			out = append(out, Finding{s.rec.Name, it.Kind, it.Name, "", FindUnusable, it.Why})
		}
		if it.in != nil {
			out = append(out, it.in.notes(s.rec.Name, it.key(), "/inputSchema")...)
		}
	}
	for name := range s.rec.Registration.Tools {
		if _, ok := s.items[itemKey{kind: vault.KindTool, name: name}]; !ok {
			out = append(out, Finding{s.rec.Name, vault.KindTool, name, "", FindNoTool, ""})
		}
	}
	return out
}

// Observe holds a later listing against what is pinned and returns what is new
// since the last one. A listing that is not acceptable (too long, ambiguous) makes
// the whole server uncallable until an acceptable one comes; so does none of the
// other differences, which concern one item each.
func (c *Catalogue) Observe(ctx context.Context, name string, listing Listing) ([]Change, error) {
	offers, _, bad := listing.offers()
	c.mu.Lock()
	defer c.mu.Unlock()
	snap := c.snap.Load()
	s, ok := snap.byName[name]
	if !ok {
		return nil, fmt.Errorf("observe %s: %w", name, ErrUnknownServer)
	}
	if !s.rec.Pinned {
		return nil, fmt.Errorf("observe %s: nothing is pinned yet", name)
	}
	var changes []Change
	if (bad != nil) != (s.unlisted != nil) {
		ch := Change{Server: name, Target: vault.Target{Server: s.id}, What: ChangeUnchanged}
		if bad != nil {
			ch.What, ch.Quarantined, ch.Note = ChangeUnlisted, true, shorten(bad.Error())
		}
		changes = append(changes, ch)
	}
	if bad != nil {
		next := *s
		next.unlisted = bad
		c.show(&next)
		return changes, nil
	}
	o := observer{server: s, others: snap.names(name), offered: map[itemKey]bool{}}
	for _, offer := range offers {
		if err := ctx.Err(); err != nil {
			return nil, err // a hostile listing takes its time to examine
		}
		o.offer(offer)
	}
	o.gone()
	o.renamed()
	if len(o.changes) == 0 && len(changes) == 0 {
		return nil, nil
	}
	next, err := s.with(sortItems(o.items))
	if err != nil {
		return nil, fmt.Errorf("observe %s: %w", name, err)
	}
	next.unlisted = nil
	if err := c.replace(ctx, next); err != nil {
		return nil, err
	}
	return append(changes, o.changes...), nil
}

// An observer goes through a listing. It does no I/O and reads no clock.
type observer struct {
	server  *server
	others  []string
	offered map[itemKey]bool
	items   []Item
	changes []Change
}

func (o *observer) change(it *Item, what string) *Change {
	o.changes = append(o.changes, Change{
		Server: o.server.rec.Name, Target: vault.Target{Server: o.server.id, Name: it.Name}, Kind: it.Kind,
		What: what, Pinned: it.Definition, Offered: it.Offered, Note: it.Why, Findings: it.Findings,
	})
	return &o.changes[len(o.changes)-1]
}

func (o *observer) offer(now offer) {
	o.offered[now.key] = true
	old, ok := o.server.items[now.key]
	if !ok || old.Definition.IsZero() {
		if ok && old.Offered == now.digest {
			o.items = append(o.items, old.Item) // told before, with what compiling found
			return
		}
		it := newItem(o.server.rec.Name, now, o.others)
		o.change(&it, ChangeNew)
		o.items = append(o.items, it)
		return
	}
	it := old.Item
	switch {
	case now.digest == it.Definition:
		// A quarantine stays: what changed once and back was somebody's choice.
		if it.Gone || !it.Offered.IsZero() && it.Offered != now.digest {
			it.Gone, it.Offered, it.Offer = false, vault.Digest{}, ""
			if it.State == StateQuarantined {
				it.Offered = now.digest
			}
			o.change(&it, ChangeReturned).Quarantined = it.State == StateQuarantined
		}
	case now.digest == it.Offered && !it.Gone:
		// Told before.
	default:
		o.drift(&it, now)
	}
	o.items = append(o.items, it)
}

func (o *observer) drift(it *Item, now offer) {
	seen := newItem(o.server.rec.Name, now, o.others)
	it.Gone, it.Offered, it.Offer, it.Findings = false, seen.Offered, seen.Offer, seen.Findings
	if now.err != nil {
		it.State, it.Why = StateQuarantined, seen.Why
		o.change(it, ChangeUnusable).Quarantined = true
		return
	}
	pinned, err := vault.ParseValue([]byte(it.Pinned))
	if err != nil { // it was parsed when it was loaded
		it.State, it.Why = StateQuarantined, shorten(err.Error())
		o.change(it, ChangeUnusable).Quarantined = true
		return
	}
	d := compareDefinitions(pinned.Root(), now.def.Root())
	what := ChangeHints
	switch {
	case d.text:
		what = ChangeText
	case slices.ContainsFunc(d.members, func(m string) bool { return strings.HasSuffix(m, "Schema") }):
		what = ChangeSchema
	}
	if !d.text {
		it.State, it.Why = StateQuarantined, "differs in "+strings.Join(d.members, ", ")
	}
	ch := o.change(it, what)
	ch.Members, ch.Quarantined = d.members, it.State == StateQuarantined
}

// gone keeps what is pinned and no longer listed, and drops what never was.
func (o *observer) gone() {
	for key, old := range o.server.items {
		if o.offered[key] {
			continue
		}
		it := old.Item
		if it.Definition.IsZero() {
			o.change(&it, ChangeRemoved)
			continue
		}
		if !it.Gone {
			it.Gone = true
			o.change(&it, ChangeRemoved)
		}
		o.items = append(o.items, it)
	}
}

// renamed marks new items that equal one that is gone but for the name. They are
// as invisible as any new item; the word helps whoever reviews it.
func (o *observer) renamed() {
	bodies := map[string]string{}
	for i := range o.items {
		if it := &o.items[i]; it.Gone {
			bodies[body(it.key(), it.Pinned)] = it.Name
		}
	}
	for i := range o.changes {
		ch := &o.changes[i]
		if ch.What != ChangeNew {
			continue
		}
		for j := range o.items {
			it := &o.items[j]
			if it.Kind != ch.Kind || it.Name != ch.Target.Name || it.Offered != ch.Offered {
				continue
			}
			if was, ok := bodies[body(it.key(), it.Offer)]; ok && it.Offer != "" {
				ch.What, ch.Note = ChangeRenamed, "was "+was
			}
		}
	}
}

// body is a definition without the name, with its kind.
func body(k itemKey, text string) string {
	s, ok := shapeOf(k)
	doc, err := vault.ParseValue([]byte(text))
	if !ok || err != nil {
		return ""
	}
	rest := shape{members: slices.DeleteFunc(slices.Clone(s.members), func(m string) bool { return m == s.key })}
	return s.list + string(rest.canonical(doc.Root()))
}

// Accept pins what a server offers for one item, exactly the definition with this
// digest: the one that a person looked at. It lifts a quarantine, makes a new item
// visible, or takes over a changed text. A capability that pins the old definition
// no longer matches.
func (c *Catalogue) Accept(ctx context.Context, server string, kind vault.Kind, name string, offered vault.Digest) ([]Finding, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.snap.Load().byName[server]
	if !ok {
		return nil, fmt.Errorf("accept %s: %w", server, ErrUnknownServer)
	}
	items := slices.Clone(s.rec.Items)
	i := slices.IndexFunc(items, func(it Item) bool {
		return it.Kind == kind && it.Name == name && !it.Offered.IsZero() && it.Offered == offered
	})
	if i < 0 {
		return nil, fmt.Errorf("accept %s %s: %w", server, name, ErrNotOffered)
	}
	if err := items[i].accept(); err != nil {
		return nil, fmt.Errorf("accept %s %s: %w", server, name, err)
	}
	next, err := s.with(items)
	if err != nil {
		return nil, fmt.Errorf("accept %s %s: %w", server, name, err)
	}
	it := next.items[items[i].key()]
	if it.State != StatePinned {
		return nil, fmt.Errorf("accept %s %s: %s", server, name, it.Why)
	}
	if err := c.replace(ctx, next); err != nil {
		return nil, err
	}
	findings := it.Findings
	if it.in != nil {
		findings = slices.Concat(findings, it.in.notes(server, it.key(), "/inputSchema"))
	}
	return findings, nil
}

// Reconfigure replaces the operator's words about a server: source, holds, tools,
// profile, trust. What the server is (install, entry, args, paths, url, auth) is
// its identity and cannot change; that is another server.
func (c *Catalogue) Reconfigure(ctx context.Context, name string, reg Registration) error {
	if err := reg.Check(); err != nil {
		return fmt.Errorf("reconfigure %s: %w", name, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.snap.Load().byName[name]
	if !ok {
		return fmt.Errorf("reconfigure %s: %w", name, ErrUnknownServer)
	}
	if err := s.rec.Tree.matches(reg); err != nil {
		return fmt.Errorf("reconfigure %s: %w", name, err)
	}
	was := &s.rec.Registration
	if reg.Install != was.Install || reg.Entry != was.Entry || serverID(&reg, &s.rec.Tree) != s.id {
		return fmt.Errorf("reconfigure %s: install, entry, args, read, write, url and auth are what the server is: remove it and add it again", name)
	}
	rec := s.rec
	rec.Registration = reg
	next, err := newServer(rec)
	if err != nil {
		return fmt.Errorf("reconfigure %s: %w", name, err)
	}
	next.broken, next.unlisted = s.broken, s.unlisted
	return c.replace(ctx, next)
}

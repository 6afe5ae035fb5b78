package tool

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/pilox/vault"
)

// recordVersion is the version of the stored document.
const recordVersion = 1

// maxRecord bounds a stored document: all definitions, pinned and offered, with
// room for escapes.
const maxRecord = 128 << 20

// A record is what is stored of one server.
type record struct {
	Version      int          `json:"version"`
	Name         string       `json:"name"`
	Registration Registration `json:"registration"`
	Tree         Tree         `json:"tree,omitzero"`
	Added        time.Time    `json:"added"`
	Pinned       bool         `json:"pinned,omitempty"` // a first listing was pinned
	Items        []Item       `json:"items,omitempty"`
}

func (r *record) encode() ([]byte, error) { return json.Marshal(r) }

// A State says what became of a definition. The zero State is invalid.
type State string

// The states. Only a pinned definition is visible and callable.
const (
	StatePinned      State = "pinned"
	StateNew         State = "new"         // offered after the first listing; nobody looked at it yet
	StateQuarantined State = "quarantined" // pinned, and the server offers something else
	StateRefused     State = "refused"     // cannot be pinned; Why says why
)

// An Item is one tool, resource, resource template or prompt of a server.
// Definitions are canonical JSON of the members that are pinned: for a tool name,
// title, description, inputSchema, outputSchema and annotations.
type Item struct {
	Kind     vault.Kind `json:"kind"`
	Template bool       `json:"template,omitempty"` // a resource template; Name is its pattern
	Name     string     `json:"name"`
	State    State      `json:"state"`
	Gone     bool       `json:"gone,omitempty"` // the server no longer lists it; not callable either

	Definition vault.Digest `json:"definition,omitzero"` // of Pinned
	Pinned     string       `json:"pinned,omitempty"`    // "" if it was never pinned

	// Offered is the digest of what the server lists now, if that is not what is
	// pinned; Offer is its text, "" if it is too large to keep.
	Offered vault.Digest `json:"offered,omitzero"`
	Offer   string       `json:"offer,omitempty"`

	Why      string    `json:"why,omitempty"`      // it is not pinned; may quote the server
	Findings []Finding `json:"findings,omitempty"` // of Offer if there is one, else of Pinned
}

func (i *Item) key() itemKey { return itemKey{i.Kind, i.Template, i.Name} }

// An item is an Item in the form that calls need. It is immutable.
type item struct {
	Item
	tool vault.Tool // what Resolve returns
	in   *schema    // nil unless it is a callable tool
	out  *schema    // nil if the tool declares none
}

// callable reports whether calls to it may go on.
func (i *item) callable() bool { return i.State == StatePinned && !i.Gone }

// loadServer decodes a stored document.
func loadServer(name string, doc []byte) (*server, error) {
	if len(doc) > maxRecord {
		return nil, fmt.Errorf("record: larger than %d bytes", maxRecord)
	}
	var rec record
	if err := decodeStrict(doc, &rec); err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	if rec.Version != recordVersion {
		return nil, fmt.Errorf("record: version %d, want %d", rec.Version, recordVersion)
	}
	if rec.Name != name {
		return nil, fmt.Errorf("record: is of %q", rec.Name)
	}
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if err := rec.Registration.Check(); err != nil {
		return nil, err
	}
	if err := rec.Tree.matches(rec.Registration); err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	return newServer(rec)
}

// newServer compiles a record.
func newServer(rec record) (*server, error) {
	rec.Items = slices.Clone(rec.Items)
	s := &server{rec: rec, id: serverID(&rec.Registration, &rec.Tree), items: make(map[itemKey]*item, len(rec.Items))}
	for i := range rec.Items {
		it := &rec.Items[i]
		if _, ok := s.items[it.key()]; ok {
			return nil, fmt.Errorf("record: %s %q twice", it.Kind, it.Name)
		}
		compiled, err := s.compile(*it)
		if err != nil {
			return nil, err
		}
		s.items[it.key()], *it = compiled, compiled.Item
	}
	return s, nil
}

// with returns s with other items, sharing what is already compiled.
func (s *server) with(items []Item) (*server, error) {
	next := &server{rec: s.rec, id: s.id, broken: s.broken, unlisted: s.unlisted, items: make(map[itemKey]*item, len(items))}
	next.rec.Items = items
	for i := range items {
		it := &items[i]
		if old, ok := s.items[it.key()]; ok && old.Definition == it.Definition {
			same := *old
			same.Item = *it
			next.items[it.key()] = &same
			continue
		}
		compiled, err := next.compile(*it)
		if err != nil {
			return nil, err
		}
		next.items[it.key()], *it = compiled, compiled.Item
	}
	return next, nil
}

// compile prepares one item. A pinned text that does not have its digest is an
// error; a tool whose schema does not compile is refused, alone.
func (s *server) compile(it Item) (*item, error) {
	out := &item{Item: it, tool: s.tool(it.Kind, it.Name)}
	switch it.State {
	case StatePinned, StateQuarantined:
	case StateNew, StateRefused:
		return out, nil
	default:
		return nil, fmt.Errorf("record: %s %q: unknown state %q", it.Kind, it.Name, it.State)
	}
	shape, ok := shapeOf(it.key())
	if !ok {
		return nil, fmt.Errorf("record: item of kind %q", it.Kind)
	}
	o := shape.parse([]byte(it.Pinned))
	if o.err != nil {
		return nil, fmt.Errorf("record: %s %q: %w", it.Kind, it.Name, o.err)
	}
	if o.digest != it.Definition || o.key != it.key() {
		return nil, fmt.Errorf("record: %s %q: pinned text does not have its digest", it.Kind, it.Name)
	}
	out.tool.Definition = it.Definition
	if it.Kind != vault.KindTool {
		return out, nil
	}
	if err := out.schemas(o.def.Root(), s.rec.Registration.Tools[it.Name]); err != nil {
		return s.refuse(it, err), nil
	}
	if s.rec.Registration.TrustAnnotations {
		if hint, ok := o.def.At("/annotations/readOnlyHint").Bool(); ok && hint {
			out.tool.ReadOnly = true
		}
	}
	return out, nil
}

// refuse returns an item whose pinned definition cannot be used: what was pinned
// becomes what is offered, so that it can be accepted under another registration.
func (s *server) refuse(it Item, why error) *item {
	if it.Offered.IsZero() {
		it.Offered, it.Offer = it.Definition, it.Pinned
	}
	it.State, it.Why = StateRefused, shorten(why.Error())
	it.Definition, it.Pinned = vault.Digest{}, ""
	return &item{Item: it, tool: s.tool(it.Kind, it.Name)}
}

// schemas compiles the schemas of a tool definition.
func (i *item) schemas(def vault.Value, e Entry) (err error) {
	opt := schemaOptions{closed: !e.OpenSchema, ignorePatterns: e.IgnorePatterns}
	if i.in, err = compileSchema(def.Get("inputSchema"), opt); err != nil {
		return fmt.Errorf("inputSchema: %w", err)
	}
	if out := def.Get("outputSchema"); out.Kind() != vault.Absent {
		if i.out, err = compileSchema(out, schemaOptions{ignorePatterns: e.IgnorePatterns}); err != nil {
			return fmt.Errorf("outputSchema: %w", err)
		}
	}
	return nil
}

// tool returns what the registration says of a target. Only the operator's word
// counts here.
func (s *server) tool(k vault.Kind, name string) vault.Tool {
	reg := &s.rec.Registration
	installed := reg.URL == ""
	t := vault.Tool{
		Server: s.rec.Name, ID: s.id, Name: name, Installed: installed, Local: installed,
		Source: reg.Source.Integrity, Holds: reg.Holds.Readers(),
	}
	switch k {
	case vault.KindTool:
		e := reg.Tools[name]
		t.ReadOnly, t.Risk, t.Roles = e.ReadOnly, e.Risk.Risk, maps.Clone(e.Roles)
		if e.Local != nil {
			t.Local = *e.Local
		}
	case vault.KindResource, vault.KindPrompt:
		// Reading, by protocol. For a server that may write files, or one that runs
		// elsewhere, that is a claim; for the others the sandbox makes it true.
		t.ReadOnly = installed && len(reg.Write) == 0
		if k == vault.KindResource {
			t.Roles = map[string]vault.Role{"/uri": vault.RoleSelector}
		}
	default: // a server offers no other kind; what is not said counts as the worst
	}
	return t
}

func shapeOf(k itemKey) (*shape, bool) {
	switch {
	case k.kind == vault.KindTool && !k.template:
		return &toolShape, true
	case k.kind == vault.KindResource && k.template:
		return &templateShape, true
	case k.kind == vault.KindResource:
		return &resourceShape, true
	case k.kind == vault.KindPrompt && !k.template:
		return &promptShape, true
	}
	return nil, false
}

var errNoText = errors.New("the offered definition is too large to keep")

// accept pins what is offered.
func (i *Item) accept() error {
	if i.Offer == "" && i.Offered != i.Definition {
		return errNoText
	}
	if i.Offered != i.Definition {
		i.Pinned, i.Definition = i.Offer, i.Offered
	}
	i.State, i.Offer, i.Offered, i.Why = StatePinned, "", vault.Digest{}, ""
	return nil
}

// sortItems gives a record one order.
func sortItems(items []Item) []Item {
	slices.SortFunc(items, func(a, b Item) int { return a.key().compare(b.key()) })
	return items
}

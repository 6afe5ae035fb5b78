package mcp

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/pilox/vault"
)

// A Definition is the pinned copy of one tool, resource, resource template or
// prompt of a server.
type Definition struct {
	// Name is the tool or prompt name, the URI of a resource, or the URI template.
	Name string
	// Raw is the definition object as pinned.
	Raw json.RawMessage
}

// A ServerView is the part of one server that a task may see.
type ServerView struct {
	ID   vault.ServerID
	Name string // registered name

	Tools     []Definition
	Resources []Definition
	Templates []Definition
	Prompts   []Definition
}

// A View is what one task sees of all servers: pinned definitions under names that
// are unique in the view. It does not change; a new catalogue makes a new View.
//
// With one server its names stand as they are, with several they are
// server__name. A name that is not [A-Za-z0-9_-]{1,64} afterwards, or that two
// definitions claim, is not shown at all: see [View.Hidden].
type View struct {
	servers   []ServerView
	tools     *list
	resources *list
	templates *list
	prompts   *list
	hidden    []string
}

// A list is the visible definitions of one kind.
type list struct {
	entries []*entry // in the order of the servers
	byName  map[string]*entry
}

// An entry is one visible definition.
type entry struct {
	server     *ServerView
	own        string // name inside the server
	visible    string
	raw        json.RawMessage
	schemaOut  bool // it has an outputSchema
	bindings   []binding
	bindingErr error
}

// NewView compiles what a task may see. It does not keep servers' slices from changing:
// the caller hands them over.
func NewView(servers []ServerView) *View {
	v := &View{servers: servers}
	qualified := len(servers) > 1
	v.tools = v.compile(qualified, func(s *ServerView) []Definition { return s.Tools }, true)
	v.prompts = v.compile(qualified, func(s *ServerView) []Definition { return s.Prompts }, true)
	v.resources = v.compile(false, func(s *ServerView) []Definition { return s.Resources }, false)
	v.templates = v.compile(false, func(s *ServerView) []Definition { return s.Templates }, false)
	return v
}

// Hidden returns a line for each definition that has no usable name.
func (v *View) Hidden() []string { return slices.Clone(v.hidden) }

// compile makes the list of one kind. named says that visible names are
// identifiers; URIs stand as they are.
func (v *View) compile(qualified bool, of func(*ServerView) []Definition, named bool) *list {
	l := &list{byName: make(map[string]*entry)}
	clash := make(map[string]bool)
	for i := range v.servers {
		s := &v.servers[i]
		for _, d := range of(s) {
			e := &entry{server: s, own: d.Name, visible: d.Name, raw: d.Raw}
			if qualified {
				e.visible = s.Name + "__" + d.Name
			}
			if named && !validName(e.visible) {
				v.hidden = append(v.hidden, fmt.Sprintf("%s of %s: name is not 1 to 64 of A-Z a-z 0-9 _ -", d.Name, s.Name))
				continue
			}
			if err := e.prepare(named); err != nil {
				v.hidden = append(v.hidden, fmt.Sprintf("%s of %s: %v", d.Name, s.Name, err))
				continue
			}
			if _, ok := l.byName[e.visible]; ok {
				clash[e.visible] = true
				continue
			}
			l.byName[e.visible] = e
			l.entries = append(l.entries, e)
		}
	}
	for name := range clash {
		v.hidden = append(v.hidden, fmt.Sprintf("%s: more than one server claims it", name))
		delete(l.byName, name)
	}
	l.entries = slices.DeleteFunc(l.entries, func(e *entry) bool { return clash[e.visible] })
	slices.Sort(v.hidden)
	return l
}

// prepare reads what the edge needs of a definition and puts the visible name into it.
func (e *entry) prepare(named bool) error {
	out := make([]byte, 0, len(e.raw)+16)
	out = append(out, '{')
	var schema json.RawMessage
	s := scanner{b: e.raw}
	err := s.object(func(key, val []byte) error {
		switch string(key) {
		case "outputSchema":
			e.schemaOut = true
		case "inputSchema":
			schema = val
		case "name":
			if named {
				val = vault.AppendQuoted(nil, e.visible)
			}
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(appendQuoted(out, string(key)), ':')
		out = append(out, val...)
		return nil
	})
	if err != nil {
		return fmt.Errorf("definition: %w", err)
	}
	e.raw = append(out, '}')
	e.bindings, e.bindingErr = bindingsOf(schema)
	return e.bindingErr
}

// validName reports whether s is a name that every client and model API accepts.
func validName(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-') {
			return false
		}
	}
	return true
}

// target maps a visible name to what it stands for. A name that is not in the view
// still gets a target, so that the gateway refuses it and the refusal is on record.
func (v *View) target(l *list, visible string) (vault.Target, string, *entry) {
	if e := l.byName[visible]; e != nil {
		return vault.Target{Server: e.server.ID, Name: e.own}, e.server.Name, e
	}
	if len(v.servers) == 1 {
		return vault.Target{Server: v.servers[0].ID, Name: visible}, v.servers[0].Name, nil
	}
	if prefix, own, ok := strings.Cut(visible, "__"); ok {
		for i := range v.servers {
			if v.servers[i].Name == prefix {
				return vault.Target{Server: v.servers[i].ID, Name: own}, prefix, nil
			}
		}
	}
	return vault.Target{Name: visible}, "", nil
}

// resource maps a URI to the server that lists it, or whose template it fits. When
// several servers would do, none is chosen.
func (v *View) resource(uri string) (vault.Target, string) {
	if e := v.resources.byName[uri]; e != nil {
		return vault.Target{Server: e.server.ID, Name: uri}, e.server.Name
	}
	var found *ServerView
	for _, e := range v.templates.entries {
		if !matchTemplate(e.own, uri) {
			continue
		}
		if found != nil && found != e.server {
			return vault.Target{Name: uri}, ""
		}
		found = e.server
	}
	if found == nil && len(v.servers) == 1 {
		found = &v.servers[0]
	}
	if found == nil {
		return vault.Target{Name: uri}, ""
	}
	return vault.Target{Server: found.ID, Name: uri}, found.Name
}

// matchTemplate reports whether uri can be an expansion of an RFC 6570 template:
// the literal parts occur in order. It only routes; what may be read is the
// capability's word.
func matchTemplate(template, uri string) bool {
	anchored := true
	for template != "" {
		literal, rest, more := strings.Cut(template, "{")
		switch {
		case anchored && !strings.HasPrefix(uri, literal):
			return false
		case anchored:
			uri = uri[len(literal):]
		case !more && literal != "":
			return strings.HasSuffix(uri, literal)
		default:
			i := strings.Index(uri, literal)
			if i < 0 {
				return false
			}
			uri = uri[i+len(literal):]
		}
		if !more {
			return !anchored || uri == ""
		}
		_, after, ok := strings.Cut(rest, "}")
		if !ok {
			return false
		}
		template, anchored = after, false
	}
	return !anchored || uri == ""
}

// pageSize bounds the entries of one list answer. Clients follow the cursor.
const pageSize = 250

// page appends one page of a list as a JSON array and returns the index after it.
func (l *list) page(b []byte, from int) ([]byte, int) {
	to := min(from+pageSize, len(l.entries))
	b = append(b, '[')
	for i, e := range l.entries[from:to] {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, e.raw...)
	}
	return append(b, ']'), to
}

// serverInfo is how the gateway introduces itself on either side.
type serverInfo struct {
	once sync.Once
	raw  []byte
}

func (s *serverInfo) json(name, version string) []byte {
	s.once.Do(func() {
		var b bytes.Buffer
		b.WriteString(`{"name":`)
		b.Write(appendQuoted(nil, name))
		b.WriteString(`,"version":`)
		b.Write(appendQuoted(nil, version))
		b.WriteByte('}')
		s.raw = b.Bytes()
	})
	return s.raw
}

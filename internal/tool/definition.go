package tool

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/pilox/vault"
)

// Limits on a listing. The largest servers in use list some 200 tools of a few
// KiB each; a model cannot use more.
const (
	maxTools      = 512
	maxItems      = 512      // resources, templates and prompts, each
	maxDefinition = 64 << 10 // canonical bytes of one definition
	maxListing    = 16 << 20 // bytes of all definitions before decoding
	maxToolName   = 128      // MCP 2025-11-25, tool names
	maxURI        = 2048
)

// A Listing is what a server says it offers: the raw objects of tools/list,
// resources/list, resources/templates/list and prompts/list, all pages.
type Listing struct {
	Tools     []json.RawMessage
	Resources []json.RawMessage
	Templates []json.RawMessage
	Prompts   []json.RawMessage
}

// An itemKey names one thing that a server offers.
type itemKey struct {
	kind     vault.Kind
	template bool // a resource template, named by its pattern
	name     string
}

func (k itemKey) compare(l itemKey) int {
	return cmp.Or(cmp.Compare(k.kind, l.kind), cmp.Compare(btoi(k.template), btoi(l.template)), cmp.Compare(k.name, l.name))
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// A shape says which members of a listed object are pinned and served. Everything
// else a server adds (icons, _meta) is a channel that nobody reviewed: dropped.
type shape struct {
	list     string // for messages
	key      string // member that names the object
	template bool
	kind     vault.Kind
	members  []string // sorted
}

var (
	toolShape     = shape{"tools", "name", false, vault.KindTool, []string{"annotations", "description", "inputSchema", "name", "outputSchema", "title"}}
	resourceShape = shape{"resources", "uri", false, vault.KindResource, []string{"annotations", "description", "mimeType", "name", "title", "uri"}}
	templateShape = shape{"templates", "uriTemplate", true, vault.KindResource, []string{"annotations", "description", "mimeType", "name", "title", "uriTemplate"}}
	promptShape   = shape{"prompts", "name", false, vault.KindPrompt, []string{"arguments", "description", "name", "title"}}
)

// An offer is one listed object, decoded. err says why it cannot be pinned.
type offer struct {
	key    itemKey
	def    vault.Args // the pinned members in canonical form
	digest vault.Digest
	err    error
}

// offers decodes a listing. An object without a usable name is a finding; two
// objects of one name make the listing ambiguous and are an error.
func (l *Listing) offers() ([]offer, []Finding, error) {
	size := 0
	var out []offer
	var findings []Finding
	seen := map[itemKey]bool{}
	for _, part := range []struct {
		shape *shape
		raws  []json.RawMessage
		most  int
	}{
		{&toolShape, l.Tools, maxTools},
		{&resourceShape, l.Resources, maxItems},
		{&templateShape, l.Templates, maxItems},
		{&promptShape, l.Prompts, maxItems},
	} {
		if len(part.raws) > part.most {
			return nil, nil, fmt.Errorf("listing: %d %s, at most %d", len(part.raws), part.shape.list, part.most)
		}
		for i, raw := range part.raws {
			if size += len(raw); size > maxListing {
				return nil, nil, fmt.Errorf("listing: more than %d bytes", maxListing)
			}
			o := part.shape.parse(raw)
			if o.key.name == "" {
				findings = append(findings, Finding{
					Where: fmt.Sprintf("/%s/%d", part.shape.list, i), What: FindUnusable, Detail: shorten(o.err.Error()),
				})
				continue
			}
			if seen[o.key] {
				return nil, nil, fmt.Errorf("listing: %s: %q is listed twice", part.shape.list, o.key.name)
			}
			seen[o.key] = true
			out = append(out, o)
		}
	}
	return out, findings, nil
}

// parse decodes one object. An offer with a name and an error can be shown and
// not pinned; one without a name is nothing.
func (s *shape) parse(raw []byte) offer {
	doc, err := vault.ParseValue(raw)
	if err != nil {
		return offer{err: fmt.Errorf("definition: %w", err)}
	}
	root := doc.Root()
	if root.Kind() != vault.Object {
		return offer{err: errors.New("definition: not an object")}
	}
	name, _ := root.Get(s.key).Str()
	if err := s.checkKey(name); err != nil {
		return offer{err: err}
	}
	o := offer{key: itemKey{s.kind, s.template, name}}
	text := s.canonical(root)
	o.digest = vault.Hash("definition", []byte(s.list), text)
	if len(text) > maxDefinition {
		o.err = fmt.Errorf("definition: larger than %d bytes", maxDefinition)
		return o
	}
	if o.def, err = vault.ParseValue(text); err != nil {
		o.err = fmt.Errorf("definition: %w", err)
		return o
	}
	o.err = s.check(o.def.Root())
	return o
}

// canonical writes the pinned members of root. They stand in canonical order, so
// leaving some out keeps the text canonical.
func (s *shape) canonical(root vault.Value) []byte {
	out := []byte{'{'}
	for key, v := range root.All() {
		if _, ok := slices.BinarySearch(s.members, key); !ok {
			continue
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = vault.AppendQuoted(out, key)
		out = append(append(out, ':'), v.Raw()...)
	}
	return append(out, '}')
}

func (s *shape) checkKey(name string) error {
	if s.key == "name" {
		if name == "" || len(name) > maxToolName {
			return fmt.Errorf("definition: want a name of 1 to %d bytes", maxToolName)
		}
		for _, c := range []byte(name) {
			if !isNameByte(c) {
				return errors.New("definition: want a name of letters, digits, _, -, . and /")
			}
		}
		return nil
	}
	if s.template {
		scheme, _, _ := strings.Cut(name, "{")
		return checkURI(name, strings.Contains(scheme, ":"))
	}
	return checkURI(name, true)
}

func isNameByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("_-./", c) >= 0
}

// checkURI accepts what a resource may be called: bounded, printable, with a
// scheme. What the scheme means is the server's business, inside its sandbox.
func checkURI(uri string, scheme bool) error {
	if uri == "" || len(uri) > maxURI || !utf8.ValidString(uri) {
		return fmt.Errorf("resource: want a URI of 1 to %d bytes", maxURI)
	}
	for _, r := range uri {
		if r <= ' ' || r == 0x7f || hiddenRune(r) {
			return errors.New("resource: URI holds a space, control or invisible character")
		}
	}
	if !scheme {
		return nil
	}
	head, _, ok := strings.Cut(uri, ":")
	if u, err := url.Parse(head + ":x"); !ok || err != nil || u.Scheme == "" {
		return errors.New("resource: want a URI with a scheme")
	}
	return nil
}

// check looks at the types of the members, so that whoever serves a pinned
// definition need not.
func (s *shape) check(root vault.Value) error {
	for key, v := range root.All() {
		want := vault.String
		switch key {
		case "annotations", "inputSchema", "outputSchema":
			want = vault.Object
		case "arguments":
			want = vault.Array
		}
		if v.Kind() != want {
			return fmt.Errorf("definition: %s: want %s, not %s", key, want, v.Kind())
		}
	}
	if s.kind == vault.KindTool && root.Get("inputSchema").Kind() == vault.Absent {
		return errors.New("definition: no inputSchema")
	}
	return nil
}

// A drift is the difference between a pinned definition and an offered one.
type drift struct {
	members []string // that differ
	text    bool     // nothing but title and description
}

func compareDefinitions(pinned, offered vault.Value) drift {
	d := drift{text: true}
	differs := func(key string) {
		if slices.Contains(d.members, key) {
			return
		}
		d.members = append(d.members, key)
		if key != "title" && key != "description" {
			d.text = false
		}
	}
	for key, v := range pinned.All() {
		if offered.Get(key).Raw() != v.Raw() {
			differs(key)
		}
	}
	for key := range offered.All() {
		if pinned.Get(key).Kind() == vault.Absent {
			differs(key)
		}
	}
	slices.Sort(d.members)
	return d
}

// shorten bounds a message that quotes a server.
func shorten(s string) string {
	const most = 300
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

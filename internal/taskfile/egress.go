package taskfile

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
)

// An Egress grants HTTP requests to one host.
type Egress struct {
	Host    string   // DNS name in lower case, with a port if it is not 443
	Methods []string // sorted
	// Paths say what may be asked for; one of them has to match the whole path and
	// query of a request. * is any text up to the next slash, or in a query up to
	// the next &, and ** is any text; neither starts a query. Everything else, ?
	// included, stands for itself.
	Paths []string
}

var egressKeys = []string{"host", "methods", "path", "secret"}

// Methods that can be granted, and those of them whose requests carry a body (RFC
// 9110, section 9.3; RFC 5789).
var (
	methods     = []string{http.MethodDelete, http.MethodGet, http.MethodHead, http.MethodPatch, http.MethodPost, http.MethodPut}
	bodyMethods = []string{http.MethodPatch, http.MethodPost, http.MethodPut}
)

// Media types that a body may be said to have: data, text and a form. A type that
// has a program run at the other end is not among them.
var bodyTypes = []string{"application/json", "text/plain", "application/x-www-form-urlencoded"}

// maxBody bounds a body in characters. It has to fit into the arguments of a call,
// and a person may be shown it.
const maxBody = 64 << 10

// egress reads the list of hosts.
func (d *decoder) egress(n *yaml.Node, path string) []Egress {
	var out []Egress
	for i, c := range d.list(n, path) {
		at := fmt.Sprintf("%s[%d]", path, i)
		e := d.egressEntry(c, at)
		if slices.ContainsFunc(out, func(o Egress) bool { return o.Host == e.Host && e.Host != "" }) {
			d.failHint(c, at, "give its path a list; all its methods go with all its paths", "%s stands here twice", e.Host)
			continue
		}
		out = append(out, e)
	}
	return out
}

func (d *decoder) egressEntry(n *yaml.Node, path string) (e Egress) {
	m := d.fields(n, path, egressKeys)
	if n.Kind != yaml.MappingNode {
		return e
	}
	need := func(key, hint string) *yaml.Node {
		v := m[key]
		if v == nil {
			d.failHint(n, path, hint, "%s is missing", key)
		}
		return v
	}
	if v := need("host", "name one host: api.bank.example"); v != nil {
		if e.Host = d.text(v, path+".host", 260); e.Host != "" {
			if _, _, err := vault.ParseHost(e.Host); err != nil {
				d.fail(v, path+".host", "%q: %v", e.Host, err)
			}
		}
	}
	if v := need("methods", "name them: [GET]"); v != nil {
		e.Methods = d.texts(v, path+".methods", 16, func(s string) error {
			if !slices.Contains(methods, s) {
				return fmt.Errorf("unknown method %q: want one of %s", s, strings.Join(methods, ", "))
			}
			return nil
		})
		slices.Sort(e.Methods)
	}
	if v := need("path", "say which: /v1/accounts/*, or /** for every one"); v != nil {
		if v.Kind == yaml.SequenceNode {
			e.Paths = d.texts(v, path+".path", maxTarget, pathPattern)
		} else if s := d.text(v, path+".path", maxTarget); s != "" {
			if err := pathPattern(s); err != nil {
				d.fail(v, path+".path", "%v", err)
			}
			e.Paths = []string{s}
		}
		if c := pathsConstraint(e.Paths); c.Regex != nil && len(*c.Regex) > maxConstraint {
			d.fail(v, path+".path", "paths with stars have more than %d bytes together", maxConstraint)
		}
	}
	if v := m["secret"]; v != nil {
		d.unsupported(v, path+".secret", "no secret can be put into a request by this version", "remove it: the request goes out without credentials")
	}
	return e
}

// pathPattern refuses what no request can match, because requests with such paths
// are never sent.
func pathPattern(s string) error {
	p, _, _ := strings.Cut(s, "?")
	if p != "/" {
		p = strings.TrimSuffix(p, "/")
	}
	if !plainPath(p) || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune("#\\\"<>^`{|}", r) }) {
		return fmt.Errorf("%q is no path: want an absolute one without ., .., doubled slashes, and characters that no URL holds", s)
	}
	return nil
}

// rule returns the rule that the target of e gets.
func (e *Egress) rule() capability.Rule {
	args := capability.Args{"/method": capability.One(oneOf(e.Methods)), "/path": capability.One(pathsConstraint(e.Paths))}
	if slices.ContainsFunc(e.Methods, func(m string) bool { return slices.Contains(bodyMethods, m) }) {
		limit := int64(maxBody)
		args["/body"] = capability.Arg{Optional: true, All: []capability.Constraint{{MaxLength: &limit}}}
		args["/content_type"] = capability.Arg{Optional: true, All: []capability.Constraint{oneOf(bodyTypes)}}
	}
	return capability.Rule{Args: args}
}

func oneOf(values []string) (c capability.Constraint) {
	for _, v := range values {
		c.OneOf = append(c.OneOf, capability.String(v))
	}
	return c
}

// pathsConstraint returns values where it can: flow control takes a value that the
// capability names for the person's own choice.
func pathsConstraint(patterns []string) capability.Constraint {
	if !slices.ContainsFunc(patterns, func(p string) bool { return strings.Contains(p, "*") }) {
		return oneOf(patterns)
	}
	// Not a glob: there ? stands for a character, and * would take a query along.
	expr := pathsRegex(patterns)
	return capability.Constraint{Regex: &expr}
}

// pathsRegex returns an expression for what any of the patterns matches.
func pathsRegex(patterns []string) string {
	out := make([]string, len(patterns))
	for i, p := range patterns {
		path, query, asks := strings.Cut(p, "?")
		out[i] = wildcards(path, `[^/?]*`, `[^?]*`)
		if asks {
			out[i] += `\?` + wildcards(query, `[^&]*`, `.*`)
		}
	}
	return strings.Join(out, "|")
}

// wildcards quotes s except for its stars.
func wildcards(s, one, two string) string {
	var b strings.Builder
	for i, part := range strings.Split(s, "**") {
		if i > 0 {
			b.WriteString(two)
		}
		for j, literal := range strings.Split(part, "*") {
			if j > 0 {
				b.WriteString(one)
			}
			b.WriteString(regexp.QuoteMeta(literal))
		}
	}
	return b.String()
}

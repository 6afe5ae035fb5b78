package taskfile

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// A decoder walks the YAML tree and collects problems. It reads nodes by hand
// instead of into structs: that way every problem has a position, and YAML's
// guesses (octal numbers, merge keys, aliases) never become authority.
type decoder struct {
	problems Errors
}

// decode parses data into a File without its inputs.
func decode(data []byte) (*File, error) {
	d := &decoder{}
	root, err := d.parse(data)
	if err != nil {
		return nil, err
	}
	f := d.file(root)
	if len(d.problems) == 0 {
		return f, nil
	}
	slices.SortStableFunc(d.problems, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return nil, d.problems[:min(len(d.problems), maxErrors)]
}

// parse returns the top mapping of a document that uses only the plain part of
// YAML: mappings, sequences and scalars.
func (d *decoder) parse(data []byte) (*yaml.Node, error) {
	if !utf8.Valid(data) {
		return nil, Errors{{Line: 1, Column: 1, Problem: "not valid UTF-8"}}
	}
	var doc yaml.Node
	if err := yaml.Load(data, &doc); err != nil {
		return nil, Errors{yamlError(err)}
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return nil, Errors{{Line: 1, Column: 1, Problem: "the file is empty", Hint: "start with version: 1"}}
	}
	count := 0
	if err := plain(doc.Content[0], 0, &count); err != nil {
		return nil, Errors{err}
	}
	return doc.Content[0], nil
}

// plain refuses what makes a YAML file mean something else than it reads like.
func plain(n *yaml.Node, depth int, count *int) *Error {
	at := &Error{Line: n.Line, Column: n.Column}
	*count++
	switch {
	case depth > maxDepth:
		at.Problem = fmt.Sprintf("nested deeper than %d levels", maxDepth)
	case *count > maxNodes:
		at.Problem = fmt.Sprintf("more than %d values", maxNodes)
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		at.Problem, at.Hint = "anchors and aliases are not allowed", "write the value out: a reviewer reads one place at a time"
	case n.Style&yaml.TaggedStyle != 0:
		at.Problem, at.Hint = fmt.Sprintf("the tag %q is not allowed", n.Tag), "put a string in quotes"
	default:
		for _, c := range n.Content {
			if err := plain(c, depth+1, count); err != nil {
				return err
			}
		}
		return nil
	}
	return at
}

// yamlError keeps the position that the parser knows.
func yamlError(err error) *Error {
	e := &Error{Line: 1, Column: 1, Problem: "not valid YAML: " + strings.TrimPrefix(err.Error(), "yaml: ")}
	var load *yaml.LoadError
	if errors.As(err, &load) {
		if load.Mark.Line > 0 {
			e.Line, e.Column = load.Mark.Line, max(load.Mark.Column, 1)
		}
		e.Problem = "not valid YAML: " + strings.TrimPrefix(load.Message, "yaml: ")
	}
	return e
}

// fail notes a problem at a node.
func (d *decoder) fail(n *yaml.Node, path, format string, args ...any) {
	d.failHint(n, path, "", format, args...)
}

// failHint is fail with what to do about it.
func (d *decoder) failHint(n *yaml.Node, path, hint, format string, args ...any) {
	d.note(n, Error{Path: path, Hint: hint, Problem: fmt.Sprintf(format, args...)})
}

func (d *decoder) note(n *yaml.Node, e Error) {
	e.Line, e.Column = n.Line, n.Column
	d.problems = append(d.problems, &e)
}

// unsupported refuses something that the format has a word for.
func (d *decoder) unsupported(n *yaml.Node, path, why, hint string) {
	d.note(n, Error{Path: path, Problem: why, Hint: hint, Err: ErrUnsupported})
}

// An entry is one key of a mapping with its value.
type entry struct {
	key        string
	keyNode, v *yaml.Node
}

// entries returns the members of a mapping in file order. Keys must be strings
// and unique.
func (d *decoder) entries(n *yaml.Node, path string) []entry {
	if n.Kind != yaml.MappingNode {
		d.fail(n, path, "want keys and values, found %s", kindName(n))
		return nil
	}
	var out []entry
	seen := make(map[string]bool)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode {
			d.fail(k, path, "a key must be plain text, found %s", kindName(k))
			continue
		}
		key := k.Value
		// In braces a comma ends a plain key, so sum(a.b.c, EUR): 1 arrives as
		// the key "sum(a.b.c" without a value and the key "EUR)". The two halves
		// can mean nothing else.
		if strings.HasPrefix(key, "sum(") && !strings.Contains(key, ")") && isImplicitNull(v) && i+3 < len(n.Content) {
			if next := n.Content[i+2]; next.Kind == yaml.ScalarNode && strings.HasSuffix(next.Value, ")") {
				key += ", " + next.Value
				v = n.Content[i+3]
				i += 2
			}
		}
		if seen[key] {
			d.fail(k, path, "the key %q stands here twice", key)
			continue
		}
		seen[key] = true
		out = append(out, entry{key, k, v})
	}
	return out
}

func isImplicitNull(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.Value == "" && n.ShortTag() == "!!null"
}

// unknown notes a key that has no meaning where it stands. more is what else has one.
func (d *decoder) unknown(e entry, path string, known []string, more string) {
	hint := "known here: " + strings.Join(known, ", ") + more
	if near := nearest(e.key, known); near != "" {
		hint = fmt.Sprintf("did you mean %q?", near)
	}
	d.failHint(e.keyNode, path, hint, "unknown key %q", e.key)
}

// fields returns the members of a mapping that has only the known keys.
func (d *decoder) fields(n *yaml.Node, path string, known []string) map[string]*yaml.Node {
	out := make(map[string]*yaml.Node)
	for _, e := range d.entries(n, path) {
		if !slices.Contains(known, e.key) {
			d.unknown(e, path, known, "")
			continue
		}
		out[e.key] = e.v
	}
	return out
}

// text returns a string of 1 to limit bytes without control characters.
func (d *decoder) text(n *yaml.Node, path string, limit int) string {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" && n.ShortTag() != "!!timestamp" {
		d.failHint(n, path, "put it in quotes if it is meant as text", "want text, found %s", kindName(n))
		return ""
	}
	switch s := n.Value; {
	case s == "":
		d.fail(n, path, "must not be empty")
	case len(s) > limit:
		d.fail(n, path, "longer than %d bytes", limit)
	case strings.ContainsFunc(s, hidden):
		d.failHint(n, path, "a reviewer could not see it", "holds a control or invisible character")
	default:
		return s
	}
	return ""
}

// hidden reports characters that do not show, or change how others show.
func hidden(r rune) bool {
	return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == utf8.RuneError || r == '\u2028' || r == '\u2029'
}

// list returns the elements of a sequence with at least one element.
func (d *decoder) list(n *yaml.Node, path string) []*yaml.Node {
	switch {
	case n.Kind != yaml.SequenceNode:
		d.failHint(n, path, "put it in [brackets]", "want a list, found %s", kindName(n))
	case len(n.Content) == 0:
		d.fail(n, path, "the list is empty")
	case len(n.Content) > maxList:
		d.fail(n, path, "the list has more than %d values", maxList)
	default:
		return n.Content
	}
	return nil
}

// texts returns a list of distinct strings, each accepted by check.
func (d *decoder) texts(n *yaml.Node, path string, limit int, check func(string) error) []string {
	var out []string
	for i, c := range d.list(n, path) {
		at := path + "[" + strconv.Itoa(i) + "]"
		s := d.text(c, at, limit)
		if s == "" {
			continue
		}
		if err := check(s); err != nil {
			d.fail(c, at, "%v", err)
			continue
		}
		if slices.Contains(out, s) {
			d.fail(c, at, "%q stands here twice", s)
			continue
		}
		out = append(out, s)
	}
	return out
}

// integer returns a whole number in plain decimal notation. YAML also takes
// 010, 0x10 and 1_000 for numbers, and readers disagree about what they mean.
func (d *decoder) integer(n *yaml.Node, path string, low, high int64) (int64, bool) {
	v, err := strconv.ParseInt(n.Value, 10, 64)
	switch {
	case n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int":
		d.fail(n, path, "want a whole number, found %s", kindName(n))
	case err != nil || strconv.FormatInt(v, 10) != n.Value:
		d.fail(n, path, "want a whole number in plain decimal digits")
	case v < low || v > high:
		d.fail(n, path, "want a number from %d to %d", low, high)
	default:
		return v, true
	}
	return 0, false
}

// boolean returns true or false; yes, on and the like are not accepted.
func (d *decoder) boolean(n *yaml.Node, path string) bool {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" || n.Value != "true" && n.Value != "false" {
		d.fail(n, path, "want true or false")
		return false
	}
	return n.Value == "true"
}

func kindName(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "keys and values"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!null":
		return "nothing"
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "true or false"
	}
	return "text"
}

// nearest returns the known key that key most likely stands for, or "".
func nearest(key string, known []string) string {
	best, bestDistance := "", 3 // more than two slips is another word
	for _, k := range known {
		if d := distance(strings.ToLower(key), k); d < bestDistance && d < len(k) {
			best, bestDistance = k, d
		}
	}
	return best
}

// distance is the optimal string alignment distance, so that a swap of two
// neighbours counts once. It gives up on keys too long to be a slip.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	var before []int
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		next := make([]int, len(b)+1)
		next[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			next[j] = min(row[j]+1, next[j-1]+1, row[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				next[j] = min(next[j], before[j-2]+1)
			}
		}
		before, row = row, next
	}
	return row[len(b)]
}

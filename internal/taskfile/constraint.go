package taskfile

import (
	"errors"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
)

// The words of constraints, and of the mapping that url takes.
var (
	constraintKeys = []string{
		"exact", "one_of", "integer", "decimal", "prefix", "subpath", "glob", "regex",
		"email_domain", "url", "host_suffix", "max_length", "each", "object", "not_one_of", "cidr",
		"public_url", "argv", "set", "subset", "contains", "count", "length", "schema", "cel", "optional",
	}
	urlKeys       = []string{"schemes", "hosts", "ports", "path"}
	publicURLKeys = []string{"schemes", "ports"}
	argvKeys      = []string{"programs", "options", "values", "operands", "max"}
)

var (
	urlScheme = regexp.MustCompile(`^[a-z][a-z0-9+.-]{0,31}$`)
	errScheme = errors.New("no URL scheme in lower case")
)

// maxSafe is the largest integer that survives JSON in every reader; arguments
// beyond it are refused, so a constraint beyond it could never be met.
const maxSafe = 1<<53 - 1

// argPointer turns a plain name into a JSON Pointer and leaves pointers alone.
func argPointer(name string) string {
	if strings.HasPrefix(name, "/") {
		return name
	}
	return "/" + vault.PointerToken(name)
}

// args reads named arguments. The map is never nil: no names means no arguments.
func (d *decoder) args(n *yaml.Node, at string, nesting int) capability.Args {
	out := make(capability.Args)
	entries := d.entries(n, at)
	if len(entries) > maxArgs {
		d.fail(n, at, "more than %d arguments", maxArgs)
		return out
	}
	for _, e := range entries {
		if e.key == "" || e.key == "/" || len(e.key) > maxTarget || strings.ContainsFunc(e.key, hidden) || !validPointer(e.key) {
			d.failHint(e.keyNode, at, "a nested one is a JSON Pointer: /filter/path", "%q is no name of an argument", e.key)
			continue
		}
		p := argPointer(e.key)
		if _, twice := out[p]; twice {
			d.fail(e.keyNode, at, "the argument %s stands here twice", p)
			continue
		}
		// What is inside a constrained value is checked by that constraint; a
		// second rule about it would contradict or repeat it.
		for _, other := range slices.Sorted(maps.Keys(out)) {
			if strings.HasPrefix(p, other+"/") || strings.HasPrefix(other, p+"/") {
				d.failHint(e.keyNode, at, "use object for the outer one", "%s and %s are one inside the other", p, other)
			}
		}
		out[p] = d.arg(e.v, at+"."+e.key, nesting)
	}
	return out
}

// validPointer reports whether a name that starts with a slash is a JSON Pointer
// of as many levels as a capability has.
func validPointer(s string) bool {
	if !strings.HasPrefix(s, "/") {
		return true
	}
	if strings.Count(s, "/") > maxNesting+1 {
		return false
	}
	for i := range len(s) {
		if s[i] == '~' && (i+1 == len(s) || s[i+1] != '0' && s[i+1] != '1') {
			return false
		}
	}
	return true
}

// maxNesting bounds each and object inside one another, as capability does.
const maxNesting = 7

// arg reads the constraints on one argument. All of them must hold.
func (d *decoder) arg(n *yaml.Node, at string, nesting int) (out capability.Arg) {
	if nesting > maxNesting {
		d.fail(n, at, "each and object are nested deeper than %d levels", maxNesting)
		return out
	}
	m := d.fields(n, at, constraintKeys)
	for _, word := range constraintKeys {
		v := m[word]
		if v == nil {
			continue
		}
		path := at + "." + word
		var c capability.Constraint
		switch word {
		case "optional":
			out.Optional = d.boolean(v, path)
			continue
		case "exact":
			s, ok := d.scalar(v, path)
			if !ok {
				continue
			}
			c.Exact = &s
		case "one_of":
			c.OneOf = d.scalars(v, path)
		case "integer":
			c.Int = d.intRange(v, path)
		case "decimal":
			c.Decimal = d.decimalRange(v, path)
		case "prefix":
			c.Prefix = d.pattern(v, path)
		case "subpath":
			c.SubPath = d.pattern(v, path)
			if c.SubPath != nil && !plainPath(*c.SubPath) {
				d.fail(v, path, "want an absolute path without ., .. and doubled slashes")
			}
		case "glob":
			c.Glob = d.pattern(v, path)
		case "regex":
			c.Regex = d.pattern(v, path)
			if c.Regex != nil {
				if _, err := regexp.Compile(*c.Regex); err != nil {
					d.fail(v, path, "%v", err)
				}
			}
		case "email_domain":
			c.EmailDomain = d.texts(v, path, 253, hostName)
			slices.Sort(c.EmailDomain)
		case "host_suffix":
			c.HostSuffix = d.texts(v, path, 253, hostName)
			slices.Sort(c.HostSuffix)
		case "url":
			c.URL = d.url(v, path)
		case "max_length":
			if limit, ok := d.integer(v, path, 0, vault.MaxArgsBytes); ok {
				c.MaxLength = &limit
			}
		case "each":
			each := d.arg(v, path, nesting+1)
			if each.Optional {
				d.fail(v, path, "an element cannot be optional")
			}
			c.Each = &each
		case "object":
			c.Object = d.args(v, path, nesting+1)
		case "not_one_of":
			c.NotOneOf = d.scalars(v, path)
		case "set":
			c.Set = d.scalars(v, path)
		case "subset":
			c.Subset = d.scalars(v, path)
		case "contains":
			c.Contains = d.scalars(v, path)
		case "cidr":
			c.CIDR = d.texts(v, path, 64, network)
			slices.Sort(c.CIDR)
		case "public_url":
			c.PublicURL = d.publicURL(v, path)
		case "argv":
			c.Argv = d.argv(v, path, nesting)
		case "count":
			c.Count = d.lengths(v, path)
		case "length":
			c.Length = d.lengths(v, path)
		case "schema":
			c.Schema = d.document(v, path)
		case "cel":
			c.CEL = d.pattern(v, path)
		}
		out.All = append(out.All, c)
	}
	return out
}

// plainPath reports whether s is a path that its own prefix check can trust.
func plainPath(s string) bool { return path.IsAbs(s) && path.Clean(s) == s }

func (d *decoder) pattern(n *yaml.Node, at string) *string {
	s := d.text(n, at, maxConstraint)
	if s == "" {
		return nil
	}
	return &s
}

// scalar reads a string, a whole number or a boolean, as the argument will have
// it: 5 is not "5".
func (d *decoder) scalar(n *yaml.Node, at string) (s capability.Scalar, ok bool) {
	if n.Kind == yaml.ScalarNode {
		switch n.ShortTag() {
		case "!!int":
			v, ok := d.integer(n, at, -maxSafe, maxSafe)
			return capability.Int(v), ok
		case "!!bool":
			return capability.Bool(d.boolean(n, at)), true
		case "!!float":
			d.failHint(n, at, "use decimal: [low, high], or quotes if it is text", "a fraction is not compared for equality")
			return s, false
		case "!!str":
			if n.Value == "" { // an argument may be exactly the empty string
				return capability.String(""), true
			}
		}
	}
	v := d.text(n, at, maxConstraint)
	return capability.String(v), v != ""
}

func (d *decoder) scalars(n *yaml.Node, at string) []capability.Scalar {
	var out []capability.Scalar
	for i, c := range d.list(n, at) {
		s, ok := d.scalar(c, at+"["+strconv.Itoa(i)+"]")
		switch {
		case !ok:
		case slices.Contains(out, s):
			d.fail(c, at, "the value stands here twice")
		default:
			out = append(out, s)
		}
	}
	return out
}

// pair returns the two ends of a range.
func (d *decoder) pair(n *yaml.Node, at string) (low, high *yaml.Node, ok bool) {
	if n.Kind != yaml.SequenceNode || len(n.Content) != 2 {
		d.fail(n, at, "want [low, high]")
		return nil, nil, false
	}
	return n.Content[0], n.Content[1], true
}

func (d *decoder) intRange(n *yaml.Node, at string) *capability.IntRange {
	low, high, ok := d.pair(n, at)
	if !ok {
		return nil
	}
	a, okA := d.integer(low, at, -maxSafe, maxSafe)
	b, okB := d.integer(high, at, -maxSafe, maxSafe)
	if okA && okB && a > b {
		d.fail(n, at, "the range is empty: %d is above %d", a, b)
	}
	return &capability.IntRange{Min: a, Max: b}
}

func (d *decoder) decimalRange(n *yaml.Node, at string) *capability.DecimalRange {
	low, high, ok := d.pair(n, at)
	if !ok {
		return nil
	}
	end := func(n *yaml.Node) (capability.Decimal, bool) {
		v, err := capability.ParseDecimal(n.Value)
		if tag := n.ShortTag(); n.Kind != yaml.ScalarNode || tag != "!!int" && tag != "!!float" || err != nil {
			d.fail(n, at, "want a number in plain digits, at most 12 before the point and 6 after it")
			return 0, false
		}
		return v, true
	}
	a, okA := end(low)
	b, okB := end(high)
	if okA && okB && a > b {
		d.fail(n, at, "the range is empty: %v is above %v", a, b)
	}
	return &capability.DecimalRange{Min: a, Max: b}
}

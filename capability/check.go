package capability

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pilox/vault"
)

// A test reports whether a value passes one constraint. Tests allocate nothing
// for strings without escapes.
type test func(vault.Value) bool

// A node is a compiled Arg.
type node struct {
	name     string // last reference token, decoded
	optional bool
	scalar   bool // nothing here is for arrays and objects: they fail
	implied  bool // made for a pointer that leads through it
	tests    []test
	lists    []test // of arrays
	wholes   []test // of any value, with all that is in it
	each     []*node
	objects  []*object
}

// An object is a compiled set of named members.
type object struct {
	members []*node
}

// compileArgs checks args and compiles them. at is their place, for errors. Without
// engines the tests that need one are checked for size and pass nothing.
func compileArgs(args Args, at string, nesting int, e *Engines) (*object, error) {
	if args == nil {
		return nil, nil
	}
	if nesting > maxNesting {
		return nil, fmt.Errorf("%s: nested deeper than %d", at, maxNesting)
	}
	if len(args) > maxArgs {
		return nil, fmt.Errorf("%s: %d arguments, at most %d", at, len(args), maxArgs)
	}
	root := &object{}
	for pointer, arg := range args {
		path, err := tokens(pointer)
		if err != nil {
			return nil, err
		}
		if err := root.add(path, arg, at+pointer, nesting, e); err != nil {
			return nil, err
		}
	}
	root.sort()
	return root, nil
}

// add puts arg at path, making the objects on the way.
func (o *object) add(path []string, arg Arg, at string, nesting int, e *Engines) error {
	i := slices.IndexFunc(o.members, func(n *node) bool { return n.name == path[0] })
	if len(path) == 1 {
		if i >= 0 {
			return fmt.Errorf("%s leads through another argument", at)
		}
		n, err := compileArg(arg, at, nesting, e)
		if err != nil {
			return err
		}
		n.name = path[0]
		o.members = append(o.members, n)
		return nil
	}
	if i < 0 {
		i = len(o.members)
		o.members = append(o.members, &node{name: path[0], objects: []*object{{}}, optional: true, implied: true})
	}
	n := o.members[i]
	// An object that only pointers speak of is optional until a member is not.
	if !n.implied {
		return fmt.Errorf("%s leads through another argument", at)
	}
	n.optional = n.optional && arg.Optional
	return n.objects[0].add(path[1:], arg, at, nesting, e)
}

// sort makes the order in which members are looked at, and so the argument that a
// denial names, independent of the order of the map.
func (o *object) sort() {
	slices.SortFunc(o.members, func(a, b *node) int { return strings.Compare(a.name, b.name) })
	for _, n := range o.members {
		for _, below := range n.objects {
			below.sort()
		}
	}
}

func compileArg(arg Arg, at string, nesting int, eng *Engines) (*node, error) {
	if len(arg.All) > maxTests {
		return nil, fmt.Errorf("%s: %d constraints, at most %d", at, len(arg.All), maxTests)
	}
	n := &node{optional: arg.Optional}
	closed := false // some test looks at every element of an array
	for _, c := range arg.All {
		if k := c.kinds(); k != 1 {
			return nil, fmt.Errorf("%s: constraint of %d kinds, want one", at, k)
		}
		switch {
		case c.Each != nil:
			if c.Each.Optional {
				return nil, fmt.Errorf("%s: an element is not optional", at)
			}
			if nesting >= maxNesting {
				return nil, fmt.Errorf("%s: nested deeper than %d", at, maxNesting)
			}
			e, err := compileArg(*c.Each, at, nesting+1, eng)
			if err != nil {
				return nil, err
			}
			n.each = append(n.each, e)
		case c.Object != nil:
			o, err := compileArgs(c.Object, at, nesting+1, eng)
			if err != nil {
				return nil, err
			}
			n.objects = append(n.objects, o)
		default:
			t, sort, err := c.compile(eng)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", at, err)
			}
			switch sort {
			case ofScalar:
				n.tests = append(n.tests, t)
			case ofWhole:
				n.wholes = append(n.wholes, t)
			case ofArray:
				n.lists = append(n.lists, t)
				closed = closed || c.Contains == nil && c.Count == nil
			}
		}
	}
	arrays := n.each != nil || n.lists != nil
	n.scalar = !arrays && n.objects == nil && n.wholes == nil
	switch {
	case n.tests != nil && (arrays || n.objects != nil), arrays && n.objects != nil:
		return nil, fmt.Errorf("%s: constraints of different types can never hold together", at)
	case n.lists != nil && n.each == nil && n.wholes == nil && !closed:
		return nil, fmt.Errorf("%s: contains and count leave the elements open: say each, set or subset too", at)
	}
	return n, nil
}

// A sort says which values a constraint is about.
type sort int

const (
	ofScalar sort = iota
	ofArray       // of all elements
	ofWhole       // of any value and all that is in it
)

// check holds v against o. The result is empty if v passes, else the pointer of
// what does not. An absent v counts as an object without members.
func (o *object) check(v vault.Value, at string) (bad string, ok bool) {
	if k := v.Kind(); k != vault.Object && k != vault.Absent {
		return at, false
	}
	found := 0
	for _, m := range o.members {
		member := v.Get(m.name)
		if member.Kind() == vault.Absent {
			if !m.optional {
				return at + "/" + vault.PointerToken(m.name), false
			}
			continue
		}
		found++
		if rest, ok := m.check(member, ""); !ok {
			return at + "/" + vault.PointerToken(m.name) + rest, false
		}
	}
	if found == v.Len() {
		return "", true
	}
	for name := range v.All() {
		if !slices.ContainsFunc(o.members, func(m *node) bool { return m.name == name }) {
			return at + "/" + vault.PointerToken(name), false
		}
	}
	return at, false
}

// check holds v against n; the pointer it returns is relative to v.
func (n *node) check(v vault.Value, at string) (bad string, ok bool) {
	switch k := v.Kind(); {
	case n.scalar && (k == vault.Array || k == vault.Object),
		(n.each != nil || n.lists != nil) && k != vault.Array,
		n.objects != nil && k != vault.Object:
		return at, false
	}
	for _, tests := range [...][]test{n.tests, n.lists, n.wholes} {
		for _, t := range tests {
			if !t(v) {
				return at, false
			}
		}
	}
	for _, o := range n.objects {
		if bad, ok := o.check(v, at); !ok {
			return bad, false
		}
	}
	for _, e := range n.each {
		i := 0
		for _, element := range v.All() {
			if bad, ok := e.check(element, ""); !ok {
				return at + "/" + strconv.Itoa(i) + bad, false
			}
			i++
		}
	}
	return "", true
}

// text makes a test of strings from one of decoded strings.
func text(f func(string) bool) test {
	return func(v vault.Value) bool {
		s, ok := v.Str()
		return ok && f(s)
	}
}

// compile makes the test of a constraint other than each and object.
func (c Constraint) compile(e *Engines) (test, sort, error) {
	switch {
	case c.Set != nil, c.Subset != nil, c.Contains != nil, c.Count != nil:
		t, err := c.compileArray()
		return t, ofArray, err
	case c.Argv != nil:
		t, err := c.Argv.compile()
		return t, ofArray, err
	case c.Schema != nil, c.CEL != nil:
		t, err := e.value(&c)
		return t, ofWhole, err
	}
	t, err := c.compileScalar()
	return t, ofScalar, err
}

// compileScalar makes the test of a constraint on a scalar.
func (c Constraint) compileScalar() (test, error) {
	switch {
	case c.Exact != nil:
		return compileSet([]Scalar{*c.Exact})
	case c.OneOf != nil:
		return compileSet(c.OneOf)
	case c.NotOneOf != nil:
		return compileNotOneOf(c.NotOneOf)
	case c.Int != nil:
		lo, hi := c.Int.Min, c.Int.Max
		if lo > hi {
			return nil, errRange
		}
		return func(v vault.Value) bool {
			n, ok := v.Int()
			return ok && lo <= n && n <= hi
		}, nil
	case c.Decimal != nil:
		lo, hi := c.Decimal.Min, c.Decimal.Max
		if lo > hi {
			return nil, errRange
		}
		return func(v vault.Value) bool {
			d, ok := decimalOf(v)
			return ok && lo <= d && d <= hi
		}, nil
	case c.Prefix != nil:
		prefix := *c.Prefix
		if err := checkPattern(prefix); err != nil {
			return nil, err
		}
		return text(func(s string) bool { return strings.HasPrefix(s, prefix) }), nil
	case c.SubPath != nil:
		base := *c.SubPath
		if !cleanPath(base) {
			return nil, errors.New("subpath: want an absolute path without . and .., empty segments and NUL")
		}
		return text(func(s string) bool { return cleanPath(s) && underPath(s, base) }), nil
	case c.Glob != nil:
		return compileGlob(*c.Glob)
	case c.Regex != nil:
		return compileRegex(*c.Regex)
	case c.EmailDomain != nil:
		return compileEmail(c.EmailDomain)
	case c.URL != nil:
		return c.URL.compile()
	case c.HostSuffix != nil:
		return compileHost(c.HostSuffix)
	case c.CIDR != nil:
		return compileCIDR(c.CIDR)
	case c.PublicURL != nil:
		return c.PublicURL.compile()
	case c.Length != nil:
		lo, hi := c.Length.Min, c.Length.Max
		if lo > hi || lo < 0 {
			return nil, errRange
		}
		return text(func(s string) bool {
			n := int64(utf8.RuneCountInString(s))
			return lo <= n && n <= hi
		}), nil
	case c.MaxLength != nil:
		limit := *c.MaxLength
		if limit < 0 {
			return nil, errRange
		}
		return text(func(s string) bool {
			return int64(len(s)) <= limit || int64(utf8.RuneCountInString(s)) <= limit
		}), nil
	}
	return nil, errors.New("no constraint")
}

var errRange = errors.New("empty range")

func checkPattern(s string) error {
	if s == "" || len(s) > maxText {
		return fmt.Errorf("pattern of %d bytes: want 1 to %d", len(s), maxText)
	}
	return nil
}

// decimalOf returns a number of at most six places. Canonical JSON writes the
// numbers that need more, or an exponent, in ways that are refused.
func decimalOf(v vault.Value) (Decimal, bool) {
	if v.Kind() != vault.Number {
		return 0, false
	}
	return parseDecimal(v.Raw())
}

// compileSet compares canonical JSON, in which equal values are equal bytes and
// values of different types never are.
func compileSet(set []Scalar) (test, error) {
	raws, err := rawSet(set)
	if err != nil {
		return nil, err
	}
	if len(raws) == 1 {
		only := raws[0]
		return func(v vault.Value) bool { return v.Raw() == only }, nil
	}
	return func(v vault.Value) bool {
		_, ok := slices.BinarySearch(raws, v.Raw())
		return ok
	}, nil
}

// rawSet returns the values in canonical JSON, sorted, each once.
func rawSet(set []Scalar) ([]string, error) {
	if len(set) > maxSet {
		return nil, fmt.Errorf("%d values: at most %d", len(set), maxSet)
	}
	raws := make([]string, len(set))
	for i, s := range set {
		if err := checkValue(s.s); err != nil {
			return nil, err
		}
		b, err := s.MarshalJSON()
		if err != nil {
			return nil, err
		}
		raws[i] = string(b)
	}
	slices.Sort(raws)
	return slices.Compact(raws), nil
}

// compileNotOneOf passes a scalar of a type that is in the list and a value that
// is not. Where nothing of that type is listed, the list says nothing of the value.
func compileNotOneOf(set []Scalar) (test, error) {
	raws, err := rawSet(set)
	if err != nil {
		return nil, err
	}
	var kinds [8]bool
	for _, s := range set {
		kinds[s.kind] = true
	}
	return func(v vault.Value) bool {
		if !kinds[v.Kind()] {
			return false
		}
		_, found := slices.BinarySearch(raws, v.Raw())
		return !found
	}, nil
}

func checkValue(s string) error {
	if len(s) > maxText {
		return fmt.Errorf("value of %d bytes: at most %d", len(s), maxText)
	}
	return nil
}

func compileRegex(expr string) (test, error) {
	if err := checkPattern(expr); err != nil {
		return nil, err
	}
	// Compiled alone first: a pattern such as "a)(b" must not close our group.
	if _, err := regexp.Compile(expr); err != nil {
		return nil, err
	}
	re, err := regexp.Compile(`\A(?:` + expr + `)\z`)
	if err != nil {
		return nil, err
	}
	return text(re.MatchString), nil
}

func compileGlob(glob string) (test, error) {
	if err := checkPattern(glob); err != nil {
		return nil, err
	}
	var expr strings.Builder
	for rest := glob; rest != ""; {
		switch {
		case strings.HasPrefix(rest, "**"):
			expr.WriteString(`(?s:.*)`)
			rest = rest[2:]
		case rest[0] == '*':
			expr.WriteString(`[^/]*`)
			rest = rest[1:]
		case rest[0] == '?':
			expr.WriteString(`[^/]`)
			rest = rest[1:]
		default:
			n := strings.IndexAny(rest, "*?")
			if n < 0 {
				n = len(rest)
			}
			expr.WriteString(regexp.QuoteMeta(rest[:n]))
			rest = rest[n:]
		}
	}
	re, err := regexp.Compile(`\A` + expr.String() + `\z`)
	if err != nil {
		return nil, err
	}
	return text(re.MatchString), nil
}

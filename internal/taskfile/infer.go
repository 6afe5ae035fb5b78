package taskfile

import (
	"cmp"
	"maps"
	"math"
	"net/mail"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
)

const (
	// maxPatternSet bounds the domains, hosts and schemes of a pattern that was made
	// of values. More of them is no pattern.
	maxPatternSet = 16
	// longText is from how many characters on a text is not listed as a value: nobody
	// sends the same one twice.
	longText = 64
)

// An inference finds the least constraint that values of arguments pass.
type inference struct {
	list    int                   // so many different values are listed, more become a pattern
	room    func(int64) int64     // adds the headroom to a length
	engines *capability.Engines   // what evaluates a schema
	roles   map[string]vault.Role // by pointer, of the target
	kept    int                   // texts that were held back as secrets
}

// arg returns the least constraint on the argument at a pointer that all values pass,
// and false if none can be written. A value is never absent.
func (in *inference) arg(pointer string, values []vault.Value, nesting int) (capability.Arg, bool) {
	if nesting > maxNesting {
		return capability.Arg{}, false
	}
	for _, a := range in.candidates(pointer, values, nesting) {
		if in.passes(&a, values) {
			return a, true
		}
	}
	return capability.Arg{}, false
}

// secret reports whether a text may not be written into a file.
func (in *inference) secret(pointer, s string) bool {
	return s != "" && (named(pointer) || looksSecret(s))
}

// named reports whether an argument is a credential by its name or one around it.
func named(pointer string) bool {
	return slices.ContainsFunc(strings.Split(pointer, "/"), secretName().MatchString)
}

// passes holds a candidate against every value: how it was made is not trusted.
func (in *inference) passes(a *capability.Arg, values []vault.Value) bool {
	test, err := a.Compile(in.engines)
	if err != nil || !writable(a) {
		return false
	}
	for _, v := range values {
		if !test(v) {
			return false
		}
	}
	return true
}

// writable reports whether a task file with the constraint reads back as it.
func writable(a *capability.Arg) bool {
	var w writer
	w.WriteString("{x: ")
	w.arg(*a)
	w.WriteString("}")
	d := &decoder{}
	n, err := d.parse([]byte(w.String()))
	if err != nil {
		return false
	}
	got := d.args(n, "", 0)["/x"]
	var again writer
	again.WriteString("{x: ")
	again.arg(got)
	again.WriteString("}")
	return len(d.problems) == 0 && again.String() == w.String()
}

// candidates returns constraints from the tightest to the widest.
func (in *inference) candidates(pointer string, values []vault.Value, nesting int) []capability.Arg {
	kind := values[0].Kind()
	for _, v := range values {
		if v.Kind() != kind {
			return in.wholes(pointer, values)
		}
	}
	var out []capability.Arg
	add := func(all ...capability.Constraint) { out = append(out, capability.Arg{All: all}) }
	switch kind {
	case vault.String:
		out = in.texts(pointer, values)
	case vault.Bool:
		if set, ok := distinct(values, 2); ok {
			add(choice(set))
		}
	case vault.Number:
		if !named(pointer) {
			out = in.numbers(pointer, values)
		}
	case vault.Array:
		out = in.arrays(pointer, values, nesting)
	case vault.Object:
		if members, ok := in.members(pointer, values, nesting+1); ok {
			add(capability.Constraint{Object: members})
		}
	case vault.Null, vault.Absent:
	}
	return append(out, in.wholes(pointer, values)...)
}

// choice is one value, or one of several.
func choice(set []capability.Scalar) capability.Constraint {
	if len(set) == 1 {
		return capability.Constraint{Exact: &set[0]}
	}
	return capability.Constraint{OneOf: set}
}

// distinct returns the different values in canonical order, and false if there are
// more than limit or one is no scalar that a task file can compare with.
func distinct(values []vault.Value, limit int) ([]capability.Scalar, bool) {
	seen := map[string]capability.Scalar{}
	for _, v := range values {
		if _, ok := seen[v.Raw()]; ok {
			continue
		}
		s, ok := scalarOf(v)
		if !ok || len(seen) == limit {
			return nil, false
		}
		seen[v.Raw()] = s
	}
	var out []capability.Scalar
	for _, raw := range slices.Sorted(maps.Keys(seen)) {
		out = append(out, seen[raw])
	}
	return out, len(out) > 0
}

func scalarOf(v vault.Value) (capability.Scalar, bool) {
	if s, ok := v.Str(); ok {
		return capability.String(s), true
	}
	if b, ok := v.Bool(); ok {
		return capability.Bool(b), true
	}
	n, ok := v.Int()
	return capability.Int(n), ok && n >= -maxSafe && n <= maxSafe
}

// numbers lists few, and else takes the range from the least to the most. An amount
// is always a range: the next one is another.
func (in *inference) numbers(pointer string, values []vault.Value) (out []capability.Arg) {
	if in.roles[pointer] != vault.RoleAmount {
		if set, ok := distinct(values, in.list); ok {
			out = append(out, capability.One(choice(set)))
		}
	}
	low, high := int64(math.MaxInt64), int64(math.MinInt64)
	dlow, dhigh := capability.Decimal(math.MaxInt64), capability.Decimal(math.MinInt64)
	whole, decimal := true, true
	for _, v := range values {
		n, ok := v.Int()
		whole = whole && ok
		low, high = min(low, n), max(high, n)
		d, err := capability.ParseDecimal(v.Raw())
		decimal = decimal && err == nil
		dlow, dhigh = min(dlow, d), max(dhigh, d)
	}
	if whole {
		out = append(out, capability.One(capability.Constraint{Int: &capability.IntRange{Min: low, Max: high}}))
	}
	if decimal {
		out = append(out, capability.One(capability.Constraint{Decimal: &capability.DecimalRange{Min: dlow, Max: dhigh}}))
	}
	return out
}

// texts lists few short values, and else says of what form they are.
func (in *inference) texts(pointer string, values []vault.Value) (out []capability.Arg) {
	add := func(all ...capability.Constraint) { out = append(out, capability.Arg{All: all}) }
	all := map[string]bool{}
	longest, secret := 0, false
	for _, v := range values {
		s, _ := v.Str()
		all[s] = true
		longest = max(longest, utf8.RuneCountInString(s))
		secret = secret || in.secret(pointer, s)
	}
	limit := in.room(int64(longest))
	length := capability.Constraint{MaxLength: &limit}
	if secret {
		in.kept++
		add(length)
		return out
	}
	set := slices.Sorted(maps.Keys(all))
	role := in.roles[pointer]
	if longest <= longText && role != vault.RoleContent || role == vault.RolePath || strings.HasPrefix(set[0], "/") {
		if listed, ok := distinct(values, in.list); ok {
			add(choice(listed))
		}
	}
	if dir, ok := commonPath(set); ok {
		add(capability.Constraint{SubPath: &dir})
	}
	if domains, ok := few(set, emailDomain); ok {
		add(capability.Constraint{EmailDomain: domains})
	}
	if u, ok := commonURL(set); ok {
		add(capability.Constraint{URL: u})
	}
	if role == vault.RoleHost {
		if hosts, ok := few(set, func(s string) (string, bool) { return strings.ToLower(s), strings.Contains(s, ".") }); ok {
			add(capability.Constraint{HostSuffix: hosts})
		}
	}
	add(length)
	return out
}

// few returns what f makes of every text, each once, if these are not too many.
func few(texts []string, f func(string) (string, bool)) ([]string, bool) {
	var out []string
	for _, s := range texts {
		t, ok := f(s)
		if !ok {
			return nil, false
		}
		if !slices.Contains(out, t) {
			out = append(out, t)
		}
		if len(out) > maxPatternSet {
			return nil, false
		}
	}
	slices.Sort(out)
	return out, len(out) > 0
}

func emailDomain(s string) (string, bool) {
	a, err := mail.ParseAddress(s)
	if err != nil || a.Address != s {
		return "", false
	}
	return strings.ToLower(s[strings.LastIndexByte(s, '@')+1:]), true
}

// commonPath returns the deepest directory that holds all paths.
func commonPath(paths []string) (string, bool) {
	for _, p := range paths {
		if !plainPath(p) {
			return "", false
		}
	}
	if len(paths) == 1 {
		return dirOf(paths[0]), true
	}
	segments := strings.Split(paths[0], "/")
	for _, p := range paths[1:] {
		other := strings.Split(p, "/")
		n := 0
		for n < len(segments) && n < len(other) && segments[n] == other[n] {
			n++
		}
		segments = segments[:n]
	}
	return cmp.Or(strings.Join(segments, "/"), "/"), true
}

// dirOf is the directory of a path.
func dirOf(p string) string { return cmp.Or(p[:strings.LastIndexByte(p, '/')], "/") }

// commonURL returns schemes, hosts and ports of all URLs and the path they share.
func commonURL(texts []string) (*capability.URL, bool) {
	var paths []string
	schemes, hosts, ports := map[string]bool{}, map[string]bool{}, map[int]bool{}
	for _, s := range texts {
		u, err := url.Parse(s)
		if err != nil || u.Host == "" || u.User != nil {
			return nil, false
		}
		schemes[u.Scheme], hosts[u.Hostname()] = true, true
		port := map[string]int{"http": 80, "ws": 80, "https": 443, "wss": 443}[u.Scheme]
		if p := u.Port(); p != "" {
			if port, err = strconv.Atoi(p); err != nil {
				return nil, false
			}
		}
		ports[port] = true
		if len(hosts) > maxPatternSet || len(ports) > maxPatternSet {
			return nil, false
		}
		paths = append(paths, cmp.Or(u.EscapedPath(), "/"))
	}
	u := &capability.URL{Hosts: slices.Sorted(maps.Keys(hosts))}
	if len(schemes) != 1 || !schemes["https"] {
		u.Schemes = slices.Sorted(maps.Keys(schemes))
	}
	if len(ports) != 1 || !ports[443] || u.Schemes != nil {
		u.Ports = slices.Sorted(maps.Keys(ports))
	}
	if p, ok := commonPath(paths); ok && p != "/" {
		u.Path = p
	}
	return u, true
}

// arrays constrains the elements and how many there are.
func (in *inference) arrays(pointer string, values []vault.Value, nesting int) (out []capability.Arg) {
	var elements []vault.Value
	low, high := int64(math.MaxInt64), int64(0)
	once := true
	for _, v := range values {
		low, high = min(low, int64(v.Len())), max(high, int64(v.Len()))
		seen := map[string]bool{}
		for _, e := range v.All() {
			once = once && !seen[e.Raw()]
			seen[e.Raw()] = true
			elements = append(elements, e)
		}
	}
	count := capability.Constraint{Count: &capability.IntRange{Min: low, Max: high}}
	if len(elements) == 0 {
		// A list that may hold nothing still has to say of what.
		empty := capability.String("")
		each := capability.One(capability.Constraint{Exact: &empty})
		return []capability.Arg{capability.One(capability.Constraint{Each: &each}, count)}
	}
	each, ok := in.arg(pointer, elements, nesting+1)
	if !ok {
		return nil
	}
	if once && len(each.All) == 1 {
		switch c := each.All[0]; {
		case c.OneOf != nil:
			out = append(out, capability.One(capability.Constraint{Subset: c.OneOf}, count))
		case c.Exact != nil:
			out = append(out, capability.One(capability.Constraint{Subset: []capability.Scalar{*c.Exact}}, count))
		}
	}
	return append(out, capability.One(capability.Constraint{Each: &each}, count))
}

// members constrains what objects have: what is not in all of them is optional. at
// is the pointer of the objects.
func (in *inference) members(at string, objects []vault.Value, nesting int) (capability.Args, bool) {
	found := map[string][]vault.Value{}
	for _, o := range objects {
		for name, v := range o.All() {
			found[name] = append(found[name], v)
		}
	}
	if len(found) > maxArgs {
		return nil, false
	}
	out := capability.Args{}
	for name, values := range found {
		if !nameable(name) || looksSecret(name) {
			return nil, false
		}
		p := "/" + vault.PointerToken(name)
		a, ok := in.arg(at+p, values, nesting)
		if !ok {
			return nil, false
		}
		a.Optional = len(values) < len(objects)
		out[p] = a
	}
	return out, true
}

// nameable reports whether a task file can name an argument.
func nameable(name string) bool {
	return name != "" && len(name) < maxTarget/2 && !strings.ContainsFunc(name, hidden)
}

// wholes are for values of mixed types, null, and numbers that no range holds.
func (in *inference) wholes(pointer string, values []vault.Value) (out []capability.Arg) {
	raws := map[string]bool{}
	kinds := map[string]bool{}
	longest := 0
	open := false
	for _, v := range values {
		raws[v.Raw()] = true
		kinds[v.Kind().String()] = true
		open = open || v.Kind() == vault.Array || v.Kind() == vault.Object
		if s, ok := v.Str(); ok {
			longest = max(longest, utf8.RuneCountInString(s))
		}
		for below, leaf := range v.Walk() {
			s, _ := leaf.Str()
			if leaf.Kind() == vault.Number {
				s = leaf.Raw()
			}
			if in.secret(pointer+below, s) || looksSecret(below) {
				in.kept++
				raws[""] = true // no JSON, so the values are not listed
			}
		}
	}
	add := func(doc string) {
		if v, err := vault.ParseValue([]byte(doc)); err == nil {
			text := v.String()
			out = append(out, capability.One(capability.Constraint{Schema: &text}))
		}
	}
	if size := 0; len(raws) <= max(in.list, 1) {
		for raw := range raws {
			size += len(raw)
		}
		if size < maxConstraint {
			add(`{"enum":[` + strings.Join(slices.Sorted(maps.Keys(raws)), ",") + `]}`)
		}
	}
	if open {
		return out // a type alone leaves open what is inside
	}
	var names []string
	for _, k := range slices.Sorted(maps.Keys(kinds)) {
		names = append(names, `"`+k+`"`)
	}
	doc := `{"type":[` + strings.Join(names, ",") + `]`
	if kinds["string"] {
		doc += `,"maxLength":` + strconv.FormatInt(in.room(int64(longest)), 10)
	}
	add(doc + "}")
	return out
}

package taskfile

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
)

// A writer writes parts of task files so that they read back as what they were
// made from. What it writes is one line of YAML in braces, or a block where that
// line would be long.
type writer struct{ strings.Builder }

// maxLine is how long a rule may be on one line.
const maxLine = 100

// plainText is what needs no quotes anywhere in YAML: words with single spaces. It
// begins with a letter or a slash, so it is no number and no date.
var plainText = regexp.MustCompile(`^[A-Za-z/][A-Za-z0-9/_.@+-]*( [A-Za-z0-9/][A-Za-z0-9/_.@+-]*)*$`)

// words that YAML readers, old ones included, take for something else than text.
var yamlWords = []string{"true", "false", "yes", "no", "on", "off", "y", "n", "null"}

// text writes a string, in double quotes unless that changes nothing.
func (w *writer) text(s string) {
	if plainText.MatchString(s) && !slices.Contains(yamlWords, strings.ToLower(s)) {
		w.WriteString(s)
		return
	}
	w.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"', r == '\\':
			w.WriteByte('\\')
			w.WriteRune(r)
		case r == ' ', unicode.IsPrint(r):
			w.WriteRune(r)
		case r > 0xffff:
			w.WriteString(`\U` + hex(r, 8))
		default:
			w.WriteString(`\u` + hex(r, 4))
		}
	}
	w.WriteByte('"')
}

func hex(r rune, digits int) string {
	s := strconv.FormatInt(int64(r), 16)
	return strings.Repeat("0", digits-len(s)) + s
}

// list writes values in brackets.
func list[T any](w *writer, values []T, one func(T)) {
	w.WriteByte('[')
	for i, v := range values {
		if i > 0 {
			w.WriteString(", ")
		}
		one(v)
	}
	w.WriteByte(']')
}

func (w *writer) texts(values []string) { list(w, values, w.text) }

func (w *writer) scalar(s capability.Scalar) {
	raw, err := s.MarshalJSON()
	if err != nil {
		return // the zero Scalar, which nothing makes
	}
	if v, err := vault.ParseValue(raw); err == nil {
		if text, ok := v.Root().Str(); ok {
			w.text(text)
			return
		}
	}
	w.Write(raw)
}

func (w *writer) scalars(values []capability.Scalar) { list(w, values, w.scalar) }

func (w *writer) ints(r *capability.IntRange) {
	list(w, []int64{r.Min, r.Max}, func(n int64) { w.WriteString(strconv.FormatInt(n, 10)) })
}

// argName is the shortest name of the argument at a pointer.
func argName(pointer string) string {
	name := pointer[1:]
	if name == "" || strings.ContainsAny(name, "/~") {
		return pointer
	}
	return name
}

// args writes named arguments in braces.
func (w *writer) args(args capability.Args) {
	w.WriteByte('{')
	for i, p := range slices.Sorted(maps.Keys(args)) {
		if i > 0 {
			w.WriteString(", ")
		}
		w.text(argName(p))
		w.WriteString(": ")
		w.arg(args[p])
	}
	w.WriteByte('}')
}

// arg writes the constraints on one argument in braces.
func (w *writer) arg(a capability.Arg) {
	w.WriteByte('{')
	n := 0
	key := func(name string) {
		if n++; n > 1 {
			w.WriteString(", ")
		}
		w.WriteString(name + ": ")
	}
	for i := range a.All {
		w.constraint(&a.All[i], key)
	}
	if a.Optional {
		key("optional")
		w.WriteString("true")
	}
	w.WriteByte('}')
}

// constraint writes the word of a constraint and what it takes.
func (w *writer) constraint(c *capability.Constraint, key func(string)) {
	key(word(c))
	switch {
	case c.Exact != nil:
		w.scalar(*c.Exact)
	case c.OneOf != nil:
		w.scalars(c.OneOf)
	case c.NotOneOf != nil:
		w.scalars(c.NotOneOf)
	case c.Int != nil:
		w.ints(c.Int)
	case c.Decimal != nil:
		list(w, []capability.Decimal{c.Decimal.Min, c.Decimal.Max}, func(d capability.Decimal) { w.WriteString(d.String()) })
	case c.Prefix != nil:
		w.text(*c.Prefix)
	case c.SubPath != nil:
		w.text(*c.SubPath)
	case c.Glob != nil:
		w.text(*c.Glob)
	case c.Regex != nil:
		w.text(*c.Regex)
	case c.EmailDomain != nil:
		w.texts(c.EmailDomain)
	case c.HostSuffix != nil:
		w.texts(c.HostSuffix)
	case c.CIDR != nil:
		w.texts(c.CIDR)
	case c.URL != nil:
		w.url(c.URL)
	case c.PublicURL != nil:
		w.publicURL(c.PublicURL)
	case c.MaxLength != nil:
		w.WriteString(strconv.FormatInt(*c.MaxLength, 10))
	case c.Length != nil:
		w.ints(c.Length)
	case c.Count != nil:
		w.ints(c.Count)
	case c.Each != nil:
		w.arg(*c.Each)
	case c.Object != nil:
		w.args(c.Object)
	case c.Set != nil:
		w.scalars(c.Set)
	case c.Subset != nil:
		w.scalars(c.Subset)
	case c.Contains != nil:
		w.scalars(c.Contains)
	case c.Argv != nil:
		w.argv(c.Argv)
	case c.Schema != nil:
		w.text(*c.Schema)
	case c.CEL != nil:
		w.text(*c.CEL)
	}
}

// word returns the word of a constraint, which has one field set.
func word(c *capability.Constraint) string {
	switch {
	case c.Exact != nil:
		return "exact"
	case c.OneOf != nil:
		return "one_of"
	case c.NotOneOf != nil:
		return "not_one_of"
	case c.Int != nil:
		return "integer"
	case c.Decimal != nil:
		return "decimal"
	case c.Prefix != nil:
		return "prefix"
	case c.SubPath != nil:
		return "subpath"
	case c.Glob != nil:
		return "glob"
	case c.Regex != nil:
		return "regex"
	case c.EmailDomain != nil:
		return "email_domain"
	case c.HostSuffix != nil:
		return "host_suffix"
	case c.CIDR != nil:
		return "cidr"
	case c.URL != nil:
		return "url"
	case c.PublicURL != nil:
		return "public_url"
	case c.MaxLength != nil:
		return "max_length"
	case c.Length != nil:
		return "length"
	case c.Count != nil:
		return "count"
	case c.Each != nil:
		return "each"
	case c.Object != nil:
		return "object"
	case c.Set != nil:
		return "set"
	case c.Subset != nil:
		return "subset"
	case c.Contains != nil:
		return "contains"
	case c.Argv != nil:
		return "argv"
	case c.Schema != nil:
		return "schema"
	}
	return "cel"
}

// members writes those of an object that are set.
func (w *writer) members(all ...member) {
	w.WriteByte('{')
	n := 0
	for _, m := range all {
		if !m.set {
			continue
		}
		if n++; n > 1 {
			w.WriteString(", ")
		}
		w.WriteString(m.name + ": ")
		m.write()
	}
	w.WriteByte('}')
}

type member struct {
	name  string
	set   bool
	write func()
}

func (w *writer) ports(ports []int) {
	list(w, ports, func(p int) { w.WriteString(strconv.Itoa(p)) })
}

func (w *writer) url(u *capability.URL) {
	w.members(
		member{"schemes", u.Schemes != nil, func() { w.texts(u.Schemes) }},
		member{"hosts", true, func() { w.texts(u.Hosts) }},
		member{"ports", u.Ports != nil, func() { w.ports(u.Ports) }},
		member{"path", u.Path != "", func() { w.text(u.Path) }},
	)
}

func (w *writer) publicURL(u *capability.PublicURL) {
	if u.Schemes == nil && u.Ports == nil {
		w.WriteString("true")
		return
	}
	w.members(
		member{"schemes", u.Schemes != nil, func() { w.texts(u.Schemes) }},
		member{"ports", u.Ports != nil, func() { w.ports(u.Ports) }},
	)
}

func (w *writer) argv(a *capability.Argv) {
	w.members(
		member{"programs", true, func() { w.texts(a.Programs) }},
		member{"options", a.Options != nil, func() { w.texts(a.Options) }},
		member{"values", a.Values != nil, func() { w.arg(capability.Arg{All: a.Values}) }},
		member{"operands", a.Operands != nil, func() { w.arg(capability.Arg{All: a.Operands}) }},
		member{"max", a.Max != 0, func() { w.WriteString(strconv.Itoa(a.Max)) }},
	)
}

// groups writes one approval group, or a list.
func (w *writer) groups(ask []string) {
	if len(ask) == 1 {
		w.text(ask[0])
		return
	}
	w.texts(ask)
}

// rule writes an entry of tools and the like, indented by two, on one line if it
// fits and else with a line for each argument.
func (w *writer) rule(target string, r *capability.Rule) {
	var key, line writer
	key.text(target)
	line.WriteString("  " + key.String() + ": {args: ")
	if r.Any {
		line.WriteString("any")
	} else {
		line.args(r.Args)
	}
	if len(r.Ask) > 0 {
		line.WriteString(", ask: ")
		line.groups(r.Ask)
	}
	line.WriteString("}\n")
	if line.Len() <= maxLine || len(r.Args) == 0 {
		w.WriteString(line.String())
		return
	}
	w.WriteString("  " + key.String() + ":\n    args:\n")
	for _, p := range slices.Sorted(maps.Keys(r.Args)) {
		w.WriteString("      ")
		w.text(argName(p))
		w.WriteString(": ")
		w.arg(r.Args[p])
		w.WriteByte('\n')
	}
	if len(r.Ask) > 0 {
		w.WriteString("    ask: ")
		w.groups(r.Ask)
		w.WriteByte('\n')
	}
}

// egress writes an entry of egress.
func (w *writer) egress(e *Egress) {
	w.WriteString("  - {host: ")
	w.text(e.Host)
	w.WriteString(", methods: ")
	w.texts(e.Methods)
	w.WriteString(", path: ")
	if len(e.Paths) == 1 {
		w.text(e.Paths[0])
	} else {
		w.texts(e.Paths)
	}
	w.WriteString("}\n")
}

// comment writes lines that no reader of YAML looks at, indented by spaces. Text of
// others cannot end one.
func (w *writer) comment(spaces int, lines ...string) {
	for _, l := range lines {
		w.WriteString(strings.Repeat(" ", spaces) + "# " + shown(l) + "\n")
	}
}

// shown makes visible what does not show in s, and cuts it.
func shown(s string) string {
	const most = 600
	var b strings.Builder
	for _, r := range s {
		if b.Len() > most {
			b.WriteString("…")
			break
		}
		if hidden(r) || r != ' ' && !unicode.IsPrint(r) {
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

// duration writes d as a file has it: 30m, 1h30m.
func duration(d time.Duration) string {
	s := d.String()
	if before, ok := strings.CutSuffix(s, "m0s"); ok {
		s = before + "m"
	}
	if before, ok := strings.CutSuffix(s, "h0m"); ok {
		s = before + "h"
	}
	return s
}

package vault

import (
	"strings"
	"sync"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// ParseArgs decodes the arguments of a call: an object, or nothing, which counts
// as the empty object. The error is a [*Denial] with a code args.*.
func ParseArgs(raw []byte) (Args, error) {
	if len(raw) == 0 {
		return emptyArgs, nil
	}
	a, err := ParseValue(raw)
	if err != nil {
		return Args{}, err
	}
	if a.Root().Kind() != Object {
		return Args{}, NewDenial(CodeArgsMalformed, "", nil)
	}
	return a, nil
}

// ParseValue decodes any JSON document under the rules of [Args].
func ParseValue(raw []byte) (Args, error) {
	if len(raw) > MaxArgsBytes {
		return Args{}, NewDenial(CodeArgsTooLarge, "", nil)
	}
	p := parsers.Get().(*parser)
	defer parsers.Put(p)
	p.in, p.pos, p.nodes, p.order = raw, 0, p.nodes[:0], p.order[:0]
	if err := p.document(); err != nil {
		return Args{}, err
	}
	p.out = p.out[:0]
	d := &doc{nodes: make([]node, 0, len(p.nodes))}
	p.emit(d, 0)
	d.text = string(p.out)
	return d.seal(), nil
}

// MustArgs is ParseArgs for constants in tests and tables.
func MustArgs(s string) Args {
	a, err := ParseArgs([]byte(s))
	if err != nil {
		panic(err)
	}
	return a
}

var emptyArgs = (&doc{text: "{}", nodes: []node{{kind: Object, end: 2, next: 1}}}).seal()

var parsers = sync.Pool{New: func() any { return new(parser) }}

// A parser reads a document into nodes in input order, then writes it out in
// canonical order.
type parser struct {
	in    []byte
	pos   int
	depth int
	nodes []inNode
	order []uint32 // scratch: the members of the object being written
	out   []byte
}

// An inNode is a value as it stands in the input.
type inNode struct {
	kind     ValueKind
	key      string // decoded
	text     string // strings: decoded; numbers: canonical; literals: as is
	next     uint32
	children uint32
}

func (p *parser) document() error {
	p.depth = 0
	if err := p.value(""); err != nil {
		return err
	}
	p.space()
	if p.pos != len(p.in) {
		return p.malformed()
	}
	return nil
}

func (p *parser) malformed() error { return NewDenial(CodeArgsMalformed, "", nil) }

func (p *parser) space() {
	for p.pos < len(p.in) {
		switch p.in[p.pos] {
		case ' ', '\t', '\n', '\r':
			p.pos++
		default:
			return
		}
	}
}

func (p *parser) peek() byte {
	if p.pos < len(p.in) {
		return p.in[p.pos]
	}
	return 0
}

func (p *parser) value(key string) error {
	if len(p.nodes) >= MaxArgsValues {
		return NewDenial(CodeArgsTooLarge, "", nil)
	}
	p.space()
	at := len(p.nodes)
	p.nodes = append(p.nodes, inNode{key: key})
	var err error
	switch c := p.peek(); {
	case c == '{':
		err = p.object(at)
	case c == '[':
		err = p.array(at)
	case c == '"':
		p.nodes[at].kind = String
		p.nodes[at].text, err = p.str()
	case c == '-' || c >= '0' && c <= '9':
		p.nodes[at].kind = Number
		p.nodes[at].text, err = p.number()
	case c == 't':
		err = p.literal(at, Bool, "true")
	case c == 'f':
		err = p.literal(at, Bool, "false")
	case c == 'n':
		err = p.literal(at, Null, "null")
	default:
		err = p.malformed()
	}
	p.nodes[at].next = uint32(len(p.nodes))
	return err
}

func (p *parser) literal(at int, kind ValueKind, word string) error {
	if len(p.in)-p.pos < len(word) || string(p.in[p.pos:p.pos+len(word)]) != word {
		return p.malformed()
	}
	p.pos += len(word)
	p.nodes[at].kind, p.nodes[at].text = kind, word
	return nil
}

func (p *parser) enter() error {
	p.pos++
	if p.depth++; p.depth > MaxArgsDepth {
		return NewDenial(CodeArgsTooLarge, "", nil)
	}
	return nil
}

func (p *parser) array(at int) error {
	if err := p.enter(); err != nil {
		return err
	}
	defer func() { p.depth-- }()
	p.nodes[at].kind = Array
	p.space()
	if p.peek() == ']' {
		p.pos++
		return nil
	}
	for {
		if err := p.value(""); err != nil {
			return err
		}
		p.nodes[at].children++
		p.space()
		switch p.peek() {
		case ',':
			p.pos++
		case ']':
			p.pos++
			return nil
		default:
			return p.malformed()
		}
	}
}

func (p *parser) object(at int) error {
	if err := p.enter(); err != nil {
		return err
	}
	defer func() { p.depth-- }()
	p.nodes[at].kind = Object
	p.space()
	if p.peek() == '}' {
		p.pos++
		return nil
	}
	for {
		p.space()
		key, err := p.str()
		if err != nil {
			return err
		}
		p.space()
		if p.peek() != ':' {
			return p.malformed()
		}
		p.pos++
		if err := p.value(key); err != nil {
			return err
		}
		p.nodes[at].children++
		p.space()
		switch p.peek() {
		case ',':
			p.pos++
		case '}':
			p.pos++
			return p.unique(at)
		default:
			return p.malformed()
		}
	}
}

// unique refuses an object in which two keys are equal under case folding: some
// decoder further on (Go's own among them) would take one for the other.
func (p *parser) unique(at int) error {
	n := int(p.nodes[at].children)
	const fewKeys = 8 // comparing all pairs is cheaper than a map up to here
	if n <= fewKeys {
		for i, a := uint32(0), uint32(at+1); i < uint32(n); i, a = i+1, p.nodes[a].next {
			for j, b := i+1, p.nodes[a].next; j < uint32(n); j, b = j+1, p.nodes[b].next {
				if strings.EqualFold(p.nodes[a].key, p.nodes[b].key) {
					return NewDenial(CodeArgsDuplicate, "", nil)
				}
			}
		}
		return nil
	}
	seen := make(map[string]struct{}, n)
	for i, a := 0, uint32(at+1); i < n; i, a = i+1, p.nodes[a].next {
		k := foldKey(p.nodes[a].key)
		if _, ok := seen[k]; ok {
			return NewDenial(CodeArgsDuplicate, "", nil)
		}
		seen[k] = struct{}{}
	}
	return nil
}

// foldKey maps all strings that strings.EqualFold takes for equal to one.
func foldKey(s string) string {
	return strings.Map(func(r rune) rune {
		least := r
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			least = min(least, f)
		}
		return least
	}, s)
}

func (p *parser) number() (string, error) {
	start := p.pos
	digits := func() bool {
		at := p.pos
		for c := p.peek(); c >= '0' && c <= '9'; c = p.peek() {
			p.pos++
		}
		return p.pos > at
	}
	if p.peek() == '-' {
		p.pos++
	}
	if p.peek() == '0' {
		p.pos++
	} else if !digits() {
		return "", p.malformed()
	}
	if p.peek() == '.' {
		if p.pos++; !digits() {
			return "", p.malformed()
		}
	}
	if c := p.peek(); c == 'e' || c == 'E' {
		p.pos++
		if c := p.peek(); c == '+' || c == '-' {
			p.pos++
		}
		if !digits() {
			return "", p.malformed()
		}
	}
	var tmp [40]byte
	out, ok := canonicalNumber(tmp[:0], string(p.in[start:p.pos]))
	if !ok {
		return "", NewDenial(CodeNumberUnsafe, "", nil)
	}
	return string(out), nil
}

// str reads a string and returns it decoded.
func (p *parser) str() (string, error) {
	if p.peek() != '"' {
		return "", p.malformed()
	}
	p.pos++
	start := p.pos
	for p.pos < len(p.in) {
		switch c := p.in[p.pos]; {
		case c == '"':
			s := p.in[start:p.pos]
			p.pos++
			if !utf8.Valid(s) {
				return "", p.malformed()
			}
			return string(s), nil
		case c == '\\':
			return p.escaped(start)
		case c < 0x20:
			return "", p.malformed()
		}
		p.pos++
	}
	return "", p.malformed()
}

// escaped goes on reading a string that has an escape at p.pos.
func (p *parser) escaped(start int) (string, error) {
	out := append([]byte(nil), p.in[start:p.pos]...)
	for p.pos < len(p.in) {
		c := p.in[p.pos]
		switch {
		case c == '"':
			p.pos++
			if !utf8.Valid(out) {
				return "", p.malformed()
			}
			return string(out), nil
		case c < 0x20:
			return "", p.malformed()
		case c != '\\':
			out = append(out, c)
			p.pos++
			continue
		}
		p.pos++
		c = p.peek()
		p.pos++
		if i := strings.IndexByte(`"\/bfnrt`, c); i >= 0 && c != 0 {
			out = append(out, "\"\\/\b\f\n\r\t"[i])
			continue
		}
		if c != 'u' {
			return "", p.malformed()
		}
		r, ok := p.hex4()
		if !ok {
			return "", p.malformed()
		}
		if utf16.IsSurrogate(r) {
			if p.peek() != '\\' || p.pos+1 >= len(p.in) || p.in[p.pos+1] != 'u' {
				return "", p.malformed()
			}
			p.pos += 2
			low, ok := p.hex4()
			if r = utf16.DecodeRune(r, low); !ok || r == utf8.RuneError {
				return "", p.malformed()
			}
		}
		out = utf8.AppendRune(out, r)
	}
	return "", p.malformed()
}

func (p *parser) hex4() (rune, bool) {
	if len(p.in)-p.pos < 4 {
		return 0, false
	}
	var r rune
	for range 4 {
		c := p.in[p.pos]
		p.pos++
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

// unescape decodes the inside of a canonical string.
func unescape(s string) string {
	i := strings.IndexByte(s, '\\')
	if i < 0 {
		return s
	}
	out := []byte(s[:i])
	for i < len(s) {
		if s[i] != '\\' {
			out = append(out, s[i])
			i++
			continue
		}
		switch c := s[i+1]; c {
		case 'u': // only \u00xx is canonical
			hi, lo := strings.IndexByte(hexDigits, s[i+4]), strings.IndexByte(hexDigits, s[i+5])
			out = append(out, byte(hi<<4|lo))
			i += 6
			continue
		case 'b':
			out = append(out, '\b')
		case 't':
			out = append(out, '\t')
		case 'n':
			out = append(out, '\n')
		case 'f':
			out = append(out, '\f')
		case 'r':
			out = append(out, '\r')
		default:
			out = append(out, c)
		}
		i += 2
	}
	return string(out)
}

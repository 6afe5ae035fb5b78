package vault

import (
	"crypto/sha256"
	"iter"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Limits on one JSON document that came from outside. They are far above what a
// tool call needs and low enough that a document cannot hold a stage up.
const (
	MaxArgsBytes  = 4 << 20 // bytes before decoding
	MaxArgsDepth  = 64      // nested arrays and objects
	MaxArgsValues = 100_000 // values and keys in all
)

// Args is a JSON document in canonical form (RFC 8785) with an index for looking
// things up without decoding again. It is immutable, and two Args with the same
// digest are the same bytes. The zero Args is no document.
//
// The decoder accepts I-JSON (RFC 7493) only: duplicate keys, keys equal under
// case folding, invalid UTF-8, lone surrogates, trailing data and numbers that a
// double does not keep are refused. There is no Unicode normalisation.
type Args struct{ d *doc }

type doc struct {
	text   string
	nodes  []node
	digest Digest
}

// A node is one value. The children of an array or object follow it directly;
// next leads over a value with all its children.
type node struct {
	kind             ValueKind
	keyStart, keyEnd uint32 // of an object member, without quotes
	start, end       uint32 // of the value
	next             uint32 // index of the node after this one and its children
	children         uint32
}

// A ValueKind is the JSON type of a [Value]. The zero ValueKind is no value.
type ValueKind uint8

// The JSON types.
const (
	Absent ValueKind = iota
	Null
	Bool
	Number
	String
	Array
	Object
)

func (k ValueKind) String() string {
	return [...]string{"absent", "null", "boolean", "number", "string", "array", "object"}[k]
}

// IsZero reports whether a holds no document.
func (a Args) IsZero() bool { return a.d == nil }

// String returns the canonical text, "" for the zero Args.
func (a Args) String() string {
	if a.d == nil {
		return ""
	}
	return a.d.text
}

// Bytes returns a copy of the canonical bytes.
func (a Args) Bytes() []byte { return []byte(a.String()) }

// MarshalJSON returns the canonical bytes, null for the zero Args. Encoding a
// struct with an Args by encoding/json escapes <, > and &: write the bytes
// yourself where a digest depends on them.
func (a Args) MarshalJSON() ([]byte, error) {
	if a.d == nil {
		return []byte("null"), nil
	}
	return a.Bytes(), nil
}

// Digest returns SHA-256("vault/args/v1" ‖ canonical bytes). It stays in memory:
// arguments are guessable, so records keep salted commitments instead.
func (a Args) Digest() Digest {
	if a.d == nil {
		return Digest{}
	}
	return a.d.digest
}

// Root returns the document as a Value.
func (a Args) Root() Value {
	if a.d == nil {
		return Value{}
	}
	return Value{a.d, 0}
}

// At returns the value at a JSON Pointer (RFC 6901), or an absent one.
func (a Args) At(pointer string) Value { return a.Root().At(pointer) }

// A Value is a cursor into an Args. The zero Value is absent.
type Value struct {
	d *doc
	i uint32
}

// Kind returns the JSON type of v.
func (v Value) Kind() ValueKind {
	if v.d == nil {
		return Absent
	}
	return v.d.nodes[v.i].kind
}

// Raw returns the canonical text of v.
func (v Value) Raw() string {
	if v.d == nil {
		return ""
	}
	n := &v.d.nodes[v.i]
	return v.d.text[n.start:n.end]
}

// Args returns v as a document of its own, the zero Args for an absent v. It
// shares v's text: the canonical form of a part is the part of the canonical form.
func (v Value) Args() Args {
	if v.d == nil {
		return Args{}
	}
	root := v.d.nodes[v.i]
	d := &doc{text: v.d.text[root.start:root.end], nodes: slices.Clone(v.d.nodes[v.i:root.next])}
	for i := range d.nodes {
		n := &d.nodes[i]
		n.start -= root.start
		n.end -= root.start
		n.next -= v.i
		if i == 0 {
			n.keyStart, n.keyEnd = 0, 0
			continue
		}
		if n.keyEnd > 0 {
			n.keyStart -= root.start
			n.keyEnd -= root.start
		}
	}
	return d.seal()
}

// Str returns the decoded string, and false if v is not one.
func (v Value) Str() (string, bool) {
	if v.Kind() != String {
		return "", false
	}
	raw := v.Raw()
	return unescape(raw[1 : len(raw)-1]), true
}

// Int returns the integer, and false if v is not a whole number.
func (v Value) Int() (int64, bool) {
	if v.Kind() != Number {
		return 0, false
	}
	n, err := strconv.ParseInt(v.Raw(), 10, 64)
	return n, err == nil
}

// Float returns the number, and false if v is not one.
func (v Value) Float() (float64, bool) {
	if v.Kind() != Number {
		return 0, false
	}
	f, err := strconv.ParseFloat(v.Raw(), 64)
	return f, err == nil
}

// Bool returns the boolean, and false if v is not one.
func (v Value) Bool() (b, ok bool) {
	if v.Kind() != Bool {
		return false, false
	}
	return v.Raw() == "true", true
}

// Len returns the number of elements or members.
func (v Value) Len() int {
	if v.d == nil {
		return 0
	}
	return int(v.d.nodes[v.i].children)
}

// Get returns the member of an object, or an absent Value.
func (v Value) Get(key string) Value {
	if v.Kind() != Object {
		return Value{}
	}
	child := v.i + 1
	for range v.d.nodes[v.i].children {
		n := &v.d.nodes[child]
		k := v.d.text[n.keyStart:n.keyEnd]
		if k == key || strings.IndexByte(k, '\\') >= 0 && unescape(k) == key {
			return Value{v.d, child}
		}
		child = n.next
	}
	return Value{}
}

// Index returns element i of an array, or an absent Value.
func (v Value) Index(i int) Value {
	if v.Kind() != Array || i < 0 || i >= v.Len() {
		return Value{}
	}
	child := v.i + 1
	for range i {
		child = v.d.nodes[child].next
	}
	return Value{v.d, child}
}

// All yields the members of an object with their keys, or the elements of an
// array with an empty key, in canonical order.
func (v Value) All() iter.Seq2[string, Value] {
	return func(yield func(string, Value) bool) {
		if v.d == nil {
			return
		}
		child := v.i + 1
		for range v.d.nodes[v.i].children {
			n := &v.d.nodes[child]
			if !yield(unescape(v.d.text[n.keyStart:n.keyEnd]), Value{v.d, child}) {
				return
			}
			child = n.next
		}
	}
}

// At returns the value at a JSON Pointer relative to v, or an absent one.
func (v Value) At(pointer string) Value {
	for pointer != "" {
		if pointer[0] != '/' {
			return Value{}
		}
		token := pointer[1:]
		pointer = ""
		if i := strings.IndexByte(token, '/'); i >= 0 {
			token, pointer = token[:i], token[i:]
		}
		if strings.IndexByte(token, '~') >= 0 {
			token = strings.ReplaceAll(strings.ReplaceAll(token, "~1", "/"), "~0", "~")
		}
		switch v.Kind() {
		case Object:
			v = v.Get(token)
		case Array:
			i, err := strconv.Atoi(token)
			if err != nil || strconv.Itoa(i) != token {
				return Value{}
			}
			v = v.Index(i)
		default:
			return Value{}
		}
	}
	return v
}

// Walk yields every leaf value below v with its JSON Pointer, depth first.
func (v Value) Walk() iter.Seq2[string, Value] {
	return func(yield func(string, Value) bool) { v.walk("", yield) }
}

func (v Value) walk(path string, yield func(string, Value) bool) bool {
	switch v.Kind() {
	case Object:
		for k, c := range v.All() {
			if !c.walk(path+"/"+PointerToken(k), yield) {
				return false
			}
		}
		return true
	case Array:
		i := 0
		for _, c := range v.All() {
			if !c.walk(path+"/"+strconv.Itoa(i), yield) {
				return false
			}
			i++
		}
		return true
	case Absent:
		return true
	case Null, Bool, Number, String:
	}
	return yield(path, v)
}

// PointerToken escapes one reference token of a JSON Pointer.
func PointerToken(s string) string {
	if !strings.ContainsAny(s, "~/") {
		return s
	}
	return strings.ReplaceAll(strings.ReplaceAll(s, "~", "~0"), "/", "~1")
}

// seal fixes the digest of a finished document.
func (d *doc) seal() Args {
	buf := make([]byte, 0, len(argsContext)+len(d.text))
	d.digest = sha256.Sum256(append(append(buf, argsContext...), d.text...))
	return Args{d}
}

const argsContext = "vault/args/v1"

// maxSafe is the largest integer that a double keeps together with its neighbours.
const maxSafe = 1<<53 - 1

// appendNumber appends the RFC 8785 form of a double (ECMA-262, 6.1.6.1.20).
func appendNumber(b []byte, f float64) []byte {
	if f == 0 {
		return append(b, '0')
	}
	if f < 0 {
		b = append(b, '-')
		f = -f
	}
	var tmp [32]byte
	e := strconv.AppendFloat(tmp[:0], f, 'e', -1, 64)
	digits, exp := splitExponent(e)
	k, n := len(digits), exp+1
	switch {
	case k <= n && n <= 21:
		b = append(b, digits...)
		for range n - k {
			b = append(b, '0')
		}
	case 0 < n && n <= 21:
		b = append(append(append(b, digits[:n]...), '.'), digits[n:]...)
	case -6 < n && n <= 0:
		b = append(b, '0', '.')
		for range -n {
			b = append(b, '0')
		}
		b = append(b, digits...)
	default:
		b = append(b, digits[0])
		if k > 1 {
			b = append(append(b, '.'), digits[1:]...)
		}
		b = append(b, 'e')
		if n-1 > 0 {
			b = append(b, '+')
		}
		b = strconv.AppendInt(b, int64(n-1), 10)
	}
	return b
}

// splitExponent takes d.ddde±xx apart. The digits share e's memory.
func splitExponent(e []byte) (digits []byte, exp int) {
	i := len(e) - 1
	for e[i] != 'e' {
		i--
	}
	exp, _ = strconv.Atoi(string(e[i+1:]))
	if i > 1 {
		copy(e[1:], e[2:i])
		return e[:i-1], exp
	}
	return e[:1], exp
}

// canonicalNumber appends the canonical form of a JSON number, or reports that a
// double does not keep its exact decimal value.
func canonicalNumber(b []byte, s string) ([]byte, bool) {
	if len(s) <= 15 && !strings.ContainsAny(s, ".eE") {
		if s == "-0" {
			s = "0"
		}
		return append(b, s...), true
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsInf(f, 0) {
		return b, false
	}
	if f == math.Trunc(f) && math.Abs(f) > maxSafe {
		return b, false
	}
	at := len(b)
	b = appendNumber(b, f)
	d1, e1 := decimal(s)
	d2, e2 := decimal(string(b[at:]))
	return b, d1 == d2 && e1 == e2
}

// decimal splits a JSON number into its significant digits and the power of ten
// of the last one, without the sign; zero is "", 0.
func decimal(s string) (digits string, exp int) {
	s = strings.TrimPrefix(s, "-")
	if i := strings.IndexAny(s, "eE"); i >= 0 {
		var err error
		if exp, err = strconv.Atoi(s[i+1:]); err != nil {
			return "?", 0 // beyond any double; equal to nothing
		}
		s = s[:i]
	}
	if i := strings.IndexByte(s, '.'); i >= 0 {
		exp -= len(s) - i - 1
		s = s[:i] + s[i+1:]
	}
	s = strings.TrimLeft(s, "0")
	t := strings.TrimRight(s, "0")
	if t == "" {
		return "", 0
	}
	return t, exp + len(s) - len(t)
}

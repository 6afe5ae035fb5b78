package capability

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/pilox/vault"
)

// Args are named arguments by JSON Pointer. Pointers go through objects only and
// none may lead through another one.
type Args map[string]Arg

// An Arg is what one argument must be. Without constraints any scalar will do;
// an array needs Each and an object needs Object, so that nothing inside them
// goes unchecked.
type Arg struct {
	Optional bool         `cbor:"1,keyasint,omitzero" json:"optional,omitzero"`
	All      []Constraint `cbor:"2,keyasint,omitzero" json:"all,omitzero"` // all must hold
}

// A Constraint is one test of a value. Exactly one field is set. A value of
// another type than the test is for fails it.
type Constraint struct {
	Exact       *Scalar       `cbor:"1,keyasint,omitzero" json:"exact,omitzero"`
	OneOf       []Scalar      `cbor:"2,keyasint,omitzero" json:"one_of,omitzero"`
	Int         *IntRange     `cbor:"3,keyasint,omitzero" json:"integer,omitzero"`
	Decimal     *DecimalRange `cbor:"4,keyasint,omitzero" json:"decimal,omitzero"`
	Prefix      *string       `cbor:"5,keyasint,omitzero" json:"prefix,omitzero"`       // of a string; never for paths
	SubPath     *string       `cbor:"6,keyasint,omitzero" json:"subpath,omitzero"`      // this absolute path or one below it, by segments; ".", "..", empty segments and NUL are refused
	Glob        *string       `cbor:"7,keyasint,omitzero" json:"glob,omitzero"`         // whole value: ? and * stop at "/", ** does not
	Regex       *string       `cbor:"8,keyasint,omitzero" json:"regex,omitzero"`        // whole value, RE2
	EmailDomain []string      `cbor:"9,keyasint,omitzero" json:"email_domain,omitzero"` // one plain address in one of these domains, not below them
	URL         *URL          `cbor:"10,keyasint,omitzero" json:"url,omitzero"`         //
	HostSuffix  []string      `cbor:"11,keyasint,omitzero" json:"host_suffix,omitzero"` // a host name that is one of these or below it
	MaxLength   *int64        `cbor:"12,keyasint,omitzero" json:"max_length,omitzero"`  // of a string, in code points
	Each        *Arg          `cbor:"13,keyasint,omitzero" json:"each,omitzero"`        // every element of an array
	Object      Args          `cbor:"14,keyasint,omitzero" json:"object,omitzero"`      // an object with these members, closed like the arguments
	NotOneOf    []Scalar      `cbor:"15,keyasint,omitzero" json:"not_one_of,omitzero"`  // a scalar of a type that is listed, and none of these
	CIDR        []string      `cbor:"16,keyasint,omitzero" json:"cidr,omitzero"`        // an IP address in one of these networks
	PublicURL   *PublicURL    `cbor:"17,keyasint,omitzero" json:"public_url,omitzero"`  // a URL that cannot name a private address
	Argv        *Argv         `cbor:"18,keyasint,omitzero" json:"argv,omitzero"`        // a program and its arguments
	Set         []Scalar      `cbor:"19,keyasint,omitzero" json:"set,omitzero"`         // an array of exactly these, in any order, each once
	Subset      []Scalar      `cbor:"20,keyasint,omitzero" json:"subset,omitzero"`      // an array of some of these, each at most once
	Contains    []Scalar      `cbor:"21,keyasint,omitzero" json:"contains,omitzero"`    // an array that has each of these; beside each, set or subset
	Count       *IntRange     `cbor:"22,keyasint,omitzero" json:"count,omitzero"`       // of the elements of an array; beside each, set or subset
	Length      *IntRange     `cbor:"23,keyasint,omitzero" json:"length,omitzero"`      // of a string, in code points
	Schema      *string       `cbor:"24,keyasint,omitzero" json:"schema,omitzero"`      // a JSON Schema (2020-12) in canonical JSON, of any value
	CEL         *string       `cbor:"25,keyasint,omitzero" json:"cel,omitzero"`         // a CEL expression over this, of any value
}

// An IntRange is inclusive.
type IntRange struct {
	_   struct{} `cbor:",toarray"`
	Min int64    `json:"min"`
	Max int64    `json:"max"`
}

// A DecimalRange is inclusive.
type DecimalRange struct {
	_   struct{} `cbor:",toarray"`
	Min Decimal  `json:"min"`
	Max Decimal  `json:"max"`
}

// A URL matches an absolute URL without userinfo and fragment whose host is plain
// ASCII. What parsers read differently (backslashes, dot segments, encoded
// slashes, control characters) is refused. A query is let through.
type URL struct {
	Schemes []string `cbor:"1,keyasint,omitzero" json:"schemes,omitzero"` // absent: https
	Hosts   []string `cbor:"2,keyasint" json:"hosts"`                     // exact, or below it when it begins with "."
	Ports   []int    `cbor:"3,keyasint,omitzero" json:"ports,omitzero"`   // absent: the scheme's own
	Path    string   `cbor:"4,keyasint,omitzero" json:"path,omitzero"`    // this path or one below it, by segments; absent: all
}

// A PublicURL is a URL as in [URL] whose host is a name or address of the public
// internet: no private, loopback, link-local, shared or metadata address, no name
// of a private network (a single label, .local, .internal, .localhost, .home.arpa,
// .onion, .test). What a public name leads to is for whoever opens the connection
// to check.
type PublicURL struct {
	Schemes []string `cbor:"1,keyasint,omitzero" json:"schemes,omitzero"` // absent: https
	Ports   []int    `cbor:"2,keyasint,omitzero" json:"ports,omitzero"`   // absent: the scheme's own
}

// An Argv is the argument vector of a program that is started without a shell: an
// array of strings. The first is the program. An argument that begins with "-" is
// an option and has to be listed; the others are operands.
type Argv struct {
	Programs []string     `cbor:"1,keyasint" json:"programs"`                   // the first element, whole
	Options  []string     `cbor:"2,keyasint,omitzero" json:"options,omitzero"`  // "-l", "--all"; "--depth=" takes a value that passes Values
	Values   []Constraint `cbor:"3,keyasint,omitzero" json:"values,omitzero"`   // of options with "="; absent: there are none
	Operands []Constraint `cbor:"4,keyasint,omitzero" json:"operands,omitzero"` // of every operand; absent: there are none
	Max      int          `cbor:"5,keyasint,omitzero" json:"max,omitzero"`      // elements, at most 256; zero: 64
}

// A Decimal is a number of millionths.
type Decimal int64

// ParseDecimal parses a decimal with at most six places, such as 1000 or -0.25.
func ParseDecimal(s string) (Decimal, error) {
	if d, ok := parseDecimal(s); ok {
		return d, nil
	}
	return 0, fmt.Errorf("decimal %q: want at most 12 digits before the point and 6 after it", s)
}

// parseDecimal does without allocation. Twelve digits before the point keep every
// sum that matters far from overflow.
func parseDecimal(s string) (Decimal, bool) {
	digits, negative := strings.CutPrefix(s, "-")
	whole, frac, point := strings.Cut(digits, ".")
	if whole == "" || len(whole) > 12 || len(frac) > 6 || point && frac == "" || len(whole) > 1 && whole[0] == '0' {
		return 0, false
	}
	var n int64
	for i := range len(whole) {
		if whole[i] < '0' || whole[i] > '9' {
			return 0, false
		}
		n = n*10 + int64(whole[i]-'0')
	}
	for i := range 6 {
		n *= 10
		if i >= len(frac) {
			continue
		}
		if frac[i] < '0' || frac[i] > '9' {
			return 0, false
		}
		n += int64(frac[i] - '0')
	}
	if negative {
		n = -n
	}
	return Decimal(n), true
}

func (d Decimal) String() string {
	n, s := int64(d), ""
	if n < 0 {
		s = "-"
	}
	whole, frac := n/1e6, n%1e6
	s += strings.TrimPrefix(strconv.FormatInt(whole, 10), "-")
	if frac != 0 {
		s += "." + strings.TrimRight(fmt.Sprintf("%06d", max(frac, -frac)), "0")
	}
	return s
}

// MarshalJSON returns a JSON number.
func (d Decimal) MarshalJSON() ([]byte, error) { return []byte(d.String()), nil }

// A Scalar is a string, an integer or a boolean. The zero Scalar is invalid.
type Scalar struct {
	kind vault.ValueKind
	s    string
	n    int64 // the integer; 1 for true
}

// String returns a Scalar that equals the string s only.
func String(s string) Scalar { return Scalar{kind: vault.String, s: s} }

// Int returns a Scalar that equals the integer n only.
func Int(n int64) Scalar { return Scalar{kind: vault.Number, n: n} }

// Bool returns a Scalar that equals the boolean b only.
func Bool(b bool) Scalar {
	if b {
		return Scalar{kind: vault.Bool, n: 1}
	}
	return Scalar{kind: vault.Bool}
}

// MarshalJSON returns the value in canonical JSON, the form it is compared in.
func (s Scalar) MarshalJSON() ([]byte, error) {
	switch s.kind {
	case vault.String:
		return vault.AppendQuoted(nil, s.s), nil
	case vault.Number:
		return strconv.AppendInt(nil, s.n, 10), nil
	case vault.Bool:
		return strconv.AppendBool(nil, s.n == 1), nil
	default:
		return nil, errScalar
	}
}

// MarshalCBOR returns a text string, an integer or a boolean.
func (s Scalar) MarshalCBOR() ([]byte, error) {
	switch s.kind {
	case vault.String:
		return appendText(make([]byte, 0, len(s.s)+9), s.s), nil
	case vault.Number:
		if s.n < 0 {
			return appendHead(make([]byte, 0, 9), majorNegative, uint64(-1-s.n)), nil
		}
		return appendHead(make([]byte, 0, 9), majorUint, uint64(s.n)), nil
	case vault.Bool:
		return []byte{simpleFalse + byte(s.n)}, nil
	default:
		return nil, errScalar
	}
}

// UnmarshalCBOR parses a text string, an integer or a boolean.
func (s *Scalar) UnmarshalCBOR(b []byte) error {
	if len(b) == 1 && (b[0] == simpleFalse || b[0] == simpleTrue) {
		*s = Bool(b[0] == simpleTrue)
		return nil
	}
	if text, rest, ok := readText(b); ok && len(rest) == 0 {
		*s = String(text)
		return nil
	}
	major, n, rest, ok := readHead(b)
	if !ok || len(rest) != 0 || n > math.MaxInt64 || major != majorUint && major != majorNegative {
		return errScalar
	}
	if *s = Int(int64(n)); major == majorNegative {
		s.n = -1 - s.n
	}
	return nil
}

var errScalar = errors.New("want a string, an integer or a boolean; ranges are for other numbers")

// One returns an Arg that must pass all constraints.
func One(all ...Constraint) Arg { return Arg{All: all} }

// kinds returns how many fields of c are set.
func (c *Constraint) kinds() int {
	n := 0
	for _, set := range [...]bool{
		c.Exact != nil, c.OneOf != nil, c.Int != nil, c.Decimal != nil, c.Prefix != nil,
		c.SubPath != nil, c.Glob != nil, c.Regex != nil, c.EmailDomain != nil, c.URL != nil,
		c.HostSuffix != nil, c.MaxLength != nil, c.Each != nil, c.Object != nil, c.NotOneOf != nil,
		c.CIDR != nil, c.PublicURL != nil, c.Argv != nil, c.Set != nil, c.Subset != nil,
		c.Contains != nil, c.Count != nil, c.Length != nil, c.Schema != nil, c.CEL != nil,
	} {
		if set {
			n++
		}
	}
	return n
}

// A granted is one entry of the JSON form of Grants.
type granted struct {
	Server vault.ServerID `json:"server,omitzero"`
	Name   string         `json:"name"`
	Rule   Rule           `json:"rule"`
}

// MarshalJSON returns {kind: [{server, name, rule}]}, sorted.
func (g Grants) MarshalJSON() ([]byte, error) {
	out := make(map[vault.Kind][]granted, len(g))
	for kind, targets := range g {
		list := make([]granted, 0, len(targets))
		for t, r := range targets {
			list = append(list, granted{t.Server, t.Name, r})
		}
		slices.SortFunc(list, func(a, b granted) int {
			if c := bytes.Compare(a.Server[:], b.Server[:]); c != 0 {
				return c
			}
			return strings.Compare(a.Name, b.Name)
		})
		out[kind] = list
	}
	return json.Marshal(out)
}

package capability

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
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
	Optional bool         `cbor:"1,keyasint,omitzero"`
	All      []Constraint `cbor:"2,keyasint,omitzero"` // all must hold
}

// A Constraint is one test of a value. Exactly one field is set. A value of
// another type than the test is for fails it.
type Constraint struct {
	Exact       *Scalar       `cbor:"1,keyasint,omitzero" json:"exact,omitzero"`
	OneOf       []Scalar      `cbor:"2,keyasint,omitzero" json:"one_of,omitzero"`
	Int         *IntRange     `cbor:"3,keyasint,omitzero" json:"int,omitzero"`
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
}

// An IntRange is inclusive.
type IntRange struct {
	_   struct{} `cbor:",toarray"`
	Min int64
	Max int64
}

// A DecimalRange is inclusive.
type DecimalRange struct {
	_   struct{} `cbor:",toarray"`
	Min Decimal
	Max Decimal
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

// UnmarshalJSON parses a JSON number of at most six places.
func (d *Decimal) UnmarshalJSON(b []byte) (err error) {
	*d, err = ParseDecimal(string(b))
	return err
}

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
	}
	return nil, errScalar
}

// UnmarshalJSON parses a string, an integer or a boolean.
func (s *Scalar) UnmarshalJSON(b []byte) error {
	a, err := vault.ParseValue(b)
	if err != nil {
		return err
	}
	v := a.Root()
	if t, ok := v.Str(); ok {
		*s = String(t)
	} else if n, ok := v.Int(); ok {
		*s = Int(n)
	} else if t, ok := v.Bool(); ok {
		*s = Bool(t)
	} else {
		return errScalar
	}
	return nil
}

// MarshalCBOR returns a text string, an integer or a boolean.
func (s Scalar) MarshalCBOR() ([]byte, error) {
	switch s.kind {
	case vault.String:
		return det.enc.Marshal(s.s)
	case vault.Number:
		return det.enc.Marshal(s.n)
	case vault.Bool:
		return det.enc.Marshal(s.n == 1)
	}
	return nil, errScalar
}

// UnmarshalCBOR parses a text string, an integer or a boolean.
func (s *Scalar) UnmarshalCBOR(b []byte) error {
	var v any
	if err := det.dec.Unmarshal(b, &v); err != nil {
		return err
	}
	switch v := v.(type) {
	case string:
		*s = String(v)
	case int64:
		*s = Int(v)
	case bool:
		*s = Bool(v)
	default:
		return errScalar
	}
	return nil
}

var errScalar = errors.New("want a string, an integer or a boolean; ranges are for other numbers")

// One returns an Arg that must pass all constraints.
func One(all ...Constraint) Arg { return Arg{All: all} }

// split returns the fields of c that are set, one Constraint each.
func (c Constraint) split() []Constraint {
	var out []Constraint
	add := func(set bool, one Constraint) {
		if set {
			out = append(out, one)
		}
	}
	add(c.Exact != nil, Constraint{Exact: c.Exact})
	add(c.OneOf != nil, Constraint{OneOf: c.OneOf})
	add(c.Int != nil, Constraint{Int: c.Int})
	add(c.Decimal != nil, Constraint{Decimal: c.Decimal})
	add(c.Prefix != nil, Constraint{Prefix: c.Prefix})
	add(c.SubPath != nil, Constraint{SubPath: c.SubPath})
	add(c.Glob != nil, Constraint{Glob: c.Glob})
	add(c.Regex != nil, Constraint{Regex: c.Regex})
	add(c.EmailDomain != nil, Constraint{EmailDomain: c.EmailDomain})
	add(c.URL != nil, Constraint{URL: c.URL})
	add(c.HostSuffix != nil, Constraint{HostSuffix: c.HostSuffix})
	add(c.MaxLength != nil, Constraint{MaxLength: c.MaxLength})
	add(c.Each != nil, Constraint{Each: c.Each})
	add(c.Object != nil, Constraint{Object: c.Object})
	return out
}

// The JSON forms below are those of task files, in which one object holds several
// constraints, arguments have plain names and a range is a pair.

// strictJSON decodes b and refuses unknown members and duplicate keys.
func strictJSON(b []byte, v any) error {
	if _, err := vault.ParseValue(b); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

// UnmarshalJSON parses an object of constraints, all of which must hold, and
// "optional".
func (a *Arg) UnmarshalJSON(b []byte) error {
	var in struct {
		Optional bool `json:"optional"`
		Constraint
	}
	if err := strictJSON(b, &in); err != nil {
		return err
	}
	*a = Arg{Optional: in.Optional, All: in.split()}
	return nil
}

// MarshalJSON returns one object if no constraint stands twice, else the list
// under "all".
func (a Arg) MarshalJSON() ([]byte, error) {
	var out struct {
		Optional bool `json:"optional,omitzero"`
		Constraint
		All []Constraint `json:"all,omitzero"`
	}
	out.Optional = a.Optional
	for _, c := range a.All {
		next := out.Constraint
		mergeConstraint(&next, c)
		if len(next.split()) == len(out.split()) {
			out.Constraint, out.All = Constraint{}, a.All
			break
		}
		out.Constraint = next
	}
	return json.Marshal(out)
}

func mergeConstraint(to *Constraint, c Constraint) {
	switch {
	case c.Exact != nil:
		to.Exact = c.Exact
	case c.OneOf != nil:
		to.OneOf = c.OneOf
	case c.Int != nil:
		to.Int = c.Int
	case c.Decimal != nil:
		to.Decimal = c.Decimal
	case c.Prefix != nil:
		to.Prefix = c.Prefix
	case c.SubPath != nil:
		to.SubPath = c.SubPath
	case c.Glob != nil:
		to.Glob = c.Glob
	case c.Regex != nil:
		to.Regex = c.Regex
	case c.EmailDomain != nil:
		to.EmailDomain = c.EmailDomain
	case c.URL != nil:
		to.URL = c.URL
	case c.HostSuffix != nil:
		to.HostSuffix = c.HostSuffix
	case c.MaxLength != nil:
		to.MaxLength = c.MaxLength
	case c.Each != nil:
		to.Each = c.Each
	case c.Object != nil:
		to.Object = c.Object
	}
}

// UnmarshalJSON parses an object of arguments. A key that does not begin with "/"
// is the plain name of a top-level argument.
func (a *Args) UnmarshalJSON(b []byte) error {
	var in map[string]Arg
	if err := strictJSON(b, &in); err != nil {
		return err
	}
	if in == nil {
		return errors.New("args: null is no object")
	}
	*a = make(Args, len(in))
	for k, arg := range in {
		if !strings.HasPrefix(k, "/") {
			k = "/" + vault.PointerToken(k)
		}
		if _, twice := (*a)[k]; twice {
			return fmt.Errorf("args: %s is named twice", k)
		}
		(*a)[k] = arg
	}
	return nil
}

// UnmarshalJSON parses a rule of a task file: args (an object or "any"), ask (a
// group or a list), definition and budgets.
func (r *Rule) UnmarshalJSON(b []byte) error {
	var in struct {
		Args       json.RawMessage `json:"args"`
		Ask        json.RawMessage `json:"ask"`
		Definition vault.Digest    `json:"definition"`
		Budgets    *Budgets        `json:"budgets"`
	}
	if err := strictJSON(b, &in); err != nil {
		return err
	}
	out := Rule{Definition: in.Definition, Budgets: in.Budgets}
	if string(in.Args) == `"any"` {
		out.Any = true
	} else if in.Args != nil {
		if err := json.Unmarshal(in.Args, &out.Args); err != nil {
			return fmt.Errorf("args: %w", err)
		}
	}
	var group string
	if in.Ask == nil {
	} else if err := json.Unmarshal(in.Ask, &group); err == nil {
		out.Ask = []string{group}
	} else if err := json.Unmarshal(in.Ask, &out.Ask); err != nil {
		return fmt.Errorf("ask: %w", err)
	}
	*r = out
	return nil
}

// MarshalJSON returns the form of a task file.
func (r Rule) MarshalJSON() ([]byte, error) {
	var out struct {
		Args       any          `json:"args,omitzero"`
		Ask        []string     `json:"ask,omitzero"`
		Definition vault.Digest `json:"definition,omitzero"`
		Budgets    *Budgets     `json:"budgets,omitzero"`
	}
	out.Ask, out.Definition, out.Budgets = r.Ask, r.Definition, r.Budgets
	if r.Any {
		out.Args = "any"
	} else if r.Args != nil {
		out.Args = map[string]Arg(r.Args)
	}
	return json.Marshal(out)
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

// MarshalJSON returns [min, max].
func (r IntRange) MarshalJSON() ([]byte, error) { return json.Marshal([]int64{r.Min, r.Max}) }

// UnmarshalJSON parses [min, max].
func (r *IntRange) UnmarshalJSON(b []byte) error {
	p, err := pair[int64](b)
	if err == nil {
		r.Min, r.Max = p[0], p[1]
	}
	return err
}

// MarshalJSON returns [min, max].
func (r DecimalRange) MarshalJSON() ([]byte, error) { return json.Marshal([]Decimal{r.Min, r.Max}) }

// UnmarshalJSON parses [min, max].
func (r *DecimalRange) UnmarshalJSON(b []byte) error {
	p, err := pair[Decimal](b)
	if err == nil {
		r.Min, r.Max = p[0], p[1]
	}
	return err
}

func pair[T any](b []byte) ([]T, error) {
	var p []T
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, err
	}
	if len(p) != 2 {
		return nil, errors.New("a range is [min, max]")
	}
	return p, nil
}

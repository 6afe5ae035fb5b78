package tool

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"

	"github.com/pilox/vault"
)

// Limits on a schema and on what checking one value with it may cost. A schema
// comes from a server that may be hostile, and the library below has no bound of
// its own: references that double at each level make a kilobyte of schema run for
// ever.
const (
	maxSchemaValues = 8192    // JSON values; compiling is quadratic in them
	maxPattern      = 1024    // bytes of one pattern
	maxProgram      = 10_000  // instructions of one compiled pattern
	maxSteps        = 1 << 19 // cost of one check, some 2 µs each where everything fails
	maxRefWork      = 1 << 27 // values times references squared: chains of $ref are walked twice over
	maxBranchWork   = 1 << 25 // values times alternatives: each keeps a set of properties
	maxEnumWork     = 1 << 28 // values times weight of enumerations, some 5 ns each
	maxPathBytes    = 512     // of the path in a denial
)

var (
	errTooCostly = errors.New("checking the schema costs too much")
	errNoRemote  = errors.New("reference to another document")
	errDiffers   = errors.New("value does not match the schema")
)

// A schema is compiled once and checks many values, one at a time: the counter
// that bounds a check is part of the compiled form.
type schema struct {
	compiled *jsonschema.Schema
	size     schemaSize
	open     bool // lets undeclared properties through
	ignored  bool // a pattern is not enforced

	mu    sync.Mutex
	steps int // left for the check that runs; guarded by mu
}

// schemaOptions say how a schema is read.
type schemaOptions struct {
	closed         bool // refuse what the root does not declare
	ignorePatterns bool
}

const (
	schemaURL = "vault:///schema"
	closedURL = "vault:///closed"
)

// compileSchema compiles the schema in v. Nothing outside v is ever loaded.
func compileSchema(v vault.Value, opt schemaOptions) (s *schema, err error) {
	if v.Kind() != vault.Object {
		return nil, fmt.Errorf("schema: want an object, not %s", v.Kind())
	}
	defer func() {
		if r := recover(); r != nil { // the library, on a schema nobody thought of
			s, err = nil, fmt.Errorf("schema: %v", r)
		}
	}()
	s = &schema{steps: maxSteps}
	values := 0
	doc := toAny(v, &values).(map[string]any)
	if values > maxSchemaValues {
		return nil, fmt.Errorf("schema: more than %d values", maxSchemaValues)
	}
	s.size.measure(v)

	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.UseLoader(refuseLoader{})
	c.UseRegexpEngine(func(p string) (jsonschema.Regexp, error) { return s.pattern(p, opt.ignorePatterns) })
	c.RegisterVocabulary(&jsonschema.Vocabulary{URL: "vault:cost", Compile: s.price})
	c.AssertVocabs() // without it a vocabulary is heard only if the schema names it

	root := schemaURL
	_, additional := doc["additionalProperties"]
	_, unevaluated := doc["unevaluatedProperties"]
	switch {
	case !opt.closed:
		s.open = true
	case additional || unevaluated:
		s.open = doc["additionalProperties"] != false && doc["unevaluatedProperties"] != false
	case !branches(doc):
		// The same where nothing branches, in every draft, without a set to keep.
		doc["additionalProperties"] = false
	case knowsUnevaluated(doc):
		doc["unevaluatedProperties"] = false
	default:
		// Older drafts lack the keyword, so a schema around it says it.
		root = closedURL
		if err := c.AddResource(closedURL, map[string]any{
			"$schema": draft2020, "$ref": schemaURL, "unevaluatedProperties": false,
		}); err != nil {
			return nil, fmt.Errorf("schema: %w", err)
		}
	}
	if err := c.AddResource(schemaURL, doc); err != nil {
		return nil, fmt.Errorf("schema: %w", err)
	}
	if s.compiled, err = c.Compile(root); err != nil {
		return nil, fmt.Errorf("schema: %w", err)
	}
	return s, nil
}

const draft2020 = "https://json-schema.org/draft/2020-12/schema"

// branches reports whether properties of the value can be declared elsewhere than
// in properties and patternProperties of doc itself. A keyword that is not known
// to declare none counts as one that may.
func branches(doc map[string]any) bool {
	for key := range doc {
		switch key {
		case "$schema", "$id", "id", "$comment", "$defs", "definitions", "$anchor", "title", "description", "default",
			"examples", "deprecated", "readOnly", "writeOnly", "type", "enum", "const", "properties", "patternProperties",
			"propertyNames", "required", "dependentRequired", "minProperties", "maxProperties":
		default:
			return true
		}
	}
	return false
}

// knowsUnevaluated reports whether the draft of doc has unevaluatedProperties.
func knowsUnevaluated(doc map[string]any) bool {
	declared, ok := doc["$schema"]
	if !ok {
		return true
	}
	url, _ := declared.(string)
	url = strings.TrimSuffix(url, "#")
	return url == draft2020 || url == "https://json-schema.org/draft/2019-09/schema"
}

// A refuseLoader loads nothing: a schema that needs another document would let a
// server make the gateway fetch, or change its schema without changing its digest.
type refuseLoader struct{}

func (refuseLoader) Load(string) (any, error) { return nil, errNoRemote }

// A schemaSize is what of a schema can be expensive before the counter sees it:
// the library calls back after a node's children, and not for a child whose type
// or enumeration fails. Words are counted wherever they stand, so it is an upper
// bound.
type schemaSize struct {
	refs     int // references
	branches int // alternatives and conditions
	enum     int // enumerated values; those that are not strings weigh 128
}

func (z *schemaSize) measure(v vault.Value) {
	for key, child := range v.All() {
		switch key {
		case "$ref", "$dynamicRef", "$recursiveRef":
			z.refs++
		case "allOf", "anyOf", "oneOf", "dependentSchemas", "dependencies", "not", "if", "then", "else":
			z.branches += max(child.Len(), 1)
		case "enum", "const":
			z.enum += weigh(child)
		}
		z.measure(child)
	}
}

// weigh counts the values in an enumeration. Comparing numbers makes rationals.
func weigh(v vault.Value) int {
	n := 128
	if v.Kind() == vault.String {
		n = 1
	}
	for _, child := range v.All() {
		n += weigh(child)
	}
	return n
}

// affords reports whether a document of so many values can be checked at all.
func (z *schemaSize) affords(values int) bool {
	values = max(values, 1)
	return z.refs*z.refs <= maxRefWork/values && z.branches <= maxBranchWork/values && z.enum <= maxEnumWork/values
}

// factor is what one evaluation costs more because of enumerations, in steps.
func (z *schemaSize) factor() int { return 1 + z.enum/512 }

// A bounded is a pattern that charges its check for each match.
type bounded struct {
	*regexp.Regexp
	program int
	s       *schema
}

// MatchString panics with errTooCostly rather than answer without looking: false
// would pass under "not" and true elsewhere. The check recovers it and fails.
func (b bounded) MatchString(text string) bool {
	// Some 10 ns for each instruction and byte where a pattern is at its slowest.
	b.s.charge(1 + b.program*len(text)/256)
	return b.Regexp.MatchString(text)
}

// charge takes steps from the check that runs.
func (s *schema) charge(steps int) {
	if s.steps -= steps; s.steps < 0 {
		panic(errTooCostly)
	}
}

// An anything matches all strings, in place of a pattern RE2 cannot express.
type anything string

func (anything) MatchString(string) bool { return true }
func (a anything) String() string        { return string(a) }

func (s *schema) pattern(p string, ignore bool) (jsonschema.Regexp, error) {
	if len(p) > maxPattern {
		return nil, fmt.Errorf("pattern is longer than %d bytes", maxPattern)
	}
	tree, err := syntax.Parse(p, syntax.Perl)
	if err != nil {
		if ignore {
			s.ignored = true
			return anything(p), nil
		}
		return nil, err
	}
	// Counted before it is expanded: a{1000} is a thousand instructions.
	size := programSize(tree)
	if size > maxProgram {
		return nil, fmt.Errorf("pattern needs more than %d instructions", maxProgram)
	}
	re, err := regexp.Compile(p)
	if err != nil {
		return nil, err
	}
	return bounded{re, size, s}, nil
}

// programSize estimates the instructions of a pattern, saturating.
func programSize(re *syntax.Regexp) int {
	n := 1 + len(re.Rune)/8
	if re.Op == syntax.OpLiteral {
		n = 1 + len(re.Rune)
	}
	for _, sub := range re.Sub {
		n = min(n+programSize(sub), maxProgram+1)
	}
	if re.Op == syntax.OpRepeat {
		n = min(n*max(re.Min, re.Max, 1), maxProgram+1)
	}
	return n
}

// A price is what one schema node costs each time it is evaluated.
type price struct {
	s      *schema
	fixed  int // alternatives that are compared once
	member int // alternatives that look at every member of the value
}

func (s *schema) price(_ *jsonschema.CompilerContext, obj map[string]any) (jsonschema.SchemaExt, error) {
	p := price{s: s}
	for key, v := range obj {
		n := 0
		switch v := v.(type) {
		case []any:
			n = len(v)
		case map[string]any:
			n = len(v)
		}
		switch key {
		case "allOf", "anyOf", "oneOf", "dependentSchemas", "dependencies", "patternProperties":
			p.member += n
		case "not", "if", "then", "else", "$ref", "$dynamicRef", "$recursiveRef", "propertyNames", "contains":
			p.member++
		case "enum", "required", "dependentRequired":
			p.fixed += n
		}
	}
	return p, nil
}

// Validate charges for one evaluation. The library calls it for each node that
// can branch, after its children.
func (p price) Validate(_ *jsonschema.ValidatorContext, v any) {
	members := 1
	switch v := v.(type) {
	case []any:
		members += len(v)
	case map[string]any:
		members += len(v)
	}
	p.s.charge(p.fixed + (1+p.member)*members*p.s.size.factor())
}

// A mismatch says where a value does not match. It holds no value.
type mismatch struct {
	path string // JSON Pointer
	err  error
}

// check holds v, which consists of so many values, against the schema. nil means
// that it matches.
func (s *schema) check(v any, values int) (m *mismatch) {
	if !s.size.affords(values) {
		return &mismatch{"", errTooCostly}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() {
		if r := recover(); r != nil {
			err, ok := r.(error)
			if !ok {
				err = fmt.Errorf("%v", r)
			}
			m = &mismatch{"", fmt.Errorf("check schema: %w", err)}
		}
	}()
	s.steps = maxSteps
	err := s.compiled.Validate(v)
	if err == nil {
		return nil
	}
	failed, ok := errors.AsType[*jsonschema.ValidationError](err)
	if !ok {
		return &mismatch{"", err}
	}
	f := leafFinder{left: 1000}
	f.visit(failed)
	return &mismatch{f.path, errDiffers}
}

// A leafFinder picks, of all places that failed, the first in the order of their
// pointers, so that the same arguments give the same answer. It looks at a bounded
// number: a schema can fail in a great many ways.
//
// A property that nothing evaluated counts only if nothing else is wrong: where a
// branch of the schema fails, all that it would have evaluated looks undeclared.
type leafFinder struct {
	left  int
	found bool
	extra bool // path is a property that nothing evaluated
	path  string
}

func (f *leafFinder) visit(e *jsonschema.ValidationError) {
	if f.left--; f.left < 0 {
		return
	}
	for _, cause := range e.Causes {
		f.visit(cause)
	}
	if len(e.Causes) > 0 {
		return
	}
	path := pointer(e.InstanceLocation)
	_, extra := e.ErrorKind.(*kind.FalseSchema)
	switch k := e.ErrorKind.(type) {
	case *kind.Required:
		path += "/" + vault.PointerToken(slices.Min(k.Missing))
	case *kind.AdditionalProperties:
		path += "/" + vault.PointerToken(slices.Min(k.Properties))
	}
	if !f.found || f.extra && !extra || f.extra == extra && path < f.path {
		f.found, f.extra, f.path = true, extra, clip(path)
	}
}

func pointer(tokens []string) string {
	var b strings.Builder
	for _, t := range tokens {
		b.WriteByte('/')
		b.WriteString(vault.PointerToken(t))
	}
	return b.String()
}

// clip cuts a path at a token: keys come from the caller and can be long.
func clip(path string) string {
	if len(path) <= maxPathBytes {
		return path
	}
	return path[:max(strings.LastIndexByte(path[:maxPathBytes], '/'), 0)]
}

// toAny turns a value into what the validator reads, and counts its values.
func toAny(v vault.Value, count *int) any {
	*count++
	switch v.Kind() {
	case vault.Bool:
		b, _ := v.Bool()
		return b
	case vault.Number:
		return json.Number(v.Raw())
	case vault.String:
		s, _ := v.Str()
		return s
	case vault.Array:
		out := make([]any, 0, v.Len())
		for _, child := range v.All() {
			out = append(out, toAny(child, count))
		}
		return out
	case vault.Object:
		out := make(map[string]any, v.Len())
		for key, child := range v.All() {
			out[key] = toAny(child, count)
		}
		return out
	default:
		return nil
	}
}

// notes reports what the schema does not enforce.
func (s *schema) notes(server string, key itemKey, where string) []Finding {
	var out []Finding
	if s.open {
		out = append(out, Finding{server, key.kind, key.name, where, FindOpen, ""})
	}
	if s.ignored {
		out = append(out, Finding{server, key.kind, key.name, where, FindPatterns, ""})
	}
	return out
}

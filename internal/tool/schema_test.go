package tool

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pilox/vault"
)

func value(t testing.TB, doc string) vault.Value {
	t.Helper()
	a, err := vault.ParseValue([]byte(doc))
	if err != nil {
		t.Fatalf("%.80s: %v", doc, err)
	}
	return a.Root()
}

func TestSchema(t *testing.T) {
	const (
		d4 = `"$schema":"http://json-schema.org/draft-04/schema#",`
		d6 = `"$schema":"http://json-schema.org/draft-06/schema#",`
		d7 = `"$schema":"http://json-schema.org/draft-07/schema#",`
		d9 = `"$schema":"https://json-schema.org/draft/2019-09/schema",`
		d0 = `"$schema":"https://json-schema.org/draft/2020-12/schema",`
	)
	const (
		flat   = `"type":"object","properties":{"a":{"type":"string"}}}`
		allOf  = `"type":"object","allOf":[{"properties":{"a":{"type":"string"}}},{"properties":{"b":{}}}]}`
		refs7  = `"$ref":"#/definitions/x","definitions":{"x":{"type":"object","properties":{"a":{}}}}}`
		anyOf  = `"type":"object","anyOf":[{"properties":{"k":{"const":1},"a":{}},"required":["k"]},{"properties":{"k":{"const":2},"b":{}},"required":["k"]}]}`
		opened = `"type":"object","properties":{"a":{}},"additionalProperties":true}`
		schemd = `"type":"object","properties":{"a":{}},"additionalProperties":{"type":"integer"}}`
		patprp = `"type":"object","patternProperties":{"^x-":{"type":"string"}}}`
	)
	type row struct {
		schema, args string
		ok           bool
	}
	var rows []row
	for _, d := range []string{"", d4, d6, d7, d9, d0} {
		rows = append(rows,
			row{"{" + d + flat, `{"a":"x"}`, true},
			row{"{" + d + flat, `{}`, true},
			row{"{" + d + flat, `{"b":1}`, false},
			row{"{" + d + flat, `{"A":"x"}`, false},
			row{"{" + d + allOf, `{"a":"x","b":1}`, true},
			row{"{" + d + allOf, `{"a":"x","c":1}`, false},
			row{"{" + d + refs7, `{"a":1}`, true},
			row{"{" + d + refs7, `{"b":1}`, false},
			row{"{" + d + anyOf, `{"k":2,"b":1}`, true},
			row{"{" + d + anyOf, `{"k":2,"z":1}`, false},
			row{"{" + d + opened, `{"b":1}`, true},
			row{"{" + d + schemd, `{"b":1}`, true},
			row{"{" + d + schemd, `{"b":"1"}`, false},
			row{"{" + d + patprp, `{"x-a":"1"}`, true},
			row{"{" + d + patprp, `{"y-a":"1"}`, false},
			row{"{" + d + `"type":"object"}`, `{"a":1}`, false},
		)
	}
	rows = append(rows,
		row{`{}`, `{}`, true},
		row{`{}`, `{"a":1}`, false},
		row{`{"type":"object","properties":{"n":{"type":"integer"}}}`, `{"n":1.0}`, true},
		row{`{"type":"object","properties":{"n":{"type":"number","multipleOf":0.1}}}`, `{"n":0.3}`, true},
		row{`{"type":"object","properties":{"n":{"enum":["a","b"]}}}`, `{"n":"c"}`, false},
		row{`{"type":"object","properties":{"n":{"default":5}},"required":["n"]}`, `{}`, false},
		row{`{"type":"object","properties":{"n":{"type":["string","null"]}}}`, `{"n":null}`, true},
		row{`{"type":"object","properties":{"n":{"format":"email"}}}`, `{"n":"no mail"}`, true},                                               // 2020-12: an annotation
		row{`{"type":"object","properties":{"a":{"type":"array","items":{"type":"object","properties":{"x":{}}}}}}`, `{"a":[{"y":1}]}`, true}, // closed at the root only
		row{`{"type":"object","properties":{"l":{"type":"string","pattern":"^[a-z]+$"}}}`, `{"l":"ab\n"}`, false},
	)
	for _, r := range rows {
		s, err := compileSchema(value(t, r.schema), schemaOptions{closed: true})
		if err != nil {
			if r.ok {
				t.Errorf("%s: %v", r.schema, err)
			}
			continue
		}
		n := 0
		m := s.check(toAny(value(t, r.args), &n), n)
		if (m == nil) != r.ok {
			t.Errorf("%s takes %s: %v, want %v (%v)", r.schema, r.args, m == nil, r.ok, m)
		}
		if m != nil && !errors.Is(m.err, errDiffers) {
			t.Errorf("%s with %s: %v", r.schema, r.args, m.err)
		}
	}
}

func TestSchemaPath(t *testing.T) {
	const s = `{"type":"object","properties":{"a":{"type":"array","items":{"type":"object","properties":{"b/c":{"type":"string"}},"required":["b/c"]}},"z":{"type":"integer"}}}`
	compiled, err := compileSchema(value(t, s), schemaOptions{closed: true})
	if err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		`{"a":[{"b/c":"x"},{"b/c":1}]}`:         "/a/1/b~1c",
		`{"a":[{"b/c":"x"},{}]}`:                "/a/1/b~1c",
		`{"a":7,"z":"x"}`:                       "/a",
		`{"q":1,"p":2}`:                         "/p",
		`{"a":[{"b/c":1}],"b":1,"z":"x","c":1}`: "/a/0/b~1c",
	} {
		for range 5 { // maps have no order; the answer has
			n := 0
			m := compiled.check(toAny(value(t, args), &n), n)
			if m == nil || m.path != want {
				t.Fatalf("%s fails at %v, want %s", args, m, want)
			}
		}
	}
}

// TestHostileSchema holds that neither compiling a schema nor checking with it
// gets away: each row ends, and says no.
func TestHostileSchema(t *testing.T) {
	doubling := func(d, key string) string {
		var b strings.Builder
		fmt.Fprintf(&b, `{%s"allOf":[{"$ref":"#/%s/d0"}],"%s":{`, d, key, key)
		for i := range 40 {
			fmt.Fprintf(&b, `"d%d":{"allOf":[{"$ref":"#/%s/d%d"},{"$ref":"#/%s/d%d"}]},`, i, key, i+1, key, i+1)
		}
		fmt.Fprint(&b, `"d40":{"type":"object"}}}`)
		return b.String()
	}
	const d7 = `"$schema":"http://json-schema.org/draft-07/schema#",`
	chain := func(n int) string {
		var b strings.Builder
		fmt.Fprintf(&b, `{%s"properties":{"a":{"items":{"$ref":"#/definitions/d0"}}},"definitions":{`, d7)
		for i := range n {
			fmt.Fprintf(&b, `"d%d":{"$ref":"#/definitions/d%d"},`, i, i+1)
		}
		fmt.Fprintf(&b, `"d%d":{"type":"integer"}}}`, n)
		return b.String()
	}
	many := `{"a":[` + strings.TrimSuffix(strings.Repeat("1,", 90_000), ",") + `]}`
	long := `{"a":"` + strings.Repeat("a", 1<<20) + `"}`
	var keyed, patterned strings.Builder
	for i := range 40_000 {
		fmt.Fprintf(&keyed, `"k%d":1,`, i)
	}
	for i := range 2000 {
		fmt.Fprintf(&patterned, `"(x|y|z)+%d":{},`, i)
	}
	keys, patterns := `{`+strings.TrimSuffix(keyed.String(), ",")+`}`, patterned.String()
	tree := `{"properties":{"a":{"$ref":"#/$defs/t"}},"$defs":{"t":{"type":"array","anyOf":[{"items":{"$ref":"#/$defs/t"}},{"items":{"allOf":[{"$ref":"#/$defs/t"},{"$ref":"#/$defs/t"}]}}]}}}`
	for _, tc := range []struct {
		what, schema, args string
		compiles           bool
	}{
		{"references that double at each level", doubling("", "$defs"), `{}`, true},
		{"the same in draft 7", doubling(d7, "definitions"), `{}`, true},
		{"alternatives that double at each level", strings.ReplaceAll(doubling("", "$defs"), "allOf", "anyOf"), `[]`, true},
		{"exclusive alternatives that double", strings.ReplaceAll(doubling("", "$defs"), "allOf", "oneOf"), `[]`, true},
		{"doubling along the depth of the value", tree, `{"a":` + strings.Repeat("[", 60) + "1" + strings.Repeat("]", 60) + `}`, true},
		{"enumerations behind references that double", strings.Replace(doubling("", "$defs"), `{"type":"object"}`, `{"enum":[`+strings.Repeat("2,", 4000)+`3]}`, 1), `{}`, true},
		{"many alternatives for an object with many keys", `{"unevaluatedProperties":false,"anyOf":[` + strings.Repeat(`{"type":"string"},`, 2000) + `{"type":"null"}]}`, keys, true},
		{"many patterns for an object with many keys", `{"patternProperties":{` + patterns + `"z":{}}}`, keys, true},
		{"a reference to itself", `{"$ref":"#"}`, `{}`, true},
		{"a long chain of references for each of many values", chain(1500), many, true},
		{"many alternatives for each of many values", `{"properties":{"a":{"items":{"anyOf":[` + strings.Repeat(`{"type":"string"},`, 2000) + `{"type":"null"}]}}}}`, many, true},
		{"a long enumeration for each of many values", `{"properties":{"a":{"items":{"enum":[` + strings.Repeat(`2,`, 4000) + `3]}}}}`, many, true},
		{"a pattern that is slow on a long string", `{"properties":{"a":{"pattern":"(x{100}){9}(a?){90}z"}}}`, long, true},
		{"the same under not", `{"properties":{"a":{"not":{"pattern":"(x{100}){9}(a?){90}z"}}}}`, long, true},
		{"a pattern that expands", `{"properties":{"a":{"pattern":"((a{100}){10}){10}"}}}`, ``, false},
		{"many patterns that expand in one", `{"properties":{"a":{"pattern":"` + strings.Repeat(`a{1000}`, 100) + `"}}}`, ``, false},
		{"a pattern with look-ahead", `{"properties":{"a":{"pattern":"(?=a)"}}}`, ``, false},
		{"a remote reference", `{"$ref":"https://example.com/x"}`, ``, false},
		{"a file reference", `{"$ref":"file:///etc/passwd"}`, ``, false},
		{"a relative reference", `{"$ref":"other.json"}`, ``, false},
		{"a remote reference by $id", `{"$id":"https://example.com/","$ref":"x"}`, ``, false},
		{"a schema of its own", `{"$schema":"https://example.com/schema"}`, ``, false},
		{"a reference to nothing", `{"$ref":"#/$defs/none"}`, ``, false},
		{"a schema that is none", `{"type":"strange"}`, ``, false},
		{"a division by zero", `{"properties":{"a":{"multipleOf":0}}}`, ``, false},
		{"too many values", `{"enum":[` + strings.Repeat("1,", maxSchemaValues) + `2]}`, ``, false},
		{"a list", `[]`, ``, false},
		{"a boolean", `true`, ``, false},
	} {
		t.Run(tc.what, func(t *testing.T) {
			start := time.Now()
			s, err := compileSchema(value(t, tc.schema), schemaOptions{closed: true})
			if (err == nil) != tc.compiles {
				t.Fatalf("compile: %v", err)
			}
			if err != nil {
				return
			}
			compiled := time.Since(start)
			n := 0
			v := toAny(value(t, tc.args), &n)
			m := s.check(v, n)
			t.Logf("compiled in %v, checked in %v: %v", compiled, time.Since(start)-compiled, m)
			if m == nil {
				t.Error("passes")
			}
			// The next check starts with a full purse.
			if n := 0; s.check(toAny(value(t, `{"Q!":1}`), &n), n) == nil {
				t.Error("an undeclared property passes")
			}
		})
	}
}

func TestSchemaLargeArgumentsPass(t *testing.T) {
	const s = `{"type":"object","properties":{"rows":{"type":"array","items":{"type":"object","properties":{"id":{"type":"integer"},"name":{"type":"string"},"tag":{"anyOf":[{"type":"string"},{"type":"null"}]}},"required":["id","name"],"additionalProperties":false}}}}`
	compiled, err := compileSchema(value(t, s), schemaOptions{closed: true})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	v := toAny(value(t, `{"rows":[`+strings.TrimSuffix(strings.Repeat(`{"id":1,"name":"x","tag":null},`, 24_000), ",")+`]}`), &n)
	if m := compiled.check(v, n); m != nil {
		t.Errorf("%d ordinary values cost too much: %v", n, m)
	}
	t.Logf("%d values cost %d of %d", n, maxSteps-compiled.steps, maxSteps)
}

func TestSchemaConcurrent(t *testing.T) {
	s, err := compileSchema(value(t, `{"properties":{"a":{"type":"string"}}}`), schemaOptions{closed: true})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 200 {
				if m := s.check(map[string]any{"a": "x"}, 2); m != nil {
					t.Error(m)
				}
				if m := s.check(map[string]any{"a": i == 9}, 2); m == nil {
					t.Error("passes")
				}
			}
		})
	}
	wg.Wait()
}

func FuzzSchema(f *testing.F) {
	f.Add(`{"type":"object","properties":{"a":{"type":"string","pattern":"^a+$"}}}`, `{"a":"aa"}`)
	f.Add(`{"$schema":"http://json-schema.org/draft-07/schema#","$ref":"#/definitions/x","definitions":{"x":{"allOf":[{}]}}}`, `{}`)
	f.Add(`{"anyOf":[{"items":{"$ref":"#"}},{"not":{"const":1}}],"unevaluatedProperties":{"minimum":3}}`, `{"a":[[1]]}`)
	f.Add(`{"$dynamicRef":"#n","$defs":{"a":{"$dynamicAnchor":"n","dependentSchemas":{"x":true}}}}`, `{"x":1}`)
	f.Fuzz(func(t *testing.T, schema, args string) {
		v, err := vault.ParseValue([]byte(schema))
		if err != nil || len(schema) > maxDefinition {
			return
		}
		s, err := compileSchema(v.Root(), schemaOptions{closed: true})
		if err != nil {
			return
		}
		a, err := vault.ParseArgs([]byte(args))
		if err != nil {
			return
		}
		n := 0
		doc := toAny(a.Root(), &n)
		first := s.check(doc, n)
		if second := s.check(doc, n); (first == nil) != (second == nil) {
			t.Fatalf("%q takes %q once and not again: %v, %v", schema, args, first, second)
		}
	})
}

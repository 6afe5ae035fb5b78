package taskfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
)

// argv reads the rule of an argument vector.
func (d *decoder) argv(n *yaml.Node, at string, nesting int) *capability.Argv {
	m := d.fields(n, at, argvKeys)
	var a capability.Argv
	if v := m["programs"]; v != nil {
		a.Programs = d.texts(v, at+".programs", maxConstraint, func(string) error { return nil })
	} else if n.Kind == yaml.MappingNode {
		d.failHint(n, at, "name what may be started: programs: [git]", "programs is missing")
	}
	if v := m["options"]; v != nil {
		a.Options = d.texts(v, at+".options", maxConstraint, option)
	}
	if v := m["values"]; v != nil {
		a.Values = d.arg(v, at+".values", nesting+1).All
	}
	if v := m["operands"]; v != nil {
		a.Operands = d.arg(v, at+".operands", nesting+1).All
	}
	if v := m["max"]; v != nil {
		limit, _ := d.integer(v, at+".max", 1, 256)
		a.Max = int(limit)
	}
	return &a
}

// option checks one that may be given: -l, --all, or --depth= with a value.
func option(s string) error {
	if len(s) < 2 || s[0] != '-' {
		return fmt.Errorf("%q does not begin with -: operands have rules of their own", s)
	}
	if strings.Contains(s, "=") && strings.Index(s, "=") != len(s)-1 {
		return fmt.Errorf("%q: end it with =, and put the rule for its value into values", s)
	}
	return nil
}

// lengths reads [low, high] of a length or a count.
func (d *decoder) lengths(n *yaml.Node, at string) *capability.IntRange {
	r := d.intRange(n, at)
	if r != nil && r.Min < 0 {
		d.fail(n, at, "a length is not negative")
	}
	return r
}

// document reads a JSON Schema, written in YAML or as JSON text, and returns it in
// canonical JSON.
func (d *decoder) document(n *yaml.Node, at string) *string {
	var raw []byte
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" {
		raw = []byte(n.Value)
	} else {
		var err error
		if raw, err = jsonOf(n); err != nil {
			d.fail(n, at, "%v", err)
			return nil
		}
	}
	doc, err := vault.ParseValue(raw)
	if err != nil {
		d.failHint(n, at, "write it as keys and values", "no strict JSON")
		return nil
	}
	text := doc.String()
	if len(text) > maxConstraint {
		d.fail(n, at, "longer than %d bytes of JSON", maxConstraint)
		return nil
	}
	return &text
}

// jsonOf writes the plain part of YAML as JSON.
func jsonOf(n *yaml.Node) ([]byte, error) {
	switch n.Kind {
	case yaml.MappingNode:
		out := []byte{'{'}
		for i := 0; i+1 < len(n.Content); i += 2 {
			if i > 0 {
				out = append(out, ',')
			}
			v, err := jsonOf(n.Content[i+1])
			if err != nil {
				return nil, err
			}
			out = append(append(vault.AppendQuoted(out, n.Content[i].Value), ':'), v...)
		}
		return append(out, '}'), nil
	case yaml.SequenceNode:
		out := []byte{'['}
		for i, c := range n.Content {
			if i > 0 {
				out = append(out, ',')
			}
			v, err := jsonOf(c)
			if err != nil {
				return nil, err
			}
			out = append(out, v...)
		}
		return append(out, ']'), nil
	case yaml.ScalarNode:
		switch n.ShortTag() {
		case "!!str":
			return vault.AppendQuoted(nil, n.Value), nil
		case "!!null":
			return []byte("null"), nil
		case "!!bool":
			if b, err := strconv.ParseBool(n.Value); err == nil {
				return strconv.AppendBool(nil, b), nil
			}
		case "!!int", "!!float":
			if json.Valid([]byte(n.Value)) {
				return []byte(n.Value), nil
			}
		}
	case yaml.DocumentNode, yaml.AliasNode, yaml.StreamNode: // the decoder lets none through
	}
	return nil, errors.New("want what JSON can say: text, plain numbers, true, false, null, lists and keys")
}

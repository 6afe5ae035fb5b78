package aat

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/pilox/vault/capability"
)

// TestRule reads as the table of what a token and a local rule say together.
func TestRule(t *testing.T) {
	path := capability.One(capability.Constraint{SubPath: ptr("/srv")})
	list := capability.One(capability.Constraint{Each: &capability.Arg{}})
	local := capability.Rule{Args: capability.Args{"/path": path, "/list": list, "/o/x": {}, "/o/y": {Optional: true}}}
	for _, tt := range []struct {
		name  string
		tools []object // constraint maps, root first
		local capability.Rule
		want  string // the rule in JSON, or a part of the error
	}{
		{"an open map inherits all", []object{{}}, local, `{}`},
		{"an open map inherits what is open", []object{{}}, capability.Rule{Any: true}, `{}`},
		{"a wildcard is what the local rule has", []object{{"path": of("wildcard"), "list": of("wildcard", "optional", true)}}, local, `{"args":{"/list":{"optional":true,"all":[{"each":{}}]},"/path":{"all":[{"subpath":"/srv"}]}}}`},
		{"a wildcard on an argument of which the local rule names members", []object{{"o": of("wildcard")}}, local, `{"args":{"/o":{"all":[{"object":{"/x":{},"/y":{"optional":true}}}]}}}`},
		{"a wildcard where the local rule leaves all open", []object{{"a": of("wildcard")}}, capability.Rule{Any: true}, `{"args":{"/a":{}}}`},
		{"an open map with names keeps the local rest", []object{{"path": of("exact", "value", "/srv/a"), "*": of("wildcard")}}, local, `{"args":{"/list":{"all":[{"each":{}}]},"/o/x":{},"/o/y":{"optional":true},"/path":{"all":[{"one_of":["/srv/a"]}]}}}`},
		{"an open map with names under a rule that leaves all open", []object{{"path": of("exact", "value", "/srv/a"), "*": of("wildcard")}}, capability.Rule{Any: true}, "leaves others open"},
		{"a closed map leaves the rest out", []object{{"path": of("exact", "value", "/srv/a")}}, local, `{"args":{"/path":{"all":[{"one_of":["/srv/a"]}]}}}`},
		{"nothing excluded is any value", []object{{"list": of("not_one_of", "excluded", []any{})}}, local, `{"args":{"/list":{"all":[{"each":{}}]}}}`},
		{"an alternative that is any value", []object{{"list": of("any", "constraints", []any{of("exact", "value", 1), of("wildcard")})}}, local, `{"args":{"/list":{"all":[{"each":{}}]}}}`},
		{"an empty list of elements", []object{{"list": of("subset", "allowed", []any{})}}, local, `{"args":{"/list":{"all":[{"each":{"all":[{"one_of":[]}]}}]}}}`},
		{"a scalar and an array at once", []object{{"list": of("all", "constraints", []any{of("exact", "value", 1), of("subset", "allowed", []any{1})})}}, local, `{"args":{"/list":{"all":[{"one_of":[]}]}}}`},
		{"a name with a slash", []object{{"a/b~": of("exact", "value", 1)}}, local, `{"args":{"/a~1b~0":{"all":[{"one_of":[1]}]}}}`},
		{"ends beyond six places", []object{{"n": of("range", "min", 0.0000015, "max", 0.0000035)}}, local, `{"args":{"/n":{"all":[{"decimal":{"min":0.000002,"max":0.000003}}]}}}`},
		{"ends that are excluded", []object{{"n": of("range", "min", 1, "min_inclusive", false, "max", 2, "max_inclusive", false)}}, local, `{"args":{"/n":{"all":[{"decimal":{"min":1.000001,"max":1.999999}}]}}}`},
		{"ends that are excluded and beyond six places", []object{{"n": of("range", "min", 0.0000015, "min_inclusive", false, "max", 0.0000035, "max_inclusive", false)}}, local, `{"args":{"/n":{"all":[{"decimal":{"min":0.000002,"max":0.000003}}]}}}`},
		{"negative ends", []object{{"n": of("range", "min", -0.0000015, "max", -0.0000005)}}, local, `{"args":{"/n":{"all":[{"decimal":{"min":-0.000001,"max":-0.000001}}]}}}`},
		{"ends far out", []object{{"n": of("range", "min", -1e15, "max", 1e15)}}, local, `{"args":{"/n":{"all":[{"decimal":{"min":-999999999999.999999,"max":999999999999.999999}}]}}}`},
		{"a range between two decimals", []object{{"n": of("range", "min", 0.0000012, "max", 0.0000018)}}, local, "six decimal places"},
		{"tokens that do not narrow", []object{{"a": of("exact", "value", 1)}, {"a": of("exact", "value", 2)}}, local, `{"args":{"/a":{"all":[{"one_of":[1]},{"one_of":[2]}]}}}`},
		{"tokens that require and refuse", []object{{"a": of("wildcard")}, {"b": of("wildcard")}}, local, "requires it and another refuses it"},
		{"one token makes it optional, another requires it", []object{{"a": of("exact", "value", 1, "optional", true)}, {"a": of("exact", "value", 1)}}, local, `{"args":{"/a":{"all":[{"one_of":[1]}]}}}`},
		{"an optional argument that another token leaves out", []object{{"a": of("exact", "value", 1, "optional", true), "b": of("exact", "value", 1)}, {"b": of("exact", "value", 1)}}, local, `{"args":{"/b":{"all":[{"one_of":[1]}]}}}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			chain := &Chain{}
			for i, m := range tt.tools {
				chain.tokens = append(chain.tokens, parsed(t, string(rune('a'+i)), object{"t": m}))
			}
			rule, err := chain.Rule("t", tt.local)
			if !strings.HasPrefix(tt.want, "{") {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%v, want %q", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			// As it comes back out of a chain.
			c, err := newGate(t).mint(capability.Rule{Any: true}, rule)
			if err != nil {
				t.Fatal(err)
			}
			back, err := capability.Parse(c.Bytes())
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.Marshal(back.Links()[1].Grants["tool"][theTool])
			if err != nil || string(got) != tt.want {
				t.Errorf("%s, %v\nwant %s", got, err, tt.want)
			}
		})
	}
	if _, err := (&Chain{tokens: []*token{parsed(t, "a", object{})}}).Rule("t", local); err == nil {
		t.Error("a tool that a token does not have")
	}
}

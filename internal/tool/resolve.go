package tool

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/pilox/vault"
)

// Resolve returns what is known of the target of a call, or a *vault.Denial:
// unknown, quarantined, another definition than the capability pins, or arguments
// that do not match the schema, with the path of the first value that does not.
// Kinds that no server serves resolve to a tool made of the target: high risk,
// from the web, readable by nobody.
func (c *Catalogue) Resolve(_ context.Context, call *vault.Call, g *vault.Grant) (vault.Tool, error) {
	switch call.Kind {
	case vault.KindTool, vault.KindResource, vault.KindPrompt, vault.KindServerRequest:
	case vault.KindEgress, vault.KindSecret, vault.KindFile, vault.KindExec, vault.KindModel, vault.KindAgent:
		if call.Target.Name == "" || call.Target.Server != (vault.ServerID{}) {
			return vault.Tool{}, vault.NewDenial(vault.CodeToolUnknown, "", nil)
		}
		if g != nil && !g.Definition.IsZero() {
			return vault.Tool{}, vault.NewDenial(vault.CodeCapabilityDiffers, "", nil)
		}
		return vault.Tool{Name: call.Target.Name}, nil
	default:
		return vault.Tool{}, vault.NewDenial(vault.CodeToolUnknown, "", nil)
	}
	s, err := c.snap.Load().server(call.Target.Server)
	if err != nil {
		return vault.Tool{}, err
	}
	it, err := s.item(call.Kind, call.Target.Name)
	if err != nil {
		return vault.Tool{}, err
	}
	var t vault.Tool
	if it != nil {
		t = it.tool
	} else {
		t = s.tool(call.Kind, call.Target.Name)
	}
	if g != nil && !g.Definition.IsZero() && g.Definition != t.Definition {
		return vault.Tool{}, vault.NewDenial(vault.CodeCapabilityDiffers, "", nil)
	}
	if call.Kind == vault.KindTool {
		values := 0
		var args any = map[string]any{}
		if !call.Args.IsZero() {
			args = toAny(call.Args.Root(), &values)
		}
		if m := it.in.check(args, values); m != nil {
			return vault.Tool{}, vault.NewDenial(vault.CodeArgsSchema, m.path, m.err)
		}
	}
	return t, nil
}

// server returns a server whose items may be called.
func (s *snapshot) server(id vault.ServerID) (*server, error) {
	sv, ok := s.byID[id]
	switch {
	case !ok || id.IsZero() || !sv.rec.Pinned:
		return nil, vault.NewDenial(vault.CodeToolUnknown, "", nil)
	case sv.broken != nil:
		return nil, vault.NewDenial(vault.CodeToolQuarantined, "", sv.broken)
	case sv.unlisted != nil:
		return nil, vault.NewDenial(vault.CodeToolQuarantined, "", sv.unlisted)
	}
	return sv, nil
}

// item returns what is pinned under a name. It is nil, without an error, for a
// resource or prompt that was never listed and for server requests: those are
// named at run time, and what they may be is for the capability to say.
func (s *server) item(k vault.Kind, name string) (*item, error) {
	if k == vault.KindServerRequest {
		if name == "" || len(name) > maxToolName {
			return nil, vault.NewDenial(vault.CodeToolUnknown, "", nil)
		}
		return nil, nil
	}
	it, ok := s.items[itemKey{kind: k, name: name}]
	if !ok && k == vault.KindResource {
		if err := checkURI(name, true); err != nil {
			return nil, vault.NewDenial(vault.CodeToolUnknown, "", err)
		}
		return nil, nil
	}
	if !ok && k == vault.KindPrompt {
		if err := promptShape.checkKey(name); err != nil {
			return nil, vault.NewDenial(vault.CodeToolUnknown, "", err)
		}
		return nil, nil
	}
	switch {
	case !ok || it.Definition.IsZero() || it.State == StatePinned && it.Gone:
		// Whether a new tool waits for review is not the agent's to know.
		return nil, vault.NewDenial(vault.CodeToolUnknown, "", nil)
	case !it.callable():
		return nil, vault.NewDenial(vault.CodeToolQuarantined, "", nil)
	}
	return it, nil
}

// Recheck reports a *vault.Denial unless t is still what is registered and
// pinned.
func (c *Catalogue) Recheck(_ context.Context, t *vault.Tool) error {
	if t.ID.IsZero() {
		if t.Server != "" || t.Name == "" {
			return vault.NewDenial(vault.CodeToolUnknown, "", nil)
		}
		return nil
	}
	s, err := c.snap.Load().server(t.ID)
	if err != nil {
		return err
	}
	if t.Definition.IsZero() {
		// A resource or prompt outside the listing, or a server request. If it has
		// come onto the list since, what Resolve said of it is out of date.
		for _, k := range []vault.Kind{vault.KindResource, vault.KindPrompt} {
			if _, ok := s.items[itemKey{kind: k, name: t.Name}]; ok {
				return vault.NewDenial(vault.CodeToolQuarantined, "", nil)
			}
		}
		return nil
	}
	for _, k := range []vault.Kind{vault.KindTool, vault.KindResource, vault.KindPrompt} {
		// The digest covers the kind, so no other item can have it.
		if it, ok := s.items[itemKey{kind: k, name: t.Name}]; ok && it.Definition == t.Definition && it.callable() {
			return nil
		}
	}
	return vault.NewDenial(vault.CodeToolQuarantined, "", nil)
}

// maxResult bounds the result that is held against an output schema. Results are
// bounded by the gateway; this is what decoding here may take.
const maxResult = 16 << 20

// CheckResult holds a result against the tool's output schema, if it has one. A
// result that reports an error needs no structured content. The error is a
// *vault.Denial with code result.schema.
func (c *Catalogue) CheckResult(_ context.Context, call *vault.Call, t *vault.Tool, raw []byte) error {
	if call.Kind != vault.KindTool {
		return nil
	}
	s, ok := c.snap.Load().byID[t.ID]
	if !ok {
		return resultDenial("", ErrUnknownServer)
	}
	it, ok := s.items[itemKey{kind: vault.KindTool, name: t.Name}]
	if !ok || it.Definition != t.Definition {
		// Pinned anew while the call ran: the schema it was made under is gone.
		return resultDenial("", errors.New("the definition changed during the call"))
	}
	if it.out == nil {
		return nil
	}
	return it.out.checkResult(raw)
}

func (s *schema) checkResult(raw []byte) error {
	if len(raw) > maxResult {
		return resultDenial("", fmt.Errorf("result: larger than %d bytes", maxResult))
	}
	if doc, err := vault.ParseValue(raw); err == nil {
		return s.checkStructured(doc.Root())
	}
	// What the strict parser refuses, such as a number that no double holds, a
	// result may have.
	var result map[string]json.RawMessage // not a struct: its keys fold case
	if err := json.Unmarshal(raw, &result); err != nil {
		return resultDenial("", err)
	}
	if bytes.Equal(result["isError"], []byte("true")) {
		return nil
	}
	content, ok := result["structuredContent"]
	if !ok {
		return resultDenial("/structuredContent", errors.New("result: no structured content"))
	}
	dec := json.NewDecoder(bytes.NewReader(content))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return resultDenial("/structuredContent", err)
	}
	values, err := countAny(v, 0)
	if err != nil {
		return resultDenial("/structuredContent", err)
	}
	if m := s.check(v, values); m != nil {
		return resultDenial(clip("/structuredContent"+m.path), m.err)
	}
	return nil
}

// checkStructured is checkResult for a result that the strict parser took, which
// is nearly every one, in a fraction of the time.
func (s *schema) checkStructured(result vault.Value) error {
	if failed, _ := result.Get("isError").Bool(); failed {
		return nil
	}
	content := result.Get("structuredContent")
	if content.Kind() == vault.Absent {
		return resultDenial("/structuredContent", errors.New("result: no structured content"))
	}
	values := 0
	v := toAny(content, &values)
	if m := s.check(v, values); m != nil {
		return resultDenial(clip("/structuredContent"+m.path), m.err)
	}
	return nil
}

// resultDenial says that the effect happened and its result is not as declared.
func resultDenial(path string, cause error) *vault.Denial {
	d := vault.NewDenial(vault.CodeResultSchema, path, cause)
	d.Executed = vault.ExecutedYes
	return d
}

// maxExponent keeps exact arithmetic cheap: one number like 1e999999 is a
// rational of a megabit. No double is larger than 1e309.
const maxExponent = 400

// countAny counts the values of a decoded result and refuses what would be
// expensive to compare.
func countAny(v any, depth int) (int, error) {
	if depth > vault.MaxArgsDepth {
		return 0, fmt.Errorf("result: deeper than %d", vault.MaxArgsDepth)
	}
	n := 1
	switch v := v.(type) {
	case []any:
		for _, child := range v {
			m, err := countAny(child, depth+1)
			if err != nil {
				return 0, err
			}
			n += m
		}
	case map[string]any:
		for _, child := range v {
			m, err := countAny(child, depth+1)
			if err != nil {
				return 0, err
			}
			n += m
		}
	case json.Number:
		s := string(v)
		if i := strings.IndexAny(s, "eE"); i >= 0 {
			e, err := strconv.Atoi(s[i+1:])
			if err != nil || e > maxExponent || e < -maxExponent {
				return 0, errors.New("result: a number is out of range")
			}
		}
		if len(s) > 2*maxExponent {
			return 0, errors.New("result: a number has too many digits")
		}
	}
	return n, nil
}

// A Definition is a pinned definition as an agent is served it.
type Definition struct {
	Kind     vault.Kind
	Template bool   // a resource template
	Server   string // registered name
	Target   vault.Target
	Digest   vault.Digest
	Raw      json.RawMessage // canonical JSON; do not change it
	ReadOnly bool            // by the operator's word; see [vault.Tool]
}

// View returns what grants lets through of all that is pinned and callable, sorted
// by server, kind and name. The agent sees nothing else, not even that it exists.
func (c *Catalogue) View(_ context.Context, grants func(vault.Kind, vault.Target) bool) []Definition {
	snap := c.snap.Load()
	var out []Definition
	for _, name := range slices.Sorted(maps.Keys(snap.byName)) {
		s, err := snap.server(snap.byName[name].id)
		if err != nil {
			continue
		}
		for _, rec := range s.rec.Items { // sorted
			it := s.items[rec.key()]
			target := vault.Target{Server: s.id, Name: it.Name}
			if !it.callable() || !grants(it.Kind, target) {
				continue
			}
			out = append(out, Definition{
				Kind: it.Kind, Template: it.Template, Server: name, Target: target,
				Digest: it.Definition, Raw: json.RawMessage(it.Pinned), ReadOnly: it.tool.ReadOnly,
			})
		}
	}
	return out
}

// Target returns the target with a name at a registered server, for those who
// write capabilities and for edges. It says nothing about whether the target
// exists.
func (c *Catalogue) Target(server, name string) (vault.Target, error) {
	s, ok := c.snap.Load().byName[server]
	if !ok {
		return vault.Target{}, fmt.Errorf("server %s: %w", server, ErrUnknownServer)
	}
	return vault.Target{Server: s.id, Name: name}, nil
}

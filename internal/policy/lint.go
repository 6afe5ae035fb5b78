package policy

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// A Finding is something in rules that load and may not mean what their author
// meant.
type Finding struct {
	Code   string `json:"code"`
	Where  string `json:"where"` // file:line, or hook N
	Detail string `json:"detail"`
}

// inputFields are the sections and fields of the input document.
var inputFields = map[string][]string{
	"version": nil, "decision_id": nil, "time": nil, "hook": nil, "approvals": nil, "event": nil,
	"agent":     {"id", "key_thumbprint", "roles", "parent"},
	"principal": {"user", "tenant"},
	"task":      {"id", "purpose", "opened_at"},
	"grant":     {"chain_id", "link_ids", "depth", "exp", "proof", "any_args", "same_uid", "ask", "may_read", "may_send_to", "effective", "budgets"},
	"call":      {"kind", "server", "tool", "schema_digest", "risk", "read_only", "local", "roles", "args", "args_digest", "seq"},
	"data":      {"labels", "sources", "arg_provenance"},
	"history":   {"calls", "last_n", "denies"},
	"env":       {"gateway", "net", "sandbox_grade"},
}

// Lint loads cfg and says what in it deserves a second look. An error means that it
// does not load.
func Lint(ctx context.Context, cfg Config) ([]Finding, error) {
	if _, err := load(ctx, &cfg, nil); err != nil {
		return nil, err
	}
	var files []file
	for _, b := range cfg.Bundles {
		fs, err := b.read()
		if err != nil {
			return nil, err
		}
		files = append(files, fs...)
	}
	var out []Finding
	var r *rules
	if len(files) > 0 {
		var err error
		if r, err = compile(ctx, files); err != nil {
			return nil, err
		}
		out = append(out, unknownInput(r.parsed)...)
		out = append(out, unusedRules(r, cfg.Hooks)...)
	}
	for i, h := range cfg.Hooks {
		where := fmt.Sprintf("hook %d", i+1)
		for j, earlier := range cfg.Hooks[:i] {
			if earlier.At == h.At && earlier.Query == h.Query && earlier.Expr == h.Expr && earlier.URL == h.URL &&
				slices.Equal(earlier.Match.Tool, h.Match.Tool) && slices.Equal(earlier.Match.Kinds, h.Match.Kinds) && earlier.Match.Risk == h.Match.Risk {
				out = append(out, Finding{"twice", where, fmt.Sprintf("asks the same as hook %d", j+1)})
			}
		}
		if h.Mode == Off {
			out = append(out, Finding{"off", where, "is never asked"})
		}
		if strings.TrimSpace(h.Expr) == "true" {
			out = append(out, Finding{"always-allows", where, "its expression is true for every call"})
		}
		if cost, yes := costly(h.Expr); h.Expr != "" && yes {
			out = append(out, Finding{"costly", where, fmt.Sprintf("with %d elements in each list it can cost %d, and %d stop it: such a call is refused as policy_error", celSample, cost, celCost)})
		}
		if r != nil && h.Query != "" {
			out = append(out, queryRules(r, where, h.Query)...)
		}
	}
	return out, nil
}

// unknownInput finds references to members that the input does not have: they are
// undefined for every call.
func unknownInput(modules map[string]*ast.Module) []Finding {
	var out []Finding
	for _, m := range modules {
		if m.Package.Path.HasPrefix(logPackage) {
			continue // its input is an event of the decision log
		}
		ast.WalkRefs(m, func(ref ast.Ref) bool {
			if !ref[0].Equal(ast.InputRootDocument) || len(ref) < 2 {
				return false
			}
			section, ok := ref[1].Value.(ast.String)
			if !ok {
				return false
			}
			at := "?"
			if ref[0].Location != nil {
				at = fmt.Sprintf("%s:%d", ref[0].Location.File, ref[0].Location.Row)
			}
			fields, known := inputFields[string(section)]
			switch {
			case !known:
				out = append(out, Finding{"unknown-input", at, fmt.Sprintf("input.%s does not exist, so it is undefined for every call", string(section))})
			case fields != nil && len(ref) > 2:
				if f, ok := ref[2].Value.(ast.String); ok && !slices.Contains(fields, string(f)) {
					out = append(out, Finding{"unknown-input", at, fmt.Sprintf("input.%s.%s does not exist, so it is undefined for every call", string(section), string(f))})
				}
			}
			return false
		})
	}
	slices.SortFunc(out, func(a, b Finding) int { return strings.Compare(a.Where+a.Detail, b.Where+b.Detail) })
	return slices.Compact(out)
}

// queryRules looks at the rules that a hook asks.
func queryRules(r *rules, where, query string) []Finding {
	ref, err := ast.ParseRef(query)
	if err != nil {
		return nil
	}
	var out []Finding
	hasDefault, sure := false, ""
	for _, rule := range r.compiler.GetRulesExact(ref) {
		at := fmt.Sprintf("%s:%d", rule.Location.File, rule.Location.Row)
		allows := allowing(rule)
		switch {
		case rule.Default:
			hasDefault = true
			if allows {
				out = append(out, Finding{"default-allows", at, "what no rule speaks of is allowed"})
			}
		case alwaysTrue(rule.Body):
			sure = at
			if allows {
				out = append(out, Finding{"always-allows", at, "allows every call that asks " + query})
			}
		}
	}
	if !hasDefault && sure == "" {
		out = append(out, Finding{"no-default", where, query + " is undefined, and so denies as policy_undefined, wherever no rule fits: give it a default"})
	}
	return out
}

// alwaysTrue reports whether a body has no condition.
func alwaysTrue(b ast.Body) bool {
	return len(b) == 1 && b[0].Equal(ast.NewExpr(ast.BooleanTerm(true)))
}

// allowing reports whether a rule's value is a constant that allows.
func allowing(rule *ast.Rule) bool {
	if rule.Head.Value == nil {
		return false
	}
	switch v := rule.Head.Value.Value.(type) {
	case ast.Boolean:
		return bool(v)
	case ast.Object:
		effect := v.Get(ast.StringTerm("effect"))
		return effect != nil && effect.Equal(ast.StringTerm("allow"))
	}
	return false
}

// unusedRules finds rules that no hook reaches.
func unusedRules(r *rules, hooks []Hook) []Finding {
	reached := map[*ast.Rule]bool{}
	var visit func(rule *ast.Rule)
	visit = func(rule *ast.Rule) {
		if reached[rule] {
			return
		}
		reached[rule] = true
		for dep := range r.compiler.Graph.Dependencies(rule) {
			if next, ok := dep.(*ast.Rule); ok {
				visit(next)
			}
		}
	}
	for _, h := range hooks {
		if ref, err := ast.ParseRef(h.Query); err == nil {
			for _, rule := range r.compiler.GetRules(ref) {
				visit(rule)
			}
		}
	}
	for _, ref := range []ast.Ref{logMask, logDrop} {
		for _, rule := range r.compiler.GetRules(ref) {
			visit(rule)
		}
	}
	var out []Finding
	for _, m := range r.compiler.Modules {
		for _, rule := range m.Rules {
			if !reached[rule] {
				out = append(out, Finding{"unused", fmt.Sprintf("%s:%d", rule.Location.File, rule.Location.Row), rule.Head.Ref().String() + " is reached by no hook"})
			}
		}
	}
	slices.SortFunc(out, func(a, b Finding) int { return strings.Compare(a.Where, b.Where) })
	return out
}

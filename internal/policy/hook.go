package policy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/pilox/vault"
)

// A Match says which calls a hook is for. All its parts must hold; the zero
// Match holds for every call of every kind.
type Match struct {
	// Tool is a list of globs over "server.tool", for kinds without a server
	// "kind.name" (egress.api.example, exec.git). A star stands for any run of
	// characters, dots included; the whole name must match. Empty: every target.
	Tool []string
	// Kinds lists kinds of call. Empty: every kind, so that a rule which was
	// meant for tools denies as undefined rather than misses another way out.
	Kinds []vault.Kind
	// Risk is "", or "low", "medium", "high" with or without ">=" before it:
	// the call's tool has at least this risk.
	Risk string
}

// maxGlobs bounds the patterns of one hook; each is tried on every call.
const maxGlobs = 256

type match struct {
	tools  []string
	kinds  []vault.Kind
	risky  bool
	atRisk vault.Risk
}

func (m Match) compile() (match, error) {
	c := match{tools: m.Tool, kinds: m.Kinds}
	if len(m.Tool) > maxGlobs {
		return match{}, fmt.Errorf("match.tool: %d patterns, at most %d: split the hook", len(m.Tool), maxGlobs)
	}
	for _, g := range m.Tool {
		if g == "" || strings.ContainsAny(g, "?[]{}\\") {
			return match{}, fmt.Errorf("match.tool: pattern %q: only * is special, as in \"pay.*\"", g)
		}
	}
	for _, k := range m.Kinds {
		if _, err := vault.ParseKind(string(k)); err != nil {
			return match{}, fmt.Errorf("match.kinds: %w", err)
		}
	}
	if m.Risk == "" {
		return c, nil
	}
	c.risky = true
	word := strings.TrimSpace(strings.TrimPrefix(m.Risk, ">="))
	for _, r := range []vault.Risk{vault.RiskLow, vault.RiskMedium, vault.RiskHigh} {
		if r.String() == word {
			c.atRisk = r
			return c, nil
		}
	}
	return match{}, fmt.Errorf("match.risk: %q: want low, medium or high, as in \">=medium\"", m.Risk)
}

func (m *match) matches(f *vault.Facts) bool {
	if m.risky && !f.Tool.Risk.AtLeast(m.atRisk) {
		return false
	}
	if len(m.kinds) > 0 && !slices.Contains(m.kinds, f.Call.Kind) {
		return false
	}
	if len(m.tools) == 0 {
		return true
	}
	server := f.Call.Server
	if server == "" {
		server = string(f.Call.Kind)
	}
	name := server + "." + f.Call.Target.Name
	return slices.ContainsFunc(m.tools, func(g string) bool { return glob(g, name) })
}

// glob matches the whole of s against a pattern whose only special character is
// the star. It backtracks to the last star only, so it is linear in practice and
// at worst len(pattern) × len(s).
func glob(pattern, s string) bool {
	star, mark := -1, 0
	p, i := 0, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && pattern[p] == s[i]:
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// A hook is a compiled Hook.
type hook struct {
	at     string
	name   string // of the rule, the expression or the URL, for messages
	mode   Mode
	match  match
	engine engine
}

// An engine evaluates one hook. It returns nil if the answer is undefined. It is
// safe for concurrent use and ends by itself.
type engine interface {
	eval(ctx context.Context, in *input) (ast.Value, error)
}

// compile checks h and prepares its engine against the compiled rules.
func (h Hook) compile(r *rules, client *http.Client) (hook, error) {
	c := hook{at: h.At, mode: h.Mode}
	if !slices.Contains(points, h.At) {
		return hook{}, fmt.Errorf("at: %q: hooks stand at %s", h.At, strings.Join(points, ", "))
	}
	if h.OnError != "" && h.OnError != "deny" {
		return hook{}, fmt.Errorf("on_error: %q: an error denies, there is no other value", h.OnError)
	}
	switch c.mode {
	case "":
		c.mode = Enforce
	case Enforce, Shadow, Off:
	default:
		return hook{}, fmt.Errorf("mode: %q: want enforce, shadow or off", h.Mode)
	}
	if h.Deadline < 0 || h.Steps < 0 {
		return hook{}, errors.New("budget: a negative bound makes no sense")
	}
	var err error
	if c.match, err = h.Match.compile(); err != nil {
		return hook{}, err
	}
	deadline, steps := cmp.Or(h.Deadline, defaultDeadline), cmp.Or(h.Steps, defaultSteps)
	set := 0
	for _, s := range []string{h.Query, h.Expr, h.URL} {
		if s != "" {
			set++
		}
	}
	if set != 1 {
		return hook{}, errors.New("want one of query (rego), expr (cel) and url (http)")
	}
	switch c.name = cmp.Or(h.Query, h.Expr, h.URL); {
	case (h.Engine == "" || h.Engine == Rego) && h.Query != "":
		c.engine, err = newRegoEngine(h.Query, r, deadline, steps)
	case h.Engine == CEL && h.Expr != "":
		c.engine, err = newCELEngine(h.Expr, deadline)
	case h.Engine == HTTP && h.URL != "":
		c.engine, err = newHTTPEngine(h.URL, client, deadline)
	default:
		err = fmt.Errorf("engine: %q: want rego with query, cel with expr, or http with url", h.Engine)
	}
	return c, err
}

// A regoEngine is a rule of the bundles.
type regoEngine struct {
	deadline time.Duration
	steps    int
	needs    needs    // what of the input its rules can look at
	query    ast.Body // result = data.…
	compiler ast.QueryCompiler
	rules    *rules
}

// result is the variable that a query binds.
const result = ast.Var("result")

func newRegoEngine(query string, r *rules, deadline time.Duration, steps int) (*regoEngine, error) {
	if r == nil {
		return nil, errors.New("no bundle has the rules of a rego hook: add policy.bundles with a dir")
	}
	ref, err := r.rule(query)
	if err != nil {
		return nil, err
	}
	return r.engine(ref, deadline, steps)
}

// engine prepares the question for what is at ref.
func (r *rules) engine(ref ast.Ref, deadline time.Duration, steps int) (c *regoEngine, err error) {
	c = &regoEngine{deadline: deadline, steps: steps, needs: r.needs, rules: r, compiler: r.compiler.QueryCompiler()}
	c.query, err = c.compiler.Compile(ast.NewBody(ast.Equality.Expr(ast.NewTerm(result), ast.NewTerm(ref))))
	if err != nil {
		return nil, fmt.Errorf("prepare %s: %w", ref, err)
	}
	return c, nil
}

// eval returns the value of the rule, nil if it is undefined.
func (h *regoEngine) eval(ctx context.Context, in *input) (ast.Value, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	doc, err := in.value(&h.needs)
	if err != nil {
		return nil, fmt.Errorf("build input: %w", err)
	}
	b := &budget{left: h.steps}
	timer := time.AfterFunc(h.deadline, b.Cancel)
	defer timer.Stop()
	if ctx.Done() != nil {
		defer context.AfterFunc(ctx, b.Cancel)()
	}
	// The evaluator is asked directly: package rego would turn the answer into Go maps
	// and open a transaction of its own, which costs as much as a small policy.
	var v ast.Value
	err = topdown.NewQuery(h.query).
		WithQueryCompiler(h.compiler).
		WithCompiler(h.rules.compiler).
		WithStore(h.rules.store).
		WithTransaction(h.rules.txn).
		WithInput(ast.NewTerm(doc)).
		WithCancel(b).
		WithMetrics(metrics.NoOp()).
		WithStrictBuiltinErrors(true).
		Iter(ctx, func(r topdown.QueryResult) error {
			v = r[result].Value
			return nil
		})
	if err != nil {
		return nil, b.explain(ctx, err)
	}
	return v, nil
}

package policy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/cover"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/tester"
)

// A Suite is what the tests of a bundle came to.
type Suite struct {
	Tests    []TestResult `json:"tests"`
	Failed   int          `json:"failed"`
	Coverage float64      `json:"coverage"` // percent of the lines of rules that the tests reached
	Missed   []string     `json:"missed"`   // FILE:LINE of those they did not
}

// A TestResult is one test rule.
type TestResult struct {
	Name  string `json:"name"` // data.payments_test.test_small
	Pass  bool   `json:"pass"`
	Skip  bool   `json:"skip,omitempty"`
	Where string `json:"where,omitempty"` // of what failed
	Error string `json:"error,omitempty"`
}

// Test runs the rules named test_… of the *_test.rego files in the bundle at a path, a
// directory or an archive, with the same built-ins that rules have in the daemon. It
// needs no signature: a test decides nothing.
func Test(ctx context.Context, at string) (Suite, error) {
	files, err := BundleAt(at).OnTrial().files(true)
	if err != nil {
		return Suite{}, err
	}
	r, err := compile(ctx, files)
	if err != nil {
		return Suite{}, err
	}
	rules := map[string]*ast.Module{}
	for name, m := range r.compiler.Modules {
		if !strings.HasSuffix(name, "_test.rego") {
			rules[name] = m
		}
	}
	seen := cover.New()
	txn, err := r.store.NewTransaction(ctx)
	if err != nil {
		return Suite{}, err
	}
	defer r.store.Abort(ctx, txn)
	results, err := tester.NewRunner().
		SetCompiler(ast.NewCompiler().WithCapabilities(r.capabilities).WithPathConflictsCheck(storage.NonEmpty(ctx, r.store, txn))).
		SetStore(r.store).SetModules(r.parsed).SetCoverageQueryTracer(seen).RaiseBuiltinErrors(true).
		RunTests(ctx, txn)
	if err != nil {
		return Suite{}, fmt.Errorf("run tests: %w", err)
	}
	var s Suite
	for t := range results {
		out := TestResult{Name: t.Package + "." + t.Name, Pass: t.Pass(), Skip: t.Skip}
		if t.Error != nil {
			out.Error = t.Error.Error()
		}
		if !out.Pass && !out.Skip {
			s.Failed++
			if t.Location != nil {
				out.Where = fmt.Sprintf("%s:%d", t.Location.File, t.Location.Row)
			}
			if t.FailedAt != nil && t.FailedAt.Location != nil {
				out.Where = fmt.Sprintf("%s:%d", t.FailedAt.Location.File, t.FailedAt.Location.Row)
			}
		}
		s.Tests = append(s.Tests, out)
	}
	slices.SortFunc(s.Tests, func(a, b TestResult) int { return strings.Compare(a.Name, b.Name) })
	report := seen.Report(rules)
	s.Coverage = report.Coverage
	for _, name := range slices.Sorted(maps.Keys(report.Files)) {
		last := 0
		for _, missed := range report.Files[name].NotCovered {
			if missed.Start.Row == last {
				continue // several expressions of one line
			}
			last = missed.Start.Row
			s.Missed = append(s.Missed, fmt.Sprintf("%s:%d", name, last))
		}
	}
	if len(s.Tests) == 0 {
		return s, errors.New("no rule named test_… in a *_test.rego file")
	}
	return s, nil
}

// Try evaluates one query of the bundles in cfg over an input document, as a hook
// would, and returns the answer in JSON. It is nil where the answer is undefined.
func Try(ctx context.Context, cfg Config, query string, document []byte) ([]byte, error) {
	cfg.Hooks = []Hook{{At: AtToolCall, Query: query}}
	s, err := load(ctx, &cfg, nil)
	if err != nil {
		return nil, err
	}
	doc, err := ast.ValueFromReader(bytes.NewReader(document))
	if err != nil {
		return nil, fmt.Errorf("input: %w", err)
	}
	v, err := s.hooks[0].engine.eval(ctx, &input{doc: doc})
	if err != nil || v == nil {
		return nil, err
	}
	return appendJSON(nil, v)
}

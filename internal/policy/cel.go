package policy

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/types/ref"

	"github.com/pilox/vault"
)

// Bounds on CEL. The cost is counted by the interpreter, about one per step and
// per ten bytes of text that a step looks at; it stops a loop over a loop long
// before a clock would, and as surely on a busy machine.
const (
	celCost      = 100_000
	celRecursion = 32
	celText      = 4 << 10
	celDeadline  = 250 * time.Millisecond // a backstop, as for Rego
	celInterrupt = 1024                   // steps of a comprehension between two looks at the deadline
)

// celEnvs are the declarations of the three places where CEL stands. They are
// immutable and made at first use, since most daemons have no CEL at all.
var celEnvs = struct{ caveat, value, hook func() (*cel.Env, error) }{
	caveat: celEnv("args", cel.DynType, "call", cel.MapType(cel.StringType, cel.StringType),
		"agent", cel.StringType, "principal", cel.StringType, "task", cel.StringType, "now", cel.TimestampType),
	value: celEnv("this", cel.DynType),
	hook:  celEnv("input", cel.DynType),
}

// celEnv declares variables: a name and its type, in turn.
func celEnv(vars ...any) func() (*cel.Env, error) {
	return sync.OnceValues(func() (*cel.Env, error) {
		opts := []cel.EnvOption{
			cel.CrossTypeNumericComparisons(true), // an argument is 5 or 5.0, as JSON has it
			cel.ParserRecursionLimit(celRecursion),
			cel.ParserExpressionSizeLimit(celText),
		}
		for i := 0; i < len(vars); i += 2 {
			opts = append(opts, cel.Variable(vars[i].(string), vars[i+1].(*cel.Type)))
		}
		return cel.NewEnv(opts...)
	})
}

// A program is a compiled expression, safe for concurrent use.
type program struct{ p cel.Program }

func compileCEL(text string, env func() (*cel.Env, error), boolean bool) (*program, error) {
	if len(text) > celText {
		return nil, fmt.Errorf("expression of %d bytes: at most %d", len(text), celText)
	}
	e, err := env()
	if err != nil {
		return nil, err
	}
	tree, issues := e.Compile(text)
	if issues.Err() != nil {
		return nil, errors.New(strings.TrimPrefix(issues.Err().Error(), "ERROR: "))
	}
	if t := tree.OutputType(); boolean && !t.IsExactType(cel.BoolType) && !t.IsExactType(cel.DynType) {
		return nil, fmt.Errorf("the expression is a %s: want true or false", t)
	}
	if worst, err := worstCost(e, tree, 0); err != nil {
		return nil, fmt.Errorf("estimate its cost: %w", err)
	} else if worst > celCost {
		return nil, fmt.Errorf("the expression can cost %d on an empty input, and %d stop it: loop over fewer constants", worst, celCost)
	}
	p, err := e.Program(tree, cel.CostLimit(celCost), cel.InterruptCheckFrequency(celInterrupt), cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		return nil, err
	}
	return &program{p}, nil
}

// worstCost estimates what an expression costs at most if each text and list of the
// input has up to size bytes or elements. What the input can have at most says
// nothing: a single loop over 100,000 values costs six times the limit, and most
// calls have three.
func worstCost(e *cel.Env, tree *cel.Ast, size uint64) (uint64, error) {
	c, err := e.EstimateCost(tree, sizes(size))
	return c.Max, err
}

// sizes is an estimator for which everything in the input may have one size.
type sizes uint64

func (s sizes) EstimateSize(cost.AstNode) *cost.SizeEstimate {
	return &cost.SizeEstimate{Max: uint64(s)}
}

func (s sizes) EstimateCallCost(string, string, *cost.AstNode, []cost.AstNode) *cost.CallEstimate {
	return nil
}

// celSample is the size for which lint says that an expression is costly. Three loops
// inside each other are then beyond the limit, and two are not.
const celSample = 64

// costly reports whether an expression over the input of a hook can be stopped on an
// input with a few dozen elements in each list.
func costly(text string) (worst uint64, yes bool) {
	e, err := celEnvs.hook()
	if err != nil {
		return 0, false
	}
	tree, issues := e.Compile(text)
	if issues.Err() != nil {
		return 0, false
	}
	worst, err = worstCost(e, tree, celSample)
	return worst, err == nil && worst > celCost
}

// eval evaluates p. deadline bounds it beside the cost.
func (p *program) eval(ctx context.Context, deadline time.Duration, vars map[string]any) (ref.Val, error) {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	v, _, err := p.p.ContextEval(ctx, vars)
	if err != nil {
		return nil, fmt.Errorf("evaluate: %w", err)
	}
	return v, nil
}

var errNotBoolean = errors.New("the expression came out as neither true nor false")

func (p *program) holds(vars map[string]any) (bool, error) {
	// The caller's context does not stop it: a caveat is held to the end or refuses.
	v, err := p.eval(context.Background(), celDeadline, vars) //nolint:forbidigo // bounded by cost and deadline
	if err != nil {
		return false, err
	}
	b, ok := v.Value().(bool)
	if !ok {
		return false, errNotBoolean
	}
	return b, nil
}

// CompileCaveat compiles a caveat of a capability: a CEL expression over args, call
// (kind, server, tool, id), agent, principal, task and now. It is checked against
// these names when it is compiled, and what is true of a call is told by nothing
// else: there is no clock but now, no network and no randomness.
func CompileCaveat(text string) (func(call *vault.Call, now time.Time) (bool, error), error) {
	p, err := compileCEL(text, celEnvs.caveat, true)
	if err != nil {
		return nil, err
	}
	return func(call *vault.Call, now time.Time) (bool, error) {
		return p.holds(map[string]any{
			"args":  native(call.Args.Root()),
			"call":  map[string]string{"kind": string(call.Kind), "server": call.Server, "tool": call.Target.Name, "id": call.ID},
			"agent": string(call.Agent), "principal": call.Principal, "task": string(call.Task), "now": now,
		})
	}, nil
}

// CompileValue compiles a test of one argument: a CEL expression over this.
func CompileValue(text string) (func(v vault.Value) (bool, error), error) {
	p, err := compileCEL(text, celEnvs.value, true)
	if err != nil {
		return nil, err
	}
	return func(v vault.Value) (bool, error) { return p.holds(map[string]any{"this": native(v)}) }, nil
}

// native returns v as Go values. A whole number is an int64, every other one a
// double, which canonical arguments keep exactly.
func native(v vault.Value) any {
	switch v.Kind() {
	case vault.String:
		s, _ := v.Str()
		return s
	case vault.Number:
		if n, ok := v.Int(); ok {
			return n
		}
		f, _ := v.Float()
		return f
	case vault.Bool:
		b, _ := v.Bool()
		return b
	case vault.Array:
		out := make([]any, 0, v.Len())
		for _, e := range v.All() {
			out = append(out, native(e))
		}
		return out
	case vault.Object:
		out := make(map[string]any, v.Len())
		for name, e := range v.All() {
			out[name] = native(e)
		}
		return out
	case vault.Null, vault.Absent:
	}
	return nil
}

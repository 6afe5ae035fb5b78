package policy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"time"

	"cel.dev/cel-go/common/types"
	"github.com/open-policy-agent/opa/v1/ast"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
)

// A celEngine is an expression over the input document. It is true or false, or a
// decision document. CEL has no undefined: what cannot be evaluated is an error.
type celEngine struct {
	program  *program
	deadline time.Duration
}

func newCELEngine(expr string, deadline time.Duration) (*celEngine, error) {
	p, err := compileCEL(expr, celEnvs.hook, false)
	if err != nil {
		return nil, fmt.Errorf("expr: %w", err)
	}
	return &celEngine{p, deadline}, nil
}

func (c *celEngine) eval(ctx context.Context, in *input) (ast.Value, error) {
	doc, err := in.whole()
	if err != nil {
		return nil, err
	}
	v, err := c.program.eval(ctx, c.deadline, map[string]any{"input": doc})
	if err != nil {
		return nil, err
	}
	if b, ok := v.Value().(bool); ok {
		return ast.Boolean(b), nil
	}
	if v.Type() != types.MapType {
		return nil, fmt.Errorf("the expression is a %s: want true, false or a decision", v.Type().TypeName())
	}
	native, err := v.ConvertToNative(reflect.TypeFor[*structpb.Value]())
	if err != nil {
		return nil, fmt.Errorf("decision: %w", err)
	}
	answer, ok := native.(*structpb.Value)
	if !ok {
		return nil, errors.New("decision: no JSON value")
	}
	raw, err := protojson.Marshal(answer)
	if err != nil {
		return nil, fmt.Errorf("decision: %w", err)
	}
	return ast.ValueFromReader(bytes.NewReader(raw))
}

// whole returns the whole document as Go values, numbers as int64 or float64.
func (in *input) whole() (any, error) {
	one := *in
	one.doc = nil // another engine may have built a part of it
	v, err := one.value(&needs{all: true})
	if err != nil {
		return nil, fmt.Errorf("build input: %w", err)
	}
	doc, err := ast.JSON(v)
	if err != nil {
		return nil, fmt.Errorf("build input: %w", err)
	}
	return plainNumbers(doc), nil
}

// plainNumbers replaces json.Number, which CEL takes for text.
func plainNumbers(v any) any {
	switch v := v.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, err := v.Float64()
		if err != nil {
			return v.String()
		}
		return f
	case map[string]any:
		for k, e := range v {
			v[k] = plainNumbers(e)
		}
	case []any:
		for i, e := range v {
			v[i] = plainNumbers(e)
		}
	}
	return v
}

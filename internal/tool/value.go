package tool

import (
	"fmt"

	"github.com/pilox/vault"
)

// CompileValue compiles a JSON Schema for one argument, as capabilities carry it.
// It is held to the same bounds as the schemas of servers, loads nothing, and
// refuses patterns that cannot be enforced. It does not close the schema: what it
// leaves open is what its author wrote.
func CompileValue(doc string) (func(v vault.Value) (bool, error), error) {
	parsed, err := vault.ParseValue([]byte(doc))
	if err != nil {
		return nil, fmt.Errorf("schema: %w", err)
	}
	s, err := compileSchema(parsed.Root(), schemaOptions{})
	if err != nil {
		return nil, err
	}
	return func(v vault.Value) (bool, error) {
		values := 0
		plain := toAny(v, &values)
		if m := s.check(plain, values); m != nil {
			return false, nil
		}
		return true, nil
	}, nil
}

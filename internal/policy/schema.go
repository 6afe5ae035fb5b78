package policy

import _ "embed"

// The documents that operators write rules against, as JSON Schema 2020-12. They
// are promised: a field may be added under the same version, none is renamed,
// removed or given another meaning.
var (
	// InputSchema describes what rules see.
	//go:embed input.v1.schema.json
	InputSchema []byte
	// DecisionSchema describes what they may answer.
	//go:embed decision.v1.schema.json
	DecisionSchema []byte
)

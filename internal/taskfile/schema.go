package taskfile

import _ "embed"

//go:embed schema.json
var schema []byte

// Schema returns the JSON Schema (2020-12) of task.yaml, for editors and review
// tools. It accepts every file that [Parse] accepts, if written with quotes around
// keys that hold commas; Parse checks more, such as references between rules.
func Schema() []byte { return append([]byte(nil), schema...) }

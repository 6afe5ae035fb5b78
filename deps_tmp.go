//go:build depstmp

package vault

import (
	_ "filippo.io/age"
	_ "github.com/elastic/go-seccomp-bpf"
	_ "github.com/fxamacker/cbor/v2"
	_ "github.com/gowebpki/jcs"
	_ "github.com/landlock-lsm/go-landlock/landlock"
	_ "github.com/modelcontextprotocol/go-sdk/mcp"
	_ "github.com/open-policy-agent/opa/v1/rego"
	_ "github.com/rogpeppe/go-internal/testscript"
	_ "github.com/santhosh-tekuri/jsonschema/v6"
	_ "github.com/spf13/cobra"
	_ "github.com/transparency-dev/formats/note"
	_ "github.com/transparency-dev/merkle/compact"
	_ "go.yaml.in/yaml/v4"
	_ "golang.org/x/mod/sumdb/note"
	_ "golang.org/x/sync/errgroup"
	_ "golang.org/x/sys/unix"
	_ "golang.org/x/term"
	_ "modernc.org/sqlite"
	_ "pgregory.net/rapid"
)

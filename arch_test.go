package vault_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/pilox/vault"

// formats are the public packages that every part may import beside the root.
var formats = []string{"capability", "evidence"}

// exceptions lists what a package may import beyond the rule, with the reason.
var exceptions = map[string][]string{
	"internal/daemon":          {"internal/*"},                        // wires all parts
	"cmd/pvault":               {"internal/daemon", "internal/admin"}, // the command knows the daemon, its API and the public packages
	"internal/sandbox/process": {"internal/sandbox"},                  // a runner knows the limits and grades it reports in
}

// owners lists the heavy dependencies and the packages that may import each.
var owners = map[string][]string{
	"github.com/open-policy-agent/opa":         {"internal/policy"},
	"cel.dev/cel-go":                           {"internal/policy"},
	"github.com/modelcontextprotocol/go-sdk":   {"internal/mcp"},
	"github.com/envoyproxy/go-control-plane":   {"internal/authz"},
	"google.golang.org/grpc":                   {"internal/authz"},
	"modernc.org/sqlite":                       {"internal/store"},
	"github.com/jackc/pgx/v5":                  {"internal/store"},
	"github.com/landlock-lsm/go-landlock":      {"internal/sandbox/process", "internal/sandbox"},
	"github.com/elastic/go-seccomp-bpf":        {"internal/sandbox/process"},
	"github.com/santhosh-tekuri/jsonschema/v6": {"internal/tool"},
	"filippo.io/age":                           {"internal/keystore"},
	"github.com/spf13/cobra":                   {"cmd/pvault"},
	"github.com/spiffe/go-spiffe/v2":           {"internal/identity"},
	"github.com/go-jose/go-jose/v4":            {"internal/oauth", "internal/aat"},
	"github.com/prometheus":                    {"internal/telemetry"},
	"go.opentelemetry.io/proto/slim/otlp":      {"internal/sink"},
	"go.opentelemetry.io/otel":                 {"internal/telemetry"},
}

// TestLayers holds the one rule of ARCHITECTURE.md: the root imports the standard
// library, a part imports the root and the public formats, the daemon alone knows
// the parts, the command knows the daemon. It also holds that each package has
// one doc comment, that a heavy dependency has one importer, and that fakes stay
// in tests.
//
// It parses the files itself instead of asking go list: the test cache knows
// which files a test opened, and not what a subprocess read.
func TestLayers(t *testing.T) {
	docs := map[string]int{}
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			switch d.Name() {
			case "testdata", ".git", "node_modules", "tools", "contrib", "judges":
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		pkg := path.Dir(filepath.ToSlash(name))
		docs[pkg] += documented(f)
		for _, spec := range f.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			checkImport(t, name, pkg, imp)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for pkg, n := range docs {
		if n != 1 {
			t.Errorf("package %s has %d doc comments, want 1", pkg, n)
		}
	}
}

func documented(f *ast.File) int {
	if f.Doc == nil {
		return 0
	}
	return 1
}

func checkImport(t *testing.T, name, pkg, imp string) {
	t.Helper()
	if pkg == "." && strings.Contains(imp, ".") {
		t.Errorf("%s imports %s: the root package is standard library only", name, imp)
	}
	for dep, may := range owners {
		if (imp == dep || strings.HasPrefix(imp, dep+"/")) && !slices.Contains(may, pkg) {
			t.Errorf("%s imports %s: only %s may", name, imp, may)
		}
	}
	if dep, ours := strings.CutPrefix(imp, module+"/"); ours && !allowed(pkg, dep) {
		t.Errorf("%s imports %s: parts do not import each other; see exceptions", name, imp)
	}
}

func allowed(pkg, dep string) bool {
	for _, f := range formats {
		if dep == f && pkg != "." && !isFormat(pkg) {
			return true
		}
	}
	for _, pattern := range exceptions[pkg] {
		prefix, all := strings.CutSuffix(pattern, "*")
		if dep == pattern || all && strings.HasPrefix(dep, prefix) && dep != "internal/vaulttest" {
			return true
		}
	}
	return false
}

func isFormat(pkg string) bool {
	for _, f := range formats {
		if pkg == f {
			return true
		}
	}
	return false
}

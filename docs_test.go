package vault_test

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

// TestDocuments holds that there are five documents and no more, and that their
// links lead somewhere.
func TestDocuments(t *testing.T) {
	want := map[string]bool{"README.md": true, "ARCHITECTURE.md": true, "RATIONALE.md": true, "THREATS.md": true, "CHANGELOG.md": true}
	found, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range found {
		if !want[name] {
			t.Errorf("%s is a sixth document", name)
		}
		delete(want, name)
	}
	for name := range want {
		t.Errorf("%s is missing", name)
	}
	link := regexp.MustCompile(`\]\(([^)#:]+)\)`)
	for _, name := range found {
		for _, m := range link.FindAllStringSubmatch(read(t, name), -1) {
			if _, err := os.Stat(filepath.FromSlash(m[1])); err != nil {
				t.Errorf("%s links to %s: %v", name, m[1], err)
			}
		}
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var testName = regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z0-9]\w*`)

// TestControls holds that every row of docs/controls.md has an event that there is
// and a test that exists, or says that there is none, and that its links lead
// somewhere.
func TestControls(t *testing.T) {
	functions := declared(t)
	doc := read(t, filepath.Join("docs", "controls.md"))
	link := regexp.MustCompile(`\]\(([^)#:]+)\)`)
	for _, m := range link.FindAllStringSubmatch(doc, -1) {
		if _, err := os.Stat(filepath.Join("docs", filepath.FromSlash(m[1]))); err != nil {
			t.Errorf("a link to %s: %v", m[1], err)
		}
	}
	leaf := evidence.Leaf{Log: "x", Class: vault.ClassDaemon, Phase: vault.PhaseNoted, Fields: evidence.Fields{N: 1, Root: vault.Digest{1}}, Time: time.Unix(0, 0)}
	raw, err := leaf.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	var members map[string]any
	if err := json.Unmarshal(raw, &members); err != nil {
		t.Fatal(err)
	}
	code, fields := regexp.MustCompile("`([a-z_]+)`"), regexp.MustCompile(`fields? ([a-z, ]+)`)
	rows := 0
	for line := range strings.Lines(doc) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 3 || strings.HasPrefix(cells[0], "-") || strings.TrimSpace(cells[2]) == "test" {
			continue
		}
		rows++
		tests := testName.FindAllString(cells[2], -1)
		nothing := strings.TrimSpace(cells[1]) == "nothing"
		if nothing != (len(tests) == 0) {
			t.Errorf("%s: events without a test, or the other way round", cells[0])
		}
		for _, name := range tests {
			if _, ok := functions[name]; !ok {
				t.Errorf("%s: %s does not exist", cells[0], name)
			}
		}
		for part := range strings.SplitSeq(cells[1], ";") {
			class := vault.Class("")
			for _, m := range code.FindAllStringSubmatch(part, -1) {
				_, member := members[m[1]]
				switch {
				case vault.FieldsOf(vault.Class(m[1])) != nil:
					class = vault.Class(m[1])
				case !member:
					t.Errorf("%s: %s is no class of events and no member of a leaf", cells[0], m[1])
				}
			}
			for _, m := range fields.FindAllStringSubmatch(part, -1) {
				for field := range strings.SplitSeq(m[1], ",") {
					if field = strings.TrimSpace(field); !slices.Contains(vault.FieldsOf(class), field) {
						t.Errorf("%s: an event of class %q has no field %q", cells[0], class, field)
					}
				}
			}
		}
	}
	if rows < 30 {
		t.Errorf("%d rows: the test looks in the wrong place", rows)
	}
}

// TestTestsInTHREATS holds that every test that a claim rests on exists.
func TestTestsInTHREATS(t *testing.T) {
	functions := declared(t)
	named := testName.FindAllString(read(t, "THREATS.md"), -1)
	if len(named) == 0 {
		t.Fatal("THREATS.md names no test")
	}
	for _, name := range named {
		if _, ok := functions[name]; !ok {
			t.Errorf("THREATS.md names %s, which does not exist", name)
		}
	}
	script := regexp.MustCompile(`\b[a-z]+\.txtar\b`)
	for _, name := range script.FindAllString(read(t, "THREATS.md"), -1) {
		if _, err := os.Stat(filepath.Join("cmd", "pvault", "testdata", "script", name)); err != nil {
			t.Errorf("THREATS.md names %s: %v", name, err)
		}
	}
}

// TestFilesInARCHITECTURE holds that every file that is named exists and every
// function named with it stands in it.
func TestFilesInARCHITECTURE(t *testing.T) {
	functions := declared(t)
	doc := read(t, "ARCHITECTURE.md")
	file := regexp.MustCompile("`([a-z0-9_/.-]+\\.(?:go|json|yaml|rego))(?::([A-Za-z.]+))?`")
	named := file.FindAllStringSubmatch(doc, -1)
	if len(named) == 0 {
		t.Fatal("ARCHITECTURE.md names no file")
	}
	for _, m := range named {
		if _, err := os.Stat(filepath.FromSlash(m[1])); err != nil {
			t.Errorf("ARCHITECTURE.md names %s: %v", m[1], err)
			continue
		}
		if m[2] != "" && !functions[m[2]][m[1]] {
			t.Errorf("ARCHITECTURE.md says that %s is in %s, and it is not", m[2], m[1])
		}
	}
}

// declared returns, for every function of the project, the files that declare it:
// by its name, and for methods also as Type.Method.
func declared(t *testing.T) map[string]map[string]bool {
	t.Helper()
	out := map[string]map[string]bool{}
	add := func(name, file string) {
		if out[name] == nil {
			out[name] = map[string]bool{}
		}
		out[name][filepath.ToSlash(file)] = true
	}
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || d.Name() == ".git" || d.Name() == "node_modules") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range f.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			add(fn.Name.Name, name)
			if fn.Recv != nil {
				add(receiver(fn.Recv.List[0].Type)+"."+fn.Name.Name, name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

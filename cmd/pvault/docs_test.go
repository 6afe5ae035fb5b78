package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v4"

	"github.com/pilox/vault/evidence"
	"github.com/pilox/vault/internal/daemon"
)

const repo = "../.."

// documents are the files that people read. What stands in them is held against
// the program, so that they cannot drift from it.
var documents = []string{"README.md", "ARCHITECTURE.md", "RATIONALE.md", "THREATS.md", "CHANGELOG.md"}

func readDoc(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(repo, filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A snippet is one fenced block.
type snippet struct {
	lang, text string
	line       int
}

var fence = regexp.MustCompile("(?ms)^```([a-z]*)\n(.*?)^```$")

func snippets(doc string) []snippet {
	var out []snippet
	for _, m := range fence.FindAllStringSubmatchIndex(doc, -1) {
		out = append(out, snippet{lang: doc[m[2]:m[3]], text: doc[m[4]:m[5]], line: strings.Count(doc[:m[0]], "\n") + 1})
	}
	return out
}

// TestSnippets holds that every YAML and JSON block in the documents is what it
// says it is: a task file that can be minted, or a configuration that starts.
func TestSnippets(t *testing.T) {
	seen := 0
	for _, name := range documents {
		for _, s := range snippets(readDoc(t, name)) {
			at := name + ":" + strconv.Itoa(s.line)
			switch s.lang {
			case "yaml":
				seen++
				if err := checkYAML(t, s.text); err != nil {
					t.Errorf("%s: %v", at, err)
				}
			case "json":
				if !json.Valid([]byte(s.text)) {
					t.Errorf("%s: not JSON", at)
				}
			}
		}
	}
	if seen == 0 {
		t.Error("no YAML in any document: the test looks in the wrong place")
	}
}

// checkYAML parses a task file or a vault.yaml, told apart by the first line.
func checkYAML(t *testing.T, text string) error {
	t.Helper()
	if strings.HasPrefix(text, "# task.yaml") {
		path := filepath.Join(t.TempDir(), "task.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return err
		}
		_, _, err := daemon.ReadTask(path)
		return err
	}
	return checkConfig([]byte(text))
}

func checkConfig(b []byte) error {
	c, err := daemon.ParseConfig(b)
	if err != nil {
		return err
	}
	return c.Complete(func(key string) string { return map[string]string{"HOME": "/home/me"}[key] })
}

// TestExampleFiles holds that the files in examples work, the hooks in the comments
// of the policies included.
func TestExampleFiles(t *testing.T) {
	if _, _, err := daemon.ReadTask(filepath.Join(repo, "examples", "task.yaml")); err != nil {
		t.Errorf("task.yaml: %v", err)
	}
	if err := checkConfig([]byte(readDoc(t, "examples/vault.yaml"))); err != nil {
		t.Errorf("vault.yaml: %v", err)
	}
	policies, err := filepath.Glob(filepath.Join(repo, "examples", "policy", "*", "*.rego"))
	if err != nil || len(policies) == 0 {
		t.Fatalf("no policies: %v", err)
	}
	for _, path := range policies {
		if strings.HasSuffix(path, "_test.rego") {
			continue
		}
		var conf strings.Builder
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			comment, ok := strings.CutPrefix(line, "# ")
			if ok && (strings.HasPrefix(comment, "policy:") || conf.Len() > 0 && strings.HasPrefix(comment, " ")) {
				conf.WriteString(comment)
			}
		}
		if conf.Len() == 0 {
			t.Errorf("%s does not say how to wire it", path)
		}
		if err := checkConfig([]byte(conf.String())); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestExampleConfigHasDefaults holds that the example, which says so, has every
// key, and the table of README.md too.
func TestExampleConfigHasDefaults(t *testing.T) {
	var schema map[string]any
	if err := json.Unmarshal(daemon.Schema, &schema); err != nil {
		t.Fatal(err)
	}
	var example map[string]any
	if err := yaml.Unmarshal([]byte(readDoc(t, "examples/vault.yaml")), &example); err != nil {
		t.Fatal(err)
	}
	readme := readDoc(t, "README.md")
	for key, v := range properties(schema) {
		sub := properties(v)
		if len(sub) == 0 || key == "policy" || key == "approvals" {
			sub = map[string]map[string]any{"": nil}
		}
		part, _ := example[key].(map[string]any)
		for name := range sub {
			full := strings.TrimSuffix(key+"."+name, ".")
			if name == "" && (key == "policy" || key == "approvals") {
				full = key + "."
			}
			if !strings.Contains(readme, "| `"+full) {
				t.Errorf("README.md does not list %s", full)
			}
			if _, ok := part[name]; name != "" && !ok && key != "cluster" {
				t.Errorf("examples/vault.yaml does not show %s", full)
			}
		}
	}
}

func properties(schema map[string]any) map[string]map[string]any {
	out := map[string]map[string]any{}
	p, _ := schema["properties"].(map[string]any)
	for k, v := range p {
		out[k], _ = v.(map[string]any)
	}
	return out
}

var inline = regexp.MustCompile("`(pvault [^`]+)`")

// TestCommandsInDocuments holds that every pvault command line in the documents,
// and in what the program itself tells people to type, exists with its flags.
func TestCommandsInDocuments(t *testing.T) {
	seen := 0
	for _, name := range documents {
		doc := readDoc(t, name)
		var lines []string
		for _, s := range snippets(doc) {
			if s.lang == "sh" || s.lang == "console" {
				lines = append(lines, strings.Split(s.text, "\n")...)
			}
		}
		for _, m := range inline.FindAllStringSubmatch(doc, -1) {
			lines = append(lines, m[1])
		}
		for _, line := range lines {
			if words, ok := strings.CutPrefix(strings.TrimPrefix(line, "$ "), "pvault "); ok {
				seen++
				checkCommand(t, name, strings.Fields(words))
			}
		}
	}
	if seen == 0 {
		t.Error("no command in any document: the test looks in the wrong place")
	}
	root := new(app).root()
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" && c != root && !c.Hidden {
			t.Errorf("%s has no short description", c.CommandPath())
		}
		for line := range strings.Lines(c.Example) {
			if words, ok := strings.CutPrefix(strings.TrimSpace(line), "pvault "); ok {
				checkCommand(t, c.CommandPath()+" --help", strings.Fields(words))
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
}

// checkCommand looks up one command line: its sub-command, and every flag.
func checkCommand(t *testing.T, where string, words []string) {
	t.Helper()
	if i := slices.IndexFunc(words, func(w string) bool {
		return w == "--" || w == "#" || w == ">" || w == "|" || strings.HasPrefix(w, "3<")
	}); i >= 0 {
		words = words[:i]
	}
	root := new(app).root()
	c, rest, err := root.Find(words)
	if err != nil || c == root && len(words) > 0 && !strings.HasPrefix(words[0], "-") && words[0] != "COMMAND" {
		t.Errorf("%s: pvault %s: no such command (%v)", where, strings.Join(words, " "), err)
		return
	}
	if c.HasSubCommands() && c != root && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		t.Errorf("%s: pvault %s: no such sub-command", where, strings.Join(words, " "))
	}
	for _, w := range rest {
		if name, ok := strings.CutPrefix(w, "--"); ok {
			name, _, _ = strings.Cut(name, "=")
			if c.Flags().Lookup(name) == nil && c.InheritedFlags().Lookup(name) == nil && name != "help" {
				t.Errorf("%s: pvault %s has no flag --%s", where, c.Name(), name)
			}
		}
	}
}

// TestExitCodesInREADME holds that the tables have every exit code.
func TestExitCodesInREADME(t *testing.T) {
	readme := readDoc(t, "README.md")
	codes := []int{exitOK, exitError, exitUsage, exitDenied, exitPending, exitNotRunning, exitApprover, exitDiffers}
	for _, p := range []evidence.Problem{
		evidence.ProblemAltered, evidence.ProblemDropped, evidence.ProblemSwapped, evidence.ProblemTruncated,
		evidence.ProblemDisclosure, evidence.ProblemMalformed, evidence.ProblemWrongKey, evidence.ProblemUnpinned,
		evidence.ProblemRollback, evidence.ProblemSplitView, evidence.ProblemUnrelated, evidence.ProblemOtherRun,
		evidence.ProblemIncomplete,
	} {
		codes = append(codes, p.Exit())
	}
	for _, code := range codes {
		if !strings.Contains(readme, "\n| "+strconv.Itoa(code)+" | ") {
			t.Errorf("README.md does not list exit code %d", code)
		}
	}
}

// TestTaskFileInREADME holds that the reference of the task file has every key and
// every constraint of the schema.
func TestTaskFileInREADME(t *testing.T) {
	var out bytes.Buffer
	if code := run(t.Context(), []string{"schema", "task"}, nil, &out, &out, func(string) string { return "" }); code != exitOK {
		t.Fatalf("pvault schema task: exit code %d: %s", code, out.String())
	}
	var schema map[string]any
	if err := json.Unmarshal(out.Bytes(), &schema); err != nil {
		t.Fatal(err)
	}
	defs, _ := schema["$defs"].(map[string]any)
	constraint, _ := defs["constraint"].(map[string]any)
	readme := readDoc(t, "README.md")
	for _, part := range []map[string]any{schema, constraint} {
		p := properties(part)
		if len(p) == 0 {
			t.Fatal("no properties: the schema has another shape than this test knows")
		}
		for key := range p {
			if !strings.Contains(readme, "`"+key+"`") {
				t.Errorf("README.md does not explain %s", key)
			}
		}
	}
}

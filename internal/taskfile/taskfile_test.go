package taskfile

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
)

// resolve knows every server by the digest of its name.
func resolve(server string) (vault.ServerID, bool) {
	return vault.ServerID(vault.Hash("test-server", []byte(server))), true
}

// golden compares got with a file; UPDATE=1 writes it.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("differs from %s, got:\n%s", name, got)
	}
}

func files(t testing.TB, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil || len(names) == 0 {
		t.Fatalf("no %s: %v", pattern, err)
	}
	return names
}

func TestFilesThatAreAcceptedGiveTheseClaims(t *testing.T) {
	for _, name := range files(t, "testdata/accept/*.yaml") {
		t.Run(filepath.Base(name), func(t *testing.T) {
			f, err := Load(name)
			if err != nil {
				t.Fatal(err)
			}
			link, err := f.Claims(resolve)
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.MarshalIndent(struct {
				Life   string
				Claims any
			}{f.Life.String(), link}, "", "\t")
			if err != nil {
				t.Fatal(err)
			}
			golden(t, strings.TrimSuffix(name, ".yaml")+".json", append(got, '\n'))
		})
	}
}

func TestFilesThatAreRefusedSayWhereAndWhy(t *testing.T) {
	for _, name := range files(t, "testdata/reject/*.yaml") {
		t.Run(filepath.Base(name), func(t *testing.T) {
			f, err := Load(name)
			if err == nil {
				t.Fatal("accepted")
			}
			if f != nil {
				t.Error("a refused file came back")
			}
			var problems Errors
			if !errors.As(err, &problems) {
				t.Fatalf("got %T %v, want Errors", err, err)
			}
			golden(t, strings.TrimSuffix(name, ".yaml")+".txt", []byte(err.Error()+"\n"))
		})
	}
}

// Everything that a file may say has to fit into a capability; otherwise a file
// that passed review fails at mint.
func TestFilesThatAreAcceptedCanBeMinted(t *testing.T) {
	for _, name := range files(t, "testdata/accept/*.yaml") {
		f, err := Load(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := mint(t, f); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func mint(t testing.TB, f *File) error {
	t.Helper()
	link, err := f.Claims(resolve)
	if err != nil {
		t.Fatal(err)
	}
	now := time.UnixMilli(1_700_000_000_000)
	link.Tenant, link.Agent, link.Audience = "acme", "spiffe://example.org/agent/acme/clerk/1", "cluster-1"
	for i := range link.ThirdParty {
		link.ThirdParty[i].Audience = link.Audience
	}
	link.Task.ID = vault.NewTaskID()
	link.Issued, link.NotBefore = capability.InstantOf(now), capability.InstantOf(now)
	link.Expires = capability.InstantOf(now.Add(f.Life))
	link.Holder = capability.HeldByUID(1000)
	_, err = capability.Mint(link, capability.Signer{Key: ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), KID: "k1"})
	return err
}

func TestUnsupportedThingsAreRefusedAndSaySo(t *testing.T) {
	_, err := Load("testdata/reject/unsupported.yaml")
	if !errors.Is(err, ErrUnsupported) {
		t.Errorf("got %v, want ErrUnsupported", err)
	}
	if _, err = Load("testdata/reject/unknown-key.yaml"); errors.Is(err, ErrUnsupported) {
		t.Errorf("an unknown key is reported as unsupported: %v", err)
	}
}

const least = "version: 1\npurpose: p\nprincipal: user:a\nlife: 1m\nbudgets: {calls: 1}\n"

func TestServerNobodyRegisteredIsAnErrorAtItsRule(t *testing.T) {
	f, err := Parse([]byte(least+"tools:\n  files.read: {args: {}}\n  nope.x: {args: any}\n"), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Claims(func(s string) (vault.ServerID, bool) {
		if s == "files" {
			return resolve(s)
		}
		return vault.ServerID{}, false
	})
	want := `task file:8:3: tools.nope.x: no server "nope" is registered; register it with pvault server add`
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestTwoNamesOfOneServerDoNotReplaceEachOther(t *testing.T) {
	f, err := Parse([]byte(least+"tools:\n  a.read: {args: {}}\n  b.read: {args: any}\n"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = f.Claims(func(string) (vault.ServerID, bool) { return vault.ServerID{1}, true }); err == nil {
		t.Error("two rules for one target were accepted")
	}
}

func TestDigestChangesWithEveryByte(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	seen := make(map[vault.Digest]string)
	for _, c := range [][2]string{
		{least + "inputs: in.txt\n", "pay"},
		{least + "inputs: in.txt\n", "pay "},
		{least + "inputs: in.txt \n", "pay"},
		{least + "# note\ninputs: in.txt\n", "pay"},
		{least, "pay"},
	} {
		write("task.yaml", c[0])
		write("in.txt", c[1])
		f, err := Load(filepath.Join(dir, "task.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		again, err := Load(filepath.Join(dir, "task.yaml"))
		if err != nil || again.Digest() != f.Digest() {
			t.Errorf("the same files give another digest, %v", err)
		}
		if other, ok := seen[f.Digest()]; ok {
			t.Errorf("%q has the digest of %q", c, other)
		}
		seen[f.Digest()] = fmt.Sprint(c)
	}
}

func TestInputsStayInTheDirectoryOfTheFile(t *testing.T) {
	outside := t.TempDir()
	dir := filepath.Join(outside, "task")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(dir, "sub"), 0o700))
	must(os.WriteFile(filepath.Join(outside, "secret"), []byte("s"), 0o600))
	must(os.WriteFile(filepath.Join(dir, "sub", "in.txt"), []byte("inside"), 0o600))
	must(os.WriteFile(filepath.Join(dir, "large"), make([]byte, MaxInputs+1), 0o600))
	must(os.WriteFile(filepath.Join(dir, "fits"), bytes.Repeat([]byte("a"), MaxInputs), 0o600))
	must(os.WriteFile(filepath.Join(dir, "binary"), []byte{0xff}, 0o600))
	must(os.Symlink("../secret", filepath.Join(dir, "link")))
	must(os.Symlink("..", filepath.Join(dir, "up")))
	must(os.Symlink("sub/in.txt", filepath.Join(dir, "within")))
	must(syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	for _, c := range []struct {
		inputs string
		ok     bool
	}{
		{"sub/in.txt", true},
		{"./sub/in.txt", true},
		{"within", true},
		{"fits", true},
		{"../secret", false},
		{"sub/../../secret", false},
		{filepath.Join(outside, "secret"), false},
		{"link", false},
		{"up/secret", false},
		{"large", false},
		{"binary", false},
		{"sub", false},
		{"fifo", false},
		{"missing", false},
	} {
		path := filepath.Join(dir, "task.yaml")
		must(os.WriteFile(path, []byte(least+"inputs: "+c.inputs+"\n"), 0o600))
		f, err := Load(path)
		if c.ok != (err == nil) {
			t.Errorf("inputs: %s: got %v, want ok %v", c.inputs, err, c.ok)
		}
		if err == nil && f.Inputs.Text == "" {
			t.Errorf("inputs: %s: no text", c.inputs)
		}
	}
}

func TestFileBeyondABoundIsRefused(t *testing.T) {
	for name, data := range map[string]string{
		"more bytes than a file may have": least + "#" + strings.Repeat("x", MaxBytes),
		"deeper than YAML may nest":       least + "tools: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000),
		"deeper than constraints may nest": least + "tools: {a.b: {args: {x: " + strings.Repeat("{each: ", 9) + "{}" +
			strings.Repeat("}", 9) + "}}}",
		"more values than a file may have": least + "tools: {a.b: {args: {x: {one_of: [" + strings.Repeat("1,", maxNodes) + "1]}}}}",
		"a purpose of many pages":          strings.Replace(least, "purpose: p", "purpose: "+strings.Repeat("p", maxPurpose+1), 1),
		"inputs that nobody handed over":   least + "inputs: x",
		"inputs beyond the bound":          least + "inputs: large",
	} {
		var read func(string) ([]byte, error)
		if strings.HasSuffix(data, "large") {
			read = func(string) ([]byte, error) { return make([]byte, MaxInputs+1), nil }
		}
		if _, err := Parse([]byte(data), read); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestProblemsAreBoundedAndSorted(t *testing.T) {
	var b strings.Builder
	b.WriteString(least)
	for i := range 100 {
		fmt.Fprintf(&b, "x%d: 1\n", i)
	}
	_, err := Parse([]byte(b.String()), nil)
	var problems Errors
	if !errors.As(err, &problems) || len(problems) != maxErrors {
		t.Fatalf("got %d problems, want %d", len(problems), maxErrors)
	}
	if !slices.IsSortedFunc(problems, func(a, b *Error) int { return a.Line - b.Line }) {
		t.Error("not in the order of the file")
	}
}

func TestHintNamesTheNearestKey(t *testing.T) {
	for key, want := range map[string]string{
		"tool": "tools", "Tools": "tools", "tolos": "tools", "principle": "principal", "budget": "budgets",
		"server-requests": "server_requests", "xyz": "", "": "", strings.Repeat("tools", 100): "",
	} {
		if got := nearest(key, fileKeys); got != want {
			t.Errorf("nearest(%q) = %q, want %q", key, got, want)
		}
	}
}

// The schema is written by hand and read by editors; these two tests keep it from
// drifting away from the parser.

func TestSchemaHasTheKeysOfTheParser(t *testing.T) {
	var doc any
	if err := json.Unmarshal(Schema(), &doc); err != nil {
		t.Fatal(err)
	}
	at := func(path ...string) any {
		v := doc
		for _, p := range path {
			v = v.(map[string]any)[p]
		}
		return v
	}
	for _, c := range []struct {
		path []string
		keys []string
		not  []string // known to the parser so that it can refuse them clearly
	}{
		{nil, fileKeys, nil},
		{[]string{"properties", "egress", "items"}, egressKeys, []string{"secret"}},
		{[]string{"properties", "sandbox"}, sandboxKeys, []string{"escalate"}},
		{[]string{"properties", "budgets"}, budgetKeys, nil},
		{[]string{"properties", "labels"}, labelKeys, nil},
		{[]string{"properties", "delegate"}, delegateKeys, nil},
		{[]string{"$defs", "rule"}, ruleKeys, nil},
		{[]string{"$defs", "constraint"}, constraintKeys, nil},
		{[]string{"$defs", "constraint", "properties", "url"}, urlKeys, nil},
		{[]string{"$defs", "constraint", "properties", "argv"}, argvKeys, nil},
	} {
		object := at(c.path...).(map[string]any)
		got := slices.Sorted(maps.Keys(object["properties"].(map[string]any)))
		var want []string
		for _, k := range c.keys {
			if !slices.Contains(c.not, k) {
				want = append(want, k)
			}
		}
		slices.Sort(want)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%v: schema has %v, parser %v", c.path, got, want)
		}
		if object["additionalProperties"] != false {
			t.Errorf("%v: the schema lets unknown keys through", c.path)
		}
	}
}

func TestSchemaAgreesWithTheParserOnExamples(t *testing.T) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("task.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("task.json")
	if err != nil {
		t.Fatal(err)
	}
	// What a schema cannot see: YAML below the data model, and references.
	beyond := []string{
		"alias", "bomb", "tag", "duplicate-key", "duplicate-argument", "two-documents", "not-yaml",
		"not-utf8", "nothing-there", "hidden-character", "life-too-long", "sums", "octal-and-hex",
	}
	for _, name := range slices.Concat(files(t, "testdata/accept/*.yaml"), files(t, "testdata/reject/*.yaml")) {
		base := strings.TrimSuffix(filepath.Base(name), ".yaml")
		accept := strings.Contains(name, "accept")
		if !accept && slices.Contains(beyond, base) {
			continue
		}
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Validate(toJSON(t, data)); accept != (err == nil) {
			t.Errorf("%s: the parser accepts: %v, the schema says: %v", name, accept, err)
		}
	}
}

// toJSON is the document as the parser sees it, sums in braces put together.
func toJSON(t *testing.T, data []byte) any {
	t.Helper()
	var doc yaml.Node
	if err := yaml.Load(data, &doc); err != nil {
		t.Fatal(err)
	}
	var convert func(n *yaml.Node) any
	convert = func(n *yaml.Node) any {
		switch n.Kind {
		case yaml.MappingNode:
			out := make(map[string]any)
			for _, e := range (&decoder{}).entries(n, "") {
				out[e.key] = convert(e.v)
			}
			return out
		case yaml.SequenceNode:
			out := []any{}
			for _, c := range n.Content {
				out = append(out, convert(c))
			}
			return out
		default:
		}
		switch n.ShortTag() {
		case "!!int", "!!float":
			return json.Number(n.Value)
		case "!!bool":
			return n.Value == "true"
		case "!!null":
			return nil
		}
		return n.Value
	}
	return convert(doc.Content[0])
}

// What FuzzParse holds: no input panics, an error has a position, and what is
// accepted translates to claims and has the same digest when read again.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/accept/*.yaml", "testdata/reject/*.yaml"} {
		for _, name := range files(f, pattern) {
			data, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	read := func(string) ([]byte, error) { return []byte("inputs"), nil }
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Parse(data, read)
		if err != nil {
			var problems Errors
			if !errors.As(err, &problems) || len(problems) == 0 || len(problems) > maxErrors {
				t.Fatalf("%T %v", err, err)
			}
			for _, p := range problems {
				if p.Line < 1 || p.Column < 1 || p.Problem == "" {
					t.Fatalf("a problem without a place: %+v", p)
				}
			}
			return
		}
		if file.Version != 1 || file.Purpose == "" || file.Life <= 0 || file.Budgets.Calls < 1 || file.Digest().IsZero() {
			t.Fatalf("accepted without what is required: %+v", file)
		}
		for _, r := range file.Tools {
			if r.Name == "*" && !r.Any || r.Any && r.Args != nil || !r.Any && r.Args == nil {
				t.Fatalf("a rule that is not closed: %+v", r)
			}
		}
		// Only the size of the whole chain is left to the minter.
		if err := mint(t, file); err != nil && len(data) < 8<<10 {
			t.Fatal(err)
		}
		again, err := Parse(data, read)
		if err != nil || again.Digest() != file.Digest() {
			t.Fatalf("another digest, %v", err)
		}
	})
}

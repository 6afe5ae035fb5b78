package tool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pilox/vault"
)

// memStore is a Store in memory that can fail on purpose.
type memStore struct {
	mu   sync.Mutex
	docs map[string][]byte
	fail error // of the next Put or Delete
}

func (m *memStore) Get(_ context.Context, name string) ([]byte, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	doc, ok := m.docs[name]
	return slices.Clone(doc), ok, nil
}

func (m *memStore) Put(_ context.Context, name string, doc []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	if m.docs == nil {
		m.docs = map[string][]byte{}
	}
	m.docs[name] = slices.Clone(doc)
	return nil
}

func (m *memStore) List(context.Context) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Keys(m.docs)), nil
}

func (m *memStore) Delete(_ context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	delete(m.docs, name)
	return nil
}

var errDisk = errors.New("disk full")

func open(t testing.TB, store Store) *Catalogue {
	t.Helper()
	c, err := Open(t.Context(), Config{Store: store, Now: func() time.Time { return time.Unix(1_800_000_000, 0) }})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func registration(t testing.TB, doc string) Registration {
	t.Helper()
	reg, err := ParseRegistration([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	return reg
}

// filesTree stands for an installed tree that no test opens.
func filesTree(seed string) Tree {
	return Tree{
		Dir: "/srv/trees/" + seed, Digest: vault.Hash("test", []byte(seed)), Runtime: RuntimeNode, Entry: "node_modules/files/index.js",
		Interpreter: "/usr/bin/node", InterpreterDigest: vault.Hash("test", []byte("node")),
	}
}

const filesReg = `{"install":"npm:@acme/files@1.2.3","args":["/srv/a"],"read":["/srv/a"],"source":"org","holds":"private[finance]",
	"tools":{"read_file":{"read_only":true,"risk":"low","roles":{"/path":"path"}}}}`

const readFile = `{"name":"read_file","title":"Read","description":"Reads one file.",
	"inputSchema":{"type":"object","properties":{"path":{"type":"string"},"lines":{"type":"integer","minimum":1,"maximum":500}},"required":["path"]},
	"annotations":{"readOnlyHint":true}}`

const writeFile = `{"name":"write_file","description":"Writes one file.",
	"inputSchema":{"type":"object","properties":{"path":{"type":"string"},"text":{"type":"string"}},"required":["path","text"]},
	"outputSchema":{"type":"object","properties":{"bytes":{"type":"integer"}},"required":["bytes"]}}`

func raws(docs ...string) []json.RawMessage {
	var out []json.RawMessage
	for _, d := range docs {
		out = append(out, json.RawMessage(d))
	}
	return out
}

func tools(docs ...string) Listing { return Listing{Tools: raws(docs...)} }

// pinned returns a catalogue with server files and a listing pinned.
func pinned(t testing.TB, reg string, l Listing) (*Catalogue, *memStore, vault.ServerID) {
	t.Helper()
	store := &memStore{}
	c := open(t, store)
	r := registration(t, reg)
	var tree Tree
	if r.URL == "" {
		tree = filesTree("files")
	}
	s, err := c.Register(t.Context(), "files", r, tree)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Pin(t.Context(), "files", l); err != nil {
		t.Fatal(err)
	}
	return c, store, s.ID
}

func toolCall(id vault.ServerID, name, args string) *vault.Call {
	return &vault.Call{Kind: vault.KindTool, Target: vault.Target{Server: id, Name: name}, Args: vault.MustArgs(args)}
}

// code returns the code of a denial, "" for nil.
func code(t testing.TB, err error) vault.Code {
	t.Helper()
	if err == nil {
		return ""
	}
	d, ok := errors.AsType[*vault.Denial](err)
	if !ok {
		t.Fatalf("error %v is no denial", err)
	}
	return d.Reason.Code
}

func resolve(t testing.TB, c *Catalogue, id vault.ServerID, name, args string) vault.Code {
	t.Helper()
	_, err := c.Resolve(t.Context(), toolCall(id, name, args), &vault.Grant{})
	return code(t, err)
}

// viewed returns the names of all definitions an agent with every grant is served.
func viewed(t testing.TB, c *Catalogue) string {
	t.Helper()
	var names []string
	for _, d := range c.View(t.Context(), func(vault.Kind, vault.Target) bool { return true }) {
		names = append(names, d.Target.Name)
	}
	return strings.Join(names, " ")
}

// checkInvariant reopens the store: what was written must load to what is seen.
func checkInvariant(t testing.TB, c *Catalogue, store *memStore) {
	t.Helper()
	again := open(t, store)
	if got, want := viewed(t, again), viewed(t, c); got != want {
		t.Fatalf("after a restart the agent sees %q, before %q", got, want)
	}
	for _, s := range c.Servers() {
		other, err := again.Server(s.Name)
		if err != nil {
			t.Fatal(err)
		}
		if other.ID != s.ID || fmt.Sprint(other.Items) != fmt.Sprint(s.Items) {
			t.Fatalf("server %s differs after a restart:\n%v\n%v", s.Name, s.Items, other.Items)
		}
		for _, it := range s.Items {
			if it.State == StatePinned && it.Definition.IsZero() {
				t.Fatalf("%s is pinned without a definition", it.Name)
			}
		}
	}
}

func TestResolve(t *testing.T) {
	c, store, id := pinned(t, filesReg, tools(readFile, writeFile))
	checkInvariant(t, c, store)
	pinnedDigest := c.snap.Load().byID[id].items[itemKey{kind: vault.KindTool, name: "read_file"}].Definition
	for _, tc := range []struct {
		what  string
		call  *vault.Call
		grant vault.Grant
		code  vault.Code
		path  string
	}{
		{"a pinned tool with matching arguments resolves", toolCall(id, "read_file", `{"path":"/srv/a/x"}`), vault.Grant{}, "", ""},
		{"the definition the capability pins is the pinned one", toolCall(id, "read_file", `{"path":"x"}`), vault.Grant{Definition: pinnedDigest}, "", ""},
		{"a capability for another definition denies", toolCall(id, "read_file", `{"path":"x"}`), vault.Grant{Definition: vault.Digest{1}}, vault.CodeCapabilityDiffers, ""},
		{"a tool nobody listed is unknown", toolCall(id, "rm", `{}`), vault.Grant{}, vault.CodeToolUnknown, ""},
		{"a server nobody registered is unknown", toolCall(vault.ServerID{9}, "read_file", `{}`), vault.Grant{}, vault.CodeToolUnknown, ""},
		{"the zero server has no tools", toolCall(vault.ServerID{}, "read_file", `{}`), vault.Grant{}, vault.CodeToolUnknown, ""},
		{"a missing argument is named", toolCall(id, "read_file", `{}`), vault.Grant{}, vault.CodeArgsSchema, "/path"},
		{"an argument of another type is named", toolCall(id, "read_file", `{"path":7}`), vault.Grant{}, vault.CodeArgsSchema, "/path"},
		{"an argument the schema lacks is refused", toolCall(id, "read_file", `{"path":"x","bcc":"me"}`), vault.Grant{}, vault.CodeArgsSchema, "/bcc"},
		{"the wrong value is named before what it made look extra", toolCall(id, "read_file", `{"lines":0,"path":"x"}`), vault.Grant{}, vault.CodeArgsSchema, "/lines"},
		{"1.5 is no integer", toolCall(id, "read_file", `{"lines":1.5,"path":"x"}`), vault.Grant{}, vault.CodeArgsSchema, "/lines"},
		{"no arguments at all are the empty object", &vault.Call{Kind: vault.KindTool, Target: vault.Target{Server: id, Name: "read_file"}}, vault.Grant{}, vault.CodeArgsSchema, "/path"},
		{"a call without a kind is unknown", &vault.Call{Target: vault.Target{Server: id, Name: "read_file"}}, vault.Grant{}, vault.CodeToolUnknown, ""},
		{"a resource of a known server resolves", &vault.Call{Kind: vault.KindResource, Target: vault.Target{Server: id, Name: "file:///srv/a/x"}}, vault.Grant{}, "", ""},
		{"a resource without a scheme is unknown", &vault.Call{Kind: vault.KindResource, Target: vault.Target{Server: id, Name: "/etc/passwd"}}, vault.Grant{}, vault.CodeToolUnknown, ""},
		{"a resource with a line end is unknown", &vault.Call{Kind: vault.KindResource, Target: vault.Target{Server: id, Name: "file:///x\r\ny"}}, vault.Grant{}, vault.CodeToolUnknown, ""},
		{"a resource nobody listed has no definition to pin", &vault.Call{Kind: vault.KindResource, Target: vault.Target{Server: id, Name: "file:///x"}}, vault.Grant{Definition: vault.Digest{1}}, vault.CodeCapabilityDiffers, ""},
		{"a prompt of a known server resolves", &vault.Call{Kind: vault.KindPrompt, Target: vault.Target{Server: id, Name: "greet"}}, vault.Grant{}, "", ""},
		{"a server request of a known server resolves", &vault.Call{Kind: vault.KindServerRequest, Target: vault.Target{Server: id, Name: "sampling/createMessage"}}, vault.Grant{}, "", ""},
		{"egress needs no server", &vault.Call{Kind: vault.KindEgress, Target: vault.Target{Name: "api.example"}}, vault.Grant{}, "", ""},
		{"egress through a server is unknown", &vault.Call{Kind: vault.KindEgress, Target: vault.Target{Server: id, Name: "api.example"}}, vault.Grant{}, vault.CodeToolUnknown, ""},
		{"egress to nowhere is unknown", &vault.Call{Kind: vault.KindEgress}, vault.Grant{}, vault.CodeToolUnknown, ""},
	} {
		t.Run(tc.what, func(t *testing.T) {
			tool, err := c.Resolve(t.Context(), tc.call, &tc.grant)
			if got := code(t, err); got != tc.code {
				t.Fatalf("code %q, want %q (%v)", got, tc.code, err)
			}
			if err != nil {
				d, _ := errors.AsType[*vault.Denial](err)
				if d.Reason.Path != tc.path {
					t.Errorf("path %q, want %q", d.Reason.Path, tc.path)
				}
				if tool.Server != "" || tool.ReadOnly || tool.Local {
					t.Errorf("a denial came with a tool: %+v", tool)
				}
				return
			}
			if err := c.Recheck(t.Context(), &tool); err != nil {
				t.Errorf("recheck of what was just resolved: %v", err)
			}
		})
	}
}

func TestDenialHoldsNoValue(t *testing.T) {
	c, _, id := pinned(t, filesReg, tools(readFile))
	_, err := c.Resolve(t.Context(), toolCall(id, "read_file", `{"path":"x","lines":987654}`), nil)
	doc, _ := json.Marshal(err)
	if strings.Contains(err.Error()+string(doc), "987654") || strings.Contains(err.Error()+string(doc), "500") {
		t.Errorf("denial shows a value or threshold: %v %s", err, doc)
	}
	long := strings.Repeat("k", 5000)
	_, err = c.Resolve(t.Context(), toolCall(id, "read_file", `{"path":"x","`+long+`":1}`), nil)
	if d, _ := errors.AsType[*vault.Denial](err); len(d.Reason.Path) > maxPathBytes {
		t.Errorf("path of %d bytes", len(d.Reason.Path))
	}
}

func TestFacts(t *testing.T) {
	const url = `{"url":"https://crm.example/mcp","auth":{"secret":"crm"}}`
	hinted := func(reg string) vault.Tool {
		c, _, id := pinned(t, reg, tools(readFile))
		tool, err := c.Resolve(t.Context(), toolCall(id, "read_file", `{"path":"x"}`), nil)
		if err != nil {
			t.Fatal(err)
		}
		return tool
	}
	const bare = `{"install":"npm:@acme/files@1.2.3"}`
	for _, tc := range []struct {
		what string
		ok   bool
	}{
		{"a server's own hint makes nothing read-only", !hinted(bare).ReadOnly},
		{"the operator's entry makes it read-only", hinted(filesReg).ReadOnly},
		{"hints count when the operator vouches for them", hinted(`{"install":"npm:@acme/files@1.2.3","trust_annotations":true}`).ReadOnly},
		{"what nobody classified is high risk", hinted(bare).Risk == vault.RiskHigh},
		{"the operator's risk counts", hinted(filesReg).Risk == vault.RiskLow},
		{"an installed server is local", hinted(bare).Local && hinted(bare).Installed},
		{"a url server is not", !hinted(url).Local && !hinted(url).Installed},
		{"the operator can say that a tool is not local", !hinted(`{"install":"npm:@acme/files@1.2.3","tools":{"read_file":{"local":false}}}`).Local},
		{"answers are from the web unless said otherwise", hinted(bare).Source == vault.FromWeb},
		{"the operator's source counts", hinted(filesReg).Source == vault.FromOrganisation},
		{"answers are for nobody unless said otherwise", !hinted(bare).Holds.IsPublic() && len(hinted(bare).Holds.Names()) == 0},
		{"compartments count", slices.Equal(hinted(filesReg).Holds.Names(), []string{"finance"})},
		{"roles come along", hinted(filesReg).Roles["/path"] == vault.RolePath},
	} {
		if !tc.ok {
			t.Errorf("not so: %s", tc.what)
		}
	}
}

func TestView(t *testing.T) {
	c, _, id := pinned(t, filesReg, Listing{
		Tools:     raws(readFile, writeFile),
		Resources: raws(`{"uri":"file:///a","name":"a","size":7,"_meta":{"x":1}}`),
		Templates: raws(`{"uriTemplate":"file:///{path}","name":"any"}`),
		Prompts:   raws(`{"name":"greet","arguments":[{"name":"who"}],"icons":[{"src":"https://x.example/i.png"}]}`),
	})
	if got := viewed(t, c); got != "greet file:///a file:///{path} read_file write_file" {
		t.Errorf("with every grant the agent sees %q", got)
	}
	only := c.View(t.Context(), func(k vault.Kind, target vault.Target) bool {
		return k == vault.KindTool && target == vault.Target{Server: id, Name: "read_file"}
	})
	if len(only) != 1 || only[0].Target.Name != "read_file" || only[0].Server != "files" || !only[0].ReadOnly {
		t.Fatalf("with one grant the agent sees %v", only)
	}
	if !strings.HasPrefix(string(only[0].Raw), `{"annotations":{"readOnlyHint":true},"description":"Reads one file."`) {
		t.Errorf("served %s", only[0].Raw)
	}
	for _, d := range c.View(t.Context(), func(vault.Kind, vault.Target) bool { return true }) {
		if s := string(d.Raw); strings.Contains(s, "_meta") || strings.Contains(s, "icons") || strings.Contains(s, "size") {
			t.Errorf("served a member that is not pinned: %s", s)
		}
	}
	if got := c.View(t.Context(), func(vault.Kind, vault.Target) bool { return false }); len(got) != 0 {
		t.Errorf("without grants the agent sees %v", got)
	}
}

func TestCheckResult(t *testing.T) {
	c, _, id := pinned(t, filesReg, tools(readFile, writeFile))
	write := toolCall(id, "write_file", `{"path":"x","text":"y"}`)
	tool, err := c.Resolve(t.Context(), write, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		what, raw string
		ok        bool
		path      string
	}{
		{"content as declared passes", `{"content":[],"structuredContent":{"bytes":3}}`, true, ""},
		{"an undeclared property passes: outputs are open", `{"structuredContent":{"bytes":3,"more":1}}`, true, ""},
		{"a missing property is named", `{"structuredContent":{}}`, false, "/structuredContent/bytes"},
		{"another type is named", `{"structuredContent":{"bytes":"3"}}`, false, "/structuredContent/bytes"},
		{"no structured content fails", `{"content":[]}`, false, "/structuredContent"},
		{"a key in another case is another key", `{"StructuredContent":{"bytes":3}}`, false, "/structuredContent"},
		{"an error needs none", `{"isError":true,"content":[]}`, true, ""},
		{"isError false is no error", `{"isError":false,"content":[]}`, false, "/structuredContent"},
		{"a number beyond any double fails", `{"structuredContent":{"bytes":1e999999}}`, false, "/structuredContent"},
		{"an integer beyond 2^53 passes: results are the server's", `{"structuredContent":{"bytes":12345678901234567890}}`, true, ""},
		{"what is no JSON fails", `{"structuredContent":`, false, ""},
		{"null is no object", `{"structuredContent":null}`, false, "/structuredContent"},
		{"deep content fails", `{"structuredContent":{"bytes":1,"x":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}}`, false, "/structuredContent"},
	} {
		t.Run(tc.what, func(t *testing.T) {
			err := c.CheckResult(t.Context(), write, &tool, []byte(tc.raw))
			if (err == nil) != tc.ok {
				t.Fatalf("error %v", err)
			}
			if err == nil {
				return
			}
			d, _ := errors.AsType[*vault.Denial](err)
			if d == nil || d.Reason.Code != vault.CodeResultSchema || d.Reason.Path != tc.path || d.Executed != vault.ExecutedYes {
				t.Errorf("denial %+v, want path %q", d, tc.path)
			}
		})
	}
	read := toolCall(id, "read_file", `{"path":"x"}`)
	plain, _ := c.Resolve(t.Context(), read, nil)
	if err := c.CheckResult(t.Context(), read, &plain, []byte(`not looked at`)); err != nil {
		t.Errorf("a tool without output schema: %v", err)
	}
	// The tool is quarantined while the call runs: its result is still held against
	// the schema it was made under, and no new call starts.
	changed := strings.Replace(writeFile, `"bytes":{"type":"integer"}`, `"bytes":{}`, 1)
	if _, err := c.Observe(t.Context(), "files", tools(readFile, changed)); err != nil {
		t.Fatal(err)
	}
	if err := c.CheckResult(t.Context(), write, &tool, []byte(`{"structuredContent":{"bytes":"3"}}`)); code(t, err) != vault.CodeResultSchema {
		t.Errorf("after the drift: %v", err)
	}
	if got := code(t, c.Recheck(t.Context(), &tool)); got != vault.CodeToolQuarantined {
		t.Errorf("recheck after the drift: %q", got)
	}
}

// TestRecheck: what Resolve said of a target holds for a call that is still on its way,
// until anything about the target is another. A definition that a person accepted in
// the meantime is another one, too.
func TestRecheck(t *testing.T) {
	changed := strings.Replace(writeFile, `"bytes":{"type":"integer"}`, `"bytes":{}`, 1)
	observe := func(t *testing.T, c *Catalogue, l Listing) []Change {
		t.Helper()
		changes, err := c.Observe(t.Context(), "files", l)
		if err != nil {
			t.Fatal(err)
		}
		return changes
	}
	resource := &vault.Call{Kind: vault.KindResource, Target: vault.Target{Name: "file:///x"}}
	for _, tt := range []struct {
		name     string
		resource bool // else the tool write_file
		change   func(*testing.T, *Catalogue)
		want     vault.Code
	}{
		{"nothing changes", false, func(*testing.T, *Catalogue) {}, ""},
		{"another tool of the server changes", false, func(t *testing.T, c *Catalogue) {
			observe(t, c, tools(strings.Replace(readFile, `"path"`, `"file"`, 1), writeFile))
		}, ""},
		{"its definition changes", false, func(t *testing.T, c *Catalogue) { observe(t, c, tools(readFile, changed)) }, vault.CodeToolQuarantined},
		{"another definition is accepted", false, func(t *testing.T, c *Catalogue) {
			for _, ch := range observe(t, c, tools(readFile, changed)) {
				if _, err := c.Accept(t.Context(), "files", ch.Kind, ch.Target.Name, ch.Offered); err != nil {
					t.Fatal(err)
				}
			}
			if got := resolve(t, c, mustID(t, c), "write_file", `{"path":"x","text":"y"}`); got != "" {
				t.Fatalf("the accepted one: %s", got)
			}
		}, vault.CodeToolQuarantined},
		{"the server is removed", false, func(t *testing.T, c *Catalogue) {
			if err := c.Remove(t.Context(), "files"); err != nil {
				t.Fatal(err)
			}
		}, vault.CodeToolUnknown},
		{"the server lists what nobody can read", false, func(t *testing.T, c *Catalogue) {
			observe(t, c, tools(readFile, writeFile, writeFile))
		}, vault.CodeToolQuarantined},
		{"an unlisted resource stays unlisted", true, func(*testing.T, *Catalogue) {}, ""},
		{"an unlisted resource comes onto the list", true, func(t *testing.T, c *Catalogue) {
			l := tools(readFile, writeFile)
			l.Resources = raws(`{"uri":"file:///x","name":"x"}`)
			observe(t, c, l)
		}, vault.CodeToolQuarantined},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, _, id := pinned(t, filesReg, tools(readFile, writeFile))
			call := toolCall(id, "write_file", `{"path":"x","text":"y"}`)
			if tt.resource {
				call = resource
				call.Target.Server = id
			}
			tool, err := c.Resolve(t.Context(), call, &vault.Grant{})
			if err != nil {
				t.Fatal(err)
			}
			tt.change(t, c)
			if got := code(t, c.Recheck(t.Context(), &tool)); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

// mustID returns the id of the server files.
func mustID(t *testing.T, c *Catalogue) vault.ServerID {
	t.Helper()
	s, err := c.Server("files")
	if err != nil {
		t.Fatal(err)
	}
	return s.ID
}

func TestRegister(t *testing.T) {
	c := open(t, &memStore{})
	reg := registration(t, filesReg)
	if _, err := c.Register(t.Context(), "files", reg, filesTree("files")); err != nil {
		t.Fatal(err)
	}
	other := registration(t, strings.ReplaceAll(filesReg, "/srv/a", "/srv/b"))
	for _, tc := range []struct {
		what, name string
		reg        Registration
		tree       Tree
		ok         bool
	}{
		{"the same name twice is refused", "files", other, filesTree("files"), false},
		{"the same registration under another name is refused", "files-2", reg, filesTree("files"), false},
		{"the same tree pointed at another directory is another server", "files-b", other, filesTree("files"), true},
		{"another tree is another server", "files-c", reg, filesTree("other"), true},
		{"a name with a dot is refused", "fi.les", reg, filesTree("x"), false},
		{"a name that starts with a digit is refused", "1files", reg, filesTree("x"), false},
		{"an installed server without a tree is refused", "files-d", reg, Tree{}, false},
		{"a url server with a tree is refused", "crm", registration(t, `{"url":"https://crm.example/mcp"}`), filesTree("x"), false},
		{"a url server is registered", "crm", registration(t, `{"url":"https://crm.example/mcp"}`), Tree{}, true},
		{"with another identity it is another server", "crm-2", registration(t, `{"url":"https://crm.example/mcp","auth":{"secret":"crm"}}`), Tree{}, true},
		{"an entry outside the tree is refused", "files-e", reg, func() Tree { x := filesTree("y"); x.Entry = "../x.js"; return x }(), false},
	} {
		_, err := c.Register(t.Context(), tc.name, tc.reg, tc.tree)
		if (err == nil) != tc.ok {
			t.Errorf("%s: error %v", tc.what, err)
		}
	}
	if got := viewed(t, c); got != "" {
		t.Errorf("before anything is pinned the agent sees %q", got)
	}
	s, _ := c.Server("files")
	if got := resolve(t, c, s.ID, "read_file", `{"path":"x"}`); got != vault.CodeToolUnknown {
		t.Errorf("before anything is pinned a call gives %q", got)
	}
	call := &vault.Call{Kind: vault.KindPrompt, Target: vault.Target{Server: s.ID, Name: "p"}}
	if _, err := c.Resolve(t.Context(), call, nil); code(t, err) != vault.CodeToolUnknown {
		t.Errorf("before anything is pinned a prompt gives %v", err)
	}
	if err := c.Remove(t.Context(), "files"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ServerByID(s.ID); !errors.Is(err, ErrUnknownServer) {
		t.Errorf("after Remove: %v", err)
	}
}

func TestStoreFails(t *testing.T) {
	c, store, id := pinned(t, filesReg, tools(readFile))
	store.fail = errDisk
	drifted := strings.Replace(readFile, "Reads one", "Reads any", 1)
	if _, err := c.Observe(t.Context(), "files", tools(drifted)); !errors.Is(err, errDisk) {
		t.Errorf("observe: %v", err)
	}
	if err := c.Remove(t.Context(), "files"); !errors.Is(err, errDisk) {
		t.Errorf("remove: %v", err)
	}
	if _, err := c.Register(t.Context(), "x", registration(t, `{"url":"https://x.example/mcp"}`), Tree{}); !errors.Is(err, errDisk) {
		t.Errorf("register: %v", err)
	}
	store.fail = nil
	if _, err := c.Server("x"); err == nil {
		t.Error("a server that is not on disk is registered")
	}
	if got := resolve(t, c, id, "read_file", `{"path":"x"}`); got != "" {
		t.Errorf("a failed write changed the catalogue: %q", got)
	}
	// The change was not told, so it is told again.
	if ch, err := c.Observe(t.Context(), "files", tools(drifted)); err != nil || len(ch) != 1 {
		t.Errorf("after the disk recovered: %v %v", ch, err)
	}
	checkInvariant(t, c, store)
}

func TestOpenRefusesDamage(t *testing.T) {
	_, store, _ := pinned(t, filesReg, tools(readFile))
	good := string(store.docs["files"])
	for what, bad := range map[string]string{
		"a changed definition":  strings.Replace(good, "Reads one", "Reads any", 1),
		"an unknown key":        strings.Replace(good, `{"version"`, `{"extra":1,"version"`, 1),
		"another version":       strings.Replace(good, `"version":1`, `"version":2`, 1),
		"another name":          strings.Replace(good, `"name":"files"`, `"name":"filez"`, 1),
		"an unknown state":      strings.Replace(good, `"state":"pinned"`, `"state":"fine"`, 1),
		"half a record":         good[:len(good)/2],
		"a registration of air": strings.Replace(good, `"install":"npm:@acme/files@1.2.3"`, `"install":"npm:@acme/files@latest"`, 1),
	} {
		if bad == good {
			t.Fatalf("%s: the row changes nothing", what)
		}
		store.docs["files"] = []byte(bad)
		if _, err := Open(t.Context(), Config{Store: store}); err == nil {
			t.Errorf("%s loads", what)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	c, _, id := pinned(t, filesReg, tools(readFile, writeFile))
	drifted := strings.Replace(readFile, "Reads one", "Reads any", 1)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for range 50 {
				if i == 0 {
					if _, err := c.Observe(t.Context(), "files", tools(drifted, writeFile)); err != nil {
						t.Error(err)
					}
					if _, err := c.Observe(t.Context(), "files", tools(readFile, writeFile)); err != nil {
						t.Error(err)
					}
					continue
				}
				if _, err := c.Resolve(t.Context(), toolCall(id, "read_file", `{"path":"x"}`), nil); err != nil {
					t.Error(err)
				}
				c.View(t.Context(), func(vault.Kind, vault.Target) bool { return true })
			}
		})
	}
	wg.Wait()
}

func BenchmarkResolve(b *testing.B) {
	c, _, id := pinned(b, filesReg, tools(readFile, writeFile))
	for _, bc := range []struct{ name, tool, args string }{
		{"one", "read_file", `{"path":"/srv/a/x"}`},
		{"two", "write_file", `{"path":"/srv/a/x","text":"hello there"}`},
		{"number", "read_file", `{"path":"/srv/a/x","lines":20}`},
	} {
		b.Run(bc.name, func(b *testing.B) {
			call := toolCall(id, bc.tool, bc.args)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Resolve(b.Context(), call, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("recheck", func(b *testing.B) {
		tool, err := c.Resolve(b.Context(), toolCall(id, "read_file", `{"path":"x"}`), nil)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			if err := c.Recheck(b.Context(), &tool); err != nil {
				b.Fatal(err)
			}
		}
	})
}

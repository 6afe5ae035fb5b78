package daemon_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
)

// grantAll is a task file that grants all of the named servers, of every kind.
func grantAll(servers ...string) string {
	var b strings.Builder
	b.WriteString("version: 1\npurpose: Use " + strings.Join(servers, " and ") + "\nprincipal: user:tester@example.com\nlife: 1h\n")
	for _, kind := range []string{"tools", "resources", "prompts", "server_requests"} {
		b.WriteString(kind + ":\n")
		for _, s := range servers {
			fmt.Fprintf(&b, "  %s.*: {args: any}\n", s)
		}
	}
	b.WriteString("budgets: {calls: 100000}\n")
	return b.String()
}

// endpoint is the transport of a client that uses the admin socket with the
// token of task.
func (r *rig) endpoint(task admin.Task) sdk.Transport {
	return &sdk.StreamableClientTransport{Endpoint: "http://vault/mcp", HTTPClient: r.overSocket(task)}
}

// TestEras has clients of every version use servers of either era through the
// daemon. Each side sees its own era only, and the ledger knows every call.
func TestEras(t *testing.T) {
	r := startDaemon(t, nil)
	servers := map[string]*oracle{"modern": newOracle(t, true), "legacy": newOracle(t, false)}
	for name, o := range servers {
		r.addURL(name, o.url)
	}
	for name, o := range servers {
		for _, version := range mcpVersions {
			t.Run(fmt.Sprintf("a client of %s uses a %s server", version, name), func(t *testing.T) {
				// A task of its own: its file is told apart by the purpose.
				task := r.mint(strings.Replace(grantAll(name), "purpose: ", "purpose: "+version+" ", 1))
				c := connect(t, r.endpoint(task), version)
				useAll(t, c)
				select { // the server was told of the cancellation
				case <-o.cancelled:
				case <-time.After(10 * time.Second):
					t.Error("the server was not told of the cancellation")
				}
				checkRecords(t, r, task)
			})
		}
	}
}

// useAll makes a call of every kind, and looks at what comes back.
func useAll(t *testing.T, c *client) {
	t.Helper()
	ctx := timeout(t, 30*time.Second)
	want := []string{"add", "ask", "blob", "fail", "hang", "progress"}
	if got := c.tools(t); !slices.Equal(slices.Sorted(slices.Values(got)), want) {
		t.Errorf("the client sees %v, want %v", got, want)
	}
	res, err := c.CallTool(ctx, &sdk.CallToolParams{Name: "add", Arguments: sum{2, 3}})
	if err != nil {
		t.Fatal(err)
	}
	if m, ok := res.StructuredContent.(map[string]any); !ok || m["sum"] != 5.0 {
		t.Errorf("add gave %+v", res)
	}
	if res, err = c.CallTool(ctx, &sdk.CallToolParams{Name: "fail"}); err != nil || !res.IsError || textOf(res) != "no luck" {
		t.Errorf("fail gave %+v, %v", res, err)
	}
	if res, err = c.CallTool(ctx, &sdk.CallToolParams{Name: "ask"}); err != nil || textOf(res) != "hello Ada" {
		t.Errorf("ask gave %+v, %v", res, err)
	}
	params := &sdk.CallToolParams{Name: "progress"}
	params.SetProgressToken("mine")
	if res, err = c.CallTool(ctx, params); err != nil || textOf(res) != "progressed" {
		t.Errorf("progress gave %+v, %v", res, err)
	}
	eventually(t, "three steps of progress under the client's own token", func() bool {
		tokens, _ := c.told()
		return slices.Equal(tokens, []any{"mine", "mine", "mine"})
	})
	res, err = c.CallTool(ctx, &sdk.CallToolParams{Name: "nothing"})
	if d := denialOf(t, res, err); d == nil || d.Reason.Code != vault.CodeToolUnknown {
		t.Errorf("an unknown tool gave %+v, %v", res, err)
	}
	doc, err := c.ReadResource(ctx, &sdk.ReadResourceParams{URI: "test://one"})
	if err != nil || len(doc.Contents) != 1 || doc.Contents[0].Text != "first" {
		t.Errorf("read gave %+v, %v", doc, err)
	}
	prompt, err := c.GetPrompt(ctx, &sdk.GetPromptParams{Name: "greet", Arguments: map[string]string{"name": "Bob"}})
	if err != nil {
		t.Errorf("prompt: %v", err)
	} else if got, ok := prompt.Messages[0].Content.(*sdk.TextContent); !ok || got.Text != "hello Bob" {
		t.Errorf("prompt gave %+v", prompt)
	}
	hang, stop := context.WithCancel(ctx)
	time.AfterFunc(200*time.Millisecond, stop)
	if _, err := c.CallTool(hang, &sdk.CallToolParams{Name: "hang"}); err == nil {
		t.Error("a cancelled call gave no error")
	}
}

// checkRecords wants an intent and an outcome for every call of useAll that ran,
// in this order: the cancelled one is on record as cancelled, what the server asked
// of the client's side as a call of its own.
func checkRecords(t *testing.T, r *rig, task admin.Task) {
	t.Helper()
	type call struct{ kind, name, end string }
	var got []call
	eventually(t, "an outcome for every intent", func() bool {
		got = nil
		open := map[string]int{}
		for _, rec := range r.records(task.ID) {
			l := rec.Leaf
			switch {
			case l.Class != string(vault.ClassCall):
			case l.Phase == string(vault.PhaseIntent):
				open[l.Call] = len(got)
				name := l.Tool
				if name == "" {
					name = rec.Fields["target"] // a URI can name a person: it is a field that can be erased
				}
				got = append(got, call{kind: l.Kind, name: name})
			case vault.Phase(l.Phase).Closes():
				i, ok := open[l.Call]
				if !ok {
					t.Fatalf("call %s has an outcome without an intent", l.Call)
				}
				delete(open, l.Call)
				got[i].end = l.Phase
			}
		}
		return len(open) == 0
	})
	for _, want := range []call{
		{"tool", "add", "done"},
		{"tool", "fail", "failed"},
		{"server_request", "elicitation/create", "done"},
		{"tool", "progress", "done"},
		{"resource", "test://one", "done"},
		{"prompt", "greet", "done"},
		{"tool", "hang", "cancelled"},
	} {
		if !slices.Contains(got, want) {
			t.Errorf("the ledger has no %+v; it has %+v", want, got)
		}
	}
}

// TestNobodyIsAskedWithoutAGrant: a server's question reaches the client's user
// only if the task grants that.
func TestNobodyIsAskedWithoutAGrant(t *testing.T) {
	for _, modern := range []bool{true, false} {
		r := startDaemon(t, nil)
		r.addURL("oracle", newOracle(t, modern).url)
		file := grantAll("oracle")
		file = file[:strings.Index(file, "server_requests:")] + "budgets: {calls: 10}\n"
		task := r.mint(file)
		for _, version := range []string{"2026-07-28", "2025-06-18"} {
			c := connect(t, r.endpoint(task), version)
			res, err := c.CallTool(t.Context(), &sdk.CallToolParams{Name: "ask"})
			if err == nil && !res.IsError {
				t.Errorf("modern server %v, client of %s: ask gave %q", modern, version, textOf(res))
			}
		}
		for id, phases := range r.phases(task.ID, vault.KindServerRequest) {
			if slices.Contains(phases, string(vault.PhaseIntent)) {
				t.Errorf("call %s was let through: %v", id, phases)
			}
		}
	}
}

// TestSeveralServers: behind one endpoint each server has its own name space, and
// a task sees the servers it was granted and no other.
func TestSeveralServers(t *testing.T) {
	r := startDaemon(t, nil)
	r.addURL("east", newOracle(t, true).url)
	r.addURL("west", newOracle(t, false).url)
	r.addURL("secret", newOracle(t, true).url)
	task := r.mint(`
version: 1
purpose: Use parts of two servers
principal: user:tester@example.com
life: 1h
tools:
  east.add: {args: any}
  west.add: {args: {A: {integer: [0, 9]}, B: {exact: 1}}}
  west.fail: {args: {}}
budgets: {calls: 100}
`)
	c := connect(t, r.endpoint(task), "2026-07-28")
	if got, want := c.tools(t), []string{"east__add", "west__add", "west__fail"}; !slices.Equal(slices.Sorted(slices.Values(got)), want) {
		t.Errorf("the client sees %v, want %v", got, want)
	}
	for _, tt := range []struct {
		name string
		args sum
		code vault.Code // "" is allowed
	}{
		{"east__add", sum{20, 30}, ""},
		{"west__add", sum{2, 1}, ""},
		{"west__add", sum{20, 1}, vault.CodeCapabilityArgument},
		// What is not granted and what is not there cannot be told apart.
		{"secret__add", sum{1, 1}, vault.CodeCapabilityTarget},
		{"nowhere__add", sum{1, 1}, vault.CodeCapabilityTarget},
		{"east__fail", sum{}, vault.CodeCapabilityTarget},
		{"add", sum{1, 1}, vault.CodeCapabilityTarget},
	} {
		res, err := c.CallTool(t.Context(), &sdk.CallToolParams{Name: tt.name, Arguments: tt.args})
		if tt.code == "" {
			if err != nil || res.IsError {
				t.Errorf("%s%+v: %v %+v", tt.name, tt.args, err, res)
			}
			continue
		}
		if d := denialOf(t, res, err); d == nil || d.Reason.Code != tt.code || d.Executed != vault.ExecutedNo {
			t.Errorf("%s%+v gave %+v (%v), want %s", tt.name, tt.args, d, err, tt.code)
		}
	}
}

// denialOf reads the denial that a client was given as a result or as an error.
func denialOf(t *testing.T, res *sdk.CallToolResult, err error) *vault.Denial {
	t.Helper()
	var raw []byte
	if wire, ok := errors.AsType[*jsonrpc.Error](err); ok {
		raw = wire.Data
	} else if res != nil && res.IsError {
		var merr error
		if raw, merr = json.Marshal(res.Meta["dev.pilox.vault/denial"]); merr != nil {
			t.Fatal(merr)
		}
	}
	if len(raw) == 0 || string(raw) == "null" {
		return nil
	}
	d := new(vault.Denial)
	if err := json.Unmarshal(raw, d); err != nil {
		t.Errorf("a denial that cannot be read: %v\n%s", err, raw)
	}
	return d
}

// TestLargeResult: a result beyond the bound is refused and said to have happened;
// the connection and the daemon go on.
func TestLargeResult(t *testing.T) {
	for _, modern := range []bool{true, false} {
		t.Run(fmt.Sprintf("modern server %v", modern), func(t *testing.T) {
			r := startDaemon(t, func(c *daemon.Config) { c.Limits.Result = 256 << 10 })
			r.addURL("oracle", newOracle(t, modern).url)
			c := connect(t, r.endpoint(r.mint(grantAll("oracle"))), "2025-11-25")
			for _, kib := range []int{1, 200, 300, 4 << 10, 100} {
				res, err := c.CallTool(t.Context(), &sdk.CallToolParams{Name: "blob", Arguments: map[string]int{"KiB": kib}})
				if kib <= 200 {
					if err != nil || len(textOf(res)) != kib<<10 {
						t.Errorf("%d KiB: %d bytes, %v", kib, len(textOf(res)), err)
					}
					continue
				}
				if d := denialOf(t, res, err); d == nil || d.Reason.Code != vault.CodeUpstreamTooLarge || d.Executed == vault.ExecutedNo {
					t.Errorf("%d KiB gave %+v (%v), want %s and not said to be harmless", kib, d, err, vault.CodeUpstreamTooLarge)
				}
			}
		})
	}
}

// TestListChanged: when a server says that its list changed, the daemon looks again
// and tells the clients. A tool that nobody has reviewed stays hidden, a tool that
// changed disappears, and a review brings both.
func TestListChanged(t *testing.T) {
	for _, modern := range []bool{true, false} {
		for _, version := range []string{"2026-07-28", "2025-06-18"} {
			t.Run(fmt.Sprintf("modern server %v, client of %s", modern, version), func(t *testing.T) {
				testListChanged(t, modern, version)
			})
		}
	}
}

func testListChanged(t *testing.T, modern bool, version string) {
	r := startDaemon(t, nil)
	o := newOracle(t, modern)
	tool(o, "change", func(context.Context, *sdk.CallToolRequest, any) (*sdk.CallToolResult, any, error) {
		tool(o, "fresh", func(context.Context, *sdk.CallToolRequest, any) (*sdk.CallToolResult, any, error) {
			return text("new"), nil, nil
		})
		tool(o, "add", func(context.Context, *sdk.CallToolRequest, struct{ A, B, C int }) (*sdk.CallToolResult, any, error) {
			return text("changed"), nil, nil
		})
		return text("done"), nil, nil
	})
	r.addURL("oracle", o.url)
	c := connect(t, r.endpoint(r.mint(grantAll("oracle"))), version)
	if before := c.tools(t); !slices.Contains(before, "add") || slices.Contains(before, "fresh") {
		t.Fatalf("the client sees %v", before)
	}
	call := func(name string, args any) (*sdk.CallToolResult, error) {
		return c.CallTool(t.Context(), &sdk.CallToolParams{Name: name, Arguments: args})
	}
	if _, err := call("change", nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the client is told", func() bool { _, n := c.told(); return n > 0 })
	eventually(t, "the changed tool disappears", func() bool { return !slices.Contains(c.tools(t), "add") })
	if got := c.tools(t); slices.Contains(got, "fresh") {
		t.Errorf("unreviewed, the client sees %v", got)
	}
	res, err := call("add", sum{1, 2})
	if d := denialOf(t, res, err); d == nil || d.Reason.Code != vault.CodeToolQuarantined || d.Executed != vault.ExecutedNo {
		t.Errorf("a changed tool gave %+v, %v", d, err)
	}
	s, err := r.admin.ReviewServer(t.Context(), "oracle", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(s.New, "fresh") || s.Quarantined["add"] == "" {
		t.Errorf("the review shows new %v, quarantined %v", s.New, s.Quarantined)
	}

	_, told := c.told()
	if _, err := r.admin.ReviewServer(t.Context(), "oracle", approverName, r.approver); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the client is told of the review", func() bool { _, n := c.told(); return n > told })
	if got := c.tools(t); !slices.Contains(got, "fresh") || !slices.Contains(got, "add") {
		t.Errorf("reviewed, the client sees %v", got)
	}
	if res, err = call("fresh", nil); err != nil || textOf(res) != "new" {
		t.Errorf("the reviewed tool gave %+v, %v", res, err)
	}
	if res, err = call("add", map[string]int{"A": 1, "B": 2, "C": 3}); err != nil || textOf(res) != "changed" {
		t.Errorf("the reviewed change gave %+v, %v", res, err)
	}
}

// TestRoutesAuthenticate: no route of the loopback listener answers a request that
// does not authenticate, comes from a web page, or names another host.
func TestRoutesAuthenticate(t *testing.T) {
	for _, bearer := range []bool{false, true} {
		r := startDaemon(t, func(c *daemon.Config) { c.Listen.Bearer = bearer })
		r.addURL("oracle", newOracle(t, true).url)
		peer := r.mint(grantAll("oracle")) // bound to this uid, worth nothing over TCP
		for _, route := range []string{
			"POST /mcp", "GET /mcp", "DELETE /mcp", "OPTIONS /mcp", "POST /session", "GET /session",
			"GET /", "GET /v1/status", "POST /v1/call", "GET /console/", "GET /console/open", "GET /console/open?token=guess",
			"GET /console/style.css", "POST /console/close", "GET /debug/pprof/", "GET /favicon.ico",
		} {
			for _, tt := range []struct {
				name   string
				header map[string]string
			}{
				{"nothing", nil},
				{"a garbage token", map[string]string{"Authorization": "Bearer garbage"}},
				{"another scheme", map[string]string{"Authorization": "Basic dXNlcjpwYXNz"}},
				{"a token bound to a local peer", map[string]string{"Authorization": "Bearer " + peer.Token}},
				{"a foreign origin", map[string]string{"Origin": "https://evil.example"}},
				{"a null origin", map[string]string{"Origin": "null"}},
				{"a foreign host", map[string]string{"Host": "evil.example"}},
				{"the address of another port", map[string]string{"Host": "127.0.0.1:1"}},
				{"a foreign site", map[string]string{"Sec-Fetch-Site": "cross-site"}},
				{"a made-up console session", map[string]string{"Cookie": "pvault=guess"}},
			} {
				method, path, _ := strings.Cut(route, " ")
				req, err := http.NewRequestWithContext(t.Context(), method, "http://"+r.addr+path, strings.NewReader("{}"))
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Content-Type", "application/json")
				req.Header.Set("Accept", "application/json, text/event-stream")
				for k, v := range tt.header {
					if k == "Host" {
						req.Host = v
						continue
					}
					req.Header.Set(k, v)
				}
				resp, err := http.DefaultTransport.RoundTrip(req)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if err != nil {
					t.Fatal(err)
				}
				if resp.StatusCode != http.StatusUnauthorized && resp.StatusCode != http.StatusForbidden {
					t.Errorf("bearer %v: %s with %s: %s %s", bearer, route, tt.name, resp.Status, body)
				}
			}
		}
	}
}

// TestBearerIsMarked: a token that nothing binds works over loopback only where the
// configuration says so, and every record of it says so too.
func TestBearerIsMarked(t *testing.T) {
	r := startDaemon(t, func(c *daemon.Config) { c.Listen.Bearer = true })
	r.addURL("oracle", newOracle(t, true).url)
	task := r.mintBound(grantAll("oracle"), "bearer")
	c := connect(t, &sdk.StreamableClientTransport{Endpoint: "http://" + r.addr + "/mcp", HTTPClient: bearer(task)}, "2026-07-28")
	if _, err := c.CallTool(t.Context(), &sdk.CallToolParams{Name: "add", Arguments: sum{1, 2}}); err != nil {
		t.Fatal(err)
	}
	for _, rec := range r.records(task.ID) {
		if rec.Leaf.Class == string(vault.ClassCall) && rec.Leaf.Proof != string(vault.ProofBearer) {
			t.Errorf("record %d says proof %q", rec.Leaf.Index, rec.Leaf.Proof)
		}
	}
}

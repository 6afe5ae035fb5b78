package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/pilox/vault"
)

const shimTask = `version: 1
purpose: Add what the user says
principal: user:tester@example.com
life: 1h
tools:
  sums.add: {args: any}
  sums.hang: {args: {}}
server_requests:
  sums.elicitation/create: {args: any}
budgets: {calls: 7}
`

// TestShim has clients start pvault mcp as their server, over standard streams, the
// way desktop clients do: the programs are real, and so are the daemon and the
// server behind it.
func TestShim(t *testing.T) {
	h := newHost(t)
	h.run(t, "init", "--unprotected")
	h.up(t)
	cancelled := make(chan struct{}, 1)
	h.run(t, "server", "add", "sums", newSums(t, cancelled), "--loopback", "--source", "org", "--holds", "public", "--approver", "default")
	file := filepath.Join(h.dir, "task.yaml")
	if err := os.WriteFile(file, []byte(shimTask), 0o600); err != nil {
		t.Fatal(err)
	}

	// Nobody has minted from this file yet, so the shim refuses to start.
	if out, err := h.command(t, "mcp", "--task", file).CombinedOutput(); err == nil || !bytes.Contains(out, []byte("pvault cap mint")) {
		t.Errorf("an unminted task: %v\n%s", err, out)
	}
	h.run(t, "cap", "mint", "--task", file)

	for _, version := range []string{"2026-07-28", "2025-11-25", "2024-11-05"} {
		c := h.client(t, file, version)
		res, err := c.ListTools(t.Context(), nil)
		if err != nil || len(res.Tools) != 2 {
			t.Fatalf("%s: list: %v %v", version, res, err)
		}
		got, err := c.CallTool(t.Context(), &sdk.CallToolParams{Name: "add", Arguments: map[string]int{"A": 2}})
		if err != nil || got.IsError || got.StructuredContent.(map[string]any)["sum"] != 42.0 {
			t.Errorf("%s: add: %+v %v", version, got, err)
		}
		if err := c.Close(); err != nil { // the shim ends in order when its input does
			t.Errorf("%s: close: %v", version, err)
		}
	}

	// Each start rejoined the same instance: three calls and three questions are
	// spent, this is the last of the seven.
	c := h.client(t, file, "2025-06-18")
	ctx, stop := context.WithCancel(t.Context())
	time.AfterFunc(300*time.Millisecond, stop)
	if _, err := c.CallTool(ctx, &sdk.CallToolParams{Name: "hang"}); err == nil {
		t.Error("a cancelled call gave no error")
	}
	select {
	case <-cancelled:
	case <-time.After(10 * time.Second):
		t.Error("the server was not told that the client cancelled")
	}
	res, err := c.CallTool(t.Context(), &sdk.CallToolParams{Name: "add", Arguments: map[string]int{"A": 2}})
	if err != nil || !res.IsError {
		t.Fatalf("beyond the budget: %+v %v", res, err)
	}
	raw, err := json.Marshal(res.Meta["dev.pilox.vault/denial"])
	if err != nil {
		t.Fatal(err)
	}
	var d vault.Denial
	if err := json.Unmarshal(raw, &d); err != nil || d.Reason.Code != vault.CodeCapabilityBudget || d.HowToAsk == "" {
		t.Errorf("beyond the budget: %s", raw)
	}
	// The outcome of a cancelled call is on record a moment after its client is told.
	phases := h.phases(t)
	for deadline := time.Now().Add(10 * time.Second); !slices.Contains(phases, "hang cancelled") && time.Now().Before(deadline); phases = h.phases(t) {
		time.Sleep(20 * time.Millisecond)
	}
	for _, want := range []string{"add done", "elicitation/create done", "hang cancelled", "add refused"} {
		if !slices.Contains(phases, want) {
			t.Errorf("the ledger has no %q; it has %q", want, phases)
		}
	}
}

// newSums starts a server and returns its URL. Its tool add asks the user for the
// second number; hang waits until the call is cancelled.
func newSums(t *testing.T, cancelled chan<- struct{}) string {
	t.Helper()
	s := sdk.NewServer(&sdk.Implementation{Name: "sums", Version: "1"}, &sdk.ServerOptions{SupportedProtocolVersions: []string{"2025-11-25"}})
	sdk.AddTool(s, &sdk.Tool{Name: "add"}, func(ctx context.Context, r *sdk.CallToolRequest, in struct{ A int }) (*sdk.CallToolResult, map[string]any, error) {
		a, err := r.Session.Elicit(ctx, &sdk.ElicitParams{Message: "plus what?", RequestedSchema: json.RawMessage(`{"type":"object","properties":{"b":{"type":"integer"}}}`)})
		if err != nil {
			return nil, nil, err
		}
		return nil, map[string]any{"sum": float64(in.A) + a.Content["b"].(float64)}, nil
	})
	sdk.AddTool(s, &sdk.Tool{Name: "hang"}, func(ctx context.Context, _ *sdk.CallToolRequest, _ any) (*sdk.CallToolResult, any, error) {
		<-ctx.Done()
		cancelled <- struct{}{}
		return nil, nil, ctx.Err()
	})
	srv := httptest.NewServer(sdk.NewStreamableHTTPHandler(func(*http.Request) *sdk.Server { return s }, nil))
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	return srv.URL
}

// A host is a shell in which pvault is this test binary, with directories of its own.
type host struct {
	dir, pvault string
	env         []string
}

func newHost(t *testing.T) *host {
	t.Helper()
	// Not t.TempDir: its name is too long for a socket's path.
	dir, err := os.MkdirTemp("", "pv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // nothing in it is read-only
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h := &host{dir: dir, pvault: filepath.Join(dir, "pvault")}
	if err := os.Symlink(self, h.pvault); err != nil { // TestMain looks at the name
		t.Fatal(err)
	}
	config := filepath.Join(dir, "config", "pvault")
	if err := os.MkdirAll(config, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(config, "vault.yaml"), []byte("sandbox: {min_grade: none}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.env = append(os.Environ(), "XDG_DATA_HOME="+filepath.Join(dir, "data"), "XDG_CONFIG_HOME="+filepath.Join(dir, "config"),
		"PVAULT_LISTEN_HTTP=127.0.0.1:0", "PVAULT_LOG_LEVEL=warn")
	return h
}

func (h *host) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), h.pvault, args...)
	cmd.Env = h.env
	return cmd
}

// run runs pvault to its end and returns what it prints.
func (h *host) run(t *testing.T, args ...string) []byte {
	t.Helper()
	var errs bytes.Buffer
	cmd := h.command(t, args...)
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("pvault %q: %v\n%s%s", args, err, out, errs.Bytes())
	}
	return out
}

// up starts the daemon, waits until it answers, and stops it with the test.
func (h *host) up(t *testing.T) {
	t.Helper()
	var out bytes.Buffer
	cmd := h.command(t, "up")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Wait() // the end of the test's context has stopped it
		if t.Failed() {
			t.Logf("pvault up:\n%s", out.Bytes())
		}
	})
	for deadline := time.Now().Add(30 * time.Second); h.command(t, "status").Run() != nil; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the daemon does not answer:\n%s", out.Bytes())
		}
	}
}

// client starts a client whose server is pvault mcp. Its user answers 40.
func (h *host) client(t *testing.T, task, version string) *sdk.ClientSession {
	t.Helper()
	c := sdk.NewClient(&sdk.Implementation{Name: "client", Version: "1"}, &sdk.ClientOptions{
		ElicitationHandler: func(context.Context, *sdk.ElicitRequest) (*sdk.ElicitResult, error) {
			return &sdk.ElicitResult{Action: "accept", Content: map[string]any{"b": 40}}, nil
		},
	})
	cmd := h.command(t, "mcp", "--task", task)
	cmd.Stderr = t.Output()
	s, err := c.Connect(t.Context(), &sdk.CommandTransport{Command: cmd}, &sdk.ClientSessionOptions{ProtocolVersion: version})
	if err != nil {
		t.Fatalf("connect with %s: %v", version, err)
	}
	t.Cleanup(func() { _ = s.Close() }) // a second close is an error that says so
	return s
}

// phases returns "TOOL PHASE" of every record of a call.
func (h *host) phases(t *testing.T) []string {
	t.Helper()
	var out []string
	dec := json.NewDecoder(bytes.NewReader(h.run(t, "audit", "tail", "--json")))
	for dec.More() {
		var e struct{ Leaf struct{ Tool, Phase string } }
		if err := dec.Decode(&e); err != nil {
			t.Fatal(err)
		}
		out = append(out, e.Leaf.Tool+" "+e.Leaf.Phase)
	}
	return out
}

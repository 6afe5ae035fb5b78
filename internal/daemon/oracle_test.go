package daemon_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// The protocol versions, newest first. The first is of the era without sessions.
var mcpVersions = []string{"2026-07-28", "2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"}

// An oracle is a server of the official SDK that speaks one era only.
type oracle struct {
	*sdk.Server
	url       string
	cancelled chan struct{} // gets one for each hang that was told to stop
}

type sum struct{ A, B int }

// newOracle starts a server. Its tools: add, progress, fail, hang until cancelled,
// ask the client's user twice, blob of a size in KiB.
func newOracle(t *testing.T, modern bool) *oracle {
	t.Helper()
	versions := mcpVersions[1:]
	if modern {
		versions = mcpVersions[:1]
	}
	o := &oracle{cancelled: make(chan struct{}, 16)}
	o.Server = sdk.NewServer(&sdk.Implementation{Name: "oracle", Version: "1"}, &sdk.ServerOptions{
		SupportedProtocolVersions: versions,
	})
	tool(o, "add", func(_ context.Context, _ *sdk.CallToolRequest, in sum) (*sdk.CallToolResult, map[string]any, error) {
		return nil, map[string]any{"sum": in.A + in.B}, nil
	})
	tool(o, "progress", func(ctx context.Context, r *sdk.CallToolRequest, _ any) (*sdk.CallToolResult, any, error) {
		if token := r.Params.GetProgressToken(); token != nil {
			for i := range 3 {
				if err := r.Session.NotifyProgress(ctx, &sdk.ProgressNotificationParams{ProgressToken: token, Progress: float64(i)}); err != nil {
					return nil, nil, err
				}
			}
		}
		return text("progressed"), nil, nil
	})
	tool(o, "fail", func(context.Context, *sdk.CallToolRequest, any) (*sdk.CallToolResult, any, error) {
		return nil, nil, errors.New("no luck")
	})
	tool(o, "hang", func(ctx context.Context, _ *sdk.CallToolRequest, _ any) (*sdk.CallToolResult, any, error) {
		<-ctx.Done()
		o.cancelled <- struct{}{}
		return nil, nil, ctx.Err()
	})
	tool(o, "ask", func(ctx context.Context, r *sdk.CallToolRequest, _ any) (*sdk.CallToolResult, any, error) {
		question := &sdk.ElicitParams{Message: "who?", RequestedSchema: json.RawMessage(`{"type":"object","properties":{"name":{"type":"string"}}}`)}
		if modern {
			if a, ok := r.Params.InputResponses["who"].(*sdk.ElicitResult); ok && r.Params.RequestState == "first" {
				return text(fmt.Sprintf("hello %v", a.Content["name"])), nil, nil
			}
			return &sdk.CallToolResult{InputRequests: sdk.InputRequestMap{"who": question}, RequestState: "first"}, nil, nil
		}
		a, err := r.Session.Elicit(ctx, question)
		if err != nil {
			return nil, nil, err
		}
		return text(fmt.Sprintf("hello %v", a.Content["name"])), nil, nil
	})
	tool(o, "blob", func(_ context.Context, _ *sdk.CallToolRequest, in struct{ KiB int }) (*sdk.CallToolResult, any, error) {
		return text(strings.Repeat("x", in.KiB<<10)), nil, nil
	})
	o.AddResource(&sdk.Resource{URI: "test://one", Name: "one"}, func(context.Context, *sdk.ReadResourceRequest) (*sdk.ReadResourceResult, error) {
		return &sdk.ReadResourceResult{Contents: []*sdk.ResourceContents{{URI: "test://one", Text: "first"}}}, nil
	})
	o.AddPrompt(&sdk.Prompt{Name: "greet", Arguments: []*sdk.PromptArgument{{Name: "name"}}}, func(_ context.Context, r *sdk.GetPromptRequest) (*sdk.GetPromptResult, error) {
		return &sdk.GetPromptResult{Messages: []*sdk.PromptMessage{{Role: "user", Content: &sdk.TextContent{Text: "hello " + r.Params.Arguments["name"]}}}}, nil
	})
	s := httptest.NewServer(sdk.NewStreamableHTTPHandler(func(*http.Request) *sdk.Server { return o.Server },
		&sdk.StreamableHTTPOptions{Stateless: modern, PropagateRequestCancellation: true}))
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	o.url = s.URL
	return o
}

func tool[In, Out any](o *oracle, name string, h sdk.ToolHandlerFor[In, Out]) {
	sdk.AddTool(o.Server, &sdk.Tool{Name: name, Description: "does " + name}, h)
}

func text(s string) *sdk.CallToolResult {
	return &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: s}}}
}

// textOf returns the first text of a result.
func textOf(r *sdk.CallToolResult) string {
	if r == nil || len(r.Content) == 0 {
		return ""
	}
	c, ok := r.Content[0].(*sdk.TextContent)
	if !ok {
		return ""
	}
	return c.Text
}

// A client is a session of the official SDK's client, and what it was told unasked.
type client struct {
	*sdk.ClientSession

	mu       sync.Mutex
	progress []any // tokens
	changed  int   // tools/list_changed
}

// connect opens a session of one version. Its user is called Ada.
func connect(t *testing.T, transport sdk.Transport, version string) *client {
	t.Helper()
	c := new(client)
	impl := sdk.NewClient(&sdk.Implementation{Name: "client", Version: "1"}, &sdk.ClientOptions{
		ElicitationHandler: func(context.Context, *sdk.ElicitRequest) (*sdk.ElicitResult, error) {
			return &sdk.ElicitResult{Action: "accept", Content: map[string]any{"name": "Ada"}}, nil
		},
		ProgressNotificationHandler: func(_ context.Context, n *sdk.ProgressNotificationClientRequest) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.progress = append(c.progress, n.Params.ProgressToken)
		},
		ToolListChangedHandler: func(context.Context, *sdk.ToolListChangedRequest) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.changed++
		},
	})
	var err error
	c.ClientSession, err = impl.Connect(timeout(t, time.Minute), transport, &sdk.ClientSessionOptions{ProtocolVersion: version})
	if err != nil {
		t.Fatalf("connect with %s: %v", version, err)
	}
	t.Cleanup(func() { _ = c.Close() }) // the daemon may be gone by then
	if got := c.InitializeResult().ProtocolVersion; got != version {
		t.Fatalf("the session speaks %s, want %s", got, version)
	}
	return c
}

// tools returns the names of the tools that the client sees.
func (c *client) tools(t *testing.T) []string {
	t.Helper()
	res, err := c.ListTools(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	names := make([]string, len(res.Tools))
	for i, tool := range res.Tools {
		names[i] = tool.Name
	}
	return names
}

func (c *client) told() (progress []any, changed int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]any(nil), c.progress...), c.changed
}

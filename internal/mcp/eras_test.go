package mcp

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// sdkServer serves newSDKServer over HTTP and returns its URL.
func sdkServer(t testing.TB, modernEra bool, cancelled chan<- struct{}) string {
	t.Helper()
	s := newSDKServer(modernEra, cancelled)
	h := sdk.NewStreamableHTTPHandler(func(*http.Request) *sdk.Server { return s }, &sdk.StreamableHTTPOptions{Stateless: modernEra, PropagateRequestCancellation: true})
	srv := httptest.NewServer(h)
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	return srv.URL
}

// newSDKServer is a server of the SDK that speaks one era only.
func newSDKServer(modernEra bool, cancelled chan<- struct{}) *sdk.Server {
	versions := legacyVersions
	if modernEra {
		versions = []string{Version20260728}
	}
	s := sdk.NewServer(&sdk.Implementation{Name: "oracle", Version: "1"}, &sdk.ServerOptions{
		SupportedProtocolVersions: versions,
		CompletionHandler: func(_ context.Context, r *sdk.CompleteRequest) (*sdk.CompleteResult, error) {
			return &sdk.CompleteResult{Completion: sdk.CompletionResultDetails{
				Values: []string{r.Params.Argument.Name + "=" + r.Params.Argument.Value + "+" + r.Params.Context.Arguments["tone"]},
			}}, nil
		},
		SubscribeHandler:   func(context.Context, *sdk.SubscribeRequest) error { return nil },
		UnsubscribeHandler: func(context.Context, *sdk.UnsubscribeRequest) error { return nil },
	})
	type sum struct{ A, B int }
	sdk.AddTool(s, &sdk.Tool{Name: "add"}, func(_ context.Context, _ *sdk.CallToolRequest, in sum) (*sdk.CallToolResult, map[string]any, error) {
		return nil, map[string]any{"sum": in.A + in.B}, nil
	})
	sdk.AddTool(s, &sdk.Tool{Name: "progress"}, func(ctx context.Context, r *sdk.CallToolRequest, _ any) (*sdk.CallToolResult, any, error) {
		if token := r.Params.GetProgressToken(); token != nil {
			for i := range 3 {
				if err := r.Session.NotifyProgress(ctx, &sdk.ProgressNotificationParams{ProgressToken: token, Progress: float64(i)}); err != nil {
					return nil, nil, err
				}
			}
		}
		return text("progressed"), nil, nil
	})
	sdk.AddTool(s, &sdk.Tool{Name: "fail"}, func(context.Context, *sdk.CallToolRequest, any) (*sdk.CallToolResult, any, error) {
		return nil, nil, fmt.Errorf("no luck")
	})
	sdk.AddTool(s, &sdk.Tool{Name: "hang"}, func(ctx context.Context, _ *sdk.CallToolRequest, _ any) (*sdk.CallToolResult, any, error) {
		<-ctx.Done()
		cancelled <- struct{}{}
		return nil, nil, ctx.Err()
	})
	sdk.AddTool(s, &sdk.Tool{Name: "ask"}, func(ctx context.Context, r *sdk.CallToolRequest, _ any) (*sdk.CallToolResult, any, error) {
		question := &sdk.ElicitParams{Message: "who?", RequestedSchema: json.RawMessage(`{"type":"object","properties":{"name":{"type":"string"}}}`)}
		if !modernEra {
			var names []string
			for range 2 {
				a, err := r.Session.Elicit(ctx, question)
				if err != nil {
					return nil, nil, err
				}
				names = append(names, fmt.Sprint(a.Content["name"]))
			}
			return text("hello " + strings.Join(names, " and ")), nil, nil
		}
		if a, ok := r.Params.InputResponses["who"].(*sdk.ElicitResult); ok && r.Params.RequestState == "first" {
			return text(fmt.Sprintf("hello %v and %v", a.Content["name"], a.Content["name"])), nil, nil
		}
		return &sdk.CallToolResult{InputRequests: sdk.InputRequestMap{"who": question}, RequestState: "first"}, nil, nil
	})
	s.AddResource(&sdk.Resource{URI: "test://one", Name: "one"}, func(context.Context, *sdk.ReadResourceRequest) (*sdk.ReadResourceResult, error) {
		return &sdk.ReadResourceResult{Contents: []*sdk.ResourceContents{{URI: "test://one", Text: "first"}}}, nil
	})
	s.AddPrompt(&sdk.Prompt{Name: "greet", Arguments: []*sdk.PromptArgument{{Name: "name"}, {Name: "tone"}}}, func(_ context.Context, r *sdk.GetPromptRequest) (*sdk.GetPromptResult, error) {
		return &sdk.GetPromptResult{Messages: []*sdk.PromptMessage{{Role: "user", Content: &sdk.TextContent{Text: "hello " + r.Params.Arguments["name"]}}}}, nil
	})
	return s
}

func text(s string) *sdk.CallToolResult {
	return &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: s}}}
}

func textOf(r *sdk.CallToolResult) string {
	if len(r.Content) == 0 {
		return ""
	}
	c, _ := r.Content[0].(*sdk.TextContent)
	if c == nil {
		return ""
	}
	return c.Text
}

// TestEraMatrix has SDK clients of every version use SDK servers of either era through the
// edge. Both ends see their own era only.
func TestEraMatrix(t *testing.T) {
	for _, modernServer := range []bool{true, false} {
		for _, version := range allVersions {
			t.Run(fmt.Sprintf("client %s, modern server %v", version, modernServer), func(t *testing.T) {
				t.Parallel()
				cancelled := make(chan struct{}, 1)
				r := newRig(t, map[string]string{"oracle": sdkServer(t, modernServer, cancelled)})
				testEra(t, &sdk.StreamableClientTransport{Endpoint: r.server.URL}, version, cancelled)
			})
		}
	}
}

func testEra(t *testing.T, transport sdk.Transport, version string, cancelled <-chan struct{}) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var mu sync.Mutex
	var progress []any
	client := sdk.NewClient(&sdk.Implementation{Name: "client", Version: "1"}, &sdk.ClientOptions{
		ElicitationHandler: func(context.Context, *sdk.ElicitRequest) (*sdk.ElicitResult, error) {
			return &sdk.ElicitResult{Action: "accept", Content: map[string]any{"name": "Ada"}}, nil
		},
		ProgressNotificationHandler: func(_ context.Context, n *sdk.ProgressNotificationClientRequest) {
			mu.Lock()
			defer mu.Unlock()
			progress = append(progress, n.Params.ProgressToken)
		},
	})
	cs, err := client.Connect(ctx, transport, &sdk.ClientSessionOptions{ProtocolVersion: version})
	if err != nil {
		t.Fatal(err)
	}
	defer cs.Close()
	if got := cs.InitializeResult().ProtocolVersion; got != version {
		t.Fatalf("the session speaks %s, want %s", got, version)
	}
	tools, err := cs.ListTools(ctx, nil)
	if err != nil || len(tools.Tools) != 5 {
		t.Fatalf("list: %v %v", tools, err)
	}
	res, err := cs.CallTool(ctx, &sdk.CallToolParams{Name: "add", Arguments: map[string]any{"A": 2, "B": 3}})
	if err != nil {
		t.Fatal(err)
	}
	if m, ok := res.StructuredContent.(map[string]any); !ok || m["sum"] != 5.0 {
		t.Errorf("add gave %+v", res)
	}
	if res, err = cs.CallTool(ctx, &sdk.CallToolParams{Name: "fail"}); err != nil || !res.IsError || textOf(res) != "no luck" {
		t.Errorf("fail gave %+v, %v", res, err)
	}
	if res, err = cs.CallTool(ctx, &sdk.CallToolParams{Name: "ask"}); err != nil || textOf(res) != "hello Ada and Ada" {
		t.Errorf("ask gave %+v, %v", res, err)
	}
	params := &sdk.CallToolParams{Name: "progress"}
	params.SetProgressToken("mine")
	if res, err = cs.CallTool(ctx, params); err != nil || textOf(res) != "progressed" {
		t.Errorf("progress gave %+v, %v", res, err)
	}
	waitFor(t, func() bool { mu.Lock(); defer mu.Unlock(); return len(progress) == 3 })
	mu.Lock()
	for _, token := range progress {
		if token != "mine" {
			t.Errorf("progress came with token %v", token)
		}
	}
	mu.Unlock()
	if _, err := cs.CallTool(ctx, &sdk.CallToolParams{Name: "nothing"}); err == nil {
		t.Error("an unknown tool gave no error")
	}
	doc, err := cs.ReadResource(ctx, &sdk.ReadResourceParams{URI: "test://one"})
	if err != nil || len(doc.Contents) != 1 || doc.Contents[0].Text != "first" {
		t.Errorf("read gave %+v, %v", doc, err)
	}
	prompt, err := cs.GetPrompt(ctx, &sdk.GetPromptParams{Name: "greet", Arguments: map[string]string{"name": "Bob"}})
	if err != nil || prompt.Messages[0].Content.(*sdk.TextContent).Text != "hello Bob" {
		t.Errorf("prompt gave %+v, %v", prompt, err)
	}
	values, err := cs.Complete(ctx, &sdk.CompleteParams{
		Ref:      &sdk.CompleteReference{Type: "ref/prompt", Name: "greet"},
		Argument: sdk.CompleteParamsArgument{Name: "name", Value: "B"},
		Context:  &sdk.CompleteContext{Arguments: map[string]string{"tone": "dry"}},
	})
	if err != nil || values.Completion.Values[0] != "name=B+dry" {
		t.Errorf("complete gave %+v, %v", values, err)
	}
	hangCtx, stop := context.WithCancel(ctx)
	time.AfterFunc(100*time.Millisecond, stop)
	if _, err := cs.CallTool(hangCtx, &sdk.CallToolParams{Name: "hang"}); err == nil {
		t.Error("a cancelled call gave no error")
	}
	select {
	case <-cancelled:
	case <-ctx.Done():
		t.Error("the server was not told of the cancellation")
	}
}

// waitFor waits until cond holds; notifications overtake answers.
func waitFor(t *testing.T, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("what was awaited did not happen")
		}
	}
}

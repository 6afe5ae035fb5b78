package mcp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/pilox/vault"
)

// newStdioRig is a rig whose one server is a process on pipes.
func newStdioRig(t *testing.T, serve func(*fakeProcess)) *rig {
	t.Helper()
	r := newRig(t, nil)
	d := DialStdio(StdioConfig{Spawn: func(context.Context, Instance) (Process, error) { return startFake(serve), nil }})
	if err := r.up.Add(Server{ID: testID("oracle"), Name: "oracle", Dial: d, Timeout: 10 * time.Second}); err != nil {
		t.Fatal(err)
	}
	r.list([]string{"oracle"})
	return r
}

// runShim runs a shim against url and returns the client's side of it.
func runShim(t *testing.T, cfg ShimConfig) sdk.Transport {
	t.Helper()
	in, inW := io.Pipe()
	out, outW := io.Pipe()
	cfg.In, cfg.Out = in, outW
	if cfg.Client == nil {
		cfg.Client = &http.Client{Transport: &http.Transport{}}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		// The client closes both sides at once; an answer may still be on its way.
		if err := RunShim(context.Background(), cfg); err != nil && !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("shim: %v", err)
		}
		outW.Close()
	})
	t.Cleanup(func() {
		inW.Close()
		go io.Copy(io.Discard, out)
		wg.Wait()
		cfg.Client.CloseIdleConnections()
	})
	return &sdk.IOTransport{Reader: out, Writer: inW}
}

// The whole way with nothing but pipes at its ends: SDK client, shim, front,
// upstream process, SDK server, in all pairs of eras.
func TestShimAndStdioServerInEveryEra(t *testing.T) {
	for _, modernServer := range []bool{true, false} {
		for _, version := range allVersions {
			t.Run(fmt.Sprintf("client %s, modern server %v", version, modernServer), func(t *testing.T) {
				t.Parallel()
				cancelled := make(chan struct{}, 1)
				r := newStdioRig(t, func(p *fakeProcess) {
					ctx, cancel := context.WithCancel(context.Background())
					defer cancel()
					go func() {
						select {
						case <-p.killed:
							cancel()
						case <-ctx.Done():
						}
					}()
					_ = newSDKServer(modernServer, cancelled).Run(ctx, &sdk.IOTransport{Reader: p.stdin, Writer: p.out})
				})
				testEra(t, runShim(t, ShimConfig{URL: r.server.URL, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}), version, cancelled)
			})
		}
	}
}

func TestShimOverAUnixSocket(t *testing.T) {
	r := newRig(t, map[string]string{"oracle": sdkServer(t, false, make(chan struct{}, 1))})
	socket := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: r.front, ReadHeaderTimeout: time.Minute}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) })
	t.Cleanup(func() { srv.Close(); wg.Wait() })
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}}
	cs, err := sdk.NewClient(&sdk.Implementation{Name: "c", Version: "1"}, nil).Connect(t.Context(),
		runShim(t, ShimConfig{URL: "http://localhost/mcp", Client: client}), &sdk.ClientSessionOptions{ProtocolVersion: Version20250618})
	if err != nil {
		t.Fatal(err)
	}
	defer cs.Close()
	if res, err := cs.CallTool(t.Context(), &sdk.CallToolParams{Name: "add", Arguments: map[string]any{"A": 1, "B": 1}}); err != nil || res.IsError {
		t.Errorf("%+v %v", res, err)
	}
}

// script runs a shim on lines and returns what it wrote, one message a line.
func script(t *testing.T, cfg ShimConfig, lines ...string) []string {
	t.Helper()
	var out strings.Builder
	cfg.In, cfg.Out = strings.NewReader(strings.Join(lines, "\n")+"\n"), &out
	if cfg.Client == nil {
		tr := &http.Transport{}
		defer tr.CloseIdleConnections()
		cfg.Client = &http.Client{Transport: tr}
	}
	if err := RunShim(t.Context(), cfg); err != nil {
		t.Errorf("shim: %v", err)
	}
	var got []string
	for l := range strings.Lines(out.String()) {
		if _, err := scanMessage([]byte(strings.TrimSuffix(l, "\n"))); err != nil {
			t.Errorf("not protocol: %q", l)
		}
		got = append(got, strings.TrimSuffix(l, "\n"))
	}
	return got
}

const (
	callLine       = `{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"name":"x"}}`
	initializeLine = `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"c","version":"1"}}}`
)

func TestShimAnswersForADaemonThatDoesNot(t *testing.T) {
	for _, c := range []struct {
		name     string
		daemon   http.HandlerFunc // nil: none is running
		want     string
		executed vault.Executed
	}{
		{"no daemon runs", nil, "pvault up", vault.ExecutedNo},
		{"it dies before the answer", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "lost", vault.ExecutedUnknown},
		{"its stream ends without an answer", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\"}\n\n")
		}, "lost", vault.ExecutedUnknown},
		{"it answers what is no message", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, "<html>")
		}, "lost", vault.ExecutedUnknown},
		{"it answers more than the limit", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, `{"jsonrpc":"2.0","id":"a","result":{"x":"`+strings.Repeat("x", 1<<16)+`"}}`)
		}, "lost", vault.ExecutedUnknown},
		{"it refuses with words", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "secret", http.StatusForbidden) }, "403", ""},
		{"it refuses with an error that has no id", func(w http.ResponseWriter, _ *http.Request) {
			writeJSON(w, http.StatusUnauthorized, appendErrorObject(nil, nil, denialObject(vault.NewDenial(vault.CodeCapabilityExpired, "", nil))))
		}, "capability.expired", vault.ExecutedNo},
	} {
		t.Run(c.name, func(t *testing.T) {
			url := "http://127.0.0.1:1/"
			if c.daemon != nil {
				srv := httptest.NewServer(c.daemon)
				defer srv.Close()
				url = srv.URL
			}
			got := script(t, ShimConfig{URL: url, MaxMessage: 1 << 15}, callLine)
			last := got[len(got)-1]
			m, err := scanMessage([]byte(last))
			if err != nil || string(m.id) != `"a"` || m.err == nil || !strings.Contains(last, c.want) || strings.Contains(last, "secret") {
				t.Errorf("got %s, want an error for a with %q", last, c.want)
			}
			if c.executed != "" && !strings.Contains(last, `"executed":"`+string(c.executed)+`"`) {
				t.Errorf("got %s, want executed %s", last, c.executed)
			}
		})
	}
}

func TestShimRefusesWhatIsNoProtocol(t *testing.T) {
	calls := make(chan string, 10)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		calls <- string(b)
		writeJSON(w, 200, []byte("{\"jsonrpc\":\"2.0\",\n\"id\":\"a\",\r\n\"result\":{}}"))
	}))
	defer srv.Close()
	got := script(t, ShimConfig{URL: srv.URL}, "hello", `{"id":1}`, `{"jsonrpc":"2.0","id":1,"id":2,"method":"x"}`, callLine)
	if len(got) != 4 || !strings.Contains(got[3], `"result":{}`) {
		t.Errorf("got %q", got)
	}
	for _, l := range got[:3] {
		if !strings.Contains(l, `"id":null,"error":{"code":-32700`) {
			t.Errorf("got %s", l)
		}
	}
	if len(calls) != 1 || <-calls != callLine {
		t.Error("the daemon got more than the one message, or another")
	}
}

func TestShimLineBeyondTheLimitEndsIt(t *testing.T) {
	var out strings.Builder
	err := RunShim(t.Context(), ShimConfig{In: strings.NewReader(strings.Repeat("x", 100<<20)), Out: &out, Client: http.DefaultClient, URL: "http://127.0.0.1:1"})
	if err == nil || !strings.Contains(out.String(), "larger than") {
		t.Errorf("got %v, %s", err, out.String())
	}
}

func TestShimSessionLastsFromInitializeToTheEnd(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	listening := make(chan struct{}, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		m, _ := scanMessage(b)
		mu.Lock()
		seen = append(seen, r.Method+" "+m.method+" "+r.Header.Get(headerSession)+" "+r.Header.Get(headerVersion)+" "+r.Header.Get("Authorization"))
		mu.Unlock()
		switch {
		case r.Method == http.MethodGet:
			listening <- struct{}{}
			w.WriteHeader(http.StatusMethodNotAllowed)
		case m.method == methodInitialize:
			w.Header().Set(headerSession, "s1")
			writeJSON(w, 200, []byte(`{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-06-18"}}`))
		case m.isCall():
			<-listening // so that the stream is seen before the end
			writeJSON(w, 200, []byte(`{"jsonrpc":"2.0","id":"a","result":{}}`))
		default:
			w.WriteHeader(http.StatusAccepted)
		}
	}))
	defer srv.Close()
	script(t, ShimConfig{URL: srv.URL, Header: http.Header{"authorization": {"Bearer t"}}},
		initializeLine, `{"jsonrpc":"2.0","method":"notifications/initialized"}`, callLine, `{"jsonrpc":"2.0","id":7,"result":{}}`)
	mu.Lock()
	defer mu.Unlock()
	all := strings.Join(seen, "\n")
	for _, want := range []string{
		"POST initialize   Bearer t",
		"POST notifications/initialized s1 2025-06-18 Bearer t",
		"GET  s1 2025-06-18 Bearer t",
		"POST tools/call s1 2025-06-18 Bearer t",
		"POST  s1 2025-06-18 Bearer t",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("missing %q in\n%s", want, all)
		}
	}
	if !strings.HasPrefix(seen[len(seen)-1], "DELETE  s1") && !strings.HasPrefix(seen[len(seen)-2], "DELETE  s1") {
		t.Errorf("the session was not ended:\n%s", all)
	}
}

func TestShimRepeatsArgumentsInHeaders(t *testing.T) {
	got := make(chan http.Header, 10)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		m, _ := scanMessage(b)
		if m.method == methodToolsList {
			writeJSON(w, 200, appendResult(nil, m.id, []byte(`{"tools":[{"name":"ä","inputSchema":{"type":"object","properties":{"region":{"type":"string","x-mcp-header":"Region"}}}}]}`)))
			return
		}
		got <- r.Header.Clone()
		writeJSON(w, 200, appendResult(nil, m.id, []byte(`{}`)))
	}))
	defer srv.Close()
	meta := `"_meta":{"` + metaVersion + `":"2026-07-28","` + metaClientCaps + `":{}}`
	in, inW := io.Pipe()
	out, outW := io.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = RunShim(t.Context(), ShimConfig{In: in, Out: outW, Client: srv.Client(), URL: srv.URL})
		outW.Close()
	})
	lines := bufio.NewReader(out)
	for _, l := range []string{
		`{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{` + meta + `}}`,
		`{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"ä","arguments":{"region":" eu"},` + meta + `}}`,
	} {
		fmt.Fprintln(inW, l)
		if _, err := lines.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	inW.Close()
	wg.Wait()
	h := <-got
	for name, want := range map[string]string{
		headerVersion: Version20260728, headerMethod: methodToolsCall, headerName: encodeHeader("ä"), headerParam + "Region": encodeHeader(" eu"), headerSession: "",
	} {
		if h.Get(name) != want {
			t.Errorf("%s: %q, want %q", name, h.Get(name), want)
		}
	}
}

func TestShimBoundsRequestsInFlight(t *testing.T) {
	release := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		m, _ := scanMessage(b)
		<-release
		writeJSON(w, 200, appendResult(nil, m.id, []byte(`{}`)))
	}))
	defer srv.Close()
	in, inW := io.Pipe()
	out, outW := io.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = RunShim(t.Context(), ShimConfig{In: in, Out: outW, Client: srv.Client(), URL: srv.URL, MaxRequests: 1})
		outW.Close()
	})
	lines := bufio.NewReader(out)
	fmt.Fprintln(inW, `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`)
	fmt.Fprintln(inW, `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`)
	if l, _ := lines.ReadString('\n'); !strings.Contains(l, "in flight already") || !strings.Contains(l, `"id":1`) {
		t.Errorf("the same id again: %s", l)
	}
	fmt.Fprintln(inW, `{"jsonrpc":"2.0","id":2,"method":"tools/list"}`)
	if l, _ := lines.ReadString('\n'); !strings.Contains(l, `"code":"busy"`) || !strings.Contains(l, `"id":2`) {
		t.Errorf("one too many: %s", l)
	}
	close(release)
	if l, _ := lines.ReadString('\n'); !strings.Contains(l, `"id":1,"result"`) {
		t.Errorf("the first: %s", l)
	}
	inW.Close()
	wg.Wait()
}

func TestShimEndsWhenItsClientIsGone(t *testing.T) {
	ended := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
		close(ended)
	}))
	defer srv.Close()
	out, outW := io.Pipe()
	out.Close()
	// In ends: what is in flight is cancelled after a while.
	if err := RunShim(t.Context(), ShimConfig{In: strings.NewReader(callLine + "\n"), Out: outW, Client: srv.Client(), URL: srv.URL, Linger: time.Millisecond}); err != nil {
		t.Error(err)
	}
	<-ended
	// Out breaks: there is nobody to answer.
	in, inW := io.Pipe()
	defer inW.Close()
	go io.WriteString(inW, "hello\n")
	if err := RunShim(t.Context(), ShimConfig{In: in, Out: outW, Client: srv.Client(), URL: srv.URL}); err == nil {
		t.Error("no error although nobody could be answered")
	}
	// The context ends.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := RunShim(ctx, ShimConfig{In: in, Out: io.Discard, Client: srv.Client(), URL: srv.URL}); err == nil {
		t.Error("no error although the context ended")
	}
}

// What FuzzShim holds: whatever a client writes, only messages go out, each request
// gets at most one answer, and the daemon gets nothing that is no message.
func FuzzShim(f *testing.F) {
	for _, s := range []string{callLine, initializeLine, "x", `{"jsonrpc":"2.0","id":1,"method":"a"}` + "\n" + `{"jsonrpc":"2.0","id":1,"method":"a"}`, `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`} {
		f.Add(s)
	}
	transport := roundTrip(func(r *http.Request) (*http.Response, error) {
		h := http.Header{"Content-Type": {"application/json"}}
		if r.Method != http.MethodPost {
			return &http.Response{StatusCode: 405, Header: h, Body: http.NoBody, Request: r}, nil
		}
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		m, err := scanMessage(b)
		if err != nil {
			panic(fmt.Sprintf("the daemon got %q", b))
		}
		body := ""
		if m.isCall() {
			body = string(appendResult(nil, m.id, []byte(`{"protocolVersion":"2025-11-25"}`)))
		}
		h.Set(headerSession, "s")
		return &http.Response{StatusCode: 200, Header: h, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
	})
	f.Fuzz(func(t *testing.T, in string) {
		var out strings.Builder
		_ = RunShim(t.Context(), ShimConfig{In: strings.NewReader(in), Out: &out, Client: &http.Client{Transport: transport}, URL: "http://daemon/", MaxMessage: 4096})
		for l := range strings.Lines(out.String()) {
			if _, err := scanMessage([]byte(strings.TrimSuffix(l, "\n"))); err != nil {
				t.Fatalf("wrote %q", l)
			}
		}
		if n, m := strings.Count(out.String(), "\n"), strings.Count(in, "\n")+1; n > m {
			t.Fatalf("%d answers to %d lines", n, m)
		}
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

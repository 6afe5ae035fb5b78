package mcp

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilox/vault"
)

// asking is a gateway whose calls ask the client once and give back what it said.
type asking struct{}

func (asking) Handle(ctx context.Context, _ *vault.Call, out vault.Stream) (vault.Result, error) {
	a, err := out.Request(ctx, methodElicitation, json.RawMessage(`{"message":"who?"}`))
	if err != nil {
		return vault.Result{}, err
	}
	return vault.Result{Raw: json.RawMessage(`{"resultType":"complete","said":` + string(a) + `}`)}, nil
}

// parkingFront is a front whose caller is named by the Authorization header.
func parkingFront(t *testing.T, g Gateway) *Front {
	t.Helper()
	f, err := NewFront(FrontConfig{Gateway: g, Authenticate: func(r *http.Request) (Caller, error) {
		return Caller{Key: "k" + r.Header.Get("Authorization"), View: NewView([]ServerView{{ID: testID("s"), Name: "s"}})}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// call sends a tool call of a client that can be asked, and returns status and body.
func call(t *testing.T, f *Front, caller, arguments, more string) (int, string) {
	t.Helper()
	body := fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","arguments":%s%s,"_meta":{%q:%q,%q:{"elicitation":{}}}}}`,
		arguments, more, metaVersion, Version20260728, metaClientCaps)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://127.0.0.1/", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Host = "127.0.0.1"
	r.Header = http.Header{
		"Content-Type": {"application/json"}, "Accept": {"*/*"}, "Authorization": {caller},
		headerVersion: {Version20260728}, headerMethod: {methodToolsCall}, headerName: {"x"},
	}
	w := &httpAnswer{h: make(http.Header)}
	f.ServeHTTP(w, r)
	return w.status, w.body.String()
}

// httpAnswer is a ResponseWriter that keeps everything.
type httpAnswer struct {
	h      http.Header
	status int
	body   strings.Builder
}

func (r *httpAnswer) Header() http.Header         { return r.h }
func (r *httpAnswer) WriteHeader(s int)           { r.status = s }
func (r *httpAnswer) Write(b []byte) (int, error) { return r.body.Write(b) }
func (r *httpAnswer) Flush()                      {}

// stateOf returns the requestState of an input_required answer.
func stateOf(t *testing.T, body string) string {
	t.Helper()
	var m struct {
		Result struct {
			ResultType    string
			InputRequests map[string]struct{ Method string }
			RequestState  string
		}
	}
	if err := json.Unmarshal([]byte(body), &m); err != nil || m.Result.ResultType != "input_required" || m.Result.InputRequests[inputKey].Method != methodElicitation {
		t.Fatalf("not asked for input: %s", body)
	}
	return m.Result.RequestState
}

// TestParkedCall: a parked call goes on for its own caller, with the same arguments, once.
func TestParkedCall(t *testing.T) {
	f := parkingFront(t, asking{})
	defer f.Close()
	_, body := call(t, f, "a", `{"n":1}`, "")
	state := stateOf(t, body)
	resume := fmt.Sprintf(`,"requestState":%q,"inputResponses":{"input":{"action":"accept"}}`, state)
	for _, tt := range []struct{ name, caller, args, more string }{
		{"another caller", "b", `{"n":1}`, resume},
		{"other arguments", "a", `{"n":2}`, resume},
		{"an unknown state", "a", `{"n":1}`, strings.Replace(resume, state, parkedPrefix+"x", 1)},
	} {
		if status, body := call(t, f, tt.caller, tt.args, tt.more); status != 400 || !strings.Contains(body, "requestState is unknown") {
			t.Errorf("%s: %d %s", tt.name, status, body)
		}
	}
	if _, body := call(t, f, "a", `{"n":1}`, fmt.Sprintf(`,"requestState":%q`, state)); stateOf(t, body) != state {
		t.Error("without the input it is asked for something else")
	}
	if _, body := call(t, f, "a", `{"n":1}`, resume); !strings.Contains(body, `"said":{"action":"accept"}`) {
		t.Errorf("with the input: %s", body)
	}
	if status, _ := call(t, f, "a", `{"n":1}`, resume); status != 400 {
		t.Errorf("the same state again: %d", status)
	}
}

// TestParkedCallsAreBounded: a caller that never comes back holds a bounded number of calls,
// for a bounded time.
func TestParkedCallsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := parkingFront(t, asking{})
		for range maxParked {
			_, body := call(t, f, "a", `{}`, "")
			stateOf(t, body)
		}
		if _, body := call(t, f, "a", `{}`, ""); !strings.Contains(body, string(vault.CodeBusy)) {
			t.Errorf("one more: %s", body)
		}
		_, body := call(t, f, "b", `{}`, "")
		stateOf(t, body)
		time.Sleep(6 * time.Minute)
		synctest.Wait()
		f.parked.mu.Lock()
		waiting, running := len(f.parked.calls), len(f.parked.running)
		f.parked.mu.Unlock()
		if waiting != 0 || running != 0 {
			t.Errorf("%d wait and %d run after their time", waiting, running)
		}
		f.Close()
	})
}

// TestListening: a client that listens hears of changed lists and of the resources it
// subscribed to, and of nothing else.
func TestListening(t *testing.T) {
	r := newRig(t, map[string]string{"stub": stubServer(t)})
	req := modernRequest(t, r, methodListen, "", `{"notifications":{"toolsListChanged":true}}`)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	events := newEventReader(resp.Body, 1<<16)
	next := func() string {
		ev, err := events.next()
		if err != nil {
			t.Fatal(err)
		}
		return string(ev.data)
	}
	if ack := next(); !strings.Contains(ack, `"toolsListChanged":true`) || !strings.Contains(ack, noteSubscriptionsListen) {
		t.Errorf("first came %s", ack)
	}
	r.front.Changed(vault.KindPrompt, nil)
	r.front.resourceUpdated(vault.Target{Server: testID("stub"), Name: "test://one"})
	r.front.Changed(vault.KindTool, func(key string) bool { return key == "somebody else" })
	r.front.Changed(vault.KindTool, nil)
	if got := next(); got != `{"jsonrpc":"2.0","method":"notifications/tools/list_changed","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":1}}}` {
		t.Errorf("then came %s", got)
	}
}

// TestResume: in the era with sessions a lost connection does not lose the answer.
func TestResume(t *testing.T) {
	release := make(chan struct{})
	f := parkingFront(t, slow{release})
	srv := newServer(t, f)
	post := func(ctx context.Context, session, body string) *http.Response {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, srv, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json, text/event-stream"}, headerSession: {session}}
		if session == "" {
			req.Header.Del(headerSession)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	resp := post(t.Context(), "", `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{}}}`)
	_ = resp.Body.Close()
	session := resp.Header.Get(headerSession)
	ctx, hangUp := context.WithCancel(t.Context())
	resp = post(ctx, session, `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"x"}}`)
	line, err := bufio.NewReader(resp.Body).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	hangUp()
	_ = resp.Body.Close()
	close(release)
	id := strings.TrimSpace(strings.TrimPrefix(line, "id: "))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = http.Header{"Accept": {"text/event-stream"}, headerSession: {session}, headerLastID: {id}}
	resp, err = http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(b), `{"jsonrpc":"2.0","id":2,"result":{"late":true}}`) {
		t.Errorf("after resuming: %s %v", b, err)
	}
}

// slow is a gateway that answers when it is told to, unless its call was cancelled.
type slow struct{ release <-chan struct{} }

func (s slow) Handle(ctx context.Context, _ *vault.Call, _ vault.Stream) (vault.Result, error) {
	<-s.release
	if ctx.Err() != nil {
		return vault.Result{}, ctx.Err()
	}
	return vault.Result{Raw: json.RawMessage(`{"late":true}`)}, nil
}

// TestSessionsAreBounded: a client that leaves sessions behind loses the oldest, not its
// running ones, and no other caller's.
func TestSessionsAreBounded(t *testing.T) {
	now := time.Unix(0, 0)
	cfg := &FrontConfig{MaxSessions: 2, SessionIdle: time.Minute, Now: func() time.Time { return now }}
	table := newSessionTable(cfg)
	open := func(key string) (*session, *session) {
		t.Helper()
		now = now.Add(time.Second)
		s, evicted, d := table.open(key, &client{version: Version20250618})
		if d != nil {
			t.Fatal(d)
		}
		return s, evicted
	}
	other, _ := open("other")
	first, _ := open("a")
	if !first.begin("1", func(error) {}) {
		t.Fatal("a call does not begin")
	}
	second, evicted := open("a")
	if evicted != nil {
		t.Error("evicted before there were too many")
	}
	if _, evicted = open("a"); evicted != second {
		t.Error("not the idle one was evicted")
	}
	if table.find(first.id, "a") != first || table.find(other.id, "other") != other {
		t.Error("a running session or another caller's is gone")
	}
	now = now.Add(2 * time.Minute)
	if gone := table.expire(); len(gone) != 2 {
		t.Errorf("%d sessions expired, want the two idle ones", len(gone))
	}
}

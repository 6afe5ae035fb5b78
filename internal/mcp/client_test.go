package mcp

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/pilox/vault"
)

// modernRequest is a well-formed request of the era without sessions. params is an object
// without _meta.
func modernRequest(t testing.TB, r *rig, method, name, params string) *http.Request {
	t.Helper()
	meta := `"_meta":{"` + metaVersion + `":"` + Version20260728 + `","` + metaClientCaps + `":{}}`
	if params != "{}" {
		meta += ","
	}
	body := `{"jsonrpc":"2.0","id":1,"method":"` + method + `","params":{` + meta + params[1:] + `}`
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.server.URL, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = http.Header{
		"Content-Type": {"application/json"}, "Accept": {"application/json, text/event-stream"},
		headerVersion: {Version20260728}, headerMethod: {method},
	}
	if name != "" {
		req.Header[headerName] = []string{name}
	}
	return req
}

func do(t testing.TB, req *http.Request) (int, string) {
	t.Helper()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func setBody(req *http.Request, body string) {
	req.Body = io.NopCloser(strings.NewReader(body))
	req.ContentLength = int64(len(body))
	req.GetBody = nil
}

// TestHostileClient: a request that is not as the protocol says never becomes a call.
func TestHostileClient(t *testing.T) {
	r := newRig(t, map[string]string{"stub": stubServer(t)})
	body := func(s string) func(*http.Request) { return func(q *http.Request) { setBody(q, s) } }
	const meta = `"_meta":{"` + metaVersion + `":"` + Version20260728 + `","` + metaClientCaps + `":{}}`
	tests := []struct {
		name   string
		change func(*http.Request)
		status int
		want   string // part of the answer
	}{
		{"a foreign Host", func(q *http.Request) { q.Host = "evil.example" }, 403, ""},
		{"a Host that begins like ours", func(q *http.Request) { q.Host = "127.0.0.1.evil.example" }, 403, ""},
		{"a foreign Origin", func(q *http.Request) { q.Header.Set("Origin", "https://evil.example") }, 403, ""},
		{"an opaque Origin", func(q *http.Request) { q.Header.Set("Origin", "null") }, 403, ""},
		{"a bad token", func(q *http.Request) { q.Header.Set("Authorization", "Bearer nope") }, 401, "capability.malformed"},
		{"a form", func(q *http.Request) { q.Header.Set("Content-Type", "text/plain") }, 415, ""},
		{"no SSE accepted", func(q *http.Request) { q.Header.Set("Accept", "application/json") }, 406, ""},
		{"a batch", body(`[{"jsonrpc":"2.0","id":1,"method":"tools/list"}]`), 400, "-32600"},
		{"no JSON", body(`hello`), 400, "-32700"},
		{"two documents", body(`{"jsonrpc":"2.0","id":1,"method":"tools/list"}{}`), 400, "-32700"},
		{"JSON-RPC 1.0", body(`{"jsonrpc":"1.0","id":1,"method":"tools/call"}`), 400, "-32600"},
		{"an object as id", body(`{"jsonrpc":"2.0","id":{},"method":"tools/call"}`), 400, "-32600"},
		{"a fraction as id", body(`{"jsonrpc":"2.0","id":1.5,"method":"tools/call"}`), 400, "-32600"},
		{"null as id", body(`{"jsonrpc":"2.0","id":null,"method":"tools/call"}`), 400, "-32600"},
		{"an array as params", body(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":[]}`), 400, "-32600"},
		{"a response out of nowhere", body(`{"jsonrpc":"2.0","id":1,"result":{}}`), 400, "-32600"},
		{"5 MB", body(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"x":"` + strings.Repeat("x", 5<<20) + `"}}`), 413, ""},
		{"a key twice in the message", body(`{"jsonrpc":"2.0","id":1,"method":"tools/list","method":"tools/call","params":{` + meta + `}}`), 400, "args.duplicate_key"},
		{"a key twice in the arguments", body(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{` + meta + `,"name":"echo","arguments":{"a":1,"A":2}}}`), 200, "args.duplicate_key"},
		{"a number no double keeps", body(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{` + meta + `,"name":"echo","arguments":{"a":9007199254740993}}}`), 200, "args.number_unsafe"},
		{"arguments that are no object", body(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{` + meta + `,"name":"echo","arguments":[]}}`), 400, "-32602"},
		{"a parameter that poses as the method", body(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{` + meta + `,"name":"echo","method":"resources/read"}}`), 400, "-32602"},
		{"another name in the header", func(q *http.Request) { q.Header.Set(headerName, "other") }, 400, "-32020"},
		{"another method in the header", func(q *http.Request) { q.Header.Set(headerMethod, "tools/list") }, 400, "-32020"},
		{"two names in the header", func(q *http.Request) { q.Header[headerName] = []string{"echo", "other"} }, 400, "-32020"},
		{"no name in the header", func(q *http.Request) { q.Header.Del(headerName) }, 400, "-32020"},
		{"another version in the header", func(q *http.Request) { q.Header.Set(headerVersion, "2027-01-01") }, 400, "-32020"},
		{"a version nobody speaks", func(q *http.Request) {
			q.Header.Set(headerVersion, "2027-01-01")
			b, err := io.ReadAll(q.Body)
			if err != nil {
				panic(err)
			}
			setBody(q, string(bytes.ReplaceAll(b, []byte(Version20260728), []byte("2027-01-01"))))
		}, 400, "-32022"},
		{"a session in the era without", func(q *http.Request) { q.Header.Set(headerSession, "x") }, 400, "-32600"},
		{"an unknown session", func(q *http.Request) {
			q.Header.Set(headerVersion, Version20250618)
			q.Header.Set(headerSession, "x")
			setBody(q, `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`)
		}, 404, "no such session"},
		{"no session", func(q *http.Request) {
			q.Header.Set(headerVersion, Version20250618)
			setBody(q, `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`)
		}, 400, "initialize first"},
		{"a proof that is no base64url", func(q *http.Request) { q.Header.Set("Vault-Mac", "???") }, 400, "Vault-Mac"},
		{"a call id with a slash", body(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","_meta":{"` + metaVersion + `":"` + Version20260728 + `","` + metaClientCaps + `":{},"` + CallIDKey + `":"a/b"}}}`), 400, "-32602"},
		{"PUT", func(q *http.Request) { q.Method = http.MethodPut }, 405, ""},
		{"GET in the era without sessions", func(q *http.Request) { q.Method = http.MethodGet; setBody(q, "") }, 405, ""},
		{"DELETE of a session that is not there", func(q *http.Request) { q.Method = http.MethodDelete; setBody(q, "") }, 404, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := r.gateway.calls.Load()
			req := modernRequest(t, r, methodToolsCall, "echo", `{"name":"echo","arguments":{}}`)
			tt.change(req)
			status, answer := do(t, req)
			if status != tt.status || !strings.Contains(answer, tt.want) {
				t.Errorf("status %d, want %d with %q: %s", status, tt.status, tt.want, answer)
			}
			if r.gateway.calls.Load() != before {
				t.Error("it became a call")
			}
		})
	}
}

// TestSessionBelongsToCaller: another caller does not find a session.
func TestSessionBelongsToCaller(t *testing.T) {
	r := newRig(t, map[string]string{"stub": stubServer(t)})
	legacy := func(method, session, token, body string) (*http.Response, string) {
		req, err := http.NewRequestWithContext(t.Context(), method, r.server.URL, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json, text/event-stream"}}
		if session != "" {
			req.Header.Set(headerSession, session)
		}
		if token != "" {
			req.Header.Set("Authorization", token)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(b)
	}
	resp, body := legacy("POST", "", "", `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2024-11-05","capabilities":{},"clientInfo":{"name":"x","version":"1"}}}`)
	id := resp.Header.Get(headerSession)
	if id == "" || !strings.Contains(body, Version20241105) {
		t.Fatalf("no session: %s", body)
	}
	const ping = `{"jsonrpc":"2.0","id":2,"method":"ping"}`
	if resp, _ := legacy("POST", id, "Bearer other", ping); resp.StatusCode != 404 {
		t.Errorf("another caller's request: %d", resp.StatusCode)
	}
	if resp, _ := legacy("DELETE", id, "Bearer other", ""); resp.StatusCode != 404 {
		t.Errorf("another caller's DELETE: %d", resp.StatusCode)
	}
	if resp, _ := legacy("POST", id, "", ping); resp.StatusCode != 200 {
		t.Errorf("the caller's request: %d", resp.StatusCode)
	}
	if resp, _ := legacy("DELETE", id, "", ""); resp.StatusCode != 204 {
		t.Errorf("the caller's DELETE: %d", resp.StatusCode)
	}
	if resp, _ := legacy("POST", id, "", ping); resp.StatusCode != 404 {
		t.Errorf("after DELETE: %d", resp.StatusCode)
	}
}

// TestCallFromRequest: what the gateway decides on is what the client said, and the upstream
// gets no other bytes.
func TestCallFromRequest(t *testing.T) {
	r := newRig(t, map[string]string{"stub": stubServer(t)})
	req := modernRequest(t, r, methodToolsCall, "echo", `{"name":"echo","arguments":{"b":1.0,"a":"<é>"},"requestState":"s"}`)
	b, err := io.ReadAll(req.Body)
	if err != nil {
		t.Fatal(err)
	}
	setBody(req, strings.Replace(string(b), `"_meta":{`, `"_meta":{"trace":"t1","progressToken":7,"`+CallIDKey+`":"mine",`, 1))
	req.Header.Set("Vault-Seq", "42")
	req.Header.Set("Vault-Mac", "AQID")
	if status, body := do(t, req); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	c := r.gateway.lastCall()
	if c.Kind != vault.KindTool || c.Target != (vault.Target{Server: testID("stub"), Name: "echo"}) || c.Server != "stub" {
		t.Errorf("target %+v of %s", c.Target, c.Server)
	}
	if got := c.Args.String(); got != `{"a":"<é>","b":1}` {
		t.Errorf("args %s", got)
	}
	if got := c.Params.String(); got != `{"_meta":{"trace":"t1"},"method":"tools/call","requestState":"s"}` {
		t.Errorf("params %s", got)
	}
	if !strings.HasPrefix(c.ID, "mine~") || c.Generated {
		t.Errorf("id %s, generated %v", c.ID, c.Generated)
	}
	if c.Credential.Seq != 42 || string(c.Credential.MAC) != "\x01\x02\x03" {
		t.Errorf("credential %+v", c.Credential)
	}
	method, params, meta, err := outgoing(c)
	if err != nil || method != methodToolsCall || string(meta.extra) != `{"trace":"t1"}` {
		t.Errorf("%s %s %v", method, meta.extra, err)
	}
	sent, err := vault.ParseArgs(params)
	if err != nil || sent.At("/arguments").Args().Digest() != c.Args.Digest() {
		t.Errorf("sent %s, %v", params, err)
	}
}

func TestDenialReachesModelAndProgram(t *testing.T) {
	d := vault.NewDenial(vault.CodeCapabilityArgument, "/path", nil)
	for _, schema := range []bool{false, true} {
		var res struct {
			IsError           bool
			Content           []struct{ Type, Text string }
			StructuredContent json.RawMessage
			Meta              map[string]vault.Denial `json:"_meta"`
		}
		if err := json.Unmarshal(denialResult(d, schema, true), &res); err != nil {
			t.Fatal(err)
		}
		if !res.IsError || !strings.Contains(res.Content[0].Text, "capability.argument at /path") {
			t.Errorf("%+v", res)
		}
		if got := res.Meta[vault.DenialKey]; got.Reason.Code != vault.CodeCapabilityArgument || got.Executed != vault.ExecutedNo {
			t.Errorf("denial %+v", got)
		}
		if (res.StructuredContent != nil) == schema {
			t.Errorf("outputSchema %v, structuredContent %s", schema, res.StructuredContent)
		}
	}
}

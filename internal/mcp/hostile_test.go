package mcp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pilox/vault"
)

// hostileServer greets as it should and answers tools/call by answer.
func hostileServer(t *testing.T, answer func(w http.ResponseWriter, r *http.Request, id string)) (url string, calls *atomic.Int64) {
	calls = new(atomic.Int64)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		m, err := scanMessage(body)
		if err != nil {
			t.Errorf("the server got %q", body)
			return
		}
		switch m.method {
		case methodDiscover:
			writeJSON(w, 200, appendResult(nil, m.id, []byte(`{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{}}`)))
		case methodToolsCall:
			calls.Add(1)
			answer(w, r, string(m.id))
		}
	}))
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	return srv.URL, calls
}

func stream(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(200)
}

// TestHostileUpstream: whatever a server does, the call ends with a denial that says
// what happened, and is sent once.
func TestHostileUpstream(t *testing.T) {
	raw := func(s string) func(http.ResponseWriter, *http.Request, string) {
		return func(w http.ResponseWriter, _ *http.Request, id string) {
			writeJSON(w, 200, []byte(strings.ReplaceAll(s, "ID", id)))
		}
	}
	tests := []struct {
		name   string
		answer func(w http.ResponseWriter, r *http.Request, id string)
		code   vault.Code
	}{
		{"closes the connection without an answer", func(w http.ResponseWriter, _ *http.Request, _ string) {
			c, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_ = c.Close()
			}
		}, vault.CodeUpstreamFailed},
		{"never answers", func(_ http.ResponseWriter, r *http.Request, _ string) { <-r.Context().Done() }, vault.CodeUpstreamTimeout},
		{"answers something that is not JSON", raw("<html>hello</html>"), vault.CodeUpstreamGarbage},
		{"answers half a message", raw(`{"jsonrpc":"2.0","id":ID,"result":{"content":[`), vault.CodeUpstreamGarbage},
		{"answers another request", raw(`{"jsonrpc":"2.0","id":99999,"result":{}}`), vault.CodeUpstreamGarbage},
		{"answers with the id as a string", raw(`{"jsonrpc":"2.0","id":"ID","result":{}}`), vault.CodeUpstreamGarbage},
		{"answers with a request", raw(`{"jsonrpc":"2.0","id":ID,"method":"ping"}`), vault.CodeUpstreamGarbage},
		{"answers with result and error", raw(`{"jsonrpc":"2.0","id":ID,"result":{},"error":{"code":1,"message":""}}`), vault.CodeUpstreamGarbage},
		{"says a key twice", raw(`{"jsonrpc":"2.0","id":ID,"result":{"content":[],"content":[]}}`), vault.CodeUpstreamGarbage},
		{"says a key twice, once in escapes", raw(`{"jsonrpc":"2.0","id":ID,"result":{"content":[{"text":"a","te\u0078t":"b"}]}}`), vault.CodeUpstreamGarbage},
		{"nests a thousand deep", raw(`{"jsonrpc":"2.0","id":ID,"result":{"content":` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000) + `}}`), vault.CodeUpstreamGarbage},
		{"answers a batch", raw(`[{"jsonrpc":"2.0","id":ID,"result":{}}]`), vault.CodeUpstreamGarbage},
		{"answers 100 MB", func(w http.ResponseWriter, _ *http.Request, id string) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":{"x":"`, id)
			chunk := bytes.Repeat([]byte("x"), 1<<20)
			for range 100 {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}, vault.CodeUpstreamTooLarge},
		{"announces 100 MB", func(w http.ResponseWriter, _ *http.Request, _ string) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Content-Length", "104857600")
			w.WriteHeader(200)
		}, vault.CodeUpstreamTooLarge},
		{"sends one endless line", func(w http.ResponseWriter, _ *http.Request, _ string) {
			stream(w)
			_, _ = io.WriteString(w, "data: ")
			chunk := bytes.Repeat([]byte("x"), 1<<20)
			for range 100 {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}, vault.CodeUpstreamTooLarge},
		{"floods with notifications", func(w http.ResponseWriter, _ *http.Request, _ string) {
			stream(w)
			for {
				if _, err := io.WriteString(w, "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{}}\n\n"); err != nil {
					return
				}
			}
		}, vault.CodeUpstreamTooLarge},
		{"ends the stream without an answer", func(w http.ResponseWriter, _ *http.Request, _ string) { stream(w) }, vault.CodeUpstreamFailed},
		{"sends garbage events", func(w http.ResponseWriter, _ *http.Request, _ string) {
			stream(w)
			_, _ = io.WriteString(w, "data: nonsense\n\n")
		}, vault.CodeUpstreamGarbage},
		{"asks on a stream where it must not", func(w http.ResponseWriter, _ *http.Request, _ string) {
			stream(w)
			_, _ = io.WriteString(w, "data: {\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"roots/list\"}\n\n")
		}, vault.CodeUpstreamGarbage},
		{"redirects to elsewhere", func(w http.ResponseWriter, r *http.Request, _ string) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusTemporaryRedirect)
		}, vault.CodeUpstreamFailed},
		{"fails with 500", func(w http.ResponseWriter, _ *http.Request, _ string) { http.Error(w, "boom", 500) }, vault.CodeUpstreamFailed},
		{"asks for input with garbage", raw(`{"jsonrpc":"2.0","id":ID,"result":{"resultType":"input_required","inputRequests":{"a":7}}}`), vault.CodeUpstreamGarbage},
		{"asks for input nobody permits", raw(`{"jsonrpc":"2.0","id":ID,"result":{"resultType":"input_required","inputRequests":{"a":{"method":"sampling/createMessage","params":{}}}}}`), vault.CodeCapabilityTarget},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			url, calls := hostileServer(t, tt.answer)
			u := NewUpstreams(UpstreamsConfig{MaxResult: 1 << 20})
			defer u.Close()
			d, err := DialHTTP(HTTPConfig{URL: url, AllowLoopback: true})
			if err != nil {
				t.Fatal(err)
			}
			if err := u.Add(Server{ID: testID("h"), Name: "h", Dial: d, Timeout: 2 * time.Second}); err != nil {
				t.Fatal(err)
			}
			if tt.code == vault.CodeUpstreamTimeout {
				u.find(testID("h")).srv.Timeout = 100 * time.Millisecond
			}
			res, err := u.Run(t.Context(), &vault.Facts{Call: &vault.Call{
				Kind: vault.KindTool, Target: vault.Target{Server: testID("h"), Name: "x"}, Args: vault.MustArgs(`{}`),
			}}, nil)
			denial, ok := errors.AsType[*vault.Denial](err)
			if !ok {
				t.Fatalf("no denial: %+v, %v", res, err)
			}
			if denial.Reason.Code != tt.code || denial.Executed != vault.ExecutedUnknown {
				t.Errorf("denied with %s, executed %s; want %s, unknown (%v)", denial.Reason.Code, denial.Executed, tt.code, denial.Err)
			}
			if n := calls.Load(); n != 1 {
				t.Errorf("sent %d times", n)
			}
		})
	}
}

// TestUnreachableUpstream: a call that was never sent says so.
func TestUnreachableUpstream(t *testing.T) {
	u := NewUpstreams(UpstreamsConfig{})
	defer u.Close()
	d, err := DialHTTP(HTTPConfig{URL: "http://127.0.0.1:1/", AllowLoopback: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Add(Server{ID: testID("d"), Name: "d", Dial: d}); err != nil {
		t.Fatal(err)
	}
	_, err = u.Run(t.Context(), &vault.Facts{Call: &vault.Call{Kind: vault.KindTool, Target: vault.Target{Server: testID("d"), Name: "x"}}}, nil)
	if d := vault.DenialOf(err); d.Reason.Code != vault.CodeServerDown || d.Executed != vault.ExecutedNo {
		t.Errorf("denied with %+v", d)
	}
	_, err = u.Run(t.Context(), &vault.Facts{Call: &vault.Call{Kind: vault.KindTool, Target: vault.Target{Server: testID("nobody"), Name: "x"}}}, nil)
	if d := vault.DenialOf(err); d.Reason.Code != vault.CodeToolUnknown || d.Executed != vault.ExecutedNo {
		t.Errorf("denied with %+v", d)
	}
}

func TestServerURLs(t *testing.T) {
	for _, tt := range []struct {
		url      string
		loopback bool
		ok       bool
	}{
		{"https://crm.example/mcp", false, true},
		{"http://127.0.0.1:9/mcp", true, true},
		{"http://[::1]:9/mcp", true, true},
		{"http://127.0.0.1:9/mcp", false, false},
		{"http://crm.example/mcp", true, false},
		{"http://127.0.0.1.example/mcp", true, false},
		{"file:///etc/passwd", true, false},
		{"https://user:pass@crm.example/", false, false},
		{"crm.example", false, false},
	} {
		if _, err := DialHTTP(HTTPConfig{URL: tt.url, AllowLoopback: tt.loopback}); (err == nil) != tt.ok {
			t.Errorf("%s, loopback allowed %v: %v", tt.url, tt.loopback, err)
		}
	}
}

// TestNoTokenPassthrough: an upstream sees the credentials of its own and no header of the client.
func TestNoTokenPassthrough(t *testing.T) {
	var seen atomic.Pointer[http.Header]
	url, _ := hostileServer(t, func(w http.ResponseWriter, r *http.Request, id string) {
		h := r.Header.Clone()
		seen.Store(&h)
		writeJSON(w, 200, []byte(`{"jsonrpc":"2.0","id":`+id+`,"result":{"content":[]}}`))
	})
	r := newRig(t, map[string]string{"h": url})
	d, err := DialHTTP(HTTPConfig{URL: url, AllowLoopback: true, Authorize: func(_ context.Context, h http.Header) error {
		h.Set("Authorization", "Bearer upstream")
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	r.up.Remove(testID("h"))
	if err := r.up.Add(Server{ID: testID("h"), Name: "h", Dial: d}); err != nil {
		t.Fatal(err)
	}
	req := modernRequest(t, r, methodToolsCall, "x", `{"name":"x","arguments":{}}`)
	req.Header.Set("Authorization", "Bearer other")
	req.Header.Set("Cookie", "a=b")
	req.Header.Set("X-Forwarded-For", "10.0.0.1")
	if status, body := do(t, req); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	h := *seen.Load()
	if got := h.Get("Authorization"); got != "Bearer upstream" {
		t.Errorf("Authorization %q went upstream", got)
	}
	for _, name := range []string{"Cookie", "X-Forwarded-For", "Origin"} {
		if v := h.Get(name); v != "" {
			t.Errorf("%s %q went upstream", name, v)
		}
	}
	if h.Get(headerMethod) != methodToolsCall || h.Get(headerName) != "x" {
		t.Errorf("method headers %q %q", h.Get(headerMethod), h.Get(headerName))
	}
}

package mcp

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

// stubServer answers every request of the modern era at once, with no more work than it must.
func stubServer(t testing.TB) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		m, err := scanMessage(body)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		result := `{"resultType":"complete","content":[{"type":"text","text":"ok"}]}`
		switch m.method {
		case methodDiscover:
			result = `{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{"tools":{}}}`
		case methodToolsList:
			result = `{"resultType":"complete","tools":[{"name":"echo","inputSchema":{"type":"object"}}]}`
		}
		writeJSON(w, http.StatusOK, appendResult(nil, m.id, []byte(result)))
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

const benchBody = `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","arguments":{"path":"/srv/invoices/2026-07.txt","limit":20},"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/clientInfo":{"name":"bench","version":"1"}}}}`

func benchRequest(url string) *http.Request {
	req, err := http.NewRequest(http.MethodPost, url, bytes.NewReader([]byte(benchBody)))
	if err != nil {
		panic(err)
	}
	req.Header = http.Header{
		"Content-Type": {"application/json"}, "Accept": {"application/json, text/event-stream"},
		headerVersion: {Version20260728}, headerMethod: {methodToolsCall}, headerName: {"echo"},
	}
	return req
}

// BenchmarkCall is one tool call over loopback: client, front, upstreams and stub in one process.
func BenchmarkCall(b *testing.B) {
	r := newRig(b, map[string]string{"stub": stubServer(b)})
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}}
	defer client.CloseIdleConnections()
	b.ReportAllocs()
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			resp, err := client.Do(benchRequest(r.server.URL))
			if err != nil {
				b.Error(err)
				return
			}
			body, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil || resp.StatusCode != http.StatusOK || !bytes.Contains(body, []byte(`"ok"`)) {
				b.Errorf("status %d, %v: %s", resp.StatusCode, err, body)
				return
			}
		}
	})
}

// BenchmarkStub is the same client and stub without anything between, to compare with.
func BenchmarkStub(b *testing.B) {
	url := stubServer(b)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}}
	defer client.CloseIdleConnections()
	b.ReportAllocs()
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			resp, err := client.Do(benchRequest(url))
			if err != nil {
				b.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
	})
}

// BenchmarkFront is the front alone, without sockets: decode, classify, make the call, answer.
func BenchmarkFront(b *testing.B) {
	r := newRig(b, map[string]string{"stub": stubServer(b)})
	f, err := NewFront(FrontConfig{
		Gateway:      answering(`{"resultType":"complete","content":[]}`),
		Authenticate: func(*http.Request) (Caller, error) { return Caller{Key: "k", View: r.view.Load()}, nil },
	})
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	w := &discard{h: make(http.Header)}
	b.ReportAllocs()
	for b.Loop() {
		req := benchRequest("http://127.0.0.1/")
		req.Host = "127.0.0.1"
		clear(w.h)
		f.ServeHTTP(w, req)
		if w.status != http.StatusOK {
			b.Fatal(w.status)
		}
	}
}

package mcp

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/pilox/vault"
)

// FuzzMessage: what scans is valid JSON without duplicate keys, and its parts are parts of it.
func FuzzMessage(f *testing.F) {
	for _, s := range []string{
		`{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"a\u00e9\\"}],"n":-1.5e3}}`,
		`{"jsonrpc":"2.0","id":"x","error":{"code":-32601,"message":"no","data":[true,null]}}`,
		`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1}}`,
		`{"jsonrpc":"2.0","id":1,"method":"roots/list"}`, `[]`, `{"a":1,"a":2}`, "{\"a\":\"\xff\"}", `{"a":tru}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := scanMessage(b)
		if err != nil {
			return
		}
		if !json.Valid(b) {
			t.Fatalf("accepted what is no JSON: %q", b)
		}
		if m.isResponse() == (m.method != "") || m.id != nil && !json.Valid(m.id) {
			t.Fatalf("message %+v", m)
		}
		for _, part := range []json.RawMessage{m.params, m.result, m.err} {
			if part != nil && !bytes.Contains(b, part) {
				t.Fatalf("part %q is not in %q", part, b)
			}
		}
		if m.result != nil {
			out, err := scanMessage(appendResult(nil, m.id, m.result))
			if err != nil || !bytes.Equal(out.result, m.result) {
				t.Fatalf("does not survive a round trip: %v", err)
			}
		}
		if m.err != nil {
			if e, err := remoteError(m.err); err == nil && e.Code == 0 && !bytes.Contains(m.err, []byte("code")) {
				t.Fatalf("an error without a code: %s", m.err)
			}
		}
	})
}

// FuzzEvents: the reader keeps its bounds, and ends.
func FuzzEvents(f *testing.F) {
	f.Add([]byte("id: a_1\nretry: 10\ndata: x\ndata: y\n\n: comment\n\ndata:z\r\n\r\n"))
	f.Add([]byte("data: " + strings.Repeat("x", 300) + "\n\n"))
	f.Add([]byte("id: \x00\ndata\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		const limit = 200
		e := newEventReader(bytes.NewReader(b), limit)
		for range len(b) + 1 {
			ev, err := e.next()
			if err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, errEventTooLarge) {
					t.Fatal(err)
				}
				return
			}
			if len(ev.data) > limit || bytes.ContainsAny([]byte(ev.id), "\r\n\x00") {
				t.Fatalf("event %q %q", ev.id, ev.data)
			}
		}
		t.Fatal("more events than bytes")
	})
}

// FuzzHeader: a value survives a header, and nothing that could end one gets in.
func FuzzHeader(f *testing.F) {
	for _, s := range []string{"", "echo", " lead", "é", "a\r\nHost: x", "=?base64?eA==?=", "=?base64?!?="} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h := encodeHeader(s)
		if !printable([]byte(h)) {
			t.Fatalf("%q is encoded as %q", s, h)
		}
		if got, ok := decodeHeader(h); !ok || got != s {
			t.Fatalf("%q came back as %q", s, got)
		}
		_, _ = decodeHeader(s) // must not panic on what others encode
		_ = allowedHost(s, nil)
		_ = allowedOrigin(http.Header{"Origin": {s}}, nil)
	})
}

// FuzzRequest: whatever a client sends, the upstream side can make of the call is exactly
// what was decided on.
func FuzzRequest(f *testing.F) {
	f.Add([]byte(benchBody))
	f.Add([]byte(`{"jsonrpc":"2.0","id":1,"method":"completion/complete","params":{"ref":{"type":"ref/prompt","name":"p"},"argument":{"name":"a","value":"b"},"context":{"arguments":{"c":"d"}}}}`))
	f.Add([]byte(`{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"x://y","_meta":{"k":1}}}`))
	front, err := NewFront(FrontConfig{Gateway: answering("{}"), Authenticate: func(*http.Request) (Caller, error) { return Caller{Key: "k"}, nil }})
	if err != nil {
		f.Fatal(err)
	}
	view := NewView([]ServerView{{ID: testID("s"), Name: "s"}})
	f.Fuzz(func(t *testing.T, b []byte) {
		q := &request{client: &client{version: Version20251125}}
		if q.decode(b) != nil {
			return
		}
		switch q.method {
		case methodToolsCall, methodPromptsGet, methodResourcesRead, methodComplete:
		default:
			return
		}
		p, fail := front.makeCall(q, view)
		if fail != nil {
			return
		}
		method, params, meta, err := outgoing(p.call)
		if err != nil || method != q.method {
			t.Fatalf("%s became %s: %v", q.method, method, err)
		}
		full, err := vault.ParseArgs(appendParams(nil, params, nilIfEmpty((&peerOptions{info: []byte("{}")}).appendMeta(nil, Version20260728, "1", meta))))
		if err != nil {
			t.Fatalf("sent %s: %v", params, err)
		}
		if args := full.At("/arguments"); args.Kind() != vault.Absent && args.Args().Digest() != p.call.Args.Digest() {
			t.Fatalf("decided on %s, sent %s", p.call.Args, args.Raw())
		}
	})
}

func TestViewNames(t *testing.T) {
	def := func(names ...string) (out []Definition) {
		for _, n := range names {
			out = append(out, Definition{n, []byte(`{"name":"` + n + `","inputSchema":{"type":"object"}}`)})
		}
		return out
	}
	one := NewView([]ServerView{{ID: testID("a"), Name: "a", Tools: def("read", "bad name", strings.Repeat("x", 65))}})
	if e := one.tools.byName["read"]; e == nil || e.own != "read" {
		t.Error("a single server keeps its own names")
	}
	if len(one.tools.entries) != 1 || len(one.Hidden()) != 2 {
		t.Errorf("shown %d, hidden %q", len(one.tools.entries), one.Hidden())
	}
	two := NewView([]ServerView{
		{ID: testID("a"), Name: "a", Tools: def("read", "b__read")},
		{ID: testID("b"), Name: "b", Tools: def("read")},
		{ID: testID("a__b"), Name: "a__b", Tools: def("read")},
	})
	if e := two.tools.byName["a__read"]; e == nil || e.server.ID != testID("a") || !bytes.Contains(e.raw, []byte(`"name":"a__read"`)) {
		t.Errorf("a__read is %+v", e)
	}
	if two.tools.byName["a__b__read"] != nil {
		t.Error("a name that two definitions claim is shown")
	}
	if target, server, _ := two.target(two.tools, "b__gone"); server != "b" || target.Name != "gone" {
		t.Errorf("an unknown tool of b is %+v of %q", target, server)
	}
	if target, _, _ := two.target(two.tools, "read"); !target.Server.IsZero() {
		t.Errorf("an unqualified name went to %v", target.Server)
	}
}

func TestTemplates(t *testing.T) {
	for _, tt := range []struct {
		template, uri string
		want          bool
	}{
		{"test://{id}", "test://1", true},
		{"test://{id}/data", "test://1/data", true},
		{"test://{id}/data", "test://1/other", false},
		{"test://{id}", "other://1", false},
		{"test://fixed", "test://fixed", true},
		{"test://fixed", "test://fixed2", false},
		{"test://{a", "test://1", false},
	} {
		if got := matchTemplate(tt.template, tt.uri); got != tt.want {
			t.Errorf("%s fits %s: %v", tt.uri, tt.template, got)
		}
	}
}

func TestParamHeaders(t *testing.T) {
	schema := json.RawMessage(`{"type":"object","properties":{"region":{"type":"string","x-mcp-header":"Region"},"deep":{"type":"object","properties":{"n":{"type":"integer","x-mcp-header":"N"}}}}}`)
	b, err := bindingsOf(schema)
	if err != nil || len(b) != 2 {
		t.Fatalf("%+v %v", b, err)
	}
	args := vault.MustArgs(`{"region":"Zürich","deep":{"n":7}}`)
	for _, tt := range []struct {
		name string
		h    http.Header
		ok   bool
	}{
		{"equal headers", http.Header{"Mcp-Param-Region": {encodeHeader("Zürich")}, "Mcp-Param-N": {"7"}}, true},
		{"one is missing", http.Header{"Mcp-Param-N": {"7"}}, false},
		{"one differs", http.Header{"Mcp-Param-Region": {"Bern"}, "Mcp-Param-N": {"7"}}, false},
		{"one stands twice", http.Header{"Mcp-Param-Region": {encodeHeader("Zürich")}, "Mcp-Param-N": {"7", "8"}}, false},
		{"a number in another spelling", http.Header{"Mcp-Param-Region": {encodeHeader("Zürich")}, "Mcp-Param-N": {"7.0"}}, false},
		{"broken base64", http.Header{"Mcp-Param-Region": {"=?base64?!!?="}, "Mcp-Param-N": {"7"}}, false},
	} {
		if err := checkParamHeaders(tt.h, b, args.Root()); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	if err := checkParamHeaders(http.Header{"Mcp-Param-N": {"7"}}, b, vault.MustArgs(`{}`).Root()); err == nil {
		t.Error("a header without its argument passed")
	}
	for _, bad := range []string{
		`{"properties":{"a":{"type":"string","x-mcp-header":"A"},"b":{"type":"string","x-mcp-header":"a"}}}`,
		`{"properties":{"a":{"type":"array","x-mcp-header":"A"}}}`,
		`{"properties":{"a":{"type":"string","x-mcp-header":"A B"}}}`,
	} {
		if _, err := bindingsOf([]byte(bad)); err == nil {
			t.Errorf("accepted %s", bad)
		}
	}
}

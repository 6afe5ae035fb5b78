package mcp

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/pilox/vault"
)

// A request is one message of a client on its way through the front.
type request struct {
	w      http.ResponseWriter
	r      *http.Request
	caller Caller
	stream bool // the client named SSE before JSON

	body    vault.Args      // the whole message in canonical form
	id      json.RawMessage // nil for notifications
	method  string          // empty for responses
	params  vault.Value
	client  *client
	session *session // of the era with sessions
}

// A client is what the edge knows about the program behind a call. It travels in
// the context from the front to Upstreams: it is no part of what is decided.
type client struct {
	version      string
	capabilities json.RawMessage // nil means none
	logLevel     string
	session      string // id, empty in the modern era
	progress     bool   // it wants progress of this call
}

type clientKey struct{}

// clientOf returns the client a call comes from. Edges other than the front get a
// modern one without capabilities.
func clientOf(ctx context.Context) *client {
	if c, ok := ctx.Value(clientKey{}).(*client); ok {
		return c
	}
	return &client{version: Version20260728}
}

// has reports whether the client declared what a server request needs.
func (c *client) has(method string) bool {
	capability, _, _ := strings.Cut(method, "/")
	return c.capabilities != nil && member(c.capabilities, capability) != nil
}

// decode reads one message strictly.
func (q *request) decode(body []byte) *vault.Denial {
	doc, err := vault.ParseValue(body)
	if err != nil {
		return vault.DenialOf(err)
	}
	q.body = doc
	root := doc.Root()
	malformed := vault.NewDenial(vault.CodeRequestMalformed, "", nil)
	if v, _ := root.Get("jsonrpc").Str(); v != "2.0" {
		return malformed
	}
	if id := root.Get("id"); id.Kind() != vault.Absent {
		raw := []byte(id.Raw())
		if id.Kind() == vault.Null || !validID(raw) || id.Kind() == vault.Bool || id.Kind() == vault.Array || id.Kind() == vault.Object {
			return malformed
		}
		q.id = raw
	}
	if m := root.Get("method"); m.Kind() != vault.Absent {
		name, ok := m.Str()
		if !ok || name == "" {
			return malformed
		}
		q.method = name
		q.params = root.Get("params")
		if k := q.params.Kind(); k != vault.Absent && k != vault.Object {
			return malformed
		}
		return nil
	}
	// A response to a request of the server.
	result, failure := root.Get("result").Kind(), root.Get("error").Kind()
	if q.id == nil || (result == vault.Object) == (failure == vault.Object) {
		return malformed
	}
	return nil
}

// A failure is a JSON-RPC error with its HTTP status.
type failure struct {
	status int
	code   int
	text   string
	data   []byte
}

func badRequest(code int, text string) *failure {
	return &failure{status: http.StatusBadRequest, code: code, text: text}
}

// classify finds the era and the session of a request and checks what the protocol
// demands around the parameters.
func (f *Front) classify(q *request) *failure {
	header, err := one(q.r.Header, headerVersion)
	if err != nil {
		return badRequest(codeInvalidRequest, err.Error())
	}
	meta := q.params.Get("_meta")
	inBody, _ := meta.Get(metaVersion).Str()
	switch {
	case modern(header) || inBody != "":
		return f.classifyModern(q, header, inBody, meta)
	case header != "" && !isLegacy(header):
		return &failure{http.StatusBadRequest, codeVersion, "unsupported protocol version", versionData(header)}
	}
	return f.classifyLegacy(q, header, meta)
}

func (f *Front) classifyModern(q *request, header, inBody string, meta vault.Value) *failure {
	q.client = &client{version: header}
	if q.method == "" {
		return badRequest(codeInvalidRequest, "responses have no place in this protocol version")
	}
	if q.id != nil {
		switch {
		case header == "":
			return badRequest(codeHeaderMismatch, "header MCP-Protocol-Version is missing")
		case inBody == "":
			return badRequest(codeInvalidParams, "missing or invalid _meta field "+strconv.Quote(metaVersion))
		case header != inBody:
			return badRequest(codeHeaderMismatch, "header MCP-Protocol-Version differs from the body")
		case header != Version20260728:
			return &failure{http.StatusBadRequest, codeVersion, "unsupported protocol version", versionData(header)}
		case meta.Get(metaClientCaps).Kind() != vault.Object:
			return badRequest(codeInvalidParams, "missing or invalid _meta field "+strconv.Quote(metaClientCaps))
		}
		if k := meta.Get(metaClientInfo).Kind(); k != vault.Absent && k != vault.Object {
			return badRequest(codeInvalidParams, "invalid _meta field "+strconv.Quote(metaClientInfo))
		}
	}
	if q.r.Header.Get(headerSession) != "" {
		return badRequest(codeInvalidRequest, "this protocol version has no sessions")
	}
	if err := checkMethodHeaders(q.r.Header, q.method, q.params); err != nil {
		return badRequest(codeHeaderMismatch, err.Error())
	}
	if caps := meta.Get(metaClientCaps).Raw(); len(caps) > len("{}") {
		q.client.capabilities = []byte(caps)
	}
	q.client.logLevel, _ = meta.Get(metaLogLevel).Str()
	q.client.progress = meta.Get("progressToken").Kind() != vault.Absent
	return nil
}

func (f *Front) classifyLegacy(q *request, header string, meta vault.Value) *failure {
	if q.method == methodInitialize {
		version, ok := q.params.Get("protocolVersion").Str()
		if q.id == nil || !ok {
			return badRequest(codeInvalidParams, "initialize needs a protocolVersion")
		}
		if !isLegacy(version) {
			version = Version20251125 // the newest of the era; the client takes it or leaves
		}
		q.client = &client{version: version, capabilities: []byte(q.params.Get("capabilities").Raw())}
		if q.params.Get("capabilities").Kind() != vault.Object {
			q.client.capabilities = nil
		}
		return nil
	}
	id, err := one(q.r.Header, headerSession)
	if err != nil {
		return badRequest(codeInvalidRequest, err.Error())
	}
	if id == "" {
		return badRequest(codeInvalidRequest, "initialize first: header Mcp-Session-Id is missing")
	}
	s := f.sessions.find(id, q.caller.Key)
	if s == nil {
		return &failure{http.StatusNotFound, codeInvalidRequest, "no such session", nil}
	}
	if header != "" && header != s.version {
		return badRequest(codeInvalidRequest, "this session speaks protocol version "+s.version)
	}
	q.session = s
	q.client = &client{
		version:      s.version,
		capabilities: s.capabilities,
		logLevel:     s.level(),
		session:      s.id,
		progress:     meta.Get("progressToken").Kind() != vault.Absent,
	}
	return nil
}

// A buffer is reused between requests.
type buffer struct{ b []byte }

// bodies is the pool of request bodies. It holds no state, only memory.
var bodies bufferPool

type bufferPool struct{ pool sync.Pool }

func (p *bufferPool) get() *buffer {
	if b, ok := p.pool.Get().(*buffer); ok {
		b.b = b.b[:0]
		return b
	}
	return &buffer{b: make([]byte, 0, 4<<10)}
}

// put gives b back. A large one is left to the collector: it would hold its memory for good.
func (p *bufferPool) put(b *buffer) {
	const keep = 256 << 10
	if cap(b.b) <= keep {
		p.pool.Put(b)
	}
}

// read appends all of r, whose length may be known. The declared length is a hint only.
func (b *buffer) read(r io.Reader, length int64, limit int) error {
	if length > 0 && int(length) < limit && cap(b.b) < int(length)+1 {
		b.b = make([]byte, 0, min(int(length)+1, 1<<20))
	}
	for {
		if len(b.b) == cap(b.b) {
			b.b = append(b.b, 0)[:len(b.b)]
		}
		n, err := r.Read(b.b[len(b.b):cap(b.b)])
		b.b = b.b[:len(b.b)+n]
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func itoa(n int) string { return strconv.Itoa(n) }

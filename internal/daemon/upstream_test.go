package daemon_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// An upstream is an MCP server inside the test that remembers what it did. It
// outlives every daemon that a test kills, so what it remembers is the truth
// about effects.
type upstream struct {
	url   string
	tools []string
	stop  func() // may be called twice

	// answer, if set, answers tools/call instead of the usual text. It runs after
	// the call has been noted.
	answer func(w http.ResponseWriter, r *http.Request, c effect)

	mu     sync.Mutex
	schema string
	seen   []effect
}

// An effect is one call that reached an upstream.
type effect struct {
	rpc  json.RawMessage // id of the request
	name string
	args string // exact bytes
	id   string // the argument id, by which tests recognise a call
}

// newUpstream starts a server with the named tools. They all take the same
// optional arguments: id, text, to, path (strings) and n (a number).
func newUpstream(t *testing.T, tools ...string) *upstream {
	t.Helper()
	u := &upstream{tools: tools, schema: inputSchema}
	s := httptest.NewServer(u)
	u.url = s.URL
	u.stop = func() {
		s.CloseClientConnections()
		s.Close()
	}
	t.Cleanup(u.stop)
	return u
}

const inputSchema = `{"type":"object","properties":{"id":{"type":"string"},"text":{"type":"string"},"to":{"type":"string"},"path":{"type":"string"},"n":{"type":"number"}}}`

// ServeHTTP speaks the era without sessions.
func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var m struct {
		ID     json.RawMessage
		Method string
		Params struct {
			Name      string
			Arguments json.RawMessage
		}
	}
	body, err := io.ReadAll(r.Body)
	if err == nil {
		err = json.Unmarshal(body, &m)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	switch m.Method {
	case "server/discover":
		reply(w, m.ID, `{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{"tools":{}},"serverInfo":{"name":"fake","version":"1"}}`)
	case "tools/list":
		u.mu.Lock()
		schema := u.schema
		u.mu.Unlock()
		var list []string
		for _, name := range u.tools {
			list = append(list, fmt.Sprintf(`{"name":%q,"description":"does %s","inputSchema":%s}`, name, name, schema))
		}
		reply(w, m.ID, `{"resultType":"complete","tools":[`+strings.Join(list, ",")+`]}`)
	case "tools/call":
		c := effect{rpc: m.ID, name: m.Params.Name, args: string(m.Params.Arguments)}
		var args struct{ ID string }
		_ = json.Unmarshal(m.Params.Arguments, &args) // a call without an id stays nameless
		c.id = args.ID
		u.mu.Lock()
		u.seen = append(u.seen, c)
		answer := u.answer
		u.mu.Unlock()
		if answer != nil {
			answer(w, r, c)
			return
		}
		replyText(w, c, "did "+c.name+" "+c.id)
	case "notifications/cancelled":
		w.WriteHeader(http.StatusAccepted)
	default:
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"no such method"}}`, m.ID)
	}
}

func reply(w http.ResponseWriter, id json.RawMessage, result string) {
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":%s}`, id, result)
}

// replyText answers a call with one block of text.
func replyText(w http.ResponseWriter, c effect, text string) {
	b, err := json.Marshal(text)
	if err != nil {
		panic(err)
	}
	reply(w, c.rpc, `{"resultType":"complete","content":[{"type":"text","text":`+string(b)+`}]}`)
}

// onCall sets how calls are answered; nil is the usual way.
func (u *upstream) onCall(answer func(w http.ResponseWriter, r *http.Request, c effect)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.answer = answer
}

// redefine changes the input schema of every tool.
func (u *upstream) redefine(schema string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.schema = schema
}

// effects returns the calls that arrived.
func (u *upstream) effects() []effect {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append([]effect(nil), u.seen...)
}

// ran says how often a call with this id arrived.
func (u *upstream) ran(id string) int {
	n := 0
	for _, e := range u.effects() {
		if e.id == id {
			n++
		}
	}
	return n
}

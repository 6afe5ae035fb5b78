package daemon_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/daemon"
)

// TestAuthZEN has a client of the Authorization API ask for decisions: each answer
// is what a call would have met, is on record, and costs what a call costs.
func TestAuthZEN(t *testing.T) {
	r := startDaemon(t, func(c *daemon.Config) { c.Doors.AuthZEN, c.Listen.Bearer = true, true })
	up := newUpstream(t, "act", "other")
	r.addURL("up", up.url)
	task := r.mintBound(taskFor("be asked about", 3, "up.act: {args: {id: {max_length: 3}}}"), "bearer")

	post := func(t *testing.T, path, token, body string) (int, []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+r.addr+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		req.Header.Set("X-Request-ID", "chosen-by-a-client") // and the same for all of them
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, b
	}
	question := func(agent, action, resource, context string) string {
		return `{"subject":{"type":"agent","id":"` + agent + `"},"action":{"name":"` + action + `"},"resource":{"type":"` + action + `","id":"` + resource + `"},"context":` + context + `}`
	}
	me := string(task.Agent)
	var wantRefused []vault.Code
	for _, tt := range []struct {
		name, body string
		yes        bool
		code       vault.Code
	}{
		{"what the task grants", question(me, "tool", "up.act", `{"arguments":{"id":"a"},"call_id":"c-1"}`), true, ""},
		{"the same again costs nothing", question(me, "tool", "up.act", `{"arguments":{"id":"a"},"call_id":"c-1"}`), true, ""},
		{"the same id for something else", question(me, "tool", "up.act", `{"arguments":{"id":"b"},"call_id":"c-1"}`), false, vault.CodeCallArgsDiffer},
		{"an argument that is refused", question(me, "tool", "up.act", `{"arguments":{"id":"long"}}`), false, vault.CodeCapabilityArgument},
		{"a tool that is not granted", question(me, "tool", "up.other", `{"arguments":{}}`), false, vault.CodeCapabilityTarget},
		{"a server that nobody registered", question(me, "tool", "down.act", `{"arguments":{}}`), false, vault.CodeToolUnknown},
		{"another subject", question("spiffe://vault.internal/agent/default/x/y", "tool", "up.act", `{"arguments":{"id":"a"}}`), false, vault.CodeProof},
		{"an action that is no kind of call", question(me, "can_read", "up.act", `{}`), false, vault.CodeRequestMalformed},
		{"no resource", `{"subject":{"type":"agent","id":"` + me + `"},"action":{"name":"tool"}}`, false, vault.CodeRequestMalformed},
		{"the second call", question(me, "tool", "up.act", `{"arguments":{"id":"b"}}`), true, ""},
		{"the third call", question(me, "tool", "up.act", `{"arguments":{"id":"c"}}`), true, ""},
		{"one more than the budget", question(me, "tool", "up.act", `{"arguments":{"id":"d"}}`), false, vault.CodeCapabilityBudget},
	} {
		status, b := post(t, "/access/v1/evaluation", task.Token, tt.body)
		var got struct {
			Decision *bool
			Context  *vault.Denial
		}
		if err := json.Unmarshal(b, &got); err != nil || status != http.StatusOK || got.Decision == nil {
			t.Fatalf("%s: %d %s", tt.name, status, b)
		}
		if *got.Decision != tt.yes || !tt.yes && got.Context.Reason.Code != tt.code {
			t.Errorf("%s: %s, want %v %s", tt.name, b, tt.yes, tt.code)
		}
		if !tt.yes {
			wantRefused = append(wantRefused, tt.code)
		}
	}
	if n := up.ran("a") + up.ran("b") + up.ran("c"); n != 0 {
		t.Errorf("%d calls ran: a decision has no effect", n)
	}
	phases := slices.DeleteFunc(r.phases(task.ID, vault.KindTool)["c-1"], func(p string) bool { return p == string(vault.PhaseRefused) })
	if want := []string{string(vault.PhaseIntent), string(vault.PhaseDone)}; !slices.Equal(phases, want) {
		t.Errorf("a permit is on record as %v, want %v", phases, want)
	}
	// Each refusal is an event, also of what was no question about a call.
	var refused []vault.Code
	for _, rec := range r.records(task.ID) {
		switch rec.Leaf.Phase {
		case string(vault.PhaseRefused):
			refused = append(refused, vault.Code(rec.Leaf.Reason))
			if rec.Fields["caller"] != me {
				t.Errorf("a refusal is on record as of %q", rec.Fields["caller"])
			}
		case string(vault.PhaseDone):
			if rec.Leaf.Reason != string(vault.CodePermitted) {
				t.Errorf("a permit is on record as %q, which claims an effect", rec.Leaf.Reason)
			}
		}
	}
	if !slices.Equal(refused, wantRefused) {
		t.Errorf("refused on record: %v, want %v", refused, wantRefused)
	}

	for name, c := range map[string]struct {
		token, body string
		status      int
	}{
		"no token":    {"", question(me, "tool", "up.act", `{}`), http.StatusUnauthorized},
		"no JSON":     {task.Token, `{`, http.StatusBadRequest},
		"a key twice": {task.Token, `{"subject":{},"subject":{}}`, http.StatusBadRequest},
	} {
		if status, b := post(t, "/access/v1/evaluation", c.token, c.body); status != c.status {
			t.Errorf("%s: %d %s", name, status, b)
		}
	}
	batch := `{"subject":{"type":"agent","id":"` + me + `"},"action":{"name":"tool"},"options":{"evaluations_semantic":"deny_on_first_deny"},"evaluations":[
		{"resource":{"type":"tool","id":"up.other"}},{"resource":{"type":"tool","id":"up.act"}}]}`
	if status, b := post(t, "/access/v1/evaluations", task.Token, batch); status != http.StatusOK || bytes.Count(b, []byte(`"decision":false`)) != 1 {
		t.Errorf("a batch that ends with the first no: %d %s", status, b)
	}
}

// TestExtAuthz has Envoy's own client ask about requests.
func TestExtAuthz(t *testing.T) {
	in := newInternet(t)
	var socket string
	r := startOnline(t, in, func(c *daemon.Config) {
		socket = filepath.Join(c.Data, "authz.sock")
		c.Doors.ExtAuthz, c.Listen.Bearer = socket, true
	})
	file := online("go through Envoy", "", "{host: api.example.com, methods: [GET, POST], path: /v1/*}")
	task := r.mintBound(file, "bearer")
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := auth.NewAuthorizationClient(conn)
	request := func(edit func(h *auth.AttributeContext_HttpRequest)) *auth.CheckRequest {
		h := &auth.AttributeContext_HttpRequest{
			Scheme: "https", Method: "GET", Host: "api.example.com", Path: "/v1/accounts", Protocol: "HTTP/2",
			Headers: map[string]string{"authorization": "Bearer " + task.Token},
		}
		if edit != nil {
			edit(h)
		}
		return &auth.CheckRequest{Attributes: &auth.AttributeContext{Request: &auth.AttributeContext_Request{Http: h}}}
	}
	for _, tt := range []struct {
		name string
		edit func(h *auth.AttributeContext_HttpRequest)
		want vault.Code
	}{
		{"what the task grants", nil, ""},
		{"in a header of its own", func(h *auth.AttributeContext_HttpRequest) {
			h.Headers = map[string]string{"authorization": "Basic x", "x-vault-capability": task.Token}
		}, ""},
		{"a body that is all there", func(h *auth.AttributeContext_HttpRequest) {
			h.Method, h.Body, h.Size = "POST", `{"a":1}`, 7
			h.Headers["content-type"] = "application/json"
		}, ""},
		{"another path", func(h *auth.AttributeContext_HttpRequest) { h.Path = "/admin" }, vault.CodeCapabilityArgument},
		{"a path that servers read differently", func(h *auth.AttributeContext_HttpRequest) { h.Path = "/v1/%2e%2e" }, vault.CodeArgsSchema},
		{"another method", func(h *auth.AttributeContext_HttpRequest) { h.Method = "DELETE" }, vault.CodeCapabilityArgument},
		{"another host", func(h *auth.AttributeContext_HttpRequest) { h.Host = "evil.example.com" }, vault.CodeCapabilityTarget},
		{"another port", func(h *auth.AttributeContext_HttpRequest) { h.Host = "api.example.com:8443" }, vault.CodeCapabilityTarget},
		{"a host with userinfo", func(h *auth.AttributeContext_HttpRequest) { h.Host = "x@api.example.com" }, vault.CodeRequestMalformed},
		{"no TLS", func(h *auth.AttributeContext_HttpRequest) { h.Scheme = "http" }, vault.CodeRequestMalformed},
		{"no body, and it says so", func(h *auth.AttributeContext_HttpRequest) {
			h.Method = "POST"
			h.Headers["content-length"] = "0"
		}, ""},
		// Envoy asks before the body has come, and its size is 0, unless it is told to wait.
		{"a body that Envoy did not wait for", func(h *auth.AttributeContext_HttpRequest) {
			h.Method = "POST"
			h.Headers["content-length"] = "7"
		}, vault.CodeRequestMalformed},
		{"a body of unknown length that Envoy did not wait for", func(h *auth.AttributeContext_HttpRequest) { h.Method = "POST" }, vault.CodeRequestMalformed},
		{"a body in pieces that Envoy did not wait for", func(h *auth.AttributeContext_HttpRequest) { h.Headers["transfer-encoding"] = "chunked" }, vault.CodeRequestMalformed},
		{"a body where none has a meaning", func(h *auth.AttributeContext_HttpRequest) { h.Headers["content-length"] = "7" }, vault.CodeRequestMalformed},
		{"a body that was not sent", func(h *auth.AttributeContext_HttpRequest) { h.Method, h.Size = "POST", 7 }, vault.CodeRequestMalformed},
		{"a body that was cut", func(h *auth.AttributeContext_HttpRequest) { h.Method, h.Body, h.Size = "POST", "{", 7 }, vault.CodeRequestMalformed},
		{"a body that is no text", func(h *auth.AttributeContext_HttpRequest) { h.Method, h.RawBody, h.Size = "POST", []byte{0xff}, 1 }, vault.CodeRequestMalformed},
		{"no token", func(h *auth.AttributeContext_HttpRequest) { h.Headers = nil }, vault.CodeCapabilityMissing},
		{"a token that is none", func(h *auth.AttributeContext_HttpRequest) { h.Headers["authorization"] = "Bearer vc1.x" }, vault.CodeCapabilityMalformed},
	} {
		// What comes back to an agent through Envoy is from the web, and nobody here sees
		// it; so each row has an agent of its own that has seen nothing yet.
		task = r.mintBound(strings.Replace(file, "Envoy", "Envoy, "+tt.name, 1), "bearer")
		res, err := client.Check(t.Context(), request(tt.edit))
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if ok := codes.Code(res.Status.Code) == codes.OK; ok != (tt.want == "") || res.Status.Message != string(tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, res, tt.want)
		}
		if d := res.GetDeniedResponse(); d != nil && !strings.Contains(d.Body, vault.DenialKey) {
			t.Errorf("%s: a refusal without words: %s", tt.name, d.Body)
		}
	}
	if res, err := client.Check(t.Context(), &auth.CheckRequest{}); err != nil || codes.Code(res.Status.Code) == codes.OK {
		t.Errorf("an empty check: %v, %v", res, err)
	}
	if sent := in.took(); len(sent) != 0 {
		t.Errorf("sent %v: a decision has no effect", sent)
	}
	// After one permit the agent may have read anything: the next way out asks.
	task = r.mintBound(strings.Replace(file, "Envoy", "Envoy twice", 1), "bearer")
	for i, want := range []vault.Code{"", vault.CodeApprovalRequired} {
		res, err := client.Check(t.Context(), request(func(h *auth.AttributeContext_HttpRequest) { h.Method, h.Body, h.Size = "POST", "x", 1 }))
		if err != nil || res.Status.Message != string(want) {
			t.Errorf("request %d: %v, %v", i, res, err)
		}
	}
	// A capability that a SPIFFE ID is bound to is not helped by a principal that
	// nobody configured to believe.
	req := request(nil)
	req.Attributes.Source = &auth.AttributeContext_Peer{Principal: "spiffe://vault.internal/agent/default/x/y"}
	bound := r.mintBound(strings.Replace(file, "Envoy", "a peer", 1), "peer")
	req.Attributes.Request.Http.Headers["authorization"] = "Bearer " + bound.Token
	if res, err := client.Check(t.Context(), req); err != nil || res.Status.Message != string(vault.CodeProof) {
		t.Errorf("a capability of somebody else: %v, %v", res, err)
	}
}

// TestDoorRecovery kills the daemon between the intent of a permit and its answer:
// the answer never came, and what was on its way is unknown, paid for and tainting.
func TestDoorRecovery(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	point := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		once.Do(func() { close(arrived) })
		select {
		case <-release:
		case <-r.Context().Done():
		}
		fmt.Fprint(w, `{"decision":true}`)
	}))
	t.Cleanup(point.Close)
	p := newProgram(t, pvaultBinary(t))
	socket := filepath.Join(p.dir, "x")
	yaml, err := os.ReadFile(p.config)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(yaml), "{http: off,", "{http: off, bearer: true,", 1) +
		fmt.Sprintf("doors: {ext_authz: %s}\npolicy: {hooks: [{at: tool.result, engine: http, url: %s, deadline: 1m}]}\n", socket, point.URL)
	if err := os.WriteFile(p.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p.start()
	task := p.mintBound(online("go through Envoy", "", "{host: api.example.com, methods: [GET], path: /v1/*}"), "bearer")
	ask := func(id string) (*auth.CheckResponse, error) {
		conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		return auth.NewAuthorizationClient(conn).Check(t.Context(), &auth.CheckRequest{Attributes: &auth.AttributeContext{Request: &auth.AttributeContext_Request{Http: &auth.AttributeContext_HttpRequest{
			Id: id, Scheme: "https", Method: "GET", Host: "api.example.com", Path: "/v1/accounts", Headers: map[string]string{"authorization": "Bearer " + task.Token},
		}}}})
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		if res, err := ask("c-flight"); err == nil {
			t.Errorf("an answer came out of a dead daemon: %v", res)
		}
	}()
	<-arrived
	p.kill()
	<-gone
	close(release)
	p.start()
	if got, want := p.phases(task.ID, vault.KindEgress)["c-flight"], []string{string(vault.PhaseIntent), string(vault.PhaseUnknown)}; !slices.Equal(got, want) {
		t.Errorf("on record as %v, want %v", got, want)
	}
	for _, rec := range p.records(task.ID) {
		if l := rec.Leaf; l.Call == "c-flight" && (l.Refund || l.Phase == string(vault.PhaseIntent) && len(l.Debits) == 0) {
			t.Errorf("it is not paid for: %+v", l)
		}
	}
	for id, want := range map[string]vault.Code{"c-flight": vault.CodeCallUnknown, "c-next": vault.CodeApprovalRequired} {
		if res, err := ask(id); err != nil || res.GetStatus().GetMessage() != string(want) {
			t.Errorf("%s: %v, %v: want %q", id, res, err, want)
		}
	}
	p.wantSound()
}

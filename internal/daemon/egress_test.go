package daemon_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
	"github.com/pilox/vault/internal/egress"
)

// An internet is what a daemon under test takes for it: every name leads to one
// TLS server, under a public address, except for inside.example.com, which leads
// into the cloud's metadata service.
type internet struct {
	out egress.Config

	mu   sync.Mutex
	seen []string // method, host, path and body of each request
	auth []string // headers that carry authority
}

func newInternet(t *testing.T) *internet {
	t.Helper()
	in := new(internet)
	s := httptest.NewTLSServer(in)
	t.Cleanup(s.Close)
	tr, ok := s.Client().Transport.(*http.Transport)
	if !ok {
		t.Fatal("not an HTTP transport")
	}
	in.out = egress.Config{
		Transport: tr,
		Resolve: func(_ context.Context, host string) ([]netip.Addr, error) {
			if host == "inside.example.com" {
				return []netip.Addr{netip.MustParseAddr("169.254.169.254")}, nil
			}
			return []netip.Addr{netip.MustParseAddr("93.184.215.14")}, nil
		},
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if !strings.HasPrefix(address, "93.184.215.14:") {
				return nil, fmt.Errorf("dialled %s", address)
			}
			return new(net.Dialer).DialContext(ctx, network, s.Listener.Addr().String())
		},
	}
	return in
}

func (in *internet) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	in.mu.Lock()
	in.seen = append(in.seen, strings.TrimSpace(r.Method+" "+r.Host+r.RequestURI+" "+string(body)))
	for _, h := range []string{"Authorization", "Cookie", "Proxy-Authorization", "Referer"} {
		in.auth = append(in.auth, r.Header.Values(h)...)
	}
	in.mu.Unlock()
	switch r.URL.Path {
	case "/v1/accounts/moved":
		http.Redirect(w, r, "https://evil.example.com/collect", http.StatusFound)
	case "/v1/accounts/huge":
		_, _ = w.Write(make([]byte, 1<<20)) // the reader hangs up before the end
	default:
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"balance":"12.50 EUR"}`)
	}
}

// took returns what arrived since the last time.
func (in *internet) took() []string {
	in.mu.Lock()
	defer in.mu.Unlock()
	out := in.seen
	in.seen = nil
	return out
}

// startOnline starts a daemon that can reach in.
func startOnline(t *testing.T, in *internet, mutate func(*daemon.Config)) *rig {
	t.Helper()
	return startDaemon(t, func(c *daemon.Config) {
		daemon.SetEgress(c, in.out)
		c.Limits.Result = 64 << 10
		c.Approvals.Wait = time.Millisecond
		if mutate != nil {
			mutate(c)
		}
	})
}

// send makes one call of kind egress.
func (r *rig) send(task admin.Task, id, host, args string) admin.CallAnswer {
	r.t.Helper()
	a, err := r.admin.Call(r.t.Context(), admin.CallRequest{Token: task.Token, ID: id, Kind: vault.KindEgress, Name: host, Args: json.RawMessage(args)})
	if err != nil {
		r.t.Fatalf("call %s: %v", host, err)
	}
	return a
}

// online is a task file that grants hosts, one entry each in the words of a task
// file, and whatever else stands in more.
func online(purpose, more string, hosts ...string) string {
	return fmt.Sprintf("version: 1\npurpose: %s\nprincipal: user:clerk@example.com\nlife: 30m\negress:\n  - %s\nbudgets: {calls: 20}\n%s",
		purpose, strings.Join(hosts, "\n  - "), more)
}

// TestEgress follows requests out: what the task file says goes and nothing else,
// only to public addresses, and what comes back is bounded.
func TestEgress(t *testing.T) {
	in := newInternet(t)
	r := startOnline(t, in, nil)
	file := func(purpose string) string {
		return online(purpose, "",
			"{host: api.example.com, methods: [GET], path: /v1/accounts/*}",
			"{host: inside.example.com, methods: [GET], path: /**}",
			"{host: www.example.com, methods: [GET, POST], path: [/form, /find?q=*]}")
	}
	const went, stopped = vault.ExecutedYes, vault.ExecutedNo
	refused := []vault.Phase{vault.PhaseRefused}
	failed := []vault.Phase{vault.PhaseIntent, vault.PhaseFailed}
	for i, tt := range []struct {
		name, host, args string
		code             vault.Code // "": it goes through
		path             string     // of the argument that is refused
		executed         vault.Executed
		phases           []vault.Phase // of a call that does not go through
		sent             string        // what arrives, if anything does
		result           string        // part of what comes back
	}{
		{
			name: "a request that is granted", host: "api.example.com", args: `{"method":"GET","path":"/v1/accounts/7"}`,
			sent: "GET api.example.com/v1/accounts/7", result: `"body":"{\"balance\":\"12.50 EUR\"}"`,
		},
		{
			name: "a query that is granted", host: "www.example.com", args: `{"method":"GET","path":"/find?q=a%2Fb"}`,
			sent: "GET www.example.com/find?q=a%2Fb", result: `"status":200`,
		},
		{
			name: "a body that is granted", host: "www.example.com", args: `{"method":"POST","path":"/form","body":"a=b","content_type":"application/x-www-form-urlencoded"}`,
			sent: "POST www.example.com/form a=b", result: `"status":200`,
		},
		{
			name: "a redirect is shown and not followed", host: "api.example.com", args: `{"method":"GET","path":"/v1/accounts/moved"}`,
			sent: "GET api.example.com/v1/accounts/moved", result: `"location":"https://evil.example.com/collect"`,
		},
		{
			name: "another method", host: "api.example.com", args: `{"method":"DELETE","path":"/v1/accounts/7"}`,
			code: vault.CodeCapabilityArgument, path: "/method", executed: stopped, phases: refused,
		},
		{
			name: "another path", host: "api.example.com", args: `{"method":"GET","path":"/v1/admin"}`,
			code: vault.CodeCapabilityArgument, path: "/path", executed: stopped, phases: refused,
		},
		{
			name: "a path below", host: "api.example.com", args: `{"method":"GET","path":"/v1/accounts/7/owner"}`,
			code: vault.CodeCapabilityArgument, path: "/path", executed: stopped, phases: refused,
		},
		{
			name: "a query that a star would take along", host: "api.example.com", args: `{"method":"GET","path":"/v1/accounts/7?to=evil"}`,
			code: vault.CodeCapabilityArgument, path: "/path", executed: stopped, phases: refused,
		},
		{
			name: "a parameter more than is granted", host: "www.example.com", args: `{"method":"GET","path":"/find?q=a&to=evil"}`,
			code: vault.CodeCapabilityArgument, path: "/path", executed: stopped, phases: refused,
		},
		{
			name: "a path that climbs out of what was granted", host: "api.example.com", args: `{"method":"GET","path":"/v1/accounts/.."}`,
			code: vault.CodeArgsSchema, path: "/path", executed: stopped, phases: failed,
		},
		{
			name: "a body that no method carries", host: "api.example.com", args: `{"method":"GET","path":"/v1/accounts/7","body":"x"}`,
			code: vault.CodeCapabilityArgument, path: "/body", executed: stopped, phases: refused,
		},
		{
			name: "a body that this method does not carry", host: "www.example.com", args: `{"method":"GET","path":"/form","body":"x"}`,
			code: vault.CodeArgsSchema, path: "/body", executed: stopped, phases: failed,
		},
		{
			name: "a media type that is not data", host: "www.example.com", args: `{"method":"POST","path":"/form","body":"x","content_type":"text/html"}`,
			code: vault.CodeCapabilityArgument, path: "/content_type", executed: stopped, phases: refused,
		},
		{
			name: "a header of the agent's own", host: "api.example.com", args: `{"method":"GET","path":"/v1/accounts/7","headers":{"Authorization":"x"}}`,
			code: vault.CodeCapabilityArgument, path: "/headers", executed: stopped, phases: refused,
		},
		{
			name: "another host", host: "evil.example.com", args: `{"method":"GET","path":"/v1/accounts/7"}`,
			code: vault.CodeCapabilityTarget, executed: stopped, phases: refused,
		},
		{
			name: "another port", host: "api.example.com:8443", args: `{"method":"GET","path":"/v1/accounts/7"}`,
			code: vault.CodeCapabilityTarget, executed: stopped, phases: refused,
		},
		{
			name: "a name that leads inside", host: "inside.example.com", args: `{"method":"GET","path":"/latest/meta-data/iam"}`,
			code: vault.CodeEgressAddress, executed: stopped, phases: failed,
		},
		{
			name: "an answer beyond the bound", host: "api.example.com", args: `{"method":"GET","path":"/v1/accounts/huge"}`,
			code: vault.CodeUpstreamTooLarge, executed: went, phases: failed, sent: "GET api.example.com/v1/accounts/huge",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			task := r.mint(file(tt.name)) // a task of its own, so that nothing was read before
			id := fmt.Sprintf("c-%d", i)
			a := r.send(task, id, tt.host, tt.args)
			want := []vault.Phase{vault.PhaseIntent, vault.PhaseDone}
			if tt.code == "" {
				wantAllowed(t, a)
				if !strings.Contains(string(a.Result), tt.result) {
					t.Errorf("result %s, want %s", a.Result, tt.result)
				}
			} else {
				want = tt.phases
				wantDenied(t, a, tt.code, tt.executed)
				if a.Denial != nil && a.Denial.Reason.Path != tt.path {
					t.Errorf("denied at %q, want %q", a.Denial.Reason.Path, tt.path)
				}
			}
			var sent []string
			if tt.sent != "" {
				sent = []string{tt.sent}
			}
			if got := in.took(); !slices.Equal(got, sent) {
				t.Errorf("%q arrived, want %q", got, sent)
			}
			r.wantRequest(task, id, tt.host, want)
		})
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.auth) > 0 {
		t.Errorf("authority went along: %q", in.auth)
	}
	r.wantSound()
}

// wantRequest checks the records of one call of kind egress. Its host stands in a
// field, where it can be erased, and not in the leaf.
func (r *rig) wantRequest(task admin.Task, id, host string, want []vault.Phase) {
	r.t.Helper()
	var got []record
	// An outcome is on record at most 20 ms after the answer.
	eventually(r.t, fmt.Sprintf("call %s is recorded as %v", id, want), func() bool {
		got = nil
		for _, rec := range r.records(task.ID) {
			if rec.Leaf.Call == id && rec.Leaf.Class == string(vault.ClassCall) {
				got = append(got, rec)
			}
		}
		return slices.EqualFunc(got, want, func(rec record, p vault.Phase) bool { return rec.Leaf.Phase == string(p) })
	})
	for _, rec := range got {
		if rec.Leaf.Kind != string(vault.KindEgress) || rec.Leaf.Tool != "" || rec.Fields["target"] != host || rec.Leaf.Grade != vault.GradeNone.String() {
			r.t.Errorf("record %+v with target %q", rec.Leaf, rec.Fields["target"])
		}
	}
}

// questionOf returns the one question about calls of task, answered or not.
func (r *rig) questionOf(task admin.Task) admin.Approval {
	r.t.Helper()
	list, err := r.admin.Approvals(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	list = slices.DeleteFunc(list, func(a admin.Approval) bool { return a.Agent != string(task.Agent) })
	if len(list) != 1 {
		r.t.Fatalf("%d questions, want one", len(list))
	}
	return list[0]
}

// TestEgressAndFlow: with private data and an outsider's words in scope a request
// is a way out, and a person decides, unless the task file says that the data may
// go there and what may be asked.
func TestEgressAndFlow(t *testing.T) {
	in := newInternet(t)
	r := startOnline(t, in, nil)
	u := newUpstream(t, "read")
	r.addServer("mail", daemon.Registration{Source: u.url, Loopback: true, Integrity: "web", Holds: "private[mail]"})
	const mail = "tools: {mail.read: {args: {}}}\n"
	const cleared = "labels: {may_read: [mail]}\n"
	const get = `{"method":"GET","path":"/v1/accounts/secret-of-the-mail"}`
	const entry = "{host: api.example.com, methods: [GET], path: /v1/accounts/*}"

	t.Run("before anything was read it goes", func(t *testing.T) {
		wantAllowed(t, r.send(r.mint(online("ask first", mail, entry)), "c-1", "api.example.com", get))
		in.took()
	})
	t.Run("after private and untrusted data a person decides", func(t *testing.T) {
		task := r.mint(online("ask after", mail+cleared, entry))
		wantAllowed(t, r.call(task, "mail", "read", `{}`))
		wantDenied(t, r.send(task, "c-2", "api.example.com", get), vault.CodeApprovalRequired, vault.ExecutedNo)
		if got := in.took(); len(got) != 0 {
			t.Fatalf("%q left before anybody answered", got)
		}
		q := r.questionOf(task)
		if q.Target != "egress:api.example.com" {
			t.Errorf("the question is about %q", q.Target)
		}
		for _, part := range []string{string(vault.CodeFlowDeadlyThree), string(vault.CodeFlowProvenance) + " at /path", "api.example.com", "/v1/accounts/secret-of-the-mail", "mail.read"} {
			if !strings.Contains(q.Text, part) {
				t.Errorf("the question does not show %q:\n%s", part, q.Text)
			}
		}
		if err := r.admin.Answer(t.Context(), q.ID, r.answerAs(approverName, q, true)); err != nil {
			t.Fatal(err)
		}
		wantAllowed(t, r.send(task, "c-2", "api.example.com", get))
		if got := in.took(); !slices.Equal(got, []string{"GET api.example.com/v1/accounts/secret-of-the-mail"}) {
			t.Errorf("%q arrived", got)
		}
		r.wantRequest(task, "c-2", "api.example.com", []vault.Phase{vault.PhaseAsked, vault.PhaseIntent, vault.PhaseDone})
	})
	t.Run("what the task file names needs nobody", func(t *testing.T) {
		task := r.mint(online("ask by name", mail+"labels: {may_read: [mail], may_send_to: [api.example.com]}\n",
			`{host: "api.example.com:8443", methods: [GET], path: /v1/rates}`, entry))
		wantAllowed(t, r.call(task, "mail", "read", `{}`))
		wantAllowed(t, r.send(task, "c-3", "api.example.com:8443", `{"method":"GET","path":"/v1/rates"}`))
		if got := in.took(); !slices.Equal(got, []string{"GET api.example.com:8443/v1/rates"}) {
			t.Errorf("%q arrived", got)
		}
		// The host may have the data, but who chose this path?
		wantDenied(t, r.send(task, "c-4", "api.example.com", get), vault.CodeApprovalRequired, vault.ExecutedNo)
		if text := r.questionOf(task).Text; strings.Contains(text, string(vault.CodeFlowDeadlyThree)) || !strings.Contains(text, string(vault.CodeFlowProvenance)+" at /path") {
			t.Errorf("the question says:\n%s", text)
		}
	})
	t.Run("an answer from outside is an outsider's word", func(t *testing.T) {
		task := r.mint(online("ask twice", cleared, entry)) // what was read from mail was sent there
		wantAllowed(t, r.send(task, "c-5", "api.example.com", `{"method":"GET","path":"/v1/accounts/7"}`))
		wantDenied(t, r.send(task, "c-6", "api.example.com", `{"method":"GET","path":"/v1/accounts/8"}`), vault.CodeApprovalRequired, vault.ExecutedNo)
	})
	r.wantSound()
}

// TestEgressAndPolicy: a hook sees requests by kind and host, and is asked about
// them also when it names no target.
func TestEgressAndPolicy(t *testing.T) {
	in := newInternet(t)
	for _, tt := range []struct {
		name, rego string
		tools      []string
		code       vault.Code // "" allows
	}{
		{"a hook that allows this host", `decision := {"effect": "allow"} if { input.call.kind == "egress"; input.call.tool == "api.example.com"; input.call.args.method == "GET" }`, nil, ""},
		{"a hook that was written for tools", `decision := {"effect": "allow"} if input.call.kind == "tool"`, nil, vault.CodePolicyUndefined},
		{"a hook for hosts by name", `decision := {"effect": "deny"}`, []string{"egress.*.example.com"}, vault.CodePolicyDenied},
		{"a hook for other hosts", `decision := {"effect": "deny"}`, []string{"egress.*.example.org"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := startOnline(t, in, func(c *daemon.Config) {
				c.Policy = policyOf(t, tt.rego)
				c.Policy.Hooks[0].Tools = tt.tools
			})
			task := r.mint(online(tt.name, "", "{host: api.example.com, methods: [GET], path: /v1/accounts/*}"))
			a := r.send(task, "c-1", "api.example.com", `{"method":"GET","path":"/v1/accounts/7"}`)
			if tt.code == "" {
				wantAllowed(t, a)
			} else {
				wantDenied(t, a, tt.code, vault.ExecutedNo)
			}
			if got := in.took(); (len(got) == 1) != (tt.code == "") {
				t.Errorf("%q arrived", got)
			}
		})
	}
}

// egressScript is an agent in a jail that asks the gateway for two requests, and
// then tries the host itself.
const egressScript = `
const call = path => fetch(process.env.PVAULT_URL + '/v1/call', {method: 'POST', body: JSON.stringify(
  {kind: 'egress', name: 'api.example.com', args: {method: 'GET', path}})}).then(r => r.json());
const fails = async f => { try { await f(); return false; } catch { return true; } };
(async () => {
  const out = {granted: await call('/v1/accounts/7'), other: await call('/v1/admin')};
  out.direct = await fails(() => fetch('https://93.184.215.14/', {signal: AbortSignal.timeout(5000)}));
  out.named = await fails(() => fetch('https://api.example.com/', {signal: AbortSignal.timeout(5000)}));
  console.log(JSON.stringify(out));
})();
`

// TestEgressFromJail: an agent without a network reaches the hosts of its task
// through its channel, and no other way.
func TestEgressFromJail(t *testing.T) {
	in := newInternet(t)
	r := startJailed(t, func(c *daemon.Config) { daemon.SetEgress(c, in.out) })
	task := r.mint(online("Ask from inside", "", "{host: api.example.com, methods: [GET], path: /v1/accounts/*}"))
	var stdout, stderr strings.Builder
	code := -1
	err := r.admin.Run(t.Context(), admin.RunRequest{Token: task.Token, Argv: []string{"node", "-e", egressScript}}, func(f admin.Frame) error {
		stdout.Write(f.Stdout)
		stderr.Write(f.Stderr)
		if f.Exit != nil {
			code = *f.Exit
		}
		return nil
	})
	if err != nil || code != 0 {
		t.Fatalf("run: %v, exit code %d\n%s%s", err, code, stdout.String(), stderr.String())
	}
	var got struct {
		Granted, Other admin.CallAnswer
		Direct, Named  bool
	}
	if err := json.Unmarshal([]byte(stdout.String()), &got); err != nil {
		t.Fatalf("%v: %s", err, stdout.String())
	}
	wantAllowed(t, got.Granted)
	if !strings.Contains(string(got.Granted.Result), "12.50 EUR") {
		t.Errorf("result %s", got.Granted.Result)
	}
	wantDenied(t, got.Other, vault.CodeCapabilityArgument, vault.ExecutedNo)
	if !got.Direct || !got.Named {
		t.Errorf("the agent got out by itself: %s", stdout.String())
	}
	if sent := in.took(); !slices.Equal(sent, []string{"GET api.example.com/v1/accounts/7"}) {
		t.Errorf("%q arrived", sent)
	}
	for _, rec := range r.records(task.ID) {
		if rec.Leaf.Kind == string(vault.KindEgress) && rec.Leaf.Proof != string(vault.ProofChannel) {
			t.Errorf("record %d says proof %q", rec.Leaf.Index, rec.Leaf.Proof)
		}
	}
}

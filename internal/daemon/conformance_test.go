package daemon_test

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"testing"

	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
	"github.com/pilox/vault/internal/vaulttest"
)

// everyKind grants all that the everything-server has, of every kind.
const everyKind = `
version: 1
purpose: Run the conformance suite
principal: user:tester@example.com
life: 1h
tools:
  everything.*: {args: any}
resources:
  everything.*: {args: any}
prompts:
  everything.*: {args: any}
server_requests:
  everything.*: {args: any}
budgets:
  calls: 100000
`

// TestConformance runs the official suite through the whole daemon: authentication,
// capability, catalogue, flow, ledger and all, against the SDK's everything-server.
// As many checks must pass as with nothing in between.
func TestConformance(t *testing.T) {
	suite := vaulttest.NewConformance(t)
	for _, run := range vaulttest.ConformanceRuns {
		t.Run(run.Version, func(t *testing.T) {
			r := startDaemon(t, func(c *daemon.Config) { c.Listen.Bearer = true })
			r.addURL("everything", suite.Serve(t, run.Flags))
			task := r.mintBound(everyKind, "bearer")
			suite.Run(t, run, withToken(t, r, task))
		})
	}
}

// withToken returns the URL of a proxy that adds the task's token to each request
// and changes nothing else: the suite has no option to send one. A Host or Origin
// that is not the proxy's own passes as it is, because the suite checks that
// foreign ones are refused.
func withToken(t *testing.T, r *rig, task admin.Task) string {
	target := &url.URL{Scheme: "http", Host: r.addr}
	var own string
	proxy := httptest.NewServer(&httputil.ReverseProxy{
		FlushInterval: -1, // events must not wait for more
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host = target.Scheme, target.Host
			p.Out.Host = p.In.Host
			if u := (&url.URL{Host: p.In.Host}); u.Port() == own {
				p.Out.Host = u.Hostname() + ":" + target.Port()
			}
			if u, err := url.Parse(p.In.Header.Get("Origin")); err == nil && u.Port() == own {
				p.Out.Header.Set("Origin", "http://"+u.Hostname()+":"+target.Port())
			}
			p.Out.Header.Set("Authorization", "Bearer "+task.Token)
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
			w.WriteHeader(http.StatusBadGateway) // the client is gone
		},
	})
	t.Cleanup(func() { proxy.CloseClientConnections(); proxy.Close() })
	u, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	own = u.Port()
	return proxy.URL + "/mcp"
}

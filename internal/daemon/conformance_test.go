package daemon_test

import (
	"log/slog"
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
// As many checks must pass as with nothing in between. At 2025-11-25 one more passes,
// and one fails that is a warning there: the server's test_reconnection cuts its own
// stream without a way to resume it, so that its call never ends; the daemon says so.
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
	t.Helper()
	target := &url.URL{Host: r.addr}
	proxy := httptest.NewUnstartedServer(nil)
	own := (&url.URL{Host: proxy.Listener.Addr().String()}).Port()
	proxy.Config.Handler = &httputil.ReverseProxy{
		FlushInterval: -1,                                                                      // events must not wait for more
		ErrorLog:      slog.NewLogLogger(slog.NewTextHandler(t.Output(), nil), slog.LevelInfo), // clients hang up
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host = "http", target.Host
			p.Out.Host = p.In.Host
			if u := (&url.URL{Host: p.In.Host}); u.Port() == own {
				p.Out.Host = u.Hostname() + ":" + target.Port()
			}
			if u, err := url.Parse(p.In.Header.Get("Origin")); err == nil && u.Port() == own {
				p.Out.Header.Set("Origin", "http://"+u.Hostname()+":"+target.Port())
			}
			p.Out.Header.Set("Authorization", "Bearer "+task.Token)
		},
	}
	proxy.Start()
	t.Cleanup(func() { proxy.CloseClientConnections(); proxy.Close() })
	return proxy.URL + "/mcp"
}

package daemon_test

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/daemon"
)

const scraper = "a token of at least thirty-two bytes"

// TestMetricsListener: the listener for Prometheus serves its one route to who
// brings the token, and the same refusal to everybody else, whatever they ask for.
func TestMetricsListener(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	write(t, token, scraper+"\n")
	if err := os.Chmod(token, 0o600); err != nil {
		t.Fatal(err)
	}
	r := startDaemon(t, func(c *daemon.Config) {
		c.Telemetry.Metrics = daemon.MetricsListener{Address: "127.0.0.1:0", Token: token}
	})
	u := newUpstream(t, "act")
	r.addURL("up", u.url)
	task := r.mint(taskFor("be counted", 100, "up.act: {args: {text: {max_length: 3}}}"))
	for range 3 {
		wantAllowed(t, r.call(task, "up", "act", `{"text":"x"}`))
	}
	wantDenied(t, r.call(task, "up", "act", `{"text":"a secret"}`), vault.CodeCapabilityArgument, vault.ExecutedNo)
	addr := r.status().Metrics
	ask := func(method, path string, header map[string]string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+addr+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range header {
			if k == "Host" {
				req.Host = v
			}
			req.Header.Set(k, v)
		}
		res, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(body)
	}
	good := map[string]string{"Authorization": "Bearer " + scraper}
	status, body := ask(http.MethodGet, "/metrics", good)
	if status != http.StatusOK {
		t.Fatalf("status %d: %s", status, body)
	}
	for _, line := range []string{
		`pvault_tool_calls_total{server="up",tool="act",verdict="allow"} 3`,
		`pvault_calls_total{kind="tool",verdict="deny"} 1`,
		`pvault_denials_total{code="capability.argument"} 1`,
		`pvault_servers{state="ready"} 1`, `pvault_approvals_pending 0`, `pvault_ledger_up 1`,
	} {
		if !strings.Contains(body, line+"\n") {
			t.Errorf("no line %s in\n%s", line, body)
		}
	}
	if strings.Contains(body, "a secret") || strings.Contains(body, "user:") || strings.Contains(body, "spiffe://") {
		t.Error("a metric says what a call says")
	}
	if raw, err := r.admin.Metrics(t.Context()); err != nil || !strings.Contains(string(raw), "pvault_ledger_commit_seconds_count") {
		t.Errorf("over the admin socket: %v", err)
	}
	if list, err := r.admin.Samples(t.Context()); err != nil || !strings.Contains(string(list), `"pvault_ledger_events"`) {
		t.Errorf("as numbers: %s, %v", list, err)
	}
	for name, header := range map[string]map[string]string{
		"nothing":          nil,
		"no token":         {"Authorization": "Bearer "},
		"another token":    {"Authorization": "Bearer " + scraper + "x"},
		"half of it":       {"Authorization": "Bearer " + scraper[:20]},
		"another scheme":   {"Authorization": "Basic " + scraper},
		"a foreign host":   {"Authorization": "Bearer " + scraper, "Host": "evil.example"},
		"a foreign origin": {"Authorization": "Bearer " + scraper, "Origin": "https://evil.example"},
		"a foreign site":   {"Authorization": "Bearer " + scraper, "Sec-Fetch-Site": "cross-site"},
		"a capability":     {"Authorization": "Bearer " + task.Token},
	} {
		for _, route := range []string{"GET /metrics", "GET /", "POST /metrics", "GET /debug/pprof/", "GET /mcp", "GET /v1/status"} {
			method, path, _ := strings.Cut(route, " ")
			if status, body := ask(method, path, header); status != http.StatusUnauthorized && status != http.StatusForbidden {
				t.Errorf("%s with %s: %d %s", route, name, status, body)
			}
		}
	}
	for _, path := range []string{"/", "/debug/pprof/", "/v1/status", "/console/"} {
		if status, _ := ask(http.MethodGet, path, good); status != http.StatusNotFound {
			t.Errorf("%s with the token: %d", path, status)
		}
	}
}

// TestMetricsTokenIsSecret: a token that others can read, that can be guessed or that
// is not there is none.
func TestMetricsTokenIsSecret(t *testing.T) {
	r := startDaemon(t, nil)
	r.stop()
	dir := t.TempDir()
	open, short := filepath.Join(dir, "open"), filepath.Join(dir, "short")
	write(t, open, scraper)
	write(t, short, "hunter2")
	if err := errors.Join(os.Chmod(open, 0o644), os.Chmod(short, 0o600)); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{open: "chmod 600", short: "less than 32", filepath.Join(dir, "none"): "no such file"} {
		conf := r.conf
		conf.Telemetry.Metrics = daemon.MetricsListener{Address: "127.0.0.1:0", Token: path}
		if _, err := daemon.Open(t.Context(), conf, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: err = %v", path, err)
		}
	}
}

// TestCallsAreFollowed: with a collector configured each call is a span with its
// stages, and without one none is.
func TestCallsAreFollowed(t *testing.T) {
	var mu sync.Mutex
	var got bytes.Buffer
	web := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		if err == nil && r.URL.Path == "/v1/traces" && r.Header.Get("X-Tenant") == "vault" {
			got.Write(b)
		}
	}))
	t.Cleanup(web.Close)
	headers := filepath.Join(t.TempDir(), "headers")
	write(t, headers, "X-Tenant: vault\n")
	if err := os.Chmod(headers, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, on := range []bool{true, false} {
		r := startDaemon(t, func(c *daemon.Config) {
			if on {
				c.Telemetry.Traces = daemon.Traces{URL: web.URL, Headers: headers}
			}
		})
		u := newUpstream(t, "act")
		r.addURL("up", u.url)
		task := r.mint(taskFor("be followed", 100, "up.act: {args: {text: {max_length: 3}}}"))
		wantAllowed(t, r.call(task, "up", "act", `{"text":"x"}`))
		wantDenied(t, r.call(task, "up", "act", `{"text":"a secret"}`), vault.CodeCapabilityArgument, vault.ExecutedNo)
		r.stop() // sends what waits
		mu.Lock()
		for _, word := range []string{"verify", "resolve", "admit", "release", "up", "act", "capability.argument", string(task.ID)} {
			if bytes.Contains(got.Bytes(), []byte(word)) != on {
				t.Errorf("traces %v: %s is in a span: %v", on, word, !on)
			}
		}
		if bytes.Contains(got.Bytes(), []byte("a secret")) || bytes.Contains(got.Bytes(), []byte("user:")) || bytes.Contains(got.Bytes(), []byte("spiffe://")) {
			t.Error("a span says what a call says")
		}
		got.Reset()
		mu.Unlock()
	}
}

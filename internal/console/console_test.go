package console_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/pilox/vault/internal/console"
)

const host = "127.0.0.1:7700"

// A house answers the console's questions from memory.
type house struct {
	approvals []console.Approval
	events    []console.Event
	err       error
}

func (h *house) Pending(context.Context) ([]console.Approval, error) { return h.approvals, h.err }
func (h *house) Recent(_ context.Context, n int) ([]console.Event, error) {
	return h.events[:min(n, len(h.events))], h.err
}

type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func newConsole(t *testing.T, h *house) (*console.Console, *clock) {
	t.Helper()
	k := &clock{time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)}
	c, err := console.New(console.Config{Approvals: h, Events: h, Hosts: []string{host, "localhost:7700"}, Now: k.now})
	if err != nil {
		t.Fatal(err)
	}
	return c, k
}

func request(method, path string, header ...string) *http.Request {
	r := httptest.NewRequest(method, "http://"+host+path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return r
}

func do(h http.Handler, r *http.Request) *http.Response {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

// session opens the console and returns its cookie.
func session(t *testing.T, c *console.Console) *http.Cookie {
	t.Helper()
	res := do(c.Handler(), request("GET", c.Link()))
	if res.StatusCode != http.StatusSeeOther || len(res.Cookies()) != 1 {
		t.Fatalf("link gave %s and %d cookies", res.Status, len(res.Cookies()))
	}
	return res.Cookies()[0]
}

func body(t *testing.T, res *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var routes = []struct{ method, path string }{
	{"GET", "/console/"},
	{"GET", "/console/style.css"},
	{"POST", "/console/close"},
	{"GET", "/console/none"},
	{"PUT", "/console/none"},
	{"DELETE", "/console/close"},
	{"GET", "/console/open"},
	{"GET", "/console/open?token=x"},
}

// No route does anything without a session, and none does anything for a page of
// someone else, session or not.
func TestEveryRouteIsGuarded(t *testing.T) {
	c, _ := newConsole(t, new(house))
	h := c.Handler()
	cookie := session(t, c)
	for _, rt := range routes {
		t.Run(rt.method+" "+rt.path, func(t *testing.T) {
			if res := do(h, request(rt.method, rt.path)); res.StatusCode != http.StatusUnauthorized && res.StatusCode != http.StatusMethodNotAllowed {
				t.Errorf("without a session: %s", res.Status)
			}
			stale := request(rt.method, rt.path)
			stale.AddCookie(&http.Cookie{Name: cookie.Name, Value: strings.Repeat("A", 43)})
			if res := do(h, stale); res.StatusCode != http.StatusUnauthorized && res.StatusCode != http.StatusMethodNotAllowed {
				t.Errorf("with a made-up session: %s", res.Status)
			}
			for name, change := range map[string]func(*http.Request){
				"foreign origin":        func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") },
				"null origin":           func(r *http.Request) { r.Header.Set("Origin", "null") },
				"origin of other port":  func(r *http.Request) { r.Header.Set("Origin", "http://127.0.0.1:8080") },
				"origin of other kind":  func(r *http.Request) { r.Header.Set("Origin", "https://"+host) },
				"origin with our start": func(r *http.Request) { r.Header.Set("Origin", "http://"+host+".evil.example") },
				"a second origin":       func(r *http.Request) { r.Header["Origin"] = []string{"http://" + host, "http://evil.example"} },
				"foreign host":          func(r *http.Request) { r.Host = "evil.example" },
				"foreign host, our port": func(r *http.Request) {
					r.Host = "evil.example:7700"
				},
				"our address, other port": func(r *http.Request) { r.Host = "127.0.0.1:80" },
				"no host":                 func(r *http.Request) { r.Host = "" },
				"cross-site fetch":        func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") },
				"same-site fetch":         func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-site") },
			} {
				r := request(rt.method, rt.path)
				r.AddCookie(cookie)
				change(r)
				if res := do(h, r); res.StatusCode != http.StatusForbidden {
					t.Errorf("%s with a session: %s, want 403", name, res.Status)
				}
			}
		})
	}
}

func TestGuardLetsOwnRequestsThrough(t *testing.T) {
	ok := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	g := console.Guard(ok, host, "localhost:7700")
	for _, tt := range []struct {
		name   string
		r      *http.Request
		change func(*http.Request)
	}{
		{"a program without browser headers", request("POST", "/mcp"), nil},
		{"our own page", request("POST", "/x", "Origin", "http://"+host, "Sec-Fetch-Site", "same-origin"), nil},
		{"a typed address", request("GET", "/x", "Sec-Fetch-Site", "none"), nil},
		{"the other name of the listener", request("GET", "/x"), func(r *http.Request) { r.Host = "LocalHost:7700" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.change != nil {
				tt.change(tt.r)
			}
			if res := do(g, tt.r); res.StatusCode != http.StatusNoContent {
				t.Errorf("%s", res.Status)
			}
		})
	}
	if res := do(console.Guard(ok), request("GET", "/")); res.StatusCode != http.StatusForbidden {
		t.Errorf("a guard without hosts let a request through: %s", res.Status)
	}
}

func TestSession(t *testing.T) {
	t.Run("the cookie is for this browser and these pages only", func(t *testing.T) {
		c, _ := newConsole(t, new(house))
		k := session(t, c)
		if !k.HttpOnly || k.SameSite != http.SameSiteStrictMode || k.Path != "/console/" || k.MaxAge != 12*60*60 || len(k.Value) != 43 || k.Domain != "" {
			t.Errorf("cookie %+v", k)
		}
	})
	t.Run("a link opens one session", func(t *testing.T) {
		c, _ := newConsole(t, new(house))
		link := c.Link()
		if res := do(c.Handler(), request("GET", link)); res.StatusCode != http.StatusSeeOther || res.Header.Get("Location") != "/console/" {
			t.Errorf("first: %s", res.Status)
		}
		if res := do(c.Handler(), request("GET", link)); res.StatusCode != http.StatusUnauthorized || len(res.Cookies()) != 0 {
			t.Errorf("second: %s", res.Status)
		}
	})
	t.Run("a link is no session and a session no link", func(t *testing.T) {
		c, _ := newConsole(t, new(house))
		_, token, _ := strings.Cut(c.Link(), "=")
		r := request("GET", "/console/")
		r.AddCookie(&http.Cookie{Name: "pvault_console", Value: token})
		if res := do(c.Handler(), r); res.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s", res.Status)
		}
		k := session(t, c)
		if res := do(c.Handler(), request("GET", "/console/open?token="+k.Value)); res.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s", res.Status)
		}
	})
	t.Run("a link ends after ten minutes", func(t *testing.T) {
		c, k := newConsole(t, new(house))
		link := c.Link()
		k.t = k.t.Add(10 * time.Minute)
		if res := do(c.Handler(), request("GET", link)); res.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s", res.Status)
		}
	})
	t.Run("a session ends after twelve hours, used or not", func(t *testing.T) {
		c, k := newConsole(t, new(house))
		cookie := session(t, c)
		for _, step := range []struct {
			after time.Duration
			want  int
		}{{0, 200}, {12*time.Hour - 1, 200}, {1, 401}} {
			k.t = k.t.Add(step.after)
			r := request("GET", "/console/")
			r.AddCookie(cookie)
			if res := do(c.Handler(), r); res.StatusCode != step.want {
				t.Errorf("after %v more: %s, want %d", step.after, res.Status, step.want)
			}
		}
	})
	t.Run("a session can be closed by our own page only", func(t *testing.T) {
		c, _ := newConsole(t, new(house))
		cookie := session(t, c)
		for _, step := range []struct {
			header []string
			want   int
		}{{nil, 403}, {[]string{"Origin", "http://" + host}, 200}, {[]string{"Origin", "http://" + host}, 401}} {
			r := request("POST", "/console/close", step.header...)
			r.AddCookie(cookie)
			if res := do(c.Handler(), r); res.StatusCode != step.want {
				t.Errorf("%q: %s, want %d", step.header, res.Status, step.want)
			}
		}
	})
	t.Run("more than sixteen sessions drop the oldest", func(t *testing.T) {
		c, k := newConsole(t, new(house))
		var all []*http.Cookie
		for range 17 {
			all = append(all, session(t, c))
			k.t = k.t.Add(time.Second)
		}
		for i, cookie := range all {
			r := request("GET", "/console/")
			r.AddCookie(cookie)
			if res := do(c.Handler(), r); (res.StatusCode == 200) != (i > 0) {
				t.Errorf("session %d: %s", i, res.Status)
			}
		}
	})
}

func TestPage(t *testing.T) {
	h := &house{
		approvals: []console.Approval{{ID: "a-1", State: "open", Expires: time.Date(2026, 9, 1, 12, 10, 0, 0, time.UTC), Text: "WANTS\n</pre><script>alert(1)</script>", Allowed: []string{"key:<b>"}}},
		events:    []console.Event{{Index: 7, Class: "call", Phase: "refused", Verdict: "deny", Reason: "policy_denied", Target: `"><img src=x onerror=alert(1)>`}},
	}
	c, _ := newConsole(t, h)
	cookie := session(t, c)
	get := func(path string) *http.Response {
		r := request("GET", path)
		r.AddCookie(cookie)
		return do(c.Handler(), r)
	}
	res := get("/console/")
	page := body(t, res)
	for _, want := range []string{"pvault approve allow a-1", "&lt;/pre&gt;&lt;script&gt;", "policy_denied", "12:10:00"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, bad := range []string{"<script", "<img", "<b>", " style=", "onerror=\"", "http://", "https://"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page holds %q", bad)
		}
	}
	for name, want := range map[string]string{
		"Content-Security-Policy":      "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
		"X-Content-Type-Options":       "nosniff",
		"Cache-Control":                "no-store",
		"Cross-Origin-Resource-Policy": "same-origin",
	} {
		if got := res.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if css := get("/console/style.css"); css.StatusCode != 200 || !strings.Contains(body(t, css), "bidi-override") {
		t.Error("the style does not fix the order of characters")
	}
	if res := get("/console/none"); res.StatusCode != http.StatusNotFound {
		t.Errorf("%s", res.Status)
	}

	h.err = errors.New("secret cause")
	page = body(t, get("/console/"))
	if strings.Contains(page, "Nobody waits") || strings.Contains(page, "Nothing yet") || strings.Contains(page, "secret cause") || !strings.Contains(page, "cannot be read") {
		t.Errorf("a page without data looks like peace: %s", page)
	}
}

func TestConfigRefuses(t *testing.T) {
	h := new(house)
	for _, c := range []console.Config{
		{},
		{Events: h, Hosts: []string{host}},
		{Approvals: h, Hosts: []string{host}},
		{Approvals: h, Events: h},
	} {
		if _, err := console.New(c); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
}

// FuzzGuard: whatever the headers, what passes has our host and no foreign origin.
func FuzzGuard(f *testing.F) {
	f.Add(host, "http://"+host, "same-origin")
	f.Add("evil.example", "null", "cross-site")
	f.Fuzz(func(t *testing.T, h, origin, site string) {
		passed := false
		g := console.Guard(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { passed = true }), host)
		r := request("GET", "/")
		r.Host = h
		r.Header["Origin"] = []string{origin}
		r.Header["Sec-Fetch-Site"] = []string{site}
		do(g, r)
		if passed && (h != host || origin != "http://"+host || site != "same-origin" && site != "none") {
			t.Errorf("host %q, origin %q, site %q passed", h, origin, site)
		}
	})
}

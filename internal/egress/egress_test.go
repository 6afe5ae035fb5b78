package egress

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"path"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/pilox/vault"
)

func TestPublic(t *testing.T) {
	for _, s := range []string{
		"127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.100.100.200", "0.0.0.0",
		"255.255.255.255", "224.0.0.1", "192.0.0.192", "198.18.0.1", "::", "::1", "fe80::1", "fc00::1", "ff02::1",
		"::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:db8::1", "fd00:ec2::254",
	} {
		if vault.PublicAddr(netip.MustParseAddr(s)) {
			t.Errorf("%s counts as public", s)
		}
	}
	for _, s := range []string{"8.8.8.8", "93.184.215.14", "2606:4700::1111"} {
		if !vault.PublicAddr(netip.MustParseAddr(s)) {
			t.Errorf("%s does not count as public", s)
		}
	}
	if vault.PublicAddr(netip.Addr{}) {
		t.Error("no address counts as public")
	}
}

// server returns a client whose every name resolves to addr and whose dialer
// reaches a TLS test server.
func server(t *testing.T, addr string, h http.HandlerFunc) *Client {
	t.Helper()
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	tr := s.Client().Transport.(*http.Transport).Clone()
	tr.TLSClientConfig.ServerName = "example.com" // what the test certificate is for
	c := New(Config{
		Transport: tr,
		Resolve: func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr(addr)}, nil
		},
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, s.Listener.Addr().String())
		},
		MaxResponse: 1000,
	})
	t.Cleanup(c.Close)
	return c
}

func call(host, args string) *vault.Facts {
	return &vault.Facts{Call: &vault.Call{Kind: vault.KindEgress, Target: vault.Target{Name: host}, Args: vault.MustArgs(args)}}
}

func TestRun(t *testing.T) {
	seen := make(chan *http.Request, 10)
	h := func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		r.Header.Set("X-Body", string(b))
		seen <- r
		switch r.URL.Path {
		case "/big":
			_, _ = w.Write(make([]byte, 2000))
		case "/escaped":
			_, _ = w.Write(bytes.Repeat([]byte{0}, 600))
		case "/redirect":
			http.Redirect(w, r, "https://169.254.169.254/", http.StatusFound)
		case "/bin":
			_, _ = w.Write([]byte{0xff, 0xfe})
		default:
			w.Header().Set("Content-Type", "text/plain")
			_, _ = w.Write([]byte("hello"))
		}
	}
	c := server(t, "93.184.215.14", h)

	t.Run("a request goes out as it was decided, without the caller's authority", func(t *testing.T) {
		res, err := c.Run(t.Context(), call("api.example.com", `{"method":"POST","path":"/v1/x?q=1","body":"{}"}`), nil)
		if err != nil {
			t.Fatal(err)
		}
		r := <-seen
		if r.Method != "POST" || r.Host != "api.example.com" || r.URL.String() != "/v1/x?q=1" || r.Header.Get("X-Body") != "{}" || r.Header.Get("Authorization") != "" {
			t.Errorf("request: %s %s%s %v", r.Method, r.Host, r.URL, r.Header)
		}
		var got response
		if err := json.Unmarshal(res.Raw, &got); err != nil || got.Status != 200 || got.Body != "hello" {
			t.Errorf("result %s, %v", res.Raw, err)
		}
	})
	t.Run("a redirect is shown and not followed", func(t *testing.T) {
		res, err := c.Run(t.Context(), call("api.example.com", `{"method":"GET","path":"/redirect"}`), nil)
		<-seen
		if err != nil || !strings.Contains(string(res.Raw), `"status":302`) || len(seen) != 0 {
			t.Errorf("result %s, %v", res.Raw, err)
		}
	})
	t.Run("bytes that are no text are base64", func(t *testing.T) {
		res, err := c.Run(t.Context(), call("api.example.com", `{"method":"GET","path":"/bin"}`), nil)
		<-seen
		if err != nil || !strings.Contains(string(res.Raw), `"encoding":"base64"`) {
			t.Errorf("result %s, %v", res.Raw, err)
		}
	})
	for _, tt := range []struct {
		name, host, args string
		code             vault.Code
		executed         vault.Executed
	}{
		{"a large answer is not passed on", "a.example.com", `{"method":"GET","path":"/big"}`, vault.CodeUpstreamTooLarge, vault.ExecutedYes},
		{"nor one that is large once it is JSON", "a.example.com", `{"method":"GET","path":"/escaped"}`, vault.CodeUpstreamTooLarge, vault.ExecutedYes},
		{"a body where none has a meaning", "a.example.com", `{"method":"GET","path":"/","body":"x"}`, vault.CodeArgsSchema, vault.ExecutedNo},
		{"an unknown method", "a.example.com", `{"method":"CONNECT","path":"/"}`, vault.CodeArgsSchema, vault.ExecutedNo},
		{"a path that climbs", "a.example.com", `{"method":"GET","path":"/v1/../admin"}`, vault.CodeArgsSchema, vault.ExecutedNo},
		{"a path that climbs in disguise", "a.example.com", `{"method":"GET","path":"/v1/%2e%2e/admin"}`, vault.CodeArgsSchema, vault.ExecutedNo},
		{"a path with another host", "a.example.com", `{"method":"GET","path":"//evil.example/"}`, vault.CodeArgsSchema, vault.ExecutedNo},
		{"an address", "169.254.169.254", `{"method":"GET","path":"/"}`, vault.CodeArgsSchema, vault.ExecutedNo},
		{"a header smuggled in", "a.example.com", `{"method":"POST","path":"/","body":"x","content_type":"a\r\nb: c"}`, vault.CodeArgsSchema, vault.ExecutedNo},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := c.Run(t.Context(), call(tt.host, tt.args), nil)
			if d := vault.DenialOf(err); d == nil || d.Reason.Code != tt.code || d.Executed != tt.executed {
				t.Errorf("denial = %+v", d)
			}
		})
	}
	t.Run("a name that points inside is not dialled", func(t *testing.T) {
		c := server(t, "169.254.169.254", h)
		_, err := c.Run(t.Context(), call("metadata.example.com", `{"method":"GET","path":"/"}`), nil)
		if d := vault.DenialOf(err); d == nil || d.Reason.Code != vault.CodeEgressAddress || d.Executed != vault.ExecutedNo {
			t.Errorf("denial = %+v", d)
		}
	})
}

// TestWhatNeverLeft holds that a request without a connection counts as not sent,
// and one that was cut off as unknown.
func TestWhatNeverLeft(t *testing.T) {
	public := []netip.Addr{netip.MustParseAddr("93.184.215.14")}
	for _, tt := range []struct {
		name     string
		addrs    []netip.Addr
		resolve  error
		code     vault.Code
		executed vault.Executed
	}{
		{"a name that nobody knows", nil, errors.New("no such host"), vault.CodeUpstreamFailed, vault.ExecutedNo},
		{"a name without an address", nil, nil, vault.CodeUpstreamFailed, vault.ExecutedNo},
		{"a name that also points inside", append(public, netip.MustParseAddr("10.0.0.1")), nil, vault.CodeEgressAddress, vault.ExecutedNo},
		{"a host that does not answer", public, nil, vault.CodeUpstreamFailed, vault.ExecutedNo},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := New(Config{
				Resolve: func(context.Context, string) ([]netip.Addr, error) { return tt.addrs, tt.resolve },
				Dial:    func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("refused") },
			})
			defer c.Close()
			_, err := c.Run(t.Context(), call("a.example.com", `{"method":"GET","path":"/"}`), nil)
			if d := vault.DenialOf(err); d == nil || d.Reason.Code != tt.code || d.Executed != tt.executed {
				t.Errorf("denial = %+v", d)
			}
		})
	}
}

func TestPlainPath(t *testing.T) {
	for _, p := range []string{
		"/", "/v1/accounts", "/v1/accounts/", "/v1/a%20b", "/a;v=1/b", "/v1/...", "/.well-known/x", "/a?", "/a?q=1&u=https%3A%2F%2Fx%2F..%2f", "/a?q=../..",
	} {
		if !plainPath(p) {
			t.Errorf("%q is refused", p)
		}
	}
	for _, p := range []string{
		"", "v1", "?q", "//evil.example/", "/a//b", "/.", "/..", "/../a", "/a/..", "/a/../b", "/a/./b", "/a/..?q=1", "/a/..;x/b", "/a/.;/b",
		"/a/;x/b", "/a/%2e%2E/b", "/a/.%2e", "/a/..%3b/b", "/a/..%2fb", "/a%5c..%5cb", "/a\\..\\b", "/a%00", "/a/%252e%252e/b", "/a#b", "/a?b#c", "/a b", "/a\"b", "/<a>",
		"/a\tb", "/a\r\nX: y", "/\u00e4", "/a%zz", "/a%2", "/" + strings.Repeat("a", maxPath),
	} {
		if plainPath(p) {
			t.Errorf("%q passes", p)
		}
	}
}

// TestNothingIsSentTwice has a server that dies under the second request on a
// connection: a client that reuses connections sends that one again by itself.
func TestNothingIsSentTwice(t *testing.T) {
	var got atomic.Int32
	c := server(t, "93.184.215.14", func(w http.ResponseWriter, _ *http.Request) {
		if got.Add(1) == 2 {
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write([]byte("hello"))
	})
	if _, err := c.Run(t.Context(), call("a.example.com", `{"method":"GET","path":"/"}`), nil); err != nil {
		t.Fatal(err)
	}
	_, err := c.Run(t.Context(), call("a.example.com", `{"method":"GET","path":"/"}`), nil)
	if d := vault.DenialOf(err); d == nil || d.Reason.Code != vault.CodeUpstreamFailed || d.Executed != vault.ExecutedUnknown {
		t.Errorf("denial = %+v", d)
	}
	if n := got.Load(); n != 2 {
		t.Errorf("two calls made %d requests", n)
	}
}

func FuzzPlainPath(f *testing.F) {
	for _, s := range []string{"/v1/accounts/7?x=1", "/a/..;/b", "/%2e%2e/", "//x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !plainPath(s) {
			return
		}
		u, err := url.Parse("https://a.example" + s)
		if err != nil || u.Host != "a.example" || u.User != nil || u.Fragment != "" {
			t.Fatalf("%q leads to %+v, %v", s, u, err)
		}
		if got := u.RequestURI(); got != s {
			t.Errorf("%q is sent as %q", s, got)
		}
		if want := path.Clean(u.Path); want != u.Path && want+"/" != u.Path {
			t.Errorf("%q means %q", s, want)
		}
	})
}

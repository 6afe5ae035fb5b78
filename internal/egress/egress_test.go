package egress

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/pilox/vault"
)

func TestPublic(t *testing.T) {
	for _, s := range []string{
		"127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.100.100.200", "0.0.0.0",
		"255.255.255.255", "224.0.0.1", "192.0.0.192", "198.18.0.1", "::", "::1", "fe80::1", "fc00::1", "ff02::1",
		"::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:db8::1", "fd00:ec2::254",
	} {
		if Public(netip.MustParseAddr(s)) {
			t.Errorf("%s counts as public", s)
		}
	}
	for _, s := range []string{"8.8.8.8", "93.184.215.14", "2606:4700::1111"} {
		if !Public(netip.MustParseAddr(s)) {
			t.Errorf("%s does not count as public", s)
		}
	}
	if Public(netip.Addr{}) {
		t.Error("no address counts as public")
	}
}

func TestHost(t *testing.T) {
	for _, s := range []string{
		"", ".", "localhost", "127.0.0.1", "127.1", "2130706433", "0x7f000001", "017700000001", "[::1]", "::1",
		"a..b", "-a.example", "a-.example", "A.example", "a.example.", "a.example:", "a.example:0", "a.example:x",
		"a.example:123456", "a_b.example", "a.example/x", "u@a.example", "é.example", "a.1", strings.Repeat("a.", 127) + "example",
	} {
		if _, _, err := Host(s); err == nil {
			t.Errorf("%q is taken for a host", s)
		}
	}
	for s, want := range map[string]string{"api.bank.example": "api.bank.example 443", "a.example:8443": "a.example 8443", "xn--bcher-kva.example": "xn--bcher-kva.example 443"} {
		if h, p, err := Host(s); err != nil || h+" "+p != want {
			t.Errorf("%q: %s %s, %v", s, h, p, err)
		}
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

func FuzzHost(f *testing.F) {
	for _, s := range []string{"a.example", "a.example:443", "127.1", "[::1]:80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		host, _, err := Host(s)
		if err != nil {
			return
		}
		if _, err := netip.ParseAddr(host); err == nil || host != strings.ToLower(host) {
			t.Errorf("%q gives host %q", s, host)
		}
	})
}

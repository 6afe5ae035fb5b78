package vault

import (
	"net/netip"
	"strings"
	"testing"
)

func TestParseHost(t *testing.T) {
	for _, s := range []string{
		"", ".", "localhost", "127.0.0.1", "127.1", "2130706433", "0x7f000001", "017700000001", "[::1]", "::1",
		"a..b", "-a.example", "a-.example", "A.example", "a.example.", "a.example:", "a.example:0", "a.example:x",
		"a.example:123456", "a.example:65536", "a.example:+80", "a.example:080", "a.example:443", "a.example:80:80",
		"a_b.example", "a.example/x", "u@a.example", "\u00e9.example", "a.1", strings.Repeat("a.", 127) + "example",
	} {
		if _, _, err := ParseHost(s); err == nil {
			t.Errorf("%q is taken for a host", s)
		}
	}
	for s, want := range map[string]string{
		"api.bank.example": "api.bank.example 443", "a.example:8443": "a.example 8443", "a.example:65535": "a.example 65535",
		"xn--bcher-kva.example": "xn--bcher-kva.example 443",
	} {
		if h, p, err := ParseHost(s); err != nil || h+" "+p != want {
			t.Errorf("%q: %s %s, %v", s, h, p, err)
		}
	}
}

func FuzzParseHost(f *testing.F) {
	for _, s := range []string{"a.example", "a.example:8443", "127.1", "[::1]:80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		host, port, err := ParseHost(s)
		if err != nil {
			return
		}
		if _, err := netip.ParseAddr(host); err == nil || host != strings.ToLower(host) {
			t.Errorf("%q gives host %q", s, host)
		}
		again := host
		if port != "443" {
			again += ":" + port
		}
		if again != s {
			t.Errorf("%q has another spelling: %q", s, again)
		}
	})
}

package process

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"
)

func TestConnectProxyAnswers(t *testing.T) {
	allow := func(host string, port int) bool { return host == "registry.example" && port == 443 }
	for _, tt := range []struct {
		name, request string
		dialErr       error
		want          string
	}{
		{"an allowed target gets a tunnel", "CONNECT registry.example:443 HTTP/1.1\r\nHost: registry.example:443\r\n\r\n", nil, "HTTP/1.1 200"},
		{"case and a trailing dot do not matter", "CONNECT Registry.Example.:443 HTTP/1.1\r\n\r\n", nil, "HTTP/1.1 200"},
		{"another host is refused", "CONNECT evil.example:443 HTTP/1.1\r\n\r\n", nil, "HTTP/1.1 403"},
		{"a host that only ends like an allowed one is refused", "CONNECT xregistry.example:443 HTTP/1.1\r\n\r\n", nil, "HTTP/1.1 403"},
		{"the Host header decides nothing", "CONNECT evil.example:443 HTTP/1.1\r\nHost: registry.example:443\r\n\r\n", nil, "HTTP/1.1 403"},
		{"an address that is not public is refused", "CONNECT registry.example:443 HTTP/1.1\r\n\r\n", ErrAddress, "HTTP/1.1 403"},
		{"a failed dial is a bad gateway", "CONNECT registry.example:443 HTTP/1.1\r\n\r\n", errors.New("down"), "HTTP/1.1 502"},
		{"a plain request is refused", "GET http://registry.example/ HTTP/1.1\r\nHost: registry.example\r\n\r\n", nil, "HTTP/1.1 405"},
		{"garbage is refused", "\x16\x03\x01\x02\r\n\r\n", nil, "HTTP/1.1 400"},
		{"a body is refused", "CONNECT registry.example:443 HTTP/1.1\r\nContent-Length: 3\r\n\r\n", nil, "HTTP/1.1 400"},
		{"a head without end is refused", "CONNECT registry.example:443 HTTP/1.1\r\nX: " + strings.Repeat("x", maxRequestHead), nil, "HTTP/1.1 431"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			guest, ours := net.Pipe()
			up, registry := net.Pipe()
			defer registry.Close()
			done := make(chan struct{})
			go func() {
				defer close(done)
				ConnectProxy(allow, func(context.Context, string, string) (net.Conn, error) {
					if tt.dialErr != nil {
						return nil, tt.dialErr
					}
					return up, nil
				})(t.Context(), ours)
			}()
			go io.WriteString(guest, tt.request)
			line, err := bufio.NewReader(guest).ReadString('\n')
			if err != nil || !strings.HasPrefix(line, tt.want) {
				t.Errorf("got %q, %v", line, err)
			}
			guest.Close()
			registry.Close()
			<-done
		})
	}
}

func TestTunnelKeepsEveryByte(t *testing.T) {
	guest, ours := net.Pipe()
	up, registry := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		ConnectProxy(func(string, int) bool { return true }, func(context.Context, string, string) (net.Conn, error) {
			return up, nil
		})(t.Context(), ours)
	}()
	// Bytes right behind the head belong to the tunnel.
	go io.WriteString(guest, "CONNECT a.example:1 HTTP/1.1\r\n\r\nearly")
	br := bufio.NewReader(guest)
	for range 2 {
		if _, err := br.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(registry, b); err != nil || string(b) != "early" {
		t.Fatalf("%q, %v", b, err)
	}
	go io.WriteString(registry, "late!")
	if _, err := io.ReadFull(br, b); err != nil || string(b) != "late!" {
		t.Fatalf("%q, %v", b, err)
	}
	guest.Close()
	registry.Close()
	<-done
}

func TestPublic(t *testing.T) {
	for addr, want := range map[string]bool{
		"1.1.1.1": true, "2606:4700::1111": true, "::ffff:1.1.1.1": true,
		"127.0.0.1": false, "::1": false, "::ffff:127.0.0.1": false, "0.0.0.0": false, "10.1.2.3": false,
		"172.16.0.1": false, "192.168.1.1": false, "169.254.169.254": false, "100.64.0.1": false, "192.0.2.1": false,
		"224.0.0.1": false, "255.255.255.255": false, "fe80::1": false, "fc00::1": false, "fd00:ec2::254": false,
		"64:ff9b::7f00:1": false, "2002:7f00:1::": false, "2001:db8::1": false,
	} {
		if got := public(netip.MustParseAddr(addr)); got != want {
			t.Errorf("public(%s) = %v", addr, got)
		}
	}
}

func TestDialPublicRefusesWhatANameLeadsTo(t *testing.T) {
	for _, target := range []string{"127.0.0.1:1", "[::1]:1", "localhost:1", "169.254.169.254:80"} {
		if c, err := DialPublic(t.Context(), "tcp", target); !errors.Is(err, ErrAddress) {
			t.Errorf("%s: %v, %v", target, c, err)
		}
	}
}

func FuzzReadConnect(f *testing.F) {
	for _, s := range []string{
		"CONNECT a.example:443 HTTP/1.1\r\n\r\n", "CONNECT [::1]:443 HTTP/1.1\r\n\r\n", "CONNECT 0x7f.1:1 HTTP/1.1\r\n\r\n",
		"CONNECT 2130706433:1 HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "CONNECT a:0443 HTTP/1.1\r\n\r\n", "\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		host, port, status := readConnect(bufio.NewReaderSize(bytes.NewReader(b), maxRequestHead))
		if status != 0 {
			if host != "" || port != 0 || http.StatusText(status) == "" {
				t.Fatalf("%q %d %d", host, port, status)
			}
			return
		}
		if port < 1 || port > 65535 || strings.ToLower(host) != host || strings.HasSuffix(host, ".") {
			t.Fatalf("accepted %q %d", host, port)
		}
		// What was accepted means the same when it is written again.
		h, p, err := splitTarget(net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil || h != host || p != port {
			t.Fatalf("%q %d became %q %d %v", host, port, h, p, err)
		}
	})
}
